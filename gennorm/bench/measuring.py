"""Measure one case: compare the values with the definition, then take the times."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import gennorm as gn
from gennorm.bench.cases import Case, Work
from gennorm.bench.peers import COPY, Gennorm, Peer, copies
from gennorm.bench.timing import best_times
from gennorm.bench.values import distance, expected

__all__ = ["Result", "cache_bytes", "limited_to", "measure"]

USUAL_CACHE = 1 << 20  # bytes, where the system does not say how large the cache of a core is


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one case.

    Attributes
    ----------
    case : Case
    seconds : dict
        The best time by the name of the library, ``gennorm`` included.
    floor : float
        The time in which the bytes that must move can be copied, in seconds.
    wrong : dict
        The error over the allowed error, by the name of each library whose values are wrong.
    """

    case: Case
    seconds: dict[str, float]
    floor: float
    wrong: dict[str, float]

    def speedup(self, peer: str) -> float | None:
        """The speed-up over a library: its time over gennorm's; None where either has no time."""
        if peer not in self.seconds or "gennorm" not in self.seconds:
            return None
        return self.seconds[peer] / self.seconds["gennorm"]


def measure(case: Case, peers: Sequence[Peer], threads: int, seconds: float) -> Result:
    """Measure gennorm and `peers` on one case, each for so many seconds."""
    arrays = case.arrays()
    competitors = {}
    wrong = {}
    with ExitStack() as stack:
        right = expected(case, arrays)
        for peer in (Gennorm(threads), *peers):
            competitor = peer.competitor(case, arrays)
            if competitor is None:
                continue
            with peer.context(case):
                error = distance(case, competitor.values(competitor.call()), right) / peer.slack
            if error > 1:
                wrong[peer.name] = error
            competitors[peer.name] = competitor.call
            stack.enter_context(peer.context(case))
        del right
        copied = copies(arrays, threads)
        times = best_times({**competitors, **copied}, seconds)
    floor = min(times[name] for name in copied) * case.moved(cache_bytes()) / (2 * case.bytes)
    compared = [*competitors, *([COPY] if case.work is Work.OUT else [])]
    return Result(case, {name: times[name] for name in compared}, floor, wrong)


@contextmanager
def limited_to(threads: int) -> Iterator[None]:
    """Limit the process to so many threads, and to as many processors where the system can do that.

    Enter it before the other libraries are imported, because some of them count the processors only once.
    """
    before, allowed = gn.get_num_threads(), None
    if hasattr(os, "sched_getaffinity"):
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, sorted(allowed)[-threads:])  # interrupts are usually handled by the first processor
    gn.set_num_threads(threads)
    try:
        yield
    finally:
        gn.set_num_threads(before)
        if allowed is not None:
            os.sched_setaffinity(0, allowed)


def cache_bytes() -> int:
    """The size of the largest cache that one core has for itself."""
    largest = 0
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        level, size = (_read(folder / name) for name in ("level", "size"))
        if level in {"1", "2"} and size.endswith("K"):  # the third level is shared
            largest = max(largest, int(size[:-1]) << 10)
    return largest or USUAL_CACHE


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
