"""Take the times of several calls in turns: the best of many samples."""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

__all__ = ["best_times"]

SAMPLE = 2e-4  # least length of a sample in seconds: a thousand times what reading the clock costs
TURN = 3  # samples in a turn: the first one may pay for the caches and spinning threads of the call before


def best_times(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Return the best time of each call. The calls take turns until each of them has run for so many seconds."""
    with _without_garbage_collection():
        numbers = {name: _calls_per_sample(call) for name, call in calls.items()}
        found = dict.fromkeys(calls, math.inf)
        spent = dict.fromkeys(calls, 0.0)
        waiting = list(calls)
        while waiting:
            for name in waiting:
                begin = time.perf_counter()
                for _ in range(TURN):
                    found[name] = min(found[name], _sample(calls[name], numbers[name]))
                spent[name] += time.perf_counter() - begin
            # Reversed, so that no call always follows the same other one and finds the cache as that one left it.
            waiting = [name for name in reversed(waiting) if spent[name] < seconds]
        return found


def _sample(call: Callable[[], object], number: int) -> float:
    turns = itertools.repeat(None, number)
    begin = time.perf_counter()
    for _ in turns:
        call()
    return (time.perf_counter() - begin) / number


def _calls_per_sample(call: Callable[[], object]) -> int:
    """How many calls make a sample. The first call pays for plans, pages and caches."""
    return max(1, round(SAMPLE / max(min(_sample(call, 1), _sample(call, 1)), 1e-9)))


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
