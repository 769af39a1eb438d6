r"""What a layer computes, in operations of the Python array API standard.

The functions take arrays of NumPy, PyTorch, JAX or any other namespace that follows the standard, on any device, and
return arrays of the same kind. They use no kernel, write to no array and do not branch on values: frameworks can
differentiate them (to any order), compile, export and vectorize them. The engine is the fast way to the same values.

Notation, for one slice with elements :math:`x_i`: weights :math:`w_i` (1 for what a mask counts, 0 for the rest), count
:math:`n = \sum w`, mean :math:`\mu = \sum w x / n` (0 for the method RMS), second moment
:math:`M = \sum w (x - \mu)^2`, variance :math:`v = M / N` with :math:`N = n` or, unbiased, :math:`n - 1`. With the
divisor :math:`\delta(v)` and :math:`r = 1 / \delta`, the standardized elements are :math:`z_i = (x_i - \mu) r`, and
the output is :math:`y = s z + b`.

*Precision.* Elements are computed in the engine's arithmetic (`COMPUTED`: float32 for halves, float64 for float64).
Sums and moments are float64 where the namespace has it, else float32 (then squares beyond the range of float32 are
infinite). The mean is found in two steps, an estimate and the mean of the deviations from it, and both are subtracted:
float32 data whose mean is a million deviations from zero is right.

Inputs are trusted; callers check them. NumPy warns where a value overflows or is not finite: call with
``numpy.errstate(all="ignore")``.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, Self

from gennorm.errors import InputError, ParameterError
from gennorm.plan import COMPUTED
from gennorm.spec.axes import Pooling
from gennorm.spec.config import LayerConfig, Resolved

__all__ = [
    "Gradients",
    "SliceMoments",
    "apply",
    "divisor_of",
    "fold",
    "invert",
    "measure",
    "measure_back",
    "merge",
    "mix",
    "moment_gradients",
    "namespace_of",
    "normalize",
    "pool",
    "pull_back",
    "push_forward",
    "variance_of",
]

Array = Any
Merge = Callable[[Array], Array]


class SliceMoments(NamedTuple):
    r"""Count, mean and second moment of every slice: arrays of the shape ``Resolved.moments_shape``.

    With the method RMS, `mean` is None and `m2` is the sum of squares. The methods return moments of the same class,
    and can be differentiated with respect to all arrays that go in.

    Examples
    --------
    >>> SliceMoments._fields
    ('count', 'mean', 'm2')
    """

    count: Array
    mean: Array | None
    m2: Array

    @classmethod
    def from_variance(cls, mean: Array | None, variance: Array, count: Any = 1.0) -> Self:
        r"""Return moments that have this mean and this biased variance, with :math:`M = n v`.

        Parameters
        ----------
        mean : array or None
            None makes moments of the method RMS, and `variance` is the mean square.
        variance : array
        count : array or float, default 1
            How much these moments count when they are merged or pooled; it is differentiable too.

        Examples
        --------
        >>> import numpy as np
        >>> SliceMoments.from_variance(np.array([5.0]), np.array([4.0]), 10.0)
        SliceMoments(count=array([10.]), mean=array([5.]), m2=array([40.]))
        """
        counts = namespace_of(variance).zeros_like(variance) + count
        return cls(counts, mean, variance * counts)

    def variance(self, unbiased: bool = False) -> Array:
        """Return the variance of every slice, with the method RMS the mean square; see `variance_of`.

        Parameters
        ----------
        unbiased : bool, default False
            Divide by the count less one.
        """
        return variance_of(SliceMoments(*self), unbiased=unbiased)

    def mean_square(self) -> Array:
        r"""Return the mean of the squares of every slice, :math:`v + \mu^2`.

        Examples
        --------
        >>> import numpy as np
        >>> SliceMoments(np.array([2.0]), np.array([3.0]), np.array([8.0])).mean_square()
        array([13.])
        """
        return self.variance() if self.mean is None else self.variance() + self.mean * self.mean

    def __add__(self, other: Any) -> Self:
        """Return the moments of everything that was counted in either; see `merge`."""
        if not isinstance(other, SliceMoments):
            return NotImplemented
        return type(self)(*merge(self, other))

    def pooled(self, axes: Any = 0, *, groups: Any = None, spread: bool = False) -> Self:
        """Return the moments of all slices along some axes together; see `pool`."""
        return type(self)(*pool(self, axes, groups=groups, spread=spread))

    def mixed(self, other: Any, share: Any, *, between: bool = False) -> Self:
        """Return moments between these and others, a convex combination; see `mix`."""
        return type(self)(*mix(self, other, share, between=between))


class Gradients(NamedTuple):
    """Gradients of the input, of the scaling and of the biases; None for a parameter that is absent.

    Examples
    --------
    >>> Gradients._fields
    ('input', 'scaling', 'biases')
    """

    input: Array
    scaling: Array | None
    biases: Array | None


Given = tuple[Array | None, Array] | SliceMoments


# ------------------------------------------------------------------------------------------------------------- forward


def normalize(
    x: Array,
    config: LayerConfig,
    resolved: Resolved,
    *,
    scaling: Array | None = None,
    biases: Array | None = None,
    weights: Array | None = None,
    moments: Given | None = None,
) -> tuple[Array, Given]:
    r"""Normalize an array by its own moments or by given ones: :math:`y_i = s_i z_i + b_i`.

    Parameters
    ----------
    x : array
        Real numbers or booleans, of the rank of ``resolved.shape``. Sizes are read from the array, so they may differ
        from those of `resolved`, and may be symbolic.
    config : LayerConfig
        The method, whether the variance is unbiased, epsilon and its placement.
    resolved : Resolved
        The axes and groups that `config` means for such an array.
    scaling, biases : array, optional
        Of the shape ``resolved.parameter_shape``, or with the batch axis in front: one for each example.
    weights : array, optional
        A mask (booleans; True counts) or nonnegative real weights, broadcastable to `x`. They affect the moments only.
    moments : tuple, optional
        A pair ``(mean, variance)``: constants; the mean is ignored by the method RMS. Or the `SliceMoments` of this
        array and others, merged. Shapes broadcast to ``resolved.moments_shape``. The weights are not used then.

    Returns
    -------
    y : array
        Of the shape of `x`, in its dtype if that is floating, in float32 or float64 for integers and booleans.
    moments : SliceMoments or tuple
        The moments of `x`, or `moments` as they were given.

    Raises
    ------
    InputError
        `x` is an array of no known namespace.

    Examples
    --------
    >>> import numpy as np
    >>> from gennorm.spec.config import LayerConfig, resolve_config
    >>> config = LayerConfig.make(-1, epsilon=0)
    >>> x = np.array([[1.0, 3.0], [0.0, 20.0]])
    >>> y, moments = normalize(x, config, resolve_config(config, x.shape), biases=np.array([5.0, 0.0]))
    >>> y
    array([[ 4.,  6.],
           [-1.,  1.]])
    >>> moments.m2
    array([  2., 200.])
    """
    slices = _Slices(x, config, resolved, weights if moments is None else None)
    values = slices.split(x)
    hidden = slices.padding(values)
    state = slices.state(slices.without(values, hidden), moments)
    y, gain = state.z, state.factor
    if scaling is not None:
        s = slices.spread(scaling)
        y, gain = y * s, gain * s
    if biases is not None:
        y = y + slices.spread(biases)
    if hidden is not None:
        y = slices.xp.where(hidden, values * _sign(slices.xp, gain), y)
    return slices.join(y), (slices.reduced(state) if moments is None else moments)


def measure(x: Array, config: LayerConfig, resolved: Resolved, *, weights: Array | None = None) -> SliceMoments:
    r"""Return the moments of the slices of an array: :math:`n`, :math:`\mu` and :math:`M`.

    Parameters
    ----------
    x, config, resolved, weights
        As in `normalize`.

    Returns
    -------
    SliceMoments
        In float64 where the namespace has it, else in float32.

    Examples
    --------
    >>> import numpy as np
    >>> from gennorm.spec.config import LayerConfig, resolve_config
    >>> config = LayerConfig.make(-1)
    >>> x = np.array([[1.0, 3.0, 8.0]])
    >>> measure(x, config, resolve_config(config, x.shape), weights=np.array([True, True, False]))
    SliceMoments(count=array([2.]), mean=array([2.]), m2=array([2.]))
    """
    slices = _Slices(x, config, resolved, weights)
    return slices.reduced(slices.state(slices.split(x), None))


def merge(one: SliceMoments, other: SliceMoments) -> SliceMoments:
    r"""Return the moments of the elements of two sets of slices together.

    With :math:`n = n_1 + n_2` and :math:`d = \mu_2 - \mu_1`,

    .. math:: \mu = \mu_1 + \frac{n_2}{n} d, \qquad M = M_1 + M_2 + \frac{n_1 n_2}{n} d^2

    Parameters
    ----------
    one, other : SliceMoments
        Of the same method, and of shapes that broadcast to each other.

    Returns
    -------
    SliceMoments
        A slice with the count 0 changes nothing.

    Examples
    --------
    >>> import numpy as np
    >>> one, other = (SliceMoments(*np.array([[2.0], [mean], [2.0]])) for mean in (1.0, 5.0))
    >>> merge(one, other)
    SliceMoments(count=array([4.]), mean=array([3.]), m2=array([20.]))
    """
    xp = namespace_of(other.m2)
    count = one.count + other.count
    if one.mean is None or other.mean is None:
        return SliceMoments(count, None, one.m2 + other.m2)
    share = other.count / xp.where(count == 0, 1.0, count)
    apart = other.mean - one.mean
    # An infinite mean of a slice with the count 0 counts for nothing.
    apart = xp.where((one.count == 0) | (other.count == 0), 0.0, apart)
    mean = xp.where(one.count == 0, other.mean, one.mean + apart * share)
    return SliceMoments(count, mean, one.m2 + other.m2 + apart * apart * one.count * share)


def pool(moments: SliceMoments, axes: Any = 0, *, groups: Any = None, spread: bool = False) -> SliceMoments:
    r"""Return the moments of all slices along some axes together.

    .. math:: n = \sum_k n_k, \qquad \mu = \frac{1}{n} \sum_k n_k \mu_k, \qquad
              M = \sum_k M_k + \sum_k n_k (\mu_k - \mu)^2

    Parameters
    ----------
    moments : SliceMoments
    axes : int or tuple of int, default 0
        The axes (0-based, negative from the end) that are pooled; None means all of them.
    groups : int or tuple of int, optional
        One number for each of the axes: an axis of size d becomes an axis of g contiguous groups of d/g. With 1, the
        default, it vanishes.
    spread : bool, default False
        Return the pooled moments of every slice: the result has the shape of `moments`.

    Returns
    -------
    SliceMoments
        Slices with the count 0 change nothing.

    Raises
    ------
    ParameterError
        An axis does not exist or is named twice; the groups do not divide its size.

    Examples
    --------
    >>> import numpy as np
    >>> instances = SliceMoments(*np.array([[[2.0, 2.0]], [[1.0, 5.0]], [[2.0, 2.0]]]))
    >>> pool(instances, 1)
    SliceMoments(count=array([4.]), mean=array([3.]), m2=array([20.]))
    """
    xp = namespace_of(moments.m2)
    count, m2 = xp.broadcast_arrays(moments.count, moments.m2)
    shape = count.shape
    way = Pooling.of(axes, groups, tuple(shape))

    def total(values: Array) -> Array:
        return xp.sum(values, axis=way.axes, keepdims=True) if way.axes else values

    def finished(values: Array) -> Array:
        if spread:
            return xp.reshape(xp.broadcast_to(values, way.split), tuple(shape))
        return xp.squeeze(values, axis=way.axes) if way.axes else values

    count, m2 = xp.reshape(count, way.split), xp.reshape(m2, way.split)
    number, squares = total(count), total(m2)
    if moments.mean is None:
        return SliceMoments(finished(number), None, finished(squares))
    counted = count > 0
    means = xp.where(counted, xp.reshape(xp.broadcast_to(moments.mean, shape), way.split), 0.0)
    n = xp.where(number == 0, 1.0, number)
    # As in `measure`: an estimate between the least and the greatest, so that equal means have no deviation, and the
    # mean of the deviations from it.
    estimate = total(count * means) / n
    if way.axes and all(way.split[axis] > 0 for axis in way.axes):
        low = xp.min(xp.where(counted, means, math.inf), axis=way.axes, keepdims=True)
        high = xp.max(xp.where(counted, means, -math.inf), axis=way.axes, keepdims=True)
        estimate = xp.where(number == 0, 0.0, xp.minimum(xp.maximum(estimate, low), high))
    away = xp.where(counted, means - estimate, 0.0)
    rest = xp.where(xp.isfinite(estimate), total(count * away) / n, 0.0)  # an infinite mean has no rest
    away = xp.where(counted, away - rest, 0.0)
    return SliceMoments(finished(number), finished(estimate + rest), finished(squares + total(count * away * away)))


def mix(one: SliceMoments, other: SliceMoments, share: Any, *, between: bool = False) -> SliceMoments:
    r"""Return moments between two: convex combinations of the means and of the biased variances.

    .. math:: \mu = (1 - s)\, \mu_1 + s\, \mu_2, \qquad v = (1 - s)\, v_1 + s\, v_2
              \quad [\, + s (1 - s) (\mu_1 - \mu_2)^2 \,]

    Parameters
    ----------
    one, other : SliceMoments
        Of the same method; shapes broadcast. The method RMS has mean squares in place of variances.
    share : array or float
        The share :math:`s` of `other`, from 0 to 1, which is not checked; it broadcasts to the slices.
    between : bool, default False
        Add the last term, the variance between the two means: `v` is the variance of a mixture then.

    Returns
    -------
    SliceMoments
        The count is mixed like the mean. A slice with the count 0 has no part: the result is the other one.

    Raises
    ------
    ParameterError
        `other` are no moments, or of another method; shapes do not broadcast.

    Examples
    --------
    >>> import numpy as np
    >>> one, other = (SliceMoments(*np.array([[2.0], [mean], [2.0]])) for mean in (1.0, 5.0))
    >>> mix(one, other, 0.5)
    SliceMoments(count=array([2.]), mean=array([3.]), m2=array([2.]))
    >>> mix(one, other, 0.5, between=True)
    SliceMoments(count=array([2.]), mean=array([3.]), m2=array([10.]))
    """
    _require_mixable(one, other, share)
    xp = namespace_of(one.m2)
    s = xp.where(other.count == 0, 0.0, xp.zeros_like(one.count + other.count) + share)
    s = xp.where((one.count == 0) & (other.count > 0), 1.0, s)

    def between_them(a: Array, b: Array) -> Array:
        # With the share 0, what is not finite leaves no trace.
        a = xp.where((s == 1) & ~xp.isfinite(a), 0.0, a)
        b = xp.where((s == 0) & ~xp.isfinite(b), 0.0, b)
        return a * (1.0 - s) + b * s

    count = between_them(one.count, other.count)
    spread = between_them(_variance(xp, one.count, one.m2, False), _variance(xp, other.count, other.m2, False))
    if one.mean is None or other.mean is None:
        return SliceMoments(count, None, spread * count)
    if between:
        apart = one.mean - other.mean
        apart = xp.where(((s == 0) | (s == 1)) & ~xp.isfinite(apart), 0.0, apart)
        spread = spread + s * (1.0 - s) * apart * apart
    return SliceMoments(count, between_them(one.mean, other.mean), spread * count)


def _require_mixable(one: Any, other: Any, share: Any) -> None:
    if not hasattr(other, "m2") or namespace_of(other.m2) is not namespace_of(one.m2):
        msg = f"moments are mixed with moments of the same kind of arrays, not with {_kind(other)}\n"
        msg += "pass what measure(x) returned, or the moments that a layer holds"
        raise ParameterError(msg, code="P104")
    if (one.mean is None) != (other.mean is None):
        msg = "moments with a mean and moments of the method RMS, which have none, cannot be mixed\n"
        msg += "measure both by layers of one method"
        raise ParameterError(msg, code="P119")
    shapes = [tuple(values.shape) if hasattr(values, "shape") else () for values in (one.m2, other.m2, share)]
    for first, second in itertools.combinations(shapes, 2):
        for a, b in zip(reversed(first), reversed(second), strict=False):
            if a != b and a != 1 and b != 1:  # noqa: PLR1714 - sizes may be symbolic
                msg = (
                    f"moments of shape {shapes[0]} and {shapes[1]} and a share of shape {shapes[2]} do not broadcast\n"
                )
                msg += "their axes are aligned from the last one, and have one size or size 1"
                raise ParameterError(msg, code="P118")


def _kind(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


def variance_of(moments: SliceMoments, *, unbiased: bool = False) -> Array:
    """Return the variance of slices: the second moment divided by the count, or by the count less one.

    Parameters
    ----------
    moments : SliceMoments
        Those of the method RMS give the mean square.
    unbiased : bool, default False

    Returns
    -------
    array
        0 where the divisor is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> variance_of(SliceMoments(np.array([4.0, 0.0]), np.array([1.0, 0.0]), np.array([8.0, 0.0])))
    array([2., 0.])
    """
    return _variance(namespace_of(moments.m2), moments.count, moments.m2, unbiased)


def divisor_of(variance: Array, config: LayerConfig) -> Array:
    """Return what deviations are divided by: the root of the variance, with epsilon where the config places it.

    Parameters
    ----------
    variance : array
        Variances, or mean squares.
    config : LayerConfig

    Returns
    -------
    array

    Examples
    --------
    >>> import numpy as np
    >>> from gennorm.spec.config import LayerConfig
    >>> divisor_of(np.array([4.0, 0.0]), LayerConfig.make(epsilon=0.5, epsilon_placement="outside"))
    array([2.5, 0.5])
    """
    return _divisor(namespace_of(variance), config, variance)


def apply(
    x: Array,
    config: LayerConfig,
    resolved: Resolved,
    mean: Array | None,
    variance: Array,
    *,
    scaling: Array | None = None,
    biases: Array | None = None,
) -> Array:
    """Normalize an array by a given mean and variance: `normalize` with ``moments=(mean, variance)``.

    Parameters
    ----------
    x, config, resolved, scaling, biases
        As in `normalize`.
    mean, variance : array
        Of shapes that broadcast to ``resolved.moments_shape``; the mean is ignored by the method RMS, whose variance is
        the mean square.

    Returns
    -------
    array

    Examples
    --------
    >>> import numpy as np
    >>> from gennorm.spec.config import LayerConfig, resolve_config
    >>> config = LayerConfig.make(1, epsilon=0)
    >>> x = np.array([1.0, 2.0, 3.0])
    >>> apply(x, config, resolve_config(config, x.shape), np.array(1.0), np.array(4.0))
    array([0. , 0.5, 1. ])
    """
    return normalize(x, config, resolved, scaling=scaling, biases=biases, moments=(mean, variance))[0]


def invert(
    y: Array,
    config: LayerConfig,
    resolved: Resolved,
    moments: Given,
    *,
    scaling: Array | None = None,
    biases: Array | None = None,
) -> Array:
    r"""Return the input whose output is `y`: :math:`x_i = \delta(v) (y_i - b_i) / s_i + \mu`.

    Parameters
    ----------
    y : array
        An output.
    config, resolved, moments, scaling, biases
        As in `normalize`; a scaling without zeros.

    Returns
    -------
    array
        In the output's dtype; the mean where the divisor is 0.

    Examples
    --------
    >>> import numpy as np
    >>> from gennorm.spec.config import LayerConfig, resolve_config
    >>> config = LayerConfig.make(1, epsilon=0)
    >>> y = np.array([0.0, 0.5, 1.0])
    >>> invert(y, config, resolve_config(config, y.shape), (np.array(1.0), np.array(4.0)))
    array([1., 2., 3.])
    """
    slices = _Slices(y, config, resolved)
    values = slices.split(y)
    centre, rest, variance = slices.given(moments)
    if biases is not None:
        values = values - slices.spread(biases)
    if scaling is not None:
        values = values / slices.spread(scaling)
    return slices.join(values * slices.narrow(_divisor(slices.xp, config, variance)) + rest + centre)


def fold(
    mean: Array | None,
    variance: Array,
    moments: SliceMoments,
    config: LayerConfig,
    resolved: Resolved,
    *,
    unbiased: bool = False,
) -> tuple[Array | None, Array]:
    r"""Return the moving mean and variance after the moments of an array are folded in.

    .. math:: v \leftarrow \text{momentum} \cdot v + (1 - \text{momentum}) \cdot v_\text{array}

    Slices of the batch are averaged first. Slices in which nothing is counted have no part; where there is no other,
    the moving value stays the same.

    Parameters
    ----------
    mean, variance : array
        The moving ones, without a batch axis; the mean is None for the method RMS.
    moments : SliceMoments
        Those of the array.
    config, resolved
        As in `normalize`; the momentum is the config's.
    unbiased : bool, default False
        Fold the unbiased variance, as PyTorch does.

    Returns
    -------
    mean, variance : array
        New arrays.

    Examples
    --------
    >>> import numpy as np
    >>> from gennorm.spec.config import LayerConfig, resolve_config
    >>> config = LayerConfig.make(0, 1, batched=True, statistics="moving", momentum=0.75)
    >>> moments = SliceMoments(np.array([4.0]), np.array([8.0]), np.array([20.0]))
    >>> fold(np.array([0.0]), np.array([1.0]), moments, config, resolve_config(config, (4, 1)))
    (array([2.]), array([2.]))
    """
    xp = namespace_of(moments.m2)
    counted = moments.count > 0
    new_mean, new_variance = moments.mean, _variance(xp, moments.count, moments.m2, unbiased)
    if resolved.batched and (0 not in resolved.aggregation or resolved.groups[0] > 1):
        number = xp.sum(xp.astype(counted, moments.m2.dtype), axis=0)
        new_mean, new_variance = (
            None if new is None else xp.sum(xp.where(counted, new, 0.0), axis=0) / xp.where(number == 0, 1.0, number)
            for new in (new_mean, new_variance)
        )
        counted = number > 0
    momentum = config.momentum

    def step(old: Array, new: Array) -> Array:
        # A weight of 0 leaves no trace of a NaN.
        kept = old * momentum if momentum else xp.zeros_like(old)
        return xp.where(counted, kept + new * (1 - momentum) if momentum < 1 else kept, old)

    return (None if mean is None or new_mean is None else step(mean, new_mean)), step(variance, new_variance)


# --------------------------------------------------------------------------------------------------------- derivatives


def pull_back(
    x: Array,
    dy: Array,
    config: LayerConfig,
    resolved: Resolved,
    *,
    scaling: Array | None = None,
    biases: Array | None = None,
    weights: Array | None = None,
    moments: Given | None = None,
    merge: Merge | None = None,
) -> Gradients:
    r"""Return the gradients of the input and the parameters, from the gradient `dy` of the output.

    With :math:`g = dy \cdot s` and sums over a slice,

    .. math:: dx_i = r \left(g_i - \frac{w_i}{n} \sum g - \frac{w_i \rho}{N} z_i \sum g z\right),
              \qquad ds = \sum dy\, z, \qquad db = \sum dy

    where :math:`\rho = -2 \delta^3 \, \partial r / \partial v` is 1 inside and above the floor, 0 below it, and
    :math:`\delta / \sqrt v` outside. The method RMS has no middle term. Given constants have neither of the last two.

    The result is differentiable itself, and so are second derivatives of a layer.

    Parameters
    ----------
    x, config, resolved, scaling, biases, moments
        As in `normalize`. The derivative passes through `SliceMoments`, and treats a pair as constants. The derivative
        *of the result* passes through the moments of `x` if they are not given, or were computed from `x`.
    dy : array
        Of the shape of the output.
    weights : array, optional
        As in `normalize`; used with `SliceMoments` too. What does not count and has a `dy` of 0 contributes nothing to
        any sum, whatever it is.
    merge : callable, optional
        From an array of two sums for each slice, of shape ``(2, *resolved.moments_shape)``, to those of all arrays that
        share the moments.

    Returns
    -------
    Gradients
        That of the input in the output's dtype, those of the parameters in theirs.

    Examples
    --------
    >>> import numpy as np
    >>> from gennorm.spec.config import LayerConfig, resolve_config
    >>> config = LayerConfig.make(1, epsilon=0)
    >>> x, dy = np.array([1.0, 3.0, 5.0]), np.array([1.0, 0.0, 0.0])
    >>> pull_back(x, dy, config, resolve_config(config, x.shape)).input.round(4)
    array([ 0.1021, -0.2041,  0.1021])
    """
    slices = _Slices(x, config, resolved, weights)
    x, dy = slices.split(x), slices.split(dy)
    hidden = slices.padding(x)
    state = slices.state(slices.without(x, None if hidden is None else hidden & (dy == 0)), moments)
    z = state.z
    g = dy if scaling is None else dy * slices.spread(scaling)
    dx = g
    if state.count is not None:
        sum_g, sum_gz = slices.merged([slices.total(g), slices.total(g * z)], merge)
        dx = g - slices.weighted(slices.through(state, sum_g, sum_gz, z))
    return Gradients(
        slices.join(dx * state.factor),
        None if scaling is None else slices.gathered(dy * z, scaling),
        None if biases is None else slices.gathered(dy, biases),
    )


def moment_gradients(added: Array, product: Array, variance: Array, config: LayerConfig) -> tuple[Array, Array]:
    r"""Return the gradients of the mean and the variance that an array was normalized by, from two sums of each slice.

    .. math:: d\mu = -r \sum g, \qquad dv = -\frac{\rho r^3}{2} \sum g (x - \mu)

    Parameters
    ----------
    added, product : array
        The sums of :math:`g` and of :math:`g (x - \mu)`, with the :math:`g` of `pull_back`.
    variance : array
        What the slices were normalized by.
    config : LayerConfig

    Returns
    -------
    tuple of array
        That of the mean has no meaning for the method RMS.

    Examples
    --------
    >>> import numpy as np
    >>> config = LayerConfig.make(1, epsilon=0)
    >>> moment_gradients(np.array(3.0), np.array(4.0), np.array(4.0), config)
    (array(-1.5), array(-0.25))
    """
    xp = namespace_of(variance)
    factor = _inverse(xp, _divisor(xp, config, variance))
    response = _response(xp, config, variance)
    return xp.asarray(-factor * added), xp.asarray(-0.5 * response * factor * (factor * (factor * product)))


def measure_back(
    x: Array,
    mean: Array | None,
    variance: Array,
    config: LayerConfig,
    resolved: Resolved,
    moments: SliceMoments,
    *,
    weights: Array | None = None,
) -> Array:
    r"""Return the gradient of an array, from those of the mean and the variance of its slices.

    .. math:: dx_i = w_i \left(\frac{d\mu}{n} + \frac{2 (x_i - \mu)}{N} dv\right)

    Parameters
    ----------
    x, config, resolved, weights
        As in `measure`.
    mean, variance : array
        The gradients, of the shape of the moments. The variance is unbiased if the config says so, and the mean square
        for the method RMS, which ignores `mean`.
    moments : SliceMoments
        What `measure` returned.

    Returns
    -------
    array
        In the dtype of the output of `normalize`.

    Examples
    --------
    >>> import numpy as np
    >>> from gennorm.spec.config import LayerConfig, resolve_config
    >>> config, x = LayerConfig.make(1), np.array([1.0, 3.0])
    >>> resolved = resolve_config(config, x.shape)
    >>> measure_back(x, np.array(2.0), np.array(1.0), config, resolved, measure(x, config, resolved))
    array([0., 2.])
    """
    slices = _Slices(x, config, resolved, weights)
    xp, values = slices.xp, slices.split(x)
    values = slices.without(values, slices.padding(values))
    centre, rest, _ = slices.given(moments)
    count = slices.expanded(moments.count)
    slope = 2.0 * _variance(xp, count, slices.expanded(variance), config.unbiased)  # divided as the second moment is
    if config.method == "RMS":
        return slices.join(slices.weighted(values * slices.narrow(slope)))
    even = slices.expanded(mean) * _inverse(xp, count)
    deviations = (values - centre) - rest
    return slices.join(slices.weighted(deviations * slices.narrow(slope) + slices.narrow(even)))


def push_forward(
    x: Array,
    dx: Array | None,
    config: LayerConfig,
    resolved: Resolved,
    *,
    scaling: Array | None = None,
    dscaling: Array | None = None,
    dbiases: Array | None = None,
    weights: Array | None = None,
    moments: Given | None = None,
    merge: Merge | None = None,
) -> Array:
    r"""Return the derivative of the output along a direction of the input and the parameters.

    .. math:: dy_i = s_i r \left(dx_i - \frac1n \sum w\,dx - \frac{\rho}{N} z_i \sum w z\,dx\right) + z_i\,ds_i + db_i

    It is the transpose of `pull_back`.

    Parameters
    ----------
    x, config, resolved, scaling, weights, moments, merge
        As in `pull_back`.
    dx, dscaling, dbiases : array, optional
        Directions, each of the shape of what changes along it; None for what does not change.

    Returns
    -------
    array
        Of the shape and the dtype of the output.

    Examples
    --------
    >>> import numpy as np
    >>> from gennorm.spec.config import LayerConfig, resolve_config
    >>> config = LayerConfig.make(1, epsilon=0)
    >>> x = np.array([1.0, 3.0, 5.0])
    >>> push_forward(x, np.array([1.0, 0.0, 0.0]), config, resolve_config(config, x.shape)).round(4)
    array([ 0.1021, -0.2041,  0.1021])
    """
    slices = _Slices(x, config, resolved, weights)
    state = slices.state(slices.split(x), moments)
    z = state.z
    dy = slices.xp.zeros_like(z)
    if dx is not None:
        along = slices.split(dx)
        if state.count is not None:
            sums = [slices.total(slices.weighted(along)), slices.total(slices.weighted(along * z))]
            sum_a, sum_az = slices.merged(sums, merge)
            along = along - slices.through(state, sum_a, sum_az, z)
        dy = along * state.factor
        dy = dy if scaling is None else dy * slices.spread(scaling)
    if dscaling is not None:
        dy = dy + z * slices.spread(dscaling)
    if dbiases is not None:
        dy = dy + slices.spread(dbiases)
    return slices.join(dy)


# --------------------------------------------------------------------------------------------------------- the divisor


def _variance(xp: Any, count: Array, m2: Array, unbiased: bool) -> Array:
    """The variance; 0 for slices whose count leaves none."""
    degrees = count - 1.0 if unbiased else count
    return xp.where(degrees > 0, m2 / xp.where(degrees > 0, degrees, 1.0), 0.0)


def _root(xp: Any, values: Array) -> Array:
    """The square root, with derivative 0 at 0."""
    zero = values == 0
    return xp.where(zero, 0.0, xp.sqrt(xp.where(zero, 1.0, values)))


def _divisor(xp: Any, config: LayerConfig, variance: Array) -> Array:
    """What deviations from the mean are divided by; a NaN stays one."""
    if config.epsilon_placement == "inside":
        return _root(xp, variance + config.epsilon)
    root = _root(xp, variance)
    if config.epsilon_placement == "floor":
        return xp.where(root <= config.epsilon, config.epsilon, root)
    return root + config.epsilon


def _response(xp: Any, config: LayerConfig, variance: Array) -> Array | float:
    r"""How the divisor follows the deviation, :math:`\rho = -2 \delta^3 \, \partial r / \partial v`."""
    if config.epsilon_placement == "inside":
        return 1.0
    root = _root(xp, variance)
    if config.epsilon_placement == "floor":
        return xp.where(root <= config.epsilon, 0.0, xp.ones_like(root))
    zero = root == 0
    return xp.where(zero, 0.0, 1.0 + config.epsilon / xp.where(zero, 1.0, root))


def _sign(xp: Any, values: Array) -> Array:
    """The sign; 0 and NaN stay what they are. That of array-api-compat cannot be vectorized by torch."""
    return xp.where(values > 0, 1.0, xp.where(values < 0, -1.0, values))


def _inverse(xp: Any, values: Array) -> Array:
    """One over the values; 0 where they are 0."""
    zero = values == 0
    return xp.where(zero, 0.0, 1.0 / xp.where(zero, 1.0, values))


# ---------------------------------------------------------------------------------------------------------- the slices


def _constants(axes: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """The same axes as constants: torch.compile may take stored integers for symbolic, which are no axes to it."""
    return tuple(constant for axis in axes for constant in range(rank) if constant == axis)


class _State(NamedTuple):
    """The standardized elements of an array, and the numbers of its slices that they were computed with.

    `count` is None where the moments are constants. The mean is the sum of `centre`, which has the dtype of the
    elements, and `rest`.
    """

    z: Array
    factor: Array
    variance: Array
    count: Array  # or None
    centre: Array
    rest: Array
    m2: Array | None


class _Slices:
    """The slices of an array: its shape with every grouped axis split in two, and the axes that are aggregated.

    Arrays of elements have this shape in all computations. Arrays of slices have it with size 1 on aggregated axes.
    """

    def __init__(self, x: Array, config: LayerConfig, resolved: Resolved, weights: Array | None = None) -> None:
        self.config, self.resolved = config, resolved
        self.xp = xp = namespace_of(x)
        self.shape, self.dtype = x.shape, x.dtype
        self.parts = [
            (groups, size // groups) if groups > 1 else (size,)
            for size, groups in zip(self.shape, resolved.groups, strict=True)
        ]
        rank = len(self.shape)
        self.aggregation, self.scaling = _constants(resolved.aggregation, rank), _constants(resolved.scaling, rank)
        self.axis_of = [axis for axis, part in enumerate(self.parts) for _ in part]
        self.whole = [size for part in self.parts for size in part]
        self.aggregated = tuple(
            i
            for i, axis in enumerate(self.axis_of)
            if axis in self.aggregation and self.axis_of[i : i + 2] != [axis, axis]
        )
        self.number = 1  # of elements in a slice; torch.compile has no math.prod of symbolic sizes
        for i in self.aggregated:
            self.number *= self.whole[i]
        name = _name(x.dtype)
        self.real, self.exact = _floating(xp, x, COMPUTED[name])
        self.result = self.real
        if name in ("float16", "bfloat16"):
            self.result = getattr(xp, name, x.dtype)
        self.weights = self.counted = None
        if weights is not None:
            self.counted = self.split_as(xp.broadcast_to(weights, self.shape))
            if _name(weights.dtype) != "bool":
                self.weights = self.widen(self.counted)
                self.counted = self.weights != 0

    # Shapes and dtypes

    def split_as(self, values: Array) -> Array:
        """Values of the elements, every grouped axis split."""
        return values if len(self.whole) == len(self.shape) else self.xp.reshape(values, tuple(self.whole))

    def split(self, values: Array) -> Array:
        """The same, in the dtype of the arithmetic."""
        return self.split_as(self.narrow(values))

    def join(self, values: Array) -> Array:
        """Values of the elements in the shape of the array and the dtype of the output."""
        joined = values if len(self.whole) == len(self.shape) else self.xp.reshape(values, tuple(self.shape))
        return self.xp.astype(joined, self.result, copy=False)

    def narrow(self, values: Array) -> Array:
        """Values in the dtype of the arithmetic."""
        return self.xp.astype(values, self.real, copy=False)

    def widen(self, values: Array) -> Array:
        """Values in the dtype of moments."""
        return self.xp.astype(values, self.exact, copy=False)

    # What does not count

    def padding(self, values: Array) -> Array | None:
        """Which elements do not count and are not finite."""
        return None if self.counted is None else ~self.counted & ~self.xp.isfinite(values)

    def without(self, values: Array, hidden: Array | None) -> Array:
        """The elements with 0 for hidden ones, so that no sum, and no derivative, becomes NaN because of them."""
        return values if hidden is None else self.xp.where(hidden, 0.0, values)

    # Sums over slices

    def weighted(self, values: Array) -> Array:
        """Values times the weights; 0 where the weight is, whatever the value."""
        if self.counted is None:
            return values
        values = self.xp.where(self.counted, values, 0.0)
        return values if self.weights is None else values * self.weights

    def total(self, values: Array) -> Array:
        """The sum over every slice."""
        return self.xp.sum(values, axis=self.aggregated, keepdims=True, dtype=self.exact)

    def merged(self, sums: list[Array], merge: Merge | None) -> list[Array]:
        """Sums over slices, and those of other arrays that share them."""
        if merge is None:
            return sums
        found = merge(self.xp.stack([self.squeezed(one) for one in sums]))
        return [self.expanded(found[i, ...]) for i in range(len(sums))]

    def squeezed(self, values: Array) -> Array:
        """Values of the slices, shaped as moments are."""
        return self.xp.squeeze(values, axis=self.aggregated)

    def expanded(self, values: Array) -> Array:
        """The opposite; leading axes may be absent."""
        sizes = list(values.shape)
        kept = [sizes.pop() if i not in self.aggregated and sizes else 1 for i in reversed(range(len(self.whole)))]
        return self.widen(self.xp.reshape(values, tuple(reversed(kept))))

    # The moments

    def measured(self, x: Array) -> tuple[Array, Array, Array, Array, Array]:
        """Count, the two parts of the mean and the second moment of the slices, and the deviations from the mean."""
        xp, total = self.xp, self.total
        if self.counted is None:
            added = total(x)
            count = xp.zeros_like(added) + self.number
        else:
            added = total(self.weighted(x))
            count = total(self.widen(self.counted) if self.weights is None else self.weights)
        if self.config.method == "RMS":
            return count, xp.zeros_like(self.narrow(added)), xp.zeros_like(added), self.squares(x), x
        n = xp.where(count == 0, 1.0, count)
        centre = self.inside(self.narrow(added / n), x, count)
        deviations = self.widen(x) - self.widen(centre)
        rest = total(self.weighted(deviations)) / n
        return count, centre, rest, self.squares(deviations - rest), (x - centre) - self.narrow(rest)

    def squares(self, values: Array) -> Array:
        """The sum of squares, each of them in the dtype of moments."""
        wide = self.widen(values)
        if self.counted is not None:  # the square of what does not count may overflow
            wide = self.xp.where(self.counted, wide, 0.0)
        return self.total(self.weighted(wide * wide))

    def inside(self, mean: Array, x: Array, count: Array) -> Array:
        """The mean, not outside its slice: that of equal elements is exact, so that they have the variance 0."""
        xp = self.xp
        if self.number == 0:
            return mean
        low = high = x
        if self.counted is not None:
            low, high = xp.where(self.counted, x, math.inf), xp.where(self.counted, x, -math.inf)
        low = xp.min(low, axis=self.aggregated, keepdims=True)
        high = xp.max(high, axis=self.aggregated, keepdims=True)
        return xp.where(count == 0, 0.0, xp.minimum(xp.maximum(mean, low), high))

    def given(self, moments: Given) -> tuple[Array, Array, Array]:
        """The two parts of the mean, and the variance, of given moments."""
        if len(moments) == 2:
            mean, variance = moments
            variance = self.expanded(variance)
        else:
            count, mean, m2 = moments
            variance = _variance(self.xp, self.expanded(count), self.expanded(m2), self.config.unbiased)
        if mean is None or self.config.method == "RMS":
            return self.xp.zeros_like(self.narrow(variance)), self.xp.zeros_like(variance), variance
        wide = self.expanded(mean)
        centre = self.narrow(wide)
        # An infinite mean has no rest.
        rest = self.xp.where(self.xp.isfinite(centre), wide - self.widen(centre), 0.0)
        return centre, self.narrow(rest), variance

    def state(self, x: Array, moments: Given | None) -> _State:
        """The standardized elements, by the moments of the array or by given ones."""
        xp, count = self.xp, None
        if moments is None:
            count, centre, rest, m2, deviations = self.measured(x)
            variance = _variance(xp, count, m2, self.config.unbiased)
        else:
            centre, rest, variance = self.given(moments)
            deviations = x if self.config.method == "RMS" else (x - centre) - rest
            count, m2 = self.expanded(moments[0]) if len(moments) == 3 else None, None
        factor = self.narrow(_inverse(xp, _divisor(xp, self.config, variance)))
        return _State(deviations * factor, factor, variance, count, centre, rest, m2)

    def through(self, state: _State, added: Array, product: Array, z: Array) -> Array:
        """What the derivative through the statistics takes away: the mean and the part along `z`, from two sums."""
        xp, config = self.xp, self.config
        share = _variance(xp, state.count, product, config.unbiased)  # divided as the second moment is
        part = z * self.narrow(share * _response(xp, config, state.variance))
        return part if config.method == "RMS" else self.narrow(added * _inverse(xp, state.count)) + part

    def reduced(self, state: _State) -> SliceMoments:
        """The moments, one value for each slice."""
        mean = None if self.config.method == "RMS" else self.squeezed(self.widen(state.centre) + state.rest)
        return SliceMoments(self.squeezed(state.count), mean, self.squeezed(state.m2))

    # The parameters

    def axes(self, parameter: Array) -> tuple[int, ...]:
        """The axes of the array that a parameter varies along, in its order."""
        scaling = self.scaling
        return (0, *scaling) if self.resolved.batched and len(parameter.shape) > len(scaling) else scaling

    def ascending(self, axes: tuple[int, ...]) -> list[int]:
        """The axes in their order in the array."""
        return sorted(axes)

    def spread(self, parameter: Array) -> Array:
        """A parameter, broadcastable to the elements."""
        axes = self.axes(parameter)
        shape = [size if axis in axes else 1 for axis, size in zip(self.axis_of, self.whole, strict=True)]
        order = tuple(axes.index(axis) for axis in self.ascending(axes))
        return self.xp.reshape(self.xp.permute_dims(self.narrow(parameter), order), tuple(shape))

    def gathered(self, values: Array, parameter: Array) -> Array:
        """The transpose: values of the elements, summed to the shape and the dtype of a parameter."""
        xp, axes = self.xp, self.axes(parameter)
        others = tuple(i for i, axis in enumerate(self.axis_of) if axis not in axes)
        summed = xp.sum(values, axis=others, dtype=self.exact) if others else values
        ordered = self.ascending(axes)
        summed = xp.reshape(summed, tuple(self.shape[axis] for axis in ordered))
        return xp.astype(
            xp.permute_dims(summed, tuple(ordered.index(axis) for axis in axes)), parameter.dtype, copy=False
        )


# ------------------------------------------------------------------------------------------------------ the namespaces


def namespace_of(x: Array) -> Any:
    """Return the module whose functions compute with an array, as the standard names them.

    Parameters
    ----------
    x : array

    Returns
    -------
    module
        ``x.__array_namespace__()``, or a wrapper of array-api-compat.

    Raises
    ------
    InputError
        `x` has no such method, and array-api-compat does not know it or is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> namespace_of(np.ones(3)) is np
    True
    """
    if hasattr(x, "__array_namespace__"):
        return x.__array_namespace__()
    try:
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(x, torch.Tensor):  # torch.compile can trace this and not what follows
            import array_api_compat.torch

            return array_api_compat.torch
        import array_api_compat

        return array_api_compat.array_namespace(x)
    except (ImportError, TypeError):
        kind = f"{type(x).__module__}.{type(x).__name__}".removeprefix("builtins.")
        msg = f"an object of type {kind} is no array of the Python array API standard\n"
        msg += "pass an array with __array_namespace__, or for a torch tensor: pip install 'gennorm[arrays]'"
        raise InputError(msg, code="A032") from None


def _name(dtype: Any) -> str:
    """The name of a dtype: "float32" for that of NumPy, PyTorch, JAX and others."""
    return getattr(dtype, "name", None) or str(dtype).rpartition(".")[2]


def _floating(xp: Any, x: Array, name: str) -> tuple[Any, Any]:
    """The dtypes of elements and of moments: the one named and float64, or float32 where there is no float64."""
    known = xp.__array_namespace_info__().dtypes(kind="real floating")
    if getattr(getattr(x, "device", None), "type", None) == "mps":  # of torch, which has no float64
        known = {"float32": xp.float32}
    return known.get(name, xp.float32), known.get("float64", xp.float32)
