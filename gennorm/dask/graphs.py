"""The graphs: a task for each chunk, and a tree of tasks that merge the moments of chunks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
from dask.base import tokenize
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph

from gennorm.dask import parts
from gennorm.dask.parts import Geometry, Location, Statistics, Whole
from gennorm.errors import ShapeError
from gennorm.layer.arrays import result_dtype

__all__ = ["all_moments", "known", "output", "own_statistics"]

Array = npt.NDArray[Any]
Key = tuple[Any, ...]


def known(x: Any, what: str) -> Any:
    """Return an array of Dask whose chunks have known sizes.

    Raises
    ------
    ShapeError
        The sizes of chunks along an axis are not known.

    Examples
    --------
    >>> known(da.ones(3), "the input").shape
    (3,)
    """
    for axis, sizes in enumerate(x.chunks):
        if any(size != size for size in sizes):  # noqa: PLR0124 - a size that is not known is NaN
            msg = f"the sizes of the {len(sizes)} chunks of {what} along axis {axis} are not known\n"
            msg += "call x.compute_chunk_sizes(), or make the array with their sizes"
            raise ShapeError(msg, code="S140")
    return x


def locations(x: Any) -> dict[tuple[int, ...], Location]:
    """Return where each chunk of an array is, by its index.

    Examples
    --------
    >>> locations(da.ones(5, chunks=3))
    {(0,): Location(start=(0,), stop=(3,)), (1,): Location(start=(3,), stop=(5,))}
    """
    borders = [[0, *itertools.accumulate(sizes)] for sizes in x.chunks]
    return {
        index: Location(
            tuple(border[place] for border, place in zip(borders, index, strict=True)),
            tuple(border[place + 1] for border, place in zip(borders, index, strict=True)),
        )
        for index in np.ndindex(*x.numblocks)
    }


def all_moments(geometry: Geometry, x: Any, mask: Any = None, weights: Any = None, nan: str = "propagate") -> Delayed:
    """Return the moments of the whole array, to be computed.

    Parameters
    ----------
    geometry : Geometry
    x : dask.array.Array
    mask, weights : Whole or dask.array.Array, optional
        For an array of Dask, with the chunks of `x`.
    nan : {"propagate", "omit", "raise"}
    """
    name = f"gennorm-measure-{tokenize(geometry, x.name, mask, weights, nan)}"
    tasks, tops = _merging(name, geometry, x, mask, weights, nan)
    where = locations(x)
    tasks[name] = (parts.joined, (name, "geometry"), [*map(where.__getitem__, tops)], [*tops.values()])
    graph = HighLevelGraph.from_collections(name, tasks, dependencies=_collections([x, mask, weights]))
    return Delayed(name, graph, layer=name)


def own_statistics(
    name: str, geometry: Geometry, x: Any, mask: Any, unbiased: bool
) -> tuple[dict[Any, Any], dict[tuple[int, ...], Key]]:
    """Return the tasks of mean and variance, and the keys of the last ones, by the first chunk that has the slices."""
    tasks, tops = _merging(name, geometry, x, mask, None, "propagate")
    keys: dict[tuple[int, ...], Key] = {index: (name, "statistics", *index) for index in tops}
    for index, top in tops.items():
        tasks[keys[index]] = (parts.statistics, top, unbiased)
    return tasks, keys


def output(
    geometry: Geometry,
    x: Any,
    found: Statistics | None,
    scaling: Array | None,
    biases: Array | None,
    *,
    mask: Any = None,
    unbiased: bool = False,
    inverse: bool = False,
) -> Any:
    """Return the normalized array, or its inverse, with the chunks of `x`.

    Parameters
    ----------
    geometry : Geometry
    x : dask.array.Array
    found : Statistics or None
        Those for the whole array; its own if None.
    scaling, biases : ndarray or None
    mask : Whole or dask.array.Array, optional
    unbiased, inverse : bool
    """
    word = "inverse" if inverse else "normalize"
    name = f"gennorm-{word}-{tokenize(geometry, x.name, found, scaling, biases, mask, unbiased)}"
    shared = {key: (f"{name}-shared", key) for key in ("geometry", "scaling", "biases", "found")}
    tasks: dict[Any, Any] = dict(zip(shared.values(), (geometry, scaling, biases, found), strict=True))
    layers, needs, keys = {}, {name: {*x.__dask_layers__()}}, None
    if found is None:
        own = f"gennorm-statistics-{tokenize(geometry, x.name, mask, unbiased)}"
        layers[own], keys = own_statistics(own, geometry, x, mask, unbiased)
        needs[own] = {layer for one in _collections([x, mask]) for layer in one.__dask_layers__()}
        needs[name] |= {own}
    for index, location in locations(x).items():
        pair = shared["found"] if keys is None else keys[_without(geometry, index)]
        task = (shared["geometry"], location, (x.name, *index), pair, shared["scaling"], shared["biases"])
        tasks[(name, *index)] = (parts.moved, *task, found is not None, inverse)
    layers[name] = tasks
    graph = _with(layers, needs, _collections([x, mask] if found is None else [x]))
    dtype = result_dtype(x.dtype)
    return da.Array(graph, name, x.chunks, dtype=dtype, meta=np.empty((0,) * x.ndim, dtype))


def _merging(
    name: str, geometry: Geometry, x: Any, mask: Any, weights: Any, nan: str
) -> tuple[dict[Any, Any], dict[tuple[int, ...], Key]]:
    """Return the tasks that measure chunks and merge them, and the last one of each set of slices.

    The sets are named by the index of their first chunk.
    """
    tasks: dict[Any, Any] = {(name, "geometry"): geometry}
    others: list[Any] = []
    for label, values in (("mask", mask), ("weights", weights)):
        if isinstance(values, Whole):
            tasks[name, label] = values
        others.append(values)
    together: dict[tuple[int, ...], list[Key]] = {}
    for index, location in locations(x).items():
        keys = [
            None if values is None else (name, label) if isinstance(values, Whole) else (values.name, *index)
            for label, values in zip(("mask", "weights"), others, strict=True)
        ]
        tasks[name, "measure", *index] = (
            parts.measured, (name, "geometry"), location, (x.name, *index), *keys, nan
        )  # fmt: skip
        together.setdefault(_without(geometry, index), []).append((name, "measure", *index))
    tops = {}
    for index, leaves in together.items():
        numbers = itertools.count()
        tops[index] = _tree(tasks, leaves, ((name, "merge", *index, number) for number in numbers))
    return tasks, tops


def _without(geometry: Geometry, index: tuple[int, ...]) -> tuple[int, ...]:
    """Return the index of the first chunk that has the slices of a chunk."""
    return tuple(0 if geometry.reduced(axis) else place for axis, place in enumerate(index))


def _tree(tasks: dict[Any, Any], keys: list[Key], names: Iterator[Key]) -> Key:
    """Add the tasks that merge moments, and return the key of the last.

    The shape is that of a binary counter: the first half is the largest power of two. So the result has the bits of
    `adapt` over the same chunks one by one, and a chunk is part of few additions.
    """
    if len(keys) == 1:
        return keys[0]
    half = 1 << (len(keys) - 1).bit_length() - 1
    name = next(names)
    tasks[name] = (parts.merged, _tree(tasks, keys[:half], names), _tree(tasks, keys[half:], names))
    return name


def _with(layers: dict[str, Any], needs: dict[str, set[str]], collections: list[Any]) -> HighLevelGraph:
    """Return the graph of new layers on those of arrays."""
    layers, needs = dict(layers), dict(needs)
    for collection in collections:
        graph = collection.__dask_graph__()
        layers.update(graph.layers)
        needs.update(graph.dependencies)
    return HighLevelGraph(layers, needs)


def _collections(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, da.Array)]
