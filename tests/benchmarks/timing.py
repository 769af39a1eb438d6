"""Times of competitors that take turns: CPU time of one thread, the best of many."""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

SAMPLE = 5e-3  # seconds that one sample of calls takes at least: a thousand times what the clock itself costs
ELSEWHERE = 0.05  # share of the work that may be done outside the thread that is timed


@dataclass(frozen=True, slots=True)
class Measured:
    """The best times in seconds by competitor, `gennorm` among them, and how many times faster it is to be.

    Of several passes, `spread` keeps the least and the greatest ratio to each peer that one pass alone has.
    """

    name: str
    seconds: dict[str, float]
    goals: dict[str, float] = field(default_factory=dict)
    spread: dict[str, tuple[float, float]] = field(default_factory=dict)

    def ratio(self, peer: str) -> float:
        """How many times as long as gennorm the peer takes."""
        return self.seconds[peer] / self.seconds["gennorm"]

    @property
    def missed(self) -> list[str]:
        """The peers that gennorm is not as much faster than as it is to be."""
        return [peer for peer, goal in self.goals.items() if self.ratio(peer) < goal]


def pooled(passes: Sequence[Measured]) -> Measured:
    """The best of each competitor over all passes, whichever pass that was."""
    first = passes[0]
    ratios = {peer: [one.ratio(peer) for one in passes] for peer in first.seconds if peer != "gennorm"}
    return Measured(
        first.name,
        {name: min(one.seconds[name] for one in passes) for name in first.seconds},
        first.goals,
        {peer: (min(found), max(found)) for peer, found in ratios.items()},
    )


def best(competitors: Mapping[str, Callable[[], object]], seconds: float, least: int = 5) -> dict[str, float]:
    """The best CPU time of a call of each competitor, taking turns for so long and so many rounds at least.

    CPU time of one thread says the same on a machine that is busy otherwise; it says nothing where work is done by
    other threads, which is therefore refused.
    """
    with _undisturbed():
        numbers = {name: _number(call) for name, call in competitors.items()}
        found = dict.fromkeys(competitors, math.inf)
        order = list(competitors)
        end = time.perf_counter() + seconds
        rounds = 0
        while rounds < least or time.perf_counter() < end:
            rounds += 1
            for name in order:
                found[name] = min(found[name], _sample(name, competitors[name], numbers[name]))
            order.reverse()  # nobody always finds the cache as the same other one left it
        return found


def _sample(name: str, call: Callable[[], object], number: int) -> float:
    turns = itertools.repeat(None, number)
    everybody, one = time.process_time(), time.thread_time()
    for _ in turns:
        call()
    one = time.thread_time() - one
    everybody = time.process_time() - everybody
    if everybody > (1 + ELSEWHERE) * one + 1e-3:
        msg = f"{name} worked for {everybody:.4f} s, and only {one:.4f} s of it in the thread that is timed"
        raise AssertionError(msg)
    return one / number


def _number(call: Callable[[], object]) -> int:
    """How many calls make a sample."""
    call()  # plans, pages and caches
    begin = time.thread_time()
    call()
    return max(1, round(SAMPLE / max(time.thread_time() - begin, 1e-9)))


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
