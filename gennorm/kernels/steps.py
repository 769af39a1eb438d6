"""The steps both families of kernels are made of. Every one is inlined where it is used."""

from __future__ import annotations

import math

import numpy as np

from .vector import Array, Vector

CENTER = 1  # Standardize subtracts the mean; RMS does not
BIASES = 0  # 0: absent, 1: a constant of the loop that normalizes; more than that varies inside it
EXACT = 1  # the squares of the input are exact in float64: one pass is enough unless it cancels
real = np.float32  # the type of the arithmetic; moments are always float64

INSIDE, FLOOR, OUTSIDE = 0, 1, 2

# One pass loses log2(mean square / variance) bits of 53 to cancellation. Where it would lose more than 10, a second
# pass is made about the mean of the first; constant slices, whose spread is all cancellation, become exactly 0 by it.
CANCELLATION = 1024.0


def offsets(geometry: Array, first: int, runs: int, number: int) -> tuple[int, int, int]:
    """Where item ``number`` of a nest of runs begins, in the input, the output and the parameters."""
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


def moments(added: float, squared: float, count: int, pivot: float) -> tuple[float, float]:
    """Mean and second moment about it, from the sums of the deviations from ``pivot`` and of their squares."""
    if not CENTER:
        return 0.0, squared
    beside = added / count
    return pivot + beside, max(squared - added * beside, 0.0)


def cancelled(squared: float, spread: float) -> bool:
    """Whether one pass was not enough. A NaN compares as if it was: another pass would not mend it."""
    return bool(CENTER) and (not EXACT or squared > CANCELLATION * spread)


def inverse_deviation(variance: float, epsilon: float, placement: float) -> float:
    """What a deviation from the mean is multiplied by; 0 where it would be divided by 0."""
    if placement == INSIDE:
        deviation = math.sqrt(variance + epsilon)
    elif placement == FLOOR:
        deviation = math.sqrt(variance)
        if deviation < epsilon:
            deviation = epsilon
    else:
        deviation = math.sqrt(variance) + epsilon
    return 0.0 if deviation == 0.0 else 1.0 / deviation


def standardized(vector: Vector, centre: Vector, gain: Vector, shift: Vector) -> Vector:
    """Subtract, multiply, add, where there is something to."""
    if CENTER:
        return (vector - centre) * gain + shift
    if BIASES == 1:
        return vector * gain + shift
    return vector * gain
