"""A run: every case, its values compared before anything is timed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import gennorm as gn
from gennorm.cli.bench.cases import Case, Work
from gennorm.cli.bench.peers import COPY, Gennorm, Peer, copies
from gennorm.cli.bench.timing import best
from gennorm.cli.bench.values import distance, expected

__all__ = ["Result", "cache", "measure", "threads"]

OWN = 1 << 20  # what a core's own cache holds where the system does not say


@dataclass(frozen=True, slots=True)
class Result:
    """What came out for a case.

    Attributes
    ----------
    case : Case
    seconds : dict
        The best time by the name of who took it, ``gennorm`` among them.
    floor : float
        Seconds in which the bytes that must move can be copied.
    wrong : dict
        How many times the allowed error each of those that disagree is off by.
    """

    case: Case
    seconds: dict[str, float]
    floor: float
    wrong: dict[str, float]

    def ratio(self, peer: str) -> float | None:
        """How many times as long as gennorm the peer takes; None where either was not timed."""
        if peer not in self.seconds or "gennorm" not in self.seconds:
            return None
        return self.seconds[peer] / self.seconds["gennorm"]


def measure(case: Case, peers: Sequence[Peer], number: int, seconds: float) -> Result:
    """Compare the values, then take the times."""
    arrays = case.arrays()
    competitors = {}
    wrong = {}
    with ExitStack() as stack:
        right = expected(case, arrays)
        for peer in (Gennorm(number), *peers):
            competitor = peer.competitor(case, arrays)
            if competitor is None:
                continue
            with peer.during(case):
                error = distance(case, competitor.values(competitor.call()), right) / peer.slack
            if error > 1:
                wrong[peer.name] = error
            competitors[peer.name] = competitor.call
            stack.enter_context(peer.during(case))
        del right
        moved = copies(arrays, number)
        times = best({**competitors, **moved}, seconds)
    floor = min(times[name] for name in moved) * case.moved(cache()) / (2 * case.bytes)
    compared = [*competitors, *([COPY] if case.work is Work.OUT else [])]
    return Result(case, {name: times[name] for name in compared}, floor, wrong)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """So many threads for everybody: so many processors, where the system can give a process fewer than all.

    It has to be entered before the peers are imported, because some count the processors once.
    """
    before, allowed = gn.get_num_threads(), None
    if hasattr(os, "sched_getaffinity"):
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, sorted(allowed)[-number:])  # the first one is where interrupts go
    gn.set_num_threads(number)
    try:
        yield
    finally:
        gn.set_num_threads(before)
        if allowed is not None:
            os.sched_setaffinity(0, allowed)


def cache() -> int:
    """Bytes of the largest cache that a core has to itself."""
    largest = 0
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        level, size = (_read(folder / name) for name in ("level", "size"))
        if level in {"1", "2"} and size.endswith("K"):  # the third level is everybody's
            largest = max(largest, int(size[:-1]) << 10)
    return largest or OWN


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
