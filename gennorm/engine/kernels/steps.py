"""The formulas of both families of kernels, for the numbers of one slice or for vectors of neighbouring slices."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .vector import Array, Vector, choose, exceeds, inverse, larger, load_part, root, splat

CENTER = 1  # Standardize subtracts the mean; RMS does not
SCALING = 0  # 0: absent, 1: a constant of the loop that normalizes, more: varies inside it
BIASES = 0
INVERT = 0  # from output to input
WEIGHTED = 0  # backwards; the weights are a mask, and 1: it chooses what the statistics contribute to, 2: to the sums
real = np.float32
EXACT = 1  # the squares of the input are exact in float64 (2: in float32), or no mean is subtracted

INSIDE, FLOOR, OUTSIDE = 0, 1, 2

# The numbers of a call: what the second moment of a slice is divided by (its elements, or one fewer), epsilon, and
# where that goes, one of the three above.
DIVISOR, EPSILON, PLACEMENT = 0, 1, 2

# The factors of a slice that a gradient needs: its mean, its variance, and one over the number of elements that the
# mean and the variance are taken over; 0 where the gradient does not go through them.
MEAN, VARIANCE, PER_COUNT, PER_DEGREE = 0, 1, 2, 3

# One pass loses log2(mean square / variance) bits of 53 to cancellation. Where it would lose more than 10, a second
# pass is made about the mean of the first; constant slices, whose spread is all cancellation, become exactly 0 by it.
# Where the squares themselves are rounded it may lose one: deviations are then from the mean of a sample, which as a
# rule is nearer than that. (Just below 2, so that a constant whose distances have squares that are subnormal is 0 too.)
CANCELLATION = 1024.0
NEAR = 1.9
NOTHING = 1e-300  # divides the sums, which are 0, of a slice in which nothing is counted: its mean is 0

# Squares of float16 and bfloat16 are exact in float32, and so few are added up there that it is enough where the mean
# square is at most 16 variances, and neither infinite nor so small that squares were lost. Those that are not exact,
# below 2**-133, are negligible against what their sums begin at: whether a product is rounded before it is added makes
# no difference.
NEARBY = 16.0
LEAST, SMALL, LARGE = 2.0**-100, 2.0**-50, 2.0**200


def offsets(geometry: Array, first: int, runs: int, number: int) -> tuple[int, int, int]:
    """Return where item ``number`` of a nest of runs begins, in the input, the output and the parameters."""
    x_offset = 0
    y_offset = 0
    p_offset = 0
    for field in range(first, first + 4 * runs, 4):
        index = number
        if field + 4 < first + 4 * runs:
            number = number // geometry[field]
            index -= number * geometry[field]
        x_offset += index * geometry[field + 1]
        y_offset += index * geometry[field + 2]
        p_offset += index * geometry[field + 3]
    return x_offset, y_offset, p_offset


def part_at(part: int, length: int, piece: int, pieces: int) -> tuple[int, int, int]:
    """Return the row that a part of a slice is in, where the part begins in it, and how long it is."""
    row = part // pieces if pieces > 1 else part
    start = (part - row * pieces) * piece
    return row, start, min(piece, length - start)


def moments(added: Any, squared: Any, count: Any, pivot: Any) -> tuple[Any, Any]:
    """Return the mean and the second moment about it, from sums of deviations from ``pivot`` and of their squares."""
    if not CENTER:
        return pivot, squared
    offset = added / count
    return pivot + offset, larger(squared - added * offset, 0.0)


def joined(
    mean: Any, spread: Any, count: Any, pivot: Any, added: Any, squared: Any, before: Any
) -> tuple[Any, Any]:  # fmt: skip
    """Add the moments of one more unit of a slice to those of the ``before`` elements in the units before it.

    ``added`` is the sum of all deviations from ``pivot``, the mean of the first unit: the mean of the slice is rounded
    once, however many units there are. ``squared`` is the second moment about the mean of the units so far. An infinite
    mean stays infinite.
    """
    if not CENTER:
        return added, squared + spread
    away = mean - pivot
    apart = away - added / before
    return added + away * count, squared + (spread + apart * apart * (before * count / (before + count)))


def cancelled(squared: Any, spread: Any) -> Any:
    """Return 1 where one pass was not enough, 0 elsewhere."""
    if not CENTER:
        return exceeds(squared, math.inf)
    return exceeds(squared, spread * (CANCELLATION if EXACT else NEAR))


def rounded(squared: Any, spread: Any, count: Any) -> Any:
    """Return 0 where float32 sums of float16 or bfloat16 were exact enough, more elsewhere."""
    outside = exceeds(squared, LARGE) + exceeds(count * SMALL, squared)
    return outside + exceeds(squared, spread * NEARBY) if CENTER else outside


def inverse_deviation(variance: Any, epsilon: float, placement: float) -> Any:
    """Return what a deviation from the mean is multiplied by: 1 / divisor, and 0 where the divisor is 0."""
    if placement == INSIDE:
        return inverse(root(variance + epsilon))
    if placement == FLOOR:
        return inverse(larger(root(variance), epsilon))
    return inverse(root(variance) + epsilon)


def slopes(variance: Any, per_count: Any, per_degree: Any, numbers: Array) -> tuple[Any, Any, Any]:
    r"""Return the inverse deviation of a slice, and what two sums over it are multiplied by in its gradient.

    With the deviation :math:`\delta(v)` that is divided by, :math:`r = 1 / \delta`, :math:`n` elements counted and the
    variance over :math:`n'`, that is :math:`n` or :math:`n - 1`, the derivative of :math:`g \cdot (x - \mu) r` is

    .. math:: r g_i - \frac{r}{n} \sum g - \frac{2 r^2}{n'} \delta'(v) \left(\sum g (x - \mu)\right) (x_i - \mu)

    where the last two terms come through the statistics, and only then. The method RMS has no middle term.
    """
    deviation = root(variance)
    factor = inverse_deviation(variance, numbers[EPSILON], numbers[PLACEMENT])
    slope = factor * factor * factor
    if numbers[PLACEMENT] == FLOOR:
        slope = slope * exceeds(deviation, numbers[EPSILON])
    if numbers[PLACEMENT] == OUTSIDE:
        slope = factor * factor * inverse(deviation)
    return factor, factor * per_count * -1.0, slope * per_degree * -1.0


def contribution(gradient: Vector, deviation: Vector, weights: Array, start: int, count: int) -> tuple[Vector, Vector]:
    """Return what up to a vector of elements contribute to the sums over a slice."""
    if WEIGHTED == 1:  # padding may be anything: where no gradient comes from, it adds nothing to the sums
        deviation = choose(gradient, deviation, splat(real(0)))
    if WEIGHTED == 2:
        weight = load_part(weights, start, count)
        gradient = choose(weight, gradient, splat(real(0)))
        deviation = choose(weight, deviation, splat(real(0)))
    return gradient, deviation


def standardized(vector: Vector, centre: Vector, gain: Vector, shift: Vector) -> Vector:
    """Subtract, multiply, add, where there is something to."""
    if CENTER:
        return (vector - centre) * gain + shift
    if BIASES == 1:
        return vector * gain + shift
    return vector * gain


def transformed(vector: Vector, centre: Vector, gain: Vector, shift: Vector, scaling: Vector, biases: Vector) -> Vector:
    """Standardize, then scale and shift by the parameters that vary inside the loop; the other way round to invert."""
    if INVERT:
        if BIASES > 1:
            vector = vector - biases
        if SCALING > 1:
            vector = vector * scaling
        return standardized(vector, centre, gain, shift)
    vector = standardized(vector, centre, gain, shift)
    if SCALING > 1:
        vector = vector * scaling
    if BIASES > 1:
        vector = vector + biases
    return vector
