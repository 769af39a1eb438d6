"""Pictures of a layer: its cubes, and what it does to an array."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from gennorm.drawing import matplotlib_figures
from gennorm.drawing.comparison import compare
from gennorm.drawing.cubes import Cubes, describe
from gennorm.drawing.html import page
from gennorm.drawing.scene import DARK, LIGHT, place
from gennorm.errors import DrawingError, GennormError, suggest
from gennorm.layer.files import replacing
from gennorm.layer.state import State
from gennorm.layer.statistics import is_one_example
from gennorm.layer.texts import DEFAULTS, represent, write
from gennorm.spec.config import LayerConfig, resolve_config

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["described", "draw", "html", "show"]

Array = npt.NDArray[Any]

FORMATS = (".svg", ".png", ".pdf")


def described(
    config: LayerConfig,
    shape: tuple[int, ...] | None,
    labels: Sequence[str | None] | None = None,
    *,
    per_example: bool = False,
) -> Cubes:
    """Return the cubes of a layer. With moments of a data set, one example is a batch of one, as it is in a call."""
    if shape is not None and config.statistics == "dataset" and is_one_example(config, shape):
        shape = (1, *shape)
    return describe(config, shape, labels, per_example=per_example)


def draw(
    config: LayerConfig,
    shape: tuple[int, ...] | None,
    path: str | os.PathLike[str] | None,
    labels: Sequence[str | None] | None,
    *,
    dark: bool,
    per_example: bool,
) -> Figure:
    """Draw the cubes of a layer, and write them to a file if there is a path."""
    kind = None if path is None else _kind(Path(path))
    figures = matplotlib_figures()
    scene = place(described(config, shape, labels, per_example=per_example))
    figure: Figure = figures.figure_of_scene(scene, DARK if dark else LIGHT)
    if path is not None:
        with replacing(Path(path)) as part:
            figures.write(figure, part, kind)
    return figure


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        msg = f"{path} cannot be the file of a picture{suggest(suffix, FORMATS)}\n"
        msg += "its name ends in .svg, .png or .pdf"
        raise DrawingError(msg, code="V005")
    return suffix[1:]


def show(layer: Any, x: Array, *, dark: bool) -> Figure:
    """Draw an array before and after a layer."""
    figures = matplotlib_figures()
    if x.size == 0:
        msg = f"an array of shape {x.shape} has no elements, and there is nothing to show\n"
        msg += "pass an array without a size of 0"
        raise DrawingError(msg, code="V006")
    config: LayerConfig = layer._state.config
    y = layer(x)
    if config.statistics == "dataset" and is_one_example(config, x.shape):
        x, y = x[None], y[None]
    comparison = compare(x, y, resolve_config(config, x.shape))
    figure: Figure = figures.figure_of_comparison(comparison, rms=config.method == "RMS", dark=dark)
    return figure


def html(state: State, plan: Any) -> str:
    """Return the settings that differ from their defaults, the plan for the declared shape, and the cubes."""
    config = state.config
    settings = {
        name: write(value)
        for name, value in config.arguments().items()
        if value != DEFAULTS[name] or name in {"aggregation_levels", "scaling_levels", "method", "epsilon"}
    }
    for name, array in state.parameters._asdict().items():
        if array is not None:
            settings[name] = f"{array.dtype.name} {array.shape}"
    if state.moments is not None:
        settings["moments"] = f"{state.moments.shape}"
    declared = config.input_shape
    cubes = text = None
    with suppress(GennormError):  # a layer that no array of up to eight axes fits is shown without cubes
        cubes = described(config, None)
    if declared is not None and all(isinstance(size, int) for size in declared) and not config.batched:
        with suppress(GennormError):  # the batch is aggregated, and its size is not declared
            text = str(plan(declared))
    return page(represent(state), settings, text, cubes)
