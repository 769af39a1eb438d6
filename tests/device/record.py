"""The record of a run: every case is run by itself, its failure is caught, and the time limit is observed."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

FORMAT, VERSION = "gennorm/device", 1


class OutOfTimeError(Exception):
    """A case took longer than it may."""


class Recorder:
    """Runs cases, and collects what they found.

    Parameters
    ----------
    seconds : float
        The time limit of the whole run. No case is started after it.
    most : float
        The time limit of one case.
    """

    def __init__(self, seconds: float, most: float = 60.0) -> None:
        self.begin = time.monotonic()
        self.limit, self.most = seconds, most
        self.until = seconds  # the limit of the part that runs now
        self.groups: dict[tuple[str, str], dict[str, Any]] = {}
        self.failures: list[dict[str, Any]] = []
        self.notes: dict[str, Any] = {}
        self.benchmark: list[dict[str, Any]] = []
        self.complete = True

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.begin

    @contextlib.contextmanager
    def part(self, title: str, share: float) -> Iterator[None]:
        """Run a part of the cases, until this share of the whole time has passed."""
        self.until, began = share * self.limit, self.seconds
        print(f"{title} ...", flush=True)
        yield
        print(f"{title}: {self.seconds - began:.1f} s", flush=True)

    def case(
        self, group: str, table: str, name: str, function: Callable[[], float | None], *, always: bool = False
    ) -> None:
        """Run one case.

        Parameters
        ----------
        group, table : str
            The cases of one group and table are counted together.
        name : str
        function : callable
            Raises if the case fails. It may return its error as a part of the tolerance.
        always : bool, default False
            Run it even after the time limit.
        """
        found = self.groups.setdefault(
            (group, table),
            {"group": group, "table": table, "cases": 0, "failed": 0, "skipped": 0, "worst": None, "seconds": 0.0},
        )
        left = self.most if always else min(self.until, self.limit) - self.seconds
        if left <= 0:
            found["skipped"] += 1
            self.complete = False
            return
        began = time.monotonic()
        found["cases"] += 1
        try:
            with limited(min(left + 10, self.most)):
                worst = function()
            if worst is not None:
                found["worst"] = max(worst, found["worst"] or 0.0)
        except Exception as error:  # noqa: BLE001 a failure of any kind is recorded
            found["failed"] += 1
            lines = traceback.format_exception(error)
            text = "".join(lines)
            self.failures.append(
                {"group": group, "table": table, "name": name, "error": type(error).__name__, "text": text[-3000:]}
            )
            print(f"  failed: {group}, {table}, {name}: {type(error).__name__}: {first_line(error)}", flush=True)
        found["seconds"] = round(found["seconds"] + time.monotonic() - began, 4)

    def record(self) -> dict[str, Any]:
        """Return everything that was found."""
        groups = list(self.groups.values())
        return {
            "cases": sum(one["cases"] for one in groups),
            "failed": len(self.failures),
            "skipped": sum(one["skipped"] for one in groups),
            "complete": self.complete,
            "seconds": round(self.seconds, 1),
            "groups": groups,
            "failures": self.failures,
            "notes": self.notes,
            "benchmark": self.benchmark,
        }


def first_line(error: BaseException) -> str:
    """The first line of the text of an error that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:200]


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise `OutOfTimeError` in the main thread after some seconds, on systems that have interval timers."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        msg = f"the case took more than {seconds:.0f} seconds"
        raise OutOfTimeError(msg)

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def summary(record: dict[str, Any]) -> str:
    """The record as a short text."""
    device = record["device"]
    lines = [
        "",
        f"{device['name']} ({device['type']}), torch {record['versions']['torch']}, {record['date']}",
        f"{record['cases']} cases, {record['failed']} failed, {record['skipped']} skipped, {record['seconds']} s",
    ]
    totals: dict[str, list[int]] = {}
    for one in record["groups"]:
        total = totals.setdefault(one["group"], [0, 0, 0])
        for i, key in enumerate(("cases", "failed", "skipped")):
            total[i] += one[key]
    lines += [f"  {name:<16} {a:>6} cases {b:>5} failed {c:>5} skipped" for name, (a, b, c) in totals.items()]
    for note, value in record["notes"].items():
        lines.append(f"  {note}: {value}")
    for one in record["benchmark"]:
        times = ", ".join(f"{name} {value * 1e6:,.0f}" for name, value in one["seconds"].items())
        lines.append(f"  {one['name']}, {one['work']}, us: {times}")
    kinds: dict[str, int] = {}
    for failure in record["failures"]:
        last = failure["text"].strip().splitlines()[-1][:160]
        kinds[f"{failure['group']}, {failure['table']}: {last}"] = kinds.get(last, 0) + 1
    lines += [f"  FAILED {text}" for text in list(kinds)[:40]]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit("run tests/device/run.py")
