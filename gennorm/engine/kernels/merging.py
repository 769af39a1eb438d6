"""Arithmetic on the moments of slices, and the sums of a gradient: all arrays are float64, with one number per slice.

`merge_moments` and `merge_sums` add up the units of slices, where threads share a slice: the arrays have one row for
each unit, and the result replaces the first row. The other functions are a few operations on the moments of one call,
for which NumPy would need many calls.
"""

from __future__ import annotations

import math

from .steps import joined
from .vector import LANES, Array, choose, exceeds, larger, load_part, splat, store_part

CENTER = 1  # Standardize subtracts the mean; RMS does not
BLOCK = 32  # values that are added up before they join the rest: the error of a sum grows with it and with their number
LEAST = 1e-250  # a smaller sum of squares may have lost terms that underflowed: the squares of numbers below 1e-154 do


def merge_moments(
    means: Array, spreads: Array, counts: Array, slices: int, first: int, last: int
) -> None:  # fmt: skip
    """Merge means and second moments of the slices ``first`` to ``last``, in the order that the forward kernels use."""
    for at in range(first, last, LANES):
        size = last - at
        mean = load_part(means, at, size)
        pivot = choose(exceeds(mean, -math.inf) * exceeds(mean * -1.0, -math.inf), mean, splat(0.0))
        before = counts[0]
        added = (mean - pivot) * before
        squared = load_part(spreads, at, size)
        for unit in range(1, counts.size):
            place = unit * slices + at
            count = counts[unit]
            added, squared = joined(
                load_part(means, place, size), load_part(spreads, place, size), count, pivot, added, squared, before
            )
            before += count
        store_part(means, at, size, pivot + added / before)
        store_part(spreads, at, size, squared)


def merge_sums(sums: Array, units: int, size: int) -> None:
    """Add ``units`` rows of ``size`` numbers, in the order that the backward kernels use for a whole slice."""
    for at in range(0, size, LANES):
        total = load_part(sums, at, size - at)
        for unit in range(1, units):
            total = total + load_part(sums, unit * size + at, size - at)
        store_part(sums, at, size - at, total)


def variances(moments: Array, found: Array, slices: int, missing: int) -> None:
    """Write mean and variance of slices, from rows of mean, second moment and count.

    ``missing`` is 1 for the unbiased variance. A slice in which too little is counted has the variance 0.
    """
    for at in range(0, slices, LANES):
        size = slices - at
        degrees = larger(load_part(moments, 2 * slices + at, size) - missing * 1.0, 1.0)
        store_part(found, at, size, load_part(moments, at, size))
        store_part(found, slices + at, size, load_part(moments, slices + at, size) / degrees)


def fold(moments: Array, held: Array, numbers: Array, examples: int, slices: int) -> None:
    """Fold rows of mean and second moment, averaged over the examples of a batch, into moving means and variances.

    ``numbers`` are the count of a slice and the momentum.
    """
    for row in range(2):
        for at in range(0, slices, LANES):
            size = slices - at
            average = splat(0.0)
            for example in range(examples):
                value = load_part(moments, (row * examples + example) * slices + at, size)
                average = average + (value / numbers[0] if row else value)
            average = average / (examples * 1.0)
            moving = load_part(held, row * slices + at, size)
            store_part(held, row * slices + at, size, moving * numbers[1] + average * (1.0 - numbers[1]))


def extend(x: Array, held: Array, doubts: Array, examples: int, slices: int) -> None:
    """Merge the values of ``examples`` rows into moments, in one pass about the mean.

    The rows of ``held`` are count, mean, second moment, and what rounding the last two lost. With :math:`d = x - m` the
    second moment grows by :math:`\\sum d^2 - (\\sum d)^2 / n`. A doubt is 1 where a second moment may have underflowed
    or is not finite, and 0 elsewhere.
    """
    for at in range(0, slices, LANES):
        size = slices - at
        mean, lost_mean = load_part(held, slices + at, size), load_part(held, 3 * slices + at, size)
        added, squared = splat(0.0), splat(0.0)
        for block in range(0, examples, BLOCK):
            first, second = splat(0.0), splat(0.0)
            for example in range(block, min(block + BLOCK, examples)):
                away = load_part(x, example * slices + at, size) - mean - lost_mean
                first = first + away
                second = second + away * away
            added = added + first
            squared = squared + second
        count = load_part(held, at, size) + examples * 1.0
        shift = added / count
        grown = squared - added * shift
        for row in range(1, 3):
            value = load_part(held, row * slices + at, size)
            more = shift if row == 1 else grown
            total = value + more
            part = total - value
            lost = (value - (total - part)) + (more - part) + load_part(held, (row + 2) * slices + at, size)
            value = total + lost
            store_part(held, row * slices + at, size, value)
            store_part(held, (row + 2) * slices + at, size, lost - (value - total))
        store_part(held, at, size, count)
        spread = load_part(held, 2 * slices + at, size)
        sound = exceeds(spread, LEAST) * exceeds(spread * -1.0, -math.inf)
        store_part(doubts, at, size, choose(squared, splat(1.0) - sound, splat(0.0)))
