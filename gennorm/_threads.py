"""Ranges of work, shared by a few threads; and what has to hold still while a process forks.

Kernels release the interpreter's lock and take a range, so the threads are Python's own: an executor that is made when
it is first worth it, made anew after a fork, and done without wherever it cannot be had. The ranges never decide what
is computed, only who computes it, so the results are the same for any number of threads.
"""

from __future__ import annotations

import itertools
import operator
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Protocol, TypeVar

from gennorm.errors import ConfigError, shown

__all__ = ["Using", "changing", "get_num_threads", "hold_in_forks", "run", "set_num_threads", "shared", "unbroken"]


T = TypeVar("T")


class Lock(Protocol):
    """What can be held."""

    def acquire(self) -> object:
        """Wait until nobody else has it."""

    def release(self) -> object:
        """Let go of it."""


# Waking another thread costs about 50 microseconds, the time one needs for some 100,000 elements.
WORTH_SHARING = 1 << 17
SHARED = 2 * WORTH_SHARING  # elements from which work is worth more than one thread
RANGES_EACH = 4  # more ranges than threads, so that one that is held up does not hold up the rest

# Held where the state of a layer changes, for moments, and by every fork: a child has one thread of its parent's only,
# and would wait for ever for a lock that another held. Reentrant, because a signal's handler may call a layer while the
# thread it interrupts is changing one. Nothing is imported or compiled while it is held.
changing = threading.RLock()

_busy = threading.Lock()  # held while the pool is in use: a nested or second caller works alone
_pool: ThreadPoolExecutor | None = None
_pooled = 0  # threads of the pool
_threads: int | None = None
_here = threading.local()  # .number: how many threads calls from this one use, where `Using` says so


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
    global _threads  # noqa: PLW0603
    try:
        count = 0 if isinstance(number, bool) else operator.index(number)
    except TypeError:
        count = 0
    if count < 1:
        msg = f"the number of threads cannot be {shown(number)}\nwrite an integer of 1 or more"
        raise ConfigError(msg, code="C101")
    _threads = count  # the pool changes with the next large call


class Using:
    """Use so many threads for the calls that this thread makes meanwhile, whatever was set.

    Examples
    --------
    >>> with Using(3):
    ...     get_num_threads()
    3
    """

    __slots__ = ("_before", "_number")

    def __init__(self, number: int) -> None:
        self._number = number

    def __enter__(self) -> None:
        self._before = getattr(_here, "number", None)
        _here.number = self._number

    def __exit__(self, *_: object) -> None:
        _here.number = self._before


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
    busy = _busy  # after a fork there is another
    if threads < 2 or not busy.acquire(blocking=False):
        work(0, tasks)
        return
    try:
        _shared(work, tasks, threads)
    finally:
        busy.release()


def _shared(work: Callable[[int, int], None], tasks: int, threads: int) -> None:
    ranges = min(tasks, threads * RANGES_EACH)
    bounds = [tasks * i // ranges for i in range(ranges + 1)]
    following = itertools.count()  # next() on it is one step of the interpreter, hence safe to share

    def take() -> None:
        while (i := next(following)) < ranges:
            work(bounds[i], bounds[i + 1])

    futures: list[Future[None]] = []
    try:
        try:
            pool = _made(max(get_num_threads(), threads) - 1)
            while len(futures) < threads - 1:
                futures.append(pool.submit(take))
        except RuntimeError:  # no new thread: the interpreter is shutting down, or the system has none left
            _drop()
            futures = [future for future in futures if not future.cancelled()]
        take()
    finally:
        wait(futures)  # nobody may still be writing when the caller goes on, interrupted or not
    for future in futures:
        future.result()


def _made(threads: int) -> ThreadPoolExecutor:
    """The pool, with so many threads at the least."""
    global _pool, _pooled
    if _pool is not None and _pooled < threads:
        _drop()
    if _pool is None:
        _pool, _pooled = ThreadPoolExecutor(threads, thread_name_prefix="gennorm"), threads
    return _pool


def _drop() -> None:
    """Do without the pool, once whatever of it is still at work has ended; what was refused may be in its queue."""
    global _pool  # noqa: PLW0603
    if _pool is not None:
        _pool.shutdown(cancel_futures=True)
    _pool = None


# -------------------------------------------------------------------------------------------------- interrupts, forks


def unbroken(work: Callable[[], T]) -> T:
    """Return what the work returns; KeyboardInterrupt ends the waiting for it, and not the work.

    An import or a compilation of Numba that is broken off leaves it half there, and useless to the process.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()  # no other thread is interrupted
    done: Future[T] = Future()

    def live() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001  it is raised where it is waited for
            done.set_exception(error)

    try:
        threading.Thread(target=live, name="gennorm-unbroken").start()
    except RuntimeError:  # no new thread: the interpreter is shutting down, or the system has none left
        return work()
    return done.result()


_held: list[Lock] = [changing]  # locks that a fork waits for
_holding: list[Lock] = []  # those that the fork which is going on has


def hold_in_forks(lock: Lock) -> None:
    """Have every fork from now on wait until nobody else holds the lock."""
    _held.append(lock)


def _before_fork() -> None:
    for lock in _held:  # while it waits for one, another thread may import the engine, which adds another
        lock.acquire()
        _holding.append(lock)


def _after_fork() -> None:
    while _holding:
        _holding.pop().release()


def _after_fork_in_child() -> None:
    """Forget the threads of the parent, which do not exist in the child."""
    global _pool, _busy  # noqa: PLW0603
    _pool = None
    _busy = threading.Lock()
    _after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
