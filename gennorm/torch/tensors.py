"""Tensors and NumPy arrays over the same memory; which tensors the kernels take; checks of tensors."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, strided
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling
from torch.nn import Parameter

from gennorm.errors import InputError, TensorError
from gennorm.extend import SHARED, Using

__all__ = [
    "FLOATING",
    "HALVES",
    "array_of",
    "is_eager",
    "is_plain",
    "is_traced",
    "memory_of",
    "require_mask",
    "require_parameter",
    "require_tensor",
    "tensor_of",
    "threads_for",
]

Array = npt.NDArray[Any]

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
HALVES = (torch.bfloat16, torch.float16)
INTERFACES = {
    dtype: np.dtype(code).str  # as NumPy writes it in an array interface
    for dtype, code in ((torch.float32, "f4"), (torch.float64, "f8"), (torch.float16, "f2"), (torch.bfloat16, "u2"))
}
NOTHING = nullcontext()

_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack
_transforms = torch._C._are_functorch_transforms_active
_tracing_state = torch._C._get_tracing_state


def is_eager() -> bool:
    """Return whether torch runs operators at once: no transform, mode, tracer or compiler is active in this thread.

    Examples
    --------
    >>> is_eager(), torch.func.vmap(lambda x: x if is_eager() else 2 * x)(torch.ones(2))
    (True, tensor([2., 2.]))
    """
    return not (
        is_dynamo_compiling()
        or _dispatch_modes() > 0
        or _function_modes() > 0
        or _transforms()
        or forward_ad._current_level >= 0
        or _tracing_state() is not None
    )


def is_plain(tensor: Any) -> bool:
    """Return whether a tensor is a strided one in the memory of the CPU, and not of a subclass.

    Examples
    --------
    >>> is_plain(torch.ones(2)), is_plain(torch.ones(2, device="meta")), is_plain(2.0)
    (True, False, False)
    """
    kind = type(tensor)
    return (kind is Tensor or kind is Parameter) and tensor.is_cpu and tensor.layout is strided


def is_traced() -> bool:
    """Return whether `torch.jit.trace` is active; it warns of every comparison of sizes."""
    return not is_dynamo_compiling() and _tracing_state() is not None


def array_of(tensor: Tensor) -> Array:
    """Return a tensor as an array over the same memory, with any strides.

    Examples
    --------
    >>> tensor = torch.zeros(2, 3, dtype=torch.bfloat16).t()
    >>> array = array_of(tensor)
    >>> array[2, 1] = 5
    >>> array.dtype.name, array.strides, tensor[2, 1].item()
    ('bfloat16', (2, 6), 5.0)
    """
    if tensor.numel() >= SHARED and tensor.dtype in FLOATING:  # smaller arrays cost 3 us more this way
        return memory_of(tensor)
    if tensor.data_ptr() == 0 and tensor.numel() > 0:
        tensor = _with_memory(tensor)
    if tensor.dtype is torch.bfloat16:
        import ml_dtypes

        return tensor.detach().resolve_neg().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy(force=True)  # detached; copied only where its negative bit is set


class _Interface:
    """A place in memory, as NumPy reads it."""

    __slots__ = ("__array_interface__", "tensor")
    __array_interface__: dict[str, Any]
    tensor: Tensor


def memory_of(tensor: Tensor) -> Array:
    """Return an array over the memory of a tensor of floats, whose storage can still be resized.

    `Tensor.numpy` marks a storage: it cannot be resized any more. Parameters that are sharded (FSDP) are resized to 0
    after each use. The array keeps the storage, so another thread may replace the tensor; do not use the array after
    the storage was resized.

    Examples
    --------
    >>> tensor = torch.ones(2)
    >>> memory_of(tensor).tolist(), tensor.untyped_storage().resize_(0).nbytes()
    ([1.0, 1.0], 0)
    """
    if tensor.data_ptr() == 0 and tensor.numel() > 0:
        tensor = _with_memory(tensor)
    tensor = tensor.detach().resolve_neg()
    place, size = _Interface(), tensor.itemsize
    place.__array_interface__ = {
        "version": 3,
        "data": (tensor.data_ptr(), False),
        "shape": tuple(tensor.shape),
        "strides": tuple([size * step for step in tensor.stride()]),
        "typestr": INTERFACES[tensor.dtype],
    }
    place.tensor = tensor
    array: Array = np.asarray(place)
    if tensor.dtype is torch.bfloat16:
        import ml_dtypes

        return array.view(ml_dtypes.bfloat16)
    return array


def _with_memory(tensor: Tensor) -> Tensor:
    """Return the zeros that a tensor without memory stands for; refuse one whose storage was resized to 0."""
    if tensor._is_zerotensor():  # torch makes these for derivatives that are 0
        return tensor.detach().clone()
    msg = "a tensor has no memory: its storage has been resized to 0\n"
    msg += "call the model through the wrapper that shards its parameters"
    raise TensorError(msg, code="T006")


def tensor_of(array: Array) -> Tensor:
    """Return an array as a tensor over the same memory.

    Examples
    --------
    >>> tensor_of(np.ones(3, np.float32))
    tensor([1., 1., 1.])
    """
    if array.dtype.kind == "V":  # bfloat16; reading the name of a dtype takes longer than all of the rest
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def threads_for(x: Tensor) -> AbstractContextManager[None]:
    """Return a context in which kernels use torch's number of threads, where the tensor is large enough for several."""
    return Using(torch.get_num_threads()) if x.numel() >= SHARED else NOTHING


# --------------------------------------------------------------------------------------------------------------- checks


def require_tensor(value: Any, what: str) -> None:
    """Refuse a value that is not a dense tensor of floats."""
    if not isinstance(value, Tensor):
        kind = f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
        instead = "torch.from_numpy(x)" if isinstance(value, np.ndarray) else "torch.as_tensor(x)"
        if kind == "torch.fx.proxy.Proxy":
            instead = "the layer as a part of a model to torch.fx.symbolic_trace: torch.nn.Sequential(layer)"
        msg = f"{what} is of type {kind}, and the module takes tensors\npass {instead}"
        raise InputError(msg, code="A030")
    if value.layout != strided:
        msg = f"{what} has the layout {value.layout}, and the module takes dense tensors\npass x.to_dense()"
        raise TensorError(msg, code="T001")
    if value.dtype not in FLOATING:
        msg = f"{what} has the dtype {value.dtype}, and the module takes floats of 16, 32 or 64 bits\n"
        msg += "pass x.float()" if not value.dtype.is_complex else "pass torch.view_as_real(x), or x.abs()"
        raise TensorError(msg, code="T003")


def require_parameter(value: Tensor, name: str, x: Tensor) -> None:
    """Refuse a parameter of another device or dtype than the input, except float32 for an input of 16 bits."""
    instead = f"call module.to('{x.device}') or pass x.to('{value.device}')"
    if value.device.type == "meta":
        instead = f"give the model memory with model.to_empty(device='{x.device}'), and load its state dict"
    _require_device(value, name, x, instead)
    if value.dtype != x.dtype and not (value.dtype == torch.float32 and x.dtype in HALVES):
        msg = f"{name} has the dtype {value.dtype}, and the input {x.dtype}\n"
        msg += "they are of one dtype, or float32 beside an input of 16 bits: call module.to(x.dtype) or pass "
        msg += f"x.to({value.dtype})"
        raise TensorError(msg, code="T004")


def require_mask(mask: Any, x: Tensor) -> None:
    """Refuse a mask that is not a tensor of booleans on the device of the input."""
    if not isinstance(mask, Tensor):
        msg = f"mask is of type {type(mask).__name__}\npass a tensor of booleans; True counts"
        raise InputError(msg, code="A031")
    _require_device(mask, "mask", x, f"pass mask.to('{x.device}')")
    if mask.requires_grad or mask.dtype != torch.bool:
        has = "requires a gradient" if mask.requires_grad else f"has the dtype {mask.dtype}"
        msg = f"mask {has}\npass a tensor of booleans, such as mask != 0, which has no gradient; True counts"
        raise TensorError(msg, code="T005")


def _require_device(value: Tensor, name: str, x: Tensor, instead: str) -> None:
    if value.device != x.device:
        msg = f"{name} is on the device {value.device}, and the input on {x.device}\n{instead}"
        raise TensorError(msg, code="T002")
