"""Kernels as handlers of XLA's foreign function interface, and what a program passes to them.

A handler is compiled for a family of kernels, dtypes and settings, never for a shape. The shape is in its attributes,
arrays of numbers that are constants of the program. There are no addresses among them, so a program can be stored.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gennorm import engine
from gennorm.plan import ITEMSIZE, Plan

from .call import BACKWARD, FORWARD, PLACEMENTS, STREAMED, parts_between, settings_of
from .compiler import CompilationError, Handler, Signature, jit
from .kernels import column_gradients, columns, handlers
from .kernels.vector import LANES

__all__ = ["Call", "backward", "forward"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a handler.

    Attributes
    ----------
    name : str
        Of the handler. No two handlers with different machine code have the same.
    address : int
        Of its C function.
    results : tuple of (str, int)
        Dtype and number of elements of every result after those of the kernel, which a program passes on or ignores.
    attributes : dict of str to ndarray
    """

    name: str
    address: int
    results: tuple[tuple[str, int], ...]
    attributes: dict[str, Array]


class _Buffer(NamedTuple):
    """An operand or a result: dtype and length in the kernel, and whether it is bytes in the program.

    Programs may have no float64.
    """

    dtype: str
    length: int
    hidden: bool = False

    @property
    def visible(self) -> tuple[str, int]:
        return ("uint8", self.length * ITEMSIZE[self.dtype]) if self.hidden else (self.dtype, self.length)


def forward(plan: Plan, scaled: bool, biased: bool, moments: str) -> Call:
    """Return the call that normalizes: of input, scaling and biases, in the layout of the plan.

    Its results are the output, means and second moments in float64 for `backward`, and the same in the dtype `moments`.
    """
    flags = {"MEASURE": 1, "KEEP": 1, "APPLY": 1, "CENTER": int(plan.config.method == "Standardize")}
    scaling, biases = _parameters(plan, scaled, biased)
    operands = _Buffer(plan.dtype, plan.size), _Buffer(plan.compute, scaling), _Buffer(plan.compute, biases)
    kept = 2 * plan.slices
    results = _Buffer(plan.result, plan.size), _Buffer("float64", kept, hidden=True), _Buffer(moments, kept)
    fields = plan.tasks // plan.cut.units, 1
    return _call(
        "forward",
        plan,
        flags | _kinds(plan, scaled, biased),
        operands,
        results,
        _space(plan, *FORWARD),
        fields,
        _numbers(plan),
    )


def backward(plan: Plan, scaled: bool, biased: bool) -> Call:
    """Return the call that takes gradients: of input, gradient of the output, scaling, and what `forward` kept.

    Its results are the gradients of the input, of the scaling and of the biases, in the dtype of the arithmetic.
    """
    flags = {"SUMS": 1, "APPLY": 1}  # a backward kernel takes the method from its numbers
    scaling, biases = _parameters(plan, scaled, biased)
    parameters = max(scaling, biases)
    varying = plan.family == "rows" and plan.parameter_kind == 2 and parameters > 0
    if plan.family == "rows":
        space: tuple[_Buffer, ...] = (_Buffer(plan.compute, (2 * parameters + LANES) * varying, hidden=True),)
    else:
        space = _space(plan, *BACKWARD, column_gradients.TERMS)
    operands = (
        _Buffer(plan.dtype, plan.size),
        _Buffer(plan.result, plan.size),
        _Buffer(plan.compute, scaling),
        _Buffer("float64", 2 * plan.slices, hidden=True),
    )
    results = (
        _Buffer(plan.result, plan.size),
        _Buffer(plan.compute, scaling),
        _Buffer(plan.compute, biases),
        _Buffer("float64", 4 * plan.slices, hidden=True),
        _Buffer("float64", 2 * parameters, hidden=True),
    )
    fields = 1, 1, plan.tasks, parameters, parts_between(plan) if varying else 1
    count, degrees = plan.resolved.count, plan.resolved.count - plan.config.unbiased
    per_count = 1 / count if plan.config.method == "Standardize" and count > 0 else 0.0
    numbers = (*_numbers(plan), per_count, 1 / degrees if degrees > 0 else 0.0)
    return _call("backward", plan, flags | _kinds(plan, scaled, biased), operands, results, space, fields, numbers)


def _kinds(plan: Plan, scaled: bool, biased: bool) -> dict[str, int]:
    streamed = plan.size * ITEMSIZE[plan.result] >= STREAMED["kept"]
    kind = plan.parameter_kind
    return {
        "SCALING": kind * scaled,
        "BIASES": kind * biased,
        "STREAM": int(streamed),
    }


def _parameters(plan: Plan, scaled: bool, biased: bool) -> tuple[int, int]:
    size = int(np.prod([size for _, _, size in plan.parameter_cells], dtype=np.int64))
    return size * scaled, size * biased


def _space(plan: Plan, doubles: int, reals: int, more: int = 0) -> tuple[_Buffer, ...]:
    """Return the scratch arrays."""
    if plan.family == "rows":
        return ()
    tile = plan.geometry[columns.TILE]
    return _Buffer("float64", doubles * tile, hidden=True), _Buffer(plan.compute, reals * tile + more, hidden=True)


def _numbers(plan: Plan) -> tuple[float, ...]:
    config = plan.config
    degrees = max(plan.resolved.count - config.unbiased, 1)
    return float(degrees), config.epsilon, float(PLACEMENTS[config.epsilon_placement])


def _call(
    step: str,
    plan: Plan,
    flags: dict[str, int],
    operands: tuple[_Buffer, ...],
    results: tuple[_Buffer, ...],
    space: tuple[_Buffer, ...],
    fields: tuple[int, ...],
    numbers: tuple[float, ...],
) -> Call:
    attributes = {
        "fields": np.array(fields, np.int64),
        "geometry": np.array(plan.geometry, np.int64),
        "numbers": np.array(numbers, np.float64),
        "sizes": np.array([one.visible[1] for one in (*operands, *results, *space)], np.int64),
    }
    arrays = *(one.dtype for one in (*operands, *results)), *(one.dtype.name for one in attributes.values())
    handler = Handler(len(operands), len(attributes))
    signature = Signature(arrays, tuple(one.dtype for one in space), 3, handler=handler)
    dtypes = plan.dtype, plan.result, plan.compute
    name, address = _handler(f"{step}_{plan.family}", dtypes, frozenset(flags.items()), signature)
    return Call(name, address, tuple(one.visible for one in (*results, *space)), attributes)


@functools.cache
def _handler(
    name: str, dtypes: tuple[str, str, str], flags: frozenset[tuple[str, int]], signature: Signature
) -> tuple[str, int]:
    if (reason := engine.compilation_failure()) is not None:
        raise CompilationError(reason)
    return jit.handler(getattr(handlers, name), settings_of(dtypes, flags), dtypes, signature)
