"""What describes a layer on the command line, declared once for every command that takes one."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_type_hints

import numpy as np
import typer

from gennorm import presets
from gennorm.cli.files import cannot_read, located
from gennorm.errors import FileError, GennormError, LevelRangeError, suggest
from gennorm.layer import NormalizationLayer, load
from gennorm.plan import ITEMSIZE

__all__ = ["LayerOptions", "Preset", "build", "dtype_named", "refuse", "shape_of", "takes_layer"]


class Preset(StrEnum):
    """The names of the presets."""

    BATCH = "batch_norm"
    LAYER = "layer_norm"
    INSTANCE = "instance_norm"
    GROUP = "group_norm"
    RMS = "rms_norm"


class Method(StrEnum):
    """What is divided by."""

    STANDARDIZE = "Standardize"
    RMS = "RMS"


class Placement(StrEnum):
    """Where epsilon is added."""

    INSIDE = "inside"
    FLOOR = "floor"
    OUTSIDE = "outside"


PRESET = "Layer by name"
WRITTEN = "Layer in so many words"
STORED = "Layer from a file"
EITHER = "Layer by name or in so many words"

TRAILING = (Preset.LAYER, Preset.RMS)


@dataclass(frozen=True, slots=True)
class LayerOptions:
    """The options that describe a layer; None is what was not written."""

    preset: Annotated[
        Preset | None,
        typer.Option(
            help="batch_norm, layer_norm, instance_norm, group_norm or rms_norm; sizes are the array's.",
            metavar="NAME",
            rich_help_panel=PRESET,
        ),
    ]
    channel_level: Annotated[
        int | None,
        typer.Option(
            help="Level of the channels: 1 is the first of an example and the default, -1 the last and the default for "
            "a picture.",
            metavar="LEVEL",
            rich_help_panel=PRESET,
            show_default=False,
        ),
    ]
    trailing: Annotated[
        int | None,
        typer.Option(
            help="How many trailing levels layer_norm and rms_norm take; 1 if not given.",
            metavar="NUMBER",
            min=1,
            rich_help_panel=PRESET,
            show_default=False,
        ),
    ]
    aggregate: Annotated[
        str | None,
        typer.Option(
            help='Aggregation levels, such as -1, "2;;All" (if not given) or "{1, 3;;4}"; 0 is the batch.',
            metavar="LEVELS",
            rich_help_panel=WRITTEN,
        ),
    ]
    scale: Annotated[
        str | None,
        typer.Option(
            help='Scaling levels: the same, or "Same", or "Complement" (if not given), or "{}".',
            metavar="LEVELS",
            rich_help_panel=WRITTEN,
        ),
    ]
    method: Annotated[
        Method | None,
        typer.Option(
            help="Whether the mean is subtracted; Standardize if not given.",
            case_sensitive=False,
            rich_help_panel=WRITTEN,
        ),
    ]
    groups: Annotated[
        str | None,
        typer.Option(
            help="Group number: 32, one for each aggregation level (8,8), or LEVEL=NUMBER (1=8,2=8).",
            metavar="NUMBERS",
            rich_help_panel=EITHER,
        ),
    ]
    epsilon: Annotated[
        float | None,
        typer.Option(help="Keeps the divisor away from 0.", metavar="NUMBER", rich_help_panel=EITHER),
    ]
    placement: Annotated[
        Placement | None,
        typer.Option(
            help="sqrt(v + epsilon), max(sqrt(v), epsilon) or sqrt(v) + epsilon; inside if not given.",
            case_sensitive=False,
            rich_help_panel=EITHER,
        ),
    ]
    unbiased: Annotated[
        bool | None,
        typer.Option("--unbiased", help="Divide by the count minus one.", rich_help_panel=EITHER, show_default=False),
    ]
    batched: Annotated[
        bool | None,
        typer.Option(
            "--batched/--example",
            help="Whether axis 0 is the batch (level 0), or level 1. If not said: the batch for the presets with "
            "channels, level 1 for any other.",
            rich_help_panel=EITHER,
            show_default=False,
        ),
    ]
    config: Annotated[
        Path | None,
        typer.Option(help="A JSON file of what layer.to_config() returned.", metavar="FILE", rich_help_panel=STORED),
    ]
    layer: Annotated[
        Path | None,
        typer.Option(
            help="A .npz or .safetensors file that layer.save() or gennorm adapt wrote: settings, parameters, moments.",
            metavar="FILE",
            rich_help_panel=STORED,
        ),
    ]


def takes_layer(command: Callable[..., None]) -> Callable[..., None]:
    """Declare the options of a layer for a command, whose argument `options` collects them."""
    hints = get_type_hints(LayerOptions, include_extras=True)
    own = inspect.signature(command, eval_str=True)
    kept = [parameter for name, parameter in own.parameters.items() if name != "options"]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint)
        for name, hint in hints.items()
    ]

    @functools.wraps(command)
    def collected(**given: Any) -> None:
        options = LayerOptions(**{name: given.pop(name) for name in hints})
        command(**given, options=options)

    collected.__signature__ = own.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
    collected.__annotations__ = {parameter.name: parameter.annotation for parameter in [*kept, *added]}
    return collected


def refuse(option: str, text: str) -> NoReturn:
    """End a command line that is wrong in itself, with status 2."""
    raise typer.BadParameter(text, param_hint=f"'{option}'") from None


def shape_of(text: str) -> tuple[int, ...]:
    """The shape that a text such as ``32,256,14,14`` means.

    Examples
    --------
    >>> shape_of("32,256,14,14"), shape_of("(768,)")
    ((32, 256, 14, 14), (768,))
    """
    sizes = [size.strip() for size in text.strip().removeprefix("(").removesuffix(")").removesuffix(",").split(",")]
    if not all(size.isascii() and size.isdecimal() for size in sizes):
        refuse("--shape", f'"{text}" is no shape; write the sizes with commas between them: 32,256,14,14')
    return tuple(map(int, sizes))


def dtype_named(text: str) -> np.dtype[Any]:
    """The dtype of a name, bfloat16 included."""
    if text not in ITEMSIZE:
        refuse("--dtype", f'"{text}" is no dtype that is normalized{suggest(text, ITEMSIZE)}')
    if text == "bfloat16":
        import ml_dtypes

        dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return dtype
    return np.dtype(text)


def build(options: LayerOptions, shape: tuple[int, ...], *, picture: bool = False) -> NormalizationLayer:
    """The layer that the options describe, for arrays of one shape, with its parameters made.

    Parameters
    ----------
    options : LayerOptions
    shape : tuple of int
        Shape of the array; a preset takes its sizes from it.
    picture : bool
        Whether the array is a picture: one example, channels last, and a batch of one where the layer wants a batch.

    Returns
    -------
    NormalizationLayer

    Raises
    ------
    typer.BadParameter
        The options contradict each other.
    GennormError
        The layer, or the shape, is wrong.
    """
    _require_one_way(options)
    if options.layer is not None:
        layer = load(options.layer)
    elif options.config is not None:
        layer = _from_file(options.config)
    elif options.preset is not None:
        layer = _from_preset(options, options.preset, shape, picture)
    else:
        levels = {"aggregation_levels": options.aggregate, "scaling_levels": options.scale, "method": options.method}
        given: dict[str, Any] = {name: str(value) for name, value in levels.items() if value is not None}
        layer = NormalizationLayer(**given, group_number=_groups(options), **_common(options))
    try:
        return layer.initialize((1, *shape) if picture and layer.information("batched") else shape)
    except LevelRangeError as error:
        if error.code != "L103" or options.config is not None or options.layer is not None:
            raise
        msg = f"{error}\non the command line, batched=True is --batched"
        raise LevelRangeError(msg, code=error.code, position=error.position) from None


def _common(options: LayerOptions) -> dict[str, Any]:
    """What every layer takes, as far as it was written."""
    settings = {
        "epsilon": options.epsilon,
        "unbiased": options.unbiased,
        "epsilon_placement": None if options.placement is None else str(options.placement),
        "batched": options.batched,
    }
    return {name: value for name, value in settings.items() if value is not None}


def _require_one_way(options: LayerOptions) -> None:
    """Refuse options of two ways to describe a layer, or one that would not count."""
    given = {field.name for field in fields(options) if getattr(options, field.name) is not None}
    if "layer" in given:
        excluded, by = given - {"layer"}, "--layer, which has every setting"
    elif "config" in given:
        excluded, by = given - {"config"}, "--config, which has every setting"
    elif options.preset is not None:
        excluded = given & {"aggregate", "scale", "method"}
        excluded |= given & ({"channel_level"} if options.preset in TRAILING else {"trailing"})
        excluded |= given & {"groups"} if options.preset is not Preset.GROUP else set()
        by = f"--preset {options.preset}, which does not take it"
    else:
        excluded, by = given & {"channel_level", "trailing"}, "a --preset only, and none is given"
        if excluded:
            refuse(_option(min(excluded)), f"it goes with {by}")
    if excluded:
        name = "--batched/--example" if min(excluded) == "batched" else _option(min(excluded))
        refuse(name, f"it does not go with {by}")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _groups(options: LayerOptions) -> int | tuple[int, ...] | dict[int, int] | None:
    text = options.groups
    if text is None:
        return None
    parts = [part.strip() for part in text.strip().removeprefix("{").removesuffix("}").split(",")]
    try:
        if any("=" in part or ":" in part for part in parts):
            pairs = [part.replace(":", "=").split("=") for part in parts]
            numbers = {int(level): int(number) for level, number in pairs}
            return numbers if len(numbers) == len(pairs) else refuse("--groups", f'"{text}" has a level twice')
        return int(parts[0]) if len(parts) == 1 else tuple(map(int, parts))
    except ValueError:
        refuse("--groups", f'"{text}" is no group number; write 32, or 8,8, or 1=8,2=8')


def _from_preset(options: LayerOptions, preset: Preset, shape: tuple[int, ...], picture: bool) -> NormalizationLayer:
    make: Callable[..., NormalizationLayer] = getattr(presets, preset.value)
    if preset in TRAILING:
        number = options.trailing or 1
        if number > len(shape):
            refuse("--trailing", f"{number} levels, and the array of shape {shape} has {len(shape)} axes")
        return make(shape[-number:], **_common(options))
    level = options.channel_level
    if level is None:
        level = -1 if picture else 1
    if level == 0:
        refuse("--channel-level", "level 0 is the batch; channels are on 1 to the last level, or -1 and below")
    batched = options.batched is not False and not picture
    axis = level if batched or level < 0 else level - 1
    channels = shape[axis] if -len(shape) <= axis < len(shape) else None
    if preset is Preset.BATCH:  # a file is normalized by its own moments: nothing has been learned
        return make(channels, channel_level=level, statistics="input", **_common(options))
    if preset is not Preset.GROUP:
        return make(channels, channel_level=level, **_common(options))
    groups = _groups(options)
    if not isinstance(groups, int):
        refuse("--groups", "group_norm takes one group number: --groups 32")
    return make(groups, channels, channel_level=level, **_common(options))


def _from_file(path: Path) -> NormalizationLayer:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise cannot_read(path, error) from None
    except (ValueError, RecursionError) as error:
        where = f"line {error.lineno}, column {error.colno}: " if isinstance(error, json.JSONDecodeError) else ""
        what = error.msg if isinstance(error, json.JSONDecodeError) else "it is no text of that kind"
        msg = f"{path} is no JSON: {where}{what}\nwrite it with json.dump(layer.to_config(), file)"
        raise FileError(msg, code="F012") from None
    try:
        return NormalizationLayer.from_config(config)
    except GennormError as error:
        raise located(error, str(path)) from None
