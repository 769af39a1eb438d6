"""Checks of arrays. They read shapes and dtypes only, so that they work on tracers too."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gennorm.errors import DtypeError, InputError
from gennorm.layer.arrays import dtype_name
from gennorm.layer.parameters import Parameter
from gennorm.masks import broadcast
from gennorm.spec.config import Resolved

__all__ = ["array_of", "has_open_sizes", "mask_of", "parameter_of", "weights_of"]

Array = Any


def array_of(value: Any, what: str) -> Array:
    """Return a value as an array of JAX.

    Raises
    ------
    InputError
        It is not an array of JAX or NumPy.
    DtypeError
        It has no real numbers or booleans.

    Examples
    --------
    >>> array_of(np.ones(2, np.float32), "the input")
    Array([1., 1.], dtype=float32)
    """
    if not isinstance(value, (jax.Array, np.ndarray, np.generic)) or isinstance(value, np.ma.MaskedArray):
        kind = f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
        msg = f"{what} is of type {kind}, and gennorm.jax takes arrays of JAX or NumPy\npass jnp.asarray(x)"
        raise InputError(msg, code="A040")
    if jnp.issubdtype(value.dtype, jax.dtypes.extended):
        msg = f"{what} has the dtype {value.dtype}\npass real numbers, such as jax.random.normal(key, shape)"
        raise DtypeError(msg, code="D030")
    dtype_name(value.dtype, what)
    return jnp.asarray(value)


def parameter_of(value: Any, name: str, resolved: Resolved) -> Array | None:
    """Return a parameter as an array of JAX, of the parameters' shape or with the batch axis in front of it.

    Raises
    ------
    ParameterError
        It has another shape.
    InputError, DtypeError
        As `array_of`.
    """
    if value is None:
        return None
    array = array_of(value, name)
    if not has_open_sizes(array.shape) and not has_open_sizes(resolved.shape):
        Parameter.checked(name, _stand_in(array.shape, np.float32), resolved)
    return array


def mask_of(mask: Any, shape: tuple[int, ...]) -> Array | None:
    """Return a mask as an array of booleans of the shape of its input.

    Raises
    ------
    InputError, DtypeError
        It is no array of booleans.
    ShapeError
        It does not broadcast to the input, or fits its first axes as well as its last.
    """
    if mask is None:
        return None
    if not isinstance(mask, (jax.Array, np.ndarray, np.bool)):
        msg = f"mask is of type {type(mask).__name__}\npass an array of booleans of JAX or NumPy; True counts"
        raise InputError(msg, code="A041")
    if mask.dtype != np.bool:
        msg = f"mask has the dtype {mask.dtype}\npass an array of booleans, such as mask != 0; True counts"
        raise DtypeError(msg, code="D031")
    return _broadcast(jnp.asarray(mask), shape, "mask")


def weights_of(weights: Any, shape: tuple[int, ...]) -> Array | None:
    """Return weights as an array of the shape of their input. Their values are not checked.

    Raises
    ------
    InputError, DtypeError, ShapeError
        As `mask_of`.
    """
    return None if weights is None else _broadcast(array_of(weights, "weights"), shape, "weights")


def has_open_sizes(shape: tuple[Any, ...]) -> bool:
    """Return whether a size is a symbol of `jax.export`, so that sizes cannot be compared.

    Examples
    --------
    >>> has_open_sizes((2, 3)), has_open_sizes(jax.export.symbolic_shape("batch, 3"))
    (False, True)
    """
    return not all(isinstance(size, int) for size in shape)


def _broadcast(values: Array, shape: tuple[int, ...], name: str) -> Array:
    if not has_open_sizes(values.shape) and not has_open_sizes(shape):
        broadcast(_stand_in(values.shape, values.dtype), shape, name)
    return jnp.broadcast_to(values, shape)


def _stand_in(shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """Return an array of NumPy of a shape that takes no memory: the checks of the core take such arrays."""
    return np.broadcast_to(np.zeros((), dtype), shape)
