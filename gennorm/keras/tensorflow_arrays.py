"""Tensors of TensorFlow as arrays of the Python array API standard, as far as `gennorm.definition` needs it.

TensorFlow's tensors have no array namespace, do not promote dtypes, and have sizes that are not known in a graph.
`Array` wraps a tensor and adds these three things; `Size` is a size that is known only when the graph runs.

>>> from gennorm.keras import tensorflow_arrays
>>> tensorflow_arrays.__name__
'gennorm.keras.tensorflow_arrays'
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import tensorflow as tf

__all__ = ["Array", "Size", "unwrapped", "wrapped"]

FLOATING = {"float16": tf.float16, "bfloat16": tf.bfloat16, "float32": tf.float32, "float64": tf.float64}
WIDTHS = (tf.bool, tf.float16, tf.bfloat16, tf.float32, tf.float64)  # each is promoted to those after it


class Size:
    """The size of an axis that is not known before a graph runs. It counts as positive where a program branches."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    def __mul__(self, other: Any) -> Size:
        return Size(self.tensor * (other.tensor if isinstance(other, Size) else other))

    __rmul__ = __mul__

    def __floordiv__(self, other: int) -> Size:
        return Size(self.tensor // other)


class Array:
    """A tensor with the operators, the shape and the namespace of an array."""

    __slots__ = ("tensor",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    @property
    def dtype(self) -> Any:
        """The dtype of the tensor."""
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[Any, ...]:
        """The sizes: integers, or `Size` where they are not known yet."""
        static = self.tensor.shape.as_list()
        if None not in static:
            return tuple(static)
        dynamic = tf.shape(self.tensor)
        return tuple(Size(dynamic[axis]) if size is None else size for axis, size in enumerate(static))

    def __array_namespace__(self, **_: Any) -> Any:
        return NAMESPACE

    def __getitem__(self, index: Any) -> Array:
        return Array(self.tensor[index])

    def __neg__(self) -> Array:
        return Array(-self.tensor)

    def __invert__(self) -> Array:
        return Array(tf.logical_not(self.tensor))

    def __and__(self, other: Array) -> Array:
        return Array(tf.logical_and(self.tensor, other.tensor))

    def __add__(self, other: Any) -> Array:
        return _combined(tf.add, self, other)

    def __radd__(self, other: Any) -> Array:
        return _combined(tf.add, other, self)

    def __sub__(self, other: Any) -> Array:
        return _combined(tf.subtract, self, other)

    def __rsub__(self, other: Any) -> Array:
        return _combined(tf.subtract, other, self)

    def __mul__(self, other: Any) -> Array:
        return _combined(tf.multiply, self, other)

    def __rmul__(self, other: Any) -> Array:
        return _combined(tf.multiply, other, self)

    def __truediv__(self, other: Any) -> Array:
        return _combined(tf.divide, self, other)

    def __rtruediv__(self, other: Any) -> Array:
        return _combined(tf.divide, other, self)

    def __eq__(self, other: object) -> Array:  # type: ignore[override]
        return _combined(tf.equal, self, other)

    def __ne__(self, other: object) -> Array:  # type: ignore[override]
        return _combined(tf.not_equal, self, other)

    def __gt__(self, other: Any) -> Array:
        return _combined(tf.greater, self, other)

    def __ge__(self, other: Any) -> Array:
        return _combined(tf.greater_equal, self, other)

    def __lt__(self, other: Any) -> Array:
        return _combined(tf.less, self, other)

    def __le__(self, other: Any) -> Array:
        return _combined(tf.less_equal, self, other)


def wrapped(value: Any) -> Any:
    """Return a tensor as an array; None stays None."""
    return None if value is None else Array(tf.convert_to_tensor(value))


def unwrapped(value: Any) -> Any:
    """Return the tensor of an array; None stays None."""
    return None if value is None else value.tensor


def _same(*values: Any) -> list[Any]:
    """Return tensors of one dtype: the widest of those of the arrays. Numbers take it too."""
    dtype = max((one.dtype for one in values if isinstance(one, Array)), key=WIDTHS.index)
    return [tf.cast(one.tensor, dtype) if isinstance(one, (Array, Size)) else tf.constant(one, dtype) for one in values]


def _combined(operation: Any, *values: Any) -> Array:
    return Array(operation(*_same(*values)))


def _reduced(operation: Any) -> Any:
    def reduce(x: Array, *, axis: Any = None, keepdims: bool = False, dtype: Any = None) -> Array:
        tensor = x.tensor if dtype is None else tf.cast(x.tensor, dtype)
        return Array(operation(tensor, axis=axis, keepdims=keepdims))

    return reduce


def _sizes(shape: Sequence[Any]) -> list[Any]:
    return [one.tensor if isinstance(one, Size) else one for one in shape]


def _squeeze(x: Array, *, axis: tuple[int, ...]) -> Array:
    return Array(tf.squeeze(x.tensor, axis=list(axis))) if axis else x  # tf.squeeze takes [] for every axis


def _where(condition: Array, first: Any, second: Any) -> Array:
    return Array(tf.where(condition.tensor, *_same(first, second)))


NAMESPACE = SimpleNamespace(
    **FLOATING,
    __array_namespace_info__=lambda: SimpleNamespace(dtypes=lambda **_: FLOATING),
    astype=lambda x, dtype, **_: Array(tf.cast(x.tensor, dtype)),
    broadcast_to=lambda x, shape: Array(tf.broadcast_to(x.tensor, _sizes(shape))),
    isfinite=lambda x: Array(tf.math.is_finite(x.tensor)),
    max=_reduced(tf.reduce_max),
    maximum=lambda x, y: _combined(tf.maximum, x, y),
    min=_reduced(tf.reduce_min),
    minimum=lambda x, y: _combined(tf.minimum, x, y),
    ones_like=lambda x: Array(tf.ones_like(x.tensor)),
    permute_dims=lambda x, axes: Array(tf.transpose(x.tensor, axes)),
    reshape=lambda x, shape: Array(tf.reshape(x.tensor, _sizes(shape))),
    sqrt=lambda x: Array(tf.sqrt(x.tensor)),
    squeeze=_squeeze,
    sum=_reduced(tf.reduce_sum),
    where=_where,
    zeros_like=lambda x: Array(tf.zeros_like(x.tensor)),
)
