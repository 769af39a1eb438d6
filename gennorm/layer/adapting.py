"""Moments of a data set: computed chunk by chunk in one pass, and merged."""

from __future__ import annotations

import functools
import itertools
import math
import mmap
import numbers
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from gennorm.engine import extend_moments
from gennorm.errors import InitializationError, InputError, ParameterError, ShapeError, shown, suggest
from gennorm.layer.arrays import KNOWN, dtype_name, real
from gennorm.layer.statistics import is_one_example, ungrouped
from gennorm.masks import broadcast, broadcast_mask
from gennorm.moments import Moments, checked_weights, real_array, two_sum
from gennorm.spec.config import LayerConfig, resolve_config

__all__ = ["NAN", "Progress", "added", "complete", "extended", "merged", "moments_of", "nan_found", "require_policy"]

Array = npt.NDArray[Any]
Measure = Callable[[Array, Array | None], Moments]

CHUNK = 1 << 23  # bytes of an array that are measured at a time
RUN = 1 << 14  # least contiguous bytes of a chunk, if axis 0 is not the outermost in memory: whole pages
# Up to this many elements NumPy is faster than a kernel, whose call and checks cost 40 us more.
SMALL = 1 << 13
# Examples with fewer slices that a kernel merges at once: it is made for many slices.
MOST_EXAMPLES = 64
# The ratio of squared mean and variance from which a chunk is measured again about its mean. A kernel sums float32
# squares in one pass up to a ratio of 1024, where 10 of 53 bits cancel.
FAR = 16.0
MOST_RUNS = 1 << 12  # up to this many separate pieces of a chunk are released one by one, more as one range
AROUND = 1 << 16  # bytes that Linux maps before and after a page that is read
PATIENCE = 1.0  # seconds until progress is shown on a terminal by default
NAN = ("propagate", "omit", "raise")


def moments_of(
    data: Any,
    config: LayerConfig,
    *,
    mask: Any = None,
    weights: Any = None,
    nan: str = "propagate",
    reset: bool = True,
    progress: bool | None = None,
    measure: Measure,
) -> Moments:
    """Compute the moments of a data set for a layer of this config, in one pass.

    Parameters
    ----------
    data : ndarray, or iterable of ndarray
    config : LayerConfig
    mask, weights : ndarray, or iterable of ndarray, optional
        For an array of data, or for each batch.
    nan : {"propagate", "omit", "raise"}
        How NaN in the data is handled.
    reset : bool
        Whether the data replace the held moments; if so, data of one example warn, because they may be a mistake.
    progress : bool, optional
        Whether to show a bar; None shows it on a terminal after a second.
    measure : callable, optional
        Returns the moments of all examples of an array, given it and its weights.

    Returns
    -------
    Moments
        Without an axis for the batch.

    Warns
    -----
    UserWarning
        The data are one example with one value in each slice.
    RuntimeWarning
        A variance is not finite.

    Raises
    ------
    GennormError
        As `NormalizationLayer.adapt`.
    """
    require_policy(nan)
    whole, single = merged(data, mask, weights, config, nan, progress, measure)
    return complete(whole, data if single and reset else None, frames=5)


def require_policy(nan: str) -> None:
    """Refuse another word than those that say how NaN is handled."""
    if nan not in NAN:
        msg = f'nan cannot be {shown(nan)}{suggest(nan, NAN)}\nwrite "propagate", "omit" or "raise"'
        raise ParameterError(msg, code="P112")


def complete(whole: Moments | None, one_example: Any = None, *, frames: int = 4) -> Moments:
    """Return the merged moments of a data set; refuse those that count nothing, and warn as `moments_of`.

    `one_example` are the data if they may be one example by mistake; `frames` is the number of calls from the user's.
    """
    if whole is None or not whole.count.any():
        msg = "the data have no element that counts: there is no batch, or batches are empty or masked\n"
        msg += "pass an array, or an iterable of batches; a generator that is exhausted yields no batches"
        raise InitializationError(msg, code="I011")
    if one_example is not None:
        _warn_of_one_example(one_example, whole, frames + 1)
    if not np.logical_and.reduce(np.isfinite(whole.m2), axis=None):
        wrong = np.count_nonzero(~np.isfinite(whole.m2))
        msg = f"{wrong:,} of {whole.m2.size:,} variances are not finite: the data have NaN or infinities there, or "
        msg += 'numbers whose squares are too large; nan="omit" leaves NaN out, nan="raise" says where one is'
        warnings.warn(msg, RuntimeWarning, stacklevel=frames)
    return whole


def added(held: Moments, found: Moments) -> Moments:
    """Merge the moments of data into held moments.

    Raises
    ------
    ParameterError
        They have another shape.
    """
    if held.shape != found.shape:
        msg = f"the layer holds moments of shape {held.shape}, and those of the data have the shape {found.shape}\n"
        msg += "data with other levels or sizes cannot be added; adapt(data) without reset=False replaces the moments"
        raise ParameterError(msg, code="P113")
    return held + found


def extended(held: Moments | None, data: Any, config: LayerConfig) -> Moments | None:
    """Merge a small plain array into held moments, without the checks of `moments_of`; return None for other data.

    Reinforcement learning calls `adapt` with a few numbers in every step.
    """
    if held is None or held.mean is None or type(data) is not np.ndarray or data.size > SMALL:
        return None
    if data.dtype not in KNOWN:
        return None
    layout = _layout(config, data.shape)
    if held.shape != layout.kept or not data.size:
        return None
    x = data.astype(np.float64, copy=False).reshape(layout.split)
    if layout.over != layout.leading:
        x = x.transpose(layout.over + tuple(axis for axis in range(x.ndim) if axis not in layout.over))
    slices = math.prod(layout.kept)
    x = np.ascontiguousarray(x).reshape(-1, slices)
    # About the mean that is held, one pass loses at most one bit where there are no more values than were counted.
    if (slices < len(x) > MOST_EXAMPLES) or np.minimum.reduce(held.count, axis=None) < len(x):
        return None
    rows = held.rows()
    return Moments.of_rows(rows) if extend_moments(x, rows.reshape(5, slices)) else None


def merged(
    data: Any, mask: Any, weights: Any, config: LayerConfig, nan: str, progress: bool | None, measure: Measure
) -> tuple[Moments | None, bool]:
    """Return the merged moments of all chunks, and whether the data are one example with one value in each slice."""
    # Sums of 1, 2, 4, 8, ... chunks, as in a binary counter: every chunk is part of few additions and roundings.
    sums: list[tuple[int, Moments]] = []
    seen, single = 0, False
    total = len(data) if isinstance(data, np.ndarray) and data.ndim else None
    with Progress(progress, total) as report:
        for batch in _batches(data, mask, weights, config):
            single = batch.layout.single and batch.number == 1
            for start, part, weight in _chunks(batch):
                layout = _layout(config, part.shape)
                compute = functools.partial(_measured, measure=measure)
                found = compute(part, weight, layout)
                if nan != "propagate":
                    found = _without_nan(found, part, weight, layout, nan, batch.name, start, compute)
                if sums and found.shape != sums[0][1].shape:
                    msg = f"batch {batch.number} of the data has slices of shape {found.shape}, and those before "
                    msg += f"{sums[0][1].shape}\nkept levels must have the same size in all batches"
                    raise ShapeError(msg, code="S030")
                size = 1
                while sums and sums[-1][0] == size:
                    size, found = 2 * size, sums.pop()[1] + found
                sums.append((size, found))
                seen += len(part) if layout.batched else 1
                report(seen)
    whole = None
    for _, found in reversed(sums):
        whole = found if whole is None else found + whole
    return whole, single


def _warn_of_one_example(data: Any, whole: Moments, frames: int) -> None:
    shape = data.shape if isinstance(data, np.ndarray) else whole.shape
    msg = f"the data are one example of shape {shape}: each slice has one value, and every variance is 0; "
    msg += "write x[:, None] for examples of one feature, x[None] for a batch of one example, "
    msg += "or feature_norm(None) for one mean of all values"
    warnings.warn(msg, UserWarning, stacklevel=frames)


# ---------------------------------------------------------------------------------------------- the moments of a chunk


class _Layout(NamedTuple):
    """The slices of an array, for a layer with held moments."""

    one_example: bool  # the array is one example of a layer that aggregates the batch: a batch of one
    batched: bool  # axis 0 is the batch
    split: tuple[int, ...]  # the shape, with two axes for one that is grouped, and the batch of one
    over: tuple[int, ...]  # the axes of that shape that are aggregated, the batch included
    leading: tuple[int, ...]  # as many axes from the first on
    kept: tuple[int, ...]  # the shape of the moments
    single: bool  # one example whose slices have one value each, without a declared shape
    center: bool  # the method subtracts a mean


@functools.lru_cache(maxsize=1024)
def _layout(config: LayerConfig, shape: tuple[int, ...]) -> _Layout:
    one_example = is_one_example(config, shape)
    whole = (1, *shape) if one_example else shape
    resolved = resolve_config(ungrouped(config, whole), whole)
    split: list[int] = []
    over = []
    for axis, (size, groups) in enumerate(zip(whole, resolved.groups, strict=True)):
        aggregated = axis in resolved.aggregation
        if aggregated and groups > 1:
            split.append(groups)
        if aggregated or (axis == 0 and resolved.batched):
            over.append(len(split))
        split.append(size // groups if aggregated else size)
    kept = tuple(size for axis, size in enumerate(split) if axis not in over)
    single = one_example and config.input_shape is None and math.prod(split[axis] for axis in over) == 1
    center = config.method == "Standardize"
    return _Layout(
        one_example, resolved.batched, tuple(split), tuple(over), tuple(range(len(over))), kept, single, center
    )


def _measured(x: Array, weights: Array | None, layout: _Layout, *, measure: Measure) -> Moments:
    """Measure a chunk as exactly as NumPy in float64, with a kernel if that is faster."""
    if x.size <= SMALL:
        return _in_numpy(x, weights, layout)
    # Kernels take weights in the type they compute in, and sum squares of halves in float32.
    if weights is not None and weights.dtype != np.bool_:
        x = x.astype(np.float64, copy=False)
    elif x.dtype.itemsize == 2 and x.dtype.kind in "fV":
        x = x.astype(np.float32)
    found = measure(x, weights)
    with np.errstate(all="ignore"):
        if _is_doubtful(found, x, layout):
            return _in_numpy(x, weights, layout)
        if found.mean is None or not ((found.mean**2 * found.count > FAR * found.m2) & (found.m2 > 0)).any():
            return found
        away = np.subtract(x.reshape(layout.split), np.expand_dims(found.mean, layout.over), dtype=np.float64)
        near = measure(away.reshape(x.shape), weights)
        mean, lost = two_sum(found.mean, near.mean)
        return Moments.trusted(near.count, mean, near.m2, lost)


def _is_doubtful(found: Moments, x: Array, layout: _Layout) -> bool:
    """Return whether a value is not finite, or sums of a kernel may have underflowed."""
    mean = 0.0 if found.mean is None else found.mean
    if not np.isfinite(found.m2 + mean).all():
        return True
    if x.dtype.itemsize < 8:  # squares of float32 neither overflow nor underflow in float64
        return False
    low = (found.m2 < 1e-250) & ((found.m2 > 0) | (np.abs(mean) < 1e-120)) | (found.count < 1e-100)
    return bool(low.any() and (low & (x.reshape(layout.split) != 0).any(axis=layout.over)).any())


def _in_numpy(x: Array, weights: Array | None, layout: _Layout) -> Moments:
    floats = x.astype(np.float64, copy=False).reshape(layout.split)
    return Moments.of_floats(
        floats, layout.over, None if weights is None else weights.reshape(layout.split), center=layout.center
    )


def _without_nan(
    found: Moments,
    x: Array,
    weights: Array | None,
    layout: _Layout,
    nan: str,
    name: str,
    start: int,
    compute: Callable[[Array, Array | None, _Layout], Moments],
) -> Moments:
    """Omit or refuse NaN; the chunk starts at index `start` of axis 0."""
    if not np.isnan(found.m2).any():
        return found
    missing = np.isnan(x)
    if weights is not None:
        missing &= weights.reshape(missing.shape) > 0
    if not missing.any():  # an infinity
        return found
    if nan == "raise":
        at = tuple(np.argwhere(missing)[0].tolist())
        raise nan_found(name, (at[0] + start, *at[1:]) if start else at)
    return compute(x, ~missing if weights is None else np.where(missing, weights.dtype.type(0), weights), layout)


def nan_found(name: str, at: tuple[int, ...]) -> ParameterError:
    """Return the error of a NaN at a position of data that are called `name`."""
    msg = f'{name} has NaN at {at}\nwrite nan="omit" to leave it out, or nan="propagate" for moments of NaN'
    return ParameterError(msg, code="P114")


# ------------------------------------------------------------------------------------------------- batches and chunks


class _Batch(NamedTuple):
    number: int  # from 1
    name: str  # what errors call it
    x: Array
    mask: Array | None  # of the shape of x
    weights: Array | None  # of the shape of x, not checked yet
    given_weights: Any
    layout: _Layout


def _batches(data: Any, mask: Any, weights: Any, config: LayerConfig) -> Iterator[_Batch]:
    """Yield every batch of the data with its mask and its weights."""
    if isinstance(data, np.ndarray) or hasattr(data, "__array__"):
        triples: Iterable[tuple[Any, Any, Any]] = [(data, mask, weights)]
    elif isinstance(data, (tuple, dict, str, bytes)) or not isinstance(data, Iterable):
        what = "a pair or another tuple" if isinstance(data, tuple) else f"of type {type(data).__name__}"
        msg = f"the data are {what}, and adapt takes inputs only\n"
        msg += "pass only x: an array, a list of batches, or a generator such as (x for x, y in data)"
        raise InputError(msg, code="A020")
    else:
        triples = _together(data, mask, weights)
    for number, (x, given_mask, given_weights) in enumerate(triples, 1):
        if isinstance(x, (tuple, dict)):
            msg = f"batch {number} of the data is a {type(x).__name__}, and adapt takes inputs only\n"
            msg += "pass only x: adapt(x for x, y in data)"
            raise InputError(msg, code="A021")
        name = "the data" if x is data else f"batch {number} of the data"
        if isinstance(x, np.ndarray) and not isinstance(x, np.ma.MaskedArray):
            dtype_name(x.dtype, name)  # an array that is mapped from a file is converted chunk by chunk
        else:
            real(x, name)
        counted = None if given_mask is None else broadcast_mask(given_mask, x.shape, name)
        weight = None
        if given_weights is not None:
            weight = broadcast(real_array(given_weights, "weights"), x.shape, "weights", name)
        layout = _layout(config, x.shape)
        if layout.one_example:
            counted = None if counted is None else counted[None]
            weight = None if weight is None else weight[None]
        whole = x[None] if layout.one_example else x
        yield _Batch(number, name, whole, counted, weight, given_weights, layout)


def _together(data: Iterable[Any], mask: Any, weights: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Yield each batch with its mask and its weights; one array or one number is used for every batch."""
    end = object()
    rest = []
    for name, values in (("mask", mask), ("weights", weights)):
        for_all = values is None or isinstance(values, np.ndarray)
        for_all = for_all or (name == "weights" and isinstance(values, numbers.Real))
        if not for_all and (isinstance(values, (str, bytes, dict)) or not isinstance(values, Iterable)):
            msg = f"{name} for an iterable of batches is {shown(values)}\n"
            msg += "pass an array for each batch, in a list or a generator, or one array for all"
            raise InputError(msg, code="A024")
        rest.append(itertools.repeat(values) if for_all else itertools.chain(values, itertools.repeat(end)))
    number = 0
    for number, batch in enumerate(data, 1):
        others = [next(values) for values in rest]
        for name, other in zip(("mask", "weights"), others, strict=True):
            if other is end:
                msg = f"there are {number - 1} arrays of {name}, and more batches of data\n"
                msg += "pass one for each batch, or one array for all"
                raise ParameterError(msg, code="P110")
        yield batch, *others
    for name, values in zip(("mask", "weights"), rest, strict=True):
        if isinstance(values, itertools.chain) and next(values) is not end:
            msg = f"there are {number} batches of data, and more arrays of {name}\n"
            msg += "pass one for each batch, or one array for all"
            raise ParameterError(msg, code="P115")


def _chunks(batch: _Batch) -> Iterator[tuple[int, Array, Array | None]]:
    """Yield the chunks of a batch: the first index, the elements, and the weights or the mask."""
    x, rows = batch.x, 1
    if batch.layout.batched or batch.layout.one_example:
        rows = max(CHUNK // max(x.nbytes // max(len(x), 1), 1), RUN // max(abs(x.strides[0]), 1), 1)
    else:
        rows = max(len(x), 1) if x.ndim else 1
    for start in range(0, max(len(x), 1) if x.ndim else 1, rows):
        key: Any = slice(start, start + rows) if x.ndim else ...
        weight = None if batch.mask is None else batch.mask[key]
        if batch.weights is not None:
            floats = batch.weights[key].astype(np.float64, copy=False)
            if not (np.isfinite(floats) & (floats >= 0)).all():
                checked_weights(batch.given_weights, batch.x.shape, batch.name)  # raises an error with the position
            weight = floats if weight is None else np.where(weight, floats, 0.0)
        yield start, real(x[key], batch.name), weight
        _release(x[key])


def _release(part: Array) -> None:
    """Release the memory of a chunk that is mapped from a file; the system reads it again if it is used again."""
    base: Any = part
    mode = None
    while isinstance(base, np.ndarray):
        mode = getattr(base, "mode", mode)
        base = base.base
    # Memory that was written in a private mapping cannot be read again from the file.
    if not isinstance(base, mmap.mmap) or mode not in {"r", "r+"} or not hasattr(mmap, "MADV_DONTNEED"):
        return
    begin = np.frombuffer(base, np.uint8).__array_interface__["data"][0]
    outer = [axis for axis in range(1, part.ndim) if abs(part.strides[axis]) > abs(part.strides[0])]
    if math.prod(part.shape[axis] for axis in outer) > MOST_RUNS:
        outer = []
    for index in np.ndindex(*(part.shape[axis] for axis in outer)):
        key: list[Any] = [slice(None)] * part.ndim
        for axis, at in zip(outer, index, strict=True):
            key[axis] = at
        first, last = np.lib.array_utils.byte_bounds(part[tuple(key)])
        lo = max((first - begin) // mmap.PAGESIZE * mmap.PAGESIZE - AROUND, 0)
        hi = min(-(-(last - begin) // mmap.PAGESIZE) * mmap.PAGESIZE + AROUND, len(base))
        if hi > lo:
            base.madvise(mmap.MADV_DONTNEED, lo, hi - lo)


# ------------------------------------------------------------------------------------------------------------ progress


class Progress:
    """Show progress on standard error: a bar of tqdm or rich where one is installed, else a line.

    Parameters
    ----------
    wanted : bool or None
        None shows it where standard error is a terminal, after a second.
    total : int or None
        Number of examples, if it is known.
    """

    def __init__(self, wanted: bool | None, total: int | None) -> None:
        self.wanted, self.total = wanted, total
        self.begin = time.monotonic()
        self.show: Callable[[int], None] | None = None
        self.close: Callable[[], None] = lambda: None

    def __enter__(self) -> Self:
        return self

    def __call__(self, done: int) -> None:
        """Show the number of examples that are done."""
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
    """Return two functions: one shows a number of examples, one ends the bar."""
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
