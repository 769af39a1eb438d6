"""What belongs to one chunk: its moments, and its output. Everything here runs in the tasks of a graph, with NumPy.

A chunk may begin and end anywhere. Along a level with groups it is cut at the borders of the groups into pieces: a part
of a group, whole groups, and a part of another one. A piece is an array that a layer of the core measures and
normalizes, with its own number of groups. Moments of several pieces or chunks are placed by the first group that they
have, and merged where they have the same group.

>>> import dask.array as da
>>> [chunk.shape for chunk in da.ones(5, chunks=3).blocks]
[(3,), (2,)]
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import gennorm
from gennorm.layer.adapting import nan_found
from gennorm.layer.arrays import result_dtype
from gennorm.moments import Moments, spread_of
from gennorm.spec.config import LayerConfig, Resolved

__all__ = ["Geometry", "Location", "Part", "Statistics", "Whole", "joined", "measured", "merged", "moved", "statistics"]

Array = npt.NDArray[Any]

WHAT = "the data"  # what errors call the array that is measured


@dataclass(frozen=True, slots=True)
class Geometry:
    """The slices of a whole array, for its own moments or for those of a data set.

    Attributes
    ----------
    config : LayerConfig
        Settings that do not depend on sizes: levels by number, no groups, no `input_shape`.
    resolved : Resolved
        The axes, sizes and groups of the whole array.
    held : bool
        Whether moments are those of a data set, which have no axis of the batch.
    """

    config: LayerConfig
    resolved: Resolved
    held: bool

    @classmethod
    def of(cls, config: LayerConfig, resolved: Resolved, *, held: bool) -> Geometry:
        """Return the slices of an array that a config was resolved for."""
        levels = [[resolved.level(axis) for axis in axes] for axes in (resolved.aggregation, resolved.scaling)]
        own = LayerConfig.make(
            levels[0],
            levels[1],
            method=config.method,
            epsilon=config.epsilon,
            epsilon_placement=config.epsilon_placement,
            scaling=config.scaling,
            biases=config.biases,
            dtype=config.dtype,
            batched=resolved.batched,
            statistics="dataset" if held else "input",
        )
        return cls(own, resolved, held)

    @property
    def center(self) -> bool:
        """Whether the method subtracts a mean."""
        return self.config.method == "Standardize"

    @property
    def slots(self) -> tuple[int, ...]:
        """The axes of the array that moments have an axis for: those that are kept, and those with groups."""
        resolved = self.resolved
        return tuple(
            axis
            for axis, groups in enumerate(resolved.groups)
            if (axis not in resolved.aggregation or groups > 1) and not (self.held and resolved.batched and axis == 0)
        )

    def reduced(self, axis: int) -> bool:
        """Return whether chunks along an axis have slices in common, so that their moments are merged."""
        return axis in self.resolved.aggregation or (self.held and self.resolved.batched and axis == 0)

    def width(self, axis: int) -> int:
        """Return the number of elements of a group along an axis; 1 where there are none."""
        groups = self.resolved.groups[axis]
        return max(self.resolved.shape[axis] // groups, 1) if groups > 1 else 1


@dataclass(frozen=True, slots=True)
class Location:
    """Where a chunk is in its array: the first index along each axis, and one after the last."""

    start: tuple[int, ...]
    stop: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """A mean, which is None for the method RMS, and a variance."""

    mean: Array | None
    variance: Array


class Whole:
    """A mask or weights that broadcast to the shape of a whole array."""

    __slots__ = ("shape", "values")

    def __init__(self, values: Array, shape: tuple[int, ...]) -> None:
        self.values, self.shape = values, shape

    def __dask_tokenize__(self) -> Any:
        return self.values, self.shape


class Part(NamedTuple):
    """Moments of some slices, and the index of the first along each axis of the moments.

    Along kept levels, the index counts from the first slice of the chunks that are merged.
    """

    first: tuple[int, ...]
    moments: Moments


class _Piece(NamedTuple):
    key: tuple[slice, ...]  # the elements within the chunk
    groups: tuple[int, ...]  # the number of groups along each axis
    first: tuple[int, ...]  # the first group along each axis; 0 where there are none


# ------------------------------------------------------------------------------------------------------------- moments


def measured(
    geometry: Geometry, location: Location, chunk: Any, mask: Any = None, weights: Any = None, nan: str = "propagate"
) -> Part:
    """Return the moments of a chunk.

    Parameters
    ----------
    geometry : Geometry
    location : Location
    chunk : ndarray
    mask, weights : ndarray, optional
        Of the shape of the whole array, or that of the chunk.
    nan : {"propagate", "omit", "raise"}
        As that of `NormalizationLayer.adapt`.

    Raises
    ------
    ParameterError
        There is NaN, and `nan` is "raise"; a weight is negative.

    Examples
    --------
    >>> from gennorm.spec.config import resolve_config
    >>> config = LayerConfig.make(1, (), 2)
    >>> geometry = Geometry.of(config, resolve_config(config, (8,)), held=False)
    >>> measured(geometry, Location((2,), (7,)), np.arange(2.0, 7.0))
    Part(first=(0,), moments=Moments(count=[2., 3.], mean=[2.5, 5. ], m2=[0.5, 2. ]))
    """
    x = _dense(chunk)
    mask, weights = (_part_of(values, location, x.shape) for values in (mask, weights))
    if nan == "raise":
        _refuse_nan(x, location, mask, weights)
    found: list[Part] = []
    for piece in _pieces(geometry, location):
        values, counted, weight = (None if one is None else one[piece.key] for one in (x, mask, weights))
        assert values is not None
        layer = _layer(geometry.config, piece.groups)
        if not values.size:
            moments = None
        elif geometry.held:
            moments = layer._part(values, counted, weight, nan)
        else:
            moments = layer.measure(values, counted)
        shape = _shape(geometry, values.shape, piece.groups)
        if moments is None:
            moments = _of_rows(np.zeros((5, *shape)), geometry.center)
        elif moments.shape != shape:  # a level that is one group here has no axis
            moments = _of_rows(moments.rows().reshape(5, *shape), geometry.center)
        found.append(Part(_first(geometry, piece), moments))
    return found[0] if len(found) == 1 else _placed(geometry, found)


def merged(a: Part, b: Part) -> Part:
    """Return the moments of the slices of both parts; where both have a slice, those of all its elements.

    Examples
    --------
    >>> one = Part((0,), Moments([1.0, 2.0], [1.0, 5.0], [0.0, 2.0]))
    >>> merged(one, Part((1,), Moments([2.0, 1.0], [7.0, 9.0], [2.0, 0.0])))
    Part(first=(0,), moments=Moments(count=[1., 4., 1.], mean=[1., 6., 9.], m2=[0., 8., 0.]))
    """
    if a.first == b.first and a.moments.shape == b.moments.shape:
        return Part(a.first, a.moments + b.moments)
    first = tuple(map(min, a.first, b.first))
    stop = tuple(map(max, _stop(a), _stop(b)))
    wide = (_within(part, first, stop) for part in (a, b))
    return Part(first, next(wide) + next(wide))


def joined(geometry: Geometry, locations: list[Location], parts: list[Part]) -> Moments:
    """Return the moments of the whole array, from those of chunks that have no slice in common.

    Examples
    --------
    >>> from gennorm.spec.config import resolve_config
    >>> config = LayerConfig.make(2)
    >>> geometry = Geometry.of(config, resolve_config(config, (2, 2)), held=False)
    >>> parts = [Part((0,), Moments([2.0], [mean], [0.0])) for mean in (1.0, 5.0)]
    >>> joined(geometry, [Location((0, 0), (1, 2)), Location((1, 0), (2, 2))], parts)
    Moments(count=[2., 2.], mean=[1., 5.], m2=[0., 0.])
    """
    if len(parts) == 1:
        return parts[0].moments
    groups = geometry.resolved.groups
    shape = tuple(groups[axis] if groups[axis] > 1 else geometry.resolved.shape[axis] for axis in geometry.slots)
    rows = np.zeros((5, *shape))
    for location, part in zip(locations, parts, strict=True):
        starts = [0 if groups[axis] > 1 else location.start[axis] for axis in geometry.slots]
        first = tuple(map(sum, zip(starts, part.first, strict=True)))
        rows[(slice(None), *map(slice, first, map(sum, zip(first, part.moments.shape, strict=True))))] = (
            part.moments.rows()
        )
    return _of_rows(rows, geometry.center)


def statistics(part: Part, unbiased: bool) -> Statistics:
    """Return mean and variance of merged moments.

    Examples
    --------
    >>> statistics(Part((0,), Moments([2.0], [1.0], [8.0])), False)
    Statistics(mean=array([1.]), variance=array([4.]))
    """
    return Statistics(part.moments.mean, spread_of(part.moments, unbiased=unbiased))


def _pieces(geometry: Geometry, location: Location) -> Iterator[_Piece]:
    """Yield the pieces that a chunk is cut into, at the borders of groups."""
    cuts: list[list[tuple[slice, int, int]]] = []
    for axis, (start, stop) in enumerate(zip(location.start, location.stop, strict=True)):
        width, groups = geometry.width(axis), geometry.resolved.groups[axis]
        if groups == 1:
            cuts.append([(slice(0, stop - start), 1, 0)])
            continue
        whole = range(-(-start // width), stop // width)  # the groups that are completely in the chunk
        inside = [whole.start * width, whole.stop * width] if whole else [-(-start // width) * width]
        borders = [min(border, stop) for border in (start, *inside, stop)]
        cuts.append(
            [
                (slice(low - start, high - start), max((high - low) // width, 1), min(low // width, groups - 1))
                for low, high in itertools.pairwise(borders)
                if low < high or start == stop
            ][: None if start < stop else 1]
        )
    for combination in itertools.product(*cuts):
        keys, numbers, first = zip(*combination, strict=True) if combination else ((), (), ())
        yield _Piece(keys, numbers, first)


@functools.lru_cache(1024)
def _settings(config: LayerConfig, groups: tuple[int, ...]) -> LayerConfig:
    first = 0 if config.batched else 1
    numbers = {axis + first: number for axis, number in enumerate(groups) if number > 1}
    return LayerConfig.make(**{**config.arguments(), "group_number": numbers or None})


def _layer(
    config: LayerConfig, groups: tuple[int, ...], scaling: Array | None = None, biases: Array | None = None
) -> gennorm.NormalizationLayer:
    """Return the layer for a piece; pieces share one without parameters, which prepares the calls of a shape once."""
    return _shared(config, groups) if scaling is None and biases is None else _made(config, groups, scaling, biases)


def _made(
    config: LayerConfig, groups: tuple[int, ...], scaling: Array | None = None, biases: Array | None = None
) -> gennorm.NormalizationLayer:
    own = replace(
        _settings(config, groups),
        scaling=None if scaling is None else "explicit",
        biases=None if biases is None else "explicit",
    )
    layer = gennorm.NormalizationLayer.__new__(gennorm.NormalizationLayer)
    layer.__setstate__({"config": own, "parameters": {"scaling": scaling, "biases": biases}, "moments": None})
    return layer


_shared = functools.lru_cache(256)(_made)


def _first(geometry: Geometry, piece: _Piece) -> tuple[int, ...]:
    return tuple(piece.first[axis] for axis in geometry.slots)


def _stop(part: Part) -> tuple[int, ...]:
    return tuple(first + size for first, size in zip(part.first, part.moments.shape, strict=True))


def _shape(geometry: Geometry, sizes: tuple[int, ...], groups: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the moments of a piece."""
    aggregation = geometry.resolved.aggregation
    return tuple(groups[axis] if axis in aggregation else sizes[axis] for axis in geometry.slots)


def _of_rows(rows: Array, center: bool) -> Moments:
    if center:
        return Moments.of_rows(rows)
    rows.setflags(write=False)
    return Moments.of_read_only(rows[0, ...], None, rows[2, ...], rows[3, ...], rows[4, ...])


def _within(part: Part, first: tuple[int, ...], stop: tuple[int, ...]) -> Moments:
    """Return the moments of a part among those of more slices, where the others count nothing."""
    rows = np.zeros((5, *(high - low for low, high in zip(first, stop, strict=True))))
    starts = [own - low for own, low in zip(part.first, first, strict=True)]
    key = tuple(slice(start, start + size) for start, size in zip(starts, part.moments.shape, strict=True))
    rows[(slice(None), *key)] = part.moments.rows()
    return _of_rows(rows, part.moments.mean is not None)


def _placed(geometry: Geometry, found: list[Part]) -> Part:
    """Return the moments of the pieces of a chunk, which have no slice in common."""
    first = tuple(map(min, *(part.first for part in found)))
    stop = tuple(map(max, *map(_stop, found)))
    rows = np.zeros((5, *(high - low for low, high in zip(first, stop, strict=True))))
    for part in found:
        starts = [own - low for own, low in zip(part.first, first, strict=True)]
        key = tuple(slice(start, start + size) for start, size in zip(starts, part.moments.shape, strict=True))
        rows[(slice(None), *key)] = part.moments.rows()
    return Part(first, _of_rows(rows, geometry.center))


def _dense(chunk: Any) -> Array:
    """Return a chunk in C or Fortran order, as it arrives in another process: sums in another order round otherwise."""
    x = np.asarray(chunk)
    return x if x.flags.c_contiguous or x.flags.f_contiguous else np.ascontiguousarray(x)


def _part_of(values: Any, location: Location, shape: tuple[int, ...]) -> Array | None:
    """Return the mask or the weights of a chunk, from its own or from those of the whole array."""
    if values is None:
        return None
    if isinstance(values, Whole):
        return np.broadcast_to(values.values, values.shape)[tuple(map(slice, location.start, location.stop))]
    return np.broadcast_to(np.asarray(values), shape)


def _refuse_nan(x: Array, location: Location, mask: Array | None, weights: Array | None) -> None:
    missing = np.isnan(x)
    for counted in (mask, weights):
        if counted is not None:
            missing &= counted > 0
    if missing.any():
        at = zip(np.argwhere(missing)[0].tolist(), location.start, strict=True)
        raise nan_found(WHAT, tuple(map(sum, at)))


# ------------------------------------------------------------------------------------------------------------- outputs


def moved(
    geometry: Geometry,
    location: Location,
    chunk: Any,
    found: Statistics,
    scaling: Array | None,
    biases: Array | None,
    everywhere: bool,
    inverse: bool,
) -> Array:
    """Return the output of a chunk, or the input of a chunk of outputs.

    Parameters
    ----------
    geometry, location, chunk
        As in `measured`.
    found : Statistics
    scaling, biases : ndarray or None
        Those of the whole array.
    everywhere : bool
        Whether mean and variance are those of the whole array, along kept levels too.
    inverse : bool

    Examples
    --------
    >>> from gennorm.spec.config import resolve_config
    >>> config = LayerConfig.make(1, (), 2, epsilon=0)
    >>> geometry = Geometry.of(config, resolve_config(config, (8,)), held=False)
    >>> found = Statistics(np.array([1.0, 5.0]), np.array([1.0, 4.0]))
    >>> moved(geometry, Location((2,), (7,)), np.arange(2.0, 7.0), found, None, None, True, False)
    array([ 1. ,  2. , -0.5,  0. ,  0.5])
    """
    x = _dense(chunk)
    out = np.empty_like(x, result_dtype(x.dtype))
    for piece in _pieces(geometry, location):
        if not out[piece.key].size:
            continue
        start = [low + (key.start or 0) for low, key in zip(location.start, piece.key, strict=True)]
        sizes = [key.stop - key.start for key in piece.key]
        key = []
        for axis in geometry.slots:
            if axis in geometry.resolved.aggregation:
                key.append(slice(piece.first[axis], piece.first[axis] + piece.groups[axis]))
            else:
                low = start[axis] if everywhere else piece.key[axis].start
                key.append(slice(low, low + sizes[axis]))
        single = [axis in geometry.resolved.aggregation and piece.groups[axis] == 1 for axis in geometry.slots]
        mean = None if found.mean is None else _cut(found.mean, key, single)
        variance = _cut(found.variance, key, single)
        along = tuple(slice(start[axis], start[axis] + sizes[axis]) for axis in geometry.resolved.scaling)
        gains, shifts = (None if one is None else np.asarray(one[along], order="C") for one in (scaling, biases))
        layer = _layer(replace(geometry.config, statistics="input"), piece.groups, gains, shifts)
        call: Callable[..., Any] = layer.inverse if inverse else layer.apply
        call(x[piece.key], (mean, variance), out=out[piece.key])
    return out


def _cut(values: Array, key: list[slice], single: list[bool]) -> Array:
    """Return the mean or the variance of a piece, without the axes of levels that are one group there.

    The values may broadcast along axes, or lack the first.
    """
    lacking = len(key) - values.ndim
    index: list[Any] = []
    for size, one, alone in zip(values.shape, key[lacking:], single[lacking:], strict=True):
        chosen = slice(None) if size == 1 else one
        index.append((chosen.start or 0) if alone else chosen)
    return np.asarray(values[tuple(index)])
