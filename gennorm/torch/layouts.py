"""Memory layouts of outputs, as torch's own layers choose them.

A kernel gives its output the strides of its input. Where torch gives it others, the input is copied into them first, as
torch does itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["RULES", "arranged"]


def _contiguous(x: Tensor) -> Tensor:
    return x if x.is_contiguous() else x.contiguous()


def _suggested(x: Tensor) -> Tensor:
    if x.is_contiguous():
        return x
    return x.contiguous(memory_format=torch._prims_common.suggest_memory_format(x))


def _like(x: Tensor) -> Tensor:
    # Gaps and repeated elements are left out, as element-wise operators do.
    return x if x.is_contiguous() or torch.empty_like(x, device="meta").stride() == x.stride() else x.clone()


def _channels_inner(x: Tensor) -> Tensor:
    return x if x.dim() < 2 else x.movedim(1, -1).contiguous().movedim(-1, 1)


RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "like": _like,
    "contiguous": _contiguous,
    "suggested": _suggested,
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
        where the strides of the input are in that order. ``"channels inner"``: axis 1 is the innermost one.

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
