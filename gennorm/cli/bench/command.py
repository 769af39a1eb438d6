"""The command: what is asked for, and what is done with what comes out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from rich.console import Console

import gennorm as gn
from gennorm.cli.bench import charts, report
from gennorm.cli.bench.accuracy import FORMULAS, Error, errors
from gennorm.cli.bench.cases import Case, Size, Work, matching, matrix
from gennorm.cli.bench.growth import Grown, growth
from gennorm.cli.bench.models import Accelerated, models
from gennorm.cli.bench.peers import COPY, MODULES, PEERS, Peer, Torch, found
from gennorm.cli.bench.running import Result, measure, threads
from gennorm.cli.bench.startup import Waited, startup
from gennorm.cli.console import console, progress
from gennorm.cli.options import refuse
from gennorm.errors import suggest

__all__ = ["Measure", "Request", "listed", "run"]

SIZES = [*Size]
PROCESSES = 3  # that are started for each time of starting up
ALIASES = {"onnxruntime": "ONNX Runtime", "sklearn": "scikit-learn"}


class Measure(StrEnum):
    """What there is to measure."""

    SPEED = "speed"
    STARTUP = "startup"
    ACCURACY = "accuracy"
    GROWTH = "growth"
    MODELS = "models"


@dataclass(frozen=True, slots=True)
class Request:
    """A command line, as it was written; None is what was not.

    Attributes
    ----------
    patterns : tuple of str
    measure, size, work, peers : str or None
        Words with commas between them.
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
        """The cases that are asked for."""
        sizes, works = _some("--size", self.size, [*Size]), _some("--work", self.work, [*Work])
        chosen = matching(matrix(), self.patterns, sizes, works)
        if not chosen:
            refuse("PATTERN", "there is no such case; gennorm bench --list lists them all")
        return chosen

    def measures(self) -> list[str]:
        """What is to be measured."""
        return _some("--measure", self.measure, [*Measure]) or [Measure.SPEED]

    def wanted(self) -> dict[str, type[Peer]]:
        """The peers that are asked for."""
        spelled = {_spelling(name): name for name in PEERS} | ALIASES
        names = [spelled[name] for name in _some("--peers", self.peers, list(spelled))]
        return {name: PEERS[name] for name in names or PEERS}

    def check(self) -> None:
        """End where the files cannot be what they are called, or would be in no folder."""
        if self.chart is not None and self.chart.suffix.lower() not in charts.FORMATS:
            refuse("--chart", f'"{self.chart}" is no picture; write a name that ends with {", ".join(charts.FORMATS)}')
        for option, path in (("--json", self.json), ("--chart", self.chart)):
            if path is not None and not path.parent.is_dir():
                refuse(option, f'there is no folder "{path.parent}"')

    def number(self) -> int:
        """How many threads everybody has."""
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        number = min(gn.get_num_threads(), available) if self.threads is None else self.threads
        if number > available:
            refuse("--threads", f"{number} are more than the {available} processors that this process may run on")
        return number


def run(request: Request) -> int:
    """Measure, print and write; the status is 1 where values disagree."""
    cases, measures, wanted, number = request.cases(), request.measures(), request.wanted(), request.number()
    request.check()  # before minutes are spent
    screen = console()
    with threads(number):
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
        waited = _startup(screen) if Measure.STARTUP in measures else []
    if request.json is not None:
        report.write(report.record(results, versions, absent, number, waited, exact, grown, whole), request.json)
    if request.chart is not None and results:
        charts.draw(results, [name for name in PEERS if name in versions], f"gennorm bench, {machine}", request.chart)
    wrong = [
        *report.disagreements(results),
        *(f"{one.name}, {one.bytes:,} bytes" for one in grown if one.wrong > 1),
        *(f"{one.name}: off by {one.wrong:.3g} times what is allowed" for one in whole if not one.wrong <= 1),
    ]
    for line in wrong:
        screen.print(f"≠ {line}", style="bold red")
    return 1 if wrong else 0


def listed(request: Request) -> None:
    """Print the cases that are asked for."""
    for case in request.cases():
        console().print(f"{case.work:10} {case.size:7} {case.name}")


def _speed(cases: Sequence[Case], peers: Sequence[Peer], request: Request, screen: Console) -> list[Result]:
    """The results in the order of the cases, taken with those of one array after each other."""
    measured: dict[Case, Result] = {}
    try:
        with progress("", counted=True) as bar:
            for case in sorted(cases, key=lambda case: (SIZES.index(case.size), case.shape, case.dtype, case.padding)):
                bar(len(measured), len(cases), f"{case.name}, {case.work}")
                measured[case] = measure(case, peers, request.number(), request.seconds)
    finally:  # what has been measured is not lost where the rest is interrupted
        results = [measured[case] for case in cases if case in measured]
        _print(results, [*(peer.name for peer in peers), COPY], screen)
    return results


def _print(results: Sequence[Result], columns: Sequence[str], screen: Console) -> None:
    screen.print("A ratio is how many times as long as gennorm somebody takes; below 1 gennorm is slower.")
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
    try:
        import transformers  # noqa: F401
    except ImportError:
        refuse("--measure", "models need the packages torch and transformers")
    with progress("", counted=True) as bar:
        measured = list(models(request.seconds, bar))
    screen.print("", report.models_table(measured))
    return measured


def _startup(screen: Console) -> list[Waited]:
    with progress("", counted=True) as bar:
        measured = startup(PROCESSES, bar)
    screen.print("", report.startup_table(measured))
    return measured


def _some(option: str, text: str | None, allowed: Sequence[str]) -> list[str]:
    """The words of a text with commas, each one of those that are allowed."""
    words = [] if text is None else [_spelling(word.strip()) for word in text.split(",")]
    for word in words:
        if word not in allowed:
            refuse(option, f'"{word}" is none of {", ".join(allowed)}{suggest(word, allowed)}')
    return words


def _spelling(name: str) -> str:
    return name.casefold().replace(" ", "")
