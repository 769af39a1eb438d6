"""Columns: the innermost run is kept, so a tile of neighbouring slices is worked on at once, a lane each.

Batch normalization over features, batch and instance normalization with channels last, layer normalization over the
channels of an array with channels first. Group normalization with channels last folds neighbouring lanes into one
slice when they have been summed.

The geometry is that of ``rows`` with lines, runs of lanes, in the place of elements: a slice tile is a set of blocks
of lines, the innermost aggregated run being LENGTH lines long. The workspace holds five numbers a lane in float64,
and the last array three in the type of the arithmetic.
"""

from __future__ import annotations

import numpy as np

from .steps import cancelled, inverse_deviation, moments, offsets, standardized
from .vector import LANES, Array, load, load_part, splat, squared_onto, store, store_part, widen

MEASURE = 1  # take the moments from the input; otherwise read them
KEEP = 0  # write the moments
APPLY = 1  # write the output
SCALING = 0  # 0: absent, 1: constant along a lane, 2: varies from lane to lane and line to line, 3: one a line
BIASES = 0
real = np.float32  # the type of the arithmetic; moments are always float64

LENGTH = 0  # lines in the innermost aggregated run
PIECE = 1  # lines in a piece of it; the last piece may be shorter
PIECES = 2
ROWS = 3  # how often that run occurs in a slice
PORTION = 4  # pieces in a unit; the last unit of a slice may have fewer
UNITS = 5  # units in a slice: 1 unless a tile of slices is larger than the cache
SLICES = 6
KEPT = 7  # runs in the list of those that tell tiles apart
OUTER = 8  # runs in the list of the aggregated ones outside the innermost
WIDTH = 9  # lanes in a line
TILE = 10  # lanes in a tile; the last tile of a line may have fewer
TILES = 11
FOLD = 12  # neighbouring lanes that belong to one slice
X_LINE = 13  # strides from line to line
Y_LINE = 14
P_LINE = 15
P_LANE = 16  # stride of a parameter that is constant along a lane, from lane to lane: 0 or 1
RUNS = 17


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
) -> None:
    """Take the moments of one tile of slices after another, and write its output while it is still in the cache."""
    length, piece, pieces, rows = geometry[LENGTH], geometry[PIECE], geometry[PIECES], geometry[ROWS]
    portion, units, slices = geometry[PORTION], geometry[UNITS], geometry[SLICES]
    kept, outer = geometry[KEPT], geometry[OUTER]
    tile, tiles, fold, p_lane = geometry[TILE], geometry[TILES], geometry[FOLD], geometry[P_LANE]
    x_line, y_line, p_line = geometry[X_LINE], geometry[Y_LINE], geometry[P_LINE]
    outer_runs = RUNS + 4 * kept
    squares, mean_at, spread_at, again = tile, 2 * tile, 3 * tile, 4 * tile
    gain_at, shift_at = tile, 2 * tile
    for unit in range(lo, hi):
        block = unit // units
        first = (unit - block * units) * portion
        last = min(first + portion, rows * pieces)
        number = block // tiles
        left = (block - number * tiles) * tile
        width = min(tile, geometry[WIDTH] - left)
        slice_ = number * (geometry[WIDTH] // fold) + left // fold
        x_tile, y_tile, p_tile = offsets(geometry, RUNS, kept, number)
        x_tile += left
        y_tile += left

        if MEASURE:
            for lane in range(width):
                lanes[lane] = real(0)
                work[again + lane] = 1.0
            for attempt in range(2):
                for lane in range(2 * tile):
                    work[lane] = 0.0
                count = 0
                for part in range(first, last):
                    row = part // pieces if pieces > 1 else part
                    start = (part - row * pieces) * piece
                    size = min(piece, length - start)
                    x_row, y_row, p_row = offsets(geometry, outer_runs, outer, row)
                    sums_about(x, x_tile + x_row + start * x_line, x_line, size, width, lanes, work, squares)
                    count += size * fold
                unfinished = False
                for lane in range(0, width, fold):
                    if work[again + lane] == 0.0:
                        continue
                    added = 0.0
                    squared = 0.0
                    for beside in range(lane, lane + fold):
                        added += work[beside]
                        squared += work[squares + beside]
                    mean, spread = moments(added, squared, count, np.float64(lanes[lane]))
                    work[mean_at + lane] = mean
                    work[spread_at + lane] = spread
                    if attempt == 0 and cancelled(squared, spread):
                        unfinished = True
                        for beside in range(lane, lane + fold):
                            lanes[beside] = real(mean)
                    else:
                        work[again + lane] = 0.0
                if not unfinished:
                    break
            if KEEP:
                for lane in range(0, width, fold):
                    index = (unit - block * units) * slices + slice_ + lane // fold
                    means[index] = work[mean_at + lane]
                    spreads[index] = work[spread_at + lane]
        else:
            for lane in range(0, width, fold):
                work[mean_at + lane] = means[slice_ + lane // fold]
                work[spread_at + lane] = spreads[slice_ + lane // fold]

        if APPLY:
            for slice_lane in range(0, width, fold):
                mean = work[mean_at + slice_lane]
                inverse = inverse_deviation(work[spread_at + slice_lane] / numbers[0], numbers[1], numbers[2])
                centre = real(mean)
                remainder = (np.float64(centre) - mean) * inverse  # what rounding the mean lost
                for lane in range(slice_lane, slice_lane + fold):
                    gain = inverse
                    shift = remainder
                    if SCALING == 1:
                        gain *= scaling[p_tile + (left + lane) * p_lane]
                        shift *= scaling[p_tile + (left + lane) * p_lane]
                    if BIASES == 1:
                        shift += biases[p_tile + (left + lane) * p_lane]
                    lanes[lane] = centre
                    lanes[gain_at + lane] = real(gain)
                    lanes[shift_at + lane] = real(shift)
            for part in range(first, last):
                row = part // pieces if pieces > 1 else part
                start = (part - row * pieces) * piece
                size = min(piece, length - start)
                x_row, y_row, p_row = offsets(geometry, outer_runs, outer, row)
                normalize(
                    x, x_tile + x_row + start * x_line, x_line, y, y_tile + y_row + start * y_line, y_line,
                    size, width, lanes, tile, scaling, biases, p_tile + p_row + start * p_line, p_line, left,
                )  # fmt: skip


def sums_about(
    x: Array, start: int, line: int, lines: int, width: int, pivots: Array, sums: Array, squares: int
) -> None:
    """Add each lane's deviations from its pivot, and their squares, to its sums."""
    for lane in range(0, width, LANES):
        count = width - lane
        pivot = widen(load(pivots, lane))
        added = load(sums, lane)
        squared = load(sums, squares + lane)
        i = start + lane
        for _ in range(lines):
            vector = widen(load(x, i) if count >= LANES else load_part(x, i, count)) - pivot
            added += vector
            squared = squared_onto(vector, squared)
            i += line
        store(sums, lane, added)
        store(sums, squares + lane, squared)


def normalize(
    x: Array, x_start: int, x_line: int, y: Array, y_start: int, y_line: int, lines: int, width: int,
    lanes: Array, tile: int, scaling: Array, biases: Array, p_start: int, p_line: int, left: int,
) -> None:  # fmt: skip
    """Write a block of lines, sixteen lanes after another."""
    for lane in range(0, width, LANES):
        count = width - lane
        centre = load(lanes, lane)
        gain = load(lanes, tile + lane)
        shift = load(lanes, 2 * tile + lane)
        x_at = x_start + lane
        y_at = y_start + lane
        p_at = p_start
        for _ in range(lines):
            vector = standardized(load(x, x_at) if count >= LANES else load_part(x, x_at, count), centre, gain, shift)
            if SCALING == 2:
                vector *= load_part(scaling, p_at + left + lane, count)
            if SCALING == 3:
                vector *= splat(scaling[p_at])
            if BIASES == 2:
                vector += load_part(biases, p_at + left + lane, count)
            if BIASES == 3:
                vector += splat(biases[p_at])
            if count >= LANES:
                store(y, y_at, vector)
            else:
                store_part(y, y_at, count, vector)
            x_at += x_line
            y_at += y_line
            p_at += p_line
