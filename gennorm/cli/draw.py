"""`gennorm draw`: the slices of a layer, as a picture or in characters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from gennorm.cli.options import LayerOptions, refuse, shape_of, uninitialized
from gennorm.drawing.characters import in_characters
from gennorm.layer import NormalizationLayer
from gennorm.layer.pictures import described
from gennorm.spec.config import LayerConfig

__all__ = ["Request", "characters_of", "drawn"]


@dataclass(frozen=True, slots=True)
class Request:
    """The options of the command, as they are written."""

    aggregated: str | None
    shape: str
    labels: str | None
    output: Path | None
    dark: bool


def characters_of(layer: NormalizationLayer, shape: tuple[int, ...], labels: list[str] | None = None) -> str:
    """Return the slices of a layer for an array of a shape, in characters."""
    return in_characters(described(LayerConfig.from_dict(layer.to_config()), shape, labels))


def drawn(request: Request, options: LayerOptions) -> str:
    """Write the picture, if there is a file for it, and return what the command prints.

    Raises
    ------
    typer.BadParameter
        The options contradict each other.
    GennormError
        The layer, the shape or the labels are wrong, or the picture cannot be written.
    """
    if request.aggregated is not None:
        if options.aggregate is not None:
            refuse("LEVELS", "it cannot be combined with --aggregate, which is the same")
        options = replace(options, aggregate=request.aggregated)
    if request.dark and request.output is None:
        refuse("--dark", "it is for a picture: give -o FILE")
    shape = shape_of(request.shape)
    labels = None if request.labels is None else [label.strip() for label in request.labels.split(",")]
    layer = uninitialized(options, shape)
    if request.output is None:
        return f"{layer!r}\n\n{characters_of(layer, shape, labels)}"
    layer.draw(shape, request.output, labels=labels, dark=request.dark)
    return f"{request.output}: {layer!r}"
