"""Moments and scaling of sparse matrices, of which only the stored values are read."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.utils.sparsefuncs import inplace_column_scale

from gennorm.layer.statistics import held_shape
from gennorm.moments import Moments, two_sum
from gennorm.spec.config import Resolved

__all__ = ["measured", "scale"]

Array = npt.NDArray[Any]


def measured(x: Any, resolved: Resolved, weights: Array | None, *, center: bool) -> Moments:
    """Return the moments of a sparse matrix without its batch axis; NaN is left out.

    The moments of the stored values, in two passes, are merged with those of the zeros, which are known.

    Parameters
    ----------
    x : sparse matrix of shape (n, features)
    resolved : Resolved
        The config for an array of this shape.
    weights : ndarray of shape (n,), optional
    center : bool
        Whether there is a mean; moments of the method RMS otherwise.

    Examples
    --------
    >>> import scipy.sparse
    >>> from gennorm.spec.config import LayerConfig, resolve_config
    >>> resolved = resolve_config(LayerConfig.make(0, batched=True), (2, 3))
    >>> measured(scipy.sparse.csr_array([[0, 1, 4], [0, 0, 2]]), resolved, None, center=True)
    Moments(count=[2., 2., 2.], mean=[0. , 0.5, 3. ], m2=[0. , 0.5, 2. ])
    """
    columns = x.tocsc()
    if not columns.has_canonical_format:
        columns = columns.copy() if columns is x else columns
        columns.sum_duplicates()
    examples, features = columns.shape
    kept = features // _repeats(resolved)
    slices = np.repeat(np.arange(features) // _repeats(resolved), np.diff(columns.indptr))
    values = columns.data.astype(np.float64)
    weight = np.ones(examples) if weights is None else weights.astype(np.float64)
    own = weight[columns.indices]
    missing = np.isnan(values)

    def total(terms: Array) -> Array:
        return np.bincount(slices, terms, minlength=kept)

    counted, values = np.where(missing, 0.0, own), np.where(missing, 0.0, values)
    count = total(counted)
    zeros = np.full(kept, weight.sum() * _repeats(resolved)) - count - total(np.where(missing, own, 0.0))
    if weights is not None:  # a difference of sums has the rounding of the greater one
        stored = np.bincount(slices, minlength=kept) == examples * _repeats(resolved)
        zeros = np.where(stored, 0.0, np.maximum(zeros, 0.0))
    divisor = np.where(count == 0, 1.0, count)
    mean = total(counted * values) / divisor if center else np.zeros(kept)
    away = values - mean[slices]
    weighted = counted * away
    lost = total(weighted) / divisor if center else np.zeros(kept)
    m2 = np.maximum(total(weighted * away) - divisor * lost * lost, 0.0)
    mean, lost = two_sum(mean, lost)
    shape = held_shape(resolved)
    found = Moments(count, mean if center else None, m2) + Moments(zeros, np.zeros(kept) if center else None, 0 * zeros)
    members = (None if one is None else one.reshape(shape) for one in (found.count, found.mean, found.m2))
    return Moments(*members)  # type: ignore[arg-type]


def scale(x: Any, resolved: Resolved, divisor: Array, *, inverse: bool) -> Any:
    """Divide the columns of a sparse matrix by one divisor for each slice, in place; multiply them for the inverse.

    Examples
    --------
    >>> import scipy.sparse
    >>> from gennorm.spec.config import LayerConfig, resolve_config
    >>> resolved = resolve_config(LayerConfig.make("0;;1", group_number={1: 2}, batched=True), (1, 4))
    >>> scale(scipy.sparse.csr_array([[0.0, 1, 4, 8]]), resolved, np.array([2.0, 4.0]), inverse=False).toarray()
    array([[0. , 0.5, 1. , 2. ]])
    """
    by_column = np.repeat(divisor.ravel(), _repeats(resolved))
    zero = by_column == 0
    factor = by_column if inverse else np.where(zero, 0.0, 1.0 / np.where(zero, 1.0, by_column))
    inplace_column_scale(x, factor)
    return x


def _repeats(resolved: Resolved) -> int:
    """Return the number of neighbouring columns of one slice."""
    if 1 not in resolved.aggregation:
        return 1
    return resolved.shape[1] // resolved.groups[1]
