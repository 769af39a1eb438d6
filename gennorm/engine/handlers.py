"""Kernels as handlers of XLA's foreign function interface, and what a program passes to them.

A handler is compiled for a family of kernels, dtypes and settings, never for a shape. The shape is in its attributes,
arrays of numbers that are constants of the program. There are no addresses among them, so a program can be stored.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gennorm import engine
from gennorm.plan import ITEMSIZE, Plan, make_plan

from .call import BACKWARD, FORWARD, PLACEMENTS, STREAMED, parts_between, separate, settings_of
from .compiler import CompilationError, Handler, Signature, jit
from .compiler.foreign import MOST, VERSION
from .kernels import column_gradients, columns, handlers
from .kernels.vector import LANES
from .layout import Layout
from .threads import get_num_threads

__all__ = ["VERSION", "Call", "Plan", "are_possible", "backward", "forward", "parameter_order", "plan_of"]

Array = npt.NDArray[Any]

# Elements for each thread that shares a call, at the least. Threads of XLA that sleep take longer to wake up than those
# of the engine: RMS norm of (256, 768) takes 61 us with one thread and 175 with two, layer norm of (4096, 1024) 2.4 ms
# and 1.4.
WORTH_SHARING = 1 << 19


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
        Dtype and length of each result. Behind those that `forward` and `backward` name is workspace.
    attributes : dict of str to ndarray
    """

    name: str
    address: int
    results: tuple[tuple[str, int], ...]
    attributes: dict[str, Array]


def are_possible() -> bool:
    """Return whether the machine has what handlers are written for: 64 bits, and functions of POSIX."""
    return jit.JIT and os.name == "posix" and sys.byteorder == "little" and ctypes.sizeof(ctypes.c_void_p) == 8


plan_of = functools.lru_cache(maxsize=256)(make_plan)


@functools.lru_cache(maxsize=256)
def parameter_order(plan: Plan) -> Array | None:
    """Return which parameter each parameter of the kernel is; None if they have the same order."""
    shape = plan.resolved.parameter_shape
    own = np.arange(math.prod(shape), dtype=np.float64)
    layout = Layout(plan)
    layout.compute = own.dtype
    order = layout.parameter(own.reshape(shape))
    assert order is not None
    return None if np.array_equal(order, own) else order.astype(np.int32)


def forward(plan: Plan, scaled: bool, biased: bool, moments: str) -> Call:
    """Return the call that normalizes: of input, scaling and biases, flat and in the order of the kernel.

    Its results are the output, the bytes of means and second moments in float64, which `backward` takes, and the same
    numbers in the dtype `moments`.

    Raises
    ------
    CompilationError
        The kernel could not be compiled.
    """
    flags = {"MEASURE": 1, "KEEP": 1, "APPLY": 1, "CENTER": int(plan.config.method == "Standardize")}
    scaling, biases = _parameters(plan, scaled, biased)
    kept = 2 * plan.slices
    operands = _Buffer(plan.dtype, plan.size), _Buffer(plan.compute, scaling), _Buffer(plan.compute, biases)
    results = _Buffer(plan.result, plan.size), _Buffer("float64", kept, hidden=True), _Buffer(moments, kept)
    space = () if plan.family == "rows" else _space(plan, *FORWARD)
    return _call(
        *("forward", plan, flags | _varying(plan, scaled, biased), operands, results, space),
        fields=(plan.tasks // plan.cut.units,),
        numbers=_numbers(plan),
    )


def backward(plan: Plan, scaled: bool, biased: bool) -> Call:
    """Return the call that takes gradients: of input, gradient of the output, scaling, and what `forward` kept.

    Its results are the gradients of the input, of the scaling and of the biases, the last two in the dtype of the
    arithmetic and in the order of the kernel.

    Raises
    ------
    CompilationError
        The kernel could not be compiled.
    """
    flags = {"SUMS": 1, "APPLY": 1}  # a backward kernel takes the method from its numbers
    scaling, biases = _parameters(plan, scaled, biased)
    parameters = max(scaling, biases)
    varying = plan.family == "rows" and plan.parameter_kind == 2 and parameters > 0
    whole = plan.tasks // plan.cut.units  # slices or tiles; a block of units has whole ones
    block = -(-whole // separate(plan, parameters)) * plan.cut.units
    blocks = -(-plan.tasks // block)
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
        _Buffer("float64", 2 * parameters * blocks, hidden=True),
    )
    count, degrees = plan.resolved.count, plan.resolved.count - plan.config.unbiased
    per_count = 1 / count if plan.config.method == "Standardize" else 0.0
    return _call(
        *("backward", plan, flags | _varying(plan, scaled, biased), operands, results, space),
        fields=(blocks, block, parameters, parts_between(plan) if varying else 1),
        numbers=(*_numbers(plan), per_count, 1 / degrees if degrees > 0 else 0.0),
    )


def _varying(plan: Plan, scaled: bool, biased: bool) -> dict[str, int]:
    """Return the settings of a kernel that depend on its parameters and on the size of the array."""
    streamed = plan.size * ITEMSIZE[plan.result] >= STREAMED["kept"]
    kind = plan.parameter_kind
    return {"SCALING": kind * scaled, "BIASES": kind * biased, "STREAM": int(streamed)}


def _parameters(plan: Plan, scaled: bool, biased: bool) -> tuple[int, int]:
    """Return how many parameters of each kind there are."""
    number = math.prod(size for _, _, size in plan.parameter_cells)
    return number * scaled, number * biased


def _space(plan: Plan, doubles: int, reals: int, more: int = 0) -> tuple[_Buffer, ...]:
    """Return the workspace of columns: numbers for every lane of a tile, and then ``more``."""
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
    *,
    fields: tuple[int, ...],
    numbers: tuple[float, ...],
) -> Call:
    tasks, *others = fields
    parts = max(1, min(get_num_threads(), tasks, plan.size // WORTH_SHARING, MOST))
    space = tuple(one._replace(length=one.length * parts) for one in space)
    attributes: dict[str, Array] = {  # in the order of their names, in which XLA passes them
        "fields": np.array([tasks, parts, *others], np.int64),
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
