"""The chart: a dot for the speed-up over each library in each case."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gennorm.bench.cases import Work
from gennorm.bench.measuring import Result
from gennorm.bench.report import TITLES, geometric_mean
from gennorm.layer.files import replacing

__all__ = ["FORMATS", "draw"]

FORMATS = (".svg", ".png", ".pdf")
# The colours of Okabe and Ito, which colour-blind readers can tell apart.
COLOURS = {
    "torch": "#D55E00",
    "torch.compile": "#E69F00",
    "JAX": "#0072B2",
    "ONNX Runtime": "#009E73",
    "NumPy": "#666666",
    "scikit-learn": "#CC79A7",
}
INK, FAINT = "#222222", "#DDDDDD"
SETTINGS: Any = {"font.family": "sans-serif", "svg.fonttype": "path", "svg.hashsalt": "gennorm", "font.size": 9}


def draw(results: Sequence[Result], peers: Sequence[str], subtitle: str, path: Path) -> None:
    """Draw one panel for each kind of work: a line for each norm, speed-ups across, a bar at the geometric mean."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    works = [work for work in Work if work is not Work.OUT and _speedups(results, work, peers)]
    norms = list(dict.fromkeys(result.case.norm for result in results if result.case.work in works))
    with mpl.rc_context(SETTINGS):
        rows = {work: [norm for norm in norms if _speedups(results, work, peers, norm)] for work in works}
        heights = [len(rows[work]) + 0.8 for work in works]
        figure = Figure(figsize=(8.5, 0.52 * sum(heights) + 1.5), layout="constrained")
        panels = figure.subplots(len(works), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for work, panel in zip(works, panels, strict=True):
            _panel(panel, results, work, rows[work], peers)
        panels[-1].set_xlabel("speed-up over the other library (left of 1× gennorm is slower)")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(peers), frameon=False, handletextpad=0.2)
        figure.suptitle(subtitle, x=0.01, ha="left", fontsize=10, color=INK)
        with replacing(path) as part:
            kind = path.suffix.lower()[1:]
            figure.savefig(part, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)


def _panel(panel: Any, results: Sequence[Result], work: Work, norms: Sequence[str], peers: Sequence[str]) -> None:
    lanes = 0.8 / max(len(peers), 1)
    for place, peer in enumerate(peers):
        shift = (place - (len(peers) - 1) / 2) * lanes
        dots = [
            (speedup, row + shift)
            for row, norm in enumerate(norms)
            for speedup in _speedups(results, work, [peer], norm)
        ]
        colour, (across, down) = COLOURS[peer], zip(*dots, strict=True) if dots else ((), ())
        panel.scatter(across, down, s=14, color=colour, alpha=0.55, linewidths=0, label=peer)
        for row, norm in enumerate(norms):
            if speedups := _speedups(results, work, [peer], norm):
                mean = geometric_mean(speedups)
                panel.vlines(mean, row + shift - lanes / 2, row + shift + lanes / 2, color=colour, linewidth=2.4)
    panel.axvline(1, color=INK, linewidth=1)
    panel.set_xscale("log")
    panel.set_ylim(len(norms) - 0.5, -0.5)
    panel.set_yticks(range(len(norms)), [f"{norm} norm" for norm in norms])
    panel.set_title(TITLES[work], loc="left", fontsize=10, fontweight="bold", color=INK)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    panel.xaxis.set_minor_formatter(lambda value, _: f"{value:g}×" if f"{value:e}"[0] in "25" else "")
    panel.grid(axis="x", which="major", color=FAINT, linewidth=0.8)
    panel.set_axisbelow(True)
    for row in range(1, len(norms)):
        panel.axhline(row - 0.5, color=FAINT, linewidth=0.6)
    panel.tick_params(axis="both", which="both", length=0, colors=INK)
    for side in panel.spines.values():
        side.set_visible(False)


def _speedups(results: Sequence[Result], work: Work, peers: Sequence[str], norm: str | None = None) -> list[float]:
    return [
        speedup
        for result in results
        if result.case.work is work and norm in {None, result.case.norm}
        for peer in peers
        if (speedup := result.speedup(peer)) is not None
    ]
