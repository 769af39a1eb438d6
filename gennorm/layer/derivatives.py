"""Derivatives of a layer's output: what a call saves for them, and what they return."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gennorm.engine import CompilationError, use_definition
from gennorm.errors import ShapeError
from gennorm.layer.arrays import like_output
from gennorm.layer.parameters import Parameter
from gennorm.layer.request import Request, laid
from gennorm.layer.state import State
from gennorm.layer.statistics import measured
from gennorm.moments import Moments

if TYPE_CHECKING:
    from gennorm.engine.interface import PreparedCall

__all__ = ["Gradients", "Merge", "Pullback", "Residuals", "directions_of", "merged_sums", "pull_back", "push_forward"]

Array = npt.NDArray[Any]
Merge = Callable[[Array], Array]


@dataclass(frozen=True, slots=True, eq=False)
class Gradients:
    """The gradients that a pullback returns: that of the input, and those of the parameters that are present.

    Attributes
    ----------
    input : ndarray
        Of the input's shape, in the output's dtype.
    scaling, biases : ndarray or None
        Of the parameters' shape and dtype; None where the parameter is absent.

    Examples
    --------
    >>> import numpy as np
    >>> import gennorm as gn
    >>> y, pullback = gn.layer_norm(3).vjp(np.array([[1.0, 2.0, 4.0]]))
    >>> gradients = pullback(np.array([[1.0, 1.0, 1.0]]))
    >>> gradients.biases
    array([1., 1., 1.], dtype=float32)
    >>> bool(abs(gradients.input.sum()) < 1e-12)
    True
    """

    input: Array
    scaling: Array | None
    biases: Array | None


class Residuals(NamedTuple):
    """What the derivatives of a call need from it. Only the input can be written to by others.

    Attributes
    ----------
    x : ndarray
        The input.
    call : PreparedCall
        The prepared call for a new output.
    parameters : tuple of Parameter
    gains : ndarray or None
        The scaling as argument of the prepared call.
    weights : ndarray or None
        The mask, broadcast to the input.
    rows : ndarray
        The moments, in the order of the prepared call; see `gennorm.layer.request.run`.
    through : bool
        Whether gradients go through the statistics.
    given : bool
        Whether the moments are not those of the input alone.

    Examples
    --------
    >>> Residuals._fields[:2]
    ('x', 'call')
    """

    x: Array
    call: PreparedCall
    parameters: tuple[Parameter, Parameter]
    gains: Array | None
    weights: Array | None
    rows: Array
    through: bool
    given: bool

    @classmethod
    def of(cls, request: Request, rows: Array) -> Residuals:
        """Save what derivatives need, with copies of the scaling and the mask, which the caller may write to."""
        x, _, call, new, parameters, gains, _, weights, given_rows, _, shared, _, _ = request
        if call is not new:
            per_example = parameters[0].per_example or parameters[1].per_example
            gains, _ = laid(new, parameters, per_example)
        if gains is not None:
            gains = gains.copy()
        if weights is not None:  # an axis that was broadcast is copied once
            once = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in weights.strides)
            weights = np.broadcast_to(weights[once].copy(), weights.shape)
        given = given_rows is not None
        return cls(x, new, parameters, gains, weights, rows, shared or not given, given)

    def by_definition(self) -> Residuals:
        """Return the same for the definition, if a kernel cannot be compiled."""
        from gennorm.engine.fallback import DefinitionCall

        call = DefinitionCall(self.call.plan, self.call.strides)
        # The copy: the caller may have written to the parameters since.
        gains = None if self.gains is None else self.call.unordered(self.gains)
        rows = call.ordered(self.call.shaped(self.rows))
        return self._replace(call=call, gains=gains, rows=rows)


def merged_sums(merge: Merge, sums: Array) -> Array:
    """Merge the sums of slices, and refuse a result of another shape."""
    found = np.ascontiguousarray(merge(sums.copy()), np.float64)
    if found.shape != sums.shape:
        msg = f"merge returned sums of shape {found.shape}, and was called with sums of shape {sums.shape}\n"
        msg += "return an array of the shape of its argument"
        raise ShapeError(msg, code="S024")
    return found


def pull_back(residuals: Residuals, dy: Array, merge: Merge | None = None) -> Gradients:
    """Return the gradients for a gradient of the output."""
    call = residuals.call
    scaling, biases = residuals.parameters
    dx = call.output(residuals.x)
    try:
        with np.errstate(all="ignore"):
            to_scaling, to_biases = call.backward(
                residuals.x,
                dy,
                dx,
                residuals.rows,
                residuals.gains,
                through=residuals.through,
                biased=biases.array is not None,
                weights=residuals.weights,
                merge=None if merge is None else functools.partial(merged_sums, merge),
            )
            return Gradients(dx, scaling.gradient(to_scaling), biases.gradient(to_biases))
    except CompilationError as error:
        use_definition(error)
    return pull_back(residuals.by_definition(), dy, merge)


def directions_of(
    state: State, x: Array, given: bool, dscaling: Any, dbiases: Any
) -> tuple[Parameter, Parameter] | None:
    """Check directions of the parameters; return None where there are none."""
    if dscaling is None and dbiases is None:
        return None
    resolved = state.calls.find(x, given).plan.resolved
    biases = Parameter(None, False) if dbiases is None else Parameter.checked("dbiases", dbiases, resolved)
    if dscaling is not None:
        return Parameter.checked("dscaling", dscaling, resolved), biases
    return Parameter(np.zeros_like(biases.array), biases.per_example), biases


def push_forward(
    state: State,
    residuals: Residuals,
    dx: Array | None,
    directions: tuple[Parameter, Parameter] | None = None,
    merge: Merge | None = None,
) -> Array:
    """Return the derivative of the output along directions of the input and of the parameters."""
    x, call = residuals.x, residuals.call
    dy = call.output(x)
    with np.errstate(all="ignore"):
        if dx is None and merge is None:
            dy[...] = 0
        else:
            dx = np.zeros_like(dy) if dx is None else dx
            call.backward(
                x,
                dx,
                dy,
                residuals.rows,
                residuals.gains,
                through=residuals.through,
                weights=residuals.weights,
                tangent=True,
                merge=None if merge is None else functools.partial(merged_sums, merge),
            )
        if directions is not None:
            # The output is linear in the parameters: their directions add the output for these as parameters.
            per_example = directions[0].per_example or directions[1].per_example
            other = state.calls.find(x, residuals.given, per_example=per_example)
            statistics = call.statistics(residuals.rows) if residuals.through else residuals.rows
            if other is not call:
                statistics = other.ordered(call.shaped(statistics))
            added = other.output(x)
            other.apply(x, added, statistics, *laid(other, directions, per_example))
            dy += added
    return dy


class Pullback:
    """A function from the gradient of an output to the gradients of the input and the parameters.

    It holds the input itself, not a copy, and two or three numbers for each slice. It can be called any number of times
    and from any thread, as long as the input is not written to.

    Parameters
    ----------
    residuals : Residuals
        What the call saved.
    shape, dtype
        Shape and dtype of the output.
    moments : Moments, optional
        The given moments of the call.

    Examples
    --------
    >>> import numpy as np
    >>> import gennorm as gn
    >>> x = np.array([1.0, 2.0, 4.0])
    >>> y, pullback = gn.NormalizationLayer(1, (), epsilon=0).vjp(x)
    >>> pullback(y).scaling
    array(3., dtype=float32)
    """

    __slots__ = ("_dtype", "_given", "_residuals", "_shape")

    def __init__(
        self, residuals: Residuals, shape: tuple[int, ...], dtype: np.dtype[Any], moments: Moments | None = None
    ) -> None:
        self._residuals, self._shape, self._dtype, self._given = residuals, shape, dtype, moments

    @property
    def moments(self) -> Moments | None:
        """The moments that the input was normalized by; None if these were held by the layer."""
        if self._given is not None or not self._residuals.through:
            return self._given
        return measured(self._residuals.call, self._residuals.rows.copy())

    def __call__(self, dy: Any, *, merge: Merge | None = None) -> Gradients:
        """Return the gradients for the gradient ``dy`` of the output.

        Parameters
        ----------
        dy : ndarray
            Of the output's shape.
        merge : callable, optional
            If the moments are shared with other arrays: a function from two sums for each slice of this array, float64
            of shape ``(2, *shape of the moments)``, to the sums over all arrays. It is called once.

        Returns
        -------
        Gradients

        Raises
        ------
        ShapeError, InputError, DtypeError
            `dy` is not an array of real numbers of this shape.
        """
        dy = like_output(dy, "the gradient of the output", self._shape, self._dtype)
        if len(self._shape) == self._residuals.x.ndim:
            return pull_back(self._residuals, dy, merge)
        found = pull_back(self._residuals, dy[None], merge)  # one example was a batch of one
        return Gradients(found.input[0], found.scaling, found.biases)
