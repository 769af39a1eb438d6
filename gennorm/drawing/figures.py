"""Renders scenes, comparisons and plans with Matplotlib, an extra."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from gennorm.drawing.scene import Scene, Theme, colour, letters

__all__ = ["Picture", "figure_of_scene", "write"]

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
        size = min(11.0, scene.step * 0.5) * POINTS
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
