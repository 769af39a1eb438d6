"""The vector operations that the kernels are written in: sixteen neighbouring elements at a time.

Each function is the definition, in NumPy, of one operation on a vector of ``LANES`` elements. The kernels are ordinary
Python that calls these operations. Without Numba they run as they are; with it, ``compiler.jit`` replaces each
operation by machine code from ``compiler.lowering`` before it compiles a kernel.

A vector of fixed width that is summed by a fixed tree gives the same bits on every instruction set; a loop that a
compiler vectorises by itself does not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

LANES = 16  # sixteen float32 fill one AVX-512 register; a narrower machine splits the vector in two or four
COMPUTE = np.float32  # the type of the arithmetic; moments are always float64
WIDE = 64  # lanes of a column tile that are worked on at once: a block of 256 bytes, four whole cache lines

Array = npt.NDArray[Any]
Vector = npt.NDArray[np.floating]


def _computed(elements: Array) -> Vector:
    """Storage to arithmetic: float32 for everything it holds exactly, float64 for the rest."""
    wide = elements.dtype == np.float64 or (elements.dtype.kind in "iu" and elements.dtype.itemsize > 2)
    return elements.astype(np.float64 if wide else np.float32)


def load(array: Array, start: int) -> Vector:
    """Return the elements from ``start`` on, one a lane, in the type the arithmetic is done in."""
    return _computed(array[start : start + LANES])


def load_wide(array: Array, start: int) -> Vector:
    """Return ``WIDE`` elements from ``start`` on."""
    return _computed(array[start : start + WIDE])


def load_part(array: Array, start: int, count: int) -> Vector:
    """Return ``count`` elements from ``start`` on and zero in the other lanes; nothing beyond them is read."""
    elements = _computed(array[start : start + min(count, LANES)])
    return np.concatenate([elements, np.zeros(LANES - elements.size, elements.dtype)])


def store(array: Array, start: int, vector: Vector) -> None:
    """Write a whole vector, of either width, rounded to the array's type."""
    array[start : start + vector.size] = vector.astype(array.dtype)


def store_part(array: Array, start: int, count: int, vector: Vector) -> None:
    """Write the first ``count`` lanes; nothing beyond them is touched."""
    count = min(count, LANES)
    array[start : start + count] = vector[:count].astype(array.dtype)


def splat(value: Any) -> Vector:
    """Return the same number in every lane."""
    return np.full(LANES, value)


def splat_wide(value: Any) -> Vector:
    """Return the same number in every lane of a wide vector."""
    return np.full(WIDE, value)


def widen(vector: Vector) -> Vector:
    """Return the lanes as float64."""
    return vector.astype(np.float64)


def like(vector: Vector, number: Any) -> Vector:
    """Return the lanes in the type of a number, which is theirs or a wider one."""
    return vector.astype(np.asarray(number).dtype)


def muladd(one: Vector, two: Vector, three: Vector) -> Vector:
    """Return ``one * two + three``, rounded once where the machine has fused arithmetic."""
    return one * two + three


def narrow(vector: Vector) -> Vector:
    """Return float64 lanes in the type of the arithmetic."""
    return vector.astype(COMPUTE)


def root(value: Any) -> Any:
    """Return the square root, of a number or of each lane; below 0 it is NaN."""
    return np.sqrt(value)


def inverse(value: Any) -> Any:
    """Return one over a number or each lane, and 0 where that is 0."""
    return np.where(value == 0, 0.0, 1.0 / np.where(value == 0, 1.0, value))[()]  # of a number, a number


def larger(value: Any, least: Any) -> Any:
    """Return what is larger, in each lane; a NaN in the first stays."""
    return np.where(value < least, least, value)[()]


def exceeds(value: Any, limit: Any) -> Any:
    """Return 1 where the first is larger and 0 elsewhere, a NaN included."""
    return np.where(value > limit, 1.0, 0.0)[()]


def choose(flag: Vector, one: Vector, other: Vector) -> Vector:
    """Return the lanes of the first vector where the flag is not 0, of the second elsewhere."""
    return np.where(flag != 0, one, other)


def first_lanes(vector: Vector, count: int) -> Vector:
    """Return the vector with zero in the lanes from ``count`` on."""
    kept = vector.copy()
    kept[max(count, 0) :] = 0
    return kept


def total(vector: Vector) -> Any:
    """Return the sum of the lanes: halves added to halves, so that the order is the same on every machine."""
    while vector.size > 1:
        half = vector.size // 2
        vector = vector[:half] + vector[half:]
    return vector[0]


def misaligned(array: Array, start: int) -> int:
    """Return how many elements, fewer than a vector has, lie before the next place where vectors are aligned."""
    address = array.ctypes.data + start * array.itemsize
    return int(-address % min(64, LANES * array.itemsize)) // array.itemsize


def stream(array: Array, start: int, vector: Vector) -> None:
    """Write a whole vector, past the caches, to a place where vectors are aligned."""
    store(array, start, vector)


def even(array: Array, start: int, step: int) -> bool:
    """Return whether 16 bytes are aligned at ``start`` and any number of steps behind it."""
    address = array.ctypes.data + start * array.itemsize
    return bool((address | step * array.itemsize) % 16 == 0)


def stream_even(array: Array, start: int, vector: Vector) -> None:
    """Write a whole vector, past the caches and 16 bytes at a time, to a place that is even."""
    store(array, start, vector)


def fence() -> None:
    """Have everything that was streamed written before anything else is."""


def prefetch(array: Array, start: int) -> None:
    """Have the memory of an element brought into the caches; nothing is read."""
