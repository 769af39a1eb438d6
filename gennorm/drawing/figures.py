"""Renders scenes, comparisons and plans with Matplotlib, an extra."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from gennorm.drawing.scene import LARGEST_STEP, Scene, Theme, colour, letters

__all__ = ["Picture", "figure_of_scene"]

PIXELS = 100  # per inch
SETTINGS: Any = {"font.family": "sans-serif", "svg.fonttype": "path", "svg.hashsalt": "gennorm"}


class Picture(Figure):
    """A figure that notebooks show without pyplot."""


def figure_of_scene(scene: Scene, theme: Theme) -> Figure:
    """Return a figure of a scene."""
    points = 72 / PIXELS  # Matplotlib measures lines and letters in points
    figure = Picture(figsize=(scene.width / PIXELS, scene.height / PIXELS), dpi=PIXELS, facecolor=theme.page)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, scene.width)
    axes.set_ylim(scene.height, 0)
    axes.add_collection(
        PolyCollection(
            [face.corners for face in scene.faces],
            facecolors=[colour(face.slice, face.side, theme) for face in scene.faces],
            edgecolors=theme.page,
            linewidths=0.6 * points,
            joinstyle="round",
        )
    )
    for bar in scene.bars:
        style = {"both": "-", "divided": (0, (3, 2)), "centred": (0, (1, 2))}[bar.kind]
        (x, y), (x2, y2) = bar.start, bar.stop
        axes.plot([x, x2], [y, y2], color=theme.ink, linewidth=1.6 * points, linestyle=style)
    for mark in scene.marks:
        axes.plot(*mark.centre, marker="D", markersize=6.5 * points, color=theme.ink, markeredgewidth=0)
    for (x, y), number in scene.letters:
        axes.text(x, y, letters(number), ha="center", va="center", fontsize=10 * points, color="#101010", weight="bold")
    for text in scene.texts:
        axes.text(
            *text.at,
            text.words,
            ha={"start": "left", "middle": "center", "end": "right"}[text.anchor],
            va="baseline",
            fontsize=text.size * points,
            weight="bold" if text.strong else "normal",
            color=theme.faint if text.faint else theme.ink,
        )
    return figure
