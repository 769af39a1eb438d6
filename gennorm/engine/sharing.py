"""Calls of kernels, and the threads that share them.

How a call is divided never decides what is computed, only which thread computes it. So results are the same for any
number of threads. There are two executors:

- `OpenMP` runs a call in a parallel region of the OpenMP runtime that torch has loaded (``engine.openmp``).
- `ThreadPool` is used where there is no such runtime. Its workers are threads of Python that wait in
  ``compiler.workers.work_until_idle``. They are started when a call is first worth sharing, and again in a child after
  a fork. Where no thread can be started, the caller does all the work.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
import time
from queue import SimpleQueue
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gennorm.engine import openmp
from gennorm.engine.memory import address
from gennorm.engine.threads import WORTH_SHARING, get_num_threads, shared

from .compiler import jit, workers

__all__ = ["alone", "executor", "run"]

# A call has more ranges than threads, so that a thread that is delayed does not delay the rest. Each thread begins with
# its own portion of them, which is in the cache of its core where the last call had the same arrays: 690 us against 850
# for a layer norm of (4096, 768) on two cores.
RANGES_EACH = 8
MOST = 256  # threads that share a call
# Seconds for which a worker looks for another call before it sleeps. In between it yields its processor to any thread
# that wants it. Forward and backward of (512, 768) take 306 us with 0.05 ms and 234 us with 0.1 or 0.2.
WAIT = 2e-4
LOOKS = 1000  # how often it looks while the time of a look is measured
# A sleeping worker is woken for calls on so many elements, or if the last call ended less than WAIT ago, so that it
# will stay awake. Once a millisecond, layer norms of (256, 768), (512, 768) and (1024, 768) take 56, 134 and 284 us
# with one thread, and 91, 137 and 220 with a second one that has to wake up.
WAKING = 1 << 19
STEP = 1 << 27  # elements after which Python may handle an interrupt: 60 ms

INTEGERS = "int64", "int64", "int64"

_pools: list[ThreadPool] = []  # the first is that of this process


class Work(Protocol):
    """A call of a kernel."""

    def __call__(self, parts: int, lo: int, hi: int, request: int, /) -> None:
        """Do the tasks ``lo`` to ``hi``.

        Parameters
        ----------
        parts : int
            Number of parts that the workspace has.
        lo, hi : int
        request : int
            Address of the request that says how the call is divided, or 0 for one thread.
        """


def run(work: Work, tasks: int, elements: int, *, apart: bool = True) -> None:
    """Do all tasks of a call of a kernel, with several threads where that is faster.

    Parameters
    ----------
    work : callable
        Does the tasks ``lo`` to ``hi``.
    tasks : int
        Number of independent tasks.
    elements : int
        Number of elements of all tasks together, which decides whether several threads are faster.
    apart : bool
        Whether each thread has its own part of the workspace.
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
    chosen, parts = executor(), threads if apart else 1
    request = chosen.request(threads, parts)
    for lo in range(0, tasks, step):
        chosen.before_call(threads, elements)
        work(parts, lo, min(lo + step, tasks), request)
        chosen.after_call()


def alone(elements: int) -> bool:
    """Return whether work on so many elements is a single call of a kernel by the calling thread."""
    return not shared(elements) or (elements <= STEP and get_num_threads() == 1)


def executor() -> Executor:
    """Return what shares calls in this process now; the first call compiles the functions that it needs."""
    runtime = openmp.runtime()
    if runtime is not None:
        return _openmp(runtime)
    if not _pools:
        _pools.append(ThreadPool())  # of two that two threads append at once, only the first is used
    return _pools[0]


class Executor:
    """Threads that share calls of kernels: what both kinds have in common."""

    def __init__(self, control: int, share: int, *more: int) -> None:
        self._fields = control, share, more
        self._requests: dict[tuple[int, int], tuple[int, npt.NDArray[np.int64]]] = {}

    def request(self, threads: int, parts: int) -> int:
        """Return the address of a request that so many threads share a call."""
        found = self._requests.get((threads, parts))
        if found is None:
            control, share, more = self._fields
            request = np.array([control, share, threads, RANGES_EACH, parts, *more], np.int64)
            found = self._requests.setdefault((threads, parts), (address(request), request))
        return found[0]

    def before_call(self, threads: int, elements: int) -> None:
        """Prepare the threads for a call on so many elements."""

    def after_call(self) -> None:
        """Take note that a call has ended."""


class OpenMP(Executor):
    """The threads of an OpenMP runtime. Each thread that makes calls has other ones, so calls do not wait."""

    def __init__(self, runtime: openmp.Runtime) -> None:
        take_part = jit.address(workers.take_part, {}, INTEGERS, workers.TAKE_PART_SIGNATURE)
        share = jit.address(workers.share_openmp, {}, INTEGERS, workers.SHARE_SIGNATURE)
        super().__init__(take_part, share, *runtime)


_openmp = functools.cache(OpenMP)


class ThreadPool(Executor):
    """Threads of Python. One call at a time is shared by them; a call in the meantime is done by its caller alone."""

    def __init__(self) -> None:
        memory = np.zeros(workers.TAKEN + (MOST + 1) * workers.LINE, np.int64)
        self.control = control = memory[-address(memory) // 8 % workers.LINE :]
        self.address = address(control)
        super().__init__(self.address, jit.address(workers.share, {}, INTEGERS, workers.SHARE_SIGNATURE))
        self.work_until_idle = jit.build(workers.work_until_idle, {}, INTEGERS, workers.WORK_SIGNATURE)
        self.workers: list[Worker] = []
        self.ended = 0.0  # when the last call did
        self._growing = threading.Lock()
        control[workers.YIELD] = _yield_address()
        control[workers.POLLS] = LOOKS
        begin = time.perf_counter()
        self.work_until_idle(0, self.address)  # looks for work so often, and finds none
        control[workers.POLLS] = 1 + round(LOOKS * WAIT / (time.perf_counter() - begin))

    def request(self, threads: int, parts: int) -> int:
        """Return the address of a request that so many threads share a call, and start the workers that are missing."""
        if len(self.workers) < threads - 1 and self._growing.acquire(blocking=False):
            try:
                self._grow(threads - 1)
            finally:
                self._growing.release()
        return super().request(threads, parts)

    def _grow(self, number: int) -> None:
        """Start workers until there are so many, or until the system refuses."""
        while len(self.workers) < number:
            worker = Worker(self, len(self.workers) + 1)
            self.workers.append(worker)  # before it starts: after an interrupt no two workers have the same number
            try:
                worker.start()
            except RuntimeError:  # the interpreter is shutting down, or the system has no threads left
                self.workers.remove(worker)
                return

    def before_call(self, threads: int, elements: int) -> None:
        """Wake the sleeping workers, if that is faster than a call without them."""
        if elements < WAKING and time.perf_counter() - self.ended > WAIT:
            return
        for worker in self.workers[: threads - 1]:
            if worker.asleep:
                worker.calls.put(None)

    def after_call(self) -> None:
        """Take note that a call has ended: workers are awake for a while."""
        self.ended = time.perf_counter()


class Worker(threading.Thread):
    """A thread that takes part in calls, or sleeps. It ends with the process."""

    def __init__(self, pool: ThreadPool, number: int) -> None:
        super().__init__(name="gennorm-worker", daemon=True)
        self.asleep = False
        self.calls: SimpleQueue[None] = SimpleQueue()
        self._pool, self._number = pool, number

    def run(self) -> None:
        """Take part in calls until there is none for a while, then sleep until the next."""
        pool, control, number = self._pool, self._pool.control, self._number
        while True:
            pool.work_until_idle(number, pool.address)
            if control[workers.STATE] & workers.OPEN and number < control[workers.THREADS]:
                continue
            self.asleep = True
            self.calls.get()
            self.asleep = False


def _yield_address() -> int:
    """Return the address of the system's function that lets another thread use this processor."""
    windows = os.name == "nt"
    library = ctypes.CDLL("kernel32" if windows else None)
    function = library.SwitchToThread if windows else library.sched_yield
    return ctypes.cast(function, ctypes.c_void_p).value or 0


if hasattr(os, "register_at_fork"):  # the threads of the parent do not exist in the child
    os.register_at_fork(after_in_child=_pools.clear)
