"""Differentiable functions of tensors, each a call of the core and none with arithmetic of its own."""

from __future__ import annotations

from torch import Tensor, is_grad_enabled

from gennorm.config import LayerConfig, resolve_config
from gennorm.statistics import folded
from gennorm.torch._autograd import Job, Normalize, arrays, threads_for, transformed
from gennorm.torch.distributed import gathered
from gennorm.torch.tensors import (
    array_of,
    held,
    moments_of,
    require_mask,
    require_parameter,
    require_tensor,
    stacked,
    tensor_of,
)

__all__ = ["Job", "fold", "normalize", "normalize_and_measure", "require"]


def normalize(
    job: Job,
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
    job : Job
        Who computes.
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
    >>> import gennorm, torch
    >>> job = Job(gennorm.NormalizationLayer(1, (), epsilon=0))
    >>> normalize(job, torch.tensor([1.0, 2.0, 3.0]), torch.tensor(2.0), torch.tensor(0.0))
    tensor([-2.4495,  0.0000,  2.4495])
    """
    require(x, scaling, biases, mask)
    if _differentiates(x, scaling, biases) or job.group is not None:
        return Normalize.apply(job, x, scaling, biases, mask, moments)[0]
    given = None if moments is None else moments_of(moments, job.core.information("method"))
    gains, shifts, counted = arrays(scaling, biases, mask)
    with threads_for(x):
        return tensor_of(job.core(array_of(x), mask=counted, scaling=gains, biases=shifts, moments=given))


def normalize_and_measure(
    job: Job, x: Tensor, scaling: Tensor | None, biases: Tensor | None, *, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Normalize a tensor by its own moments, and return them too.

    Parameters
    ----------
    job, x, scaling, biases, mask
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
    >>> import gennorm, torch
    >>> job = Job(gennorm.NormalizationLayer(1, (), epsilon=0))
    >>> normalize_and_measure(job, torch.tensor([1.0, 2.0, 3.0]), torch.tensor(1.0), None)[1]
    tensor([3., 2., 2.], dtype=torch.float64)
    """
    require(x, scaling, biases, mask)
    y, _, measured = Normalize.apply(job, x, scaling, biases, mask, None)
    return y, measured


def fold(
    config: LayerConfig,
    mean: Tensor | None,
    variance: Tensor,
    measured: Tensor,
    shape: tuple[int, ...],
    group: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Fold the moments of a batch into a moving mean and variance.

    Parameters
    ----------
    config : LayerConfig
        Says how, and with which momentum.
    mean, variance : Tensor
        The moving ones; no mean for the method RMS.
    measured : Tensor
        The moments of the batch, as `stacked` lays them out.
    shape : tuple of int
        That of the batch.
    group : str, optional
        The processes whose examples count too, where every example has moments of its own.

    Returns
    -------
    mean, variance : Tensor
        The next ones, in float64; a mean of zeros for the method RMS.

    Examples
    --------
    >>> import torch
    >>> config = LayerConfig.make(0, 1, batched=True, statistics="moving", momentum=0.75)
    >>> measured = torch.tensor([[4.0], [8.0], [20.0]])
    >>> fold(config, torch.zeros(1), torch.ones(1), measured, (4, 1))
    (tensor([2.], dtype=torch.float64), tensor([2.], dtype=torch.float64))
    """
    moving = moments_of(held(mean, variance), config.method)
    batch = moments_of(measured, config.method)
    if group is not None:
        batch = gathered(batch, group)
    found = folded(moving, batch, resolve_config(config, shape), config)
    _, centre, spread = stacked(found)
    return centre.clone(), spread.clone()


def require(x: Tensor, scaling: Tensor | None, biases: Tensor | None, mask: Tensor | None) -> None:
    """Refuse tensors that cannot be taken together; see `normalize`."""
    require_tensor(x, "the input")
    for name, value in (("weight", scaling), ("bias", biases)):
        if value is not None:
            require_parameter(value, name, x)
    if mask is not None:
        require_mask(mask)


def _differentiates(*tensors: Tensor | None) -> bool:
    """Whether a derivative may be asked for of what is computed from these tensors now, in any way that torch has."""
    if is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
<<<<<<< HEAD
    return _transformed()


def _transformed() -> bool:
    """Whether torch.func, or forward mode, is at work."""
    return transforms() or forward_ad._current_level >= 0


def threads_for(x: Tensor) -> AbstractContextManager[None]:
    """Torch's number of threads, where the input is so large that it matters."""
    return using(torch.get_num_threads()) if shared(x.numel()) else nullcontext()


class _Function(torch.autograd.Function):
    """A function of autograd and of torch.func; a call of it is a call of the core.

    `torch.func.vmap` calls it once for each of what is mapped over.
    """

    @classmethod
    def apply(cls, *args: Any) -> Any:
        # Function.apply looks the signature up at each call, 11 of 17 microseconds, and only torch.func makes use of it.
        if transforms():
            return super().apply(*args)
        return super(torch.autograd.Function, cls).apply(*args)

    @classmethod
    def again(cls, *args: Any) -> Any:
        """Call it from a derivative, whose own derivative may be asked for or not."""
        if is_grad_enabled() or _transformed():
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


def _arrays(*tensors: Tensor | None) -> list[Any]:
    return [None if tensor is None else array_of(tensor) for tensor in tensors]


def _tensors(*arrays: Any) -> tuple[Tensor | None, ...]:
    return tuple(None if array is None else tensor_of(array) for array in arrays)


class Normalize(_Function):
    """The output, the factors that its pullback keeps, and the moments."""

    @staticmethod
    def forward(job: Any, x: Any, scaling: Any, biases: Any, mask: Any, moments: Any) -> Any:
        array, gains, shifts, counted = _arrays(x, scaling, biases, mask)
        with threads_for(x):
            given = job.moments(array, counted, moments)
            y, pullback = job.core.vjp(array, mask=counted, scaling=gains, biases=shifts, **given)
        return tensor_of(y), tensor_of(pullback.factors), stacked(pullback.moments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        job, x, scaling, biases, mask, moments = inputs
        _, factors, measured = output
        # Those of all processes are not measured again: not everybody may ask for a derivative of a derivative.
        _keep(ctx, job, x, scaling, biases, mask, moments if job.group is None else measured, factors)
        ctx.mark_non_differentiable(factors, measured)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Any, ...]:
        if dy is None:
            return (None,) * 6
        return None, *Pullback.again(ctx.job, *ctx.saved_tensors, dy), None, None

    @staticmethod
    def jvp(ctx: Any, *directions: Any) -> tuple[Any, ...]:
        x, scaling, biases, mask, moments, _ = ctx.saved_tensors
        return Tangent.apply(ctx.job, x, scaling, biases, mask, moments, *directions[1:4]), None, None


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
        array, gains, shifts, counted, kept, gradient = _arrays(x, scaling, biases, mask, factors, dy)
        with threads_for(x):
            pullback = job.core.pullback(array, kept, mask=counted, scaling=gains, biases=shifts)
            found = pullback(gradient, merge=job.merge)
        return _tensors(found.input, found.scaling, found.biases)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:  # noqa: ARG004
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
        array, gains, shifts, counted = _arrays(x, scaling, biases, mask)
        along, along_gains, along_shifts = _arrays(dx, dscaling, dbiases)
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
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:  # noqa: ARG004
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
    def jvp(ctx: Any, *directions: Any) -> Any:  # noqa: ARG004
        raise _third("forward mode over forward mode")


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
        array, gains, shifts, counted, gradient = _arrays(x, scaling, biases, mask, dy)
        ddy, found = job.core.second(
            array,
            gradient,
            Gradients(*_arrays(dx, dscaling, dbiases)),
            mask=counted,
            scaling=gains,
            biases=shifts,
            merge=job.merge,
            **job.moments(array, counted, moments),
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


def _keep(ctx: Any, job: Any, *tensors: Tensor | None) -> None:
    """Leave with autograd what a derivative needs; gradients that are absent stay absent."""
    ctx.job = job
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def _third(what: str) -> TensorError:
    msg = f"{what} was asked for, and the layer has first and second derivatives in reverse mode,\n"
    msg += "first ones in forward mode, and forward over reverse: torch.func.hessian and gradient penalties use these"
    return TensorError(msg, code="T010")
=======
    return transformed()
>>>>>>> 87181b5 (PyTorch: what autograd knows stands apart from what modules call)
