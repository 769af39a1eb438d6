"""Calls of kernels, and which threads share them.

The ranges that a call is cut into never decide what is computed, only who computes it, so the results are the same for
any number of threads. The threads are Python's own, and wait in ``compiler.pool.work_until_idle``: a team is made when
it is first worth it, made anew after a fork, and done without wherever it cannot be had.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from queue import SimpleQueue
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gennorm.engine.memory import address
from gennorm.engine.threads import WORTH_SHARING, get_num_threads, shared

from .compiler import jit, pool

__all__ = ["alone", "assembled", "run"]

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

_teams: list[Team] = []  # the first is that of this process


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
    if alone(elements):
        work(1, 0, tasks, 0)
        return
    threads = min(get_num_threads(), tasks, elements // WORTH_SHARING, MOST) if jit.JIT else 1
    step = max(tasks * STEP // max(elements, STEP), 1)
    if threads < 2:
        for lo in range(0, tasks, step):
            work(1, lo, min(lo + step, tasks), 0)
        return
    team, parts = assembled(), threads if apart else 1
    request = team.gather(threads, parts)
    for lo in range(0, tasks, step):
        team.call(threads, elements)
        work(parts, lo, min(lo + step, tasks), request)
        team.ended = time.perf_counter()


def alone(elements: int) -> bool:
    """Return whether work on so many elements is one call of a kernel, by one thread."""
    return not shared(elements) or (elements <= STEP and get_num_threads() == 1)


def assembled() -> Team:
    """Return the team of this process; what its threads live in is compiled when there is none yet."""
    if not _teams:
        _teams.append(Team())  # where two threads do it at once, there is one that nobody asks
    return _teams[0]


class Team:
    """Threads that share calls."""

    def __init__(self) -> None:
        integers = "int64", "int64", "int64"
        memory = np.zeros(pool.TAKEN + (MOST + 1) * pool.LINE, np.int64)
        self.control = control = memory[-address(memory) // 8 % pool.LINE :]
        self.address = address(control)
        self.share = jit.address(pool.share, {}, integers, pool.SHARE_SIGNATURE)
        self.work_until_idle = jit.build(pool.work_until_idle, {}, integers, pool.WORK_SIGNATURE)
        self.members: list[Member] = []
        self._growing = threading.Lock()
        self.requests: dict[tuple[int, int], tuple[int, npt.NDArray[np.int64]]] = {}
        self.ended = 0.0  # when the last call did
        control[pool.YIELD] = _give_way()
        control[pool.POLLS] = LOOKS
        begin = time.perf_counter()
        self.work_until_idle(0, self.address)  # there is nothing to do yet
        control[pool.POLLS] = 1 + round(LOOKS * WAIT / (time.perf_counter() - begin))

    def gather(self, threads: int, parts: int) -> int:
        """The request that so many threads share a call, the caller's own included, or as many as can be had."""
        if len(self.members) < threads - 1 and self._growing.acquire(blocking=False):
            try:
                self._grow(threads - 1)
            finally:
                self._growing.release()
        found = self.requests.get((threads, parts))
        if found is None:
            request = np.array([self.address, self.share, threads, RANGES_EACH, parts], np.int64)
            found = self.requests.setdefault((threads, parts), (address(request), request))
        return found[0]

    def _grow(self, number: int) -> None:
        """Have so many members, or as many as can be had."""
        while len(self.members) < number:
            member = Member(self, len(self.members) + 1)
            self.members.append(member)  # before it starts: an interrupt may lose a thread, and gives none two places
            try:
                member.start()
            except RuntimeError:  # the interpreter is shutting down, or the system has no threads left
                self.members.remove(member)
                return

    def call(self, threads: int, elements: int) -> None:
        """Wake those up who sleep, if it is worth it; a call follows."""
        if elements < WAKING and time.perf_counter() - self.ended > WAIT:
            return
        for member in self.members[: threads - 1]:
            if member.asleep:
                member.calls.put(None)


class Member(threading.Thread):
    """A thread that looks for calls to share, or sleeps. It ends with the process."""

    def __init__(self, team: Team, number: int) -> None:
        super().__init__(name="gennorm-team", daemon=True)
        self.asleep = False
        self.calls: SimpleQueue[None] = SimpleQueue()
        self._team, self._number = team, number

    def run(self) -> None:
        """Live."""
        team, control, number = self._team, self._team.control, self._number
        while True:
            team.work_until_idle(number, team.address)
            if control[pool.STATE] & pool.OPEN and number < control[pool.THREADS]:
                continue
            self.asleep = True
            self.calls.get()
            self.asleep = False


def _give_way() -> int:
    """Where the system's function is that lets another thread have the processor."""
    windows = os.name == "nt"
    library = ctypes.CDLL("kernel32" if windows else None)
    function = library.SwitchToThread if windows else library.sched_yield
    return ctypes.cast(function, ctypes.c_void_p).value or 0


if hasattr(os, "register_at_fork"):  # the threads of the parent do not exist in the child
    os.register_at_fork(after_in_child=_teams.clear)
