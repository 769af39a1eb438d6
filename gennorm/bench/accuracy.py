"""Errors of the outputs of gennorm and of other libraries on the same data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, product
from typing import Any

import numpy as np

import gennorm as gn
from gennorm.bench.cases import Array
from gennorm.bench.peers import Jax, Numpy, Peer, Torch

__all__ = ["FORMULAS", "LENGTHS", "OFFSETS", "SCALES", "Error", "bound", "errors", "exactly", "ulps"]

OFFSETS = (0.0, 1.0, 1e2, 1e4, 1e6, 1e8)  # of the mean, in standard deviations
SCALES = (1e-30, 1e-10, 1.0, 1e10, 1e30)  # the standard deviation
LENGTHS = (1, 2, 8, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000)
ELEMENTS = 1_000_000  # of all slices of one length together; there are at most 64 slices
BLOCK = 1 << 16

DIGITS = {"float32": 24, "float64": 53}


@dataclass(frozen=True, slots=True)
class Error:
    """The largest error of one kind of data, in units in the last place.

    Attributes
    ----------
    dtype : str
    layout : {"rows", "columns"}
        Whether the elements of a slice are neighbours in memory.
    length : int
        Elements of a slice.
    offset, scale : float
        Mean, in standard deviations, and standard deviation of the distribution of the elements.
    far : float
        The largest distance of a slice's mean from zero, in its standard deviations.
    ulps : dict
        The largest error by the name of the library; None where the output is NaN.
    bound : float
        The error that the engine guarantees not to exceed.
    """

    dtype: str
    layout: str
    length: int
    offset: float
    scale: float
    far: float
    ulps: dict[str, float | None]
    bound: float


def errors(
    peers: Sequence[Peer],
    report: Callable[..., None],
    lengths: Sequence[int] = LENGTHS,
    dtypes: Sequence[str] = tuple(DIGITS),
) -> Iterator[Error]:
    """Measure slices of every length, near to zero and far from it, with very small and very large scales."""
    kinds = [*((offset, 1.0) for offset in OFFSETS), *product((0.0, 1e4), (scale for scale in SCALES if scale != 1))]
    combinations = [*product(dtypes, lengths, kinds)]
    for done, (dtype, length, (offset, scale)) in enumerate(combinations):
        report(done, len(combinations), f"{length:,} elements of {dtype} around {offset:g}")
        yield from _errors(peers, dtype, length, offset, scale)


def exactly(values: Array) -> tuple[float, Array]:
    """Mean and standardized elements of one slice: the mean to 106 bits, the elements in the widest floating dtype."""
    values = values.astype(np.float64)
    plain = values.tolist()
    total = math.fsum(plain)
    mean = (Fraction(total) + Fraction(math.fsum(chain(plain, (-total,))))) / len(plain)
    high = float(mean)
    deviations = values.astype(np.longdouble) - high - np.longdouble(float(mean - Fraction(high)))
    scale = max(float(np.abs(deviations).max()), 1e-300)
    deviations /= scale
    variance = np.mean(deviations * deviations)
    return high, deviations / np.sqrt(variance) if variance else deviations


def ulps(found: Array, right: Array, dtype: str) -> float | None:
    """The largest error in units in the last place of the right value, or of 1, the deviation, if that is larger.

    Examples
    --------
    >>> import numpy as np
    >>> ulps(np.array([1 + 2.0**-22, 2.0**-23]), np.array([1.0, 0.0]), "float32")
    2.0
    """
    axis = int(np.argmax(right.shape))
    pieces = right.size // BLOCK + 1  # whose temporary arrays stay in the cache
    worst = 0.0
    for y, z in zip(np.array_split(found, pieces, axis), np.array_split(right, pieces, axis), strict=True):
        unit = np.spacing(np.maximum(np.abs(z), 1).astype(np.float64)) * 2.0 ** (DIGITS["float64"] - DIGITS[dtype])
        off = np.abs(y - z).astype(np.float64) / unit
        largest = float(np.max(off, initial=0.0))
        worst = max(worst, largest if math.isfinite(largest) else math.inf)
    return worst if math.isfinite(worst) else None


def bound(length: int, far: float, dtype: str) -> float:
    """The guaranteed bound of the error, in the same units, for a mean that is `far` deviations from zero.

    docs/explanation/numerics.md derives it.
    """
    terms = min(length + 8, 2 * math.sqrt(min(length, 1 << 22)) + 300)  # that are added one after another
    m = terms * 2.0 ** (DIGITS[dtype] - 54)  # error of a sum in float64
    mean = far * 2.0 ** (DIGITS[dtype] - 53)
    return 10 + (2 * 512 + 33 if dtype == "float32" else 6.5) * m + mean


def _errors(peers: Sequence[Peer], dtype: str, length: int, offset: float, scale: float) -> Iterator[Error]:
    number = max(2, min(64, ELEMENTS // length))  # a single column would be a row
    drawn = np.random.default_rng(length).standard_normal((number, length))
    x = ((drawn + offset) * scale).astype(dtype)
    right, far = np.empty(x.shape, np.longdouble), 0.0
    for values, z in zip(x, right, strict=True):
        mean, z[:] = exactly(values)
        deviation = float(np.std(values.astype(np.float64) / scale)) * scale
        far = max(far, abs(mean) / deviation if deviation else 0.0)
    for layout, array, z in (("rows", x, right), ("columns", np.ascontiguousarray(x.T), right.T)):
        axis = 1 if layout == "rows" else 0
        found = {"gennorm": ulps(gn.normalize(array, axis, batched=True, epsilon=0), z, dtype)}
        for peer in peers:
            with np.errstate(all="ignore"):
                y = FORMULAS[peer.name](array, axis)
            found[peer.name] = None if y is None else ulps(y, z, dtype)
        yield Error(dtype, layout, length, offset, scale, far, found, bound(length, far, dtype))


def _torch(x: Array, axis: int) -> Array | None:
    """`layer_norm` of rows, `batch_norm` of columns."""
    import torch
    from torch.nn import functional

    if axis == 0 and len(x) == 1:
        return None  # batch norm needs two rows
    data = torch.from_numpy(x)
    with torch.inference_mode():
        if axis:
            found = functional.layer_norm(data, x.shape[1:], eps=0)
        else:
            found = functional.batch_norm(data, None, None, training=True, eps=1e-300)  # batch norm refuses 0
    y: Array = found.numpy()
    return y


def _jax(x: Array, axis: int) -> Array:
    """As in Flax: the variance from the mean square."""
    import jax
    import jax.numpy as jnp

    def standardized(x: Any) -> Any:
        mean = x.mean(axis, keepdims=True)
        variance = jnp.maximum(0.0, jnp.mean(x * x, axis, keepdims=True) - mean * mean)
        return (x - mean) * jax.lax.rsqrt(variance)

    return np.asarray(jax.jit(standardized)(x))


def _numpy(x: Array, axis: int) -> Array:
    y: Array = (x - x.mean(axis, keepdims=True)) / x.std(axis, keepdims=True)
    return y


FORMULAS: dict[str, Callable[[Array, int], Array | None]] = {
    Torch.name: _torch,
    Jax.name: _jax,
    Numpy.name: _numpy,
}
