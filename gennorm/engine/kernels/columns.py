"""Columns: the innermost run is kept, so a tile of neighbouring slices is processed at once, one slice in each lane.

This is batch normalization over features, batch and instance normalization with channels last, and layer normalization
over the channels of an array with channels first. Group normalization with channels last sums each lane, and then folds
neighbouring lanes into one slice.

The geometry is that of ``rows``, with lines of lanes instead of elements: the innermost aggregated run has LENGTH
lines. The scratch array ``work`` has 12 numbers for each lane in float64, and ``lanes`` has three in the type of the
arithmetic.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .rows import KEPT, LENGTH, OUTER, PIECE, PIECES, slice_fields
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
    WIDE,
    Array,
    Vector,
    choose,
    exceeds,
    fence,
    first_lanes,
    inverse,
    is_aligned,
    larger,
    like,
    load,
    load_part,
    load_wide,
    muladd,
    narrow,
    prefetch,
    splat,
    splat_wide,
    store,
    store_part,
    stream_aligned,
    total,
    widen,
)

MEASURE = 1  # take the moments from the input; otherwise read them
KEEP = 0  # write the moments
WEIGHTED = 0  # ``y`` contains weights of the elements; write their sums too
APPLY = 1  # write the output
STREAM = 0  # use non-temporal stores where lines are whole vectors at addresses that are multiples of 16
SCALING = 0  # 0: absent, 1: constant along a lane, 2: varies over lanes and lines, 3: one number for each line
BIASES = 0
INVERT = 0  # compute the input from the output: ``scaling`` contains reciprocals
EXACT = 1  # squares are exact: the first pass is about 0 (2: in float32); with 0, about the mean of a sample
real = np.float32  # the type of the arithmetic; moments are always float64

SAMPLE_LINES = 24  # lines in a sample
REGISTER_LINES = 16  # lines of float64, float16 or bfloat16 that are summed in registers before the sums in memory

# The fields of the geometry after those of ``rows``.
WIDTH = 9  # lanes in a line
TILE = 10  # lanes in a tile; the last tile of a line may have fewer
TILES = 11
FOLD = 12  # neighbouring lanes that belong to one slice
X_LINE = 13  # strides from line to line
Y_LINE = 14
P_LINE = 15
P_LANE = 16  # stride from lane to lane of a parameter that is constant along a lane: 0 or 1
RUNS = 17

# Lines of more than WIDE lanes are summed this many at a time, in the order of memory, and the next are prefetched: the
# sums in memory are loaded and stored once for all of them. (4096, 512) takes 180 us, and 330 line by line; 100 MB
# with 256 lanes take 3.3 ms, 4.8 line by line, and 13 with all lines at a time. Output is written line by line.
TOGETHER = 8


def forward(
    x: Array,
    y: Array,
    scaling: Array,
    biases: Array,
    means: Array,
    spreads: Array,
    geometry: Array,
    numbers: Array,
    work: Array,
    lanes: Array,
    lo: int,
    hi: int,
    request: int,
) -> None:
    """Take the moments of tiles of slices, and write their output while they are still in the cache.

    Tasks are those of ``rows.forward``, with tiles instead of slices.
    """
    length, piece, pieces, rows, portion, units, slices, kept, outer = slice_fields(geometry)
    tile, tiles, fold, p_lane = geometry[TILE], geometry[TILES], geometry[FOLD], geometry[P_LANE]
    x_line, y_line, p_line = geometry[X_LINE], geometry[Y_LINE], geometry[P_LINE]
    outer_runs = RUNS + 4 * kept
    weighed, mean_at, spread_at = 2 * tile, 6 * tile, 7 * tile
    pivot_at, added_at, squared_at = 9 * tile, 10 * tile, 11 * tile
    gain_at, shift_at = tile, 2 * tile
    for task in range(lo, hi):
        if MEASURE and APPLY:  # a task is a tile
            block = task
            first = 0
            last = rows * pieces
        else:  # a task is a unit
            block = task // units
            first = (task - block * units) * portion
            last = min(first + portion, rows * pieces)
        number = block // tiles
        left = (block - number * tiles) * tile
        width = min(tile, geometry[WIDTH] - left)
        slice_ = number * (geometry[WIDTH] // fold) + left // fold
        x_tile, y_tile, p_tile = offsets(geometry, RUNS, kept, number)
        x_tile += left
        y_tile += left

        if MEASURE:
            before = 0.0
            for begin in range(first, last, portion):
                counted = measure(x, y, geometry, x_tile, y_tile, width, begin, min(begin + portion, last), work, lanes)
                if APPLY and units > 1:
                    for lane in range(0, width, LANES):
                        mean, spread = load(work, mean_at + lane), load(work, spread_at + lane)
                        pivot = load(work, pivot_at + lane)
                        if begin == 0:
                            pivot = finite(mean)
                            store(work, pivot_at + lane, pivot)
                            store(work, added_at + lane, (mean - pivot) * counted)
                            store(work, squared_at + lane, spread)
                        else:
                            added, squared = joined(
                                mean, spread, counted, pivot,
                                load(work, added_at + lane), load(work, squared_at + lane), before,
                            )  # fmt: skip
                            store(work, added_at + lane, added)
                            store(work, squared_at + lane, squared)
                before += counted
            if APPLY and units > 1:
                for lane in range(0, width, LANES):
                    mean = load(work, pivot_at + lane) + load(work, added_at + lane) / before
                    store(work, mean_at + lane, mean)
                    store(work, spread_at + lane, load(work, squared_at + lane))
            if KEEP:
                index = slice_ if APPLY else (task - block * units) * slices + slice_
                for lane in range(0, width, fold):
                    means[index] = work[mean_at + lane]
                    spreads[index] = work[spread_at + lane]
                    if WEIGHTED:
                        spreads[units * slices + index] = work[weighed + lane]
                    index += 1
        else:
            index = slice_
            for left_lane in range(0, width, fold):
                for lane in range(left_lane, left_lane + fold):
                    work[mean_at + lane] = means[index]
                    work[spread_at + lane] = spreads[index]
                index += 1

        if APPLY:
            for lane in range(0, width, LANES):
                mean = load(work, mean_at + lane)
                variance = load(work, spread_at + lane) / numbers[DIVISOR]
                gain = inverse_deviation(variance, numbers[EPSILON], numbers[PLACEMENT])
                centre = narrow(mean)
                shift = (widen(centre) - mean) * gain  # the rounding error of the mean
                if INVERT:
                    gain = inverse(gain)
                if SCALING == 1:
                    scale = widen(lane_parameters(scaling, p_tile, p_lane, left + lane, width - lane))
                    gain *= scale
                    shift *= scale
                if BIASES == 1 and not INVERT:
                    shift += widen(lane_parameters(biases, p_tile, p_lane, left + lane, width - lane))
                if INVERT:
                    centre = narrow(splat(0.0))
                    if BIASES == 1:
                        centre = lane_parameters(biases, p_tile, p_lane, left + lane, width - lane)
                    shift = mean
                store(lanes, lane, centre)
                store(lanes, gain_at + lane, narrow(gain))
                store(lanes, shift_at + lane, narrow(shift))
            for part in range(first, last):
                row, start, size = part_at(part, length, piece, pieces)
                x_row, y_row, p_row = offsets(geometry, outer_runs, outer, row)
                # Write in the order of memory: line by line, or all lines if they are as narrow as one step over lanes.
                streamed = STREAM == 1 and width % LANES == 0 and is_aligned(y, y_tile + y_row, y_line)
                if width == WIDE or width <= LANES:
                    normalize(
                        x, x_tile + x_row + start * x_line, x_line, y, y_tile + y_row + start * y_line, y_line,
                        size, width, lanes, tile, scaling, biases, p_tile + p_row + start * p_line, p_line, left,
                        streamed,
                    )  # fmt: skip
                else:
                    for line in range(start, start + size):
                        normalize(
                            x, x_tile + x_row + line * x_line, x_line, y, y_tile + y_row + line * y_line, y_line,
                            1, width, lanes, tile, scaling, biases, p_tile + p_row + line * p_line, p_line, left,
                            streamed,
                        )  # fmt: skip
    if STREAM:
        fence()


def measure(
    x: Array, y: Array, geometry: Array, x_tile: int, y_tile: int, width: int, first: int, last: int,
    work: Array, lanes: Array,
) -> float:  # fmt: skip
    """Write mean and second moment of each lane of one unit to the scratch; return the elements of a slice in it."""
    length, piece, pieces = geometry[LENGTH], geometry[PIECE], geometry[PIECES]
    outer, tile, fold = geometry[OUTER], geometry[TILE], geometry[FOLD]
    x_line, y_line = geometry[X_LINE], geometry[Y_LINE]
    outer_runs = RUNS + 4 * geometry[KEPT]
    squares, weighed, recent = tile, 2 * tile, (3 if WEIGHTED else 2) * tile
    mean_at, spread_at, again = 6 * tile, 7 * tile, 8 * tile
    count = 0
    for lane in range(0, width, LANES):
        store(lanes, lane, splat(real(0)))
        store(work, again + lane, splat(1.0))
    step = 1 if WEIGHTED else min(TOGETHER if width > WIDE else piece if EXACT == 1 else REGISTER_LINES, piece)
    # Attempts: 0 over a sample, or in float32; 1 over all lines; 2 again, where 1 was not exact enough.
    for attempt in range(1 if EXACT == 1 else 0, 3):
        end = last if attempt > 0 or EXACT else min(last, first - -SAMPLE_LINES // piece)
        # The number of recent sums that are added up, and the number of times they are flushed, are about the same.
        often = 8 + int(math.sqrt((end - first) * -(-piece // step)))
        turn = 0
        for lane in range(2 * recent):
            work[lane] = 0.0
        count = 0
        for part in range(first, end):
            row, start, size = part_at(part, length, piece, pieces)
            if attempt == 0 and not EXACT:
                size = min(size, SAMPLE_LINES)
            x_row, y_row, _ = offsets(geometry, outer_runs, outer, row)
            for line in range(start, start + size, step):
                if WEIGHTED:
                    sums_weighted(
                        x, x_tile + x_row + line * x_line, y, y_tile + y_row + line * y_line, width,
                        lanes, work, recent, squares, weighed,
                    )  # fmt: skip
                else:
                    lines = min(step, start + size - line)
                    at = x_tile + x_row + line * x_line
                    if EXACT != 2:
                        sums_about(x, at, x_line, lines, width, lanes, 0.0, work, recent, squares)
                    elif attempt == 0:
                        sums_about(x, at, x_line, lines, width, lanes, real(SQUARES_START), work, recent, squares)
                    else:  # rare, so it compiles only the simplest loop
                        for lane in range(0, width, LANES):
                            add_lines(
                                x, at + lane, x_line, lines, width - lane, 0, lanes, 0.0, work,
                                recent, squares, lane,
                            )  # fmt: skip
                turn += 1
                if turn == often:
                    flush(work, recent)
                    turn = 0
            count += size * fold
        flush(work, recent)
        if fold > 1:
            fold_lanes(work, width, fold)
            fold_lanes(work[squares:], width, fold)
            if WEIGHTED:
                fold_lanes(work[weighed:], width, fold)
        unfinished = 0.0
        for lane in range(0, width, LANES):
            squared = load(work, squares + lane)
            counted = larger(load(work, weighed + lane), LEAST_COUNT) if WEIGHTED else splat(np.float64(count))
            mean, spread = moments(load(work, lane), squared, counted, widen(load(lanes, lane)))
            flag = load(work, again + lane)
            mean = choose(flag, mean, load(work, mean_at + lane))
            spread = choose(flag, spread, load(work, spread_at + lane))
            if attempt == 1:
                flag = choose(flag, cancelled(squared, spread), splat(0.0))
            elif EXACT == 2:
                flag = rounded(squared, spread, counted)
            if attempt > 0 or EXACT != 2:
                store(lanes, lane, narrow(finite(mean)))  # the pivot of the next attempt
            store(work, again + lane, flag)
            unfinished += total(first_lanes(flag, width - lane))
            store(work, mean_at + lane, mean)
            store(work, spread_at + lane, spread)
        if unfinished == 0.0:
            break
    return np.float64(count)


def finite(numbers: Vector) -> Vector:
    """Return the numbers, with 0 in place of infinities and NaN."""
    return choose(exceeds(numbers, -math.inf) * exceeds(numbers * -1.0, -math.inf), numbers, splat(0.0))


def flush(work: Array, recent: int) -> None:
    """Add the recent sums to the older sums, and reset them to 0."""
    for lane in range(0, recent, LANES):
        store(work, lane, load(work, lane) + load(work, recent + lane))
        store(work, recent + lane, splat(0.0))


def fold_lanes(sums: Array, width: int, fold: int) -> None:
    """Replace the sum of each lane by the sum over all lanes of its slice."""
    for left in range(0, width, fold):
        sum_ = 0.0
        for lane in range(left, left + fold):
            sum_ += sums[lane]
        for lane in range(left, left + fold):
            sums[lane] = sum_


def lane_parameters(parameters: Array, start: int, step: int, lane: int, count: int) -> Vector:
    """Return the parameters of neighbouring lanes: one for each if the step is 1, the same for all if it is 0."""
    if step == 0:
        return splat(parameters[start])
    return load_part(parameters, start + lane, count)


def sums_about(
    x: Array, start: int, line: int, lines: int, width: int, pivots: Array, least: Any, work: Array,
    recent: int, squares: int,
) -> None:  # fmt: skip
    """Add the deviations of each lane from its pivot, and their squares, to the sums of the lane.

    Sums over these lines have the type of ``least``, and those of squares start at its value. If it is not 0, every
    pivot must be 0.
    """
    lane = 0
    while lane + WIDE <= width and lines != TOGETHER:
        added = splat_wide(least - least)
        squared = splat_wide(least)
        pivot = like(load_wide(pivots, lane), least) if least == 0 else splat_wide(least - least)
        i = start + lane
        for _ in range(lines):
            vector = like(load_wide(x, i), least) - pivot
            added += vector
            squared = muladd(vector, vector, squared)
            i += line
        at = recent + lane
        store(work, at, load_wide(work, at) + widen(added))
        store(work, squares + at, load_wide(work, squares + at) + widen(squared))
        lane += WIDE
    while lines == TOGETHER and lane + LANES <= width:
        add_lines(x, start + lane, line, TOGETHER, LANES, TOGETHER * line, pivots, least, work, recent, squares, lane)
        lane += LANES
    while lane < width:
        add_lines(x, start + lane, line, lines, width - lane, 0, pivots, least, work, recent, squares, lane)
        lane += LANES


def add_lines(
    x: Array, start: int, line: int, lines: int, count: int, ahead: int, pivots: Array, least: Any, work: Array,
    recent: int, squares: int, lane: int,
) -> None:  # fmt: skip
    """Do the same for up to a vector of lanes. If ``ahead`` is not 0, prefetch the elements at that distance."""
    added = splat(least - least)
    squared = splat(least)
    pivot = like(load(pivots, lane), least) if least == 0 else splat(least - least)
    for _ in range(lines):
        if ahead != 0:
            prefetch(x, start + ahead)
        vector = like(load_part(x, start, count), least) - pivot
        added += vector
        squared = muladd(vector, vector, squared)
        start += line
    at = recent + lane
    store(work, at, load(work, at) + widen(added))
    store(work, squares + at, load(work, squares + at) + widen(squared))


def sums_weighted(
    x: Array, x_start: int, weights: Array, w_start: int, width: int, pivots: Array,
    work: Array, recent: int, squares: int, weighed: int,
) -> None:  # fmt: skip
    """Add weighted deviations of one line, their squares and the weights to the sums; 0 times NaN counts as 0."""
    zero = splat(0.0)
    for lane in range(0, width, LANES):
        count = width - lane
        at = recent + lane
        weight = widen(load_part(weights, w_start + lane, count))
        vector = choose(weight, widen(load_part(x, x_start + lane, count)) - widen(load(pivots, lane)), zero)
        store(work, at, load(work, at) + weight * vector)
        store(work, squares + at, load(work, squares + at) + weight * (vector * vector))
        store(work, weighed + at, load(work, weighed + at) + weight)


def normalize(
    x: Array, x_start: int, x_line: int, y: Array, y_start: int, y_line: int, lines: int, width: int,
    lanes: Array, tile: int, scaling: Array, biases: Array, p_start: int, p_line: int, left: int, streamed: bool,
) -> None:  # fmt: skip
    """Write some lines. For more than one line, the factors of WIDE lanes stay in registers."""
    lane = 0
    while lines != 1 and lane + WIDE <= width:
        centre = load_wide(lanes, lane)
        gain = load_wide(lanes, tile + lane)
        shift = load_wide(lanes, 2 * tile + lane)
        for i in range(lines):
            p_at, y_at = p_start + i * p_line, y_start + i * y_line + lane
            scale, bias = gain, shift
            if SCALING == 2:
                scale = load_wide(scaling, p_at + left + lane)
            if SCALING == 3:
                scale = splat_wide(scaling[p_at])
            if BIASES == 2:
                bias = load_wide(biases, p_at + left + lane)
            if BIASES == 3:
                bias = splat_wide(biases[p_at])
            vector = transformed(load_wide(x, x_start + i * x_line + lane), centre, gain, shift, scale, bias)
            if streamed:
                stream_aligned(y, y_at, vector)
            else:
                store(y, y_at, vector)
        lane += WIDE
    while lane + LANES <= width:
        normalize_at(
            x, x_start, x_line, y, y_start, y_line, lines, lane, LANES, lanes, tile,
            scaling, biases, p_start, p_line, left, streamed,
        )  # fmt: skip
        lane += LANES
    if lane < width:
        normalize_at(
            x, x_start, x_line, y, y_start, y_line, lines, lane, width - lane, lanes, tile,
            scaling, biases, p_start, p_line, left, False,
        )  # fmt: skip


def normalize_at(
    x: Array, x_start: int, x_line: int, y: Array, y_start: int, y_line: int, lines: int, lane: int, count: int,
    lanes: Array, tile: int, scaling: Array, biases: Array, p_start: int, p_line: int, left: int, streamed: bool,
) -> None:  # fmt: skip
    """Write up to a vector of lanes of some lines. If the count is the constant LANES, the mask is removed."""
    centre, gain, shift = load(lanes, lane), load(lanes, tile + lane), load(lanes, 2 * tile + lane)
    for i in range(lines):
        p_at, y_at = p_start + i * p_line, y_start + i * y_line + lane
        scale, bias = gain, shift
        if SCALING == 2:
            scale = load_part(scaling, p_at + left + lane, count)
        if SCALING == 3:
            scale = splat(scaling[p_at])
        if BIASES == 2:
            bias = load_part(biases, p_at + left + lane, count)
        if BIASES == 3:
            bias = splat(biases[p_at])
        vector = load_part(x, x_start + i * x_line + lane, count)
        vector = transformed(vector, centre, gain, shift, scale, bias)
        if streamed:
            stream_aligned(y, y_at, vector)
        else:
            store_part(y, y_at, count, vector)
