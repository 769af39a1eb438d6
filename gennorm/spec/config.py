"""The settings of a layer: their checks, and their resolution for one array. It uses integers and text only."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from types import EllipsisType
from typing import Any, Literal, cast

from gennorm.errors import (
    UNPRINTED,
    ConfigError,
    GroupError,
    InitializationError,
    LevelConflictError,
    LevelRangeError,
    ShapeError,
    point,
    shown,
    suggest,
)
from gennorm.spec import brackets, levels
from gennorm.spec import names as level_names
from gennorm.spec.levels import AGGREGATION, SCALING, Level, LevelSpec, Listing, Span
from gennorm.spec.names import Names, called

__all__ = [
    "GroupMapping",
    "LayerConfig",
    "Resolved",
    "integer",
    "kept_shape",
    "parameter_shape",
    "require_unbiased",
    "resolve_config",
]

Shape = tuple[int | EllipsisType | None, ...]

METHODS = ("Standardize", "RMS")
PARAMETERS = ("Automatic", "explicit")
DTYPES = ("float16", "bfloat16", "float32", "float64")
STATISTICS = ("input", "moving", "dataset")
PLACEMENTS = ("inside", "floor", "outside")
CONSTANT = ("floor", "one", "raise")
MULTIPLIERS = ("scaling", "biases")
FORMAT = "gennorm/layer"
VERSION = 2
# Settings that configs have since a later version than the first; before, they had the default.
NEW = {"constant": 2, "input_levels": 2}
MOST_LEVELS = 64  # the largest number of axes of a NumPy array


@dataclass(frozen=True, slots=True)
class GroupMapping:
    """Group numbers by level, as written: (level, groups) pairs."""

    items: tuple[tuple[int, int], ...]


Groups = int | tuple[int, ...] | GroupMapping | None


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """All settings of a layer, without arrays. `make` checks the settings and makes a config.

    `scaling` and `biases` are ``"Automatic"``, None (absent) or ``"explicit"`` (the layer has an array).

    Examples
    --------
    >>> config = LayerConfig.make("2;;All", input_shape=(3, None, None))
    >>> config.epsilon, config.input_shape
    (0.001, (3, None, None))
    >>> LayerConfig.from_dict(config.to_dict()) == config
    True
    """

    aggregation_levels: LevelSpec
    scaling_levels: LevelSpec
    group_number: Groups
    method: Literal["Standardize", "RMS"]
    unbiased: bool
    epsilon: float
    scaling: Literal["Automatic", "explicit"] | None
    biases: Literal["Automatic", "explicit"] | None
    input_shape: Shape | None
    input_levels: Names | None
    batched: bool | None
    dtype: Literal["float16", "bfloat16", "float32", "float64"]
    statistics: Literal["input", "moving", "dataset"]
    momentum: float
    trainable: bool
    epsilon_placement: Literal["inside", "floor", "outside"]
    constant: Literal["floor", "one", "raise"]
    learning_rate_multipliers: float | tuple[tuple[str, float], ...] | None

    @classmethod
    def make(
        cls,
        aggregation_levels: object = "2;;All",
        scaling_levels: object = "Complement",
        group_number: object = None,
        method: object = "Standardize",
        unbiased: object = False,
        epsilon: object = 1e-3,
        *,
        scaling: object = "Automatic",
        biases: object = "Automatic",
        input_shape: object = None,
        input_levels: object = None,
        batched: object = None,
        dtype: object = "float32",
        statistics: object = "input",
        momentum: object = 0.99,
        trainable: object = True,
        epsilon_placement: object = "inside",
        constant: object = "floor",
        learning_rate_multipliers: object = None,
    ) -> LayerConfig:
        """Check the arguments of a layer, each one and their combination.

        Raises
        ------
        LevelSyntaxError, LevelConflictError
            A level spec is not valid.
        LevelRangeError
            A level does not exist in an array of the declared `input_shape`.
        GroupError
            `group_number` does not fit the aggregation levels or the declared sizes.
        ConfigError
            Another argument is wrong.
        """
        names = None if input_levels is None else level_names.read(input_levels)
        if isinstance(aggregation_levels, str) and brackets.is_brackets(aggregation_levels):
            if names is not None:
                msg = f'{AGGREGATION} "{aggregation_levels}" names the levels, and input_levels is given too\n'
                msg += "leave out input_levels, or write the levels without brackets"
                raise ConfigError(msg, code="C026")
            found = brackets.read(aggregation_levels, group_number)
            aggregation_levels, names, group_number = found.levels, found.names, found.groups
        config = cls(
            aggregation_levels=levels.parse(aggregation_levels, argument=AGGREGATION, names=names),
            scaling_levels=levels.parse(scaling_levels, argument=SCALING, names=names),
            group_number=_groups(group_number, names),
            method=cast("Any", _word("method", method, METHODS, "C001")),
            unbiased=_flag("unbiased", unbiased, "C002"),
            epsilon=_real("epsilon", epsilon, math.inf, "C003"),
            scaling=cast("Any", None if scaling is None else _word("scaling", scaling, PARAMETERS, "C004")),
            biases=cast("Any", None if biases is None else _word("biases", biases, PARAMETERS, "C004")),
            input_shape=_named_shape(None if input_shape is None else _shape(input_shape), names),
            input_levels=names,
            batched=_named_batch(None if batched is None else _flag("batched", batched, "C002"), names),
            dtype=cast("Any", _word("dtype", _dtype_name(dtype), DTYPES, "C005")),
            statistics=cast("Any", _word("statistics", statistics, STATISTICS, "C001")),
            momentum=_real("momentum", momentum, 1.0, "C003"),
            trainable=_flag("trainable", trainable, "C002"),
            epsilon_placement=cast("Any", _word("epsilon_placement", epsilon_placement, PLACEMENTS, "C001")),
            constant=cast("Any", _word("constant", constant, CONSTANT, "C001")),
            learning_rate_multipliers=_multipliers(learning_rate_multipliers),
        )
        _check_together(config)
        return config

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments of this config, in canonical form and in the constructor's order.

        Examples
        --------
        >>> arguments = LayerConfig.make([2, "3;;"], (), {1 + 1: 4}).arguments()
        >>> arguments["aggregation_levels"], arguments["scaling_levels"], arguments["group_number"]
        ('{2, 3;;All}', (), {2: 4})
        >>> LayerConfig.make(**arguments).arguments() == arguments
        True
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        names = self.input_levels
        values["aggregation_levels"] = _spec_argument(self.aggregation_levels, names)
        values["scaling_levels"] = _spec_argument(self.scaling_levels, names)
        if isinstance(self.group_number, GroupMapping):
            values["group_number"] = {
                (None if names is None else names.called(level)) or level: number
                for level, number in self.group_number.items
            }
        if names is not None:
            values["input_levels"] = str(names)
        if isinstance(self.learning_rate_multipliers, tuple):
            values["learning_rate_multipliers"] = dict(self.learning_rate_multipliers)
        return values

    def to_dict(self) -> dict[str, Any]:
        """Return the config as JSON values; see ``spec/layer.schema.json``.

        Examples
        --------
        >>> LayerConfig.make(1, input_shape=(256, ...)).to_dict()["input_shape"]
        [256, '...']
        """
        values = self.arguments()
        for key in ("aggregation_levels", "scaling_levels"):
            values[key] = "{}" if values[key] == () else values[key]
        if self.input_shape is not None:
            values["input_shape"] = ["..." if size is ... else size for size in self.input_shape]
        match values["group_number"]:
            case dict(items):
                values["group_number"] = {str(level): number for level, number in items.items()}
            case tuple(numbers):
                values["group_number"] = list(numbers)
        return {"format": FORMAT, "version": VERSION, **values}

    def to_brackets(self) -> str:
        """Return the aggregation levels and groups in bracket notation.

        Raises
        ------
        ConfigError
            The levels have no names, or the aggregated levels vary with the rank in another way than ``...`` can say.

        Examples
        --------
        >>> LayerConfig.make("height;;width", input_levels="channel height width").to_brackets()
        'channel [height width]'
        """
        names = self.input_levels
        if names is None:
            msg = 'the bracket notation needs names of the levels\nmake the layer with input_levels="..."'
            raise ConfigError(msg, code="C044")
        batched = _names_batch(self)
        found: dict[str, int] = {}
        for rank in _ranks(self, cast("Shape", self.input_shape)):
            try:
                aggregation, _ = _levels(self, rank, batched=batched)
                numbers = _group_numbers(self.group_number, aggregation, rank, names)
            except (LevelRangeError, LevelConflictError, GroupError):
                continue
            for level in range(0 if batched else 1, rank + 1):
                word = "" if level == 0 else names.of(level, rank) or "..."
                number = numbers.get(level, 1) if level in aggregation else 0
                if found.setdefault(word, number) != number or (word == "..." and number > 1):
                    raise _no_brackets(self, f"level {level} of arrays of rank {rank}")
        text = brackets.write(names, found, batched=batched)
        if text is None:
            raise _no_brackets(self, "the batch")
        return text

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LayerConfig:
        """Make a config from the result of `to_dict`. All keys of its version are required, and no others are allowed.

        Raises
        ------
        ConfigError
            A key is missing or unknown, or this version of gennorm does not support the format or version.
        GennormError
            As `make`.
        """
        if not isinstance(cast("object", values), Mapping):
            msg = f"a layer's config is a mapping, not of type {type(values).__name__}\npass what to_config() returned"
            raise ConfigError(msg, code="C010")
        settings = [field.name for field in fields(cls)]
        if (version := values.get("version")) in range(1, VERSION):
            settings = [name for name in settings if NEW.get(name, 1) <= version]
        _known_keys("a layer's config", values, ["format", "version", *settings], "C011")
        missing = [key for key in ("format", "version", *settings) if key not in values]
        if missing:
            msg = f"a layer's config lacks {_quoted(missing)}\nall keys of to_config() are required"
            raise ConfigError(msg, code="C012")
        found, version = values["format"], values["version"]
        if found != FORMAT or type(version) is not int or not 1 <= version <= VERSION:
            msg = f"a config of format {found!r}, version {version!r} cannot be read\n"
            msg += f"this gennorm reads {FORMAT!r}, versions 1 to {VERSION}"
            raise ConfigError(msg, code="C013")
        arguments = {key: values[key] for key in settings}
        if isinstance(arguments["input_shape"], (list, tuple)):
            arguments["input_shape"] = tuple(... if size == "..." else size for size in arguments["input_shape"])
        if isinstance(arguments["group_number"], Mapping):
            arguments["group_number"] = {_json_level(key): n for key, n in arguments["group_number"].items()}
        return cls.make(**arguments)


def _no_brackets(config: LayerConfig, what: str) -> ConfigError:
    written = levels.format(config.aggregation_levels, config.input_levels)
    msg = f'the bracket notation cannot write {what} of the aggregation levels "{written}"\n'
    msg += f'input_levels is "{config.input_levels}": name more of the levels, the batch first'
    return ConfigError(msg, code="C045")


def _spec_argument(spec: LevelSpec, names: Names | None) -> int | str | tuple[()]:
    if isinstance(spec, Level):
        return (None if names is None else names.called(spec.number)) or spec.number
    return levels.format(spec, names) if spec != Listing(()) else ()


def _json_level(key: object) -> object:
    """Convert a key of JSON, which is text: "-1" is level -1. The check of group_number refuses other keys."""
    if isinstance(key, str) and key.removeprefix("-").isascii() and key.removeprefix("-").isdigit():
        return int(key) if len(key) <= len(str(-levels.LARGEST)) else key
    return key


# ---------------------------------------------------------------------------------------- checks of single arguments


def _quoted(words: Iterable[object]) -> str:
    shown = [f'"{word}"' for word in words]
    return f"{', '.join(shown[:-1])} and {shown[-1]}" if len(shown) > 1 else shown[0]


def _choice(words: Sequence[str]) -> str:
    quoted = [f'"{word}"' for word in words]
    return f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def _word(argument: str, value: object, allowed: tuple[str, ...], code: str) -> str:
    if isinstance(value, str) and value in allowed:
        return value
    none = argument in {"scaling", "biases"}
    write = f'write "{allowed[0]}", None or an array' if none else f"write {_choice(allowed)}"
    msg = f"{argument} cannot be {shown(value)}{suggest(value, allowed)}\n{write}"
    raise ConfigError(msg, code=code)


def _flag(argument: str, value: object, code: str) -> bool:
    if type(value).__name__ in {"bool", "bool_"}:
        return bool(value)
    none = ", or None to decide by the rank of the array" if argument == "batched" else ""
    msg = f"{argument} cannot be {shown(value)}\nwrite True or False{none}"
    raise ConfigError(msg, code=code)


def _real(argument: str, value: object, most: float, code: str) -> float:
    allowed = f"{argument} is a finite number from 0 on" if most == math.inf else f"{argument} is a number from 0 to 1"
    if isinstance(value, (str, bytes)) or type(value).__name__ in {"bool", "bool_"}:
        number = None
    else:
        try:
            number = float(cast("Any", value))
        except (TypeError, ValueError, OverflowError):
            number = None
    if number is None:
        msg = f"{argument} cannot be {shown(value)}\n{allowed}"
        raise ConfigError(msg, code=code)
    if not (0 <= number <= most and math.isfinite(number)):
        msg = f"{argument} cannot be {number}\n{allowed}"
        raise ConfigError(msg, code=code)
    return number + 0.0  # -0.0 is 0.0


def _dtype_name(value: object) -> object:
    """Return the name of a dtype that is given as text, as `np.float32` or as `np.dtype`."""
    if isinstance(value, str):
        return value
    if isinstance(value, type):
        return value.__name__
    name = getattr(value, "name", None)
    return name if isinstance(name, str) else value


def integer(value: object) -> int | None:
    """Return the int for an integer value; None for other values, and for integers of 19 digits or more.

    Examples
    --------
    >>> integer(4), integer(4.0), integer(True)
    (4, None, None)
    """
    if type(value).__name__ in {"bool", "bool_"}:
        return None
    try:
        number = operator.index(cast("Any", value))
    except TypeError:
        return None
    return number if abs(number) < UNPRINTED else None


def _shape(value: object) -> Shape:
    describes = "it is a tuple of one example's sizes, None for one that varies, one ... for any number of levels: "
    describes += "(3, None, ...)"
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes, bytearray)):
        number = integer(value)
        write = describes if number is None else f"write ({number},): a tuple of one size"
        msg = f"input_shape cannot be {shown(value)}\n{write}"
        raise ConfigError(msg, code="C020")
    sizes: list[int | EllipsisType | None] = []
    for place, size in enumerate(value, 1):
        if size is None or size is ...:
            if size is ... and ... in sizes:
                msg = f"input_shape has a second ... at place {place}\n{describes}"
                raise ConfigError(msg, code="C021")
            sizes.append(size)
            continue
        number = integer(size)
        if number is None:
            msg = f"input_shape has {shown(size)} at place {place}\n{describes}"
            raise ConfigError(msg, code="C022")
        if number < 0:
            msg = f"input_shape has the size {number} at place {place}\na size is 0 or more; None for one that varies"
            raise ConfigError(msg, code="C023")
        sizes.append(number)
    if len(sizes) - (... in sizes) > MOST_LEVELS:
        msg = f"input_shape has {len(sizes) - (... in sizes)} levels\nNumPy's arrays have at most {MOST_LEVELS}"
        raise ConfigError(msg, code="C024")
    return tuple(sizes)


def _multipliers(value: object) -> float | tuple[tuple[str, float], ...] | None:
    argument = "learning_rate_multipliers"
    if value is None:
        return None
    if isinstance(value, Mapping):
        _known_keys(argument, value, MULTIPLIERS, "C031")
        return tuple(
            (key, _real(f"{argument}[{key!r}]", value[key], math.inf, "C003")) for key in MULTIPLIERS if key in value
        )
    return _real(argument, value, math.inf, "C003")


def _known_keys(what: str, values: Mapping[Any, Any], allowed: Sequence[str], code: str) -> None:
    for key in values:
        if key not in allowed:
            keys = _quoted(allowed) if len(allowed) < 5 else "those that to_config() writes"
            msg = f"{what} has an unknown key {shown(key)}{suggest(key, allowed)}\nits keys are {keys}"
            raise ConfigError(msg, code=code)


def _groups(value: object, names: Names | None) -> Groups:
    if value is None:
        return None
    if isinstance(value, Mapping):
        items: dict[int, int] = {}
        for key, number in value.items():
            level = integer(key) if names is None or not isinstance(key, str) else names.number(key)
            if level is None and names is not None and isinstance(key, str):
                msg = f"group_number has the unknown name {shown(key)}{suggest(key, names.all())}\n"
                msg += f"the names in input_levels are {level_names.listed(names)}"
                raise GroupError(msg, code="G004")
            if level is None:
                msg = f"group_number has the key {shown(key)}\na mapping is {{level: groups}}, such as {{1: 32}}"
                raise GroupError(msg, code="G003")
            level = level if names is None else names.canonical(level)
            if level in items:
                msg = f"group_number names level {called(level, names)} twice\nwrite every level once"
                raise GroupError(msg, code="G014")
            items[level] = _group(number, f" for level {called(level, names)}")
        return GroupMapping(tuple(items.items()))
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
        return tuple(_group(number, f" at place {place}") for place, number in enumerate(value, 1))
    return _group(value, "")


def _group(value: object, where: str) -> int:
    number = integer(value)
    if number is None:
        msg = f"group_number cannot be {shown(value)}{where}\n"
        msg += "write an integer, a sequence of them as long as the aggregation levels, {level: groups} or None"
        raise GroupError(msg, code="G001")
    if number < 1:
        msg = f"group_number cannot be {number}{where}\na level is split into 1 group (itself) or more"
        raise GroupError(msg, code="G002")
    return number


# ------------------------------------------------------------------------------------- checks of several arguments


def _named_shape(declared: Shape | None, names: Names | None) -> Shape | None:
    """Return the `input_shape` with the rank that `input_levels` declares."""
    if names is None:
        return declared
    if declared is None:
        return names.shape
    open_names, open_shape = names.rank is None, ... in declared
    named, sizes = len(names.shape) - open_names, len(declared) - open_shape
    if (named > sizes and not open_shape) or (sizes > named and not open_names):
        msg = f'input_levels "{names}" names {named} level{"" if named == 1 else "s"} of an example, '
        msg += f"and input_shape {_written(declared)} has {sizes}\n"
        msg += "write one name for each level, or ... for levels without a name; the batch is no level of an example"
        raise ConfigError(msg, code="C025")
    if open_names or not open_shape:
        return declared
    place = declared.index(...)
    return (*declared[:place], *[None] * (named - sizes), *declared[place + 1 :])


def _named_batch(batched: bool | None, names: Names | None) -> bool | None:
    """Return `batched`, which is True where `input_levels` names the batch."""
    if names is None or names.batch is None:
        return batched
    if batched is False:
        msg = f'input_levels names the batch, "{names.batch}", and batched=False excludes a batch\n'
        msg += f"{point(str(names), 0, len(names.batch))}\nleave out this name, or pass batched=True"
        raise ConfigError(msg, code="C043", position=(0, len(names.batch)))
    return True


def _check_together(config: LayerConfig) -> None:
    if config.unbiased and config.method == "RMS":
        msg = 'unbiased=True is not possible with method="RMS"\n'
        msg += "the mean of squares is unbiased when divided by n: leave out unbiased"
        raise ConfigError(msg, code="C040")
    if config.constant != "floor" and config.statistics != "dataset":
        msg = f'constant="{config.constant}" is for moments of a data set, and the layer has '
        msg += f'statistics="{config.statistics}"\nwrite statistics="dataset", or leave out constant'
        raise ConfigError(msg, code="C046")
    spec, names = config.aggregation_levels, config.input_levels
    place = levels.batch_place(spec, names)
    if config.batched is False and place is not None:
        msg = f"{AGGREGATION} has level 0, the batch, and batched=False excludes a batch\n"
        msg += f"{point(levels.format(spec, names), *place)}\nleave out level 0, or pass batched=True"
        raise ConfigError(msg, code="C041", position=place)
    if config.input_shape is not None and ... not in config.input_shape:
        sizes = cast("tuple[int | None, ...]", config.input_shape)
        aggregation, _ = _levels(config, len(sizes), batched=_names_batch(config))
        groups = _group_numbers(config.group_number, aggregation, len(sizes), names)
        for level, number in groups.items():
            size = sizes[level - 1] if level else None
            if size is not None:
                _require_divides(f"level {called(level, names)}", size, number)
    else:
        count = _known_count(spec)
        if count is not None:
            _require_aligned(config.group_number, count)
        for level, number in _written_groups(config):
            size = _declared_size(config.input_shape, level)
            if size is not None:
                _require_divides(f"level {called(level, names)}", size, number)
        if isinstance(config.group_number, GroupMapping):
            _require_aggregated(config)


def _require_aggregated(config: LayerConfig) -> None:
    """Refuse groups of a level that is not aggregated for any rank that `input_shape` allows."""
    error: GroupError | None = None
    for rank in _ranks(config, (...,) if config.input_shape is None else config.input_shape):
        try:
            aggregation, _ = _levels(config, rank, batched=_names_batch(config))
            _group_numbers(config.group_number, aggregation, rank, config.input_levels)
        except (LevelRangeError, LevelConflictError):
            continue  # an example of this rank does not have the levels
        except GroupError as caught:
            error = caught
        else:
            return
    if error is not None:
        raise error


def _names_batch(config: LayerConfig) -> bool:
    """Return whether the settings alone require a batch: by `batched`, or by level 0."""
    return bool(config.batched) or levels.uses_batch(config.aggregation_levels)


def _known_count(spec: LevelSpec) -> int | None:
    """Return the number of levels of a spec, if it is the same for every array; else None."""
    count = 0
    for item in levels.members(spec):
        if isinstance(item, Span):
            first, last = 1 if item.first is None else item.first, -1 if item.last is None else item.last
            if (first < 0) != (last < 0):
                return None
            count += len(range(first, last + 1, item.step))
        else:
            count += 1
    return count


def _written_groups(config: LayerConfig) -> Iterable[tuple[int, int]]:
    """Return (level, groups) pairs, as far as the settings determine them without an array."""
    groups, named = config.group_number, levels.members(config.aggregation_levels)
    if isinstance(groups, GroupMapping):
        return groups.items
    if groups is None or not all(isinstance(item, Level) for item in named):
        return ()
    numbers = (groups,) if isinstance(groups, int) else groups
    return zip((cast("Level", item).number for item in named), numbers, strict=True)


def _declared_size(declared: Shape | None, level: int) -> int | None:
    """Return the declared size of a level, if it is on the same side of the `...` for every rank; else None."""
    if declared is None or level == 0:
        return None
    place = declared.index(...)
    outside = level <= place if level > 0 else -level < len(declared) - place
    return cast("int | None", declared[level - (level > 0)]) if outside else None


def _levels(config: LayerConfig, rank: int, *, batched: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    names = config.input_levels
    aggregation = levels.resolve(config.aggregation_levels, rank, batched=batched, argument=AGGREGATION, names=names)
    return aggregation, levels.resolve_scaling(config.scaling_levels, aggregation, rank, batched=batched, names=names)


def _require_aligned(groups: Groups, count: int) -> None:
    if isinstance(groups, int) and count != 1:
        msg = f"group_number={groups} does not say which of the {count} aggregation levels is split\n"
        msg += f"write {count} numbers, one for each level, or {{level: {groups}}}"
        raise GroupError(msg, code="G010")
    if isinstance(groups, tuple) and len(groups) != count:
        msg = f"group_number has {len(groups)} numbers for {count} aggregation levels\n"
        msg += "write one for each aggregation level in the order written (1 does not split), or {level: groups}"
        raise GroupError(msg, code="G011")


def _group_numbers(groups: Groups, aggregation: tuple[int, ...], rank: int, names: Names | None) -> dict[int, int]:
    """Return the group number of each resolved level; a level without one is not split."""
    _require_aligned(groups, len(aggregation))
    numbers: dict[int, int] = {}
    match groups:
        case None:
            pass
        case GroupMapping(items):
            for written, number in items:
                level = written if written >= 0 else rank + 1 + written
                if level not in aggregation or written < -rank:
                    named = ", ".join((names and names.of(level, rank)) or str(level) for level in aggregation)
                    msg = f"group_number splits level {called(written, names)}, which is not aggregated\n"
                    msg += f"the aggregation levels are {named}: groups are made of aggregated levels only"
                    raise GroupError(msg, code="G012")
                if level in numbers:
                    msg = f"group_number names level {level} twice: {level} and {level - rank - 1} are the same here\n"
                    msg += "write every level once"
                    raise GroupError(msg, code="G013")
                numbers[level] = number
        case int():
            numbers[aggregation[0]] = groups
        case tuple():
            numbers = dict(zip(aggregation, groups, strict=True))
    return numbers


def _require_divides(level: str, size: int, number: int) -> None:
    if size % number:
        # The search is bounded: a large prime has no divisor near the number.
        near = next((n for n in range(min(number, size), max(0, number - 1000), -1) if size % n == 0), 1)
        msg = f"{level} of size {size} cannot be split into {number} groups of equal size\n"
        msg += f"group_number has to divide {size}, as {near} does"
        raise GroupError(msg, code="G020")


# ---------------------------------------------------------------------------------------------------------- resolution


@dataclass(frozen=True, slots=True)
class Resolved:
    """A config resolved for one array. Axes are 0-based axes of the array.

    Attributes
    ----------
    rank : int
        Number of levels of one example.
    batched : bool
        Whether axis 0 is the batch.
    shape : tuple of int
        Shape of the array.
    aggregation, scaling : tuple of int
        Axes, in the order written.
    groups : tuple of int
        Group number of every axis; 1 means that it is not split.
    parameter_shape : tuple of int
        Sizes of the scaling levels, in the order written.
    moments_shape : tuple of int
        The sizes of kept axes and the numbers of groups of grouped axes, in axis order.
    names : Names or None
        The names of the levels.
    """

    rank: int
    batched: bool
    shape: tuple[int, ...]
    aggregation: tuple[int, ...]
    scaling: tuple[int, ...]
    groups: tuple[int, ...]
    parameter_shape: tuple[int, ...]
    moments_shape: tuple[int, ...]
    names: Names | None = None

    @property
    def count(self) -> int:
        """Number of elements of one slice."""
        count, shape, groups = 1, self.shape, self.groups
        for axis in self.aggregation:
            count *= shape[axis] // groups[axis]
        return count

    def level(self, axis: int) -> int:
        """Return the level of an axis."""
        return axis if self.batched else axis + 1

    def name(self, axis: int) -> str:
        """Return the name of the level of an axis, for errors: "level 2 height (axis 1)"."""
        return levels.name(self.level(axis), batched=self.batched, names=self.names, rank=self.rank)


def resolve_config(config: LayerConfig, shape: tuple[int, ...], *, cached: bool = True) -> Resolved:
    """Resolve a config for an array of this shape.

    Parameters
    ----------
    config : LayerConfig
    shape : tuple of int
        Shape of the array.
    cached : bool, default True
        Whether the axes may come from a cache. `torch.compile` warns of a cache that it traces.

    Returns
    -------
    Resolved

    Raises
    ------
    ShapeError
        The array differs from `input_shape`, in rank or in a size.
    LevelRangeError, LevelConflictError
        A level does not exist in this array, or two levels are the same.
    GroupError
        A group number does not divide the size of its level.
    ConfigError
        ``unbiased`` over one element, for the statistics of the input.

    Examples
    --------
    >>> config = LayerConfig.make("All", 1, {1: 32}, input_shape=(256, ...), batched=True)
    >>> found = resolve_config(config, (8, 256, 56, 56))
    >>> found.aggregation, found.groups, found.parameter_shape, found.moments_shape
    ((1, 2, 3), (1, 32, 1, 1), (256,), (8, 32))
    """
    batched = _decide_batched(config, shape)
    rank = len(shape) - batched
    _check_sizes(config, shape, batched)
    aggregation, scaling, groups = (_cached_axes_of if cached else _axes_of)(
        config.aggregation_levels, config.scaling_levels, config.group_number, config.input_levels, rank, batched
    )
    kept = []
    for axis, (size, number) in enumerate(zip(shape, groups, strict=True)):
        if number > 1:
            if size % number:
                level = axis if batched else axis + 1
                named = levels.name(level, batched=batched, names=config.input_levels, rank=rank)
                _require_divides(named, size, number)
            kept.append(number)
        elif axis not in aggregation:
            kept.append(size)
    parameter_shape = tuple([shape[axis] for axis in scaling])
    resolved = Resolved(
        rank, batched, shape, aggregation, scaling, groups, parameter_shape, tuple(kept), config.input_levels
    )
    if config.unbiased and config.statistics == "input":
        require_unbiased(resolved)
    return resolved


def _axes_of(
    aggregation_levels: LevelSpec,
    scaling_levels: LevelSpec,
    group_number: Groups,
    names: Names | None,
    rank: int,
    batched: bool,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return the aggregated axes, the scaling axes and the group number of every axis, for any sizes of this rank.

    `resolve_config` caches it, because resolving the levels takes longer than the rest.
    """
    aggregation = levels.resolve(aggregation_levels, rank, batched=batched, argument=AGGREGATION, names=names)
    scaling = levels.resolve_scaling(scaling_levels, aggregation, rank, batched=batched, names=names)
    numbers = _group_numbers(group_number, aggregation, rank, names)
    first = 0 if batched else 1  # the level of axis 0
    groups = tuple(numbers.get(axis + first, 1) for axis in range(rank + batched))
    return tuple(level - first for level in aggregation), tuple(level - first for level in scaling), groups


_cached_axes_of = functools.lru_cache(1024)(_axes_of)


def require_unbiased(resolved: Resolved) -> None:
    """Refuse an unbiased variance over one element, which is 0 divided by 0.

    Raises
    ------
    ConfigError
        The message names the levels, their axes and sizes.
    """
    if resolved.count != 1:
        return
    named = []
    for axis in resolved.aggregation:
        split = f" in {resolved.groups[axis]} groups" if resolved.groups[axis] > 1 else ""
        named.append(f"{resolved.name(axis)} of size {resolved.shape[axis]}{split}")
    msg = f"unbiased=True over one element: {_and(named)}\n"
    msg += (
        "an unbiased variance divides by the number of elements minus one: aggregate more levels or leave out unbiased"
    )
    raise ConfigError(msg, code="C042")


def _and(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]


def _written(shape: Sequence[int | EllipsisType | None]) -> str:
    sizes = ["..." if size is ... else str(size) for size in shape]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def _decide_batched(config: LayerConfig, shape: tuple[int, ...]) -> bool:
    declared = config.input_shape
    if declared is None or ... in declared:
        batched = bool(config.batched)
        least = batched + (0 if declared is None else len(declared) - 1)
        if len(shape) < least:
            example = "" if declared is None else f" of examples {_written(declared)}"
            what = f"a batch{example}" if batched else f"an example {_written(declared or ())}"
            msg = f"an array of shape {_written(shape)} cannot be {what}\n{what} has at least {_axes(least)}"
            raise ShapeError(msg, code="S002")
    else:
        rank, examples = len(declared), f"examples {_written(declared)}"
        allowed = {False: rank, True: rank + 1}
        if len(shape) not in allowed.values():
            msg = f"an array of shape {_written(shape)} is neither an example nor a batch of {examples}\n"
            msg += f"an example has {_axes(rank)}, a batch {rank + 1}"
            raise ShapeError(msg, code="S001")
        batched = len(shape) == rank + 1
        if config.batched is not None and batched != config.batched:
            found = f"a batch of {examples}" if batched else f"one of the {examples}"
            msg = f"an array of shape {_written(shape)} is {found}, and the layer has batched={config.batched}\n"
            msg += f"pass {'a batch' if config.batched else 'one example'}, of {_axes(allowed[config.batched])}"
            raise ShapeError(msg, code="S003")
    if not batched:
        place = levels.batch_place(config.aggregation_levels, config.input_levels)
        if place is not None:
            raise _no_batch(config, shape, place)
    return batched


def _axes(number: int) -> str:
    return f"{number} axis" if number == 1 else f"{number} axes"


def _no_batch(config: LayerConfig, shape: tuple[int, ...], place: tuple[int, int]) -> LevelRangeError:
    text, declared = levels.format(config.aggregation_levels, config.input_levels), config.input_shape
    if declared is None or ... in declared:
        why = f"the first axis of an array of shape {_written(shape)} is not declared as the batch"
        write = "pass batched=True, or declare the input_shape of one example"
    else:
        why = f"an array of shape {_written(shape)} is one example"
        write = f"pass a batch of examples, of {_axes(len(declared) + 1)}: x[None] is a batch of one"
    msg = f"{AGGREGATION} has level 0, the batch, and {why}\n{point(text, *place)}\n{write}"
    return LevelRangeError(msg, code="L103", position=place)


def _check_sizes(config: LayerConfig, shape: tuple[int, ...], batched: bool) -> None:
    declared = config.input_shape
    if declared is None:
        return
    for level, size in _filled(declared, len(shape) - batched):
        found = shape[level if batched else level - 1]
        if size is not None and size != found:
            named = levels.name(level, batched=batched, names=config.input_levels, rank=len(shape) - batched)
            msg = f"{named} has size {found}, and input_shape {_written(declared)} declares {size}\n"
            msg += f"the array has the shape {_written(shape)}; None declares a size that varies"
            if ... in declared and config.batched is None:
                msg += ", batched=True that axis 0 is the batch"
            raise ShapeError(msg, code="S010")


def _filled(declared: Shape, rank: int) -> Iterable[tuple[int, int | None]]:
    """Return the levels of an example of this rank with their declared sizes; None for sizes that are not declared."""
    sizes: list[int | None] = []
    for size in declared:
        if size is ...:
            sizes += [None] * (rank - len(declared) + 1)
        else:
            sizes.append(size)
    return enumerate(sizes, 1)


def parameter_shape(config: LayerConfig) -> tuple[int, ...]:
    """Return the shape of the parameters, from `input_shape` alone.

    If the rank is open, the shape must be the same for every rank that the level specs allow.

    Raises
    ------
    InitializationError
        The message names the level whose size is not known.

    Examples
    --------
    >>> parameter_shape(LayerConfig.make("2;;All", input_shape=(256, ...)))
    (256,)
    >>> parameter_shape(LayerConfig.make("2;;All"))
    Traceback (most recent call last):
    gennorm.errors.InitializationError: the size of level 1, a scaling level, is not known
    declare input_shape, call initialize(...) with a shape or an array, or pass arrays as scaling and biases [I001]
    """
    declared = (...,) if config.input_shape is None else config.input_shape
    batched = _names_batch(config)
    known: tuple[int, ...] | None = None
    error: LevelRangeError | LevelConflictError | None = None
    for rank in _ranks(config, declared):
        try:
            _, scaling = _levels(config, rank, batched=batched)
        except (LevelRangeError, LevelConflictError) as caught:
            error = caught
            continue
        sizes = dict(_filled(declared, rank))
        for level in scaling:
            if sizes[level] is None:
                raise _unknown(config, level, rank)
        found = tuple(cast("int", sizes[level]) for level in scaling)
        if known is not None and found != known:
            msg = f"the parameters have the shape {known} or {found}, depending on the rank of the input\n"
            msg += "declare the input_shape with its rank, or call initialize(...) with a shape or an array"
            raise InitializationError(msg, code="I002")
        known = found
    if known is None:
        assert error is not None
        raise error
    return known


def kept_shape(config: LayerConfig) -> tuple[int, ...] | None:
    """Return the shape of the moments of one example, from `input_shape` alone; None if it does not determine it.

    Examples
    --------
    >>> kept_shape(LayerConfig.make("{0, 2;;All}", input_shape=(64, ...), batched=True))
    (64,)
    >>> kept_shape(LayerConfig.make("All", 1, {1: 32}, input_shape=(256, ...)))
    (32,)
    >>> kept_shape(LayerConfig.make(-1, input_shape=(None, 768))) is None
    True
    """
    declared = (...,) if config.input_shape is None else config.input_shape
    found: set[tuple[int | None, ...]] = set()
    for rank in _ranks(config, declared):
        try:
            aggregation, _ = _levels(config, rank, batched=_names_batch(config))
            groups = _group_numbers(config.group_number, aggregation, rank, config.input_levels)
        except (LevelRangeError, LevelConflictError, GroupError):
            continue
        sizes = dict(_filled(declared, rank)) | {level: groups.get(level, 1) for level in aggregation}
        kept = (level for level in range(1, rank + 1) if level not in aggregation or groups.get(level, 1) > 1)
        found.add(tuple(sizes[level] for level in kept))
    shape = found.pop() if len(found) == 1 else (None,)
    return None if None in shape else cast("tuple[int, ...]", shape)


def _ranks(config: LayerConfig, declared: Shape) -> range:
    """Return the ranks of an example that `input_shape` allows, up to a rank after which nothing changes."""
    if ... not in declared:
        return range(len(declared), len(declared) + 1)
    return range(len(declared) - 1, min(MOST_LEVELS, len(declared) + _reach(config)) + 1)


def _reach(config: LayerConfig) -> int:
    """Return a rank after which the level specs resolve alike for every rank."""
    numbers = [
        abs(number)
        for spec in (config.aggregation_levels, config.scaling_levels)
        for item in levels.members(spec)
        for number in ([item.number] if isinstance(item, Level) else [item.first or 1, item.last or 1, item.step])
    ]
    if isinstance(config.group_number, GroupMapping):
        numbers += [abs(level) for level, _ in config.group_number.items]
    return max(numbers, default=1) + max(numbers, default=1)


def _unknown(config: LayerConfig, level: int, rank: int) -> InitializationError:
    word = config.input_levels and config.input_levels.of(level, rank)
    declared = "" if config.input_shape is None else f": input_shape {_written(config.input_shape)} does not declare it"
    msg = f"the size of level {level}{' ' + word if word else ''}, a scaling level, is not known{declared}\n"
    msg += "declare input_shape, call initialize(...) with a shape or an array, or pass arrays as scaling and biases"
    return InitializationError(msg, code="I001")
