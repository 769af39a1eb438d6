"""Tensors as arrays and back, over the same memory; and what is wrong with tensors that cannot be taken."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gennorm.errors import InputError, TensorError
from gennorm.moments import Moments

__all__ = [
    "Held",
    "array_of",
    "moments_of",
    "require_mask",
    "require_parameter",
    "require_tensor",
    "stacked",
    "tensor_of",
]

Array = npt.NDArray[Any]

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
HALVES = (torch.bfloat16, torch.float16)


def array_of(tensor: Tensor) -> Array:
    """The tensor as an array over the same memory, whatever its strides.

    Examples
    --------
    >>> tensor = torch.zeros(2, 3, dtype=torch.bfloat16).t()
    >>> array = array_of(tensor)
    >>> array[2, 1] = 5
    >>> array.dtype.name, array.strides, tensor[2, 1].item()
    ('bfloat16', (2, 6), 5.0)
    """
    if tensor.dtype is torch.bfloat16:
        import ml_dtypes

        return tensor.detach().resolve_neg().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy(force=True)  # without a gradient, and a copy only of what is of negative sign


def tensor_of(array: Array) -> Tensor:
    """The array as a tensor over the same memory.

    Examples
    --------
    >>> tensor_of(np.ones(3, np.float32))
    tensor([1., 1., 1.])
    """
    if array.dtype.kind == "V":  # bfloat16; its name takes longer to ask for than all of the rest
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def stacked(moments: Moments) -> Tensor:
    """Moments as one tensor of float64: count, mean and m2, one behind the other; 0 for a mean that is None.

    Examples
    --------
    >>> stacked(Moments([2, 3], [1.0, 5.0], [0.5, 0.0]))
    tensor([[2.0000, 3.0000],
            [1.0000, 5.0000],
            [0.5000, 0.0000]], dtype=torch.float64)
    """
    laid = np.empty((3, *moments.shape))
    laid[0], laid[1], laid[2] = moments.count, 0.0 if moments.mean is None else moments.mean, moments.m2
    return torch.from_numpy(laid)


class Held(NamedTuple):
    """A mean and a variance that are to be used as they are; no mean for the method RMS.

    Examples
    --------
    >>> Held(torch.tensor([1.0]), torch.tensor([4.0])).stacked().tolist()
    [[1.0], [1.0], [4.0]]
    """

    mean: Tensor | None
    variance: Tensor

    def stacked(self, *, unbiased: bool = False) -> Tensor:
        """Both as one tensor that lies as `stacked` does; the count is two where a layer divides by it minus one."""
        mean = torch.zeros_like(self.variance) if self.mean is None else self.mean
        count = torch.full_like(self.variance, 2 if unbiased else 1)
        return torch.stack([count, mean, self.variance]).detach().to(torch.float64)

    def arrays(self) -> tuple[Array | None, Array]:
        """Both as arrays over the same memory."""
        return None if self.mean is None else array_of(self.mean), array_of(self.variance)


def moments_of(tensor: Tensor, method: str) -> Moments:
    """The moments that `stacked` laid into a tensor.

    Examples
    --------
    >>> moments_of(stacked(Moments(2, None, 8.0)), "RMS")
    Moments(count=2., mean=None, m2=8.)
    """
    laid = array_of(tensor)
    mean = laid[1, ...] if method == "Standardize" else None
    return Moments.trusted(laid[0, ...], mean, laid[2, ...])


# ------------------------------------------------------------------------------------------------ what is wrong with it


def require_tensor(value: Any, what: str) -> Tensor:
    """Refuse what is no tensor of floats in the memory of this machine's processor."""
    if not isinstance(value, Tensor):
        kind = f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
        instead = "torch.from_numpy(x)" if isinstance(value, np.ndarray) else "torch.as_tensor(x)"
        msg = f"{what} is of type {kind}, and the module takes tensors\npass {instead}"
        raise InputError(msg, code="A030")
    _require_memory(value, what)
    if value.dtype not in FLOATING:
        msg = f"{what} has the dtype {value.dtype}, and the module takes floats of 16, 32 or 64 bits\n"
        msg += "pass x.float()" if not value.dtype.is_complex else "pass torch.view_as_real(x), or x.abs()"
        raise TensorError(msg, code="T003")
    return value


def _require_memory(value: Tensor, what: str) -> None:
    if value.layout != torch.strided:
        msg = f"{what} has the layout {value.layout}, and the module takes dense tensors\npass x.to_dense()"
        raise TensorError(msg, code="T001")
    if value.device.type != "cpu":
        msg = f"{what} is on the device {value.device}, and the kernels run on the CPU\n"
        if value.device.type == "meta":
            msg += "a meta tensor has no values: give the model memory with model.to_empty(device='cpu') and load them"
        else:
            msg += "pass x.cpu(), or keep torch's own layer for models on that device"
        raise TensorError(msg, code="T002")


def require_parameter(value: Tensor, name: str, x: Tensor) -> None:
    """Refuse parameters of another dtype than the input's, but for float32 beside halves: what torch's layers take."""
    _require_memory(value, name)
    if value.dtype != x.dtype and not (value.dtype == torch.float32 and x.dtype in HALVES):
        msg = f"{name} has the dtype {value.dtype}, and the input {x.dtype}\n"
        msg += "they are of one dtype, or float32 beside an input of 16 bits: call module.to(x.dtype) or pass "
        msg += f"x.to({value.dtype})"
        raise TensorError(msg, code="T004")


def require_mask(mask: Any) -> None:
    """Refuse a mask that is no tensor of booleans in the memory of this machine's processor."""
    if not isinstance(mask, Tensor):
        msg = f"mask is of type {type(mask).__name__}\npass a tensor of booleans; True counts"
        raise InputError(msg, code="A031")
    _require_memory(mask, "mask")
    if mask.requires_grad or mask.dtype != torch.bool:
        has = "requires a gradient" if mask.requires_grad else f"has the dtype {mask.dtype}"
        msg = f"mask {has}\npass a tensor of booleans, such as mask != 0, which has no gradient; True counts"
        raise TensorError(msg, code="T005")
