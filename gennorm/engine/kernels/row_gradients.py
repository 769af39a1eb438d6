"""Rows, backward pass: from the gradient of the output to those of the input and of the parameters.

Let ``g = scaling * dy``, and let ``d`` be the deviations of a slice from its mean. The gradient of its elements is
``inverse * g + by_sum * sum(g) + by_product * sum(g * d) * d``; see ``slopes``. From the forward pass this needs four
factors of each slice, which ``steps`` lists in their order.

The geometry is that of ``rows``. The gradients of output and input and the weights have the layout of the output. Units
are counted slice by slice, or, with ACROSS, position by position: the first unit of every slice, then the second.

Each block of units adds the gradients of the parameters to a separate float64 array, first those of the scaling, then
those of the biases; so the result does not depend on which thread works on which block. If the parameters vary along a
row, ``recent`` first adds up the terms of ``often`` parts in the type of the arithmetic: this halves the loads and
stores for each element. ``often`` is chosen so that no parameter has more than 32 recent terms.

With ACROSS and room for the parameters of one piece in ``recent``, a unit is a piece, and a block has this piece of all
slices. No two blocks share a parameter then, and all blocks write to one array. If no parameter has more than 32 terms
in the whole call, the recent terms are the gradients, and there is no float64 array.
"""

from __future__ import annotations

import numpy as np

from .rows import RUNS, slice_fields
from .steps import MEAN, PER_COUNT, PER_DEGREE, VARIANCE, contribution, offsets, part_at, slopes
from .vector import (
    LANES,
    Array,
    Vector,
    choose,
    fence,
    is_aligned,
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

SUMS = 1  # compute the sums of slices and the gradients of parameters; otherwise read the sums
APPLY = 1  # write the input's gradient; otherwise write the sums
SCALING = 0  # 0: absent, 1: constant along a row, 2: varies along a row
BIASES = 0
TANGENT = 0  # a directional derivative: the scaling multiplies the result instead of ``dy``
STREAM = 0  # use non-temporal stores where elements are aligned
ACROSS = 0  # process the first unit of every slice, then the second
WEIGHTED = 0  # 1: the mask selects where statistics contribute to the gradient, 2: the terms of the sums
real = np.float32


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
    recent: Array,
    block: int,
    parameters: int,
    often: int,
    lo: int,
    hi: int,
    request: int,
) -> None:
    """Take the sums of slices, and write their gradient while they are still in the cache.

    With SUMS and APPLY, the range contains all units of a slice, and its gradient is written after the sums of its last
    unit. Otherwise each unit is processed separately, so that threads can share a slice.
    """
    length, piece, pieces, rows, portion, units, slices, kept, outer = slice_fields(geometry)
    outer_runs = RUNS + 4 * kept
    final = min(hi * block, slices * units)
    recent_at = to_alignment(recent, 0)
    room = (recent.size - LANES) // 2  # number of parameters in ``recent``: all of them, or those of a piece
    done = 0
    low = parameters  # first and last parameter that has recent terms
    high = 0
    fresh = 0  # 1 if the gradients of a piece are not initialized: the first terms are stored, not added
    slice_added = 0.0
    slice_squared = 0.0
    for unit in range(lo * block, final):
        number = unit // units if units > 1 else unit
        position = unit - number * units
        if ACROSS:
            position = unit // slices
            number = unit - position * slices
        first = position * portion
        last = min(first + portion, rows * pieces)
        x_slice, y_slice, p_slice = offsets(geometry, RUNS, kept, number)
        mean = factors[MEAN * slices + number]
        per_count, per_degree = factors[PER_COUNT * slices + number], factors[PER_DEGREE * slices + number]
        inverse, by_sum, by_product = slopes(factors[VARIANCE * slices + number], per_count, per_degree, numbers)
        if length * rows == 1 and per_count > 0.5:  # the output does not depend on the only element of a slice
            inverse = 0.0
            by_sum = 0.0
            by_product = 0.0
        centre = real(mean)
        rest = np.float64(centre) - mean  # the rounding error of the mean
        to_scaling = 0 if 0 < room < parameters else 2 * parameters * (unit // block)
        to_biases = to_scaling + parameters
        if 0 < room < parameters:
            if number == 0:
                fresh = 1
        elif SUMS == 1 and room > 0 and gradients.size > 0 and unit % block == 0:
            for i in range(0, 2 * parameters, LANES):
                store_part(gradients, to_scaling + i, 2 * parameters - i, splat(0.0))

        added = 0.0
        squared = 0.0
        if SUMS:
            for part in range(first, last):
                row, start, size = part_at(part, length, piece, pieces)
                x_row, y_row, p_row = offsets(geometry, outer_runs, outer, row)
                p_row += p_slice
                window = p_row + start if room < parameters else 0  # the first parameter in ``recent``
                one, two = products(
                    x, x_slice + x_row + start, dy, weights, y_slice + y_row + start, size, splat(centre), scaling,
                    p_row + start, splat(real(inverse)), splat(real(rest * inverse)), recent,
                    recent_at + p_row + start - window, room,
                )  # fmt: skip
                if SCALING == 1 and not TANGENT:
                    gradients[to_scaling + p_row] += (two + rest * one) * inverse
                if BIASES == 1:
                    gradients[to_biases + p_row] += one
                if SCALING == 1 and not TANGENT:
                    one *= scaling[p_row]
                    two *= scaling[p_row]
                added += one
                squared += two
                if room > 0 and gradients.size > 0:
                    done += 1
                    low = min(low, p_row + start)
                    high = max(high, p_row + start + size)
                    ends = (unit + 1) % block == 0 or unit + 1 == slices * units
                    complete = part + 1 == last and (ends or (ACROSS == 1 and number + 1 == slices))
                    if done == often or complete:
                        at = low - window
                        flush(gradients, to_scaling + low, recent, recent_at + at, high - low, fresh)
                        flush(gradients, to_biases + low, recent, recent_at + room + at, high - low, fresh)
                        done = 0
                        low = parameters
                        high = 0
                        fresh = 0
            squared += rest * added
            if APPLY:
                if position == 0:
                    slice_added = added
                    slice_squared = squared
                else:
                    slice_added += added
                    slice_squared += squared
            else:
                at = position * 2 * slices + number
                sums[at] = added
                sums[at + slices] = squared
        if APPLY and (not SUMS or position + 1 == units):
            if SUMS:
                added, squared = slice_added, slice_squared
            else:
                added, squared = sums[number], sums[slices + number]
            # An absent term is 0 even if its sum is NaN.
            slope = by_product * squared if per_degree != 0.0 else 0.0
            shift = by_sum * added if per_count != 0.0 else 0.0
            shift += slope * rest
            for part in range(0 if SUMS else first, last):
                row, start, size = part_at(part, length, piece, pieces)
                x_row, y_row, p_row = offsets(geometry, outer_runs, outer, row)
                p_row += p_slice
                gain, slope_, shift_ = inverse, slope, shift
                if SCALING == 1:
                    gain *= scaling[p_row]
                if SCALING == 1 and TANGENT:
                    slope_ *= scaling[p_row]
                    shift_ *= scaling[p_row]
                combine(
                    x, x_slice + x_row + start, dy, dx, weights, y_slice + y_row + start, size, splat(centre),
                    splat(real(gain)), splat(real(slope_)), splat(real(shift_)), scaling, p_row + start,
                )  # fmt: skip
    if STREAM:
        fence()


def products(
    x: Array, x_start: int, dy: Array, weights: Array, y_start: int, size: int, centre: Vector,
    scaling: Array, p_start: int, inverse: Vector, rest: Vector, recent: Array, recent_at: int, room: int,
) -> tuple[float, float]:  # fmt: skip
    """Return sums of ``g`` and of ``g * d`` over contiguous elements; add terms to the gradients of parameters."""
    added = splat(0.0)
    squared = splat(0.0)
    i = 0
    while i + 4 * LANES <= size:  # four vectors are added up before they are widened
        few_added = splat(real(0))
        few_squared = splat(real(0))
        for _ in range(4):
            one, two = products_at(
                x, x_start + i, dy, weights, y_start + i, LANES, centre,
                scaling, p_start + i, inverse, rest, recent, recent_at + i, room,
            )  # fmt: skip
            few_added += one
            few_squared = muladd(one, two, few_squared)
            i += LANES
        added += widen(few_added)
        squared += widen(few_squared)
    while i < size:
        one, two = products_at(
            x, x_start + i, dy, weights, y_start + i, size - i, centre,
            scaling, p_start + i, inverse, rest, recent, recent_at + i, room,
        )  # fmt: skip
        added += widen(one)
        squared += widen(one * two)
        i += LANES
    return total(added), total(squared)


def products_at(
    x: Array, x_start: int, dy: Array, weights: Array, y_start: int, count: int, centre: Vector,
    scaling: Array, p_start: int, inverse: Vector, rest: Vector, recent: Array, recent_at: int, room: int,
) -> tuple[Vector, Vector]:  # fmt: skip
    """Return ``g`` and ``d`` of up to a vector of elements; add terms to the gradients of parameters."""
    gradient = load_part(dy, y_start, count)
    deviation: Vector = load_part(x, x_start, count) - centre
    gradient, deviation = contribution(gradient, deviation, weights, y_start, count)
    if SCALING == 2 and not TANGENT:
        terms = muladd(gradient, muladd(deviation, inverse, rest), load_part(recent, recent_at, count))
        store_part(recent, recent_at, count, terms)
    if BIASES == 2:
        at = recent_at + room
        store_part(recent, at, count, load_part(recent, at, count) + gradient)
    if SCALING == 2 and not TANGENT:
        gradient = gradient * load_part(scaling, p_start, count)
    return gradient, deviation


def flush(gradients: Array, start: int, recent: Array, recent_at: int, size: int, fresh: int) -> None:
    """Add recent terms to the gradients in float64, and reset them to 0."""
    for i in range(0, size, LANES):
        count = size - i
        terms = widen(load_part(recent, recent_at + i, count))
        if not fresh:
            terms += load_part(gradients, start + i, count)
        store_part(gradients, start + i, count, terms)
        store_part(recent, recent_at + i, count, splat(real(0)))


def combine(
    x: Array, x_start: int, dy: Array, dx: Array, weights: Array, y_start: int, size: int, centre: Vector,
    gain: Vector, slope: Vector, shift: Vector, scaling: Array, p_start: int,
) -> None:  # fmt: skip
    """Write the gradient of contiguous elements. A partial first vector aligns the stores of the following ones."""
    i = to_alignment(dx, y_start) if size >= 4 * LANES else 0
    if i > 0:
        vector = combined(x, x_start, dy, weights, y_start, i, centre, gain, slope, shift, scaling, p_start)
        store_part(dx, y_start, i, vector)
    # Elements of an unaligned array never start at the address of an aligned vector.
    aligned = STREAM == 1 and size >= 4 * LANES and is_aligned(dx, y_start + i, 0)
    while i + LANES <= size:
        vector = combined(
            x, x_start + i, dy, weights, y_start + i, LANES, centre, gain, slope, shift, scaling, p_start + i
        )
        if aligned:
            prefetch(x, x_start + i + size)
            prefetch(dy, y_start + i + size)
            stream(dx, y_start + i, vector)
        else:
            store(dx, y_start + i, vector)
        i += LANES
    if i < size:
        vector = combined(
            x, x_start + i, dy, weights, y_start + i, size - i, centre, gain, slope, shift, scaling, p_start + i
        )
        store_part(dx, y_start + i, size - i, vector)


def combined(
    x: Array, x_start: int, dy: Array, weights: Array, y_start: int, count: int, centre: Vector,
    gain: Vector, slope: Vector, shift: Vector, scaling: Array, p_start: int,
) -> Vector:  # fmt: skip
    """Return the gradient of up to a vector of elements."""
    gradient = load_part(dy, y_start, count)
    if SCALING == 2 and not TANGENT:
        gradient = gradient * load_part(scaling, p_start, count)
    statistics = muladd(load_part(x, x_start, count) - centre, slope, shift)
    if WEIGHTED == 1:
        statistics = choose(load_part(weights, y_start, count), statistics, splat(real(0)))
    gradient = muladd(gradient, gain, statistics)
    if SCALING == 2 and TANGENT:
        gradient = gradient * load_part(scaling, p_start, count)
    return gradient
