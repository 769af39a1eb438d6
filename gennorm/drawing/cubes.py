"""Describes the picture of a layer: which elements of a small array share one slice, and which levels have parameters.

It uses integers and text only. `scene` turns a description into polygons, and `characters` into text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gennorm.errors import DrawingError, LevelConflictError, LevelRangeError, shown
from gennorm.spec.config import GroupMapping, LayerConfig, Resolved, resolve_config

__all__ = ["Cubes", "Side", "describe"]

Integers = npt.NDArray[np.int64]

MOST_AXES = 8  # 32 cubes
EXACT = 6  # a side of up to this many positions is drawn as it is
KEPT, AGGREGATED = 3, 4  # positions of a side that is drawn smaller
OUTER_EXACT, OUTER = 3, 2  # the same for a level beyond the three of a cube
UNKNOWN = 2 * EXACT  # a size that is not known


@dataclass(frozen=True, slots=True)
class Side:
    """One axis of the array in the picture.

    Attributes
    ----------
    level : int
        0 is the batch.
    label : str or None
        The user's name of the level.
    size : int
        Number of positions in the picture.
    full_size : int or None
        Number of positions in the array; None where it is not known.
    groups, full_groups : int
        Number of groups in the picture and in the array; 1 where the level is not split.
    centred, divided : bool
        Whether the mean that is subtracted, and the number that is divided by, are taken over this level.
    has_parameters : bool
        Whether the parameters vary along it.
    """

    level: int
    label: str | None
    size: int
    full_size: int | None
    groups: int
    full_groups: int
    centred: bool
    divided: bool
    has_parameters: bool

    @property
    def aggregated(self) -> bool:
        """Whether statistics are taken over this level."""
        return self.centred or self.divided

    @property
    def parts(self) -> tuple[int, ...]:
        """For each position in the picture, which part of the slices it is in: a group, or a position that is kept."""
        length = self.size // self.groups if self.aggregated else 1
        return tuple(place // length for place in range(self.size))

    @property
    def name(self) -> str:
        """The label, or the number of the level."""
        return self.label or ("batch" if self.level == 0 else f"level {self.level}")


@dataclass(frozen=True, slots=True)
class Cubes:
    """The picture of a layer for an array of a small shape.

    Attributes
    ----------
    sides : tuple of Side
        The axes of the array.
    parameters : tuple of str
        "scaling", "biases", both or neither.
    aggregated_axes, parameter_axes : tuple of int
        The axes that statistics are taken over, and the axes of the parameters, in the order written.
    method : str
        "Standardize" or "RMS".

    Examples
    --------
    >>> from gennorm.spec.config import LayerConfig
    >>> cubes = describe(LayerConfig.make("All", 1, {1: 2}), (4, 3))
    >>> cubes.slices.tolist()
    [[0, 0, 0], [0, 0, 0], [1, 1, 1], [1, 1, 1]]
    >>> cubes.places.tolist()
    [[0, 0, 0], [1, 1, 1], [2, 2, 2], [3, 3, 3]]
    >>> cubes.smaller
    False
    """

    sides: tuple[Side, ...]
    parameters: tuple[str, ...]
    aggregated_axes: tuple[int, ...]
    parameter_axes: tuple[int, ...]
    method: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the small array."""
        return tuple(side.size for side in self.sides)

    @property
    def moments_shape(self) -> tuple[int, ...]:
        """The shape of the moments of the small array."""
        return tuple(side.parts[-1] + 1 for side in self.sides if not side.aggregated or side.groups > 1)

    @property
    def count(self) -> int:
        """Number of slices in the picture."""
        return math.prod(self.moments_shape)

    @property
    def slices(self) -> Integers:
        """The number of the slice of every element: its place in the moments, counted in C order."""
        return _numbered([side.parts for side in self.sides], range(len(self.sides)))

    @property
    def places(self) -> Integers:
        """For every element, the place of its scaling and bias in the parameters, counted in C order."""
        return _numbered([range(side.size) for side in self.sides], self.parameter_axes)

    @property
    def smaller(self) -> bool:
        """Whether a size is smaller than in the array, or was not known."""
        return any(side.size != side.full_size for side in self.sides)


def _numbered(places: Sequence[Sequence[int]], axes: Sequence[int]) -> Integers:
    """Return for every element the place, in C order, of its positions on some axes."""
    found = np.zeros([len(positions) for positions in places], np.int64)
    for axis in axes:
        column = [1] * len(places)
        column[axis] = -1
        found = found * (max(places[axis]) + 1) + np.reshape(places[axis], column)
    return found


def describe(
    config: LayerConfig,
    shape: tuple[int, ...] | None = None,
    labels: Sequence[str | None] | None = None,
    *,
    per_example: bool = False,
) -> Cubes:
    """Describe the picture of a layer.

    Parameters
    ----------
    config : LayerConfig
    shape : tuple of int, optional
        Shape of the array; a likely one if not given. Long levels are drawn with fewer positions.
    labels : sequence of str or None, optional
        A name for each axis of the array; if not given, the names that ``input_levels`` declares.
    per_example : bool, default False
        Whether the parameters have a leading axis for the examples of the batch.

    Returns
    -------
    Cubes

    Raises
    ------
    GennormError
        The shape does not fit the config; see `resolve_config`.
    DrawingError
        The array has too many axes or no elements, or the labels do not fit it.

    Examples
    --------
    >>> cubes = describe(LayerConfig.make("2;;All", batched=True), (32, 256, 14, 14), ["N", "C", "H", "W"])
    >>> cubes.shape, cubes.moments_shape
    ((2, 3, 4, 4), (2, 3))
    >>> [side.name for side in cubes.sides if side.has_parameters]
    ['C']
    """
    full = _likely(config) if shape is None else shape
    sizes = tuple(UNKNOWN * _multiple(config) if size is None else size for size in full)
    resolved = resolve_config(config, sizes)
    _check(resolved, labels)
    names, rank = resolved.names, resolved.rank
    declared = [None if names is None else names.of(resolved.level(axis), rank) for axis in range(len(sizes))]
    named = declared if labels is None else labels
    axes = (0, *resolved.scaling) if per_example and resolved.batched else resolved.scaling
    parameters = tuple(name for name in ("scaling", "biases") if getattr(config, name) is not None)
    sides = []
    for axis, size in enumerate(sizes):
        aggregated = axis in resolved.aggregation
        side = Side(
            level=resolved.level(axis),
            label=named[axis],
            size=size,
            full_size=full[axis],
            groups=resolved.groups[axis],
            full_groups=resolved.groups[axis],
            centred=aggregated and config.method != "RMS",
            divided=aggregated,
            has_parameters=axis in axes and bool(parameters),
        )
        sides.append(_smaller(side, inner=axis >= len(sizes) - 3))
    return Cubes(
        sides=tuple(sides),
        parameters=parameters,
        aggregated_axes=resolved.aggregation,
        parameter_axes=axes,
        method=config.method,
    )


def _check(resolved: Resolved, labels: Sequence[str | None] | None) -> None:
    shape = resolved.shape
    if len(shape) > MOST_AXES:
        msg = f"an array of shape {shape} has {len(shape)} axes, and a picture at most {MOST_AXES}\n"
        msg += "draw an array with fewer axes: axes next to each other that have the same role can be one"
        raise DrawingError(msg, code="V001")
    if math.prod(shape) == 0:
        axis = shape.index(0)
        level = f"level {resolved.level(axis)} (axis {axis})"
        msg = f"{level} of an array of shape {shape} has size 0, and there is nothing to draw\n"
        msg += "give a shape without 0"
        raise DrawingError(msg, code="V002")
    if labels is None:
        return
    if isinstance(labels, str) or not isinstance(labels, Sequence):
        msg = f"labels cannot be {shown(labels)}\n"
        msg += 'write a sequence with a text, or None, for each axis: ["N", "C", "L"]'
        raise DrawingError(msg, code="V007")
    if len(labels) != len(shape):
        names = "1 name" if len(labels) == 1 else f"{len(labels)} names"
        msg = f"labels has {names}, and an array of shape {shape} has {len(shape)} axes\n"
        msg += "write a text, or None, for each axis, the batch included"
        raise DrawingError(msg, code="V003")
    for axis, label in enumerate(labels):
        if not isinstance(label, str | None):
            msg = f"labels has {shown(label)} for axis {axis}\na label is a text, or None"
            raise DrawingError(msg, code="V004")


def _smaller(side: Side, *, inner: bool) -> Side:
    """Return a side with few positions and few groups; a short one as it is."""
    exact = EXACT if inner else OUTER_EXACT
    if side.size <= exact:
        return side
    length = side.size // side.groups
    if side.groups > 1:
        within = min(length, 2)
        groups = 2 if within > 1 or not inner else KEPT
        return replace(side, size=groups * within, groups=groups)
    few = OUTER if not inner else AGGREGATED if side.aggregated else KEPT
    return replace(side, size=few)


def _likely(config: LayerConfig) -> tuple[int | None, ...]:
    """Return a shape that the layer takes, with None for sizes that vary."""
    declared: tuple[Any, ...] = (...,) if config.input_shape is None else config.input_shape
    batch: list[tuple[None, ...]] = [(None,)] if config.batched else [()]
    if config.batched is None:
        batch.append((None,))
    # Three axes make one cube; more make a grid, fewer a square or a line. The last number is more than can be drawn.
    ranks = (3, 4, 5, 2, 1, *range(6, MOST_AXES + 1), len(declared)) if ... in declared else (None,)
    failure: Exception | None = None
    for first in batch:
        for rank in ranks:
            sizes = declared
            if rank is not None:
                place, more = declared.index(...), rank - len(first) - len(declared) + 1
                if more < 0:
                    continue
                sizes = (*declared[:place], *[None] * more, *declared[place + 1 :])
            shape = (*first, *sizes)
            try:
                resolve_config(config, tuple(UNKNOWN * _multiple(config) if size is None else size for size in shape))
            except (LevelRangeError, LevelConflictError) as error:
                failure = failure or error
            else:
                return shape
    assert failure is not None
    raise failure


def _multiple(config: LayerConfig) -> int:
    """Return a number that every group number divides."""
    groups = config.group_number
    if isinstance(groups, GroupMapping):
        return math.lcm(*(number for _, number in groups.items))
    return groups if isinstance(groups, int) else math.lcm(*(groups or ()))
