"""The options that describe a layer, declared once for every command that takes a layer."""

from __future__ import annotations

import functools
import inspect
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_type_hints

import numpy as np
import typer

from gennorm import presets
from gennorm.cli.files import cannot_read, located, open_regular
from gennorm.errors import FileError, GennormError, LevelRangeError, suggest
from gennorm.layer import NormalizationLayer, load
from gennorm.plan import ITEMSIZE
from gennorm.spec.config import MOST_LEVELS, LayerConfig
from gennorm.spec.names import is_name

__all__ = [
    "LayerOptions",
    "Preset",
    "build",
    "dtype_named",
    "is_described",
    "refuse",
    "shape_of",
    "takes_layer",
    "uninitialized",
    "with_braces",
]


class Preset(StrEnum):
    """The names of the presets."""

    BATCH = "batch_norm"
    LAYER = "layer_norm"
    INSTANCE = "instance_norm"
    GROUP = "group_norm"
    RMS = "rms_norm"


class Method(StrEnum):
    """The methods of a layer."""

    STANDARDIZE = "Standardize"
    RMS = "RMS"


class Placement(StrEnum):
    """The places of epsilon in the divisor."""

    INSIDE = "inside"
    FLOOR = "floor"
    OUTSIDE = "outside"


PRESET = "Layer by name"
WRITTEN = "Layer by its levels"
STORED = "Layer from a file"
EITHER = "Layer by name or by its levels"

TRAILING = (Preset.LAYER, Preset.RMS)

LARGEST = 2**63 - 1  # the number of bytes that an array can have
DIGITS = 40  # of a size; Python refuses to convert thousands of digits


@dataclass(frozen=True, slots=True)
class LayerOptions:
    """The options that describe a layer; None for each that is not given."""

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
            help='Aggregation levels, such as -1, 1,3, "2;;All" (if not given) or "{1, 3;;4}"; 0 is the batch.',
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
        typer.Option(
            help="Added to the variance, so that the divisor is not 0.", metavar="NUMBER", rich_help_panel=EITHER
        ),
    ]
    placement: Annotated[
        Placement | None,
        typer.Option(
            help="sqrt(v + epsilon), max(sqrt(v), epsilon) or sqrt(v) + epsilon; inside if not given.",
            case_sensitive=False,
            rich_help_panel=EITHER,
        ),
    ]
    input_levels: Annotated[
        str | None,
        typer.Option(
            help='Names of the levels, for --aggregate, --scale, --groups and --level: "channel height width".',
            metavar="NAMES",
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
            help="Whether axis 0 is the batch (level 0), or level 1. If not given: the batch for the presets with "
            "channels, level 1 for any other.",
            rich_help_panel=EITHER,
            show_default=False,
        ),
    ]
    config: Annotated[
        Path | None,
        typer.Option(help="A JSON file of the result of layer.to_config().", metavar="FILE", rich_help_panel=STORED),
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
    """Add the options of a layer to a command, which receives them as its argument `options`."""
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
    """Return the shape for a text such as ``32,256,14,14``.

    Examples
    --------
    >>> shape_of("32,256,14,14"), shape_of("(768,)")
    ((32, 256, 14, 14), (768,))
    """
    sizes = [size.strip() for size in text.strip().removeprefix("(").removesuffix(")").removesuffix(",").split(",")]
    if not all(size.isascii() and size.isdecimal() for size in sizes):
        refuse("--shape", f'"{text}" is not a shape; write the sizes with commas between them: 32,256,14,14')
    if len(sizes) > MOST_LEVELS:
        refuse("--shape", f"{len(sizes)} sizes; NumPy's arrays have at most {MOST_LEVELS} axes")
    if max(map(len, sizes)) > DIGITS or math.prod(shape := tuple(map(int, sizes))) > LARGEST:
        refuse("--shape", f"an array has at most {LARGEST:,} elements")
    return shape


def with_braces(text: str) -> str:
    """Return a list of levels as a level spec; the text may omit the braces.

    Examples
    --------
    >>> with_braces("1,3"), with_braces("2;;All"), with_braces("{1, 3}")
    ('{1,3}', '2;;All', '{1, 3}')
    """
    return f"{{{text}}}" if "," in text and "{" not in text and "}" not in text else text


def is_described(options: LayerOptions) -> bool:
    """Return whether the options describe a layer or its levels."""
    described = (options.preset, options.aggregate, options.config, options.layer)
    return any(value is not None for value in described)


def dtype_named(text: str) -> np.dtype[Any]:
    """Return the dtype with a name, which may be bfloat16."""
    if text not in ITEMSIZE:
        refuse("--dtype", f'"{text}" is not a supported dtype{suggest(text, ITEMSIZE)}')
    if text == "bfloat16":
        import ml_dtypes

        dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return dtype
    return np.dtype(text)


def build(options: LayerOptions, shape: tuple[int, ...], *, picture: bool = False) -> NormalizationLayer:
    """Return the layer that the options describe, with parameters for arrays of one shape.

    Parameters
    ----------
    options : LayerOptions
    shape : tuple of int
        Shape of the array; a preset takes its sizes from it.
    picture : bool
        Whether the array is a picture: one example, channels last, and a batch of one where the layer needs a batch.

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
        layer = _with_parameters(_from_file(options.config), options.config)
    else:
        layer = NormalizationLayer.from_config(_config(options, shape, picture=picture).to_dict())
    try:
        return layer.initialize((1, *shape) if picture and layer.information("batched") else shape)
    except LevelRangeError as error:
        raise _advised(error, options) from None


def uninitialized(options: LayerOptions, shape: tuple[int, ...]) -> NormalizationLayer:
    """Return the layer that the options describe, without parameters, which may be too large for the memory.

    Raises
    ------
    typer.BadParameter, GennormError
        As `build`.
    """
    _require_one_way(options)
    if options.layer is not None:
        return load(options.layer)
    if options.config is not None:
        config = _from_file(options.config)
        if "explicit" in {config.scaling, config.biases}:
            return _with_parameters(config, options.config)
    else:
        config = _config(options, shape)
    layer = NormalizationLayer.__new__(NormalizationLayer)
    layer.__setstate__({"config": config, "parameters": dict.fromkeys(("scaling", "biases")), "moments": None})
    try:
        layer.plan(shape)
    except LevelRangeError as error:
        raise _advised(error, options) from None
    return layer


def _advised(error: LevelRangeError, options: LayerOptions) -> LevelRangeError:
    """Return the error with the option that sets `batched`."""
    if error.code != "L103" or options.config is not None or options.layer is not None:
        return error
    msg = f"{error.message}\non the command line, batched=True is --batched"
    return LevelRangeError(msg, code=error.code, position=error.position)


def _config(options: LayerOptions, shape: tuple[int, ...], *, picture: bool = False) -> LayerConfig:
    """Return the config of a preset, or of levels."""
    if options.preset is not None:
        return _from_preset(options, options.preset, shape, picture)
    aggregate, scale = (value and with_braces(value) for value in (options.aggregate, options.scale))
    levels = {"aggregation_levels": aggregate, "scaling_levels": scale, "method": options.method}
    given: dict[str, Any] = {name: str(value) for name, value in levels.items() if value is not None}
    return LayerConfig.make(**given, group_number=_groups(options), **_common(options))


def _common(options: LayerOptions) -> dict[str, Any]:
    """Return the given settings that presets and levels have in common."""
    settings = {
        "epsilon": options.epsilon,
        "unbiased": options.unbiased,
        "epsilon_placement": None if options.placement is None else str(options.placement),
        "batched": options.batched,
        "input_levels": options.input_levels,
    }
    return {name: value for name, value in settings.items() if value is not None}


def _require_one_way(options: LayerOptions) -> None:
    """Refuse options of two ways to describe a layer, or one that would have no effect."""
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
            refuse(_option(min(excluded)), f"it is for {by}")
    if excluded:
        name = "--batched/--example" if min(excluded) == "batched" else _option(min(excluded))
        refuse(name, f"it cannot be combined with {by}")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _groups(options: LayerOptions) -> int | tuple[int, ...] | dict[int | str, int] | None:
    text = options.groups
    if text is None:
        return None
    parts = [part.strip() for part in text.strip().removeprefix("{").removesuffix("}").split(",")]
    try:
        if any("=" in part or ":" in part for part in parts):
            pairs = [part.replace(":", "=").split("=") for part in parts]
            named = options.input_levels is not None
            numbers = {
                level.strip() if named and is_name(level.strip()) else int(level): int(number)
                for level, number in pairs
            }
            return numbers if len(numbers) == len(pairs) else refuse("--groups", f'"{text}" has a level twice')
        return int(parts[0]) if len(parts) == 1 else tuple(map(int, parts))
    except ValueError:
        refuse("--groups", f'"{text}" is not a group number; write 32, or 8,8, or 1=8,2=8')


def _from_preset(options: LayerOptions, preset: Preset, shape: tuple[int, ...], picture: bool) -> LayerConfig:
    """Return the config of a preset for arrays of this shape. The preset has no sizes; they are added here."""
    make: Callable[..., NormalizationLayer] = getattr(presets, preset.value)
    if preset in TRAILING:
        number = options.trailing or 1
        if number > len(shape):
            refuse("--trailing", f"{number} levels, and the array of shape {shape} has {len(shape)} axes")
        config = make((0,) * number, **_common(options)).to_config()
        return LayerConfig.from_dict({**config, "input_shape": ["...", *shape[-number:]]})
    level = options.channel_level
    if level is None:
        level = -1 if picture else 1
    if level == 0:
        refuse("--channel-level", "level 0 is the batch; channels are on 1 to the last level, or -1 and below")
    batched = options.batched is not False and not picture
    axis = level if batched or level < 0 else level - 1
    if not batched <= axis % max(len(shape), 1) or not -len(shape) <= axis < len(shape):
        what = "a batch of arrays" if batched else "an array"
        refuse("--channel-level", f"level {level} does not exist in {what} of shape {shape}")
    settings: dict[str, Any] = {"channel_level": level, **_common(options)}
    if preset is Preset.BATCH:  # a file is normalized by its own moments, because the layer has none yet
        layer = make(None, statistics="input", **settings)
    elif preset is Preset.GROUP:
        groups = _groups(options)
        if not isinstance(groups, int):
            refuse("--groups", "group_norm takes one group number: --groups 32")
        layer = make(groups, None, **settings)
    else:
        layer = make(None, **settings)
    config = layer.to_config()
    sizes = config["input_shape"]
    sizes[level - 1 if level > 0 else len(sizes) + level] = shape[axis]
    return LayerConfig.from_dict(config)


def _from_file(path: Path) -> LayerConfig:
    try:
        with open_regular(path) as stream:
            config = json.loads(stream.read())  # of bytes it finds the encoding, also behind a byte order mark
    except OSError as error:
        raise cannot_read(path, error) from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, GennormError):
            raise
        where = f"line {error.lineno}, column {error.colno}: " if isinstance(error, json.JSONDecodeError) else ""
        what = error.msg if isinstance(error, json.JSONDecodeError) else "it is not text, or too deeply nested"
        msg = f"{path} is not JSON: {where}{what}\nwrite it with json.dump(layer.to_config(), file)"
        raise FileError(msg, code="F012") from None
    try:
        return LayerConfig.from_dict(config)
    except GennormError as error:
        raise located(error, str(path)) from None


def _with_parameters(config: LayerConfig, path: Path) -> NormalizationLayer:
    try:
        return NormalizationLayer.from_config(config.to_dict())
    except GennormError as error:
        raise located(error, str(path)) from None
