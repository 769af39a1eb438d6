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
from gennorm.cli.bench.accuracy import Error
from gennorm.cli.bench.cases import Work
from gennorm.cli.bench.growth import Grown
from gennorm.cli.bench.models import Accelerated
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
    Work.MODULE: "Modules of torch, forward and backward",
    Work.EVALUATION: "Modules of torch in evaluation",
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


def growth_table(grown: Sequence[Grown]) -> Table:
    """Nanoseconds for each element, arrays growing to the right."""
    sizes = list(dict.fromkeys(one.bytes for one in grown))
    found = _table("Nanoseconds for an element")
    found.add_column("")
    for size in sizes:
        found.add_column(f"{size >> 20:,} MB", justify="right")
    rows: dict[str, list[str]] = {}
    for one in grown:
        rows.setdefault(one.name, []).append(f"{one.nanoseconds:.3f}")
    for name, cells in rows.items():
        found.add_row(name, *cells)
    return found


def models_table(measured: Sequence[Accelerated]) -> Table:
    """Whole models before and after, with the part of the time that their norms take."""
    found = _table("Models, before and after gennorm.torch.accelerate")
    for heading in ("", "", "norms", "before", "in norms", "after", "in norms", "speed-up", "of the norms"):
        found.add_column(heading, justify="right" if heading else "left")
    for one in measured:
        found.add_row(
            one.name,
            one.work,
            str(one.layers),
            duration(one.before),
            f"{one.norms_before / one.before:.0%}",
            duration(one.after),
            f"{one.norms_after / one.after:.0%}",
            _ratio(one.before / one.after),
            _ratio(one.norms_before / one.norms_after),
        )
    return found


def accuracy_table(errors: Sequence[Error], peers: Sequence[str]) -> Table:
    """The largest error for each length, over all that it was measured for."""
    found = _table("The largest error, in units in the last place")
    for heading in ("", "gennorm", "the bound", *peers):
        found.add_column(heading, justify="right" if heading else "left")
    rows: dict[tuple[str, str, int], list[Error]] = {}
    for error in errors:
        rows.setdefault((error.dtype, error.layout, error.length), []).append(error)
    for (dtype, layout, length), some in rows.items():
        for far in (False, True):
            kind = [error for error in some if (error.offset > 0) is far and error.scale == 1]
            cells = [unit(worst(error.ulps[name] for error in kind)) for name in ("gennorm", *peers)]
            cells.insert(1, unit(max(error.bound for error in kind)))
            name = f"{dtype}, {layout} of {length:,}, mean {'up to 1e8 deviations' if far else '0'}"
            found.add_row(name, *cells)
    return found


def worst(values: Iterable[float | None]) -> float | None:
    """The largest; None, which is not a number, is larger than all."""
    found = list(values)
    return None if None in found else max(value for value in found if value is not None)


def unit(value: float | None) -> str:
    """An error in so many digits as matter.

    Examples
    --------
    >>> unit(1.284), unit(152.82), unit(16461.5), unit(None)
    ('1.3', '153', '1.6e+04', 'NaN')
    """
    if value is None:
        return "NaN"
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}" if value < 9999.5 else f"{value:.1e}"


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
    accuracy: Sequence[Error],
    grown: Sequence[Grown],
    models: Sequence[Accelerated],
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
        "summary": [_rounded(row) for row in summarized(results, [*versions, COPY])],
        "startup": [_rounded(asdict(wait)) for wait in waited],
        "accuracy": [_rounded(asdict(error)) for error in accuracy],
        "growth": [_rounded(asdict(one)) for one in grown],
        "models": [_rounded(asdict(one)) for one in models],
    }


def _case(result: Result) -> dict[str, Any]:
    case = result.case
    described = {"name": case.name, "work": case.work, "norm": case.norm, "size": case.size}
    array = {"shape": list(case.shape), "dtype": case.dtype, "bytes": case.bytes}
    measured = {"seconds": result.seconds, "floor": result.floor, "wrong": result.wrong}
    return {**described, **array, **_rounded(measured)}


def _rounded(values: Any) -> Any:
    """The same with four digits, which is more than a measurement has."""
    if isinstance(values, Mapping):
        return {name: _rounded(value) for name, value in values.items()}
    return float(f"{values:.4g}") if isinstance(values, float) else values


def write(result: Mapping[str, Any], path: Path) -> None:
    """Write a record, a line for each thing that was measured."""
    with replacing(path) as part:
        part.write_text(text_of(result), encoding="utf-8")


def text_of(result: Mapping[str, Any]) -> str:
    """JSON with a line for each item of the lists.

    Examples
    --------
    >>> print(text_of({"threads": 1, "cases": [{"name": "a"}, {"name": "b"}]}), end="")
    {
     "threads": 1,
     "cases": [
      {"name": "a"},
      {"name": "b"}
     ]
    }
    """

    def written(value: Any) -> str:
        lines = [json.dumps(item, ensure_ascii=False) for item in value] if isinstance(value, list) else []
        return "[\n  " + ",\n  ".join(lines) + "\n ]" if lines else json.dumps(value, ensure_ascii=False)

    return "{\n " + ",\n ".join(f"{json.dumps(name)}: {written(value)}" for name, value in result.items()) + "\n}\n"


def processor() -> str:
    """The kind of processor, as the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    wide = any(" avx512f " in f"{line} " for line in lines if line.startswith("flags"))
    return f"{names[0] if names else platform.machine()}{' (AVX-512)' if wide else ''}"
