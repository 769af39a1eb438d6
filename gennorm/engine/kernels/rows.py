"""Rows: the innermost run is aggregated, so a slice is a set of contiguous rows.

Layer, RMS, group and instance normalization with channels first have one row for each slice (or for each channel of the
group); batch normalization with channels first has one row for each example.

The geometry of a call is one array of integers: the fields below and then two lists of runs, each from the innermost
run outwards. The first list has the kept runs, which enumerate slices, the second the aggregated runs outside the row.
A run has a size and its strides in the input, the output and the parameters. ``steps`` describes the array ``numbers``.

A call works on the tasks ``lo`` to ``hi`` and writes no memory of other tasks, so calls may run in parallel. The last
argument, ``request``, is the address of a request to share the call among threads: the entry point reads it, a kernel
does not (see ``compiler.workers``).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .steps import (
    DIVISOR,
    EPSILON,
    LEAST_COUNT,
    PLACEMENT,
    SQUARES_START,
    cancelled,
    inverse_deviation,
    joined,
    moments,
    offsets,
    part_at,
    rounded,
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
    is_aligned,
    larger,
    like,
    load,
    load_part,
    muladd,
    prefetch,
    splat,
    store,
    store_part,
    stream,
    to_alignment,
    total,
    widen,
)

MEASURE = 1  # take the moments from the input; otherwise read them
KEEP = 0  # write the moments
WEIGHTED = 0  # ``y`` contains weights of the elements; write their sums too
APPLY = 1  # write the output
SCALING = 0  # 0: absent, 1: constant along a row, 2: varies along a row
BIASES = 0
STREAM = 0  # use non-temporal stores, and prefetch the next row
ACROSS = 0  # process the first unit of every slice, then the second: with given moments, the order of memory
INVERT = 0  # compute the input from the output: ``scaling`` contains reciprocals
EXACT = 1  # squares are exact: the first pass is about 0 (2: in float32); with 0, about the mean of a sample
real = np.float32  # the type of the arithmetic; moments are always float64

SAMPLE_ELEMENTS = 64  # elements in a sample
# Elements of a row that are summed before their sum is added to that of the elements before, by the type of the sum.
# In float32, 8 vectors take 5 % longer, and 32 take as long as 16.
BLOCK_FLOAT64 = 4096
BLOCK_FLOAT32 = 16 * LANES
PREFETCH_LENGTH = 8192  # the longest last row of a slice during which the next row is prefetched: both fit a cache

LENGTH = 0  # elements in a row
PIECE = 1  # elements in a piece of a row; the last piece may be shorter
PIECES = 2  # pieces in a row: 1 unless it is very long
ROWS = 3  # rows in a slice
PORTION = 4  # pieces in a unit; the last unit of a slice may have fewer
UNITS = 5  # units in a slice: more than 1 if it is large enough to be shared by threads
SLICES = 6
KEPT = 7  # number of runs in the first list
OUTER = 8  # number of runs in the second list
RUNS = 9  # start of the lists


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
    request: int,
) -> None:
    """Take the moments of slices, and write their output while they are still in the cache.

    With MEASURE and APPLY, a task is a slice; its units are measured one after another and then merged. Otherwise a
    task is one unit, so that threads can share a slice; ``merging`` then merges the moments of its units by the same
    operations in the same order.
    """
    length, piece, pieces, rows, portion, units, slices, kept, outer = slice_fields(geometry)
    outer_runs = RUNS + 4 * kept
    for task in range(lo, hi):
        if MEASURE and APPLY:  # a task is a slice
            number = task
            first = 0
            last = rows * pieces
        else:  # a task is a unit
            number = task // units if units > 1 else task
            first = (task - number * units) * portion
            if ACROSS:
                first = task // slices * portion
                number = task - task // slices * slices
            last = min(first + portion, rows * pieces)
        x_slice, y_slice, p_slice = offsets(geometry, RUNS, kept, number)

        mean = 0.0
        spread = 0.0
        if MEASURE:
            pivot = 0.0
            added = 0.0
            squared = 0.0
            before = 0.0
            for begin in range(first, last, portion):
                mean, spread, count = measured(
                    x, y, geometry, x_slice, y_slice, begin, min(begin + portion, last)
                )  # fmt: skip
                if begin == 0:
                    pivot = mean if -math.inf < mean < math.inf else 0.0
                    added = (mean - pivot) * count
                    squared = spread
                elif APPLY:
                    added, squared = joined(mean, spread, count, pivot, added, squared, before)
                before += count
            if APPLY and units > 1:
                mean, spread = pivot + added / before, squared
            if KEEP:
                at = number if APPLY else (task - number * units) * slices + number
                means[at] = mean
                spreads[at] = spread
                if WEIGHTED:
                    spreads[units * slices + at] = before
        else:
            mean = means[number]
            spread = spreads[number]

        if APPLY:
            factor = inverse_deviation(spread / numbers[DIVISOR], numbers[EPSILON], numbers[PLACEMENT])
            centre = real(mean)
            remainder = (np.float64(centre) - mean) * factor  # the rounding error of the mean
            if INVERT:
                factor = inverse(factor)
            for part in range(first, last):
                row, start, size = part_at(part, length, piece, pieces)
                x_row, y_row, p_row = offsets(geometry, outer_runs, outer, row)
                p_row += p_slice
                ahead = size if STREAM or (part + 1 == last and size <= PREFETCH_LENGTH) else 0
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
                    splat(centre), splat(real(gain)), splat(real(shift)), scaling, biases, p_row + start, ahead,
                )  # fmt: skip
    if STREAM:
        fence()


def slice_fields(geometry: Array) -> tuple[int, int, int, int, int, int, int, int, int]:
    """Return the fields that both families have: how slices are divided, and how many runs there are."""
    length, piece, pieces, rows = geometry[LENGTH], geometry[PIECE], geometry[PIECES], geometry[ROWS]
    portion, units, slices = geometry[PORTION], geometry[UNITS], geometry[SLICES]
    return length, piece, pieces, rows, portion, units, slices, geometry[KEPT], geometry[OUTER]


def measured(
    x: Array, y: Array, geometry: Array, x_slice: int, y_slice: int, first: int, last: int
) -> tuple[float, float, float]:  # fmt: skip
    """Return mean and second moment of one unit, and how many elements, or the sum of the weights, it has."""
    length, piece, pieces = geometry[LENGTH], geometry[PIECE], geometry[PIECES]
    outer, parts = geometry[OUTER], geometry[ROWS] * pieces
    outer_runs = RUNS + 4 * geometry[KEPT]
    mean = 0.0
    spread = 0.0
    count = 0.0
    pivot = real(0)
    # Attempts: 0 over a sample, or in float32; 1 over all elements; 2 again, if 1 was not exact enough.
    for attempt in range(1 if EXACT == 1 else 0, 3):
        end = last if attempt > 0 or EXACT else min(last, first - -SAMPLE_ELEMENTS // piece)
        often = 1 + int(math.sqrt(end - first))  # parts in a block; there are about as many blocks
        added = splat(0.0)
        squared = splat(0.0)
        count = 0.0
        for block in range(first, end, often):
            block_added = splat(0.0)
            block_squared = splat(0.0)
            for part in range(block, min(block + often, end)):
                row, start, size = part_at(part, length, piece, pieces)
                if attempt == 0 and not EXACT:
                    size = min(size, SAMPLE_ELEMENTS)
                x_row, y_row, _ = offsets(geometry, outer_runs, outer, row)
                x_start = x_slice + x_row + start
                weight: Any = np.float64(size)
                if WEIGHTED:
                    sum_, sum_of_squares, weight = sums_weighted(x, x_start, y, y_slice + y_row + start, size, pivot)
                elif EXACT == 2 and attempt == 0:
                    x_next, _, _ = offsets(geometry, outer_runs, outer, min(part + 1, parts - 1) // pieces)
                    sum_, sum_of_squares = sums(
                        x, x_start, size, real(0), real(SQUARES_START), BLOCK_FLOAT32, x_next - x_row
                    )
                elif EXACT != 2 and attempt == 1:
                    x_next, _, _ = offsets(geometry, outer_runs, outer, min(part + 1, parts - 1) // pieces)
                    about = 0.0 if EXACT else np.float64(pivot)
                    sum_, sum_of_squares = sums(x, x_start, size, about, 0.0, BLOCK_FLOAT64, x_next - x_row)
                else:
                    sum_, sum_of_squares = sums(x, x_start, size, np.float64(pivot), 0.0, BLOCK_FLOAT64, 0)
                block_added += sum_
                block_squared += sum_of_squares
                count += weight
            added += block_added
            squared += block_squared
        in_all = total(squared)
        mean, spread = moments(total(added), in_all, larger(count, LEAST_COUNT), np.float64(pivot))
        if EXACT == 2 and attempt == 0:
            if rounded(in_all, spread, count) == 0.0:
                break
        else:
            if attempt == 2 or (attempt == 1 and cancelled(in_all, spread) == 0.0):
                break
            # Deviations from an infinite pivot would be NaN, and so would the mean, which is infinite.
            pivot = real(mean) if -math.inf < mean < math.inf else real(0)
    return mean, spread, count


def sums(x: Array, start: int, size: int, about: Any, least: Any, block: int, ahead: int) -> tuple[Vector, Vector]:
    """Return sums, in each lane, of deviations of contiguous elements and of their squares.

    Two accumulators hide the latency of an addition. For each block they start at 0, those of squares at ``least``.
    They have the type of ``about``, which is subtracted from the elements. If ``ahead`` is not 0, the elements at that
    distance are prefetched: they are in another row, which the processor does not prefetch by itself.
    """
    added = splat(0.0)
    squared = splat(0.0)
    centre = splat(about)
    stop = start + size
    while start < stop:
        end = min(start + block, stop)
        one = splat(least - least)
        one_squared = splat(least)
        other = splat(least - least)
        other_squared = splat(least)
        while start + 2 * LANES <= end:
            if ahead != 0:
                prefetch(x, start + ahead)
                prefetch(x, start + ahead + LANES)
            vector: Vector = like(load(x, start), about) - centre
            one += vector
            one_squared = muladd(vector, vector, one_squared)
            vector = like(load(x, start + LANES), about) - centre
            other += vector
            other_squared = muladd(vector, vector, other_squared)
            start += 2 * LANES
        while start < end:
            vector = first_lanes(like(load_part(x, start, end - start), about) - centre, end - start)
            one += vector
            one_squared = muladd(vector, vector, one_squared)
            start += LANES
        added += widen(one + other)
        squared += widen(one_squared + other_squared)
    return added, squared


def sums_weighted(
    x: Array, x_start: int, weights: Array, w_start: int, size: int, pivot: Any
) -> tuple[Vector, Vector, float]:
    """Return weighted sums of deviations and of their squares, and the sum of the weights; 0 times NaN counts as 0."""
    centre = widen(splat(pivot))
    zero = splat(0.0)
    added = splat(0.0)
    squared = splat(0.0)
    weighed = splat(0.0)
    for block in range(0, size, BLOCK_FLOAT64):
        one = splat(0.0)
        one_squared = splat(0.0)
        one_weighed = splat(0.0)
        for i in range(block, min(block + BLOCK_FLOAT64, size), LANES):
            weight = widen(load_part(weights, w_start + i, size - i))
            vector = choose(weight, widen(load_part(x, x_start + i, size - i)) - centre, zero)
            one += weight * vector
            one_squared += weight * (vector * vector)
            one_weighed += weight
        added += one
        squared += one_squared
        weighed += one_weighed
    return added, squared, total(weighed)


def normalize(
    x: Array, x_start: int, y: Array, y_start: int, size: int,
    centre: Vector, gain: Vector, shift: Vector, scaling: Array, biases: Array, p_start: int, ahead: int,
) -> None:  # fmt: skip
    """Write contiguous elements. A partial first vector aligns the stores of the following ones."""
    i = to_alignment(y, y_start) if size >= 4 * LANES else 0
    if i > 0:
        store_part(y, y_start, i, normalized(x, x_start, i, centre, gain, shift, scaling, biases, p_start))
    # Elements of an unaligned array never start at the address of an aligned vector.
    aligned = STREAM == 1 and size >= 4 * LANES and is_aligned(y, y_start + i, 0)
    while i + LANES <= size:
        vector = normalized(x, x_start + i, LANES, centre, gain, shift, scaling, biases, p_start + i)
        if STREAM or EXACT == 2:
            prefetch(x, x_start + i + ahead)
        if aligned:
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
    """Return up to a vector of output. If the count is the constant LANES, the compiler removes the mask."""
    scale = gain
    if SCALING == 2:
        scale = load_part(scaling, p_start, count)
    bias = shift
    if BIASES == 2:
        bias = load_part(biases, p_start, count)
    return transformed(load_part(x, x_start, count), centre, gain, shift, scale, bias)
