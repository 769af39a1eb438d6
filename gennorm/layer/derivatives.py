"""Derivatives of a layer's output: what a call saves for them, and what they return."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gennorm import definition
from gennorm.definition import SliceMoments
from gennorm.engine import CompilationError, fallback_reason, prepare, use_definition
from gennorm.errors import ParameterError, ShapeError
from gennorm.layer.arrays import like_output
from gennorm.layer.parameters import Parameter
from gennorm.layer.request import Request, laid
from gennorm.layer.state import State
from gennorm.layer.statistics import measured
from gennorm.moments import Moments, real_array
from gennorm.spec.config import LayerConfig

if TYPE_CHECKING:
    from gennorm.engine.interface import PreparedCall

__all__ = [
    "Gradients",
    "Merge",
    "MomentGradients",
    "MomentsPullback",
    "Pullback",
    "Residuals",
    "directions_of",
    "merged_sums",
    "pull_back",
    "push_forward",
]

Array = npt.NDArray[Any]
Merge = Callable[[Array], Array]


class MomentGradients(NamedTuple):
    """The gradients of moments: those of the mean and of the variance of every slice.

    The variance is the one that the layer divides by: unbiased if the layer is, and with the method RMS the mean
    square. A gradient is None where there is none; for the method RMS that of the mean.

    Attributes
    ----------
    mean, variance : ndarray of float64, or None

    Examples
    --------
    >>> MomentGradients._fields
    ('mean', 'variance')
    """

    mean: Array | None
    variance: Array | None


@dataclass(frozen=True, slots=True, eq=False)
class Gradients:
    """The gradients that a pullback returns: that of the input, and those of the parameters that are present.

    Attributes
    ----------
    input : ndarray
        Of the input's shape, in the output's dtype.
    scaling, biases : ndarray or None
        Of the parameters' shape and dtype; None where the parameter is absent.
    moments : MomentGradients or None
        Of the moments that were passed to the call, in their shapes; None where none were passed, or were `shared`.

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
    moments: MomentGradients | None = None


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
    shapes : tuple of tuple of int, optional
        The shapes of a given mean and variance whose gradients are wanted.

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
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    @classmethod
    def of(cls, request: Request, rows: Array) -> Residuals:
        """Save what derivatives need, with copies of the scaling and the mask, which the caller may write to."""
        x, _, call, new, parameters, gains, _, weights, given_rows, moments, shared, _, _ = request
        if call is not new:
            per_example = parameters[0].per_example or parameters[1].per_example
            gains, _ = laid(new, parameters, per_example)
        if gains is not None:
            gains = gains.copy()
        if weights is not None:  # an axis that was broadcast is copied once
            once = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in weights.strides)
            weights = np.broadcast_to(weights[once].copy(), weights.shape)
        given = given_rows is not None
        shapes = None if moments is None or shared else _shapes_of(moments, new.plan.config)
        return cls(x, new, parameters, gains, weights, rows, shared or not given, given, shapes)

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


def _shapes_of(moments: Any, config: LayerConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of the mean and the variance of given moments. The method RMS ignores a mean, of any shape."""
    if isinstance(moments, Moments):
        return moments.shape, moments.shape
    mean, variance = moments
    return () if config.method == "RMS" else np.shape(mean), np.shape(variance)


def pull_back(residuals: Residuals, dy: Array, merge: Merge | None = None) -> Gradients:
    """Return the gradients for a gradient of the output."""
    if residuals.shapes is not None:
        return _pull_back_given(residuals, dy, merge, residuals.shapes)
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


def _pull_back_given(
    residuals: Residuals, dy: Array, merge: Merge | None, shapes: tuple[tuple[int, ...], tuple[int, ...]]
) -> Gradients:
    """Return the same with the gradients of given moments, which the sums of the slices are.

    The kernels compute the sums for a gradient through the statistics, and take it from the output's. With sums of 0
    they take nothing.
    """
    found: list[Array] = []

    def keep(sums: Array) -> Array:
        found.append(sums if merge is None else merged_sums(merge, sums))
        return np.zeros_like(sums)

    call, config = residuals.call, residuals.call.plan.config
    mean, variance = residuals.rows
    # A second moment of this variance. With a count of 1 the output would not depend on the only element of a slice.
    rows = np.stack([mean, 2.0 * variance, np.full_like(variance, 2.0 + config.unbiased)])
    gradients = pull_back(residuals._replace(rows=rows, through=True, shapes=None), dy, keep)
    added, product = found[-1]
    if not np.isfinite(product).all():  # 0 times what is not finite is not 0
        gradients = pull_back(residuals._replace(shapes=None), dy)
    with np.errstate(all="ignore"):
        slopes = definition.moment_gradients(added, product, call.shaped(residuals.rows)[1], config)
    center = config.method == "Standardize"
    of_mean, of_variance = (_summed_to(slope, shape) for slope, shape in zip(slopes, shapes, strict=True))
    return replace(gradients, moments=MomentGradients(of_mean if center else None, of_variance))


def _summed_to(values: Array, shape: tuple[int, ...]) -> Array:
    """Return values of the slices, summed to a shape that broadcasts to them."""
    values = values.sum(axis=tuple(range(values.ndim - len(shape))))
    once = tuple(axis for axis, size in enumerate(shape) if size == 1)
    return values.sum(axis=once, keepdims=True) if once else np.asarray(values)


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
    moments : Moments or tuple, optional
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
        self,
        residuals: Residuals,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        moments: Moments | tuple[Any, Any] | None = None,
    ) -> None:
        self._residuals, self._shape, self._dtype, self._given = residuals, shape, dtype, moments

    @property
    def moments(self) -> Moments | tuple[Any, Any] | None:
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
        return replace(found, input=found.input[0])


@functools.lru_cache(64)
def _prepared(
    config: LayerConfig, shape: tuple[int, ...], dtype: str, strides: tuple[int, ...], out: tuple[int, ...]
) -> PreparedCall:
    """Return a prepared call without parameters, that divides by 1 where the variance is 0."""
    return prepare(replace(config, epsilon=1.0, epsilon_placement="inside"), shape, dtype, strides, out)


class MomentsPullback:
    """A function from the gradients of moments to the gradient of the input that they were measured of.

    It holds the input itself, not a copy, which must not be written to before the last call.

    Parameters
    ----------
    x : ndarray
        The input, with an axis for the batch if it was one example of a layer that holds the moments of batches.
    call : PreparedCall
    weights : ndarray or None
        The mask, broadcast to the input.
    moments : Moments
        What was measured.

    Examples
    --------
    >>> import numpy as np
    >>> import gennorm as gn
    >>> moments, pullback = gn.NormalizationLayer(-1).measure_vjp(np.array([[1.0, 3.0], [2.0, 2.0]]))
    >>> pullback((None, 1.0))
    array([[-1.,  1.],
           [ 0.,  0.]])
    """

    __slots__ = ("_call", "_moments", "_weights", "_x")

    def __init__(self, x: Array, call: PreparedCall, weights: Array | None, moments: Moments) -> None:
        self._x, self._call, self._moments = x, call, moments
        self._weights = None if weights is None else weights.copy()

    def __call__(self, gradients: MomentGradients | tuple[Any, Any]) -> Array:
        r"""Return the gradient of the input.

        .. math:: dx_i = w_i \left(\frac{d\mu}{n} + \frac{2 (x_i - \mu)}{n} dv\right)

        Parameters
        ----------
        gradients : MomentGradients, or tuple of array_like
            Those of the mean and of the variance, which broadcast to the moments; None where there is none. The
            variance is the one that the layer divides by, with `unbiased` over :math:`n - 1`.

        Returns
        -------
        ndarray
            Of the shape of the input.

        Raises
        ------
        ParameterError
            `gradients` is no pair, or does not broadcast to the moments.
        DtypeError
            A gradient does not consist of real numbers.
        """
        if not isinstance(gradients, tuple) or len(gradients) != 2:
            msg = f"the gradients of moments are of type {type(gradients).__name__}\n"
            msg += "pass a pair (mean, variance): for each an array, a number or None"
            raise ParameterError(msg, code="P026")
        of_mean, of_variance = map(self._over_slices, MomentGradients._fields, gradients)
        dx = self._call.output(self._x)
        with np.errstate(all="ignore"):
            if not self._by_kernels(dx, of_mean, of_variance):
                plan, moments = self._call.plan, self._moments
                dx[...] = definition.measure_back(
                    self._x,
                    of_mean,
                    of_variance,
                    plan.config,
                    plan.resolved,
                    SliceMoments(moments.count, moments.mean, moments.m2),
                    weights=self._weights,
                )
        return dx[0] if self._call.single else dx

    def _by_kernels(self, dx: Array, of_mean: Array, of_variance: Array) -> bool:
        """Write the gradient by the kernels for that of an input; return whether there are any.

        They take the part through the statistics, r (w/n S + w z/N P), from the gradient of the output. Here that is 0,
        the sums S and P are these gradients, and the divisor is 1: a variance of 0 and epsilon 1.
        """
        x, plan = self._x, self._call.plan
        if fallback_reason() is not None or plan.resolved.count <= 1:  # for one element kernels have no such part
            return False
        call = _prepared(plan.config, x.shape, plan.dtype, x.strides, dx.strides)
        count, mean = self._moments.count, self._moments.mean
        rows = np.stack([np.zeros(count.shape) if mean is None else mean, np.zeros(count.shape), count])
        sums = np.stack([-of_mean, -2.0 * of_variance])
        still = np.zeros_like(dx)
        try:
            call.backward(
                x, still, dx, call.ordered(rows), None, through=True, weights=self._weights, merge=lambda _: sums
            )
        except CompilationError as error:
            use_definition(error)
            return False
        return True

    def _over_slices(self, name: str, given: Any) -> Array:
        """Check the gradient of the mean or of the variance, and return one number for each slice."""
        value = real_array(0.0 if given is None else given, f"the gradient of the {name}")
        shape = self._moments.shape
        try:
            return np.broadcast_to(value.astype(np.float64), shape)
        except ValueError:
            msg = f"the gradient of the {name} has the shape {value.shape}, and the moments have the shape {shape}\n"
            msg += "pass one number for each slice, or fewer that broadcast to that"
            raise ParameterError(msg, code="P027") from None
