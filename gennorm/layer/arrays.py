"""Checks of the arrays that are passed to a layer: inputs, parameters, masks and outputs."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from gennorm.errors import DtypeError, InputError, OutputError, ParameterError, ShapeError, shown, suggest
from gennorm.layer.hints import list_advice
from gennorm.masks import broadcast_mask
from gennorm.plan import COMPUTED, ITEMSIZE

__all__ = [
    "dtype_given",
    "dtype_name",
    "dtype_named",
    "in_range",
    "like_output",
    "mask_for",
    "parameter_values",
    "real",
    "result_dtype",
    "shape_of",
    "writable",
]

Array = npt.NDArray[Any]

KNOWN: set[np.dtype[Any]] = set()  # dtypes that passed the check; NumPy takes a microsecond to name one


def dtype_named(name: str) -> np.dtype[Any]:
    """Return the dtype with a name, which may be bfloat16."""
    if name == "bfloat16":
        try:
            import ml_dtypes  # an extra, which defines bfloat16 for NumPy
        except ModuleNotFoundError:
            msg = "bfloat16 needs ml_dtypes, which is not installed\npip install 'gennorm[bfloat16]'"
            raise DtypeError(msg, code="D004") from None
        dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return dtype
    return np.dtype(name)


# ------------------------------------------------------------------------------------------------------------- inputs


def shape_of(value: Any) -> tuple[int, ...]:
    """Check a shape and return it as a tuple of ints."""
    try:
        shape = tuple(-1 if isinstance(size, (bool, np.bool_)) else operator.index(size) for size in value)
    except TypeError:
        shape = (-1,)
    if any(size < 0 for size in shape):
        msg = f"a shape is a tuple of sizes, not {value!r}\npass a shape such as (32, 256, 14, 14), or an array"
        raise ShapeError(msg, code="S020")
    return shape


def parameter_values(name: str, value: Any) -> Array:
    """Return the values of a parameter as an array of real numbers."""
    if type(value) is np.ndarray and value.dtype in KNOWN:
        return value
    if isinstance(value, np.ma.MaskedArray):
        msg = f"{name} is a masked array\nparameters have no missing values: pass an array"
        raise InputError(msg, code="A010")
    try:
        given = np.asarray(value)
    except ValueError:  # a ragged list
        given = np.array(None)
    if given.dtype.name not in ITEMSIZE:
        msg = f"{name} has the dtype {given.dtype}\nparameters are real numbers: pass an array of floats"
        raise DtypeError(msg, code="D010")
    return given


def in_range(name: str, given: Array, dtype: np.dtype[Any]) -> Array:
    """Convert a parameter to a dtype; refuse finite numbers that overflow in it."""
    with np.errstate(over="ignore"):
        array = np.asarray(given, dtype)
    beyond = np.isinf(array) & np.isfinite(given)
    if np.any(beyond):
        at = tuple(np.argwhere(beyond)[0].tolist())
        largest = float(np.nextafter(np.array(np.inf, dtype), np.array(0, dtype)))
        msg = f"{name} has {given[at]} at {at}, and the largest number of {dtype.name} is {largest:g}\n"
        msg += "write a smaller one, or make the layer with a wider dtype"
        raise ParameterError(msg, code="P014")
    return array


def dtype_given(dtype: Any) -> np.dtype[Any]:
    """Return the dtype for a name, a type or a dtype."""
    if isinstance(dtype, str) and dtype == "bfloat16":
        return dtype_named(dtype)
    try:
        found: np.dtype[Any] = np.dtype(dtype)
    except (TypeError, ValueError):
        msg = f"dtype cannot be {shown(dtype)}{suggest(dtype, ITEMSIZE)}\n"
        msg += "write float32, float64, float16, bfloat16, bool or an integer of up to 64 bits"
        raise DtypeError(msg, code="D003") from None
    return found


def dtype_name(dtype: np.dtype[Any], what: str = "the input") -> str:
    """Return the name of a dtype that the engine supports; refuse others."""
    if dtype.name in ITEMSIZE:
        return dtype.name
    instead = {"c": "normalize x.real and x.imag, or np.abs(x)", "O": "pass x.astype(float)"}.get(
        dtype.kind, "pass floats, integers of up to 64 bits or booleans"
    )
    msg = f"{what} has the dtype {dtype}, and only real numbers of up to 64 bits are normalized\n{instead}"
    raise DtypeError(msg, code="D001")


def real(x: Any, what: str) -> Array:
    """Return a plain array of real numbers in native byte order; refuse other values. `what` names it in errors."""
    if type(x) is not np.ndarray:
        if isinstance(x, np.ma.MaskedArray):
            msg = f"{what} is a masked array\npass its data and say what counts: mask=~x.mask"
            raise InputError(msg, code="A002")
        if not isinstance(x, np.ndarray):
            raise _not_an_array(x, what)
        x = np.asarray(x)
    array: Array = x
    if array.dtype in KNOWN:
        return array
    dtype_name(array.dtype, what)
    if not array.dtype.isnative:
        return array.astype(array.dtype.newbyteorder("="))
    KNOWN.add(array.dtype)
    return array


def _not_an_array(x: Any, what: str) -> InputError:
    kind = f"{type(x).__module__}.{type(x).__name__}".removeprefix("builtins.")
    if kind.startswith("torch."):
        msg = f"{what} is a torch tensor, and the layer takes NumPy arrays\n"
        msg += "gennorm.torch has the layer as a module; or pass x.detach().numpy(), which shares its memory"
    elif isinstance(x, (list, tuple)):
        msg = f"{what} is a {kind}, and the layer takes an array or a list of arrays\n{list_advice(x)}"
    else:
        msg = f"{what} is of type {kind}, and the layer takes NumPy arrays\npass np.asarray(x)"
    return InputError(msg, code="A001")


def mask_for(mask: Any, x: Array) -> Array:
    """Check a mask and broadcast it to the input."""
    return broadcast_mask(mask, x.shape)


def like_output(values: Any, what: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Check a gradient or a direction, which has the given shape, and convert it to the dtype."""
    given = real(values, what)
    if given.shape != shape:
        msg = f"{what} has the shape {given.shape}, and must have the shape {shape}\npass an array of that shape"
        raise ShapeError(msg, code="S022")
    return given if given.dtype == dtype else given.astype(dtype)


# ------------------------------------------------------------------------------------------------------------ outputs


def result_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of the output for a dtype of the input."""
    if dtype.kind in "fV":  # bfloat16 is of kind V
        return dtype
    return np.dtype(COMPUTED[dtype.name])


def writable(out: Any, x: Array, scaling: Array | None, biases: Array | None) -> Array:
    """Check the array `out` for the output of `x`, and return it as a plain array."""
    if not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray):
        msg = f"out is of type {type(out).__name__}\n"
        msg += f"pass a NumPy array of shape {x.shape} and dtype {result_dtype(x.dtype)}"
        raise OutputError(msg, code="O002")
    if out.shape != x.shape:
        msg = f"out has the shape {out.shape}, and the output {x.shape}\npass np.empty_like(x)"
        raise OutputError(msg, code="O003")
    if out.dtype != result_dtype(x.dtype):
        msg = f"out has the dtype {out.dtype}, and the output for {x.dtype} is {result_dtype(x.dtype)}\n"
        msg += f"pass np.empty(x.shape, {result_dtype(x.dtype).name!r})"
        raise OutputError(msg, code="O004")
    flags = out.flags
    if not flags.writeable:
        msg = "out is read-only\npass an array that can be written"
        raise OutputError(msg, code="O005")
    repeated = not flags.c_contiguous and out.size and 0 in out.strides
    if repeated and any(stride == 0 and size > 1 for stride, size in zip(out.strides, out.shape, strict=True)):
        msg = f"out is a broadcast view: several of its elements have the same address (strides {out.strides})\n"
        msg += "pass np.empty_like(x)"
        raise OutputError(msg, code="O006")
    owner = _owner(out)
    if out is not x:
        _require_apart(out, owner, x, "the input", same=True)
    if scaling is not None:
        _require_apart(out, owner, scaling, "scaling")
    if biases is not None:
        _require_apart(out, owner, biases, "biases")
    return out if type(out) is np.ndarray else np.asarray(out)


def _owner(array: Array) -> Array | None:
    """Return the array that owns the memory of an array; None if NumPy does not know of one."""
    base = array.base
    owner = array if base is None else base
    return owner if type(owner) is np.ndarray and owner.flags.owndata else None


def _require_apart(out: Array, owner: Array | None, array: Array, name: str, *, same: bool = False) -> None:
    """Refuse an output that overlaps an array. With `same`, exactly the same memory in the same order is allowed."""
    if owner is not None:
        other = _owner(array)  # the memory of two owners does not overlap; this is a third of the time of the next test
        if other is not None and other is not owner:
            return
    if not np.may_share_memory(out, array):
        return
    one, two = out.__array_interface__, array.__array_interface__
    if same and (one["data"], out.strides) == (two["data"], array.strides):
        return
    if _share(out, array):
        msg = f"out shares memory with {name}\npass x itself to normalize in place, or an array in other memory"
        raise OutputError(msg, code="O007")


def _share(one: Array, two: Array) -> bool:
    """Return whether two arrays overlap; True if the exact answer would take long."""
    try:
        return np.shares_memory(one, two, max_work=100_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True
