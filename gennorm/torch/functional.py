"""Differentiable functions of tensors, each a call of the core and none with arithmetic of its own.

`normalize` is the one that modules call. Behind it are three functions that autograd knows, each the derivative of
another: `_Normalize` from the input and the parameters to the output, `_Pullback` from the gradient of the output to
theirs, `_Tangent` from directions of theirs to that of the output. Both derivatives of the latter two are
`NormalizationLayer.second`, which has none: a third derivative is an error.

What is kept for a derivative is kept by autograd: the input, the parameters and, for each slice, the factors of its
pullback. Hooks on saved tensors, checkpoints and the checks of tensors that were written into work as in torch's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

import gennorm
from gennorm.torch.tensors import (
    array_of,
    moments_of,
    require_mask,
    require_parameter,
    require_tensor,
    stacked,
    tensor_of,
)

__all__ = ["differentiates", "normalize", "normalize_and_measure"]


def normalize(
    core: gennorm.NormalizationLayer,
    x: Tensor,
    scaling: Tensor | None,
    biases: Tensor | None,
    *,
    mask: Tensor | None = None,
    moments: Tensor | None = None,
) -> Tensor:
    """Normalize a tensor by its own moments or by given ones.

    Parameters
    ----------
    core : gennorm.NormalizationLayer
        Says how. Its statistics are those of the input, its parameters are not looked at.
    x : Tensor
        An example or a batch.
    scaling, biases : Tensor or None
        Of the shape of the core's parameters, or None where the core has none.
    mask : Tensor of bool, optional
        True counts.
    moments : Tensor, optional
        Count, mean and m2 of slices that broadcast to those of ``x``, as `stacked` lays them out: what to normalize by
        in place of the input's own moments. Constants.

    Returns
    -------
    Tensor

    Raises
    ------
    TensorError, InputError
        A tensor is not one that can be taken.
    GennormError
        As a call of the core.

    Examples
    --------
    >>> core = gennorm.NormalizationLayer(1, (), epsilon=0)
    >>> normalize(core, torch.tensor([1.0, 2.0, 3.0]), torch.tensor(2.0), torch.tensor(0.0))
    tensor([-2.4495,  0.0000,  2.4495])
    """
    _require(x, scaling, biases, mask)
    if differentiates(x, scaling, biases):
        return _Normalize.apply(core, x, scaling, biases, mask, moments)[0]
    gains, shifts, counted = _arrays(scaling, biases, mask)
    return tensor_of(core(array_of(x), mask=counted, scaling=gains, biases=shifts, moments=_given(core, moments)))


def normalize_and_measure(
    core: gennorm.NormalizationLayer,
    x: Tensor,
    scaling: Tensor | None,
    biases: Tensor | None,
    *,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Normalize a tensor by its own moments, and return them too.

    Parameters
    ----------
    core, x, scaling, biases, mask
        As in `normalize`.

    Returns
    -------
    y, moments : Tensor
        The output; and count, mean and m2 of the slices, as `stacked` lays them out, without a gradient.

    Raises
    ------
    GennormError
        As `normalize`.

    Examples
    --------
    >>> core = gennorm.NormalizationLayer(1, (), epsilon=0)
    >>> normalize_and_measure(core, torch.tensor([1.0, 2.0, 3.0]), torch.tensor(1.0), None)[1]
    tensor([3., 2., 2.], dtype=torch.float64)
    """
    _require(x, scaling, biases, mask)
    y, _, measured = _Normalize.apply(core, x, scaling, biases, mask, None)
    return y, measured


def _require(x: Tensor, scaling: Tensor | None, biases: Tensor | None, mask: Tensor | None) -> None:
    require_tensor(x, "the input")
    for name, value in (("weight", scaling), ("bias", biases)):
        if value is not None:
            require_parameter(value, name, x)
    if mask is not None:
        require_mask(mask)


def differentiates(*tensors: Tensor | None) -> bool:
    """Whether a derivative may be asked for of what is computed from these tensors now, in any way that torch has."""
    if torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


class _Function(torch.autograd.Function):
    """A function whose calls do not look up its signature, which takes 11 of 17 microseconds, unless torch.func asks."""

    @classmethod
    def apply(cls, *args: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            return super().apply(*args)
        return super(torch.autograd.Function, cls).apply(*args)


def _arrays(*tensors: Tensor | None) -> list[Any]:
    return [None if tensor is None else array_of(tensor) for tensor in tensors]


def _given(core: gennorm.NormalizationLayer, moments: Tensor | None) -> gennorm.Moments | None:
    return None if moments is None else moments_of(moments, core.information("method"))


class _Normalize(_Function):
    @staticmethod
    def forward(
        core: gennorm.NormalizationLayer,
        x: Tensor,
        scaling: Tensor | None,
        biases: Tensor | None,
        mask: Tensor | None,
        moments: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        gains, shifts, counted = _arrays(scaling, biases, mask)
        given = _given(core, moments)
        y, pullback = core.vjp(array_of(x), mask=counted, scaling=gains, biases=shifts, moments=given)
        return tensor_of(y), tensor_of(pullback.factors), stacked(pullback.moments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        core, x, scaling, biases, mask, moments = inputs
        _, factors, measured = output
        ctx.core = core
        ctx.mark_non_differentiable(factors, measured)
        ctx.set_materialize_grads(False)
        kept = (x, scaling, biases, mask, moments, factors)
        ctx.save_for_backward(*kept)
        ctx.save_for_forward(*kept)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 6
        x, scaling, biases, mask, moments, factors = ctx.saved_tensors
        again = torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
        pull = _Pullback.apply if again else _Pullback.forward
        return None, *pull(ctx.core, x, scaling, biases, mask, moments, factors, dy), None, None


class _Pullback(_Function):
    @staticmethod
    def forward(
        core: gennorm.NormalizationLayer,
        x: Tensor,
        scaling: Tensor | None,
        biases: Tensor | None,
        mask: Tensor | None,
        moments: Tensor | None,
        factors: Tensor,
        dy: Tensor,
    ) -> tuple[Tensor | None, ...]:
        gains, shifts, counted = _arrays(scaling, biases, mask)
        pullback = core.pullback(array_of(x), array_of(factors), mask=counted, scaling=gains, biases=shifts)
        found = pullback(array_of(dy))
        return tuple(None if one is None else tensor_of(one) for one in (found.input, found.scaling, found.biases))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        ctx.core = inputs[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *_: Tensor | None) -> None:
        raise NotImplementedError
