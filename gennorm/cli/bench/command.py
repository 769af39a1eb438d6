"""The command: which cases and peers are asked for, and what is done with what comes out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import gennorm as gn
from gennorm.cli.bench import charts, report
from gennorm.cli.bench.cases import Case, Size, Work, matching, matrix
from gennorm.cli.bench.peers import COPY, PEERS, Peer, found
from gennorm.cli.bench.running import Result, measure, threads
from gennorm.cli.bench.startup import startup
from gennorm.cli.console import console, progress
from gennorm.cli.options import refuse
from gennorm.errors import suggest

__all__ = ["run"]

PROCESSES = 3  # that are started for each time of starting up


def run(
    patterns: list[str],
    size: str | None,
    work: str | None,
    peers: str | None,
    number: int | None,
    seconds: float,
    as_json: Path | None,
    chart: Path | None,
    *,
    list_cases: bool,
    start_up: bool,
) -> int:
    """Measure, print and write; the status is 1 where values disagree."""
    screen = console()
    sizes, works = _some("--size", size, [*Size]), _some("--work", work, [*Work])
    chosen = matching(matrix(), patterns, sizes, works)
    if not chosen:
        refuse("PATTERN", "there is no such case; gennorm bench --list lists them all")
    if list_cases:
        for case in chosen:
            screen.print(f"{case.work:10} {case.size:7} {case.name}")
        return 0
    spelled = {_spelling(name): name for name in PEERS} | {"onnxruntime": "ONNX Runtime"}
    names = [spelled[name] for name in _some("--peers", peers, list(spelled))] or list(PEERS)
    number = gn.get_num_threads() if number is None else number
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if number > available:
        refuse("--threads", f"{number} threads are more than the {available} processors that this process may run on")
    if chart is not None:
        charts.suffix_of(chart)  # before minutes are spent
    with threads(number):
        present, absent = found({name: PEERS[name] for name in names}, number)
        versions = {peer.name: peer.version for peer in present}
        machine = f"{report.processor()}, {number} {'thread' if number == 1 else 'threads'}"
        screen.print(machine)
        screen.print(", ".join([f"gennorm {gn.__version__}", *(f"{name} {text}" for name, text in versions.items())]))
        for name, lacks in absent.items():
            screen.print(f"without {name}: {lacks}", style="yellow")
        screen.print("A ratio is how many times as long as gennorm somebody takes; below 1 gennorm is slower.")
        with progress("", counted=True) as bar:
            results = _measured(chosen, present, number, seconds, bar)
    columns = [name for name in PEERS if name in versions]
    for kind in Work:
        rows = [result for result in results if result.case.work is kind]
        if rows:
            columns_here = [*columns, COPY] if kind is Work.OUT else columns
            shown = [name for name in columns_here if any(name in row.seconds for row in rows)]
            screen.print("")
            screen.print(report.table(kind, rows, shown))
    screen.print("")
    screen.print(report.summary(results, [*columns, COPY]))
    waited = []
    if start_up:
        with progress("", counted=True) as bar:
            waited = startup(PROCESSES, bar)
        screen.print("")
        screen.print(report.startup_table(waited))
    if as_json is not None:
        report.write(report.record(results, versions, absent, number, waited), as_json)
    if chart is not None:
        charts.draw(results, columns, f"gennorm bench, {machine}", chart)
    wrong = report.disagreements(results)
    for line in wrong:
        screen.print(f"≠ {line}", style="bold red")
    return 1 if wrong else 0


def _measured(
    cases: Sequence[Case], peers: Sequence[Peer], number: int, seconds: float, bar: Callable[..., None]
) -> list[Result]:
    """The results in the order of the cases, taken with those of one array after each other."""
    found: dict[Case, Result] = {}
    for case in sorted(cases, key=lambda case: ([*Size].index(case.size), case.shape, case.dtype, case.padding)):
        bar(len(found), len(cases), f"{case.name}, {case.work}")
        found[case] = measure(case, peers, number, seconds)
    return [found[case] for case in cases]


def _some(option: str, text: str | None, allowed: list[str]) -> list[str]:
    """The words of a text with commas, each one of those that are allowed."""
    words = [] if text is None else [word.strip().casefold() for word in text.split(",")]
    for word in words:
        if word not in allowed:
            refuse(option, f'"{word}" is none of {", ".join(allowed)}{suggest(word, allowed)}')
    return words


def _spelling(name: str) -> str:
    return name.casefold().replace(" ", "")
