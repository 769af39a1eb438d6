"""Computes what pictures of arrays and moments show: histograms, means and deviations by slice, pixels, curves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gennorm.spec.config import Resolved

__all__ = ["Comparison", "Half", "Summary", "compare", "slice_of", "spread_out", "summarize"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

HISTOGRAMS = 6  # slices
BARS = 48  # slices whose mean and deviation are shown
BINS = 32
SMALLEST_PICTURE = 8  # rows and columns
LINES = 4  # curves


@dataclass(frozen=True, slots=True)
class Half:
    """What is shown of an array, before or after the layer.

    Attributes
    ----------
    edges : ndarray of float64
        Of the bins of all histograms.
    counts : ndarray of int64
        One row for each slice in `Comparison.histograms`, and a column for each bin.
    means, deviations : ndarray of float64
        Of the slices in `Comparison.slices`.
    pixels : ndarray of uint8, or None
        Rows, columns and one or three colours, if the first example is a picture.
    curves : ndarray of float64, or None
        Lines and positions, if the first example is a sequence.
    """

    edges: Floats
    counts: npt.NDArray[np.int64]
    means: Floats
    deviations: Floats
    pixels: npt.NDArray[np.uint8] | None
    curves: Floats | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is shown of an array before and after a layer.

    Attributes
    ----------
    slices, histograms : tuple of tuple of int
        The slices whose mean and deviation are shown, and those with a histogram: their indices in the moments.
    before, after : Half
    """

    slices: tuple[tuple[int, ...], ...]
    histograms: tuple[tuple[int, ...], ...]
    before: Half
    after: Half


def spread_out(shape: tuple[int, ...], number: int) -> tuple[tuple[int, ...], ...]:
    """Return the indices of all elements of a shape in C order, or of so many at equal distances.

    Examples
    --------
    >>> spread_out((2, 2), 9)
    ((0, 0), (0, 1), (1, 0), (1, 1))
    >>> spread_out((100,), 3)
    ((0,), (49,), (99,))
    """
    size = math.prod(shape)
    few = range(size) if size <= number else [int(place) for place in np.linspace(0, size - 1, number)]
    return tuple(tuple(int(place) for place in np.unravel_index(one, shape)) for one in few)


def slice_of(resolved: Resolved, index: tuple[int, ...]) -> tuple[int | slice, ...]:
    """Return the NumPy index of the elements of one slice, for its index in the moments.

    Examples
    --------
    >>> from gennorm.spec.config import LayerConfig, resolve_config
    >>> slice_of(resolve_config(LayerConfig.make("All", 1, {1: 2}, batched=True), (8, 6, 5)), (3, 1))
    (3, slice(3, 6, None), slice(None, None, None))
    """
    left = list(index)
    found: list[int | slice] = []
    for axis, (size, groups) in enumerate(zip(resolved.shape, resolved.groups, strict=True)):
        if groups > 1:
            length, group = size // groups, left.pop(0)
            found.append(slice(group * length, (group + 1) * length))
        else:
            found.append(slice(None) if axis in resolved.aggregation else left.pop(0))
    return tuple(found)


def compare(x: Array, y: Array, resolved: Resolved) -> Comparison:
    """Compute what is shown of an array before and after a layer.

    Parameters
    ----------
    x, y : ndarray
        Input and output, of the resolved shape.
    resolved : Resolved

    Returns
    -------
    Comparison

    Examples
    --------
    >>> from gennorm.spec.config import LayerConfig, resolve_config
    >>> x = np.array([[1.0, 3.0], [10.0, 30.0]])
    >>> found = compare(x, np.array([[-1.0, 1.0], [-1.0, 1.0]]), resolve_config(LayerConfig.make(), x.shape))
    >>> found.slices, found.before.means, found.before.deviations, found.after.means
    (((0,), (1,)), array([ 2., 20.]), array([ 1., 10.]), array([0., 0.]))
    """
    some, few = (spread_out(resolved.moments_shape, number) for number in (BARS, HISTOGRAMS))
    return Comparison(some, few, *(_half(array, resolved, some, few) for array in (x, y)))


def _half(
    array: Array, resolved: Resolved, some: tuple[tuple[int, ...], ...], few: tuple[tuple[int, ...], ...]
) -> Half:
    values = [np.asarray(array[slice_of(resolved, index)], np.float64).ravel() for index in few]
    finite = [one[np.isfinite(one)] for one in values]
    together = np.concatenate([*finite, np.zeros(0)])
    edges = np.histogram_bin_edges(together, BINS) if together.size else np.linspace(-1, 1, BINS + 1)
    counts = np.stack([np.histogram(one, edges)[0] for one in finite] or [np.zeros(BINS)]).astype(np.int64)
    means, deviations = np.empty(len(some)), np.empty(len(some))
    with np.errstate(all="ignore"):
        for place, index in enumerate(some):
            own = np.asarray(array[slice_of(resolved, index)], np.float64)
            means[place], deviations[place] = own.mean(), own.std()
    example = np.asarray(array[0] if resolved.batched else array, np.float64)
    pixels = _pixels(example)
    return Half(edges, counts, means, deviations, pixels, _curves(example) if pixels is None else None)


def _pixels(example: Floats) -> npt.NDArray[np.uint8] | None:
    """Return an example as pixels if it has the shape of a picture; None if not.

    Black and white are the 1st and the 99th percentile.
    """
    if example.ndim == 3 and example.shape[0] in {1, 3}:
        example = np.moveaxis(example, 0, -1)
    elif example.ndim == 2:
        example = example[..., None]
    if example.ndim != 3 or example.shape[-1] not in {1, 3} or min(example.shape[:2]) < SMALLEST_PICTURE:
        return None
    finite = example[np.isfinite(example)]
    low, high = np.percentile(finite, (1, 99)) if finite.size else (0.0, 1.0)
    with np.errstate(all="ignore"):
        grey = (example - low) / max(high - low, 1e-300) * 255
    return np.rint(np.clip(np.nan_to_num(grey, nan=0.0), 0, 255)).astype(np.uint8)


def _curves(example: Floats) -> Floats | None:
    """Return an example as a few lines if it is a sequence, of numbers or of few features; None if not."""
    if example.ndim == 1:
        return example[None]
    if example.ndim != 2:
        return None
    return (example if example.shape[0] <= example.shape[1] else example.T)[:LINES]


@dataclass(frozen=True, slots=True)
class Summary:
    """What is shown of moments.

    Attributes
    ----------
    slices : tuple of tuple of int
        Indices of the slices that are shown.
    means : ndarray of float64, or None
        None for moments of the RMS method.
    deviations : ndarray of float64
        Standard deviations; root mean squares for moments of the RMS method.
    counts : ndarray of float64
    """

    slices: tuple[tuple[int, ...], ...]
    means: Floats | None
    deviations: Floats
    counts: Floats


def summarize(count: Floats, mean: Floats | None, square: Floats) -> Summary:
    """Compute what is shown of moments.

    Parameters
    ----------
    count : ndarray of float64
    mean : ndarray of float64, or None
    square : ndarray of float64
        The variances, or the mean squares where there is no mean.

    Returns
    -------
    Summary

    Examples
    --------
    >>> summarize(np.array([8.0, 8.0]), np.array([1.0, 2.0]), np.array([4.0, 9.0])).deviations
    array([2., 3.])
    """
    some = spread_out(count.shape, BARS)
    chosen = [np.array([array[index] for index in some]) for array in (square, count)]
    means = None if mean is None else np.array([mean[index] for index in some])
    return Summary(some, means, np.sqrt(chosen[0]), chosen[1])
