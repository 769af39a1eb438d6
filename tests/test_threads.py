"""What is not broken off, what forks wait for, and adapting with any number of threads."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import gennorm as gn
from gennorm.engine import threads
from gennorm.layer import adapting
from tests.engines import cut_small
from tests.strategies import sample


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.setattr(threads, "_threads", None)


def test_unbroken_work_is_done_elsewhere_and_answers():
    main = threading.current_thread()
    assert threads.unbroken(threading.current_thread) is not main
    with pytest.raises(ZeroDivisionError):
        threads.unbroken(lambda: 1 // 0)
    with ThreadPoolExecutor(1) as pool:  # where no interrupt arrives it stays where it is
        same = pool.submit(lambda: (threading.current_thread(), threads.unbroken(threading.current_thread))).result()
    assert same[0] is same[1]


def test_a_lock_that_is_held_in_forks_is_everybody_s_afterwards():
    lock = threading.RLock()
    threads.hold_in_forks(lock)
    try:
        threads._before_fork()
        assert lock._is_owned()
        assert threads.changing._is_owned()
        threads._after_fork()
        assert not lock._is_owned()
        assert not threads.changing._is_owned()
    finally:
        threads._held.remove(lock)


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
        cut_small(monkeypatch, CUT=1 << 10, UNIT=1 << 12, BLOCK=1 << 9)
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
