"""Write the tables of README.md and of the pages, or check that they are up to date.

    python docs/tables.py --write
    python docs/tables.py --check

The tables of presets and of the zoo come from the functions themselves, that of devices from the records of
`tests/device/run.py`, and the others from the records of `gennorm bench`; docs/benchmarks/README.md has the commands.
"""

from __future__ import annotations

import argparse
import difflib
import json
import math
import re
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS / "benchmarks"
NOTHING = "_Nothing has been recorded yet._"

# The kinds of work in the records of `gennorm bench`, and their names in the tables.
WORK = {
    "forward": "forward",
    "backward": "forward and backward",
    "out": "forward into `out=`",
    "inference": "with given moments",
    "adapt": "moments of a data set",
    "module": "modules, forward and backward",
    "evaluation": "modules in evaluation",
}

# A call of each preset, and the source of its norm.
PRESETS = {
    "gn.batch_norm(64)": "[Ioffe and Szegedy 2015](https://arxiv.org/abs/1502.03167)",
    "gn.batch_norm(64, channel_level=-1)": "the same, channels last",
    "gn.layer_norm(768)": "[Ba et al. 2016](https://arxiv.org/abs/1607.06450)",
    "gn.rms_norm(768)": "[Zhang and Sennrich 2019](https://arxiv.org/abs/1910.07467)",
    "gn.instance_norm(64)": "[Ulyanov et al. 2016](https://arxiv.org/abs/1607.08022)",
    "gn.group_norm(32, 256)": "[Wu and He 2018](https://arxiv.org/abs/1803.08494)",
    "gn.feature_norm()": "[Keras' Normalization](https://keras.io/api/layers/preprocessing_layers/numerical/normalization/)",
}


def table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> str:
    """A Markdown table; `align` has one of `l`, `r` for each column."""
    rules = ["---:" if side == "r" else "---" for side in align.ljust(len(header), "l")]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, rules, *rows])


def preset_table() -> str:
    """The layer that each preset makes, as it is printed."""
    import gennorm as gn

    rows = [[f"`{call}`", f"`{eval(call, {'gn': gn})!r}`", source] for call, source in PRESETS.items()]
    return table(["preset", "the layer it is", "from"], rows)


def zoo_table() -> str:
    """The published normalizations that can be written."""
    import gennorm as gn

    found = [gn.zoo.describe(name) for name in gn.zoo.names()]
    rows = [
        [f"`{one.example}`", one.title, f"{one.formula}".replace("|", "\\|"), linked(one.reference)] for one in found
    ]
    return table(["call", "what it is", "formula", "from"], rows)


def missing_table() -> str:
    """The published normalizations that cannot be written, by reason."""
    import gennorm as gn

    by_reason: dict[str, list[str]] = {}
    for name, reason in gn.zoo.missing().items():
        by_reason.setdefault(reason, []).append(f"`{name}`")
    return table(["method", "why not"], ([", ".join(names), reason] for reason, names in by_reason.items()))


def linked(reference: str) -> str:
    """A reference whose arXiv number is a link."""
    return re.sub(r"arXiv:(\d+\.\d+)", r"[arXiv:\1](https://arxiv.org/abs/\1)", reference)


def recorded(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The runs of `gennorm bench` on record, fewest threads first."""
    paths = [path for path in folder.glob("*.json") if not path.name.startswith("device-")]
    found: list[dict[str, Any]] = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return sorted(found, key=lambda run: (int(run["threads"]), not run["cases"]))


def benchmark_table(runs: Sequence[dict[str, Any]]) -> str:
    """The geometric mean and the least speed-up over each library, for each kind of work and number of threads."""
    runs = [run for run in runs if run["cases"]]
    if not runs:
        return NOTHING
    peers = list(dict.fromkeys(row["peer"] for run in runs for row in run["summary"]))
    rows: list[list[str]] = []
    for work, title in WORK.items():
        for run in runs:
            found = {row["peer"]: row for row in run["summary"] if row["work"] == work}
            cells = [
                f"**{times(row['geometric_mean'])}** ({times(row['least'])})" if row else ""
                for row in map(found.get, peers)
            ]
            if found:
                number = max(row["cases"] for row in found.values())
                rows.append([title, str(run["threads"]), str(number), *cells])
    body = table(["speed-up over", "threads", "cases", *peers], rows, "lrr" + "r" * len(peers))
    notes = "\n\n".join(dict.fromkeys(note(run) for run in runs))
    return f"{body}\n\nThe geometric mean of the speed-ups, and in brackets the least one. {notes}"


def answer_table(runs: Sequence[dict[str, Any]], peer: str = "torch") -> str:
    """How much faster gennorm is than torch, and where it is not: one line for each kind of work."""
    groups: dict[str, list[tuple[float, int, str]]] = {}
    for run in runs:
        threads = int(run["threads"])
        for case in run["cases"]:
            if peer in case["seconds"]:
                ratio = case["seconds"][peer] / case["seconds"]["gennorm"]
                groups.setdefault(WORK[case["work"]], []).append((ratio, threads, case["name"]))
        for one in run.get("between", []):
            kind = f"a norm between operators of {peer}, {one['work']}"
            groups.setdefault(kind, []).append((one[peer] / one["gennorm"], threads, one["name"]))
    rows = []
    for kind, found in groups.items():
        counts = sorted({threads for _, threads, _ in found})
        means = (statistics.geometric_mean(ratio for ratio, one, _ in found if one == threads) for threads in counts)
        faster = ", ".join(f"**{times(mean)}**" for mean in means)
        slower = sum(ratio < 1 for ratio, _, _ in found)
        ratio, threads, name = min(found)
        worst_case = f"{times(ratio)}, {name}, {threads} {'thread' if threads == 1 else 'threads'}"
        where = f"{slower} of {len(found)} cases; the least is {worst_case}" if slower else f"nowhere: {worst_case}"
        rows.append([kind, faster, where])
    if not rows:
        return NOTHING
    counts = sorted({int(run["threads"]) for run in runs})
    header = f"faster than {peer}, with {' and '.join(map(str, counts))} threads"
    return table(["what is computed", header, "where it is slower"], rows, "lrl")


def floor_table(runs: Sequence[dict[str, Any]]) -> str:
    """The geometric mean of the middle and large cases, and its value if gennorm took the time of the floor."""
    rows: list[list[str]] = []
    peers = list(dict.fromkeys(row["peer"] for run in runs for row in run["summary"]))
    for work, title in WORK.items():
        for run in runs:
            cases = [case for case in run["cases"] if case["work"] == work and case["size"] in {"middle", "large"}]
            if cases:
                rows.append(
                    [title, str(run["threads"]), str(len(cases)), *(of_the_floor(cases, peer) for peer in peers)]
                )
    return table(["middle and large", "threads", "cases", *peers], rows, "lrr" + "r" * len(peers)) if rows else NOTHING


def of_the_floor(cases: Sequence[dict[str, Any]], peer: str) -> str:
    """The mean speed-up over one library, and that of a call that takes the time of the floor."""
    seconds = [
        (case["seconds"][peer], case["seconds"]["gennorm"], case["floor"]) for case in cases if peer in case["seconds"]
    ]
    if not seconds:
        return ""
    reached = statistics.geometric_mean(theirs / own for theirs, own, _ in seconds)
    allowed = statistics.geometric_mean(theirs / floor for theirs, _, floor in seconds)
    return f"**{times(reached)}** of {times(allowed)}"


def case_tables(runs: Sequence[dict[str, Any]]) -> str:
    """Every case of every run."""
    runs = [run for run in runs if run["cases"]]
    parts = [] if runs else [NOTHING]
    for run in runs:
        parts.append(f"### {run['threads']} {'thread' if run['threads'] == 1 else 'threads'}")
        for work, title in WORK.items():
            cases = [case for case in run["cases"] if case["work"] == work]
            peers = [peer for peer in [*run["peers"], "np.copyto"] if any(peer in case["seconds"] for case in cases)]
            if cases:
                rows = [case_row(case, peers) for case in cases]
                parts.append(
                    table([title, "gennorm, µs", "over the floor", *peers], rows, "l" + "r" * (len(peers) + 2))
                )
        if run["startup"]:
            rows = [
                [wait["name"], *(f"{wait[key]:.2f}" if wait[key] else "" for key in ("seconds", "compiling"))]
                for wait in run["startup"]
            ]
            parts.append(table(["a new process", "seconds", "empty cache"], rows, "lrr"))
        parts.append(note(run))
    return "\n\n".join(parts)


def case_row(case: dict[str, Any], peers: Sequence[str]) -> list[str]:
    """One line: the time, its ratio to the floor, and the speed-ups."""
    own = case["seconds"]["gennorm"]
    ratios = [times(case["seconds"][peer] / own) if peer in case["seconds"] else "" for peer in peers]
    marked = [f"≠ {ratio}" if peer in case["wrong"] else ratio for peer, ratio in zip(peers, ratios, strict=True)]
    return [case["name"], microseconds(own * 1e6), times(own / case["floor"]), *marked]


def note(run: dict[str, Any]) -> str:
    """The machine, the versions and the date of a run."""
    machine = run["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in run["peers"].items())
    load, number = machine["load"] or 0, machine["processors"]
    busy = f", on a busy machine (load {load:.1f} on {number} processors)" if load > number else ""
    return f"{machine['processor']}, Python {machine['python']}, {versions}; {run['date']}{busy}."


def times(ratio: float) -> str:
    """A ratio with two or three digits."""
    return f"{ratio:.2f}×" if ratio < 9.995 else f"{ratio:.{1 if ratio < 99.95 else 0}f}×"


def microseconds(value: float) -> str:
    """A time with three significant digits and thousands marked."""
    digits = 2 - math.floor(math.log10(value))
    return f"{round(value, digits):,.{min(max(digits, 0), 2)}f}"


def filled(text: str, name: str, body: str, page: str) -> str:
    """`text` with `body` between the two markers of the table called `name`."""
    opening, closing = f"<!-- {name}: begin (docs/tables.py) -->", f"<!-- {name}: end -->"
    before, found, rest = text.partition(opening)
    _, ended, after = rest.partition(closing)
    if not found or not ended:
        msg = f"{page} lacks the markers {opening} and {closing}"
        raise SystemExit(msg)
    return f"{before}{opening}\n{body}\n{closing}{after}"


def accuracy_tables(runs: Sequence[dict[str, Any]]) -> str:
    """The largest errors by length, by mean and by deviation."""
    errors = [error for run in runs for error in run["accuracy"]]
    if not errors:
        return NOTHING
    tables = [
        errors_by("elements of a slice, mean 0", "length", [e for e in errors if e["offset"] == 0 and e["scale"] == 1]),
        errors_by("mean, in deviations", "offset", [e for e in errors if e["scale"] == 1 and e["length"] > 1]),
        errors_by("deviation, mean 0", "scale", [e for e in errors if e["offset"] == 0 and e["length"] > 1]),
    ]
    return "\n\n".join([*tables, *(note(run) for run in runs if run["accuracy"])])


def errors_by(title: str, key: str, errors: Sequence[dict[str, Any]]) -> str:
    """One table: the largest error for each dtype, layout and value of `key`."""
    rows: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for error in sorted(errors, key=lambda error: (error["dtype"], error["layout"] == "columns", error[key])):
        rows.setdefault((error["dtype"], error["layout"], error[key]), []).append(error)
    names = list(errors[0]["ulps"])
    cells = [
        [
            f"{dtype}, {layout}",
            f"{value:,}" if key == "length" else f"{value:g}",
            *(ulps(worst([error["ulps"][name] for error in some])) for name in names),
            ulps(max(error["bound"] for error in some)),
        ]
        for (dtype, layout, value), some in rows.items()
    ]
    return table(["slices", title, *names, "bound"], cells, "l" + "r" * (len(names) + 2))


def worst(values: Sequence[float | None]) -> float | None:
    """The largest value; None, which means NaN, is larger than every number."""
    numbers = [value for value in values if value is not None]
    return max(numbers) if len(numbers) == len(values) else None


def ulps(value: float | None) -> str:
    """An error with the digits that matter."""
    if value is None:
        return "NaN"
    if value >= 1e4:
        digits, exponent = f"{value:.0e}".split("e")
        return f"{digits}·10{''.join('⁰¹²³⁴⁵⁶⁷⁸⁹'[int(digit)] for digit in str(int(exponent)))}"
    return f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"


def growth_table(runs: Sequence[dict[str, Any]]) -> str:
    """Nanoseconds per element; arrays grow to the right."""
    grown = [(run["threads"], one) for run in runs for one in run["growth"]]
    if not grown:
        return NOTHING
    sizes = list(dict.fromkeys(one["bytes"] for _, one in grown))
    rows: dict[tuple[str, int], dict[int, str]] = {}
    for number, one in grown:
        rows.setdefault((one["name"], number), {})[one["bytes"]] = f"{one['nanoseconds']:.3f}"
    header = ["nanoseconds per element", "threads", *(f"{size >> 20:,} MB" for size in sizes)]
    cells = [[name, str(number), *(row.get(size, "") for size in sizes)] for (name, number), row in rows.items()]
    return table(header, cells, "l" + "r" * (1 + len(sizes)))


def device_records(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The records of `tests/device/run.py`."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("device-*.json"))]


def device_tables(records: Sequence[dict[str, Any]]) -> str:
    """What was checked on each device, and the times of the layers of torch and gennorm, eager and compiled."""
    parts = []
    for record in records:
        versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        parts.append(f"{record['device']['name']}, {versions}; {record['date']}.")
        groups: dict[str, list[int]] = {}
        for one in record["groups"]:
            counts = groups.setdefault(one["group"], [0, 0, 0])
            for i, key in enumerate(("cases", "failed", "skipped")):
                counts[i] += one[key]
        rows = [[name, *(str(count) for count in counts)] for name, counts in groups.items() if name != "benchmark"]
        parts.append(table(["checked", "cases", "failed", "skipped"], rows, "lrrr"))
        names = list(dict.fromkeys(name for case in record["benchmark"] for name in case["seconds"]))
        if names:
            rows = [
                [
                    case["name"],
                    case["work"],
                    *(microseconds(case["seconds"][name] * 1e6) if name in case["seconds"] else "" for name in names),
                    microseconds(case["copy"] * 1e6),
                ]
                for case in record["benchmark"]
            ]
            parts.append(table(["µs", "work", *names, "copy"], rows, "ll" + "r" * (len(names) + 1)))
    return "\n\n".join(parts) or NOTHING


def between_table(runs: Sequence[dict[str, Any]]) -> str:
    """The norms between operators of torch: one line for each place, with the means of the speed-ups at the end."""
    measured = [(run, one) for run in runs for one in run.get("between", [])]
    if not measured:
        return NOTHING
    rows, groups = [], dict.fromkeys((one["work"], run["threads"]) for run, one in measured)
    for work, number in groups:
        some = [one for run, one in measured if (one["work"], run["threads"]) == (work, number)]
        ratios = [(one["torch"] / one["gennorm"], one["whole_torch"] / one["whole_gennorm"]) for one in some]
        for one, pair in zip(some, ratios, strict=True):
            own = [microseconds(one[key] * 1e6) for key in ("torch", "gennorm")]
            rows.append([one["name"], work, str(number), *own, *map(times, pair)])
        means = [f"**{times(statistics.geometric_mean(column))}**" for column in zip(*ratios, strict=True)]
        rows.append(["geometric mean", work, str(number), "", "", *means])
    header = ["norm between operators of torch", "", "threads", "torch, µs", "gennorm, µs", "norm", "sequence"]
    notes = [note(run) for run in runs if run.get("between")]
    return "\n\n".join([table(header, rows, "llrrrrr"), *dict.fromkeys(notes)])


def written(folder: Path = RESULTS) -> dict[Path, dict[str, str]]:
    """The tables of each page by the names of their markers."""
    runs = recorded(folder)
    return {
        DOCS.parent / "README.md": {"presets": preset_table(), "benchmark": answer_table(runs)},
        DOCS / "benchmarks.md": {
            "benchmark": benchmark_table(runs),
            "floor": floor_table(runs),
            "cases": case_tables(runs),
            "growth": growth_table(runs),
            "between": between_table(runs),
        },
        DOCS / "explanation" / "numerics.md": {"accuracy": accuracy_tables(runs)},
        DOCS / "zoo.md": {"zoo": zoo_table(), "missing": missing_table()},
        DOCS / "torch.md": {"devices": device_tables(device_records(folder))},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check; the exit status is 1 where the check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--write", action="store_true", help="write the tables into the pages")
    choice.add_argument("--check", action="store_true", help="fail where a page differs from what would be written")
    options = parser.parse_args(arguments)
    stale = False
    for page, bodies in written().items():
        old = new = page.read_text(encoding="utf-8")
        for name, body in bodies.items():
            new = filled(new, name, body, page.name)
        if options.write:
            page.write_text(new, encoding="utf-8")
        elif new != old:
            stale = True
            lines = difflib.unified_diff(old.splitlines(), new.splitlines(), page.name, "docs/tables.py", lineterm="")
            print("\n".join(lines), f"\n\n{page.name} is out of date: python docs/tables.py --write", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
