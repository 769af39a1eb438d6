"""Renders scenes, comparisons and plans with Matplotlib, an extra."""

from __future__ import annotations

import io
import math
from typing import Any

import matplotlib as mpl
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from gennorm.drawing.comparison import Comparison, Half, Summary
from gennorm.drawing.scene import COLOURS, DARK, LIGHT, Scene, Theme, colour, letters

__all__ = ["Picture", "figure_of_comparison", "figure_of_moments", "figure_of_plan", "figure_of_scene", "write"]

PIXELS = 100  # per inch
POINTS = 72 / PIXELS  # in a pixel; Matplotlib measures lines and letters in points
SETTINGS: Any = {"font.family": "sans-serif", "svg.fonttype": "path", "svg.hashsalt": "gennorm"}


class Picture(Figure):
    """A figure that notebooks show, whether or not pyplot is imported."""

    def _repr_png_(self) -> bytes:
        stream = io.BytesIO()
        write(self, stream, "png")
        return stream.getvalue()


def write(figure: Figure, target: Any, kind: str) -> None:
    """Write a figure as "svg", "png" or "pdf"; the same figure gives the same bytes."""
    with mpl.rc_context(SETTINGS):
        metadata: Any = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
        figure.savefig(target, format=kind, dpi=2 * PIXELS, metadata=metadata)


def figure_of_scene(scene: Scene, theme: Theme) -> Figure:
    """Return a figure of cubes."""
    with mpl.rc_context(SETTINGS):
        figure = Picture(figsize=(scene.width / PIXELS, scene.height / PIXELS), dpi=PIXELS, facecolor=theme.page)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(0, scene.width)
        axes.set_ylim(scene.height, 0)
        faces = PolyCollection(
            [face.corners for face in scene.faces],
            facecolors=[colour(face.slice, face.side, theme) for face in scene.faces],
            edgecolors=theme.page,
            linewidths=0.7 * POINTS,
            joinstyle="round",
        )
        axes.add_collection(faces)
        for bar in scene.bars:
            style: Any = {"both": "-", "divided": (0, (3, 2)), "centred": (0, (1, 2))}[bar.kind]
            ends = zip(bar.start, bar.stop, strict=True)
            axes.plot(*ends, color=theme.ink, linewidth=1.6 * POINTS, linestyle=style)
        diamond: Any = {"marker": "D", "markersize": scene.mark * 2**0.5 * POINTS, "markeredgewidth": 0}
        for mark in scene.marks:
            axes.plot(*mark.centre, color=theme.ink, **diamond)
        size = scene.letter * POINTS
        for (x, y), number in scene.letters:
            axes.text(x, y, letters(number), ha="center", va="center", fontsize=size, color="#111111", weight="bold")
        for text in scene.texts:
            axes.text(
                *text.at,
                text.words,
                ha={"start": "left", "middle": "center", "end": "right"}[text.anchor],
                fontsize=text.size * POINTS,
                weight="bold" if text.strong else "normal",
                color=theme.faint if text.faint else theme.ink,
            )
    return figure


# ------------------------------------------------------------------------------------------------------------- panels

STRONG = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377")  # Tol's "bright" colours, for lines


def _panels(rows: int, columns: int, size: tuple[float, float], theme: Theme, **keywords: Any) -> tuple[Figure, Any]:
    figure = Picture(figsize=size, dpi=PIXELS, facecolor=theme.page, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, **keywords)
    for panel in panels.flat:
        panel.set_facecolor("none")
        panel.tick_params(colors=theme.faint, labelsize=8, length=2)
        for name, side in panel.spines.items():
            side.set_visible(name in {"left", "bottom"})
            side.set_color(theme.faint)
    return figure, panels


def _title(panel: Any, words: str, theme: Theme) -> None:
    panel.set_title(words, loc="left", fontsize=10, fontweight="bold", color=theme.ink)


def _label(panel: Any, theme: Theme, x: str = "", y: str = "") -> None:
    panel.set_xlabel(x, fontsize=8, color=theme.faint)
    panel.set_ylabel(y, fontsize=8, color=theme.faint)


def _bars(panel: Any, means: Any, deviations: Any, names: Any, theme: Theme) -> None:
    """Draw a dot at each mean, and a line from one deviation below it to one above it."""
    places = range(len(deviations))
    centres = [0.0] * len(deviations) if means is None else means
    panel.errorbar(places, centres, deviations, fmt="o", markersize=3, linewidth=1.4, color=STRONG[0])
    panel.axhline(0, color=theme.faint, linewidth=0.6)
    step = max(1, len(names) // 6)
    panel.set_xticks(places[::step], [", ".join(map(str, name)) for name in names[::step]])


def figure_of_comparison(comparison: Comparison, *, rms: bool, dark: bool) -> Figure:
    """Return a figure of an array before (left) and after (right) a layer."""
    theme = DARK if dark else LIGHT
    halves = comparison.before, comparison.after
    itself = any(half.pixels is not None or half.curves is not None for half in halves)
    heights = [1.3, 1, 1] if itself else [1, 1]
    with mpl.rc_context(SETTINGS):
        figure, panels = _panels(len(heights), 2, (6.4, 2.1 * sum(heights)), theme, height_ratios=heights)
        for column, (half, when) in enumerate(zip(halves, ("before", "after"), strict=True)):
            if itself:
                _itself(panels[0, column], half)
            _title(panels[0, column], when, theme)
            histograms, bars = panels[-2:, column]
            for place, counts in enumerate(half.counts):
                name = f"[{', '.join(map(str, comparison.histograms[place]))}]"
                line = STRONG[place % len(STRONG)]
                histograms.stairs(counts, half.edges, color=line, linewidth=1.2, label=name)
            _label(histograms, theme, "value", "elements" if column == 0 else "")
            _bars(bars, half.means, half.deviations, comparison.slices, theme)
            _label(bars, theme, "slice (its index in the moments)", "mean ± deviation" if column == 0 else "")
        if rms:
            panels[-1, 1].set_title("the mean is not subtracted", loc="right", fontsize=8, color=theme.faint)
        legend = panels[-2, 1].legend(fontsize=7, frameon=False, title="slices", title_fontsize=7)
        for text in (*legend.get_texts(), legend.get_title()):
            text.set_color(theme.ink)
    return figure


def _itself(panel: Any, half: Half) -> None:
    if half.pixels is not None:
        one, sides = half.pixels.shape[-1] == 1, half.pixels.shape[:2]
        # A matrix of few rows is no photograph: its pixels need not be squares.
        aspect: Any = "auto" if one and max(sides) > 3 * min(sides) else "equal"
        panel.imshow(half.pixels[..., 0] if one else half.pixels, cmap="gray", vmin=0, vmax=255, aspect=aspect)
        panel.set_axis_off()
    elif half.curves is not None:
        for place, line in enumerate(half.curves):
            panel.plot(line, linewidth=1.1, color=STRONG[place % len(STRONG)])


def figure_of_moments(summary: Summary, *, dark: bool) -> Figure:
    """Return a figure of the moments of slices."""
    theme = DARK if dark else LIGHT
    with mpl.rc_context(SETTINGS):
        figure, panels = _panels(1, 1, (6.4, 2.8), theme)
        panel = panels[0, 0]
        _bars(panel, summary.means, summary.deviations, summary.slices, theme)
        least, most = summary.counts.min(initial=1e300), summary.counts.max(initial=0)
        each = f"{most:,.12g}" if least >= most else f"{least:,.12g} to {most:,.12g}"
        what = "root mean square" if summary.means is None else "mean and deviation"
        slices = f"{len(summary.slices)} slice{'' if len(summary.slices) == 1 else 's'}"
        _title(panel, f"{what} of {slices}, of {each} elements each", theme)
        _label(panel, theme, "slice (its index in the moments)", "± root mean square" if summary.means is None else "")
    return figure


MOST_TASKS = 64  # that are drawn one by one


def figure_of_plan(plan: Any, *, dark: bool) -> Figure:
    """Return a figure of a plan: its runs, its passes over memory, and its tasks."""
    theme = DARK if dark else LIGHT
    kept, aggregated, written = COLOURS[8], COLOURS[0], COLOURS[1]
    with mpl.rc_context(SETTINGS):
        figure, panels = _panels(3, 1, (6.4, 4.0), theme, height_ratios=[1.1, 1.5, 0.7])
        runs, passes, tasks = panels[:, 0]
        # Widths grow with the logarithm of the sizes: runs of 2 and of 50,000 are next to each other.
        left = 0.0
        for run in plan.runs:
            width = 2 + math.log2(max(run.size, 1))
            runs.barh(0, width - 0.15, left=left, color=aggregated if run.aggregated else kept, height=0.9)
            names = ", ".join(plan.resolved.name(axis).partition(" (")[0].removeprefix("level ") for axis in run.axes)
            role = "aggregated" if run.aggregated else "kept"
            words = f"{run.size:,}\n{role}\nlevel{'s' if len(run.axes) > 1 else ''} {names}"
            runs.text(left + width / 2 - 0.07, 0, words, ha="center", va="center", fontsize=8, color="#111111")
            left += width
        runs.set_xlim(0, max(left, 1))
        number = len(plan.runs)
        _title(runs, f"{number} run{'' if number == 1 else 's'}, outermost first", theme)
        whys = [one.why for one in plan.passes]
        for place, one in enumerate(plan.passes):
            passes.barh(place, one.read, color=aggregated, height=0.7)
            passes.barh(place, one.written, left=one.read, color=written, height=0.7)
            words = _bytes(one.read + one.written)
            passes.text(one.read + one.written, place, f" {words}", va="center", fontsize=8, color=theme.ink)
        passes.set_yticks(range(len(whys)), whys)
        passes.tick_params(axis="y", labelsize=8, colors=theme.ink, length=0)
        passes.set_ylim(len(whys) - 0.5, -0.5)
        passes.set_xlim(0, 1.2 * max(1, *(one.read + one.written for one in plan.passes)))
        readings, writings = sum(one.read > 0 for one in plan.passes), sum(one.written > 0 for one in plan.passes)
        _title(passes, f"{_counted(readings, 'reading')}, {_counted(writings, 'writing')}", theme)
        shown = min(plan.tasks, MOST_TASKS)
        for place in range(shown):
            shade = COLOURS[3] if (place // max(plan.cut.units, 1)) % 2 == 0 else COLOURS[7]
            tasks.barh(0, 0.85, left=place, color=shade, height=0.7)
        tasks.set_xlim(0, max(shown, 1))
        whole = "slice" if plan.family == "rows" else "tile"
        units = f", {plan.cut.units} of each {whole}" if plan.cut.units > 1 else ""
        more = f"; the first {shown}" if shown < plan.tasks else ""
        _title(tasks, f"{_counted(plan.tasks, 'task')}{units}{more}", theme)
        for panel in (runs, tasks, passes):
            panel.set_xticks([])
            for side in panel.spines.values():
                side.set_visible(False)
        for panel in (runs, tasks):
            panel.set_yticks([])
    return figure


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _bytes(number: int) -> str:
    """Bytes in the largest decimal unit that leaves a digit before the point."""
    power = min(max(len(str(number)) - 1, 0) // 3, 4)
    return f"{number / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
