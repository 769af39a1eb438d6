"""Second derivatives: how the gradients that a pullback gives change with everything they were made of.

In plain NumPy and float64, some passes over memory: what trains is the first derivative, and penalties on it are rare.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gennorm.layer.derivatives import Gradients, Merge
from gennorm.moments import Moments
from gennorm.spec.config import LayerConfig, Resolved

__all__ = ["derivatives", "second"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class _Slices:
    """The slices of an array, as axes of its shape with every grouped axis cut in two."""

    shape: tuple[int, ...]
    split: tuple[int, ...]
    aggregated: tuple[int, ...]

    @classmethod
    def of(cls, resolved: Resolved) -> _Slices:
        split: list[int] = []
        aggregated: list[int] = []
        for axis, size in enumerate(resolved.shape):
            groups = resolved.groups[axis] if axis in resolved.aggregation else 1
            split += [groups] if groups > 1 else []
            aggregated += [len(split)] if axis in resolved.aggregation else []
            split.append(size // groups)
        return cls(resolved.shape, tuple(split), tuple(aggregated))

    def total(self, values: Array | float) -> Array:
        """The sum over every slice, shaped as moments are."""
        return np.asarray(np.broadcast_to(values, self.shape).reshape(self.split).sum(self.aggregated))

    def over(self, values: Array) -> Array:
        """Values of the slices, everywhere in them."""
        column = [1 if axis in self.aggregated else size for axis, size in enumerate(self.split)]
        return np.broadcast_to(values.reshape(column), self.split).reshape(self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class _Levels:
    """The axes of an array that its parameters vary along, in their order."""

    rank: int
    axes: tuple[int, ...]

    def over(self, parameter: Any) -> Any:
        """A parameter, broadcastable to the array."""
        if parameter is None:
            return 0.0
        order = sorted(range(len(self.axes)), key=self.axes.__getitem__)
        sizes = np.ones(self.rank, np.int64)
        sizes[list(self.axes)] = parameter.shape
        return parameter.astype(np.float64).transpose(order).reshape(sizes)

    def total(self, values: Array) -> Array:
        """What varies over the array, summed to the shape of a parameter."""
        summed = values.sum(tuple(axis for axis in range(self.rank) if axis not in self.axes))
        ordered = sorted(self.axes)
        return np.asarray(summed.transpose([ordered.index(axis) for axis in self.axes]))


def derivatives(config: LayerConfig, variance: Array) -> tuple[Array, Array, Array]:
    r"""One over the divisor, :math:`f(v) = 1 / \delta(v)`, and its first and second derivative by the variance.

    All three are 0 where the divisor is, and the derivatives where the divisor has none.

    Examples
    --------
    >>> [values.item() for values in derivatives(LayerConfig.make(epsilon=0), np.array(4.0))]
    [0.5, -0.0625, 0.0234375]
    """
    epsilon = config.epsilon
    with np.errstate(all="ignore"):
        root = np.sqrt(variance)
        if config.epsilon_placement == "inside":
            divisor = np.sqrt(variance + epsilon)
            smooth = divisor > 0
            slope, curve = -0.5 / divisor**3, 0.75 / divisor**5
        elif config.epsilon_placement == "floor":
            divisor = np.maximum(root, epsilon)
            smooth = root > epsilon
            slope, curve = -0.5 / divisor**3, 0.75 / divisor**5
        else:
            divisor = root + epsilon
            smooth = root > 0
            slope = -0.5 / (divisor**2 * root)
            curve = 0.5 / (divisor**3 * variance) + 0.25 / (divisor**2 * root**3)
        # A NaN is not smooth by these comparisons, and stays one all the same.
        smooth |= np.isnan(variance)
        inverse = np.where(divisor == 0, 0.0, 1 / divisor)
        return inverse, np.where(smooth, slope, 0.0), np.where(smooth, curve, 0.0)


def second(
    config: LayerConfig,
    resolved: Resolved,
    moments: Moments,
    x: Array,
    dy: Array,
    along: Gradients,
    scaling: Array | None,
    weights: Array | None,
    *,
    through: bool,
    merge: Merge | None,
) -> tuple[Array, Array, Array | None]:
    r"""Gradients of what a pullback gives, contracted with `along`: by what it was given, by the input, by the scaling.

    With :math:`z = x - \mu`, :math:`g = s\,dy`, sums over a slice of :math:`n` counted elements, of which a variance
    over :math:`n'`, and directions :math:`a, p, q` of the input, the scaling and the biases, what is differentiated is

    .. math:: \sum_i dy_i (s_i t_i + p_i z_i f + q_i), \qquad
              t_i = f a_i - \frac{f}{n} \sum a + \frac{2 f'}{n'} z_i \sum a z

    Where statistics come through the input, the derivative of :math:`\sum g t` by :math:`x_j` is

    .. math:: \frac{2 z_j}{n'}
              \left(f' \sum g a - \frac{f'}{n} \sum g \sum a + \frac{2 f''}{n'} \sum g z \sum a z\right)
              + \frac{2 f'}{n'} \left(\sum a z\,(g_j - \overline{g}) + \sum g z\,(a_j - \overline{a})\right)

    with means over :math:`n`. A masked element has a part in the sums of :math:`g` only. The method RMS has no mean,
    and no term in which one is taken.
    """
    slices = _Slices.of(resolved)
    per_example = scaling is not None and scaling.ndim > len(resolved.scaling)
    levels = _Levels(x.ndim, (0, *resolved.scaling) if per_example else resolved.scaling)
    center = config.method == "Standardize"
    variance = moments.variance(config.unbiased) if center else moments.mean_square()
    inverse, slope, curve = derivatives(config, variance)
    over, total = slices.over, slices.total
    x, dy = x.astype(np.float64), dy.astype(np.float64)
    a = np.zeros(()) if along.input is None else along.input.astype(np.float64)
    p, q = levels.over(along.scaling), levels.over(along.biases)
    s = 1.0 if scaling is None else levels.over(scaling)
    with np.errstate(all="ignore"):
        z = x - over(moments.mean) if center and moments.mean is not None else x
        f = over(inverse)
        g, h = dy * s, dy * p
        tangent, dx = f * a, h * f
        if through:
            counts = moments.count
            n = over(np.maximum(counts, 1.0))
            twice = over(np.where(counts > config.unbiased, 2 / (counts - config.unbiased), 0.0))
            counted = np.True_ if weights is None else weights
            a_counted, z_counted = np.where(counted, a, 0.0), np.where(counted, z, 0.0)
            sums = [total(g), total(g * z), total(h), total(h * z), total(g * a)]
            sums += [total(a_counted), total(a_counted * z_counted)]
            if merge is not None:
                sums = list(merge(np.stack(sums)))
            sum_g, sum_gz, sum_h, sum_hz, sum_ga, sum_a, sum_az = map(over, sums)
            first, curved = twice * over(slope), twice * over(curve)
            tangent = tangent + first * sum_az * z
            bent = over(slope) * sum_ga + curved * sum_gz * sum_az
            back = first * (sum_hz * z + sum_gz * a)
            if center:
                tangent = tangent - f / n * sum_a
                bent = bent - over(slope) / n * sum_g * sum_a
                back = back - f / n * sum_h - first / n * (sum_az * sum_g + sum_gz * sum_a)
            back = back + twice * bent * z
            dx = dx + first * sum_az * g + np.where(counted, back, 0.0)
        ddy = s * tangent + p * z * f + q
        to_scaling = None if scaling is None else levels.total(dy * tangent)
    return ddy, dx, to_scaling
