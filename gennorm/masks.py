"""Checks of masks and weights, and their broadcasting to an array."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gennorm.errors import DtypeError, InputError, ShapeError

__all__ = ["broadcast", "broadcast_mask"]


def broadcast_mask(mask: object, shape: tuple[int, ...], of: str = "an input") -> NDArray[np.bool]:
    """Check a mask and broadcast it to the shape of its array.

    Parameters
    ----------
    mask : ndarray of bool
        True elements count.
    shape : tuple of int
        Shape of the array.
    of : str
        Name of the array in errors.

    Returns
    -------
    ndarray of bool
        A view of this shape.

    Raises
    ------
    InputError, DtypeError
        The mask is not an ndarray of bool.
    ShapeError
        As `broadcast`.

    Examples
    --------
    >>> broadcast_mask(np.array([True, False]), (3, 2)).sum()
    np.int64(3)
    """
    if not isinstance(mask, np.ndarray) or isinstance(mask, np.ma.MaskedArray):
        msg = f"mask is of type {type(mask).__name__}\npass an array of booleans; True counts"
        raise InputError(msg, code="A003")
    if mask.dtype != np.bool_:
        msg = f"mask has the dtype {mask.dtype}\npass an array of booleans, such as mask != 0; True counts"
        raise DtypeError(msg, code="D002")
    return broadcast(mask, shape, "mask", of)


def broadcast(values: NDArray[Any], shape: tuple[int, ...], name: str, of: str = "an input") -> NDArray[Any]:
    """Broadcast values to a shape as NumPy does, and refuse ambiguous shapes.

    The axes of the values are the last axes of the array. Values with fewer axes whose shape also fits the first axes
    are refused: values of shape ``(N,)`` for an array of shape ``(N, N)`` may belong to either axis.

    Parameters
    ----------
    values : ndarray
    shape : tuple of int
        Shape of the array.
    name, of : str
        Names of the values and of the array in errors.

    Returns
    -------
    ndarray
        A view of this shape.

    Raises
    ------
    ShapeError
        The values do not broadcast to the array, or fit its first axes as well as its last.

    Examples
    --------
    >>> broadcast(np.array([1, 2]), (3, 2), "weights").tolist()
    [[1, 2], [1, 2], [1, 2]]
    """
    if values.shape == shape:
        return values
    rank, missing = values.ndim, len(shape) - values.ndim
    do, fit, its = ("do", "fit", "their") if name.endswith("s") else ("does", "fits", "its")
    if missing > 0 and values.size > 1 and _fits(values.shape, shape[:rank]) and _fits(values.shape, shape[missing:]):
        msg = f"{name} of shape {values.shape} {fit} the first axes and the last axes of {of} of shape {shape}\n"
        msg += f"write {_spelled(name, 0, rank, missing)} for the first axes, "
        msg += f"or {_spelled(name, missing, rank, missing)} for the last"
        raise ShapeError(msg, code="S031")
    try:
        return np.broadcast_to(values, shape)
    except ValueError:
        msg = f"{name} of shape {values.shape} {do} not broadcast to {of} of shape {shape}\n"
        msg += f"{its} axes are the last of the input's, each of the same size or 1"
        place = next((at for at in range(missing) if _fits(values.shape, shape[at : at + rank])), None)
        if place is not None:
            msg += f"; write {_spelled(name, place, rank, missing)}"
        raise ShapeError(msg, code="S021") from None


def _spelled(name: str, place: int, rank: int, missing: int) -> str:
    """Return the index that adds the missing axes to values, so that their axes start at a place."""
    return f"{name}[{', '.join(['None'] * place + [':'] * rank + ['None'] * (missing - place))}]"


def _fits(shape: tuple[int, ...], axes: tuple[int, ...]) -> bool:
    return all(size in {1, axis} for size, axis in zip(shape, axes, strict=True))
