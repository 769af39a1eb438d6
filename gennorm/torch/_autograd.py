"""What autograd and torch.func know of the layer: four functions, each a call of the core.

`Normalize` goes from the input and the parameters to the output, `Pullback` from the gradient of the output to theirs,
`Tangent` from directions of theirs to that of the output, and `Second` is what both derivatives of the latter two are
made of. It has none: a third derivative is an error.

What is kept for a derivative is kept by autograd: the input, the parameters and, for each slice, the factors of its
pullback. Hooks on saved tensors, checkpoints and the checks of tensors that were written into work as in torch's own.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, is_grad_enabled
from torch.autograd import forward_ad

import gennorm
from gennorm.engine.threads import Using, shared
from gennorm.errors import TensorError
from gennorm.layer.derivatives import Gradients
from gennorm.layer.statistics import measured
from gennorm.torch.distributed import added, merged
from gennorm.torch.tensors import array_of, moments_of, stacked, tensor_of

__all__ = [
    "Adopted",
    "Job",
    "Normalize",
    "Pullback",
    "Second",
    "Tangent",
    "arrays",
    "record",
    "threads_for",
    "transformed",
    "transforms",
]

transforms = torch._C._are_functorch_transforms_active  # of torch.func
NOTHING = nullcontext()


@dataclass(slots=True, eq=False)
class Adopted:
    """Which tensors a core has as its own parameters: where they begin, and how they lie; for inputs of a dtype.

    Examples
    --------
    >>> adopted, weight = Adopted(), torch.ones(3)
    >>> adopted.take(torch.float32, weight, None)
    >>> adopted.has(weight, None), adopted.has(weight[:2], None), adopted.has(weight, weight)
    (True, False, False)
    """

    dtype: torch.dtype | None = None
    size: int = 0
    weight_at: int | None = None
    weight_steps: tuple[int, ...] = ()
    bias_at: int | None = None
    bias_steps: tuple[int, ...] = ()

    def take(self, dtype: torch.dtype, weight: Tensor | None, bias: Tensor | None) -> None:
        """Remember them."""
        self.weight_at = self.bias_at = None
        if weight is not None:
            self.weight_at, self.weight_steps, self.size = weight.data_ptr(), weight.stride(), weight.numel()
        if bias is not None:
            self.bias_at, self.bias_steps, self.size = bias.data_ptr(), bias.stride(), bias.numel()
        self.dtype = dtype

    def has(self, weight: Tensor | None, bias: Tensor | None) -> bool:
        """Whether the core's parameters are the memory of these tensors."""
        return (
            self.weight_at is None
            if weight is None
            else weight.data_ptr() == self.weight_at
            and weight.numel() == self.size
            and weight.stride() == self.weight_steps
        ) and (
            self.bias_at is None
            if bias is None
            else bias.data_ptr() == self.bias_at and bias.numel() == self.size and bias.stride() == self.bias_steps
        )


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """Who computes: a core layer, and the group of processes whose inputs share their slices, if there are others.

    The core's statistics are those of the input. Its parameters are not looked at, unless it has `adopted` those that
    it is called with. Where it `measures`, the moments are asked for too.

    Examples
    --------
    >>> Job(gennorm.layer_norm(8), "Standardize").group is None
    True
    """

    core: gennorm.NormalizationLayer
    method: str
    group: str | None = None
    measures: bool = False
    adopted: Adopted | None = None

    def moments(self, x: Any, mask: Any, given: Tensor | None) -> dict[str, Any]:
        """What the core is told of the moments of an array: those that are given, or of all processes' arrays."""
        if given is not None:
            return {"moments": moments_of(given, self.method), "shared": self.group is not None}
        if self.group is None:
            return {}
        return {"moments": merged(self.core.measure(x, mask), self.group), "shared": True}

    @property
    def merge(self) -> Any:
        """How sums over slices become those of all processes."""
        return None if self.group is None else partial(added, group=self.group)


def transformed() -> bool:
    """Whether torch.func, or forward mode, is at work."""
    return transforms() or forward_ad._current_level >= 0


def threads_for(x: Tensor) -> AbstractContextManager[None]:
    """Torch's number of threads, where the input is so large that it matters."""
    return Using(torch.get_num_threads()) if shared(x.numel()) else NOTHING


class _Function(torch.autograd.Function):
    """A function of autograd and of torch.func; a call of it is a call of the core.

    `torch.func.vmap` calls it once for each of what is mapped over.
    """

    @classmethod
    def apply(cls, *args: Any) -> Any:
        # Function.apply looks the signature up at each call, 11 of 17 microseconds, which only torch.func gains from.
        if transforms():
            return super().apply(*args)  # type: ignore[no-untyped-call]
        return super(torch.autograd.Function, cls).apply(*args)  # type: ignore[misc]

    @classmethod
    def again(cls, *args: Any) -> Any:
        """Call it from a derivative, whose own derivative may be asked for or not."""
        if is_grad_enabled() or transformed():
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


def arrays(*tensors: Tensor | None) -> list[Any]:
    return [None if tensor is None else array_of(tensor) for tensor in tensors]


def tensors(one: Any, two: Any, three: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
    return tensor_of(one), None if two is None else tensor_of(two), None if three is None else tensor_of(three)


class Normalize(_Function):
    """The output, the factors that its pullback keeps, and the moments: a tensor, but for a core with `adopted` ones.

    Nothing but autograd looks at what that computes, and autograd hands on what is no tensor.
    """

    @staticmethod
    def forward(job: Any, x: Any, scaling: Any, biases: Any, mask: Any, moments: Any) -> Any:
        array = array_of(x)
        own = job.adopted is not None  # whoever says so has made sure that the parameters are these
        settled = job.core.settled(array) if own and moments is None else None
        with threads_for(x):
            if settled is not None:
                y, rows, factors = settled.shortcut.keep(array)
                found = measured(settled.shortcut.bound, rows) if job.measures else None
                return tensor_of(y), tensor_of(factors), found
            gains, shifts, counted = (None,) * 3 if own else arrays(scaling, biases, mask)
            given = job.moments(array, counted, moments)
            y, pullback = job.core.vjp(array, mask=counted, scaling=gains, biases=shifts, **given)
        found = pullback.moments if job.measures or job.group is not None else None
        return tensor_of(y), tensor_of(pullback.factors), found if own or found is None else stacked(found)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        job, x, scaling, biases, mask, moments = inputs
        _, factors, found = output
        # Those of all processes are not measured again: not everybody may ask for a derivative of a derivative.
        _keep(ctx, job, x, scaling, biases, mask, moments if job.group is None else found, factors)
        if isinstance(found, Tensor):
            ctx.mark_non_differentiable(factors, found)
        else:
            ctx.mark_non_differentiable(factors)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Any, ...]:
        if dy is None:
            return (None,) * 6
        return None, *Pullback.again(ctx.job, *ctx.saved_tensors, dy), None, None

    @staticmethod
    def jvp(ctx: Any, *directions: Any) -> tuple[Any, ...]:
        x, scaling, biases, mask, moments, _ = ctx.saved_tensors
        return Tangent.apply(ctx.job, x, scaling, biases, mask, moments, *directions[1:4]), None, None


# The same for those who know that nothing of torch.func is at work.
record = super(torch.autograd.Function, Normalize).apply


class Pullback(_Function):
    """From the gradient of the output to those of the input, the scaling and the biases."""

    @staticmethod
    def forward(
        job: Any,
        x: Any,
        scaling: Any,
        biases: Any,
        mask: Any,
        moments: Any,
        factors: Any,
        dy: Any,
    ) -> Any:
        array, kept, gradient = array_of(x), array_of(factors), array_of(dy)
        # What is kept may have been somewhere else meanwhile, and the core may have other parameters by now.
        own = job.adopted is not None and job.adopted.has(scaling, biases)
        settled = job.core.settled(array, given=moments is not None) if own else None
        with threads_for(x):
            if settled is not None and settled.shortcut.fits(kept):
                return tensors(*settled.pull(array, gradient, kept, settled.parameters[0].own))
            gains, shifts, counted = arrays(scaling, biases, mask)
            pullback = job.core.pullback(array, kept, mask=counted, scaling=gains, biases=shifts)
            found = pullback(gradient, merge=job.merge)
        return tensors(found.input, found.scaling, found.biases)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        _keep(ctx, *inputs)

    @staticmethod
    def backward(ctx: Any, *along: Any) -> tuple[Any, ...]:
        *point, _, dy = ctx.saved_tensors
        ddy, to_input, to_scaling = Second.again(ctx.job, *point, dy, *along)
        return None, to_input, to_scaling, None, None, None, None, ddy

    @staticmethod
    def jvp(ctx: Any, *directions: Any) -> tuple[Any, ...]:
        *point, factors, dy = ctx.saved_tensors
        # The gradients are those of one number by input and parameters, so their derivatives are alike both ways.
        _, to_input, to_scaling = Second.apply(ctx.job, *point, dy, *directions[1:4])
        if directions[-1] is None:
            return to_input, to_scaling, None if point[2] is None else torch.zeros_like(point[2])
        found = Pullback.apply(ctx.job, *point, factors, directions[-1])
        to_input = to_input + found[0]
        return to_input, None if to_scaling is None else to_scaling + found[1], found[2]


class Tangent(_Function):
    """From directions of the input, the scaling and the biases to that of the output."""

    @staticmethod
    def forward(
        job: Any, x: Any, scaling: Any, biases: Any, mask: Any, moments: Any, dx: Any, dscaling: Any, dbiases: Any
    ) -> Any:
        array, gains, shifts, counted = arrays(x, scaling, biases, mask)
        along, along_gains, along_shifts = arrays(dx, dscaling, dbiases)
        with threads_for(x):
            _, found = job.core.jvp(
                array,
                along,
                mask=counted,
                scaling=gains,
                biases=shifts,
                dscaling=along_gains,
                dbiases=along_shifts,
                merge=job.merge,
                **job.moments(array, counted, moments),
            )
        return tensor_of(found)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        _keep(ctx, *inputs)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Any, ...]:
        if dy is None:
            return (None,) * 9
        *point, dx, dscaling, dbiases = ctx.saved_tensors
        _, to_input, to_scaling = Second.again(ctx.job, *point, dy, dx, dscaling, dbiases)
        _, factors, _ = Normalize.forward(ctx.job, *point)
        found = Pullback.again(ctx.job, *point, factors, dy)
        given = (dx, dscaling, dbiases)
        to_directions = (None if one is None else other for one, other in zip(given, found, strict=True))
        return None, to_input, to_scaling, None, None, None, *to_directions

    @staticmethod
    def jvp(ctx: Any, *directions: Any) -> Any:
        raise _third(forward=True)


class Second(_Function):
    """From directions in which a pullback's gradients count to the gradients by what it was made of."""

    @staticmethod
    def forward(
        job: Any,
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
        array, gains, shifts, counted, gradient = arrays(x, scaling, biases, mask, dy)
        ddy, found = job.core.second(
            array,
            gradient,
            Gradients(*arrays(dx, dscaling, dbiases)),
            mask=counted,
            scaling=gains,
            biases=shifts,
            merge=job.merge,
            **job.moments(array, counted, moments),
        )
        return tensors(ddy, found.input, found.scaling)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise _third()

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise _third()


def _keep(ctx: Any, job: Any, *tensors: Tensor | None) -> None:
    """Leave with autograd what a derivative needs; gradients that are absent stay absent."""
    ctx.job = job
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)
    if transformed():
        ctx.save_for_forward(*tensors)


def _third(*, forward: bool = False) -> TensorError:
    what = "forward mode over forward mode" if forward else "a derivative of a second derivative"
    msg = f"{what} was asked for, and the layer has none\n"
    msg += "second derivatives are those in reverse over reverse, forward over reverse and reverse over forward"
    return TensorError(msg, code="T010")
