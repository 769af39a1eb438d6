"""The buffer pool: memory of outputs that is used again, and that begins where the input does in a cache line.

The system clears each page that a process touches for the first time. For a large call this costs as much as the work:
a layer norm of (32768, 1024) takes 7.5 ms into used memory and 28 ms into new memory. And where input and output begin
at different places of a cache line, loads wait for stores to other addresses: 188 against 113 ps an element.

An output is a view of a buffer, and so is every view of that output. A buffer is *lent* while the interpreter counts
references to it besides the pool's, and *idle* afterwards. Only idle buffers are used again.

The pool holds at most `get_reserve` bytes. Well below that, it holds not much more than was lent at one time: when a
buffer is added, those that were idle for longest are released. So sizes that do not come back take no memory, and calls
that repeat add no buffers and release none.
"""

from __future__ import annotations

import mmap
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from gennorm.engine import limits
from gennorm.engine.forks import changing
from gennorm.errors import ConfigError, shown

__all__ = ["address", "allocate", "clear_reserve", "copied", "empty_like", "get_reserve", "set_reserve"]

Array = npt.NDArray[Any]
T = TypeVar("T")

LINE = 64  # bytes of a cache line
BEGIN = 16  # where memory that the C library takes from the system begins in its cache line
WORTH = 1 << 17  # bytes from which the C library takes new memory from the system; smaller pieces it uses again itself
STEPS = 8  # sizes of buffers between one power of two and the next: at most an eighth is left over
LARGER = 4  # sizes above the one wanted that are used before a new buffer is made
NEWEST = 8  # buffers looked at first, the last lent first: the caches may still hold them
OLDEST = 64  # buffers looked at next, the first lent first: 0.1 us each, and new pages cost at least 20 us
HUGE = 1 << 22  # bytes from which pages of 2 MiB are requested, as NumPy does
LIMIT = 1 << 30  # bytes, unless that is more than an eighth of the memory this process may use
SLACK = 1 << 25  # bytes that the pool may hold beyond what was lent at one time, or half of that if it is more
FORGET = 4  # part of the difference by which the bytes that were lent at one time approach those lent now


class Buffer:
    """Memory of the pool."""

    __slots__ = ("address", "array", "used")

    def __init__(self, size: int) -> None:
        self.array = _pages(size + LINE)
        self.address = address(self.array)  # NumPy takes a microsecond to find it
        self.used = 0  # value of `_made` when it was last lent


_pool: dict[int, deque[Buffer]] = {}  # by size, lent or idle
_pooled = 0  # bytes of them all
_made = 0  # buffers that were made so far, which serves as a clock
_peak = 0  # bytes lent at one time, forgotten gradually
_allowed = 0  # bytes up to which buffers are added without a look at the others
_pause = 0  # buffers made outside the pool before it is looked at again
_limit: int | None = None
NONE: deque[Buffer] = deque()


def get_reserve() -> int:
    """Return the largest number of bytes in the buffer pool, the memory that is used again for outputs.

    Returns
    -------
    int
        The number passed to `set_reserve`; before the first such call 1 GiB, or an eighth of the memory that this
        process may use if that is less: of the machine, of its container (control groups) and of ``ulimit -v``.

    Examples
    --------
    >>> import gennorm as gn
    >>> 0 < gn.get_reserve() <= 2**30
    True
    """
    global _limit  # noqa: PLW0603
    if _limit is None:
        available = limits.memory()
        _limit = LIMIT // 4 if available is None else min(LIMIT, available // 8)
    return _limit


def set_reserve(limit: int) -> None:
    """Set the largest number of bytes in the buffer pool, the memory that is used again for outputs; 0 switches it off.

    Outputs and gradients of 128 KiB or more are views of buffers that belong to the library. A buffer to which no array
    refers any more stays allocated and becomes the memory of a later output. So the resident memory of a process stays
    up to half above what its outputs took at one time, or 32 MiB if that is more. This is not a leak: the pool never
    holds more than the limit, releases sizes that do not come back, and releases all idle buffers before a MemoryError.
    No buffer is used again while an array or a view refers to it.

    Parameters
    ----------
    limit : int
        In bytes, for buffers that are in use and for idle ones together.

    Raises
    ------
    ConfigError
        The limit is not an integer of 0 or more.

    See Also
    --------
    clear_reserve : Release the idle buffers now, without a change of the limit.

    Examples
    --------
    >>> import gennorm as gn
    >>> before = gn.get_reserve()
    >>> gn.set_reserve(2**28)
    >>> gn.get_reserve()
    268435456
    >>> gn.set_reserve(before)
    """
    global _limit  # noqa: PLW0603
    if isinstance(limit, bool) or not isinstance(limit, (int, np.integer)) or limit < 0:
        msg = f"the reserve cannot be {shown(limit)}\nwrite a number of bytes, such as 2**30, or 0 to keep no memory"
        raise ConfigError(msg, code="C104")
    _limit = int(limit)
    with changing:
        _release(_pooled - _limit)


def clear_reserve() -> None:
    """Release all idle buffers of the pool and return their memory to the system.

    Examples
    --------
    >>> import gennorm as gn
    >>> gn.clear_reserve()
    """
    global _peak, _allowed  # noqa: PLW0603
    with changing:
        _release(_pooled)
        _peak = _allowed = 0


def allocate(make: Callable[..., T], *arguments: Any) -> T:
    """Return ``make(*arguments)``; if there is no memory for it, release the idle buffers and try again."""
    try:
        return make(*arguments)
    except MemoryError:
        with changing:
            if not _release(_pooled):
                raise
    return make(*arguments)


def empty_like(x: Array, dtype: np.dtype[Any]) -> Array:
    """Return an uninitialized array of the shape and memory order of ``x``, from the pool if it is large."""
    size = x.size * dtype.itemsize
    if size < WORTH:
        return allocate(np.empty_like, x, dtype)
    strides = None if x.flags.c_contiguous else allocate(np.empty_like, x, dtype).strides
    buffer, begin = _lend(size)
    # Where the input begins in its cache line, but aligned for its own elements.
    offset = (address(x) - begin) % LINE // dtype.itemsize * dtype.itemsize
    return np.ndarray(x.shape, dtype, buffer, offset, strides)


def copied(values: Any, dtype: np.dtype[Any]) -> Array:
    """Return a C-ordered copy of parameters that begins where NumPy's large arrays do in a cache line.

    Outputs then begin there too, and no load of a parameter waits for a store: 635 us against 740 to 890, by where the
    parameters begin, for a layer norm of (4096, 1024).
    """
    values = np.asarray(values)
    buffer = allocate(np.empty, values.size * dtype.itemsize + LINE, np.uint8)
    copy: Array = np.ndarray(values.shape, dtype, buffer, (BEGIN - address(buffer)) % LINE)
    copy[...] = values
    return copy


def address(array: Array) -> int:
    """Return the address of the first element."""
    begin: int = array.__array_interface__["data"][0]
    return begin


def _pages(size: int) -> Array:
    """Return new memory that goes back to the system when it is released.

    The C library keeps pieces that are freed between others: after batches of 400 lengths, 61 to 74 MiB of a process
    against 42.
    """
    if not hasattr(mmap, "MAP_ANONYMOUS"):
        return np.empty(size, np.uint8)
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:
        msg = f"Unable to allocate {size / 2**20:.3g} MiB for an output"
        raise MemoryError(msg) from None
    if size >= HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.uint8)


def _lend(size: int) -> tuple[Array, int]:
    """Return idle or new memory for so many bytes, up to the end of a cache line, and its address."""
    step = max(LINE, 1 << size.bit_length() - 1 - STEPS.bit_length() + 1)
    size = -(-size // step) * step
    for larger in range(size, size + (LARGER + 1) * step, step):
        found = _idle(_pool.get(larger, NONE))
        if found is not None:
            return found
    buffer = allocate(Buffer, size)
    _add(buffer, size)
    return buffer.array, buffer.address


def _idle(buffers: deque[Buffer]) -> tuple[Array, int] | None:
    """Take an idle buffer.

    Pops and appends of a deque are atomic: no two threads look at the same buffer. The thread that takes one refers to
    its array before the buffer is back where others find it.
    """
    newest: list[Buffer] = []
    oldest: list[Buffer] = []
    found = None
    for take, seen, most in ((buffers.pop, newest, NEWEST), (buffers.popleft, oldest, OLDEST)):
        while found is None and len(seen) < most:
            try:
                buffer = take()
            except IndexError:  # there are no more, or other threads are looking at them
                break
            seen.append(buffer)
            if sys.getrefcount(buffer.array) == ALONE:
                buffer.used = _made
                found = buffer.array, buffer.address
    # In the order they had, so that an output and a gradient keep their memory from call to call: 3.0 against 3.6 ms
    # for a layer norm of (4096, 768) whose gradient is written past the caches and whose output is not. If all of them
    # are lent, the next call looks at others.
    if found is None:
        newest, oldest = oldest, newest
    buffers.extend(reversed(newest))
    buffers.extendleft(reversed(oldest))
    return found


def _add(buffer: Buffer, size: int) -> None:
    """Add a new buffer to the pool, if that keeps it within its limits."""
    global _made, _pooled, _pause  # noqa: PLW0603
    room = buffer.array.size
    if ALONE == 0 or room > get_reserve():
        return
    with changing:
        _made += 1
        buffer.used = _made
        if _pause > 0:
            _pause -= 1
            return
        if _pooled + room > _allowed:
            _make_room(room)
        if _pooled + room <= get_reserve():
            _pooled += room
            _pool.setdefault(size, deque()).append(buffer)


def _make_room(room: int) -> None:
    """Set how much the pool may hold, by what is lent, and release idle buffers so that there is room for a new one."""
    global _peak, _pooled, _allowed, _pause  # noqa: PLW0603
    sizes = [(buffer.array.size, _is_idle(buffer)) for buffers in list(_pool.values()) for buffer in list(buffers)]
    # Counted again, because an interrupt can lose a buffer between a pop and an append.
    _pooled = sum(size for size, _ in sizes)
    lent = room + sum(size for size, idle in sizes if not idle)
    _peak = max(lent, _peak - (_peak - lent) // FORGET)
    _allowed = min(get_reserve(), _peak + max(_peak // 2, SLACK))
    excess = _pooled + room - _allowed
    if excess > 0:
        _release(excess + _allowed // 8)  # and some more, so that not every new buffer has to make room
    if _pooled + room > get_reserve():
        _pause = len(sizes) // 16


def _release(wanted: int) -> int:
    """Release idle buffers of so many bytes in total, those unused for longest first; return their bytes."""
    global _pooled  # noqa: PLW0603
    idle = [(b.used, b.array.size) for buffers in list(_pool.values()) for b in list(buffers) if _is_idle(b)]
    latest = found = 0
    for used, size in sorted(idle):
        if found >= wanted:
            break
        latest, found = used, found + size
    released = 0
    for buffers in list(_pool.values()):
        for _ in range(len(buffers)):
            if released >= wanted:
                break
            try:
                buffer = buffers.popleft()
            except IndexError:  # other threads are looking at the rest
                break
            if buffer.used <= latest and _is_idle(buffer):
                released += buffer.array.size
            else:
                buffers.append(buffer)
    _pooled -= released
    return released


def _is_idle(buffer: Buffer) -> bool:
    return sys.getrefcount(buffer.array) == ALONE


def _references() -> int:
    """The interpreter's count of references to the array of an idle buffer."""
    buffer = Buffer(1)
    return sys.getrefcount(buffer.array)


# Without the interpreter's lock a count may be read while it changes: there the pool is not used.
ALONE = _references() if getattr(sys, "_is_gil_enabled", lambda: True)() else 0
