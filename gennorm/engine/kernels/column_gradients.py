"""Columns, backward pass: from the gradient of the output to those of the input and of the parameters.

``row_gradients`` explains the formulas for one slice; these kernels apply them to a tile of neighbouring slices. The
scratch array ``work`` has eight numbers for each lane in float64. ``lanes`` has five for each lane in the type of the
arithmetic and then TERMS more: for each of TOGETHER lines, one vector of terms for its scaling and one for its biases.
"""

from __future__ import annotations

import numpy as np

from .columns import (
    FOLD,
    P_LANE,
    P_LINE,
    RUNS,
    TILE,
    TILES,
    TOGETHER,
    WIDTH,
    X_LINE,
    Y_LINE,
    fold_lanes,
    lane_parameters,
)
from .rows import slice_fields
from .steps import MEAN, PER_COUNT, PER_DEGREE, VARIANCE, contribution, offsets, part_at, slopes
from .vector import (
    LANES,
    Array,
    Vector,
    choose,
    exceeds,
    fence,
    first_lanes,
    is_aligned,
    load,
    load_part,
    muladd,
    narrow,
    prefetch,
    splat,
    store,
    store_part,
    stream_aligned,
    total,
    widen,
)

SUMS = 1  # compute the sums of slices and the gradients of parameters; otherwise read the sums
APPLY = 1  # write the input's gradient; otherwise write the sums
SCALING = 0  # 0: absent, 1: constant along a lane, 2: varies over lanes and lines, 3: one number for each line
BIASES = 0
TANGENT = 0  # a directional derivative: the scaling multiplies the result instead of ``dy``
WEIGHTED = 0  # 1: the mask selects where statistics contribute to the gradient, 2: the terms of the sums
STREAM = 0  # use non-temporal stores where lines are whole vectors at addresses that are multiples of 16
real = np.float32

PRODUCT_VECTORS = 32  # vectors of lanes whose terms are added up before they are added to the gradients in float64
TERMS = 2 * TOGETHER * LANES


def backward(
    x: Array,
    dy: Array,
    dx: Array,
    weights: Array,
    scaling: Array,
    factors: Array,
    sums: Array,
    gradients: Array,
    geometry: Array,
    numbers: Array,
    work: Array,
    lanes: Array,
    block: int,
    parameters: int,
    often: int,
    lo: int,
    hi: int,
    request: int,
) -> None:
    """Take the sums of tiles of slices, and write their gradient while they are still in the cache.

    SUMS and APPLY have the meaning that they have in ``row_gradients.backward``.
    """
    length, piece, pieces, rows, portion, units, slices, kept, outer = slice_fields(geometry)
    tile, tiles, fold, p_lane = geometry[TILE], geometry[TILES], geometry[FOLD], geometry[P_LANE]
    x_line, y_line, p_line = geometry[X_LINE], geometry[Y_LINE], geometry[P_LINE]
    outer_runs = RUNS + 4 * kept
    squared_at, mean_at, inverse_at, by_sum_at, by_product_at = tile, 2 * tile, 3 * tile, 4 * tile, 5 * tile
    slice_at, lone = 6 * tile, length * rows * fold == 1
    tasks = units * tiles * (slices // (geometry[WIDTH] // fold))
    for unit in range(lo * block, min(hi * block, tasks)):
        place = unit // units
        position = unit - place * units
        first = position * portion
        last = min(first + portion, rows * pieces)
        number = place // tiles
        left = (place - number * tiles) * tile
        width = min(tile, geometry[WIDTH] - left)
        slice_ = number * (geometry[WIDTH] // fold) + left // fold
        x_tile, y_tile, p_tile = offsets(geometry, RUNS, kept, number)
        x_tile += left
        y_tile += left
        to_scaling = 2 * parameters * (unit // block) + p_tile
        to_biases = to_scaling + parameters
        if position == 0 or unit == lo * block or not (SUMS and APPLY):
            index = slice_
            for folded in range(0, width, fold):
                for lane in range(folded, folded + fold):
                    work[mean_at + lane] = factors[MEAN * slices + index]
                    work[inverse_at + lane] = factors[VARIANCE * slices + index]
                    work[by_sum_at + lane] = factors[PER_COUNT * slices + index]
                    work[by_product_at + lane] = factors[PER_DEGREE * slices + index]
                index += 1
            for lane in range(0, width, LANES):
                mean = load(work, mean_at + lane)
                per_count, per_degree = load(work, by_sum_at + lane), load(work, by_product_at + lane)
                inverse, by_sum, by_product = slopes(load(work, inverse_at + lane), per_count, per_degree, numbers)
                if lone:  # the output does not depend on the only element of a slice
                    zero = splat(0.0)
                    depends = splat(1.0) - exceeds(per_count, 0.5)
                    inverse = choose(depends, inverse, zero)
                    by_sum = choose(depends, by_sum, zero)
                    by_product = choose(depends, by_product, zero)
                store(lanes, 3 * tile + lane, narrow(per_degree))
                store(lanes, 4 * tile + lane, narrow(per_count))
                store(work, inverse_at + lane, inverse)
                store(work, by_sum_at + lane, by_sum)
                store(work, by_product_at + lane, by_product)
                centre = narrow(mean)
                store(lanes, lane, centre)
                store(lanes, tile + lane, narrow(inverse))
                store(lanes, 2 * tile + lane, narrow((widen(centre) - mean) * inverse))

        if SUMS:
            for lane in range(2 * tile):
                work[lane] = 0.0
            for part in range(first, last):
                row, start, size = part_at(part, length, piece, pieces)
                x_row, y_row, p_row = offsets(geometry, outer_runs, outer, row)
                # If lines are one vector wide, its sums stay in registers for all lines. ``lanes`` has room for the
                # terms of TOGETHER lines.
                step = size if width <= LANES and max(SCALING, BIASES) < 3 else TOGETHER
                for line in range(start, start + size, step):
                    p_at = p_row + line * p_line
                    for lane in range(0, width, PRODUCT_VECTORS * LANES):
                        products(
                            x, x_tile + x_row + line * x_line, x_line,
                            dy, weights, y_tile + y_row + line * y_line, y_line, min(step, start + size - line),
                            lane, min(lane + PRODUCT_VECTORS * LANES, width), lanes, tile, work,
                            scaling, p_tile + p_at, p_line, left, gradients, to_scaling + p_at, to_biases + p_at,
                        )  # fmt: skip
            for lane in range(0, width, LANES):
                count = width - lane
                one = load(work, lane)
                rest = widen(load(lanes, lane)) - load(work, mean_at + lane)
                two = load(work, squared_at + lane) + rest * one
                if SCALING == 1 and not TANGENT:
                    add_gradients(
                        gradients, to_scaling, p_lane, left + lane, count, two * load(work, inverse_at + lane)
                    )
                if BIASES == 1:
                    add_gradients(gradients, to_biases, p_lane, left + lane, count, one)
                if SCALING == 1 and not TANGENT:
                    scale = widen(lane_parameters(scaling, p_tile, p_lane, left + lane, count))
                    one = one * scale
                    two = two * scale
                store(work, lane, one)
                store(work, squared_at + lane, two)
            if fold > 1:
                fold_lanes(work, width, fold)
                fold_lanes(work[squared_at:], width, fold)
            if APPLY and units > 1:
                for lane in range(0, width, LANES):
                    sum_: Vector = load(work, lane)
                    product: Vector = load(work, squared_at + lane)
                    if position > 0:
                        sum_ = load(work, slice_at + lane) + sum_
                        product = load(work, slice_at + tile + lane) + product
                    store(work, slice_at + lane, sum_)
                    store(work, slice_at + tile + lane, product)
                    if position + 1 == units:
                        store(work, lane, sum_)
                        store(work, squared_at + lane, product)
            if not APPLY:
                index = position * 2 * slices + slice_
                for lane in range(0, width, fold):
                    sums[index] = work[lane]
                    sums[index + slices] = work[squared_at + lane]
                    index += 1
        else:
            index = slice_
            for folded in range(0, width, fold):
                for lane in range(folded, folded + fold):
                    work[lane] = sums[index]
                    work[squared_at + lane] = sums[slices + index]
                index += 1

        if APPLY and (not SUMS or position + 1 == units):
            for lane in range(0, width, LANES):
                # An absent term is 0 even if its sum is NaN.
                zero = splat(0.0)
                slope: Vector = load(work, squared_at + lane) * load(work, by_product_at + lane)
                slope = choose(widen(load(lanes, 3 * tile + lane)), slope, zero)
                shift: Vector = load(work, lane) * load(work, by_sum_at + lane)
                shift = choose(widen(load(lanes, 4 * tile + lane)), shift, zero)
                shift += slope * (widen(load(lanes, lane)) - load(work, mean_at + lane))
                gain = load(work, inverse_at + lane)
                if SCALING == 1:
                    scale = widen(lane_parameters(scaling, p_tile, p_lane, left + lane, width - lane))
                    gain = gain * scale
                    if TANGENT:
                        slope = slope * scale
                        shift = shift * scale
                store(lanes, tile + lane, narrow(gain))
                store(lanes, 3 * tile + lane, narrow(slope))
                store(lanes, 4 * tile + lane, narrow(shift))
            for part in range(0 if SUMS else first, last):
                row, start, size = part_at(part, length, piece, pieces)
                x_row, y_row, p_row = offsets(geometry, outer_runs, outer, row)
                # Write in the order of memory: line by line, or all lines if they are one vector wide.
                streamed = STREAM == 1 and width % LANES == 0 and is_aligned(dx, y_tile + y_row, y_line)
                if width <= LANES:
                    combine(
                        x, x_tile + x_row + start * x_line, x_line,
                        dy, dx, weights, y_tile + y_row + start * y_line, y_line,
                        size, width, lanes, tile, scaling, p_tile + p_row + start * p_line, p_line, left, streamed,
                    )  # fmt: skip
                else:
                    for line in range(start, start + size):
                        combine(
                            x, x_tile + x_row + line * x_line, x_line,
                            dy, dx, weights, y_tile + y_row + line * y_line, y_line,
                            1, width, lanes, tile, scaling, p_tile + p_row + line * p_line, p_line, left, streamed,
                        )  # fmt: skip
    if STREAM:
        fence()


def add_gradients(gradients: Array, start: int, step: int, lane: int, count: int, terms: Vector) -> None:
    """Add the terms of neighbouring lanes to the gradients of their parameters: of one each, or all to the same one."""
    if step == 0:
        gradients[start] += total(first_lanes(terms, count))
    else:
        at = start + lane
        store_part(gradients, at, count, load_part(gradients, at, count) + terms)


def products(
    x: Array, x_start: int, x_line: int, dy: Array, weights: Array, y_start: int, y_line: int, lines: int, lane: int,
    stop: int, lanes: Array, tile: int, work: Array, scaling: Array, p_start: int, p_line: int, left: int,
    gradients: Array, to_scaling: int, to_biases: int,
) -> None:  # fmt: skip
    """Add the terms of some lanes of a few lines to the sums of the lanes and to the gradients of parameters."""
    terms_at = 5 * tile
    if SCALING == 3 or BIASES == 3:
        for i in range(0, TERMS, LANES):
            store(lanes, terms_at + i, splat(real(0)))
    while lines == TOGETHER and lane + LANES <= stop:
        products_at(
            x, x_start, x_line, dy, weights, y_start, y_line, TOGETHER, lane, LANES, lanes, tile, work,
            scaling, p_start, p_line, left, gradients, to_scaling, to_biases,
        )  # fmt: skip
        lane += LANES
    while lane < stop:
        products_at(
            x, x_start, x_line, dy, weights, y_start, y_line, lines, lane, stop - lane, lanes, tile, work,
            scaling, p_start, p_line, left, gradients, to_scaling, to_biases,
        )  # fmt: skip
        lane += LANES
    for i in range(lines):
        at = terms_at + 2 * i * LANES
        if SCALING == 3 and not TANGENT:
            gradients[to_scaling + i * p_line] += total(widen(load(lanes, at)))
        if BIASES == 3:
            gradients[to_biases + i * p_line] += total(widen(load(lanes, at + LANES)))


def products_at(
    x: Array, x_start: int, x_line: int, dy: Array, weights: Array, y_start: int, y_line: int, lines: int,
    lane: int, count: int, lanes: Array, tile: int, work: Array, scaling: Array, p_start: int, p_line: int, left: int,
    gradients: Array, to_scaling: int, to_biases: int,
) -> None:  # fmt: skip
    """Do the same for up to a vector of lanes. Terms of TOGETHER lines are added up before they become float64."""
    centre, inverse, rest = load(lanes, lane), load(lanes, tile + lane), load(lanes, 2 * tile + lane)
    sum_ = load(work, lane)
    products_ = load(work, tile + lane)
    for first in range(0, lines, TOGETHER):
        added = splat(real(0))
        squared = splat(real(0))
        for i in range(first, min(first + TOGETHER, lines)):
            x_at, y_at, p_at = x_start + i * x_line + lane, y_start + i * y_line + lane, i * p_line
            if lines == TOGETHER:
                prefetch(x, x_at + TOGETHER * x_line)
                prefetch(dy, y_at + TOGETHER * y_line)
            deviation: Vector = load_part(x, x_at, count) - centre
            gradient = load_part(dy, y_at, count)
            gradient, deviation = contribution(gradient, deviation, weights, y_at, count)
            term = gradient
            if SCALING > 1 and not TANGENT:
                term = gradient * first_lanes(muladd(deviation, inverse, rest), count)
            terms_at = 5 * tile + 2 * i * LANES
            if SCALING == 3 and not TANGENT:
                store(lanes, terms_at, load(lanes, terms_at) + term)
            if BIASES == 3:
                store(lanes, terms_at + LANES, load(lanes, terms_at + LANES) + gradient)
            if SCALING == 2 and not TANGENT:
                at = to_scaling + p_at + left + lane
                store_part(gradients, at, count, load_part(gradients, at, count) + widen(term))
            if BIASES == 2:
                at = to_biases + p_at + left + lane
                store_part(gradients, at, count, load_part(gradients, at, count) + widen(gradient))
            if SCALING == 2 and not TANGENT:
                gradient = gradient * load_part(scaling, p_start + p_at + left + lane, count)
            if SCALING == 3 and not TANGENT:
                gradient = gradient * splat(scaling[p_start + p_at])
            added += gradient
            squared = muladd(gradient, deviation, squared)
        sum_ += widen(added)
        products_ += widen(squared)
    store(work, lane, sum_)
    store(work, tile + lane, products_)


def combine(
    x: Array, x_start: int, x_line: int, dy: Array, dx: Array, weights: Array, y_start: int, y_line: int, lines: int,
    width: int, lanes: Array, tile: int, scaling: Array, p_start: int, p_line: int, left: int, streamed: bool,
) -> None:  # fmt: skip
    """Write the gradient of some lines, a vector of lanes after another."""
    for lane in range(0, width - LANES + 1, LANES):
        combine_at(
            x, x_start, x_line, dy, dx, weights, y_start, y_line, lines, lane, LANES,
            lanes, tile, scaling, p_start, p_line, left, streamed,
        )  # fmt: skip
    lane = width - width % LANES
    if lane < width:
        combine_at(
            x, x_start, x_line, dy, dx, weights, y_start, y_line, lines, lane, width - lane,
            lanes, tile, scaling, p_start, p_line, left, False,
        )  # fmt: skip


def combine_at(
    x: Array, x_start: int, x_line: int, dy: Array, dx: Array, weights: Array, y_start: int, y_line: int, lines: int,
    lane: int, count: int, lanes: Array, tile: int, scaling: Array, p_start: int, p_line: int, left: int,
    streamed: bool,
) -> None:  # fmt: skip
    """Write the gradient of up to a vector of lanes of some lines."""
    centre, gain = load(lanes, lane), load(lanes, tile + lane)
    slope, shift = load(lanes, 3 * tile + lane), load(lanes, 4 * tile + lane)
    for i in range(lines):
        p_at, y_at = p_start + i * p_line, y_start + i * y_line + lane
        gradient = load_part(dy, y_at, count)
        scale = gain
        if SCALING == 2:
            scale = load_part(scaling, p_at + left + lane, count)
        if SCALING == 3:
            scale = splat(scaling[p_at])
        if SCALING > 1 and not TANGENT:
            gradient = gradient * scale
        deviation: Vector = load_part(x, x_start + i * x_line + lane, count) - centre
        statistics = muladd(deviation, slope, shift)
        if WEIGHTED == 1:
            statistics = choose(load_part(weights, y_at, count), statistics, splat(real(0)))
        gradient = muladd(gradient, gain, statistics)
        if SCALING > 1 and TANGENT:
            gradient = gradient * scale
        if streamed:
            stream_aligned(dx, y_at, gradient)
        else:
            store_part(dx, y_at, count, gradient)
