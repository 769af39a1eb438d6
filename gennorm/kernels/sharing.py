"""Calls of kernels, and which threads share them.

The ranges that a call is cut into never decide what is computed, only who computes it, so the results are the same for
any number of threads. The threads are Python's own, and spend their lives in ``_team.serve``: a team is made when it is
first worth it, made anew after a fork, and done without wherever it cannot be had.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from queue import SimpleQueue
from typing import Protocol

import numpy as np

from gennorm._memory import address
from gennorm._threads import WORTH_SHARING, get_num_threads, shared

from . import _jit, _team

__all__ = ["run"]

# More ranges than threads, so that one that is held up does not hold up the rest. Each thread has a portion of its own,
# which is in its core's cache where the call before was on the same arrays: 690 against 850 us for a layer norm of
# (4096, 768), on two cores, if whoever is free took the next.
RANGES_EACH = 8
MOST = 256  # threads in a team
# Seconds for which a thread looks for another call before it goes to sleep, giving way to any other that wants its
# processor. Forward and backward of (512, 768) take 306 us with a twentieth of a millisecond, 234 with a tenth or two.
WAIT = 2e-4
LOOKS = 1000  # how often it looks while that is measured
# A thread that sleeps is woken up for so many elements, or if the last call ended less than WAIT ago, so that it will
# stay awake: layer norm of (256, 768), once a millisecond, takes 56 us alone and 91 with one that has to wake up, (512,
# 768) 134 and 137, (1024, 768) 284 and 220.
WAKING = 1 << 19
STEP = 1 << 27  # elements after which Python may look for an interrupt: 60 ms

_busy = threading.Lock()  # held while the team is in use: a second caller works alone
_team_here: Team | None = None


class Work(Protocol):
    """A call of a kernel."""

    def __call__(self, parts: int, lo: int, hi: int, team: int) -> None:
        """Make it for some of the tasks, with workspace of so many parts and a team at that address, or none at 0."""


def run(work: Work, tasks: int, elements: int, *, apart: bool = True) -> None:
    """Make a call of a kernel for all of its tasks, with a team where that is worth it.

    Parameters
    ----------
    work : callable
        Makes the call for the tasks ``lo`` to ``hi``.
    tasks : int
        Number of independent tasks.
    elements : int
        Size of all of them together, which decides whether sharing pays.
    apart : bool
        Whether each thread has a part of the workspace for itself.
    """
    threads = min(get_num_threads(), tasks, elements // WORTH_SHARING, MOST) if _jit.JIT and shared(elements) else 1
    step = tasks if elements <= STEP else max(tasks * STEP // elements, 1)
    busy = _busy  # after a fork there is another
    if threads < 2 or not busy.acquire(blocking=False):
        for lo in range(0, tasks, step):
            work(1, lo, min(lo + step, tasks), 0)
        return
    try:
        parts = threads if apart else 1
        team = _assembled(threads, parts)
        for lo in range(0, tasks, step):
            team.call(elements)
            work(parts, lo, min(lo + step, tasks), team.address)
        team.ended = time.perf_counter()
    finally:
        busy.release()


def _assembled(threads: int, parts: int) -> Team:
    """The team of this process, told how many threads share what follows, and in how many parts of a workspace."""
    global _team_here  # noqa: PLW0603
    team = _team_here
    if team is None:
        team = _team_here = Team()
    team.gather(threads, parts)
    return team


class Team:
    """Threads that look for calls to share, or sleep. They end with the process."""

    def __init__(self) -> None:
        integers = "int64", "int64", "int64"
        memory = np.zeros(_team.TAKEN + (MOST + 1) * _team.LINE, np.int64)
        self._control = control = memory[-address(memory) // 8 % _team.LINE :]
        self.address = address(control)
        self._serve = _jit.build(_team.serve, {}, integers, (), 2)
        self._members: list[Member] = []
        self.ended = 0.0  # when the last call did
        control[_team.LEAD] = _jit.address(_team.lead, {}, integers, (), 5)
        control[_team.GIVE_WAY] = _give_way()
        control[_team.PATIENCE] = LOOKS
        begin = time.perf_counter()
        self._serve(0, self.address)  # there is nothing to do yet
        control[_team.PATIENCE] = 1 + round(LOOKS * WAIT / (time.perf_counter() - begin))

    def gather(self, threads: int, parts: int) -> None:
        """Have so many threads share the next calls, the caller's own included, or as many as can be had."""
        control = self._control
        control[_team.THREADS], control[_team.PARTS], control[_team.RANGES] = threads, parts, RANGES_EACH
        while len(self._members) < threads - 1:
            member = Member()
            live = threading.Thread(target=self._live, args=(len(self._members) + 1, member), daemon=True)
            live.name = "gennorm-pool"
            try:
                live.start()
            except RuntimeError:  # no new thread: the interpreter is shutting down, or the system has none left
                break
            self._members.append(member)

    def call(self, elements: int) -> None:
        """Wake those up who sleep, if it is worth it; a call follows."""
        if elements < WAKING and time.perf_counter() - self.ended > WAIT:
            return
        for member in self._members[: self._control[_team.THREADS] - 1]:
            if member.asleep:
                member.calls.put(None)

    def _live(self, number: int, member: Member) -> None:
        control = self._control
        while True:
            self._serve(number, self.address)
            if control[_team.STATE] & _team.OPEN and number < control[_team.THREADS]:
                continue
            member.asleep = True
            member.calls.get()
            member.asleep = False


class Member:
    """What wakes up a thread."""

    def __init__(self) -> None:
        self.asleep = False
        self.calls: SimpleQueue[None] = SimpleQueue()


def _give_way() -> int:
    """Where the system's function is that lets another thread have the processor."""
    windows = os.name == "nt"
    library = ctypes.CDLL("kernel32" if windows else None)
    function = library.SwitchToThread if windows else library.sched_yield
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _after_fork_in_child() -> None:
    """Forget the threads of the parent, which do not exist in the child."""
    global _team_here, _busy  # noqa: PLW0603
    _team_here = None
    _busy = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
