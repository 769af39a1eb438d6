"""The definition of a normalization layer, executed slowly in NumPy float64.

This file is the specification as a program. It shares no code with any implementation it judges, it is not fast, and
each function is one section of ``normalization.md``. Arrays are NumPy arrays; levels are 1-based, axes are 0-based,
level 0 is the batch. Any violated condition is a ``ValueError``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Levels = int | str | Sequence[int | str]
Groups = int | Sequence[int] | Mapping[int, int] | None


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


# Levels and groups ----------------------------------------------------------------------------------------------------


def levels(spec: Levels, rank: int) -> list[int]:
    """List the levels ``0..rank`` that a level spec names, in the order written."""
    if isinstance(spec, str) and spec.strip().startswith("{"):
        spec = [item for item in spec.strip()[1:-1].split(",") if item.strip()]
    items = [str(spec)] if isinstance(spec, str | int) else [str(item) for item in spec]
    found = [level for item in items for level in _item(item, rank, alone=len(items) == 1)]
    require(bool(found) or not items, f"{spec!r} names no level in rank {rank}")
    return found


def _item(text: str, rank: int, alone: bool) -> list[int]:
    """A level, or a span ``first;;last;;step`` whose open ends are the outermost levels of the example."""
    ends = [end.strip() for end in text.split(";;")]
    if ends == ["All"]:
        ends = ["", ""]
    first, last = ends[0], ends[min(1, len(ends) - 1)]
    first, last = "1" if len(ends) > 1 and first in ("", "All") else first, "-1" if last in ("", "All") else last
    low, high = (int(end) if int(end) >= 0 else rank + 1 + int(end) for end in (first, last))
    if high == low - 1 and not alone and "0" not in (first, last) and first.startswith("-") != last.startswith("-"):
        return []  # {0, 2;;All} where an example has one level: the batch alone
    found = list(range(low, high + 1, int(ends[2]) if len(ends) == 3 else 1))
    require(bool(found), f"{text!r} names no level in rank {rank}")
    require(low >= 0 and high <= rank, f"{text!r} leaves the levels 0..{rank}")
    reaches = any(end.startswith("-") and rank + 1 + int(end) < 1 for end in (ends[0], ends[min(1, len(ends) - 1)]))
    require(not reaches, f"{text!r} reaches the batch, which is level 0 and no other")
    return found


class Geometry(NamedTuple):
    """Where the levels of one array lie: ``split`` is its shape with each grouped axis cut into (group, within)."""

    shape: tuple[int, ...]
    split: tuple[int, ...]
    aggregated: tuple[int, ...]  # axes of `split` that are summed over
    scaling: tuple[int, ...]  # axes of `shape` that carry parameters, in the order written

    @property
    def size(self) -> int:
        """Elements in one slice."""
        return math.prod(self.split[axis] for axis in self.aggregated)

    @property
    def kept(self) -> tuple[int, ...]:
        """Shape of the moments."""
        return tuple(n for axis, n in enumerate(self.split) if axis not in self.aggregated)

    def over_slices(self, values: Array) -> Array:
        """One value per slice, repeated to the shape of the array."""
        column = [1 if axis in self.aggregated else n for axis, n in enumerate(self.split)]
        return np.broadcast_to(np.broadcast_to(values, self.kept).reshape(column), self.split).reshape(self.shape)

    def total(self, values: Array) -> Array:
        """Sum over each slice."""
        return np.asarray(values.reshape(self.split).sum(axis=self.aggregated))

    def over_levels(self, parameter: Array, batched: bool) -> Array:
        """A parameter of the scaling levels, or one for each example of the batch, broadcastable to the array."""
        axes = self.scaling
        if parameter.ndim == len(axes) + 1:
            require(batched, "only a batch can have parameters for each example")
            axes = (0, *axes)
        sizes = tuple(self.shape[axis] for axis in axes)
        require(parameter.shape == sizes, f"a parameter of shape {parameter.shape} where {sizes} is needed")
        order = sorted(range(len(axes)), key=lambda position: axes[position])
        column = [n if axis in axes else 1 for axis, n in enumerate(self.shape)]
        return parameter.transpose(order).reshape(column)

    def summed_like(self, values: Array, parameter: Array) -> Array:
        """The transpose of ``over_levels``: what varies over the array, summed to the shape of the parameter."""
        axes = (0, *self.scaling) if parameter.ndim == len(self.scaling) + 1 else self.scaling
        total = values.sum(axis=tuple(axis for axis in range(values.ndim) if axis not in axes))
        return np.asarray(total.transpose([sorted(axes).index(axis) for axis in axes]))


def geometry(
    shape: tuple[int, ...], aggregation_levels: Levels, scaling_levels: Levels, group_number: Groups, batched: bool
) -> Geometry:
    """Resolve the levels and the groups for an array of this shape."""
    rank, first = len(shape) - batched, 0 if batched else 1
    aggregation = levels(aggregation_levels, rank)
    require(bool(aggregation), "nothing is aggregated")
    if scaling_levels == "Same":
        scaling = sorted(aggregation)
    elif scaling_levels == "Complement":
        scaling = [level for level in range(1, rank + 1) if level not in aggregation]
    else:
        scaling = levels(scaling_levels, rank)
    require(len({*aggregation}) == len(aggregation) and len({*scaling}) == len(scaling), "a level is named twice")
    require(0 not in scaling, "the batch carries no parameters")
    require(batched or 0 not in aggregation, "one example has no level 0")

    if group_number is None:
        group_number = {}
    elif isinstance(group_number, int):
        group_number = [group_number]
    if not isinstance(group_number, Mapping):
        require(len(group_number) == len(aggregation), "as many group numbers as aggregation levels are needed")
        group_number = dict(zip(aggregation, group_number, strict=True))
    groups = {levels(level, rank)[0]: number for level, number in group_number.items()}
    require(groups.keys() <= {*aggregation}, "only an aggregated level has groups")
    require(len(groups) == len(group_number), "a level is given two group numbers")

    split: list[int] = []
    aggregated: list[int] = []
    for axis, size in enumerate(shape):
        level = axis + first
        number = groups.get(level, 1)
        require(number >= 1 and size % number == 0, f"level {level} of size {size} does not split into {number} groups")
        if number > 1:
            split.append(number)
        if level in aggregation:
            aggregated.append(len(split))
        split.append(size // number)
    return Geometry(shape, tuple(split), tuple(aggregated), tuple(level - first for level in scaling))


# Moments --------------------------------------------------------------------------------------------------------------


def _moments(x: Array, where: Geometry, method: str, mask: ArrayLike | None) -> tuple[Array, Array | None, Array]:
    counted = np.broadcast_to(np.True_ if mask is None else np.asarray(mask, dtype=bool), x.shape)
    count = where.total(counted.astype(np.float64))
    divisor = np.maximum(count, 1.0)
    if method == "RMS":
        return count, None, where.total(np.where(counted, x * x, 0.0))
    mean = where.total(np.where(counted, x, 0.0)) / divisor
    # A mean lies between the least and the greatest element. Rounding must not take it out, or a constant slice varies.
    least = np.where(counted, x, np.inf).reshape(where.split).min(axis=where.aggregated, initial=np.inf)
    greatest = np.where(counted, x, -np.inf).reshape(where.split).max(axis=where.aggregated, initial=-np.inf)
    mean = np.where(count == 0, 0.0, np.minimum(np.maximum(mean, least), greatest))
    return count, mean, where.total(np.where(counted, (x - where.over_slices(mean)) ** 2, 0.0))


def moments(
    x: ArrayLike,
    aggregation_levels: Levels = "2;;All",
    scaling_levels: Levels = "Complement",
    group_number: Groups = None,
    method: str = "Standardize",
    *,
    batched: bool = False,
    mask: ArrayLike | None = None,
) -> tuple[Array, Array | None, Array]:
    """Count, mean and centred second moment of every slice; for RMS no mean, and the sum of squares."""
    x = np.asarray(x, dtype=np.float64)
    where = geometry(x.shape, aggregation_levels, scaling_levels, group_number, batched)
    with np.errstate(invalid="ignore", over="ignore"):
        return _moments(x, where, method, mask)


class Statistics(NamedTuple):
    """What one array is normalized with, every member repeated to the shape of that array."""

    where: Geometry
    mean: Array
    variance: Array
    factor: Array  # 1 / denominator, and 0 where the denominator is 0
    slope: Array  # d factor / d variance
    degrees: Array | None  # divisor of the variance where it comes from the array, None where it was given
    counted: Array


def _statistics(
    x: Array,
    aggregation_levels: Levels,
    scaling_levels: Levels,
    group_number: Groups,
    method: str,
    unbiased: bool,
    epsilon: float,
    batched: bool,
    epsilon_placement: str,
    mask: ArrayLike | None,
    mean: ArrayLike | None,
    variance: ArrayLike | None,
) -> Statistics:
    require(method in ("Standardize", "RMS"), f"no method {method!r}")
    require(not (unbiased and method == "RMS"), "the RMS method has no unbiased form")
    where = geometry(x.shape, aggregation_levels, scaling_levels, group_number, batched)
    degrees = None
    if variance is None:
        require(not unbiased or where.size != 1, "one element has no unbiased variance")
        count, centre, m2 = _moments(x, where, method, mask)
        degrees = np.maximum(count - unbiased, 1.0)
        mean, variance, degrees = centre, m2 / degrees, where.over_slices(degrees)
    mean = np.zeros(()) if mean is None or method == "RMS" else np.asarray(mean, dtype=np.float64)
    v = where.over_slices(np.asarray(variance, dtype=np.float64))
    deviation = np.sqrt(v)
    if epsilon_placement == "inside":
        denominator, growth = np.sqrt(v + epsilon), np.ones_like(v)
    elif epsilon_placement == "floor":
        denominator, growth = np.maximum(deviation, epsilon), (deviation > epsilon).astype(np.float64)
    else:
        require(epsilon_placement == "outside", f"no epsilon placement {epsilon_placement!r}")
        denominator, growth = deviation + epsilon, np.ones_like(v)
    factor = np.where(denominator == 0, 0.0, 1 / np.where(denominator == 0, 1.0, denominator))
    # Inside, d sqrt(v + epsilon) / dv = factor / 2; for the others d deviation / dv = 1 / (2 deviation), 0 at 0.
    root = factor if epsilon_placement == "inside" else np.where(v == 0, 0.0, 1 / np.where(v == 0, 1.0, deviation))
    slope = -0.5 * factor**2 * growth * root
    counted = np.broadcast_to(np.True_ if mask is None else np.asarray(mask, dtype=bool), x.shape).astype(np.float64)
    return Statistics(where, where.over_slices(mean), v, factor, slope, degrees, counted)


def variance_of_dataset(count: ArrayLike, mean: ArrayLike | None, m2: ArrayLike, constant: str = "floor") -> Array:
    """The variance a layer with these moments of a data set uses: that of the data, or 1 where a slice is constant.

    A slice is constant where its variance is at most ``n u v + (n u m)**2``, the bound of what rounding makes of the
    variance of equal elements in two passes; ``u`` is the distance from 1 to the next number.
    """
    require(constant in ("floor", "one", "raise"), f"no policy {constant!r} for constant slices")
    n, m = np.asarray(count, dtype=np.float64), np.asarray(0.0 if mean is None else mean, dtype=np.float64)
    variance = np.asarray(m2, dtype=np.float64) / np.maximum(n, 1.0)
    u = np.finfo(np.float64).eps
    flat = np.isfinite(variance) & (variance <= n * u * variance + np.square(n * u * m))
    require(constant != "raise" or not flat.any(), "a slice is constant")
    return np.asarray(np.where(flat & (constant == "one"), 1.0, variance))


# The layer ------------------------------------------------------------------------------------------------------------


def normalize(
    x: ArrayLike,
    aggregation_levels: Levels = "2;;All",
    scaling_levels: Levels = "Complement",
    group_number: Groups = None,
    method: str = "Standardize",
    unbiased: bool = False,
    epsilon: float = 1e-3,
    *,
    scaling: ArrayLike | None = None,
    biases: ArrayLike | None = None,
    batched: bool = False,
    epsilon_placement: str = "inside",
    mask: ArrayLike | None = None,
    mean: ArrayLike | None = None,
    variance: ArrayLike | None = None,
) -> Array:
    """``scaling * (x - mean) * factor + biases``, the moments being those of ``x`` unless they are given."""
    x = np.asarray(x, dtype=np.float64)
    levels_and_method = (aggregation_levels, scaling_levels, group_number, method, unbiased, epsilon)
    with np.errstate(invalid="ignore", over="ignore"):
        s = _statistics(x, *levels_and_method, batched, epsilon_placement, mask, mean, variance)
        y = (x - s.mean) * s.factor
        if scaling is not None:
            y = y * s.where.over_levels(np.asarray(scaling, dtype=np.float64), batched)
        if biases is not None:
            y = y + s.where.over_levels(np.asarray(biases, dtype=np.float64), batched)
    return np.asarray(y)


def inverse(
    y: ArrayLike,
    mean: ArrayLike | None,
    variance: ArrayLike,
    aggregation_levels: Levels = "2;;All",
    scaling_levels: Levels = "Complement",
    group_number: Groups = None,
    method: str = "Standardize",
    epsilon: float = 1e-3,
    *,
    scaling: ArrayLike | None = None,
    biases: ArrayLike | None = None,
    batched: bool = False,
    epsilon_placement: str = "inside",
) -> Array:
    """The ``x`` whose normalization with these moments is ``y``; where the factor is 0, the mean."""
    y = np.asarray(y, dtype=np.float64)
    levels_and_method = (aggregation_levels, scaling_levels, group_number, method, False, epsilon)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        s = _statistics(y, *levels_and_method, batched, epsilon_placement, None, mean, variance)
        if biases is not None:
            y = y - s.where.over_levels(np.asarray(biases, dtype=np.float64), batched)
        if scaling is not None:
            y = y / s.where.over_levels(np.asarray(scaling, dtype=np.float64), batched)
        return np.asarray(np.where(s.factor == 0, s.mean, y / np.where(s.factor == 0, 1.0, s.factor) + s.mean))


def vjp(
    x: ArrayLike,
    dy: ArrayLike,
    aggregation_levels: Levels = "2;;All",
    scaling_levels: Levels = "Complement",
    group_number: Groups = None,
    method: str = "Standardize",
    unbiased: bool = False,
    epsilon: float = 1e-3,
    *,
    scaling: ArrayLike | None = None,
    biases: ArrayLike | None = None,
    batched: bool = False,
    epsilon_placement: str = "inside",
    mask: ArrayLike | None = None,
    mean: ArrayLike | None = None,
    variance: ArrayLike | None = None,
) -> tuple[Array, Array | None, Array | None]:
    """Cotangents of ``x``, ``scaling`` and ``biases`` for the cotangent ``dy`` of the output.

    With ``g = dy * scaling`` and ``z = x - mean``, both over one slice, an element that counts receives
    ``g * factor - sum(g) * factor / count + sum(g * z) * slope * 2 z / degrees``, one that does not ``g * factor``.
    What does not count and has a ``dy`` of 0 may be anything: it adds nothing to any sum.
    """
    x, g = np.asarray(x, dtype=np.float64), np.asarray(dy, dtype=np.float64)
    require(g.shape == x.shape, "dy has the shape of x")
    levels_and_method = (aggregation_levels, scaling_levels, group_number, method, unbiased, epsilon)
    dscaling = dbiases = None
    with np.errstate(invalid="ignore", over="ignore"):
        s = _statistics(x, *levels_and_method, batched, epsilon_placement, mask, mean, variance)
        z = np.where((s.counted == 0) & (g == 0), 0.0, x - s.mean)
        if biases is not None:
            dbiases = s.where.summed_like(g, np.asarray(biases, dtype=np.float64))
        if scaling is not None:
            weight = np.asarray(scaling, dtype=np.float64)
            dscaling = s.where.summed_like(g * z * s.factor, weight)
            g = g * s.where.over_levels(weight, batched)
        dx = g * s.factor
        if s.degrees is not None:
            over = s.where.over_slices
            through = over(s.where.total(g * z)) * s.slope * 2 * z / s.degrees
            if method == "Standardize":
                count = over(np.maximum(s.where.total(s.counted), 1.0))
                through = through - over(s.where.total(g)) * s.factor / count
            dx = dx + np.where(s.counted == 1, through, 0.0)
    return np.asarray(dx), dscaling, dbiases


def second(
    x: ArrayLike,
    dy: ArrayLike,
    along: tuple[ArrayLike, ArrayLike | None, ArrayLike | None],
    aggregation_levels: Levels = "2;;All",
    scaling_levels: Levels = "Complement",
    group_number: Groups = None,
    method: str = "Standardize",
    unbiased: bool = False,
    epsilon: float = 1e-3,
    *,
    scaling: ArrayLike | None = None,
    batched: bool = False,
    epsilon_placement: str = "inside",
    mask: ArrayLike | None = None,
    mean: ArrayLike | None = None,
    variance: ArrayLike | None = None,
) -> tuple[Array, Array, Array | None]:
    """Derivatives by ``dy``, ``x`` and ``scaling`` of the cotangents that ``vjp`` gives, multiplied by ``along``.

    The output is linear in ``dy``, so the first is its derivative along ``along``. The cotangents are gradients of one
    number, ``sum(dy * y)``, so how they change along ``along`` is also what ``along`` draws from them: the other two
    are ``vjp``, line by line, with the derivative of every line along ``along`` beside it.
    """
    x, dy = np.asarray(x, dtype=np.float64), np.asarray(dy, dtype=np.float64)
    t = np.asarray(along[0], dtype=np.float64)
    levels_and_method = (aggregation_levels, scaling_levels, group_number, method, unbiased, epsilon)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        s = _statistics(x, *levels_and_method, batched, epsilon_placement, mask, mean, variance)
        over, total = s.where.over_slices, s.where.total
        weight, to_weight, to_shift = (
            value if value is None else s.where.over_levels(np.asarray(value, dtype=np.float64), batched)
            for value in (scaling, along[1], along[2])
        )
        weight = np.ones(()) if weight is None else weight
        to_weight = np.zeros(()) if to_weight is None else to_weight
        # Statistics and what follows from them, each with a dot: how it changes.
        z, degrees = x - s.mean, s.degrees
        z_dot, factor_dot, slope_dot = t, np.zeros(()), np.zeros(())
        count = over(np.maximum(total(s.counted), 1.0))
        if degrees is not None:
            counted = np.where(s.counted == 1, t, 0.0)
            if method == "Standardize":
                z_dot = t - over(total(counted)) / count
            v_dot = 2 * over(total(counted * np.where(s.counted == 1, z, 0.0))) / degrees
            factor_dot = s.slope * v_dot
            slope_dot = _bend(s, epsilon_placement) * v_dot
        y_dot = to_weight * z * s.factor + weight * (z_dot * s.factor + z * factor_dot)
        if to_shift is not None:
            y_dot = y_dot + to_shift
        g, g_dot = dy * weight, dy * to_weight
        dscaling = None
        if scaling is not None:
            dscaling = s.where.summed_like(dy * (z_dot * s.factor + z * factor_dot), np.asarray(scaling))
        dx = g_dot * s.factor + g * factor_dot
        if degrees is not None:
            gz, gz_dot = over(total(g * z)), over(total(g_dot * z + g * z_dot))
            back = 2 / degrees * (gz_dot * s.slope * z + gz * slope_dot * z + gz * s.slope * z_dot)
            if method == "Standardize":
                back = back - (over(total(g_dot)) * s.factor + over(total(g)) * factor_dot) / count
            dx = dx + np.where(s.counted == 1, back, 0.0)
    return np.asarray(y_dot + np.zeros_like(x)), np.asarray(dx), dscaling


def _bend(s: Statistics, epsilon_placement: str) -> Array:
    """The second derivative of the factor by the variance; 0 where the slope is."""
    if epsilon_placement == "outside":
        deviation = np.sqrt(s.variance)
        bend = s.factor**3 / (2 * s.variance) + s.factor**2 / (4 * s.variance * deviation)
    else:
        bend = 0.75 * s.factor**5
    return np.where(s.slope == 0, 0.0, bend)


def moving(
    mean: ArrayLike,
    variance: ArrayLike,
    x: ArrayLike,
    aggregation_levels: Levels,
    scaling_levels: Levels = "Complement",
    group_number: Groups = None,
    method: str = "Standardize",
    momentum: float = 0.99,
    *,
    mask: ArrayLike | None = None,
) -> tuple[Array, Array]:
    """Moving mean and variance after a batch was folded in: ``momentum * old + (1 - momentum) * new``, biased.

    Where the batch, or a group of the batch, is kept, its slices are averaged first. A slice with nothing counted takes
    no part; where there is no other, the moments stay what they are.
    """
    x = np.asarray(x, dtype=np.float64)
    count, centre, m2 = moments(x, aggregation_levels, scaling_levels, group_number, method, batched=True, mask=mask)
    new = [np.zeros_like(m2) if centre is None else centre, m2 / np.maximum(count, 1.0)]
    where = geometry(x.shape, aggregation_levels, scaling_levels, group_number, True)
    seen = (count > 0).astype(np.float64)
    if 0 not in where.aggregated:
        total = seen.sum(axis=0)
        new = [(value * seen).sum(axis=0) / np.maximum(total, 1.0) for value in new]
        seen = total
    old = [np.asarray(value, dtype=np.float64) for value in (mean, variance)]
    mean_now, variance_now = (
        np.where(seen == 0, a, momentum * a + (1 - momentum) * b) for a, b in zip(old, new, strict=True)
    )
    return mean_now, variance_now
