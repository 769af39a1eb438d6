"""What came out: a table, JSON, and a chart."""

from __future__ import annotations

import datetime as dt
import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

import gennorm as gn
from gennorm.cli.bench.cases import Work
from gennorm.cli.bench.peers import COPY
from gennorm.cli.bench.running import Result
from gennorm.cli.bench.startup import Waited
from gennorm.cli.files import replacing

__all__ = [
    "TITLES",
    "disagreements",
    "geometric_mean",
    "processor",
    "record",
    "startup_table",
    "summary",
    "table",
    "write",
]

TITLES = {
    Work.FORWARD: "Forward, the output allocated",
    Work.BACKWARD: "Forward and backward, the gradients of everything",
    Work.OUT: "Forward into out=",
    Work.INFERENCE: "By moments that are given",
    Work.ADAPT: "The moments of a data set",
}
UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


# -------------------------------------------------------------------------------------------------------------- tables


def table(work: Work, results: Sequence[Result], peers: Sequence[str]) -> Table:
    """The cases of one kind of work: how long, how far from the floor, and how many times as long everybody else."""
    found = _table(TITLES[work])
    found.add_column("", no_wrap=True)
    for heading in ("gennorm", "of the floor", *peers):
        found.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        own = result.seconds["gennorm"]
        mark = Text("≠ ", "bold red") if "gennorm" in result.wrong else Text()
        distance = Text(f"{own / result.floor:.2f}×", "dim")
        cells = [mark + Text(duration(own)), distance, *(_cell(result, peer) for peer in peers)]
        found.add_row(result.case.name, *cells)
    return found


def summary(results: Sequence[Result], peers: Sequence[str]) -> Table:
    """The geometric mean and the worst case against each peer, for each kind of work."""
    found = _table("Together")
    for heading in ("", "against", "cases", "geometric mean", "the least", "in the case"):
        found.add_column(heading, justify="right" if heading in {"cases", "geometric mean", "the least"} else "left")
    before = ""
    for row in summarized(results, peers):
        title = TITLES[Work(row["work"])]
        cells = [_ratio(row["geometric_mean"]), _ratio(row["least"])]
        found.add_row("" if title == before else title, row["peer"], f"{row['cases']}", *cells, row["least_in"])
        before = title
    return found


def summarized(results: Sequence[Result], peers: Sequence[str]) -> list[dict[str, Any]]:
    """The same, as numbers."""
    rows: list[dict[str, Any]] = []
    for work in Work:
        for peer in peers:
            ratios = {
                result.case.name: ratio
                for result in results
                if result.case.work is work and (ratio := result.ratio(peer)) is not None
            }
            if ratios:
                least = min(ratios, key=ratios.__getitem__)
                mean = geometric_mean(ratios.values())
                row = {"work": work, "peer": peer, "cases": len(ratios), "geometric_mean": mean}
                rows.append({**row, "least": ratios[least], "least_in": least})
    return rows


def startup_table(waited: Sequence[Waited]) -> Table:
    """What a new process waits for."""
    found = _table("New processes")
    for heading in ("", "", "nothing cached"):
        found.add_column(heading, justify="right" if heading else "left")
    for wait in waited:
        found.add_row(wait.name, duration(wait.seconds), "" if wait.compiling is None else duration(wait.compiling))
    return found


def disagreements(results: Iterable[Result]) -> list[str]:
    """A line for everybody whose values are wrong."""
    return [
        f"{result.case.name}, {result.case.work}: {name} is off by {error:.3g} times what is allowed"
        for result in results
        for name, error in result.wrong.items()
    ]


def duration(seconds: float) -> str:
    """Three digits and a unit.

    Examples
    --------
    >>> duration(1.234e-6), duration(0.0123), duration(2.5)
    ('1.23 µs', '12.3 ms', '2.50 s')
    """
    scale, unit = next((scale, unit) for scale, unit in UNITS if seconds >= scale * 0.9995 or scale == UNITS[-1][0])
    value = seconds / scale
    return f"{value:.{max(0, 2 - int(math.log10(max(value, 1))))}f} {unit}"


def geometric_mean(values: Iterable[float]) -> float:
    """The mean of ratios."""
    logarithms = [math.log(value) for value in values]
    return math.exp(math.fsum(logarithms) / len(logarithms))


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0), pad_edge=False)


def _cell(result: Result, peer: str) -> Text:
    ratio = result.ratio(peer)
    if ratio is None:
        return Text("–", "dim")
    return Text("≠ ", "red") + _ratio(ratio) if peer in result.wrong else _ratio(ratio)


def _ratio(ratio: float) -> Text:
    return Text(f"{ratio:.2f}×" if ratio < 100 else f"{ratio:.0f}×", "bold red" if ratio < 1 else "")


# ---------------------------------------------------------------------------------------------------------------- JSON


def record(
    results: Sequence[Result],
    versions: Mapping[str, str],
    absent: Mapping[str, str],
    threads: int,
    waited: Sequence[Waited],
) -> dict[str, Any]:
    """A run: the format of docs/benchmarks/README.md, and of the machine nothing but its kind."""
    return {
        "format": "gennorm/bench",
        "version": 1,
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "gennorm": gn.__version__,
        "machine": {
            "processor": processor(),
            "processors": os.cpu_count(),
            "system": platform.system(),
            "python": platform.python_version(),
            "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        },
        "threads": threads,
        "peers": dict(versions),
        "absent": dict(absent),
        "cases": [_case(result) for result in results],
        "summary": [{**row, **_digits(row)} for row in summarized(results, [*versions, COPY])],
        "startup": [asdict(wait) for wait in waited],
    }


def _case(result: Result) -> dict[str, Any]:
    case = result.case
    described = {"name": case.name, "work": case.work, "norm": case.norm, "size": case.size}
    array = {"shape": list(case.shape), "dtype": case.dtype, "bytes": case.bytes}
    seconds = {name: float(f"{value:.4g}") for name, value in result.seconds.items()}
    found = {**described, **array, "seconds": seconds, "floor": float(f"{result.floor:.4g}")}
    return {**found, "wrong": {name: float(f"{error:.3g}") for name, error in result.wrong.items()}}


def _digits(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: round(row[name], 3) for name in ("geometric_mean", "least")}


def write(result: Mapping[str, Any], path: Path) -> None:
    """Write a record."""
    with replacing(path) as part:
        part.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def processor() -> str:
    """The kind of processor, as the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    wide = any(" avx512f " in f"{line} " for line in lines if line.startswith("flags"))
    return f"{names[0] if names else platform.machine()}{' (AVX-512)' if wide else ''}"
