"""What an element costs as arrays grow: the same, if nothing is quadratic and nothing is left to one thread."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

import gennorm as gn
from gennorm.cli.bench.cases import Array
from gennorm.cli.bench.timing import best
from gennorm.cli.bench.values import NEAR
from gennorm.layer.arrays import dtype_named
from gennorm.plan import ITEMSIZE

__all__ = ["SERIES", "Grown", "grown", "growth"]

LEAST = 1 << 20  # bytes of the smallest array
STEP = 4
BLOCK = 1 << 18  # elements that are drawn; the array repeats them, and its slices have their moments


@dataclass(frozen=True, slots=True)
class Series:
    """An array that grows: how, and what normalizes it.

    Attributes
    ----------
    name : str
    dtype : str
    shape : callable
        From a number of elements, a multiple of `BLOCK`, to the shape.
    axis : int
        Which one is aggregated.
    """

    name: str
    dtype: str
    shape: Callable[[int], tuple[int, ...]]
    axis: int


@dataclass(frozen=True, slots=True)
class Grown:
    """What was measured of one array.

    Attributes
    ----------
    name : str
    elements, bytes : int
    seconds : float
        A call, with the allocation of its output, in memory that an output before it had.
    nanoseconds : float
        For each element.
    wrong : float
        The largest error over what is allowed; the output is compared where the array begins and where it ends.
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
    """Every series from a megabyte on, four times as much each time, with room in the reserve for every output.

    Where there is none, the system clears new memory at each call, which is not what an element costs.
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
    taken = best({"": lambda: layer(x)}, seconds)[""]
    allowed = NEAR[series.dtype] * float(np.abs(right).max())
    return Grown(series.name, elements, x.nbytes, taken, taken / elements * 1e9, worst / allowed)


def _standardized(x: Array, series: Series) -> Array:
    found: Array = (x - x.mean(series.axis, keepdims=True)) / x.std(series.axis, keepdims=True)
    return found
