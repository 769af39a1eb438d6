"""The time per element as arrays grow. It stays the same if no step is quadratic or runs on one thread only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

import gennorm as gn
from gennorm.bench.cases import Array
from gennorm.bench.timing import best_times
from gennorm.bench.values import TOLERANCE
from gennorm.layer.arrays import dtype_named
from gennorm.plan import ITEMSIZE

__all__ = ["SERIES", "Grown", "grown", "growth"]

LEAST = 1 << 20  # bytes of the smallest array
STEP = 4
BLOCK = 1 << 18  # random elements; the array repeats them, so that its slices have the moments of the block


@dataclass(frozen=True, slots=True)
class Series:
    """An array that grows, and the axis that is aggregated.

    Attributes
    ----------
    name : str
    dtype : str
    shape : callable
        From the number of elements, a multiple of `BLOCK`, to the shape.
    axis : int
        The aggregated axis.
    """

    name: str
    dtype: str
    shape: Callable[[int], tuple[int, ...]]
    axis: int


@dataclass(frozen=True, slots=True)
class Grown:
    """The measurement of one array.

    Attributes
    ----------
    name : str
    elements, bytes : int
    seconds : float
        The time of a call. Its output is allocated from the buffer pool.
    nanoseconds : float
        The same per element.
    wrong : float
        The largest error over the allowed error, in the first and the last block of the output.
    """

    name: str
    elements: int
    bytes: int
    seconds: float
    nanoseconds: float
    wrong: float


SERIES = (
    Series("layer norm of rows of 1024", "float32", lambda n: (n // 1024, 1024), 1),
    Series("batch norm of 64 columns", "float32", lambda n: (n // 64, 64), 0),
    Series("layer norm of rows of 8", "float32", lambda n: (n // 8, 8), 1),
    Series("one slice", "float16", lambda n: (n,), 0),
)


def growth(gigabytes: float, seconds: float, report: Callable[..., None]) -> Iterator[Grown]:
    """Measure every series, from one megabyte on, four times as large each time.

    The buffer pool has room for every output. Otherwise the system would have to clear new memory at each call.
    """
    sizes = [LEAST * STEP**i for i in range(1 + int(math.log(gigabytes * 2**30 / LEAST, STEP) + 1e-9))]
    before = gn.get_reserve()
    gn.set_reserve(max(before, sizes[-1] + sizes[-1] // 4))
    try:
        for place, series in enumerate(SERIES):
            for step, size in enumerate(sizes):
                report(place * len(sizes) + step, len(SERIES) * len(sizes), f"{series.name}, {size >> 20:,} MB")
                yield grown(series, size // ITEMSIZE[series.dtype], seconds)
    finally:
        gn.set_reserve(before)


def grown(series: Series, elements: int, seconds: float) -> Grown:
    """Measure one array."""
    block = np.random.default_rng(0).normal(1, 2, BLOCK).astype(dtype_named(series.dtype))
    x = np.empty(elements, block.dtype)
    x.reshape(-1, BLOCK)[:] = block
    x = x.reshape(series.shape(elements))
    layer = gn.NormalizationLayer(series.axis, (), batched=True, epsilon=0)
    y = layer(x)
    part = series.shape(BLOCK)
    right = _standardized(block.astype(np.float64).reshape(part), series)
    ends = (y[: part[0]], y[-part[0] :])
    worst = max(float(np.abs(end.astype(np.float64) - right).max()) for end in ends)
    del y, ends
    taken = best_times({"": lambda: layer(x)}, seconds)[""]
    allowed = TOLERANCE[series.dtype] * float(np.abs(right).max())
    return Grown(series.name, elements, x.nbytes, taken, taken / elements * 1e9, worst / allowed)


def _standardized(x: Array, series: Series) -> Array:
    found: Array = (x - x.mean(series.axis, keepdims=True)) / x.std(series.axis, keepdims=True)
    return found
