"""Memory layouts of outputs, as torch's own layers choose them.

A kernel gives its output the strides of its input. Where torch gives it others, the input is copied into them first, as
torch does itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["RULES", "arranged", "restrided"]

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def _contiguous(x: Tensor) -> Tensor:
    return x if x.is_contiguous() else x.contiguous()


def _suggested(x: Tensor) -> Tensor:
    if x.is_contiguous():
        return x
    return _formatted(x, torch._prims_common.suggest_memory_format(x))


def _formatted(x: Tensor, memory_format: torch.memory_format) -> Tensor:
    x = x.contiguous(memory_format=memory_format)
    if memory_format is torch.contiguous_format:
        return x
    strides = torch._prims_common.make_channels_last_strides_for(x.shape)
    return x if x.stride() == strides else x.as_strided(x.shape, strides)  # an axis of size 1 may have any stride


def _batched(x: Tensor) -> Tensor:
    # Where axes of size 1 leave open what an input is, torch's batch norm takes it for channels last.
    last = CHANNELS_LAST.get(x.dim())
    if last is None or x.is_contiguous() or not x.is_contiguous(memory_format=last):
        return _suggested(x)
    return _formatted(x, last)


def _like(x: Tensor) -> Tensor:
    # Gaps and repeated elements are left out, as element-wise operators do.
    return x if x.is_contiguous() or torch.empty_like(x, device="meta").stride() == x.stride() else x.clone()


def _channels_inner(x: Tensor) -> Tensor:
    return x if x.dim() < 2 else x.movedim(1, -1).contiguous().movedim(-1, 1)


RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "like": _like,
    "contiguous": _contiguous,
    "suggested": _suggested,
    "suggested, or channels last": _batched,
    "channels inner": _channels_inner,
}


def arranged(x: Tensor, rule: str) -> Tensor:
    """Return a tensor with the strides that the output is to have.

    Parameters
    ----------
    x : Tensor
        The input.
    rule : str
        ``"like"``: those of the input without its gaps. ``"contiguous"``. ``"suggested"``: contiguous, or channels last
        where the strides of the input are in that order. ``"suggested, or channels last"``: channels last also where
        axes of size 1 leave that open. ``"channels inner"``: axis 1 is the innermost one.

    Returns
    -------
    Tensor
        The input itself where it has these strides.

    Examples
    --------
    >>> x = torch.ones(2, 3, 4).transpose(1, 2)
    >>> x.stride(), arranged(x, "contiguous").stride()
    ((12, 1, 4), (12, 3, 1))
    """
    return RULES[rule](x)


def restrided(y: Tensor, x: Tensor) -> Tensor:
    """Return an output with the strides of its input, also along axes of size 1.

    Examples
    --------
    >>> y = torch.ones(2, 1, 3)
    >>> y.stride(), restrided(y, y.as_strided((2, 1, 3), (3, 7, 1))).stride()
    ((3, 3, 1), (3, 7, 1))
    """
    return y if y.stride() == x.stride() else y.as_strided(x.shape, x.stride())
