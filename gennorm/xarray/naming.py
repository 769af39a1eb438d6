"""Which dimensions of an array a level spec and a label mean."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from gennorm.errors import InputError, ParameterError, ShapeError, shown, suggest
from gennorm.spec import levels, names

__all__ = ["Labels", "dimensions", "labels_of", "quoted"]


class Labels(NamedTuple):
    """The labels of the positions along a dimension.

    Attributes
    ----------
    dim : hashable
        The dimension that has the labels.
    name : hashable
        The name of the labels, which is the dimension of moments by label.
    values : ndarray
        The label of each position.
    """

    dim: Hashable
    name: Hashable
    values: Any


def quoted(words: Sequence[Hashable]) -> str:
    """Return dimension names for errors.

    Examples
    --------
    >>> quoted(("time", "lat"))
    '"time", "lat"'
    """
    return ", ".join(f'"{word}"' for word in words) or "none"


def dimensions(spec: Any, x: xr.DataArray, known: Sequence[Hashable]) -> tuple[Hashable, ...]:
    """Return the dimensions of an array that a level spec selects.

    Parameters
    ----------
    spec : str or sequence of str
        Names of dimensions, or any level spec: the dimensions are the levels of one example.
    x : DataArray
    known : sequence of hashable
        The dimensions of the data set, of which the array may lack some.

    Examples
    --------
    >>> x = xr.DataArray(np.zeros((2, 3, 4)), dims=("time", "lat", "lon"))
    >>> dimensions("time", x, x.dims), dimensions("lat;;lon", x, x.dims), dimensions(["lon", "time"], x, x.dims)
    (('time',), ('lat', 'lon'), ('lon', 'time'))
    """
    items = [spec] if isinstance(spec, str) else spec
    if isinstance(items, Sequence) and items and all(isinstance(item, str) for item in items):
        absent = [item for item in items if item not in x.dims]
        if len({*items}) == len(items) and all(item in known for item in items):
            return tuple(item for item in items if item in x.dims)
        if absent and all(names.is_name(item) and item not in known for item in absent):
            msg = f'unknown dimension "{absent[0]}" in aggregation_levels{suggest(absent[0], map(str, known))}\n'
            msg += f"the dimensions are {quoted(known)}"
            raise ShapeError(msg, code="X010")
    named = names.read([str(dim) for dim in x.dims])
    batched = named.batch is not None
    found = levels.resolve(
        levels.parse(spec, names=named), x.ndim - batched, batched=batched, argument=levels.AGGREGATION, names=named
    )
    return tuple(x.dims[level - (not batched)] for level in found)


def labels_of(by: Any, x: xr.DataArray | xr.Dataset) -> Labels:
    """Return the labels of an array.

    Parameters
    ----------
    by : str or DataArray
        A coordinate of `x`, a part of its dates (``"time.month"``), or an array of labels with one dimension.
    x : DataArray or Dataset

    Examples
    --------
    >>> x = xr.DataArray([1.0, 2.0], dims="time", coords={"season": ("time", ["dry", "wet"])})
    >>> labels_of("season", x).values.tolist()
    ['dry', 'wet']
    """
    if isinstance(by, str):
        try:
            labels = x[by]
        except (KeyError, AttributeError, ValueError):
            msg = f'there is no coordinate "{by}" for the labels\n'
            msg += f'write a coordinate, {quoted([*x.coords])}, or a part of dates, such as "time.month"'
            raise ParameterError(msg, code="X011") from None
    elif isinstance(by, xr.DataArray):
        labels = by
    else:
        msg = f'by cannot be {shown(by)}\nwrite a coordinate, such as "time.month", or pass a DataArray of labels'
        raise InputError(msg, code="X012")
    if labels.ndim != 1 or labels.dims[0] not in x.dims or labels.sizes[labels.dims[0]] != x.sizes[labels.dims[0]]:
        msg = f"the labels have the sizes {dict(labels.sizes)}, and the array {dict(x.sizes)}\n"
        msg += "pass one label for each position along one dimension of the array"
        raise ShapeError(msg, code="X013")
    name = labels.name if labels.name is not None and labels.name not in x.dims else "label"
    return Labels(labels.dims[0], name, np.asarray(labels.values))
