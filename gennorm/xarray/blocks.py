"""The functions of NumPy arrays that xarray calls, once for an array in memory, or for each block of a Dask array."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from gennorm.layer import NormalizationLayer
from gennorm.moments import Moments

__all__ = ["MOMENTS", "inverted", "measured", "normalized"]

Array = npt.NDArray[Any]

MOMENTS = {"Standardize": ("count", "mean", "variance"), "RMS": ("count", "mean_square")}


def measured(
    x: Array, *weights: Array, aggregated: int, weighted: tuple[int, ...], codes: Array | None, **how: str
) -> Array:
    """Return the moments over the last axes of an array, in a new last axis.

    Parameters
    ----------
    x : ndarray
        The kept axes, and the aggregated ones behind them.
    weights : ndarray
        None, or one array: the kept axes or fewer of them, and those of the aggregated axes that it has.
    aggregated : int
        Number of aggregated axes.
    weighted : tuple of int
        The aggregated axes that the weights have, counted from the first aggregated one.
    codes : ndarray of int, optional
        The label of each position on the first aggregated axis; the result then has an axis for the labels.
    **how
        `nan` and `method`.
    """
    kept = x.ndim - aggregated
    x = np.moveaxis(x, range(kept, x.ndim), range(aggregated))  # `adapt` reads along the first axis
    weight = None
    if weights:
        given = weights[0]
        own = given.ndim - len(weighted)
        sizes = [1] * aggregated
        for place, axis in enumerate(weighted):
            sizes[axis] = given.shape[own + place]
        given = given.reshape(*[1] * (kept - own), *given.shape[:own], *sizes)
        weight = np.moveaxis(given, range(kept, given.ndim), range(aggregated))
    if codes is None:
        return _moments(x, weight, aggregated, **how)
    found = []
    for code in range(codes.max() + 1):
        places = np.flatnonzero(codes == code)
        part = weight[places] if weight is not None and weight.shape[0] > 1 else weight
        found.append(_moments(x[places], part, aggregated, **how))
    return np.stack(found, axis=-2)


def _moments(x: Array, weights: Array | None, aggregated: int, *, nan: str, method: str) -> Array:
    shape = x.shape[aggregated:]
    if nan == "omit" and (np.isnan(x).all() if x.dtype.kind == "f" else x.size == 0):
        found = [np.zeros(shape), *[np.full(shape, np.nan)] * (len(MOMENTS[method]) - 1)]
        return np.stack(found, axis=-1)
    layer = NormalizationLayer(
        [*range(aggregated)], method=method, scaling=None, biases=None, batched=True, statistics="dataset"
    )
    with np.errstate(all="ignore"):
        moments = layer.adapt(x, weights=weights, nan=nan, progress=False).moments
    assert moments is not None
    spread = moments.variance() if moments.mean is not None else moments.mean_square()
    values = [spread] if moments.mean is None else [moments.mean, spread]
    counted = moments.count > 0
    return np.stack([moments.count, *(np.where(counted, value, np.nan) for value in values)], axis=-1)


def normalized(x: Array, moments: Array, **settings: Any) -> Array:
    """Return the array normalized by moments that broadcast to it, in the last axis of `moments`."""
    return _by_moments(x, moments, "apply", **settings)


def inverted(x: Array, moments: Array, **settings: Any) -> Array:
    """Return the array that `normalized` normalizes to this one."""
    return _by_moments(x, moments, "inverse", **settings)


def _by_moments(x: Array, moments: Array, how: str, *, codes: Array | None, **settings: Any) -> Array:
    if codes is None:
        return _one(x, moments, how, settings)
    # The labelled axis is the last of x, and the last but one of the moments has the labels.
    x = np.moveaxis(x, -1, 0)
    y = None
    for code in np.unique(codes):
        places = np.flatnonzero(codes == code)
        part = _one(x[places], moments[..., code, :], how, settings)
        if y is None:
            y = np.empty_like(x, part.dtype)
        y[places] = part
    return np.moveaxis(x if y is None else y, 0, -1)


def _one(x: Array, moments: Array, how: str, settings: dict[str, Any]) -> Array:
    missing = x.ndim + 1 - moments.ndim
    moments = moments.reshape(*[1] * missing, *moments.shape)
    over = [axis for axis in range(x.ndim) if moments.shape[axis] == 1]
    whole = x
    if not over:  # every element has its own moments
        whole, moments, over = x[..., None], moments[..., None, :], [x.ndim]
    count, *mean, spread = np.moveaxis(moments.squeeze(tuple(over)), -1, 0)
    layer = NormalizationLayer(
        [axis + 1 for axis in over],
        method="Standardize" if mean else "RMS",
        scaling=None,
        biases=None,
        batched=False,
        **settings,
    )
    known = count > 0
    held = Moments.from_variance(
        np.where(known, mean[0], 0.0) if mean else None, np.where(known, spread, 1.0), np.where(known, count, 1.0)
    )
    y: Array = getattr(layer, how)(whole, held).reshape(x.shape)
    if not known.all():
        shape = [1 if axis in over else size for axis, size in enumerate(whole.shape)]
        unknown = np.broadcast_to(~known.reshape(shape), whole.shape).reshape(x.shape)
        np.copyto(y, math.nan, where=unknown)
    return y
