"""Rows: the innermost run is aggregated, so a slice is a set of contiguous rows.

Layer, RMS, group and instance normalization with channels first have one row a slice (or one a channel of the group);
batch normalization with channels first has one row an example.

The geometry of a call is one array of integers, the fields below and then two lists of runs, each from the innermost
run outwards: the kept ones that tell slices apart, and the aggregated ones outside the row. A run has a size and its
strides in the input, the output and the parameters. What the numbers are stands in ``steps``.

A call works on the units ``lo`` to ``hi`` and writes nothing that belongs to others, so calls may run side by side.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .steps import (
    DIVISOR,
    EPSILON,
    NOTHING,
    PLACEMENT,
    cancelled,
    inverse_deviation,
    moments,
    offsets,
    transformed,
)
from .vector import (
    LANES,
    Array,
    Vector,
    choose,
    fence,
    first_lanes,
    inverse,
    larger,
    load,
    load_part,
    misaligned,
    muladd,
    prefetch,
    splat,
    store,
    store_part,
    stream,
    total,
    widen,
)

MEASURE = 1  # take the moments from the input; otherwise read them
KEEP = 0  # write the moments
WEIGHTED = 0  # the output's place holds weights of the elements, in its layout, and what they sum to is kept too
APPLY = 1  # write the output
SCALING = 0  # 0: absent, 1: constant along a row, 2: varies along a row
BIASES = 0
STREAM = 0  # write past the caches, and fetch the next row meanwhile
ACROSS = 0  # take the same unit of one slice after another: with moments that are given, that is the order of memory
INVERT = 0  # from output to input: the scaling is given as its reciprocals
real = np.float32  # the type of the arithmetic; moments are always float64

LENGTH = 0  # elements in a row
PIECE = 1  # elements in a piece of a row; the last piece may be shorter
PIECES = 2  # pieces in a row: 1 unless it is very long
ROWS = 3  # rows in a slice
PORTION = 4  # pieces in a unit; the last unit of a slice may have fewer
UNITS = 5  # units in a slice: 1 unless it is larger than the cache
SLICES = 6
KEPT = 7  # runs in the first list
OUTER = 8  # runs in the second
RUNS = 9  # where the lists begin


def forward(
    x: Array,
    y: Array,
    scaling: Array,
    biases: Array,
    means: Array,
    spreads: Array,
    geometry: Array,
    numbers: Array,
    lo: int,
    hi: int,
) -> None:
    """Take the moments of one unit after another, and write its output while it is still in the cache."""
    length, piece, pieces, rows = geometry[LENGTH], geometry[PIECE], geometry[PIECES], geometry[ROWS]
    portion, units, slices = geometry[PORTION], geometry[UNITS], geometry[SLICES]
    kept, outer = geometry[KEPT], geometry[OUTER]
    outer_runs = RUNS + 4 * kept
    for unit in range(lo, hi):
        number = unit // units if units > 1 else unit
        first = (unit - number * units) * portion
        if ACROSS:
            first = unit // slices * portion
            number = unit - unit // slices * slices
        last = min(first + portion, rows * pieces)
        x_slice, y_slice, p_slice = offsets(geometry, RUNS, kept, number)

        mean = 0.0
        spread = 0.0
        if MEASURE:
            pivot = real(0)
            for attempt in range(2):
                added = 0.0
                squared = 0.0
                count = 0.0
                for part in range(first, last):
                    row = part // pieces if pieces > 1 else part
                    start = (part - row * pieces) * piece
                    size = min(piece, length - start)
                    x_row, y_row, p_row = offsets(geometry, outer_runs, outer, row)
                    weight: Any = np.float64(size)
                    if WEIGHTED:
                        sum_, sum_of_squares, weight = sums_weighted(
                            x, x_slice + x_row + start, y, y_slice + y_row + start, size, pivot
                        )
                    elif attempt == 0:
                        x_next, _, _ = offsets(geometry, outer_runs, outer, min(part + 1, last - 1) // pieces)
                        sum_, sum_of_squares = sums(x, x_slice + x_row + start, size, x_next - x_row)
                    else:
                        sum_, sum_of_squares = sums_about(x, x_slice + x_row + start, size, pivot)
                    added += sum_
                    squared += sum_of_squares
                    count += weight
                mean, spread = moments(added, squared, larger(count, NOTHING), np.float64(pivot))
                if attempt == 1 or cancelled(squared, spread) == 0.0:
                    break
                pivot = real(mean)
            if KEEP:
                means[(unit - number * units) * slices + number] = mean
                spreads[(unit - number * units) * slices + number] = spread
                if WEIGHTED:
                    spreads[(units + unit - number * units) * slices + number] = count
        else:
            mean = means[number]
            spread = spreads[number]

        if APPLY:
            factor = inverse_deviation(spread / numbers[DIVISOR], numbers[EPSILON], numbers[PLACEMENT])
            centre = real(mean)
            remainder = (np.float64(centre) - mean) * factor  # what rounding the mean lost
            if INVERT:
                factor = inverse(factor)
            for part in range(first, last):
                row = part // pieces if pieces > 1 else part
                start = (part - row * pieces) * piece
                size = min(piece, length - start)
                x_row, y_row, p_row = offsets(geometry, outer_runs, outer, row)
                p_row += p_slice
                gain = factor
                shift = remainder
                if SCALING == 1:
                    gain *= scaling[p_row]
                    shift *= scaling[p_row]
                if BIASES == 1 and not INVERT:
                    shift += biases[p_row]
                if INVERT:
                    centre = biases[p_row] if BIASES == 1 else real(0)
                    shift = mean
                normalize(
                    x, x_slice + x_row + start, y, y_slice + y_row + start, size,
                    splat(centre), splat(real(gain)), splat(real(shift)), scaling, biases, p_row + start,
                )  # fmt: skip
    if STREAM:
        fence()


def sums(x: Array, start: int, size: int, ahead: int) -> tuple[float, float]:
    """Sum of contiguous elements and of their squares; two accumulators hide the latency of one.

    What lies ``ahead`` is fetched meanwhile, if that is not here: the processor does not expect it.
    """
    added = splat(0.0)
    added_too = splat(0.0)
    squared = splat(0.0)
    squared_too = splat(0.0)
    stop = start + size
    while start + 2 * LANES <= stop:
        if ahead != 0:
            prefetch(x, start + ahead)
            prefetch(x, start + ahead + LANES)
        vector = widen(load(x, start))
        added += vector
        squared = muladd(vector, vector, squared)
        vector = widen(load(x, start + LANES))
        added_too += vector
        squared_too = muladd(vector, vector, squared_too)
        start += 2 * LANES
    while start < stop:
        vector = widen(load_part(x, start, stop - start))
        added += vector
        squared = muladd(vector, vector, squared)
        start += LANES
    return total(added + added_too), total(squared + squared_too)


def sums_about(x: Array, start: int, size: int, pivot: Any) -> tuple[float, float]:
    """Sum of the deviations of contiguous elements from ``pivot``, and of their squares."""
    centre = widen(splat(pivot))
    added = splat(0.0)
    squared = splat(0.0)
    stop = start + size
    while start < stop:
        vector = first_lanes(widen(load_part(x, start, stop - start)) - centre, stop - start)
        added += vector
        squared = muladd(vector, vector, squared)
        start += LANES
    return total(added), total(squared)


def sums_weighted(
    x: Array, x_start: int, weights: Array, w_start: int, size: int, pivot: Any
) -> tuple[float, float, float]:
    """Weighted sums of the deviations and of their squares, and the sum of the weights; 0 times NaN counts as 0."""
    centre = widen(splat(pivot))
    zero = splat(0.0)
    added = splat(0.0)
    squared = splat(0.0)
    weighed = splat(0.0)
    for i in range(0, size, LANES):
        weight = widen(load_part(weights, w_start + i, size - i))
        vector = choose(weight, widen(load_part(x, x_start + i, size - i)) - centre, zero)
        added += weight * vector
        squared += weight * (vector * vector)
        weighed += weight
    return total(added), total(squared), total(weighed)


def normalize(
    x: Array, x_start: int, y: Array, y_start: int, size: int,
    centre: Vector, gain: Vector, shift: Vector, scaling: Array, biases: Array, p_start: int,
) -> None:  # fmt: skip
    """Write contiguous elements; a partial first vector aligns the stores of those that follow."""
    i = misaligned(y, y_start) if size >= 4 * LANES else 0
    if i > 0:
        store_part(y, y_start, i, normalized(x, x_start, i, centre, gain, shift, scaling, biases, p_start))
    aligned = STREAM and size >= 4 * LANES
    while i + LANES <= size:
        vector = normalized(x, x_start + i, LANES, centre, gain, shift, scaling, biases, p_start + i)
        if aligned:
            prefetch(x, x_start + i + size)
            stream(y, y_start + i, vector)
        else:
            store(y, y_start + i, vector)
        i += LANES
    if i < size:
        vector = normalized(x, x_start + i, size - i, centre, gain, shift, scaling, biases, p_start + i)
        store_part(y, y_start + i, size - i, vector)


def normalized(
    x: Array, x_start: int, count: int,
    centre: Vector, gain: Vector, shift: Vector, scaling: Array, biases: Array, p_start: int,
) -> Vector:  # fmt: skip
    """Up to a vector of output. Where the count is LANES, the compiler drops the mask."""
    scale = gain
    if SCALING == 2:
        scale = load_part(scaling, p_start, count)
    bias = shift
    if BIASES == 2:
        bias = load_part(biases, p_start, count)
    return transformed(load_part(x, x_start, count), centre, gain, shift, scale, bias)
