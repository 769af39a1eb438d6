"""Tables of the results, and the JSON record of a run."""

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
from gennorm.bench.accuracy import Error
from gennorm.bench.between import Between
from gennorm.bench.cases import Work
from gennorm.bench.growth import Grown
from gennorm.bench.measuring import Result
from gennorm.bench.models import Accelerated
from gennorm.bench.peers import COPY
from gennorm.bench.startup import Startup
from gennorm.layer.files import replacing

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
    Work.FORWARD: "Forward, with the allocation of the output",
    Work.BACKWARD: "Forward and backward, all gradients",
    Work.OUT: "Forward into out=",
    Work.INFERENCE: "Forward with given moments",
    Work.ADAPT: "Moments of a data set",
    Work.MODULE: "Modules of torch, forward and backward",
    Work.EVALUATION: "Modules of torch in evaluation",
}
UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


# -------------------------------------------------------------------------------------------------------------- tables


def table(work: Work, results: Sequence[Result], peers: Sequence[str]) -> Table:
    """The cases of one kind of work: the time, its ratio to the floor, and the speed-up over each library."""
    found = _table(TITLES[work])
    found.add_column("", no_wrap=True)
    for heading in ("gennorm", "over the floor", *peers):
        found.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        own = result.seconds["gennorm"]
        mark = Text("≠ ", "bold red") if "gennorm" in result.wrong else Text()
        distance = Text(f"{own / result.floor:.2f}×", "dim")
        cells = [mark + Text(duration(own)), distance, *(_cell(result, peer) for peer in peers)]
        found.add_row(result.case.name, *cells)
    return found


def summary(results: Sequence[Result], peers: Sequence[str]) -> Table:
    """The geometric mean and the least speed-up over each library, for each kind of work."""
    found = _table("Summary")
    for heading in ("", "speed-up over", "cases", "geometric mean", "least", "in the case"):
        found.add_column(heading, justify="right" if heading in {"cases", "geometric mean", "least"} else "left")
    before = ""
    for row in summarized(results, peers):
        title = TITLES[Work(row["work"])]
        cells = [_ratio(row["geometric_mean"]), _ratio(row["least"])]
        found.add_row("" if title == before else title, row["peer"], f"{row['cases']}", *cells, row["least_in"])
        before = title
    return found


def summarized(results: Sequence[Result], peers: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of `summary` as numbers."""
    rows: list[dict[str, Any]] = []
    for work in Work:
        for peer in peers:
            speedups = {
                result.case.name: speedup
                for result in results
                if result.case.work is work and (speedup := result.speedup(peer)) is not None
            }
            if speedups:
                least = min(speedups, key=speedups.__getitem__)
                mean = geometric_mean(speedups.values())
                row = {"work": work, "peer": peer, "cases": len(speedups), "geometric_mean": mean}
                rows.append({**row, "least": speedups[least], "least_in": least})
    return rows


def startup_table(startups: Sequence[Startup]) -> Table:
    """The times of new processes."""
    found = _table("New processes")
    for heading in ("", "", "empty cache"):
        found.add_column(heading, justify="right" if heading else "left")
    for one in startups:
        found.add_row(one.name, duration(one.seconds), "" if one.compiling is None else duration(one.compiling))
    return found


def growth_table(grown: Sequence[Grown]) -> Table:
    """Nanoseconds per element; arrays grow to the right."""
    sizes = list(dict.fromkeys(one.bytes for one in grown))
    found = _table("Nanoseconds per element")
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
    """The times of whole models before and after, with the share of their norms."""
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


def between_table(measured: Sequence[Between]) -> Table:
    """The times of norms between operators of torch, and the speed-up of the norms and of the whole sequences."""
    found = _table("Norms between operators of torch")
    for heading in ("", "", "torch", "gennorm", "speed-up", "of the sequence"):
        found.add_column(heading, justify="right" if heading else "left")
    for one in measured:
        found.add_row(
            one.name,
            one.work,
            duration(one.torch),
            duration(one.gennorm),
            _ratio(one.torch / one.gennorm),
            _ratio(one.whole_torch / one.whole_gennorm),
        )
    for work in dict.fromkeys(one.work for one in measured):
        some = [one for one in measured if one.work == work]
        norms, whole = (
            geometric_mean(values)
            for values in (
                [one.torch / one.gennorm for one in some],
                [one.whole_torch / one.whole_gennorm for one in some],
            )
        )
        found.add_row("geometric mean", work, "", "", _ratio(norms), _ratio(whole))
    return found


def accuracy_table(errors: Sequence[Error], peers: Sequence[str]) -> Table:
    """The largest error for each length of a slice."""
    found = _table("Largest error in units in the last place")
    for heading in ("", "gennorm", "bound", *peers):
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
    """The largest value; None, which means NaN, is larger than every number."""
    found = list(values)
    return None if None in found else max(value for value in found if value is not None)


def unit(value: float | None) -> str:
    """An error with the digits that matter.

    Examples
    --------
    >>> unit(1.284), unit(152.82), unit(16461.5), unit(None)
    ('1.3', '153', '1.6e+04', 'NaN')
    """
    if value is None:
        return "NaN"
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}" if value < 9999.5 else f"{value:.1e}"


def disagreements(results: Iterable[Result]) -> list[str]:
    """A line for each library whose values are wrong."""
    return [
        f"{result.case.name}, {result.case.work}: the error of {name} is {error:.3g} times the allowed one"
        for result in results
        for name, error in result.wrong.items()
    ]


def duration(seconds: float) -> str:
    """A time with three digits and a unit.

    Examples
    --------
    >>> duration(1.234e-6), duration(0.0123), duration(2.5)
    ('1.23 µs', '12.3 ms', '2.50 s')
    """
    scale, unit = next((scale, unit) for scale, unit in UNITS if seconds >= scale * 0.9995 or scale == UNITS[-1][0])
    value = seconds / scale
    return f"{value:.{max(0, 2 - int(math.log10(max(value, 1))))}f} {unit}"


def geometric_mean(values: Iterable[float]) -> float:
    """The geometric mean."""
    logarithms = [math.log(value) for value in values]
    return math.exp(math.fsum(logarithms) / len(logarithms))


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0), pad_edge=False)


def _cell(result: Result, peer: str) -> Text:
    speedup = result.speedup(peer)
    if speedup is None:
        return Text("–", "dim")
    return Text("≠ ", "red") + _ratio(speedup) if peer in result.wrong else _ratio(speedup)


def _ratio(ratio: float) -> Text:
    return Text(f"{ratio:.2f}×" if ratio < 100 else f"{ratio:.0f}×", "bold red" if ratio < 1 else "")


# ---------------------------------------------------------------------------------------------------------------- JSON


def record(
    results: Sequence[Result],
    versions: Mapping[str, str],
    absent: Mapping[str, str],
    threads: int,
    startups: Sequence[Startup],
    accuracy: Sequence[Error],
    grown: Sequence[Grown],
    models: Sequence[Accelerated],
    between: Sequence[Between],
) -> dict[str, Any]:
    """The record of a run in the format of docs/benchmarks/README.md. Of the machine it says the kind only."""
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
        "startup": [_rounded(asdict(one)) for one in startups],
        "accuracy": [_rounded(asdict(error)) for error in accuracy],
        "growth": [_rounded(asdict(one)) for one in grown],
        "models": [_rounded(asdict(one)) for one in models],
        "between": [_rounded(asdict(one)) for one in between],
    }


def _case(result: Result) -> dict[str, Any]:
    case = result.case
    described = {"name": case.name, "work": case.work, "norm": case.norm, "size": case.size}
    array = {"shape": list(case.shape), "dtype": case.dtype, "bytes": case.bytes}
    measured = {"seconds": result.seconds, "floor": result.floor, "wrong": result.wrong}
    return {**described, **array, **_rounded(measured)}


def _rounded(values: Any) -> Any:
    """The values with four significant digits."""
    if isinstance(values, Mapping):
        return {name: _rounded(value) for name, value in values.items()}
    return float(f"{values:.4g}") if isinstance(values, float) else values


def write(result: Mapping[str, Any], path: Path) -> None:
    """Write a record with one line for each measurement."""
    with replacing(path) as part:
        part.write_text(text_of(result), encoding="utf-8")


def text_of(result: Mapping[str, Any]) -> str:
    """JSON with one line for each item of a list.

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
    """The name of the processor, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    wide = any(" avx512f " in f"{line} " for line in lines if line.startswith("flags"))
    return f"{names[0] if names else platform.machine()}{' (AVX-512)' if wide else ''}"
