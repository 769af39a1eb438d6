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
WIDE = 64  # lanes in a wide vector, for tiles of columns: 256 bytes of float32, four cache lines

Array = npt.NDArray[Any]
Vector = npt.NDArray[np.floating]


def _computed(elements: Array) -> Vector:
    """Convert stored elements for the arithmetic: to float32 where that is exact, to float64 otherwise."""
    wide = elements.dtype == np.float64 or (elements.dtype.kind in "iu" and elements.dtype.itemsize > 2)
    return elements.astype(np.float64 if wide else np.float32)


def load(array: Array, start: int) -> Vector:
    """Return the elements from ``start`` on, one in each lane, in the type of the arithmetic."""
    return _computed(array[start : start + LANES])


def load_wide(array: Array, start: int) -> Vector:
    """Return ``WIDE`` elements from ``start`` on."""
    return _computed(array[start : start + WIDE])


def load_part(array: Array, start: int, count: int) -> Vector:
    """Return ``count`` elements from ``start`` on and zero in the other lanes; no memory behind them is read."""
    elements = _computed(array[start : start + min(count, LANES)])
    return np.concatenate([elements, np.zeros(LANES - elements.size, elements.dtype)])


def store(array: Array, start: int, vector: Vector) -> None:
    """Write a whole vector, of either width, rounded to the array's type."""
    array[start : start + vector.size] = vector.astype(array.dtype)


def store_part(array: Array, start: int, count: int, vector: Vector) -> None:
    """Write the first ``count`` lanes; no memory behind them is written."""
    count = min(count, LANES)
    array[start : start + count] = vector[:count].astype(array.dtype)


def splat(value: Any) -> Vector:
    """Return the same number in every lane."""
    return np.full(LANES, value)


def splat_wide(value: Any) -> Vector:
    """Return the same number in every lane of a wide vector."""
    return np.full(WIDE, value)


def widen(vector: Vector) -> Vector:
    """Convert the lanes to float64."""
    return vector.astype(np.float64)


def like(vector: Vector, number: Any) -> Vector:
    """Convert the lanes to the type of ``number``, which is as wide as theirs or wider."""
    return vector.astype(np.asarray(number).dtype)


def muladd(one: Vector, two: Vector, three: Vector) -> Vector:
    """Return ``one * two + three``, rounded once where the machine has fused arithmetic."""
    return one * two + three


def narrow(vector: Vector) -> Vector:
    """Convert float64 lanes to the type of the arithmetic."""
    return vector.astype(COMPUTE)


def root(value: Any) -> Any:
    """Return the square root of a number or of each lane; that of a negative number is NaN."""
    return np.sqrt(value)


def inverse(value: Any) -> Any:
    """Return the reciprocal of a number or of each lane, and 0 for the reciprocal of 0."""
    return np.where(value == 0, 0.0, 1.0 / np.where(value == 0, 1.0, value))[()]  # [()]: a number gives a number


def larger(value: Any, least: Any) -> Any:
    """Return the larger one of two numbers or in each lane; NaN where ``value`` is NaN."""
    return np.where(value < least, least, value)[()]


def exceeds(value: Any, limit: Any) -> Any:
    """Return 1 where ``value > limit`` and 0 elsewhere, also for NaN."""
    return np.where(value > limit, 1.0, 0.0)[()]


def choose(flag: Vector, one: Vector, other: Vector) -> Vector:
    """Return the lanes of ``one`` where the flag is not 0, and those of ``other`` elsewhere."""
    return np.where(flag != 0, one, other)


def first_lanes(vector: Vector, count: int) -> Vector:
    """Return the vector with zero in the lanes from ``count`` on."""
    result = vector.copy()
    result[max(count, 0) :] = 0
    return result


def total(vector: Vector) -> Any:
    """Return the sum of the lanes. The upper half is added to the lower half: every machine adds in the same order."""
    while vector.size > 1:
        half = vector.size // 2
        vector = vector[:half] + vector[half:]
    return vector[0]


def to_alignment(array: Array, start: int) -> int:
    """Return how many elements there are from ``start`` to the next address at which a whole vector is aligned."""
    address = array.ctypes.data + start * array.itemsize
    return int(-address % min(64, LANES * array.itemsize)) // array.itemsize


def stream(array: Array, start: int, vector: Vector) -> None:
    """Write a whole vector with a non-temporal store, which bypasses the caches; the address must be aligned to it."""
    store(array, start, vector)


def is_aligned(array: Array, start: int, step: int) -> bool:
    """Return whether the addresses of ``start`` and of every ``step`` elements after it are multiples of 16."""
    address = array.ctypes.data + start * array.itemsize
    return bool((address | step * array.itemsize) % 16 == 0)


def stream_aligned(array: Array, start: int, vector: Vector) -> None:
    """Write a whole vector with non-temporal stores of 16 bytes; the address must be a multiple of 16."""
    store(array, start, vector)


def fence() -> None:
    """Complete all non-temporal stores before any later store."""


def prefetch(array: Array, start: int) -> None:
    """Ask the processor to load the cache line of an element."""
