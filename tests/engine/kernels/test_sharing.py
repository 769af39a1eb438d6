"""Threads that share a call of a kernel, and calls that one thread makes alone."""

import functools
import gc
import itertools
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import gennorm as gn
from gennorm.engine import openmp, sharing
from gennorm.engine import threads as threads_
from gennorm.engine.compiler import jit

ELEMENTS = 64 * threads_.WORTH_SHARING
WHOLE = "int64", "int64", "int64"


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.setattr(threads_, "_threads", None)
    monkeypatch.setattr(sharing, "_pools", [])
    monkeypatch.setattr(openmp, "runtime", lambda: None)  # another test may have imported torch


def count(done, going, numbers, own, lo, hi, request):
    """A kernel whose tasks take a while. It counts how often each is done and running, and the tasks of each thread."""
    for task in range(lo, hi):
        going[task] += 1
        for turn in range(numbers[0]):
            numbers[1 + task] = numbers[1 + task] * 3 + turn
        own[0] += 1
        done[task] += 1
        going[task] -= 1


@functools.cache
def counting():
    return jit.build(count, {}, WHOLE, jit.Signature(("int64",) * 3, ("int64",), 3, shared=True))


class Tasks:
    """Calls of that kernel, as `sharing.run` makes them."""

    def __init__(self, tasks=64, turns=10, apart=True):
        self.tasks, self.apart = tasks, apart
        self.done, self.going = np.zeros(tasks, np.int64), np.zeros(tasks, np.int64)
        self.numbers = np.full(1 + tasks, turns)
        self.parts, self.requests, self.each = [], [], np.zeros(0, np.int64)

    def work(self, parts, lo, hi, request):
        own = np.zeros(parts * 8, np.int64)
        self.parts.append(parts)
        self.requests.append(request)
        counting()(self.done, self.going, self.numbers, own, lo, hi, request)
        self.each = own.reshape(parts, 8)[:, 0]

    def run(self, elements=ELEMENTS):
        sharing.run(self.work, self.tasks, elements, apart=self.apart)
        return self

    def right(self, times=1):
        assert (self.done == times).all()
        assert not self.going.any()
        if self.apart and len(self.parts) == 1:
            assert self.each.sum() == self.tasks
        return True


def eventually(true):
    """Whether something is true before long, on a machine that may be busy."""
    deadline = time.monotonic() + 20
    while not (found := true()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def at_rest(tasks):
    """Whether no thread writes to the arrays of a call after it has returned."""
    before = [array.tobytes() for array in (tasks.done, tasks.going, tasks.numbers)]
    time.sleep(0.002)
    return not tasks.going.any() and before == [array.tobytes() for array in (tasks.done, tasks.going, tasks.numbers)]


@pytest.mark.parametrize("number", [2, 3, 7, np.int64(3), np.uint8(2)])
def test_every_task_is_done_once(number):
    gn.set_num_threads(number)
    for tasks in (1, 2, 5, 15, 16, 64, 1000):
        for _ in range(50):
            last = Tasks(tasks).run()
            assert last.right()
        assert at_rest(last)
    assert len(sharing._pools[0].workers) == number - 1


def assert_each_thread_has_its_part(number):
    """Every thread of a call uses a part of the workspace that is its alone."""
    gn.set_num_threads(number)
    seen = set()

    def all_of_them():
        tasks = Tasks(turns=400_000).run()
        assert tasks.right()
        assert tasks.parts == [number]
        seen.update(np.flatnonzero(tasks.each))
        return seen == set(range(number))

    assert eventually(all_of_them)


@pytest.mark.parametrize("number", [2, 7])
def test_every_thread_has_its_part_of_the_workspace(number):
    """And all threads share a workspace that is not divided."""
    assert_each_thread_has_its_part(number)
    tasks = Tasks(turns=10, apart=False).run()
    assert tasks.parts == [1]
    assert tasks.right()


def test_calls_of_any_number_of_threads_follow_one_another():
    """With workers that sleep, that poll, and that join a call too late."""
    for turn in range(600):
        gn.set_num_threads(2 + turn % 6)
        tasks = Tasks(32, turns=turn % 7 * 100)
        for calls in (1, 2, 3):
            assert tasks.run().right(calls)
        if turn % 50 == 0:
            time.sleep(0.002)
    assert at_rest(tasks)


def test_threads_sleep_when_there_was_no_call_for_a_while():
    gn.set_num_threads(3)
    Tasks().run()
    members = sharing._pools[0].workers
    assert eventually(lambda: all(member.asleep for member in members))
    small, long = sharing.WAKING - 1, 1_000_000
    time.sleep(2 * sharing.WAIT)
    assert not Tasks(turns=long).run(small).each[1:].any()  # they are not woken up for a small call by itself

    def following():
        sharing._pools[0].ended = time.perf_counter()
        return Tasks(turns=long).run(small).each[1:].any()

    assert eventually(following)
    assert eventually(lambda: all(member.asleep for member in members))
    assert eventually(lambda: (Tasks(turns=long).run(sharing.WAKING).each > 0).sum() > 1)


def test_the_pool_grows_with_the_number_of_threads():
    gn.set_num_threads(2)
    Tasks().run()
    first = sharing._pools[0]
    gn.set_num_threads(4)
    assert len(first.workers) == 1  # until the next large call
    assert len(Tasks().run().right() and first.workers) == 3
    assert sharing._pools[0] is first
    gn.set_num_threads(2)
    for _ in range(20):
        assert len(Tasks().run().each) == 2
    assert len(first.workers) == 3


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_the_system_has_no_more_threads(allowed, monkeypatch):
    """If a thread cannot be started, the others do its tasks."""
    gn.set_num_threads(4)
    started = itertools.count()
    start = threading.Thread.start

    def refuse(thread):
        if thread.name == "gennorm-worker" and next(started) >= allowed:
            msg = "can't start new thread"
            raise RuntimeError(msg)
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(5):
            assert Tasks().run().right()
        assert len(sharing._pools[0].workers) == allowed
    assert Tasks().run().right()
    assert len(sharing._pools[0].workers) == 3


def test_one_thread_makes_small_calls_alone():
    gn.set_num_threads(3)
    for elements, tasks in ((threads_.SHARED - 1, 64), (ELEMENTS, 1)):
        alone = Tasks(tasks).run(elements)
        assert alone.right()
        assert alone.requests == [0]
    gn.set_num_threads(1)
    assert Tasks().run().requests == [0]
    assert not sharing._pools


def test_a_call_while_the_pool_is_busy_is_made_alone():
    gn.set_num_threads(3)
    assert Tasks().run().right()
    long = Tasks(turns=20_000_000)
    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(long.run)
        assert eventually(long.going.any)
        for _ in range(20):
            tasks = Tasks(turns=1000).run()
            assert tasks.right()
            assert tasks.each[0] == 64
        assert not running.done()  # the pool was busy to the end
        assert running.result().right()


def test_threads_that_call_at_once():
    """One of them uses the pool, the others make their calls alone."""
    gn.set_num_threads(3)
    with ThreadPoolExecutor(8) as executor:
        for tasks in list(executor.map(lambda _: Tasks(turns=1000).run(), range(400))):
            assert tasks.right()
    assert at_rest(tasks)


@pytest.mark.parametrize("number", [1, 3])
def test_python_can_handle_interrupts_in_a_very_large_call(number):
    """It is several calls of the kernel."""
    gn.set_num_threads(number)
    tasks = Tasks(64).run(elements=4 * sharing.STEP)
    assert tasks.right()
    assert len(tasks.parts) == 4
    assert len(Tasks(2).run(elements=16 * sharing.STEP).parts) == 2


class Interrupted(BaseException):
    """An exception that gennorm does not raise."""


def interrupt(*_):
    raise Interrupted


@pytest.mark.parametrize(("first", "calls"), [(False, 300), (True, 100)])
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="a system without timers")
def test_no_thread_works_after_an_interrupt(first, calls):
    """At any time, with `first` also while the pool is started; and the next call is right."""
    gn.set_num_threads(3)
    Tasks().run()
    stopped = 0
    before = signal.signal(signal.SIGALRM, interrupt)
    gc.disable()  # an interrupt in a callback of the collector, such as that of Hypothesis, cannot be raised
    try:
        for delay in np.linspace(1e-6, 3e-3, calls):
            if first:
                sharing._pools.clear()
            tasks = Tasks(turns=400_000)
            try:
                signal.setitimer(signal.ITIMER_REAL, delay)
                tasks.run()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupted:
                stopped += 1
            assert at_rest(tasks)
            assert set(tasks.done) in ({0}, {1})
            assert not first or Tasks().run().right()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.enable()
    assert stopped > calls // 10
    shared = Tasks().run()
    assert shared.right()
    assert shared.requests != [0]


def test_without_machine_code_there_is_one_thread(monkeypatch):
    monkeypatch.setattr(jit, "JIT", False)
    gn.set_num_threads(3)
    seen = []
    sharing.run(lambda *call: seen.append(call), 64, ELEMENTS)
    assert seen == [(1, 0, 64, 0)]
