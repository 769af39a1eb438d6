"""Write the tables of README.md, or check that they are what a command writes.

    python docs/tables.py --write
    python docs/tables.py --check

The preset table comes from the presets themselves. The benchmark table comes from the newest file of docs/benchmarks,
which `python -m tests.benchmarks` writes; see docs/benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import difflib
import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
README = DOCS.parent / "README.md"
RESULTS = DOCS / "benchmarks"

# How a newcomer calls each preset, and where the norm is from.
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
    """What each preset is: what it prints."""
    import gennorm as gn

    rows = [[f"`{call}`", f"`{eval(call, {'gn': gn})!r}`", source] for call, source in PRESETS.items()]
    return table(["preset", "the layer it is", "from"], rows)


def newest(folder: Path = RESULTS) -> dict[str, Any] | None:
    """The newest benchmark by the date inside it."""
    found: list[dict[str, Any]] = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    return max(found, key=lambda result: str(result["date"]), default=None)


def benchmark_table(result: dict[str, Any] | None) -> str:
    """Microseconds of each case and the ratio to each peer, with the geometric means in the last row."""
    if result is None:
        return "_No benchmark has been recorded yet._"
    peers: list[str] = result["peers"]
    rows: list[list[str]] = []
    ratios: dict[str, list[float]] = {peer: [] for peer in peers}
    for case in result["cases"]:
        own = case["microseconds"]["gennorm"]
        cells = [case["name"], microseconds(own)]
        for peer in peers:
            other = case["microseconds"].get(peer)
            cells.append("" if other is None else f"{microseconds(other)} ({other / own:.1f}×)")
            if other is not None:
                ratios[peer].append(other / own)
        rows.append(cells)
    means = [f"**{geometric_mean(ratios[peer]):.1f}×**" if ratios[peer] else "" for peer in peers]
    rows.append(["**geometric mean**", "", *means])
    body = table(["µs, best of many", "gennorm", *peers], rows, align="l" + "r" * (len(peers) + 1))
    return f"{body}\n\n{result['note']}"


def microseconds(value: float) -> str:
    """A time with three significant digits and thousands marked."""
    digits = 2 - math.floor(math.log10(value))
    return f"{round(value, digits):,.{min(max(digits, 0), 2)}f}"


def geometric_mean(values: Sequence[float]) -> float:
    """The mean of ratios."""
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def filled(text: str, name: str, body: str) -> str:
    """`text` with `body` between the two markers of the table called `name`."""
    opening, closing = f"<!-- {name}: begin (docs/tables.py) -->", f"<!-- {name}: end -->"
    before, found, rest = text.partition(opening)
    _, ended, after = rest.partition(closing)
    if not found or not ended:
        msg = f"README.md lacks the markers {opening} and {closing}"
        raise SystemExit(msg)
    return f"{before}{opening}\n{body}\n{closing}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check; the exit status is 1 where the check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--write", action="store_true", help="write the tables into README.md")
    choice.add_argument("--check", action="store_true", help="fail where README.md differs from what would be written")
    options = parser.parse_args(arguments)
    old = README.read_text(encoding="utf-8")
    new = filled(filled(old, "presets", preset_table()), "benchmark", benchmark_table(newest()))
    if options.write:
        README.write_text(new, encoding="utf-8")
        return 0
    if new != old:
        lines = difflib.unified_diff(old.splitlines(), new.splitlines(), "README.md", "docs/tables.py", lineterm="")
        print("\n".join(lines), "\n\nREADME.md is out of date: python docs/tables.py --write", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
