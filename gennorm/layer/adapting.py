"""A data set, chunk by chunk: the moments of all of it in one pass, in the memory of a chunk."""

from __future__ import annotations

import itertools
import mmap
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from gennorm.errors import InitializationError, InputError, ParameterError, ShapeError
from gennorm.layer.arrays import dtype_name, real
from gennorm.layer.statistics import is_one_example, pooled, ungrouped
from gennorm.moments import Moments, weights_for
from gennorm.spec.config import LayerConfig, resolve_config

__all__ = ["Progress", "moments_of"]

Array = npt.NDArray[Any]
Chunk = tuple[Array, Array | None]  # and what its elements weigh
Measure = Callable[[Array, Array | None], tuple[Moments, tuple[int, ...]]]

CHUNK = 1 << 23  # bytes of an array that are worked on at a time
PATIENCE = 1.0  # seconds until progress is shown to who has not asked for it


def moments_of(
    data: Any,
    config: LayerConfig,
    *,
    mask: Any = None,
    weights: Any = None,
    progress: bool | None = None,
    measure: Measure,
) -> Moments:
    """The moments of a data set that a layer of this config holds, in one pass.

    Parameters
    ----------
    data : ndarray, or iterable of ndarray
    config : LayerConfig
    mask, weights : ndarray, or iterable of ndarray, optional
        For an array of data, or for each batch.
    progress : bool, optional
        Whether to show a bar; None where that is a terminal and it takes a while.

    Returns
    -------
    Moments
        Without an axis for the batch.

    Raises
    ------
    GennormError
        As `NormalizationLayer.adapt`.
    """
    # Sums of 1, 2, 4, 8, ... chunks, as in a binary counter: every chunk takes part in few additions and roundings.
    sums: list[tuple[int, Moments]] = []
    seen = 0
    total = len(data) if isinstance(data, np.ndarray) and data.ndim else None
    with Progress(progress, total) as report:
        for number, chunk, weight, amount in _batches(data, mask, weights, config):
            for part, share in _chunks(chunk, weight, config):
                found, shape = measure(part, share)
                if found.shape != shape:
                    found = pooled(found)
                if sums and found.shape != sums[0][1].shape:
                    msg = f"batch {number} of the data has slices of shape {found.shape}, and those before "
                    msg += f"{sums[0][1].shape}\nthe levels that are kept have one size in all batches"
                    raise ShapeError(msg, code="S030")
                size = 1
                while sums and sums[-1][0] == size:
                    size, found = 2 * size, sums.pop()[1] + found
                sums.append((size, found))
                seen += amount if part is chunk else len(part)
                report(seen)
    whole = None
    for _, found in reversed(sums):
        whole = found if whole is None else found + whole
    if whole is None or not whole.count.any():
        msg = "there is nothing in the data that counts: no batch, or only empty or masked ones\n"
        msg += "pass an array, or an iterable of batches; a generator that was used up gives none again"
        raise InitializationError(msg, code="I011")
    return whole


# ---------------------------------------------------------------------------------------------------------- what comes


def _batches(data: Any, mask: Any, weights: Any, config: LayerConfig) -> Iterator[tuple[int, Array, Array | None, int]]:
    """Every batch of the data with its number from 1, its weights, and how many examples it has."""
    if isinstance(data, np.ndarray) or hasattr(data, "__array__"):
        pairs: Iterable[tuple[Any, Any, Any]] = [(data, mask, weights)]
    elif isinstance(data, (tuple, dict, str, bytes)) or not isinstance(data, Iterable):
        what = "a pair or another tuple" if isinstance(data, tuple) else f"of type {type(data).__name__}"
        msg = f"the data are {what}, and a layer adapts to the inputs alone\n"
        msg += "pass only x: an array, a list of batches, or a generator such as (x for x, y in data)"
        raise InputError(msg, code="A020")
    else:
        pairs = _together(data, mask, weights)
    for number, (given, given_mask, given_weights) in enumerate(pairs, 1):
        if isinstance(given, (tuple, dict)):
            msg = f"batch {number} of the data is a {type(given).__name__}, and a layer adapts to the inputs alone\n"
            msg += "pass only x: adapt(x for x, y in data)"
            raise InputError(msg, code="A021")
        what = "the data" if given is data else f"batch {number} of the data"
        if isinstance(given, np.ndarray) and not isinstance(given, np.ma.MaskedArray):
            dtype_name(given.dtype, what)  # an array that is mapped from a file is not to be converted as a whole
        else:
            real(given, what)
        weight = weights_for(given.shape, given_mask, given_weights)
        alone = is_one_example(config, given.shape)
        batch = given[None] if alone else given
        batched = resolve_config(ungrouped(config, batch.shape), batch.shape).batched
        yield number, batch, weight[None] if alone and weight is not None else weight, len(batch) if batched else 1


def _together(data: Iterable[Any], mask: Any, weights: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Each batch with its mask and its weights; where one array is given, it is for every batch."""
    end = object()
    rest = [
        itertools.repeat(values) if values is None or isinstance(values, np.ndarray) else itertools.chain(values, [end])
        for values in (mask, weights)
    ]
    for number, (batch, *others) in enumerate(zip(data, *rest, strict=False), 1):
        for name, other in zip(("mask", "weights"), others, strict=True):
            if other is end:
                msg = f"there are {number - 1} arrays of {name}, and more batches of data\n"
                msg += "pass one for each batch, or one array for all"
                raise ParameterError(msg, code="P110")
        yield batch, *others


def _chunks(x: Array, weights: Array | None, config: LayerConfig) -> Iterator[Chunk]:
    """The parts of a batch that are worked on at a time: some of its examples, where these are far apart in memory."""
    rows = max(CHUNK // max(x.nbytes // max(len(x), 1), 1), 1) if x.ndim else 1
    outermost = x.ndim > 0 and abs(x.strides[0]) == max(map(abs, x.strides))
    batched = resolve_config(ungrouped(config, x.shape), x.shape).batched
    if not batched or not outermost or len(x) <= rows:
        yield real(x, "the data"), weights
        return
    for start in range(0, len(x), rows):
        part = x[start : start + rows]
        yield real(part, "the data"), None if weights is None else weights[start : start + rows]
        _release(part)


def _release(part: Array) -> None:
    """Let go of the pages of a part that is mapped from a file: they are read from it again if they are needed."""
    base: Any = part
    while isinstance(base, np.ndarray):
        mode = getattr(base, "mode", None)
        base = base.base
    # What was written into a private map exists nowhere else.
    if not isinstance(base, mmap.mmap) or mode not in {"r", "r+"} or not hasattr(mmap, "MADV_DONTNEED"):
        return
    first = part.__array_interface__["data"][0] - np.frombuffer(base, np.uint8).__array_interface__["data"][0]
    lo = first // mmap.PAGESIZE * mmap.PAGESIZE
    base.madvise(mmap.MADV_DONTNEED, lo, min(first + part.nbytes, len(base)) - lo)


# ------------------------------------------------------------------------------------------------------------ progress


class Progress:
    """How far it is, on standard error: a bar of tqdm or rich where one of them is there, else a line.

    Parameters
    ----------
    wanted : bool or None
        None shows it where standard error is a terminal, once it has taken a second.
    total : int or None
        How much there is to do, if that is known.
    """

    def __init__(self, wanted: bool | None, total: int | None) -> None:
        self.wanted, self.total = wanted, total
        self.begin = time.monotonic()
        self.show: Callable[[int], None] | None = None
        self.close: Callable[[], None] = lambda: None

    def __enter__(self) -> Self:
        return self

    def __call__(self, done: int) -> None:
        """Say that so much is done."""
        if self.wanted is False:
            return
        if self.show is None:
            late = time.monotonic() - self.begin > PATIENCE
            if not self.wanted and not (late and sys.stderr is not None and sys.stderr.isatty()):
                return
            self.show, self.close = _bar(self.total)
        self.show(done)

    def __exit__(self, *_: object) -> None:
        self.close()


def _bar(total: int | None) -> tuple[Callable[[int], None], Callable[[], None]]:
    """What shows a number, and what ends it."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        pass
    else:
        bar = tqdm(total=total, unit=" examples", unit_scale=True, file=sys.stderr)

        def advance(done: int) -> None:
            bar.update(done - bar.n)

        return advance, bar.close
    try:
        from rich.console import Console
        from rich.progress import Progress as Bars
    except ModuleNotFoundError:
        pass
    else:
        bars = Bars(console=Console(stderr=True))
        bars.start()
        task = bars.add_task("adapt", total=total)
        return lambda done: bars.update(task, completed=done), bars.stop
    of = "" if total is None else f" of {total:,}"

    def line(done: int) -> None:
        sys.stderr.write(f"\r{done:,}{of} examples")

    def end() -> None:
        sys.stderr.write("\n")

    return line, end
