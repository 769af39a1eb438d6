"""How many threads share a call; what is not broken off by an interrupt, and what holds still while a process forks."""

from __future__ import annotations

import operator
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Protocol, TypeVar, cast

from gennorm.errors import ConfigError, shown

__all__ = ["Using", "changing", "get_num_threads", "hold_in_forks", "set_num_threads", "shared", "unbroken"]


T = TypeVar("T")


class Lock(Protocol):
    """What can be held."""

    def acquire(self) -> object:
        """Wait until nobody else has it."""

    def release(self) -> object:
        """Let go of it."""


# What another thread gains, by elements: layer norm of 768 takes 15 us alone and 13 with two threads for 49,152 of
# them, 24 and 17 for twice, 48 and 27 for four times as many; with gradients 46 and 46, 77 and 68, 170 and 108.
SHARED = 1 << 16  # from which work is worth more than one thread
WORTH_SHARING = SHARED // 2  # that each of them has at the least

# Held where the state of a layer changes, for moments, and by every fork: a child has one thread of its parent's only,
# and would wait for ever for a lock that another held. Reentrant, because a signal's handler may call a layer while the
# thread it interrupts is changing one. Nothing is imported or compiled while it is held.
changing = threading.RLock()

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
    _threads = count  # the team changes with the next large call


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


# -------------------------------------------------------------------------------------------------- interrupts, forks


def unbroken(work: Callable[[], T]) -> T:
    """Return what the work returns; KeyboardInterrupt ends the waiting for it, and not the work.

    An import or a compilation of Numba that is broken off leaves it half there, and useless to the process.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()  # no other thread is interrupted
    # Taking from a queue is one step of the interpreter: an interrupt between two of a future's leaves its lock held.
    answers: SimpleQueue[tuple[T, None] | tuple[None, BaseException]] = SimpleQueue()

    def live() -> None:
        try:
            answers.put((work(), None))
        except BaseException as error:  # noqa: BLE001  it is raised where it is waited for
            answers.put((None, error))

    try:
        threading.Thread(target=live, name="gennorm-unbroken").start()
    except RuntimeError:  # no new thread: the interpreter is shutting down, or the system has none left
        return work()
    answer, error = answers.get()
    if error is not None:
        raise error
    return cast("T", answer)


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


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
