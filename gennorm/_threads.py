"""Ranges of work, shared by a few threads.

Kernels release the interpreter's lock and take a range, so the threads are Python's own: an executor that is made when
it is first worth it, made anew after a fork, and done without wherever it cannot be had. The ranges never decide what
is computed, only who computes it, so the results are the same for any number of threads.
"""

from __future__ import annotations

import itertools
import operator
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager

from gennorm.errors import ConfigError, shown

__all__ = ["get_num_threads", "run", "set_num_threads", "shared", "using"]

# Waking another thread costs about 50 microseconds, the time one needs for some 100,000 elements.
WORTH_SHARING = 1 << 17
SHARED = 2 * WORTH_SHARING  # elements from which work is worth more than one thread
RANGES_EACH = 4  # more ranges than threads, so that one that is held up does not hold up the rest

_lock = threading.Lock()  # held while the pool is in use: a nested or second caller works alone
_pool: ThreadPoolExecutor | None = None
_workers = 0  # in the pool
_threads: int | None = None
_here = threading.local()  # .number: how many threads calls from this one use, where `using` says so


def get_num_threads() -> int:
    """Return how many threads a large call uses.

    Returns
    -------
    int
        What `set_num_threads` was given; before that ``OMP_NUM_THREADS``, where it is set, or the processors this
        process may run on.

    Examples
    --------
    >>> import gennorm as gn
    >>> before = gn.get_num_threads()
    >>> gn.set_num_threads(1)
    >>> gn.get_num_threads()
    1
    >>> gn.set_num_threads(before)
    """
    here: int | None = getattr(_here, "number", None)
    if here is not None:
        return here
    if _threads is not None:
        return _threads
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return min(available, int(wanted)) if wanted.isdecimal() and int(wanted) else available


def set_num_threads(number: int) -> None:
    """Set how many threads a large call uses, the caller's own included.

    Parameters
    ----------
    number : int
        At least 1. Results do not depend on it.

    Raises
    ------
    ConfigError
        The number is not an integer of at least 1.

    Examples
    --------
    >>> import gennorm as gn
    >>> before = gn.get_num_threads()
    >>> gn.set_num_threads(2)
    >>> gn.get_num_threads()
    2
    >>> gn.set_num_threads(before)
    """
    global _threads, _pool  # noqa: PLW0603
    try:
        count = 0 if isinstance(number, bool) else operator.index(number)
    except TypeError:
        count = 0
    if count < 1:
        msg = f"the number of threads cannot be {shown(number)}\nwrite an integer of 1 or more"
        raise ConfigError(msg, code="C101")
    with _lock:
        if _pool is not None and count != _threads:
            _pool.shutdown(wait=False)
            _pool = None
        _threads = count


@contextmanager
def using(number: int) -> Iterator[None]:
    """Use so many threads for the calls that this thread makes meanwhile, whatever was set.

    Examples
    --------
    >>> with using(3):
    ...     get_num_threads()
    3
    """
    before = getattr(_here, "number", None)
    _here.number = number
    try:
        yield
    finally:
        _here.number = before


def shared(elements: int) -> bool:
    """Return whether work on so many elements is worth more than one thread, however many there are."""
    return elements >= SHARED


def run(work: Callable[[int, int], None], tasks: int, elements: int) -> None:
    """Call ``work(lo, hi)`` for ranges that together cover the tasks, side by side where that is worth it.

    Parameters
    ----------
    work : callable
        Does the tasks ``lo`` to ``hi``; ranges may be done in any order and at the same time.
    tasks : int
        Number of independent tasks.
    elements : int
        Size of all of them together, which decides whether sharing pays.
    """
    threads = min(get_num_threads(), tasks, elements // WORTH_SHARING) if shared(elements) else 1
    if threads < 2 or not _lock.acquire(blocking=False):
        work(0, tasks)
        return
    try:
        _shared(work, tasks, threads)
    finally:
        _lock.release()


def _shared(work: Callable[[int, int], None], tasks: int, threads: int) -> None:
    global _pool, _workers  # noqa: PLW0603
    ranges = min(tasks, threads * RANGES_EACH)
    bounds = [tasks * i // ranges for i in range(ranges + 1)]
    following = itertools.count()  # next() on it is one step of the interpreter, hence safe to share

    def take() -> None:
        while (i := next(following)) < ranges:
            work(bounds[i], bounds[i + 1])

    futures = []
    try:
        if _pool is None or _workers < threads - 1:
            if _pool is not None:
                _pool.shutdown(wait=False)
            _workers = get_num_threads() - 1
            _pool = ThreadPoolExecutor(_workers, thread_name_prefix="gennorm")
        futures = [_pool.submit(take) for _ in range(threads - 1)]
    except RuntimeError:  # the interpreter is shutting down and starts no more threads: the caller does it all
        _pool = None
    try:
        take()
    finally:
        wait(futures)  # nobody may still be writing when the caller goes on, interrupted or not
    for future in futures:
        future.result()


def _after_fork() -> None:
    """Forget the threads of the parent, which do not exist in the child."""
    global _pool, _lock  # noqa: PLW0603
    _pool = None
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
