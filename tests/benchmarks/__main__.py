"""Time everything, print it beside its goals, and record it for the README.

python -m tests.benchmarks
python -m tests.benchmarks --only "layer norm" --seconds 1
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from .cases import cases, one_pass
from .startup import FIRST, ROOT, Waited, first_calls, imported
from .timing import Measured, pooled

RESULTS = ROOT / "docs" / "benchmarks"
PEERS = ("torch", "np.copyto", "scikit-learn")
WIDTH = 62


def main(arguments: Sequence[str] | None = None) -> int:
    """Time, print and record; the exit status is 1 where a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2, help="how long a pass times a case (%(default)s)")
    parser.add_argument("--passes", type=int, default=5, help="new processes that time each case (%(default)s)")
    parser.add_argument("--only", default="", help="cases with this in their name; they are not recorded")
    parser.add_argument("--gigabytes", type=float, default=2, help="size of the file to adapt to (%(default)s)")
    parser.add_argument("--processes", type=int, default=5, help="new processes for each start-up time (%(default)s)")
    options = parser.parse_args(arguments)

    measured, waited = [], []
    found: dict[int, list[Measured]] = {
        place: [] for place, case in enumerate(cases(options.gigabytes)) if options.only in case.name
    }
    # What an allocation costs is settled early in a process, and differs from one to the next more than the layers do.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as processes:
        for _ in range(options.passes):
            for place, passes in found.items():
                passes.append(processes.submit(one_pass, place, options.gigabytes, options.seconds).result())
    for passes in found.values():
        measured.append(pooled(passes))
        say(case_line(measured[-1]))
    if not options.only:
        waited.append(imported(options.processes))
        say(wait_line(waited[-1]))
        for name in FIRST:
            calls = first_calls(name, options.processes)
            waited += calls
            say(*map(wait_line, calls))
        path = write(record(measured, waited, dt.datetime.now(dt.UTC).date(), os.getloadavg()[-1]), RESULTS)
        say(f"{path.relative_to(ROOT)} is written; python docs/tables.py --write brings it into README.md")
    missed = sum(map(len, (case.missed for case in measured))) + sum(wait.missed for wait in waited)
    say(f"{missed} goals missed" if missed else "every goal reached")
    return 1 if missed else 0


def say(*lines: str) -> None:
    """Print at once: a run takes minutes."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def case_line(case: Measured) -> str:
    """Microseconds, and the ratio to each peer with its goal."""
    cells = [f"{case.name:{WIDTH}} {case.seconds['gennorm'] * 1e6:12,.1f} µs"]
    for peer in PEERS:
        if peer in case.seconds:
            cells.append(f"{peer} {case.ratio(peer):.2f}×")
            if peer in case.spread:
                low, high = case.spread[peer]
                cells[-1] += f" [{low:.2f} to {high:.2f}]"
            if peer in case.goals:
                cells[-1] += f" (goal {case.goals[peer]:g}×{': MISSED' if peer in case.missed else ''})"
    return "  ".join(cells)


def wait_line(wait: Waited) -> str:
    """Seconds and their goal."""
    goal = f"(goal {wait.goal:g} s{': MISSED' if wait.missed else ''})"
    return f"{wait.name:{WIDTH}} {wait.seconds:13.3f} s   {goal}  {wait.clock:.3f} s on the clock"


def record(measured: Sequence[Measured], waited: Sequence[Waited], date: dt.date, load: float = 0) -> dict[str, Any]:
    """What is kept of a run: the format of docs/benchmarks/README.md, nothing about where it ran but its kind."""
    return {
        "date": date.isoformat(),
        "note": note(waited, load),
        "peers": [peer for peer in PEERS if any(peer in case.seconds for case in measured)],
        "cases": [
            {
                "name": case.name,
                "microseconds": {name: float(f"{value * 1e6:.4g}") for name, value in case.seconds.items()},
                **({"goals": case.goals} if case.goals else {}),
                "spread": {peer: [round(ratio, 2) for ratio in ratios] for peer, ratios in case.spread.items()},
            }
            for case in measured
        ],
        "startup": [
            {"name": wait.name, "seconds": round(wait.seconds, 3), "clock": round(wait.clock, 3), "goal": wait.goal}
            for wait in waited
        ],
    }


def note(waited: Sequence[Waited], load: float) -> str:
    """How the times were taken, and in words those of a new process."""
    packages = {"NumPy": "numpy", "Numba": "numba", "torch": "torch", "scikit-learn": "scikit-learn"}
    versions = ", ".join(f"{name} {version(package).partition('+')[0]}" for name, package in packages.items())
    cold, warm = ([w.seconds for w in waited if w.name.endswith(end)] for end in ("nothing cached", ", cached"))
    text = f"Processor time of one thread of {processor()}, float32, everybody in turn, the best of several processes; "
    text += f"Python {platform.python_version()}, {versions}. Outputs are allocated in the call, except with `out=`; "
    text += "np.copyto allocates and copies the input and no more. Batch norm is by the moments of the batch. "
    text += f"`import gennorm`, with NumPy, takes {waited[0].seconds:.2f} s, and the first call in a new process "
    text += (
        f"{min(warm):.2f} to {max(warm):.2f} s, or {min(cold):.1f} to {max(cold):.1f} s where its kernels have never "
    )
    text += "been compiled."
    if load > (os.cpu_count() or 1):
        text += f" Other work kept the machine busy (load {load:.1f} on {os.cpu_count()} processors)."
    return text


def processor() -> str:
    """The kind of processor, as the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    wide = any(" avx512f " in f"{line} " for line in lines if line.startswith("flags"))
    return f"{names[0] if names else platform.machine()}{' (AVX-512)' if wide else ''}"


def write(result: dict[str, Any], folder: Path) -> Path:
    """One file a day, named by it."""
    path = folder / f"{result['date']}.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())
