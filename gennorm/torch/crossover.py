"""Which calls torch's own operators compute faster than kernels: those on few elements.

A call of a kernel goes through Python, which takes as long as torch needs for some thousands of elements. A drop-in
layer therefore calls torch's own operator below a number of elements, the crossover. `set_batch_invariant` switches
this off: the digits of an example then do not depend on how many examples are in its batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, get_num_threads, is_grad_enabled, strided
from torch.compiler import is_dynamo_compiling

from gennorm.torch.tensors import HALVES, is_eager

__all__ = ["Crossover", "computed", "get_batch_invariant", "is_faster_in_torch", "set_batch_invariant"]


class Crossover(NamedTuple):
    """Elements of an input of 32 or 64 bits from which kernels are faster than an operator of torch.

    Attributes
    ----------
    forward : int
        Where no gradient is needed, with one thread.
    both : int
        Forward and backward together, with one thread.
    forward_shared, both_shared : int
        The same with several threads.
    """

    forward: int
    both: int
    forward_shared: int
    both_shared: int


# Kernels take as long for an element of 16 bits as for one of 32, torch's operators half as long.
HALF = 4
_batch_invariant = False


def get_batch_invariant() -> bool:
    """Return whether the drop-in layers use kernels for inputs of all sizes.

    Returns
    -------
    bool
        What `set_batch_invariant` was called with, False before the first call.

    Examples
    --------
    >>> import gennorm.torch
    >>> gennorm.torch.get_batch_invariant()
    False
    """
    return _batch_invariant


def set_batch_invariant(enabled: bool) -> None:
    """Let the drop-in layers use kernels for inputs of all sizes, or torch's operators for small inputs.

    With kernels, the bits of a normalized example do not depend on the other examples in the batch, unless it is
    normalized together with them. The errors then have the bounds of the kernels for small inputs too. Torch's
    operators are faster for small inputs, by up to 5 times.

    Parameters
    ----------
    enabled : bool
        True for kernels. The setting applies to all drop-in layers of the process, and to layers that
        `gennorm.torch.accelerate` has replaced. `gennorm.torch.NormalizationLayer` always uses kernels.

    Examples
    --------
    >>> import gennorm.torch
    >>> gennorm.torch.set_batch_invariant(True)
    >>> gennorm.torch.get_batch_invariant()
    True
    >>> gennorm.torch.set_batch_invariant(False)
    """
    global _batch_invariant  # noqa: PLW0603
    _batch_invariant = bool(enabled)


def is_faster_in_torch(x: Tensor, weight: Tensor | None, crossover: Crossover, last: Crossover | None = None) -> bool:
    """Return whether torch's own operator computes a call faster than a kernel. The decision takes 0.5 µs.

    Parameters
    ----------
    x : Tensor
        The input.
    weight : Tensor or None
        The scaling.
    crossover : Crossover
    last : Crossover, optional
        That of inputs that are not contiguous, such as those with channels last.

    Examples
    --------
    >>> import torch
    >>> [is_faster_in_torch(torch.ones(size), None, Crossover(9, 0, 9, 0)) for size in (8, 9)]
    [True, False]
    """
    # A size is not read while torch compiles or traces: the model would then be limited to inputs of this size.
    if is_dynamo_compiling() or _batch_invariant or type(x) is not Tensor or not is_eager():
        return False
    if last is not None and not x.is_contiguous():
        crossover = last
    derived = is_grad_enabled() and (x.requires_grad or (weight is not None and weight.requires_grad))
    limit = crossover[derived + 2 * (get_num_threads() > 1)]
    if x.dtype in HALVES:
        limit *= HALF
    return x.numel() < limit and x.is_cpu and x.layout is strided


def computed(operator: Callable[..., Tensor], *arguments: Any) -> Tensor | None:
    """Return what an operator of torch returns, or None if it refuses its arguments.

    The caller then uses kernels, whose checks say what is wrong, or compute what torch cannot.

    Examples
    --------
    >>> import torch
    >>> computed(torch.add, torch.ones(1), torch.ones(1)), computed(torch.add, torch.ones(2), torch.ones(3))
    (tensor([2.]), None)
    """
    try:
        return operator(*arguments)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return None
