"""Times of competitors that take turns: on the clock, the best of many."""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

__all__ = ["best"]

SAMPLE = 2e-4  # seconds that one sample takes at least: a thousand times what the clock itself costs
TURN = 3  # samples: the first may pay for what the one before left behind, threads that spin or a cache of its own


def best(competitors: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """The best time of a call of each competitor, who take turns until each has had so many seconds."""
    with _undisturbed():
        numbers = {name: _number(call) for name, call in competitors.items()}
        found = dict.fromkeys(competitors, math.inf)
        spent = dict.fromkeys(competitors, 0.0)
        waiting = list(competitors)
        while waiting:
            for name in waiting:
                begin = time.perf_counter()
                for _ in range(TURN):
                    found[name] = min(found[name], _sample(competitors[name], numbers[name]))
                spent[name] += time.perf_counter() - begin
            # Nobody always finds the cache as the same other one left it.
            waiting = [name for name in reversed(waiting) if spent[name] < seconds]
        return found


def _sample(call: Callable[[], object], number: int) -> float:
    turns = itertools.repeat(None, number)
    begin = time.perf_counter()
    for _ in turns:
        call()
    return (time.perf_counter() - begin) / number


def _number(call: Callable[[], object]) -> int:
    """How many calls make a sample; the first pays for plans, pages and caches."""
    return max(1, round(SAMPLE / max(min(_sample(call, 1), _sample(call, 1)), 1e-9)))


@contextmanager
def _undisturbed() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
