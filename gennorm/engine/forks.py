"""Locks that a fork waits for, and work that an interrupt does not break off.

A child of `os.fork` has one thread only. A lock that another thread of the parent held at that moment stays locked in
the child for ever. So the locks of this package are acquired before a fork and released after it, in both processes.

`os.register_at_fork` runs the functions registered last first. A library that is registered after this one acquires
its locks before these: a fork would hold the lock of `logging` and wait for the compiler, and the thread that compiles
would wait for `logging`. So this module first imports the modules of the standard library that register, and registers
again whenever a lock is added, by a module that has imported what it needs. The first of these hooks that runs acquires
all locks.
"""

from __future__ import annotations

# These register locks or reset state in forks. Imported here, they register first and run after the hook below.
import concurrent.futures.thread
import logging
import os
import random
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Protocol, TypeVar, cast

__all__ = ["changing", "hold_in_forks", "run_uninterrupted"]

T = TypeVar("T")

REGISTERED_FIRST = (concurrent.futures.thread, logging, random, threading)


class Lock(Protocol):
    """A lock."""

    def acquire(self) -> object:
        """Wait until no other thread holds the lock, and hold it."""

    def release(self) -> object:
        """Stop holding the lock."""


# Held while the state of a layer or of the buffer pool changes. Reentrant, because a signal handler may call a layer in
# the thread that it interrupts. Nothing is imported or compiled while it is held.
changing = threading.RLock()

_locks: list[Lock] = []  # a fork acquires these, in this order
_acquired: list[Lock] = []  # by the fork that is going on
_forking: int | None = None  # the thread that forks, set while it holds `changing`


def hold_in_forks(lock: Lock) -> None:
    """Acquire a lock before every later fork, and release it afterwards in the parent and in the child.

    Parameters
    ----------
    lock : Lock
        Threads that hold several of these locks have acquired them in the order in which they are added here.
    """
    _locks.append(lock)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_acquire, after_in_parent=_release, after_in_child=_release)


def _acquire() -> None:
    global _forking  # noqa: PLW0603
    thread = threading.get_ident()
    if _forking == thread:  # a hook that was registered later has done it
        return
    for lock in _locks:  # during a wait another thread may import the engine, which adds locks
        lock.acquire()
        _acquired.append(lock)
        _forking = thread


def _release() -> None:
    global _forking  # noqa: PLW0603
    if _forking != threading.get_ident():
        return
    acquired = _acquired.copy()
    _acquired.clear()
    _forking = None
    for lock in reversed(acquired):  # from the last of these on, another thread may fork
        lock.release()


hold_in_forks(changing)


def run_uninterrupted(work: Callable[[], T]) -> T:
    """Return what ``work()`` returns or raise what it raises; a KeyboardInterrupt ends the wait, not the work.

    The work runs in a thread, where no interrupt arrives: an import or a compilation of Numba that is broken off leaves
    Numba unusable in this process.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    # A queue, because `get` is one step of the interpreter. An interrupt inside `Future.result` leaves a lock held.
    answers: SimpleQueue[tuple[T, None] | tuple[None, BaseException]] = SimpleQueue()

    def answer() -> None:
        try:
            answers.put((work(), None))
        except BaseException as error:  # noqa: BLE001  raised by the caller below
            answers.put((None, error))

    try:
        threading.Thread(target=answer, name="gennorm-uninterrupted").start()
    except RuntimeError:  # the interpreter is shutting down, or the system has no threads left
        return work()
    result, error = answers.get()
    if error is not None:
        raise error
    return cast("T", result)
