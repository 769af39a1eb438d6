"""Whether two configs mean the same layer, and the shortest spelling of one. It uses integers only.

A layer does to an array what its levels are there: which axes are aggregated, in how many groups, and which carry
parameters. For arrays with many axes a config means the same for each further one, so two configs are compared for
every number of axes up to that.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from gennorm.errors import GennormError
from gennorm.spec import config as configs
from gennorm.spec import levels
from gennorm.spec.config import MOST_LEVELS, GroupMapping, Groups, LayerConfig
from gennorm.spec.levels import Level, LevelSpec, Listing, Span, Word

__all__ = [
    "KEPT",
    "Axes",
    "Equivalence",
    "ascending",
    "compare",
    "covers",
    "different_settings",
    "key",
    "meaning",
    "shortest_levels",
    "shortest_scaling",
    "simplified",
]

KEPT = 0  # the role of an axis that is not aggregated; the number of groups of an aggregated one, 1 for the whole
Shape = tuple[int, ...] | None

DEFAULTS = LayerConfig.make().arguments()


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Whether two layers compute the same, and why; it is true or false as a condition.

    Attributes
    ----------
    same : bool
    reason : str
        What both do, or the first difference found.

    Examples
    --------
    >>> found = Equivalence(False, "epsilon is 0.001 in the first layer and 0.1 in the second")
    >>> bool(found)
    False
    >>> print(found)
    not the same: epsilon is 0.001 in the first layer and 0.1 in the second
    """

    same: bool
    reason: str

    def __bool__(self) -> bool:
        return self.same

    def __str__(self) -> str:
        return f"{'the same' if self.same else 'not the same'}: {self.reason}"


class Axes(NamedTuple):
    """What a config means for an array of some number of axes."""

    batched: bool
    sizes: tuple[int | None, ...]  # None for any
    roles: tuple[int, ...]  # KEPT, or the number of groups
    scaling: tuple[int, ...]  # axes, in the order written

    @property
    def first(self) -> int:
        """The level of axis 0."""
        return 0 if self.batched else 1

    @property
    def rank(self) -> int:
        """The number of levels of an example."""
        return len(self.roles) - self.batched


# ----------------------------------------------------------------------------------------------------------- comparing


def compare(first: LayerConfig, second: LayerConfig, shapes: tuple[Shape, Shape] = (None, None)) -> Equivalence:
    """Prove or refute that two configs mean the same layer, apart from the values of parameters and moments.

    Parameters
    ----------
    first, second : LayerConfig
    shapes : pair of tuple of int or None
        The shapes of the parameters of both, where these are known.

    Returns
    -------
    Equivalence

    Examples
    --------
    >>> a, b = (LayerConfig.make(spec, 1, input_shape=(3, None, None)) for spec in ("2;;All", "{-1, 2}"))
    >>> print(compare(a, b))
    the same: equal settings, slices and parameters in arrays with 3 or 4 axes
    >>> print(compare(a, LayerConfig.make("All", 1, input_shape=(3, None, None))))
    not the same: of an array with 3 axes, level 1 (axis 0) is kept by the first layer and aggregated by the second
    """
    differing = different_settings(first, second)
    if differing:
        ours, theirs = (_settings(one)[differing[0]] for one in (first, second))
        return Equivalence(False, f"{differing[0]} is {ours} in the first layer and {theirs} in the second")
    taken = []
    for ndim in range(_enough(first, second) + 1):
        mine, other = (_normal(one, ndim, shape) for one, shape in zip((first, second), shapes, strict=True))
        if mine is None and other is None:
            continue
        taken.append(ndim)
        if mine is None or other is None:
            taker, refuser = ("second", "first") if mine is None else ("first", "second")
            return Equivalence(False, f"the {taker} layer takes arrays with {_axes(ndim)}, and the {refuser} does not")
        if mine != other:
            return Equivalence(False, f"of an array with {ndim} {'axis' if ndim == 1 else 'axes'}, {_gap(mine, other)}")
    return Equivalence(True, f"equal settings, slices and parameters in arrays with {_ranges(taken, first)}")


def covers(first: LayerConfig, second: LayerConfig, shape: Shape = None) -> Equivalence:
    """Prove or refute that the first config does the same for every array that the second takes, whose sizes it allows.

    Parameters
    ----------
    first, second : LayerConfig
    shape : tuple of int, optional
        The shape of the parameters of the second, where it is known.

    Examples
    --------
    >>> sequences = LayerConfig.make(-1, "Same", input_shape=(None, 8))
    >>> bool(covers(LayerConfig.make(-1, "Same"), sequences)), bool(covers(sequences, LayerConfig.make(-1, "Same")))
    (True, False)
    """
    found = different_settings(first, second)
    if found:
        return Equivalence(False, f"{found[0]} differs")
    for ndim in range(_enough(first, second) + 1):
        theirs = _normal(second, ndim, shape)
        if theirs is None or _resolved(second, ndim, shape) is None:
            continue  # not taken, or taken as a batch of one example
        wide = first if first.input_shape is None else replace(first, input_shape=_widened(first.input_shape))
        ours, limits = _normal(wide, ndim, None, theirs.sizes), _normal(first, ndim, None)
        if ours is None or limits is None:
            return Equivalence(False, f"it does not take arrays with {_axes(ndim)}")
        if any(size not in {None, other} for size, other in zip(limits.sizes, theirs.sizes, strict=True)):
            return Equivalence(False, f"it does not take the sizes of arrays with {_axes(ndim)}")
        if ours != theirs:
            return Equivalence(False, f"of an array with {_axes(ndim)}, {_gap(ours, theirs)}")
    return Equivalence(True, "equal settings, slices and parameters in all arrays that the second layer takes")


def _widened(declared: configs.Shape) -> configs.Shape:
    return tuple(... if size is ... else None for size in declared)


def key(config: LayerConfig, shape: Shape = None) -> tuple[Any, ...]:
    """Return a value that is equal for equivalent configs.

    Examples
    --------
    >>> key(LayerConfig.make(-1, input_shape=(None, 8))) == key(LayerConfig.make(2, 1, input_shape=(None, 8)))
    True
    """
    opened = config.input_shape is None or ... in config.input_shape
    most = MOST_LEVELS if opened else _enough(config)
    found = [_normal(config, ndim, shape) for ndim in range(most + 1)]
    while found and found[-1] is None:
        found.pop()
    return (*_settings(config).items(), *found)


def _settings(config: LayerConfig) -> dict[str, Any]:
    """Return the settings that matter, apart from levels and sizes."""
    moves = config.statistics == "moving"
    return {
        "method": config.method,
        "unbiased": config.unbiased,
        "epsilon": config.epsilon,
        # Without epsilon there is nothing to place.
        "epsilon_placement": config.epsilon_placement if config.epsilon else "inside",
        "scaling": "absent" if config.scaling is None else "present",
        "biases": "absent" if config.biases is None else "present",
        "dtype": None if config.scaling is None and config.biases is None else config.dtype,
        "statistics": config.statistics,
        "trainable": config.trainable if moves else None,
        "momentum": config.momentum if moves and config.trainable else None,
    }


def different_settings(first: LayerConfig, second: LayerConfig) -> list[str]:
    """Return the names of the settings that differ and matter, apart from levels and sizes.

    Examples
    --------
    >>> different_settings(LayerConfig.make(epsilon=0), LayerConfig.make(epsilon=0, epsilon_placement="floor"))
    []
    """
    ours, theirs = _settings(first), _settings(second)
    return [name for name, value in ours.items() if value != theirs[name]]


def _normal(config: LayerConfig, ndim: int, shape: Shape, sizes: tuple[int | None, ...] | None = None) -> Axes | None:
    """Return what decides about the output for arrays with this many axes; None if the layer takes none.

    `sizes` are those of the arrays, where they are known otherwise than from the config.
    """
    axes = _axes_of(config, ndim, shape)
    if axes is None:
        return None
    axes = axes if sizes is None else axes._replace(sizes=sizes)
    held = config.statistics == "dataset" or (config.statistics == "moving" and not config.trainable)
    # Groups of one element keep the axis; an axis of size 1 is the same kept or aggregated, with parameters or without.
    roles = [
        KEPT if size == 1 or (size is not None and role == size) else role
        for role, size in zip(axes.roles, axes.sizes, strict=True)
    ]
    if held and axes.batched:
        roles[0] = 1  # held moments have no axis for the batch
    absent = config.scaling is None and config.biases is None
    if config.method == "Standardize" and config.statistics == "input" and not any(roles):
        absent = config.biases is None  # an element minus itself is 0, whatever it is multiplied by
    scaling = () if absent else tuple(sorted(axis for axis in axes.scaling if axes.sizes[axis] != 1))
    moves = config.statistics == "moving" and config.trainable
    return Axes(axes.batched and moves, axes.sizes, tuple(roles), scaling)


def _axes_of(config: LayerConfig, ndim: int, shape: Shape = None) -> Axes | None:
    """Resolve a config for arrays with this many axes; `shape` is that of the parameters, if it is known."""
    found = _resolved(config, ndim, shape)
    if found is None and config.statistics != "input" and levels.uses_batch(config.aggregation_levels):
        found = _resolved(config, ndim + 1, shape)  # one example, which is a batch of one
        if found is not None:
            scaling = tuple(axis - 1 for axis in found.scaling)
            return Axes(False, found.sizes[1:], found.roles[1:], scaling)
    return found


def _resolved(config: LayerConfig, ndim: int, shape: Shape) -> Axes | None:
    try:
        batched = configs._decide_batched(config, (1,) * ndim)
        rank = ndim - batched
        aggregation, scaling, groups = configs._cached_axes_of(
            config.aggregation_levels, config.scaling_levels, config.group_number, rank, batched
        )
    except GennormError:
        return None
    sizes: list[int | None] = [None] * ndim
    if config.input_shape is not None:
        for level, size in configs._filled(config.input_shape, rank):
            sizes[level if batched else level - 1] = size
    if shape is not None and not _fit(sizes, scaling, shape):
        return None
    roles = tuple(groups[axis] if axis in aggregation else KEPT for axis in range(ndim))
    if any(size is not None and role > 1 and size % role for size, role in zip(sizes, roles, strict=True)):
        return None
    return Axes(batched, tuple(sizes), roles, scaling)


def _fit(sizes: list[int | None], scaling: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Write the sizes of parameters into those of the axes they lie on; return whether they can be these."""
    if len(shape) != len(scaling):
        return False
    for axis, size in zip(scaling, shape, strict=True):
        if sizes[axis] not in {None, size}:
            return False
        sizes[axis] = size
    return True


def meaning(config: LayerConfig, shape: Shape = None) -> Axes | None:
    """Return what a config means for the arrays with the most axes; None if it takes no array.

    Examples
    --------
    >>> meaning(LayerConfig.make(2, input_shape=(3, 4)))
    Axes(batched=True, sizes=(None, 3, 4), roles=(0, 0, 1), scaling=(1,))
    """
    found = (_axes_of(config, ndim, shape) for ndim in range(_ranks(config)[-1] + 1, -1, -1))
    return next((axes for axes in found if axes is not None), None)


def ascending(config: LayerConfig, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the order of the axes of parameters in which their levels ascend.

    Examples
    --------
    >>> ascending(LayerConfig.make(1, "{3, 2}", input_shape=(4, 5, 6)), (6, 5))
    (1, 0)
    """
    found = (_axes_of(config, ndim, shape) for ndim in range(_enough(config) + 1))
    axes = next((one.scaling for one in found if one is not None), tuple(range(len(shape))))
    return tuple(sorted(range(len(axes)), key=axes.__getitem__))


def _enough(*found: LayerConfig) -> int:
    """Return a number of axes after which the configs mean the same for each further one."""
    specs = [spec for one in found for spec in (one.aggregation_levels, one.scaling_levels)]
    if any(isinstance(item, Span) and item.step > 1 for spec in specs for item in levels.members(spec)):
        return MOST_LEVELS  # which levels a step reaches depends on the last one
    return max(_ranks(one)[-1] for one in found) + 1


def _ranks(config: LayerConfig) -> range:
    return configs._ranks(config, (...,) if config.input_shape is None else config.input_shape)


def _gap(ours: Axes, theirs: Axes) -> str:
    """Return the first difference of two layers for arrays with the same number of axes, in words."""
    for axis in range(len(ours.sizes)):
        level = levels.name(axis if ours.batched else axis + 1, batched=ours.batched)
        level = level if ours.batched == theirs.batched else f"axis {axis}"
        size, other = ours.sizes[axis], theirs.sizes[axis]
        if size != other:
            words = ["any size" if one is None else f"size {one}" for one in (size, other)]
            return f"{level} has {words[0]} in the first layer and {words[1]} in the second"
        role, other = ours.roles[axis], theirs.roles[axis]
        if role != other:
            return f"{level} is {_role(role)} by the first layer and {_role(other)} by the second"
        for taker, one, another in (("first", ours, theirs), ("second", theirs, ours)):
            if axis in one.scaling and axis not in another.scaling:
                return f"{level} has parameters in the {taker} layer only"
    batch = "the first" if ours.batched else "the second"
    return f"axis 0 is the batch, which moving moments average over, for {batch} layer only"


def _axes(ndim: int) -> str:
    return "1 axis" if ndim == 1 else f"{ndim} axes"


def _role(role: int) -> str:
    return "kept" if role == KEPT else "aggregated" if role == 1 else f"aggregated in {role} groups"


def _ranges(taken: list[int], config: LayerConfig) -> str:
    """Return the numbers of axes that layers take, in words."""
    if not taken:
        return "0 axes: neither takes an array"
    opened = config.input_shape is None or ... in config.input_shape
    if opened:
        return f"{taken[0]} axes or more" if taken[0] != 1 else "1 axis or more"
    return f"{' or '.join(map(str, taken))} {'axis' if taken == [1] else 'axes'}"


# --------------------------------------------------------------------------------------------------------- simplifying


def simplified(config: LayerConfig) -> LayerConfig:
    """Return the shortest spelling of a config, for which every array gives the same, moments and parameters too.

    Examples
    --------
    >>> LayerConfig.make("{3, 2}", "{1}", {3: 1}, input_shape=(3, None, None), batched=None).arguments()["group_number"]
    {3: 1}
    >>> short = simplified(LayerConfig.make("{3, 2}", "{1}", {3: 1}, input_shape=(3, None, None)))
    >>> short == LayerConfig.make(input_shape=(3, None, None))
    True
    """
    best = _first_identical(config, _shapes(_with_settings(config))) or config
    meant = meaning(best)
    if meant is None:
        return best  # no array has these levels
    first, rank = meant.first, meant.rank
    scaling = tuple(axis + first for axis in meant.scaling)
    found = [best]
    for axes in dict.fromkeys((meant, _without_single(meant))):  # with groups of one element, and without
        roles = {axis + first: role for axis, role in enumerate(axes.roles) if role != KEPT}
        if roles:
            found.append(_respelled(config, best, roles, scaling, rank))
    return _by_cost(found)[0]


def _respelled(
    config: LayerConfig, best: LayerConfig, roles: dict[int, int], scaling: tuple[int, ...], rank: int
) -> LayerConfig:
    """Spell the aggregation levels as short as the arrays allow, and with them the scaling levels and the groups."""
    groups = _group_spellings({level: role for level, role in roles.items() if role > 1}, [*roles], rank)
    parameters = [best.scaling_levels, *_scaling_spellings(scaling, rank)]
    spellings = sorted(_spellings(tuple(roles), rank), key=_spec_cost)
    for _, alike in itertools.groupby(spellings, key=lambda spec: _spec_cost(spec)[0]):
        candidates = _by_cost(
            replace(best, aggregation_levels=spec, group_number=one, scaling_levels=other)
            for spec in alike
            for one in groups
            for other in parameters
        )
        found = _first_identical(config, candidates)
        if found is not None:
            return found
    return best


def _first_identical(config: LayerConfig, candidates: Iterable[LayerConfig]) -> LayerConfig | None:
    return next((one for one in candidates if _identical(config, one)), None)


def shortest_levels(found: Sequence[int], rank: int) -> LevelSpec:
    """Return the shortest level spec for ascending levels of examples of one rank.

    Examples
    --------
    >>> levels.format(shortest_levels((0, 2, 3, 4), 4)), levels.format(shortest_levels((1, 2), 2))
    ('{0, 2;;All}', 'All')
    """
    return min(_spellings(tuple(found), rank), key=_spec_cost)


def shortest_scaling(found: Sequence[int], aggregated: Sequence[int], rank: int) -> LevelSpec:
    """Return the shortest spec of scaling levels, given those that are aggregated.

    Examples
    --------
    >>> shortest_scaling((1,), (2, 3), 3), shortest_scaling((2, 3), (2, 3), 3)
    (Word.COMPLEMENT, Word.SAME)
    """
    if [*found] == [level for level in range(1, rank + 1) if level not in aggregated]:
        return Word.COMPLEMENT
    if not found:
        return Listing(())
    same: list[LevelSpec] = [Word.SAME] if [*found] == [*aggregated] else []
    return min([*same, *_spellings(tuple(found), rank)], key=_scaling_cost)


def _with_settings(config: LayerConfig) -> LayerConfig:
    """Return the config with default values for the settings that have no effect."""
    if not config.epsilon:
        config = replace(config, epsilon_placement=DEFAULTS["epsilon_placement"])
    if config.statistics != "moving":
        config = replace(config, momentum=DEFAULTS["momentum"])
    if config.scaling is None and config.biases is None:
        config = replace(config, dtype=DEFAULTS["dtype"])
    return config


def _shapes(config: LayerConfig) -> list[LayerConfig]:
    """Return the config with less and less of `input_shape` and `batched`, the shortest first."""
    declared = config.input_shape
    shapes = [declared]
    if declared is not None and ... in declared:
        place = declared.index(...)
        before, after = declared[:place], declared[place + 1 :]
        while before and before[-1] is None:
            before = before[:-1]
        while after and after[0] is None:
            after = after[1:]
        shapes += [
            (*declared[:place], ..., *after),
            (*before, ..., *declared[place + 1 :]),
            (*before, ..., *after),
            None,
        ]
    return _by_cost(
        replace(config, input_shape=shape, batched=batched) for shape in shapes for batched in (config.batched, None)
    )


def _identical(first: LayerConfig, second: LayerConfig) -> bool:
    """Return whether two configs agree in everything for all arrays, in the shapes of moments and parameters too."""
    if any(_exact(first, ndim) != _exact(second, ndim) for ndim in range(_enough(first, second) + 1)):
        return False
    if configs.kept_shape(first) != configs.kept_shape(second) or _parameter_shape(first) != _parameter_shape(second):
        return False
    try:
        LayerConfig.from_dict(second.to_dict())  # the checks of the constructor
    except GennormError:
        return False
    return True


def _parameter_shape(config: LayerConfig) -> Shape:
    try:
        return configs.parameter_shape(config)
    except GennormError:
        return None


@functools.lru_cache(1024)
def _exact(config: LayerConfig, ndim: int) -> Axes | None:
    axes = _axes_of(config, ndim)
    return None if axes is None else _without_single(axes)


def _without_single(axes: Axes) -> Axes:
    """Return axes whose groups have one element as kept ones."""
    roles = (KEPT if role == size and role > 1 else role for role, size in zip(axes.roles, axes.sizes, strict=True))
    return axes._replace(roles=tuple(roles))


def _by_cost(candidates: Iterable[LayerConfig]) -> list[LayerConfig]:
    return sorted(dict.fromkeys(candidates), key=_cost)


def _cost(config: LayerConfig) -> int:
    """Return the number of characters of the values that differ from the defaults."""
    values = config.arguments()
    specs = _spec_cost(config.aggregation_levels)[0] + _scaling_cost(config.scaling_levels)[0]
    rest = (name for name in values if name not in {"aggregation_levels", "scaling_levels"})
    return specs + sum(1 + len(repr(values[name])) for name in rest if values[name] != DEFAULTS[name])


def _spec_cost(spec: LevelSpec) -> tuple[int, int, bool, str]:
    text = levels.format(spec)
    return (0, 0, False, "") if text == DEFAULTS["aggregation_levels"] else _scaling_cost(spec)


def _scaling_cost(spec: LevelSpec) -> tuple[int, int, bool, str]:
    """Return the length of a level spec. Of those of one length, "2;;All" comes before "2;;4", and 3 before -1."""
    text = levels.format(spec)
    if text == DEFAULTS["scaling_levels"]:
        return 0, 0, False, ""
    length = len(text.replace("All", "-").replace("-", "")) + 3 - 2 * isinstance(spec, Level)
    return (5 if isinstance(spec, Word) else length), text.count("-"), "All" not in text, text


def _spellings(found: tuple[int, ...], rank: int) -> Iterable[LevelSpec]:
    """Return level specs for ascending levels, counted from the front and from the end."""
    runs: list[list[int]] = []
    for level in found:
        if runs and level == runs[-1][-1] + 1:
            runs[-1].append(level)
        else:
            runs.append([level])
    steps = {after - before for before, after in itertools.pairwise(found)}
    if len(found) > 2 and len(steps) == 1 and steps != {1}:
        yield from _spans(found[0], found[-1], rank, steps.pop())
    ways = [[*_run_spellings(run, rank)] for run in runs]
    for items in itertools.islice(itertools.product(*ways), 3000):
        yield items[0] if len(items) == 1 else Listing(items)


def _run_spellings(run: list[int], rank: int) -> Iterable[Level | Span]:
    if len(run) == 1:
        yield from (Level(end) for end in _ends(run[0], rank))
    else:
        yield from _spans(run[0], run[-1], rank, 1)


def _spans(first: int, last: int, rank: int, step: int) -> Iterable[Span]:
    starts: list[int | None] = [*_ends(first, rank)]
    stops: list[int | None] = [*_ends(last, rank)]
    starts += [None] if first == 1 else []
    stops += [None] if last == rank else []
    for start, stop in itertools.product(starts, stops):
        yield Span(start, stop, step)


def _ends(level: int, rank: int) -> list[int]:
    return [level, level - rank - 1] if level else [0]


def _group_spellings(numbers: dict[int, int], aggregated: Sequence[int], rank: int) -> list[Groups]:
    if not numbers:
        return [None]
    found: list[Groups] = [
        GroupMapping(tuple(zip(named, numbers.values(), strict=True)))
        for named in itertools.product(*(_ends(level, rank) for level in numbers))
    ]
    if len(aggregated) == 1:
        found.append(numbers[aggregated[0]])
    return [*found, tuple(numbers.get(level, 1) for level in aggregated)]


def _scaling_spellings(found: tuple[int, ...], rank: int) -> list[LevelSpec]:
    words: list[LevelSpec] = [Word.COMPLEMENT, Word.SAME]
    if found != tuple(sorted(found)):  # the parameters have their axes in this order
        return [*words, Listing(tuple(map(Level, found)))]
    if not found:
        return [*words, Listing(())]
    return [*words, *sorted(_spellings(found, rank), key=_scaling_cost)[:32]]
