"""Requests: calls of a layer that have been checked.

Every call of a layer uses these functions: `check_call` checks the arguments, decides which moments normalize the
array, and finds the prepared call; `run` computes the output. Pullbacks and updates of moving moments are made from the
request and the rows that `run` returns. All checks come before anything is written or changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gennorm.layer.arrays import mask_for, real, writable
from gennorm.layer.parameters import NAMES, Parameter
from gennorm.layer.state import State
from gennorm.layer.statistics import applicable, held, require_held, required
from gennorm.moments import Moments
from gennorm.spec import config as configs

if TYPE_CHECKING:
    from gennorm.engine.interface import PreparedCall

__all__ = [
    "Request",
    "check_call",
    "given_rows",
    "laid",
    "parameters_of",
    "require_learnable",
    "run",
    "shared_rows",
]

Array = npt.NDArray[Any]


class Request(NamedTuple):
    """A checked call.

    Attributes
    ----------
    x, y : ndarray
        The input and the array for the output; both have an axis for the batch if `single` is True.
    call : PreparedCall
        The prepared call for `x` and `y`.
    new : PreparedCall
        The prepared call for `x` and a new output, whose layout weights and gradients have. It is `call` unless `out`
        was passed.
    parameters : tuple of Parameter
        Scaling and biases.
    gains, shifts : ndarray or None
        The parameters as arguments of `call`.
    weights : ndarray or None
        The mask, broadcast to `x`.
    rows : ndarray or None
        Mean and variance in the order of `call`, if the moments are not those of `x`.
    moments : Moments or None
        The given moments.
    shared : bool
        Whether the given moments include those of `x`, so that gradients go through them.
    learns : bool
        Whether the moments of `x` update the held ones.
    single : bool
        Whether `x` was passed as one example to a layer that holds the moments of batches.
    """

    x: Array
    y: Array
    call: PreparedCall
    new: PreparedCall
    parameters: tuple[Parameter, Parameter]
    gains: Array | None
    shifts: Array | None
    weights: Array | None
    rows: Array | None
    moments: Any
    shared: bool
    learns: bool
    single: bool

    @property
    def through(self) -> bool:
        """Whether a gradient goes through the statistics."""
        return self.rows is None or self.shared


def check_call(
    state: State,
    x: Any,
    training: bool = False,
    mask: Any = None,
    scaling: Any = None,
    biases: Any = None,
    moments: Any = None,
    out: Any = None,
    *,
    shared: bool = False,
    grouped: bool = False,
) -> Request:
    """Check a call of a layer.

    The arguments are those of `NormalizationLayer.vjp` and of a call. With `grouped`, the given moments have one value
    for each group of the batch, as those of `x` have.

    Raises
    ------
    GennormError
        An argument is wrong; nothing was changed.
    """
    x = real(x, "the input")
    learns = bool(training) and state.learnable and moments is None
    given = grouped or moments is not None or not (state.of_input or learns)
    apart = given and not grouped
    new = state.calls.find(x, apart)
    single = new.single
    if single:
        x, out = x[None], out[None] if isinstance(out, np.ndarray) else out
    weights = None if mask is None else mask_for(mask, x)
    if learns:
        require_learnable(state, new)
    per_example = False
    if scaling is None and biases is None and new.views is not None:
        parameters, (gains, shifts) = state.own, new.views
    else:
        parameters = parameters_of(state, new, scaling, biases)
        per_example = parameters[0].per_example or parameters[1].per_example
        if per_example:
            new = state.calls.find(x, apart, per_example=True)
        gains, shifts = laid(new, parameters, per_example)
    call = new
    if out is None:
        y = new.output(x)
    else:
        y = writable(out, x, parameters[0].array, parameters[1].array)
        if y.strides != new.strides:
            call = state.calls.find(x, apart, per_example=per_example, out=y.strides)
            gains, shifts = laid(call, parameters, per_example)
    rows = given_rows(state, moments, call) if given else None
    return Request(x, y, call, new, parameters, gains, shifts, weights, rows, moments, shared and given, learns, single)


def require_learnable(state: State, call: PreparedCall) -> None:
    """Refuse an array whose moments cannot update the held ones."""
    moments = required(state.moments)
    if moments.shape != call.held_shape:
        require_held(moments, call.plan.resolved)
    if state.config.unbiased:
        configs.require_unbiased(call.plan.resolved)


def parameters_of(state: State, call: PreparedCall, scaling: Any, biases: Any) -> tuple[Parameter, Parameter]:
    """Return the parameters that were passed to a call, and those of the layer for the others."""
    own, resolved = state.parameters, call.plan.resolved
    if scaling is None or biases is None:
        missing = [name for name, value in zip(NAMES, (scaling, biases), strict=True) if value is None]
        own.require_initialized(state.config, missing)
    return (
        state.own[0] if scaling is None else Parameter.checked("scaling", scaling, resolved),
        state.own[1] if biases is None else Parameter.checked("biases", biases, resolved),
    )


def laid(
    call: PreparedCall, parameters: tuple[Parameter, Parameter], per_example: bool
) -> tuple[Array | None, Array | None]:
    """Return scaling and biases as a prepared call takes them."""
    if per_example:
        size = call.plan.resolved.shape[0]
        return call.parameter(parameters[0].over_batch(size)), call.parameter(parameters[1].over_batch(size))
    return call.parameter(parameters[0].array), call.parameter(parameters[1].array)


def given_rows(state: State, moments: Any, call: PreparedCall) -> Array:
    """Return mean and variance of every slice, in the order of a call, from the given moments or the held ones."""
    resolved = call.plan.resolved
    if moments is None:
        own = required(state.moments)
        rows = call.last(own)
        return rows if rows is not None else call.remember(own, True, call.ordered(held(own, resolved, state.config)))
    rows = call.last(moments, False)
    if rows is not None:
        return rows
    rows = call.ordered(applicable(moments, resolved, state.config))
    return call.remember(moments, False, rows) if type(moments) is Moments else rows


def run(request: Request, *, keep: bool = False) -> Array | None:
    """Write the output of a request.

    Returns
    -------
    ndarray or None
        With `keep`, or if the request updates moving moments: the rows of the moments, in the order of `Request.new`.
        They are mean and second moment, with a mask also the count; or mean and variance, if these were given.
    """
    x, y, call, new, _, gains, shifts, weights, rows, moments, shared, learns, _ = request
    if rows is not None:
        call.apply(x, y, rows, gains, shifts)
        if not keep:
            return None
        if shared:
            return shared_rows(new, moments)
        return rows if call is new else new.ordered(call.shaped(rows))
    if weights is None:
        rows = call.normalize(x, y, gains, shifts, keep=keep or learns)
        return rows if rows is None or call is new else new.ordered(call.shaped(rows))
    rows = new.measure(x, weights)
    statistics = new.statistics(rows)
    call.apply(x, y, statistics if call is new else call.ordered(new.shaped(statistics)), gains, shifts)
    return rows


def shared_rows(call: PreparedCall, moments: Moments) -> Array:
    """Return mean, second moment and count of moments that are shared with other arrays."""
    rows = np.empty((3, *call.plan.resolved.moments_shape))
    rows[0] = 0.0 if moments.mean is None else moments.mean
    rows[1], rows[2] = moments.m2, moments.count
    return call.ordered(rows)
