"""Ranges of work, shared by a few threads; and what has to hold still while a process forks.

Kernels release the interpreter's lock and take a range, so the threads are Python's own: a pool that is made when it is
first worth it, made anew after a fork, and done without wherever it cannot be had. The ranges never decide what is
computed, only who computes it, so the results are the same for any number of threads.
"""

from __future__ import annotations

import operator
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
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


# Another thread wakes up and has the interpreter 50 to 130 microseconds after it was called; in 100 one does 300,000
# elements. Layer norm of 768, by one thread and by two: 122 and 131 us for 393,216 elements, 255 and 275 for twice, 378
# and 375 for three, 487 and 449 for four times as many; with gradients 372 and 475, 688 and 794, 962 and 962, 1296 and
# 1127.
WORTH_SHARING = 1 << 18
SHARED = 4 * WORTH_SHARING  # elements from which work is worth more than one thread
# More ranges than threads, so that one that is held up does not hold up the rest. Each thread has a portion of its own,
# which is in its core's cache where the call before was on the same arrays: 690 against 850 us for a layer norm of
# (4096, 768), on two cores, if whoever is free took the next.
RANGES_EACH = 2

# Held where the state of a layer changes, for moments, and by every fork: a child has one thread of its parent's only,
# and would wait for ever for a lock that another held. Reentrant, because a signal's handler may call a layer while the
# thread it interrupts is changing one. Nothing is imported or compiled while it is held.
changing = threading.RLock()

_busy = threading.Lock()  # held while the pool is in use: a nested or second caller works alone
_pool: _Pool | None = None
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
    """Call ``work`` for ranges of the tasks, from this thread and from those of the pool that find the time.

    A thread that wakes up when no range is left is not waited for, and holds nothing of the work. Everything here is a
    single step of the interpreter, which an interrupt comes before or after: futures and conditions have steps between
    which it leaves a lock held.
    """
    ranges = min(tasks, threads * RANGES_EACH)
    bounds = [tasks * i // ranges for i in range(ranges + 1)]
    portions = [deque(range(ranges * i // threads, ranges * (i + 1) // threads)) for i in range(threads)]
    works = [work]  # until it is over
    entered: list[bool] = []
    left: list[Future[None]] = []
    ends: SimpleQueue[None] = SimpleQueue()

    def take(own: int) -> None:
        """Do a portion from its beginning, then what is left of the others from their ends."""
        for some in tuple(works):
            following = portions[own].popleft
            for other in range(own + 1, own + 1 + threads):
                while works:
                    try:
                        i = following()
                    except IndexError:
                        break
                    some(bounds[i], bounds[i + 1])
                following = portions[other % threads].pop

    def join() -> None:
        entered.append(True)
        done: Future[None] = Future()
        try:
            take(len(entered) % threads)
            done.set_result(None)
        except BaseException as error:  # noqa: BLE001  it is raised where it is waited for
            done.set_exception(error)
        left.append(done)
        ends.put(None)

    try:
        _call(join, threads - 1)
        take(0)
    finally:
        try:
            works.clear()  # whoever enters from now on leaves at once
            while len(left) < len(entered):
                ends.get()
        except BaseException:  # nobody may still be writing when the caller goes on, interrupted or not
            works.clear()
            while len(left) < len(entered):
                ends.get()
            raise
    for future in left:
        future.result()


class _Pool:
    """Threads that wait for calls to make. They hold nothing while they wait, and end with the process."""

    def __init__(self) -> None:
        self.calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.threads = 0

    def live(self) -> None:
        while True:
            call = self.calls.get()
            call()
            del call


def _call(call: Callable[[], None], threads: int) -> None:
    """Have so many threads of the pool make a call, or as many as can be had."""
    global _pool  # noqa: PLW0603
    pool = _pool
    if pool is None:
        pool = _pool = _Pool()
    while pool.threads < threads:
        try:
            threading.Thread(target=pool.live, name="gennorm-pool", daemon=True).start()
        except RuntimeError:  # no new thread: the interpreter is shutting down, or the system has none left
            break
        pool.threads += 1
    for _ in range(min(threads, pool.threads)):
        pool.calls.put(call)


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
