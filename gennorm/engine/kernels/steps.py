"""The formulas of both families of kernels, for the numbers of one slice or for vectors of neighbouring slices."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .vector import Array, Vector, choose, exceeds, inverse, larger, load_part, root, splat

CENTER = 1  # Standardize subtracts the mean; RMS does not
SCALING = 0  # 0: absent, 1: a constant of the loop that normalizes, more: varies inside it
BIASES = 0
INVERT = 0  # compute the input from the output
WEIGHTED = 0  # backward: 1: the mask selects where statistics contribute to the gradient, 2: the terms of the sums
real = np.float32
EXACT = 1  # the squares of the input are exact in float64 (2: in float32), or no mean is subtracted

INSIDE, FLOOR, OUTSIDE = 0, 1, 2

# The numbers of a call: what the second moment of a slice is divided by (its elements, or one fewer), epsilon, and
# where that goes, one of the three above.
DIVISOR, EPSILON, PLACEMENT = 0, 1, 2

# The factors of a slice that a gradient needs: its mean, its variance, and one over the number of elements that each of
# the two is divided by, or 0 where the gradient does not go through it.
MEAN, VARIANCE, PER_COUNT, PER_DEGREE = 0, 1, 2, 3

# One pass loses log2(mean square / variance) of its 53 bits to cancellation. If it loses more than 10, a second pass
# takes deviations from the mean of the first; it gives constant slices a variance of exactly 0. Where the squares
# are rounded (float64), the first pass takes deviations from the mean of a sample and may lose one bit. That limit is a
# little below 2, so that a constant slice gets 0 even if the squares of its deviations are subnormal.
CANCELLATION = 1024.0
CANCELLATION_ROUNDED = 1.9
LEAST_COUNT = 1e-300  # replaces a count of 0, so that the mean of a slice without counted elements is 0 / 1e-300 = 0

# Squares of float16 and bfloat16 are exact in float32, and only a few are added in float32. That is exact enough if the
# mean square is at most 16 variances, finite, and not so small that squares were lost to underflow. Sums of squares
# start at 2**-100: squares below 2**-133, which are not exact, do not change such a sum, whether or not the processor
# rounds them before it adds them.
CANCELLATION_FLOAT32 = 16.0
SQUARES_START, SQUARES_LEAST, SQUARES_MOST = 2.0**-100, 2.0**-50, 2.0**200


def offsets(geometry: Array, first: int, runs: int, number: int) -> tuple[int, int, int]:
    """Return the offsets of item ``number`` of a list of runs in the input, the output and the parameters."""
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
    """Return the row that contains a part of a slice, the start of the part in the row, and its length."""
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
    """Return 1 where cancellation makes another pass necessary, 0 elsewhere."""
    if not CENTER:
        return exceeds(squared, math.inf)
    return exceeds(squared, spread * (CANCELLATION if EXACT else CANCELLATION_ROUNDED))


def rounded(squared: Any, spread: Any, count: Any) -> Any:
    """Return a positive number where float32 sums of float16 or bfloat16 were not exact enough, 0 elsewhere."""
    outside = exceeds(squared, SQUARES_MOST) + exceeds(count * SQUARES_LEAST, squared)
    return outside + exceeds(squared, spread * CANCELLATION_FLOAT32) if CENTER else outside


def inverse_deviation(variance: Any, epsilon: float, placement: float) -> Any:
    """Return the factor of deviations from the mean: 1 / divisor, or 0 where the divisor is 0."""
    if placement == INSIDE:
        return inverse(root(variance + epsilon))
    if placement == FLOOR:
        return inverse(larger(root(variance), epsilon))
    return inverse(root(variance) + epsilon)


def slopes(variance: Any, per_count: Any, per_degree: Any, numbers: Array) -> tuple[Any, Any, Any]:
    r"""Return the inverse deviation of a slice, and the factors of two sums in its gradient.

    With the divisor :math:`\delta(v)`, :math:`r = 1 / \delta`, :math:`n` counted elements and a variance over
    :math:`n'`, which is :math:`n` or :math:`n - 1`, the derivative of :math:`g \cdot (x - \mu) r` is

    .. math:: r g_i - \frac{r}{n} \sum g - \frac{2 r^2}{n'} \delta'(v) \left(\sum g (x - \mu)\right) (x_i - \mu)

    The last two terms are there only if the gradient goes through the statistics. The method RMS has no middle term.
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
    """Return the gradient and the deviation that up to a vector of elements contribute to the sums of a slice."""
    if WEIGHTED == 1:  # padding may contain NaN: an element whose gradient is 0 adds 0 to the sums
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
    """Standardize, then apply the parameters that vary inside the loop; with INVERT, in the opposite order."""
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
