"""Merges the results of the units of a slice, which threads have computed: moments, and the sums of a gradient.

The arrays have one row for each unit, with one number for each slice in it. The result replaces the first row.
"""

from __future__ import annotations

import math

from .steps import joined
from .vector import LANES, Array, choose, exceeds, load_part, splat, store_part

CENTER = 1  # Standardize subtracts the mean; RMS does not


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
