"""The pool of threads, and what is done without one."""

import itertools
import opcode
import signal
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import gennorm as gn
from gennorm import _threads, adapting
from tests.engines import cut_small
from tests.strategies import sample

ELEMENTS = 64 * _threads.WORTH_SHARING


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.setattr(_threads, "_threads", None)
    monkeypatch.setattr(_threads, "_pool", None)
    monkeypatch.setattr(_threads, "_busy", threading.Lock())


def covered(tasks=64, elements=ELEMENTS):
    """Run some tasks; how often each was done, and by whom."""
    done, who = [0] * tasks, set()

    def work(lo, hi):
        who.add(threading.current_thread().name)
        for task in range(lo, hi):
            done[task] += 1

    _threads.run(work, tasks, elements)
    return done, who


@pytest.mark.parametrize("number", [2, 3, 7, np.int64(3), np.uint8(2)])
def test_every_task_is_done_once(number):
    gn.set_num_threads(number)
    assert gn.get_num_threads() == number
    assert type(gn.get_num_threads()) is int
    for tasks in (1, 2, 5, 64, 1000):
        assert covered(tasks)[0] == [1] * tasks
    assert _threads._pool.threads == number - 1


def test_the_pool_grows_with_the_number():
    gn.set_num_threads(2)
    covered()
    first = _threads._pool
    gn.set_num_threads(4)
    assert first.threads == 1  # until the next large call
    assert len(covered()[1]) <= 4
    assert _threads._pool is first
    assert first.threads == 3
    gn.set_num_threads(2)
    for _ in range(20):
        assert len(covered()[1]) <= 2
    assert first.threads == 3


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_the_system_has_no_more_threads(allowed, monkeypatch):
    """A thread that cannot be started is done without, and what it was to do is done by others."""
    gn.set_num_threads(4)
    started = itertools.count()
    start = threading.Thread.start

    def refuse(thread):
        if next(started) >= allowed:
            msg = "can't start new thread"
            raise RuntimeError(msg)
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(5):
            done, who = covered()
            assert done == [1] * 64
            assert len(who) <= allowed + 1
        assert _threads._pool.threads == allowed
        assert allowed > 0 or _threads._pool.calls.empty()  # nobody would ever take anything out
    assert covered()[0] == [1] * 64
    assert _threads._pool.threads == 3


@pytest.mark.parametrize("late", [False, True])
def test_nobody_is_at_work_when_a_call_returns(late):
    """Whoever wakes up when everything is done does nothing, and is not waited for."""
    gn.set_num_threads(4)
    covered()
    going, lock, main = [0], threading.Lock(), threading.current_thread()
    slow, awake = threading.Event(), threading.Event()
    live = threading.Barrier(4)

    def sleep():
        live.wait()
        awake.wait()

    for _ in range(3 if late else 0):
        _threads._pool.calls.put(sleep)
    if late:
        live.wait()

    def work(lo, hi):
        assert not late or threading.current_thread() is main
        with lock:
            going[0] += 1
        slow.wait(0.005)
        with lock:
            going[0] -= 1

    for _ in range(5):
        _threads.run(work, 64, ELEMENTS)
        assert going == [0]
    if late:  # and keeps nothing of what was done from being let go of
        held = weakref.ref(work)
        del work
        assert held() is None
    awake.set()
    assert covered()[0] == [1] * 64


# The instructions after which the interpreter looks whether there was an interrupt.
WATCHFUL = {name for name in opcode.opmap if name.startswith(("CALL", "RESUME", "JUMP_BACKWARD"))}


class Others:
    """Work whose tasks take others longer than the calling thread, and how many of them are at it."""

    def __init__(self, seconds, wait):
        self.number, self.begun = 0, threading.Event()
        self._seconds, self._wait = seconds, wait
        self._lock, self._main = threading.Lock(), threading.current_thread()

    def work(self, lo, hi):
        if threading.current_thread() is self._main:
            self._wait(self)
            return
        with self._lock:
            self.number += 1
        self.begun.set()
        time.sleep(self._seconds)
        with self._lock:
            self.number -= 1


class Interrupted(BaseException):
    """What no call of ours raises."""


def interrupt(*_):
    raise Interrupted


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="a system without timers")
def test_nobody_is_at_work_when_a_call_is_interrupted():
    """At whatever step; and the next call is right."""
    gn.set_num_threads(3)
    others, stopped = Others(0.0005, lambda _: time.sleep(0.0003)), 0
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for delay in np.linspace(1e-6, 3e-3, 300):
            try:
                signal.setitimer(signal.ITIMER_REAL, delay)
                _threads.run(others.work, 64, ELEMENTS)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupted:
                stopped += 1
            assert others.number == 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert stopped > 30
    assert covered()[0] == [1] * 64


def test_an_interrupt_at_any_step_leaves_nobody_at_work():
    """Of those that the calling thread makes to share work: nothing stays locked, nobody is left behind."""
    gn.set_num_threads(3)
    covered()
    others = Others(0.002, lambda others: others.begun.wait(0.02))

    def stopped(step):
        """Whether there is a step of that number."""
        steps, before = itertools.count(), {}
        others.begun.clear()

        def trace(frame, event, argument):
            code = frame.f_code
            if code.co_filename != _threads.__file__ or code.co_name == "run":
                return trace if code.co_name == "run" else None
            frame.f_trace_opcodes = True
            if event == "opcode":
                last, before[frame] = before.get(frame), opcode.opname[code.co_code[frame.f_lasti]]
                if last in WATCHFUL and next(steps) == step:
                    raise Interrupted
            return trace

        outer = sys.gettrace()
        sys.settrace(trace)
        try:
            _threads.run(others.work, 12, ELEMENTS)
        except Interrupted:
            return True
        finally:
            sys.settrace(outer)
        return False

    number = 0
    while stopped(number):
        assert others.number == 0, number
        assert covered()[0] == [1] * 64
        number += 1
    assert number > 20


def test_what_a_task_raises_is_raised():
    gn.set_num_threads(3)

    def work(lo, hi):
        if lo <= 40 < hi:
            raise MemoryError

    for _ in range(20):
        with pytest.raises(MemoryError):
            _threads.run(work, 64, ELEMENTS)
    assert covered()[0] == [1] * 64


def test_a_nested_call_works_alone():
    gn.set_num_threads(3)
    inner = []

    def work(lo, hi):
        inner.append(covered())

    _threads.run(work, 8, ELEMENTS)
    assert len(inner) == 3 * _threads.RANGES_EACH
    assert all(done == [1] * 64 and len(who) == 1 for done, who in inner)


def test_unbroken_work_is_done_elsewhere_and_answers():
    main = threading.current_thread()
    assert _threads.unbroken(threading.current_thread) is not main
    with pytest.raises(ZeroDivisionError):
        _threads.unbroken(lambda: 1 // 0)
    with ThreadPoolExecutor(1) as pool:  # where no interrupt arrives it stays where it is
        same = pool.submit(lambda: (threading.current_thread(), _threads.unbroken(threading.current_thread))).result()
    assert same[0] is same[1]


def test_a_lock_that_is_held_in_forks_is_everybody_s_afterwards():
    lock = threading.RLock()
    _threads.hold_in_forks(lock)
    try:
        _threads._before_fork()
        assert lock._is_owned()
        assert _threads.changing._is_owned()
        _threads._after_fork()
        assert not lock._is_owned()
        assert not _threads.changing._is_owned()
    finally:
        _threads._held.remove(lock)


# ------------------------------------------------------------------------------------------------- the same to the bit

DATA = {
    "rows": ((96, 8192), {"aggregation_levels": "{0, 1}"}),
    "channels": ((64, 6, 2048), {"aggregation_levels": "{0, 2}"}),
    "columns": ((3000, 300), {"aggregation_levels": 0}),
    "channels last": ((8, 600, 192), {"aggregation_levels": "0;;1"}),
    "groups": ((8, 600, 192), {"aggregation_levels": "{0, 1, 2}", "group_number": {2: 48}}),
}


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("name", DATA)
def test_adapting_is_the_same_for_any_number_of_threads(name, cut, monkeypatch):
    shape, levels = DATA[name]
    monkeypatch.setattr(adapting, "CHUNK", 1 << 20)  # several chunks
    if cut:
        cut_small(monkeypatch, CACHED=1 << 10, CACHED_TILE=1 << 10, UNIT=1 << 12, BLOCK=1 << 9)
    x, weights = sample(shape), np.random.default_rng(0).uniform(size=shape[-1:])
    answers = []
    for number in (1, 2, 7):
        gn.set_num_threads(number)
        layer = gn.NormalizationLayer(**levels, scaling=None, biases=None, batched=True, statistics="dataset")
        found = [layer.adapt(x, weights=w).moments for w in (None, weights)]
        answers.append(
            [array.tobytes() for one in found for array in (one.count, one.mean, one.m2)] + [layer(x).tobytes()]
        )
    assert answers[0] == answers[1] == answers[2]
