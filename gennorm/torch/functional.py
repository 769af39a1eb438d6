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

import gennorm
from gennorm.errors import TensorError
from gennorm.gradients import Gradients
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
    if _transformed():
        return True
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


class _Function(torch.autograd.Function):
    """A function of autograd and of torch.func; a call of it is a call of the core.

    `torch.func.vmap` calls it once for each of what is mapped over.
    """

    @classmethod
    def apply(cls, *args: Any) -> Any:
        # Function.apply looks the signature up at each call, 11 of 17 microseconds, and only torch.func makes use of it.
        if torch._C._are_functorch_transforms_active():
            return super().apply(*args)
        return super(torch.autograd.Function, cls).apply(*args)

    @classmethod
    def again(cls, *args: Any) -> Any:
        """Call it from a derivative, whose own derivative may be asked for or not."""
        if torch.is_grad_enabled() or _transformed():
            return cls.apply(*args)
        return cls.forward(*args)

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        found = [
            cls.apply(*(arg if axis is None else arg.select(axis, i) for arg, axis in zip(args, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        if not isinstance(found[0], tuple):
            return torch.stack(found), 0
        columns = [*zip(*found, strict=True)]
        stacked_ = tuple(None if column[0] is None else torch.stack(column) for column in columns)
        return stacked_, tuple(None if one is None else 0 for one in stacked_)


def _transformed() -> bool:
    """Whether torch.func, or forward mode, is at work."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def _arrays(*tensors: Tensor | None) -> list[Any]:
    return [None if tensor is None else array_of(tensor) for tensor in tensors]


def _tensors(*arrays: Any) -> tuple[Tensor | None, ...]:
    return tuple(None if array is None else tensor_of(array) for array in arrays)


def _given(core: gennorm.NormalizationLayer, moments: Tensor | None) -> gennorm.Moments | None:
    return None if moments is None else moments_of(moments, core.information("method"))


class _Normalize(_Function):
    """The output, the factors that its pullback keeps, and the moments."""

    @staticmethod
    def forward(core: Any, x: Any, scaling: Any, biases: Any, mask: Any, moments: Any) -> Any:
        gains, shifts, counted = _arrays(scaling, biases, mask)
        given = _given(core, moments)
        y, pullback = core.vjp(array_of(x), mask=counted, scaling=gains, biases=shifts, moments=given)
        return tensor_of(y), tensor_of(pullback.factors), stacked(pullback.moments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, factors, measured = output
        _keep(ctx, *inputs, factors)
        ctx.mark_non_differentiable(factors, measured)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Any, ...]:
        if dy is None:
            return (None,) * 6
        return None, *_Pullback.again(ctx.core, *ctx.saved_tensors, dy), None, None

    @staticmethod
    def jvp(ctx: Any, *directions: Any) -> tuple[Any, ...]:
        x, scaling, biases, mask, moments, _ = ctx.saved_tensors
        return _Tangent.apply(ctx.core, x, scaling, biases, mask, moments, *directions[1:4]), None, None


class _Pullback(_Function):
    """From the gradient of the output to those of the input, the scaling and the biases."""

    @staticmethod
    def forward(
        core: Any, x: Any, scaling: Any, biases: Any, mask: Any, moments: Any, factors: Any, dy: Any  # noqa: ARG004
    ) -> Any:
        gains, shifts, counted = _arrays(scaling, biases, mask)
        pullback = core.pullback(array_of(x), array_of(factors), mask=counted, scaling=gains, biases=shifts)
        found = pullback(array_of(dy))
        return _tensors(found.input, found.scaling, found.biases)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:  # noqa: ARG004
        _keep(ctx, *inputs)

    @staticmethod
    def backward(ctx: Any, *along: Any) -> tuple[Any, ...]:
        *point, _, dy = ctx.saved_tensors
        ddy, to_input, to_scaling = _Second.again(ctx.core, *point, dy, *along)
        return None, to_input, to_scaling, None, None, None, None, ddy

    @staticmethod
    def jvp(ctx: Any, *directions: Any) -> tuple[Any, ...]:
        *point, factors, dy = ctx.saved_tensors
        # The gradients are those of one number by input and parameters, so their derivatives are alike both ways.
        _, to_input, to_scaling = _Second.apply(ctx.core, *point, dy, *directions[1:4])
        if directions[-1] is None:
            return to_input, to_scaling, None if point[2] is None else torch.zeros_like(point[2])
        found = _Pullback.apply(ctx.core, *point, factors, directions[-1])
        to_input = to_input + found[0]
        return to_input, None if to_scaling is None else to_scaling + found[1], found[2]


class _Tangent(_Function):
    """From directions of the input, the scaling and the biases to that of the output."""

    @staticmethod
    def forward(
        core: Any, x: Any, scaling: Any, biases: Any, mask: Any, moments: Any, dx: Any, dscaling: Any, dbiases: Any
    ) -> Any:
        gains, shifts, counted = _arrays(scaling, biases, mask)
        along, along_gains, along_shifts = _arrays(dx, dscaling, dbiases)
        _, found = core.jvp(
            array_of(x),
            along,
            mask=counted,
            scaling=gains,
            biases=shifts,
            dscaling=along_gains,
            dbiases=along_shifts,
            moments=_given(core, moments),
        )
        return tensor_of(found)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:  # noqa: ARG004
        _keep(ctx, *inputs)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Any, ...]:
        if dy is None:
            return (None,) * 9
        *point, dx, dscaling, dbiases = ctx.saved_tensors
        _, to_input, to_scaling = _Second.again(ctx.core, *point, dy, dx, dscaling, dbiases)
        _, factors, _ = _Normalize.forward(ctx.core, *point)
        found = _Pullback.again(ctx.core, *point, factors, dy)
        given = (dx, dscaling, dbiases)
        to_directions = (None if one is None else other for one, other in zip(given, found, strict=True))
        return None, to_input, to_scaling, None, None, None, *to_directions

    @staticmethod
    def jvp(ctx: Any, *directions: Any) -> Any:  # noqa: ARG004
        raise _third("forward mode over forward mode")


class _Second(_Function):
    """From directions in which a pullback's gradients count to the gradients by what it was made of."""

    @staticmethod
    def forward(
        core: Any,
        x: Any,
        scaling: Any,
        biases: Any,
        mask: Any,
        moments: Any,
        dy: Any,
        dx: Any,
        dscaling: Any,
        dbiases: Any,
    ) -> Any:
        gains, shifts, counted = _arrays(scaling, biases, mask)
        ddy, found = core.second(
            array_of(x),
            array_of(dy),
            Gradients(*_arrays(dx, dscaling, dbiases)),
            mask=counted,
            scaling=gains,
            biases=shifts,
            moments=_given(core, moments),
        )
        return _tensors(ddy, found.input, found.scaling)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:  # noqa: ARG004
        raise _third("a derivative of a second derivative")

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:  # noqa: ARG004
        raise _third("a derivative of a second derivative")


def _keep(ctx: Any, core: Any, *tensors: Tensor | None) -> None:
    """Leave with autograd what a derivative needs; gradients that are absent stay absent."""
    ctx.core = core
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def _third(what: str) -> TensorError:
    msg = f"{what} was asked for, and the layer has first and second derivatives in reverse mode,\n"
    msg += "first ones in forward mode, and forward over reverse: torch.func.hessian and gradient penalties use these"
    return TensorError(msg, code="T010")
