"""The cases that `gennorm bench` measures: which norm, of which array, and what is computed."""

from __future__ import annotations

import fnmatch
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from gennorm.layer.arrays import dtype_named
from gennorm.plan import ITEMSIZE

__all__ = ["Arrays", "Case", "Size", "Work", "matching", "matrix"]

Array = npt.NDArray[Any]

EPSILON = 1e-3
LINE = 64  # bytes of a cache line


class Work(StrEnum):
    """The computation that is timed."""

    FORWARD = "forward"  # the output, allocated in the call
    BACKWARD = "backward"  # the output and the gradients of the input and of every parameter
    OUT = "out"  # the output, written into an existing array
    INFERENCE = "inference"  # the output with given moments
    ADAPT = "adapt"  # the moments of a data set
    MODULE = "module"  # forward and backward of a module of torch
    EVALUATION = "evaluation"  # the output of a module in evaluation, with running statistics where it has them


class Size(StrEnum):
    """The size of the array: one example, within the cache of a core, 4 to 20 MB, 100 MB and more."""

    TINY = "tiny"
    SMALL = "small"
    MIDDLE = "middle"
    LARGE = "large"


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the tables.

    Attributes
    ----------
    norm : str
        "layer", "RMS", "channel-wise layer", "group", "instance", "batch" or "feature".
    shape : tuple of int
        Of the array; the last axis is the innermost in memory.
    size : Size
    work : Work
    dtype : str
    channel : int
        Axis of the channels, 1 or -1, of every norm except layer and RMS norm.
    trailing : int
        The number of trailing axes that layer and RMS norm aggregate.
    groups : tuple of (int, int)
        Axes that are split into groups, with their numbers of groups.
    padding : int
        Elements between the end of a row and the next row.
    """

    norm: str
    shape: tuple[int, ...]
    size: Size
    work: Work = Work.FORWARD
    dtype: str = "float32"
    channel: int = 1
    trailing: int = 1
    groups: tuple[tuple[int, int], ...] = ()
    padding: int = 0

    @property
    def name(self) -> str:
        """The name in the tables, which patterns are matched with."""
        words = [f"{self.norm} norm {'×'.join(map(str, self.shape))}"]
        words += ["channels last"] if self.channel == -1 and len(self.shape) > 2 else []
        words += [f"over {self.trailing} levels"] if self.trailing > 1 else []
        words += [f"{' × '.join(str(number) for _, number in self.groups)} groups"] if self.groups else []
        words += [f"rows {self.padding} apart"] if self.padding else []
        words += [self.dtype] if self.dtype != "float32" else []
        return ", ".join(words)

    @property
    def epsilon(self) -> float:
        """The epsilon that is added to the variance."""
        return 1e-7 if self.norm == "feature" else EPSILON

    @property
    def biased(self) -> bool:
        """Whether the layer has biases."""
        return self.norm not in {"RMS", "feature"}

    @property
    def derived(self) -> bool:
        """Whether gradients are computed."""
        return self.work in {Work.BACKWARD, Work.MODULE}

    @property
    def given(self) -> bool:
        """Whether the layer uses given moments instead of those of the input."""
        return self.work is Work.INFERENCE or (self.work is Work.EVALUATION and self.norm == "batch")

    @property
    def aggregated(self) -> tuple[int, ...]:
        """The aggregated axes."""
        rank = len(self.shape)
        axes = set(range(rank))
        if self.norm in {"layer", "RMS"}:
            return tuple(range(rank - self.trailing, rank))
        if self.norm == "channel-wise layer":
            return (self.channel % rank,)
        return tuple(sorted(axes - {"group": {0}, "instance": {0, self.channel % rank}}.get(self.norm, self.channels)))

    @property
    def channels(self) -> set[int]:
        """The axis of the channels, as a set."""
        return {self.channel % len(self.shape)}

    @property
    def scaled(self) -> tuple[int, ...]:
        """The axes along which the parameters vary."""
        return self.aggregated if self.norm in {"layer", "RMS"} else tuple(self.channels)

    @property
    def parameters(self) -> tuple[int, ...]:
        """The shape of the parameters."""
        return tuple(self.shape[axis] for axis in self.scaled)

    @property
    def broadcast(self) -> tuple[int, ...]:
        """The shape of the parameters, with size 1 on every other axis of the array."""
        return tuple(size if axis in self.scaled else 1 for axis, size in enumerate(self.shape))

    @property
    def split(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shape with a separate axis for groups, and the aggregated axes of that shape."""
        sizes: list[int] = []
        axes: list[int] = []
        groups = dict(self.groups)
        for axis, size in enumerate(self.shape):
            if axis in groups:
                sizes.append(groups[axis])
            if axis in self.aggregated:
                axes.append(len(sizes))
            sizes.append(size // groups.get(axis, 1))
        return tuple(sizes), tuple(axes)

    @property
    def bytes(self) -> int:
        """The size of the array in bytes."""
        return math.prod(self.shape) * ITEMSIZE[self.dtype]

    def moved(self, cache: int) -> int:
        """The bytes that must move between memory and a cache of so many bytes.

        Forward reads the input and writes the output. Backward reads the input and the gradient of the output, and
        writes the gradient of the input. Where a slice, in whole cache lines, is larger than the cache, the arrays that
        are reduced over it have to be read again. Computing moments only reads the input.
        """
        if self.work is Work.ADAPT:
            return self.bytes
        again = not self.given and self.span > cache
        forward, backward = 2 + again, 3 + 2 * again
        return self.bytes * (forward + (backward if self.derived else 0))

    @property
    def span(self) -> int:
        """The bytes of all cache lines that contain elements of a slice."""
        sizes, axes = self.split
        within, strides = 1, []
        for size in reversed(sizes):
            strides.append(within)
            within *= size
        strides.reverse()
        item = ITEMSIZE[self.dtype]
        run = 1  # neighbouring elements of the slice
        for axis in reversed(axes):
            if strides[axis] != run:
                break
            run *= sizes[axis]
        count = math.prod(sizes[axis] for axis in axes)
        return count // run * -(-run * item // LINE) * LINE

    def arrays(self) -> Arrays:
        """Random arrays with a mean of half a standard deviation."""
        whole, dy = _drawn(self.shape, self.padding, self.dtype)
        generator = np.random.default_rng(1)
        scaling, biases, mean, variance = (
            _normal(generator, self.parameters, mean, deviation, self.dtype)
            for mean, deviation in ((1, 0.5), (0, 1), (1, 0.1), (4, 0.1))
        )
        return Arrays(whole, whole[..., : self.shape[-1]], dy, scaling, biases, mean, variance)


@dataclass(frozen=True, slots=True)
class Arrays:
    """The arrays of a case.

    Attributes
    ----------
    whole, x : ndarray
        The input `x`, and the array `whole` whose rows begin with those of `x`: the rows with their padding.
    dy : ndarray
        Gradient of the output.
    scaling, biases, mean, variance : ndarray
        Of the shape of the parameters; `mean` and `variance` are for inference.
    """

    whole: Array
    x: Array
    dy: Array
    scaling: Array
    biases: Array
    mean: Array
    variance: Array

    def examples(self, lo: int, hi: int) -> Arrays:
        """The examples `lo` to `hi`, with the same parameters."""
        return replace(self, whole=self.whole[lo:hi], x=self.x[lo:hi], dy=self.dy[lo:hi])


@functools.lru_cache(maxsize=1)  # consecutive cases have the same shape, and random numbers take longer than they do
def _drawn(shape: tuple[int, ...], padding: int, dtype: str) -> tuple[Array, Array]:
    generator = np.random.default_rng(0)
    whole = _normal(generator, (*shape[:-1], shape[-1] + padding), 1, 2, dtype)
    return whole, _normal(generator, shape, 0, 1, dtype)


def _normal(generator: np.random.Generator, shape: tuple[int, ...], mean: float, deviation: float, dtype: str) -> Array:
    drawn = generator.standard_normal(shape, np.float32)
    drawn *= deviation
    drawn += mean
    return drawn.astype(dtype_named(dtype), copy=False)


def matrix() -> list[Case]:
    """Every case, in the order of the tables."""
    trained = list(_trained())
    large = [case for case in trained if case.size is Size.LARGE]
    return [
        *trained,
        *(_with(case, Work.BACKWARD) for case in trained),
        *(_with(case, Work.OUT) for case in large),
        *_inference(),
        *_modules(),
        *(_with(case, Work.EVALUATION) for case in _modules() if case.size is not Size.LARGE),
    ]


def matching(
    cases: Sequence[Case], patterns: Sequence[str] = (), sizes: Sequence[str] = (), works: Sequence[str] = ()
) -> list[Case]:
    """The cases of these sizes and kinds of work whose names contain one of the patterns; `*` matches any text.

    Examples
    --------
    >>> [case.name for case in matching(matrix(), ["layer*1×768"], ["tiny"], ["forward"])]
    ['layer norm 1×768']
    """
    wanted = [f"*{pattern.replace('x', '×') if _sizes(pattern) else pattern}*".casefold() for pattern in patterns]
    return [
        case
        for case in cases
        if (not sizes or case.size in sizes)
        and (not works or case.work in works)
        and (not wanted or any(fnmatch.fnmatchcase(case.name.casefold(), pattern) for pattern in wanted))
    ]


def _sizes(pattern: str) -> bool:
    """Whether a pattern contains an `x` between digits, which stands for ×."""
    return any(left.isdigit() and right.isdigit() for left, right in zip(pattern, pattern[2:], strict=False))


def _with(case: Case, work: Work) -> Case:
    return replace(case, work=work)


def _trained() -> Iterator[Case]:
    tiny, small, middle, large = Size
    yield Case("layer", (1, 768), tiny)
    yield Case("RMS", (1, 768), tiny)
    yield from _images((1, 64, 8, 8), tiny, 32)
    for norm in ("layer", "RMS", "batch"):
        yield Case(norm, (128, 768), small)
    yield from _images((2, 64, 28, 28), small, 32)
    for norm in ("layer", "RMS", "batch"):
        yield Case(norm, (4096, 768), middle)
    yield from _images((16, 64, 56, 56), middle, 32)
    for norm in ("layer", "RMS", "batch"):
        yield Case(norm, (4099, 1023), middle)
    for dtype in ("float64", "float16", "bfloat16"):
        yield Case("layer", (4096, 768), middle, dtype=dtype)
        yield Case("RMS", (4096, 768), middle, dtype=dtype)
        yield Case("group", (16, 64, 56, 56), middle, dtype=dtype, groups=((1, 32),))
        yield Case("batch", (16, 64, 56, 56), middle, dtype=dtype)
        yield Case("batch", (16, 56, 56, 64), middle, dtype=dtype, channel=-1)
    yield Case("layer", (4096, 768), middle, padding=64)
    yield Case("group", (16, 64, 56, 56), middle, groups=((1, 8), (2, 4)))
    yield Case("layer", (32768, 1024), large)
    yield Case("RMS", (32768, 1024), large)
    yield Case("layer", (65536, 1024), large, dtype="bfloat16")
    yield from _images((8, 64, 224, 224), large, 8)


def _images(shape: tuple[int, ...], size: Size, groups: int) -> Iterator[Case]:
    """Every norm of images, with channels first and channels last."""
    last = (shape[0], *shape[2:], shape[1])
    for array, channel in ((shape, 1), (last, -1)):
        axis = channel % len(shape)
        yield Case("group", array, size, channel=channel, groups=((axis, groups),))
        yield Case("instance", array, size, channel=channel)
        yield Case("batch", array, size, channel=channel)
    yield Case("layer", shape, size, trailing=3)
    yield Case("channel-wise layer", shape, size)


def _inference() -> Iterator[Case]:
    for shape, size in (
        ((128, 768), Size.SMALL),
        ((16, 64, 56, 56), Size.MIDDLE),
        ((8, 64, 224, 224), Size.LARGE),
    ):
        yield Case("batch", shape, size, Work.INFERENCE)
        if len(shape) > 2:
            yield Case("batch", (shape[0], *shape[2:], shape[1]), size, Work.INFERENCE, channel=-1)
    yield Case("feature", (128, 768), Size.SMALL, Work.INFERENCE, channel=-1)
    for shape, size in (((4096, 768), Size.MIDDLE), ((32768, 1024), Size.LARGE)):
        yield Case("feature", shape, size, Work.INFERENCE, channel=-1)
        yield Case("feature", shape, size, Work.ADAPT, channel=-1)


def _modules() -> Iterator[Case]:
    """The norms for which torch has a module."""
    tiny, small, middle, large = Size
    work = Work.MODULE
    for shape, size in (((1, 768), tiny), ((128, 768), small), ((512, 768), middle)):
        yield Case("layer", shape, size, work)
        yield Case("RMS", shape, size, work)
    for image, size in (((1, 64, 8, 8), tiny), ((2, 64, 28, 28), small), ((16, 64, 56, 56), middle)):
        yield from (
            _with(case, work) for case in _images(image, size, 32) if case.norm in {"group", "instance", "batch"}
        )
    yield Case("group", (8, 256, 28, 28), middle, work, groups=((1, 32),))
    for dtype in ("float16", "bfloat16"):
        yield Case("layer", (4096, 768), middle, work, dtype=dtype)
        yield Case("batch", (16, 64, 56, 56), middle, work, dtype=dtype)
    yield Case("layer", (32768, 1024), large, work)
    yield Case("batch", (8, 64, 224, 224), large, work)
    yield Case("instance", (8, 224, 224, 64), large, work, channel=-1)
