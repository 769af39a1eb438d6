"""``gennorm bench``: check the options, run the measurements, print and write the results."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from rich.console import Console

import gennorm as gn
from gennorm.bench import between, charts, report
from gennorm.bench.accuracy import FORMULAS, Error, errors
from gennorm.bench.cases import Case, Size, Work, matching, matrix
from gennorm.bench.growth import Grown, growth
from gennorm.bench.measuring import Result, limited_to, measure
from gennorm.bench.models import Accelerated, available, models
from gennorm.bench.peers import COPY, MODULES, PEERS, Peer, Torch, found
from gennorm.bench.startup import Startup, startup
from gennorm.cli.console import console, progress
from gennorm.cli.options import refuse
from gennorm.errors import suggest

__all__ = ["Measure", "Request", "listed", "run"]

SIZES = [*Size]
PROCESSES = 3  # new processes for each startup time
ALIASES = {"onnxruntime": "ONNX Runtime", "sklearn": "scikit-learn"}


class Measure(StrEnum):
    """The kinds of measurement."""

    SPEED = "speed"
    STARTUP = "startup"
    ACCURACY = "accuracy"
    GROWTH = "growth"
    MODELS = "models"
    BETWEEN = "between"


@dataclass(frozen=True, slots=True)
class Request:
    """The options of the command line; None where an option was not given.

    Attributes
    ----------
    patterns : tuple of str
    measure, size, work, peers : str or None
        Words separated by commas.
    threads : int or None
    seconds, gigabytes : float
    json, chart : Path or None
    """

    patterns: tuple[str, ...] = ()
    measure: str | None = None
    size: str | None = None
    work: str | None = None
    peers: str | None = None
    threads: int | None = None
    seconds: float = 0.3
    gigabytes: float = 1.0
    json: Path | None = None
    chart: Path | None = None

    def cases(self) -> list[Case]:
        """The chosen cases."""
        sizes, works = _some("--size", self.size, [*Size]), _some("--work", self.work, [*Work])
        chosen = matching(matrix(), self.patterns, sizes, works)
        if not chosen:
            refuse("PATTERN", "there is no such case; gennorm bench --list lists them all")
        return chosen

    def measures(self) -> list[str]:
        """The chosen measurements."""
        return _some("--measure", self.measure, [*Measure]) or [Measure.SPEED]

    def wanted(self) -> dict[str, type[Peer]]:
        """The chosen libraries."""
        spelled = {_spelling(name): name for name in PEERS} | ALIASES
        names = [spelled[name] for name in _some("--peers", self.peers, list(spelled))]
        return {name: PEERS[name] for name in names or PEERS}

    def check(self) -> None:
        """End the command if a file has the wrong suffix or its folder does not exist."""
        if self.chart is not None and self.chart.suffix.lower() not in charts.FORMATS:
            refuse(
                "--chart", f'"{self.chart}" is not a picture; write a name that ends with {", ".join(charts.FORMATS)}'
            )
        for option, path in (("--json", self.json), ("--chart", self.chart)):
            if path is not None and not path.parent.is_dir():
                refuse(option, f'there is no folder "{path.parent}"')

    def number(self) -> int:
        """The number of threads for gennorm and for every library."""
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        number = min(gn.get_num_threads(), available) if self.threads is None else self.threads
        if number > available:
            refuse("--threads", f"{number} are more than the {available} processors that this process may run on")
        return number


def run(request: Request) -> int:
    """Measure, print and write; the status is 1 where values are wrong."""
    cases, measures, wanted, number = request.cases(), request.measures(), request.wanted(), request.number()
    request.check()  # before minutes of measuring
    screen = console()
    with limited_to(number):
        present, absent = found(wanted, number)
        if Torch.absence() is not None:
            cases = [case for case in cases if case.work not in MODULES]
        versions = {peer.name: peer.version for peer in present}
        machine = f"{report.processor()}, {number} {'thread' if number == 1 else 'threads'}"
        screen.print(machine)
        screen.print(", ".join([f"gennorm {gn.__version__}", *(f"{name} {text}" for name, text in versions.items())]))
        for name, lacks in absent.items():
            screen.print(f"without {name}: {lacks}", style="yellow")
        results = _speed(cases, present, request, screen) if Measure.SPEED in measures else []
        exact = _accuracy(present, screen) if Measure.ACCURACY in measures else []
        grown = _growth(request, screen) if Measure.GROWTH in measures else []
        whole = _models(request, screen) if Measure.MODELS in measures else []
        norms = _between(request, screen) if Measure.BETWEEN in measures else []
        startups = _startup(screen) if Measure.STARTUP in measures else []
    if request.json is not None:
        record = report.record(results, versions, absent, number, startups, exact, grown, whole, norms)
        report.write(record, request.json)
    if request.chart is not None and results:
        charts.draw(results, [name for name in PEERS if name in versions], f"gennorm bench, {machine}", request.chart)
    wrong = [
        *report.disagreements(results),
        *(f"{one.name}, {one.bytes:,} bytes" for one in grown if one.wrong > 1),
        *(f"{one.name}: the error is {one.wrong:.3g} times the allowed one" for one in whole if not one.wrong <= 1),
        *(f"{one.name}: the error is {one.wrong:.3g} times the allowed one" for one in norms if not one.wrong <= 1),
    ]
    for line in wrong:
        screen.print(f"≠ {line}", style="bold red")
    return 1 if wrong else 0


def listed(request: Request) -> None:
    """Print the chosen cases."""
    for case in request.cases():
        console().print(f"{case.work:10} {case.size:7} {case.name}")


def _speed(cases: Sequence[Case], peers: Sequence[Peer], request: Request, screen: Console) -> list[Result]:
    """The results in the order of the cases; cases with the same array are measured one after another."""
    measured: dict[Case, Result] = {}
    try:
        with progress("", counted=True) as bar:
            for case in sorted(cases, key=lambda case: (SIZES.index(case.size), case.shape, case.dtype, case.padding)):
                bar(len(measured), len(cases), f"{case.name}, {case.work}")
                measured[case] = measure(case, peers, request.number(), request.seconds)
    finally:  # an interrupted run prints the results that it has
        results = [measured[case] for case in cases if case in measured]
        _print(results, [*(peer.name for peer in peers), COPY], screen)
    return results


def _print(results: Sequence[Result], columns: Sequence[str], screen: Console) -> None:
    screen.print("Under the name of a library: the speed-up over it. Below 1×, gennorm is slower.")
    for kind in Work:
        rows = [result for result in results if result.case.work is kind]
        if rows:
            timed = [name for name in columns if any(name in row.seconds for row in rows)]
            screen.print("", report.table(kind, rows, timed))
    screen.print("", report.summary(results, columns))


def _accuracy(peers: Sequence[Peer], screen: Console) -> list[Error]:
    judged = [peer for peer in peers if peer.name in FORMULAS]
    with progress("", counted=True) as bar:
        measured = list(errors(judged, bar))
    screen.print("", report.accuracy_table(measured, [peer.name for peer in judged]))
    return measured


def _growth(request: Request, screen: Console) -> list[Grown]:
    with progress("", counted=True) as bar:
        measured = list(growth(request.gigabytes, request.seconds, bar))
    screen.print("", report.growth_table(measured))
    return measured


def _models(request: Request, screen: Console) -> list[Accelerated]:
    if not available():
        refuse("--measure", "models need the packages torch and transformers")
    with progress("", counted=True) as bar:
        measured = list(models(request.seconds, bar))
    screen.print("", report.models_table(measured))
    return measured


def _between(request: Request, screen: Console) -> list[between.Between]:
    if not between.available():
        refuse("--measure", "norms between operators of torch need the package torch")
    with progress("", counted=True) as bar:
        measured = list(between.between(request.seconds, bar))
    screen.print("", report.between_table(measured))
    return measured


def _startup(screen: Console) -> list[Startup]:
    with progress("", counted=True) as bar:
        measured = startup(PROCESSES, bar)
    screen.print("", report.startup_table(measured))
    return measured


def _some(option: str, text: str | None, allowed: Sequence[str]) -> list[str]:
    """The words of a text with commas; each has to be one of `allowed`."""
    words = [] if text is None else [_spelling(word.strip()) for word in text.split(",")]
    for word in words:
        if word not in allowed:
            refuse(option, f'"{word}" is none of {", ".join(allowed)}{suggest(word, allowed)}')
    return words


def _spelling(name: str) -> str:
    return name.casefold().replace(" ", "")
