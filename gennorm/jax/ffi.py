"""Handlers of XLA's foreign function interface that run the kernels of the engine in XLA's own memory.

A handler is a C function that XLA calls with a call frame: pointers to the buffers of arguments and results, and to a
text that says what to compute. `ctypes` makes it from a function of Python, which sees the buffers as arrays of NumPy
and lets the engine write the output into them. The kernels release the interpreter's lock and use the threads of the
engine. The input and the output are not copied. Offsets are those of `xla/ffi/api/c_api.h`. With a version of it that
was not checked there are no handlers.
"""

from __future__ import annotations

import ctypes
import functools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from gennorm.engine import CompilationError
from gennorm.extend import Computation
from gennorm.layer.arrays import dtype_named
from gennorm.layer.request import check_call, run
from gennorm.spec.config import LayerConfig

__all__ = ["BACKWARD", "CHECKED", "FORWARD", "KEPT", "api_version", "is_available", "key_of"]

Array = np.ndarray[Any, Any]

CHECKED = ((0, 3),)  # versions of the interface for which offsets and stages were checked
FORWARD, BACKWARD = "gennorm_forward", "gennorm_backward"
HANDLERS: list[Any] = []  # the C functions, which have to exist as long as the process
KEPT = 1.0  # marks what the backward pass needs as written by a kernel

# Offsets in bytes of the fields of XLA_FFI_CallFrame and of what it points to.
FRAME_EXTENSION, FRAME_API, FRAME_STAGE, FRAME_ARGUMENTS, FRAME_RESULTS, FRAME_ATTRIBUTES = 8, 16, 32, 72, 112, 160
EXTENSION_TYPE, EXTENSION_NEXT, EXTENSION_METADATA, METADATA_MAJOR, METADATA_MINOR = 8, 16, 24, 24, 28
BUFFER_DATA, API_ERROR_CREATE = 24, 48
METADATA, EXECUTE, INTERNAL = 1, 3, 13  # kinds of extension, stages and codes of errors


class _Error(ctypes.Structure):
    """XLA_FFI_Error_Create_Args."""

    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("extension_start", ctypes.c_void_p),
        ("message", ctypes.c_char_p),
        ("code", ctypes.c_int),
    ]


_Handler = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
_CreateError = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_Error))


class _Call(NamedTuple):
    """What a text says: what to compute, and the dtypes and shapes of the buffers."""

    computation: Computation
    arguments: tuple[tuple[Any, tuple[int, ...]], ...]
    results: tuple[tuple[Any, tuple[int, ...]], ...]
    has: tuple[bool, bool]


def key_of(
    config: LayerConfig,
    has: tuple[bool, bool],
    arguments: list[tuple[str, tuple[int, ...]]],
    results: list[tuple[str, tuple[int, ...]]],
) -> str:
    """Return the text for a handler: it says all, so that a stored executable works in another process."""
    return json.dumps([config.to_dict(), has, arguments, results])


@functools.lru_cache(maxsize=1024)
def _call_of(key: bytes) -> _Call:
    config, has, arguments, results = json.loads(key)

    def described(buffers: Any) -> Any:
        return tuple((dtype_named(name), tuple(shape)) for name, shape in buffers)

    computation = Computation(LayerConfig.from_dict(config))
    return _Call(computation, described(arguments), described(results), tuple(has))


# ---------------------------------------------------------------------------------------------------------- computing


def _forward(call: _Call, arguments: list[Array], results: list[Array]) -> None:
    x, *parameters = arguments
    y, kept, moments = results
    scaling, biases = _parameters(call, parameters)
    request = check_call(call.computation._state, x, scaling=scaling, biases=biases, out=y)
    rows = run(request, keep=True)
    assert rows is not None
    found = request.new.shaped(rows)
    numbers = kept.view(np.float64).reshape(-1)
    numbers[:-1] = found[:2].reshape(-1)
    numbers[-1] = KEPT
    moments[...] = found[:2]


def _backward(call: _Call, arguments: list[Array], results: list[Array]) -> None:
    kept, x, dy, *parameters = arguments
    scaling, biases = _parameters(call, parameters)
    computation = call.computation
    shape = computation.resolve(x.shape).moments_shape
    numbers = kept.view(np.float64).reshape(-1)
    if numbers[-1] == KEPT:
        found = numbers[:-1].reshape(2, *shape)
    else:  # the forward pass was computed in another way
        found = computation.forward(x, scaling, biases)[1][:2]
    state = computation._kept(x, found, scaling, biases, None, False)
    dx, *others = results
    try:
        sums = state.call.backward(state.x, dy, dx, state.rows, state.gains, through=True, biased=biases is not None)
    except CompilationError:
        gradients = computation.backward(x, dy, found, scaling, biases)  # by the definition
        dx[...], values = gradients.input, [gradients.scaling, gradients.biases]
    else:
        values = [one.gradient(added) for one, added in zip(state.parameters, sums, strict=True)]
    for result, value in zip(others, [one for one in values if one is not None], strict=True):
        result[...] = value


def _parameters(call: _Call, parameters: list[Array]) -> tuple[Array | None, Array | None]:
    rest = iter(parameters)
    return (next(rest) if call.has[0] else None), (next(rest) if call.has[1] else None)


# ----------------------------------------------------------------------------------------------------- the C interface


def _pointer(at: int) -> int:
    return ctypes.c_uint64.from_address(at).value


def _arrays(pointers: int, buffers: Any, writable: bool) -> list[Array]:
    """Return the buffers of a call frame as arrays."""
    arrays = []
    for index, (dtype, shape) in enumerate(buffers):
        data = _pointer(_pointer(pointers + 8 * index) + BUFFER_DATA)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        array: Array = np.ndarray(shape, dtype, (ctypes.c_char * size).from_address(data) if size else b"")
        array.flags.writeable = writable and size > 0
        arrays.append(array)
    return arrays


COMPUTE: dict[str, Callable[[_Call, list[Array], list[Array]], None]] = {"forward": _forward, "backward": _backward}


def _handler(step: str) -> Any:
    """Return the C function that XLA calls. It must exist as long as the process."""

    def handle(frame: int) -> int | None:
        try:
            extension = _pointer(frame + FRAME_EXTENSION)
            while extension:
                if ctypes.c_int.from_address(extension + EXTENSION_TYPE).value == METADATA:
                    metadata = _pointer(extension + EXTENSION_METADATA)
                    major, minor = CHECKED[-1]
                    ctypes.c_int.from_address(metadata + METADATA_MAJOR).value = major
                    ctypes.c_int.from_address(metadata + METADATA_MINOR).value = minor
                    return None
                extension = _pointer(extension + EXTENSION_NEXT)
            if ctypes.c_int.from_address(frame + FRAME_STAGE).value != EXECUTE:
                return None
            span = _pointer(_pointer(frame + FRAME_ATTRIBUTES))
            call = _call_of(ctypes.string_at(_pointer(span), _pointer(span + 8)))
            arguments = _arrays(_pointer(frame + FRAME_ARGUMENTS), call.arguments, False)
            results = _arrays(_pointer(frame + FRAME_RESULTS), call.results, True)
            with np.errstate(all="ignore"):
                COMPUTE[step](call, arguments, results)
        except BaseException as error:  # noqa: BLE001  C cannot catch it: XLA raises it as an error of JAX
            return _error(frame, f"{type(error).__name__}: {error}")
        return None

    return _Handler(handle)


def _error(frame: int, text: str) -> int | None:
    """Return an error of XLA with a text."""
    create = _CreateError(_pointer(_pointer(frame + FRAME_API) + API_ERROR_CREATE))
    arguments = _Error(ctypes.sizeof(_Error), None, text.encode(), INTERNAL)
    created: int | None = create(ctypes.byref(arguments))
    return created


# -------------------------------------------------------------------------------------------------------- registration


def api_version() -> tuple[int, int] | None:
    """Return the version of the interface that JAX was built with, from its header; None where it cannot be read."""
    try:
        text = (Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h").read_text(encoding="utf-8")
    except (AttributeError, OSError):
        return None
    found = [re.search(rf"#define XLA_FFI_API_{part} (\d+)", text) for part in ("MAJOR", "MINOR")]
    return None if None in found else tuple(int(one[1]) for one in found if one)  # type: ignore[return-value]


@functools.cache
def is_available() -> bool:
    """Return whether the handlers are registered; they are by the first call."""
    from gennorm.engine import fallback_reason

    if sys.byteorder != "little" or ctypes.sizeof(ctypes.c_void_p) != 8 or api_version() not in CHECKED:
        return False
    if fallback_reason() is not None:
        return False
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    if HANDLERS:
        return True
    for name, step in ((FORWARD, "forward"), (BACKWARD, "backward")):
        handler = _handler(step)
        HANDLERS.append(handler)
        capsule = new(ctypes.cast(handler, ctypes.c_void_p), None, None)
        jax.ffi.register_ffi_target(name, capsule, platform="cpu")
    return True
