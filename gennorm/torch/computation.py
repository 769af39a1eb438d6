"""What a module computes, as functions of tensors: by the kernels of the engine, or by the definition.

The kernels compute plain tensors in the memory of the CPU in eager mode, and their first derivatives. Everything else
is `gennorm.definition` in torch's operations: other devices, subclasses of tensors, transforms, forward mode, tracing
and compiling, and derivatives of derivatives. Both give the same values.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, from_numpy, is_grad_enabled
from torch.compiler import is_dynamo_compiling

from gennorm import definition
from gennorm.definition import SliceMoments
from gennorm.errors import ParameterError, TensorError
from gennorm.extend import Computation, Given
from gennorm.moments import Moments
from gennorm.spec.config import LayerConfig
from gennorm.torch.distributed import added, joined, merged
from gennorm.torch.tensors import (
    Array,
    array_of,
    is_eager,
    is_plain,
    is_traced,
    memory_of,
    require_mask,
    require_parameter,
    require_tensor,
    tensor_of,
    threads_for,
)

__all__ = ["Pair", "TensorComputation"]

Maybe = Tensor | None
Pair = tuple[Maybe, Tensor]  # mean and variance; no mean for the method RMS


class TensorComputation:
    """Normalizes tensors by one config.

    Parameters
    ----------
    config : LayerConfig
        Its `statistics` are not used: moments are those of the input, or are given.

    Examples
    --------
    >>> computation = TensorComputation(LayerConfig.make(1, (), epsilon=0))
    >>> computation.normalize(torch.tensor([1.0, 2.0, 3.0]), torch.tensor(2.0), None)
    tensor([-2.4495,  0.0000,  2.4495])
    """

    __slots__ = ("_bound", "_kernels", "config")

    def __init__(self, config: LayerConfig) -> None:
        self._kernels = Computation(config)
        self._bound: _Bound | None = None
        self.config = self._kernels.config

    def __reduce__(self) -> Any:
        return TensorComputation, (self.config,)

    def normalize(
        self,
        x: Tensor,
        weight: Maybe,
        bias: Maybe,
        *,
        mask: Maybe = None,
        moments: Pair | None = None,
        group: Any = None,
    ) -> Tensor:
        """Normalize a tensor by its own moments, by given constants, or by the moments of a group of processes.

        Parameters
        ----------
        x : Tensor
            An example or a batch.
        weight, bias : Tensor or None
            Scaling and biases.
        mask : Tensor of bool, optional
            True counts.
        moments : tuple of Tensor, optional
            Mean, None for the method RMS, and variance, of shapes that broadcast to those of the slices. Constants.
        group : ProcessGroup, optional
            Processes that hold parts of the same slices.

        Returns
        -------
        Tensor
            Of the shape and the dtype of `x`.

        Raises
        ------
        TensorError, InputError
            A tensor has a wrong type, device, layout or dtype.
        GennormError
            As a call of `gennorm.NormalizationLayer`.
        """
        return self._run(x, weight, bias, mask, moments, group, keep=False)[0]

    def normalize_and_fold(
        self,
        x: Tensor,
        weight: Maybe,
        bias: Maybe,
        moving: Pair,
        momentum: float | Tensor,
        *,
        mask: Maybe = None,
        group: Any = None,
        across: bool = True,
        unbiased: bool = False,
    ) -> Tensor:
        """Normalize a tensor by its own moments, and fold these into moving ones in place.

        Parameters
        ----------
        x, weight, bias, mask, group
            As in `normalize`.
        moving : tuple of Tensor
            Mean and variance, which are written to.
        momentum : float or Tensor
            The share of the old values that is kept; or, as a tensor, the share of the new ones.
        across : bool, default True
            Whether slices extend over the processes of the group. Otherwise only the moving moments do.
        unbiased : bool, default False
            Fold the unbiased variance, as torch does.

        Raises
        ------
        TensorError
            The moments are those of one of many examples that `torch.func.vmap` maps over, and the moving ones are not.
        GennormError
            As `normalize`.
        """
        y, found = self._run(x, weight, bias, mask, None, group if across else None, keep=True)
        keeps = 0.0 if isinstance(momentum, Tensor) else float(momentum)
        mean, variance = moving
        shape = tuple(x.shape)
        if isinstance(found, SliceMoments):
            resolved = self._resolve(shape)
            moments = SliceMoments(*(None if one is None else one.detach() for one in found))
            moments = moments if group is None or across else joined(moments, group)
            config = self.config if self.config.momentum == keeps else replace(self.config, momentum=keeps)
            news: Any = definition.fold(mean, variance, moments, config, resolved, unbiased=unbiased)
        elif group is None and mean is not None and x.numel() > 0 and 0 < keeps < 1 and _is_like(found, variance):
            news = _fold_rows(found, mean, variance, x.numel(), keeps, unbiased=unbiased)
        else:
            measured = self._kernels.moments(shape, found)
            if group is not None and not across:
                measured = _moments(joined(_tensors(measured), group))
            olds = None if mean is None else array_of(mean), array_of(variance)
            folded = self._kernels.fold(*olds, measured, shape, keeps, unbiased=unbiased)
            news = tuple(None if one is None else from_numpy(one) for one in folded)
        for old, new in zip(moving, news, strict=True):
            if old is None:
                continue
            _require_same_mapping(old, new)
            if isinstance(momentum, Tensor):
                old.lerp_(new.to(old.dtype), momentum.to(old.dtype))
            else:
                old.copy_(new)
        return y

    def measure(self, x: Tensor, mask: Maybe = None) -> SliceMoments:
        """Return the moments of the slices of a tensor, differentiable where the tensor has a gradient."""
        require_tensor(x, "the input")
        if mask is not None:
            require_mask(mask, x)
        with_gradient = x.requires_grad and is_grad_enabled()
        if not with_gradient and is_eager() and is_plain(x) and (mask is None or is_plain(mask)):
            with threads_for(x):
                return _tensors(self._kernels.measure(array_of(x), None if mask is None else array_of(mask)))
        return definition.measure(x, self.config, self._resolve(tuple(x.shape)), weights=mask)

    def invert(
        self, y: Tensor, weight: Maybe, bias: Maybe, moments: Pair, *, held: bool, apply: bool = False
    ) -> Tensor:
        """Return the input whose output is `y`, by the definition; or with `apply` the output of an input.

        Parameters
        ----------
        y, weight, bias : Tensor or None
        moments : tuple of Tensor
            Mean and variance of the slices; the result is differentiable with respect to them.
        held : bool
            Whether the moments have no axis for the groups of the batch.
        """
        self._require(y, weight, bias)
        resolved = self._resolve(tuple(y.shape), given=held)
        self._require_parameters(resolved, weight, bias)
        self._require_moments(resolved, moments[1])
        function = definition.normalize if apply else definition.invert
        found: Any = function(y, self.config, resolved, moments=moments, scaling=weight, biases=bias)
        return found[0] if apply else found

    def _run(
        self, x: Tensor, weight: Maybe, bias: Maybe, mask: Maybe, moments: Pair | None, group: Any, *, keep: bool
    ) -> tuple[Tensor, Any]:
        """Return the output, and what the derivatives and moving moments need where that is to be kept."""
        if not (
            is_eager()
            and is_plain(x)
            and (weight is None or is_plain(weight))
            and (bias is None or is_plain(bias))
            and (mask is None or is_plain(mask))
            and (moments is None or all(one is None or is_plain(one) for one in moments))
        ):
            if is_traced():
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
                    return self._defined(x, weight, bias, mask, moments, group)
            return self._defined(x, weight, bias, mask, moments, group)
        kernels, scaling, biases = self._bind(x, weight, bias)
        if mask is not None:
            require_mask(mask, x)
        if is_grad_enabled() and (
            x.requires_grad
            or (weight is not None and weight.requires_grad)
            or (bias is not None and bias.requires_grad)
        ):
            found: tuple[Tensor, Array] = record(
                self, (kernels, scaling, biases), x, weight, bias, mask, moments, group
            )
            return found
        array, counted = array_of(x), None if mask is None else array_of(mask)
        with threads_for(x):
            if keep or group is not None:
                y, kept = forward(kernels, scaling, biases, array, counted, moments, group)
                return tensor_of(y), kept
            return tensor_of(kernels.normalize(array, scaling, biases, mask=counted, moments=_given(moments))), None

    def _defined(
        self, x: Tensor, weight: Maybe, bias: Maybe, mask: Maybe, moments: Pair | None, group: Any
    ) -> tuple[Tensor, SliceMoments | Pair]:
        """Compute the same by the definition."""
        self._require(x, weight, bias)
        if mask is not None:
            require_mask(mask, x)
        resolved = self._resolve(tuple(x.shape), given=moments is not None)
        self._require_parameters(resolved, weight, bias)
        given: Any = moments
        if moments is not None:
            given = tuple(None if one is None else one.detach() for one in moments)
        elif group is not None:
            given = merged(definition.measure(x, self.config, resolved, weights=mask), group)
        return definition.normalize(x, self.config, resolved, scaling=weight, biases=bias, weights=mask, moments=given)

    def _bind(self, x: Tensor, weight: Maybe, bias: Maybe) -> tuple[Computation, Array | None, Array | None]:
        """Check the input and the parameters; return the kernels, and the parameters that are to be passed to them.

        Where the parameters are in the memory that they were in before, they are bound to the kernels, so that a call
        does not convert them again: small calls take half as long.
        """
        bound = self._bound
        if bound is not None and bound.dtype is x.dtype and bound.weight.fits(weight) and bound.bias.fits(bias):
            if bound.kernels is None:
                kernels = Computation(self.config, bound.weight.array, bound.bias.array)
                self._bound = bound = bound._replace(kernels=kernels)
            return cast("Computation", bound.kernels), None, None
        self._require(x, weight, bias)
        if self._is_per_example(x, weight) or self._is_per_example(x, bias):
            return self._kernels, *(None if one is None else array_of(one) for one in (weight, bias))  # type: ignore[return-value]
        self._bound = bound = _Bound(x.dtype, _Memory(weight), _Memory(bias), None)
        return self._kernels, bound.weight.array, bound.bias.array

    def _resolve(self, shape: tuple[int, ...], *, given: bool = False) -> Any:
        """Return what the config means for a tensor of a shape.

        A cache compares sizes, and a symbolic size that is compared is no longer open in an exported model.
        """
        cached = not is_dynamo_compiling() and all(type(size) is int for size in shape)
        return self._kernels.resolve(shape, given=given, cached=cached)

    def _is_per_example(self, x: Tensor, parameter: Maybe) -> bool:
        """Return whether a parameter has an axis for the examples of a batch."""
        # By the number of axes only: a size that is compared is no longer open in an exported model.
        if parameter is None or parameter.dim() == 0 or x.dim() == 0:
            return False
        return parameter.dim() == len(self._resolve(tuple(x.shape)).scaling) + 1

    def _require_parameters(self, resolved: Any, weight: Maybe, bias: Maybe) -> None:
        """Refuse parameters of other shapes than a tensor needs; there may be one set for each example."""
        per_example = (resolved.shape[0], *resolved.parameter_shape) if resolved.batched else None
        shapes = (None if one is None else tuple(one.shape) for one in (weight, bias))
        # Tuples of other lengths are not compared: a size that is compared is no longer open in an exported model.
        shared = (
            None
            if shape is None or (per_example is not None and len(shape) == len(per_example) and shape == per_example)
            else shape
            for shape in shapes
        )
        self._kernels.require_parameters(resolved, *shared)

    def _require_moments(self, resolved: Any, variance: Tensor) -> None:
        """Refuse moments of other slices than those of a tensor."""
        shape = tuple(variance.shape)
        wanted = resolved.moments_shape
        if len(shape) > len(wanted) or any(
            one not in {1, other} for one, other in zip(reversed(shape), reversed(wanted), strict=False)
        ):
            msg = f"the moments have the shape {shape}, and an input of shape {resolved.shape} needs {wanted}, "
            msg += "or fewer that broadcast to it\n"
            msg += "their axes are the levels that are kept, the batch included, and the groups of those that are split"
            raise ParameterError(msg, code="T031")

    def _require(self, x: Tensor, weight: Maybe, bias: Maybe) -> None:
        require_tensor(x, "the input")
        for name, value in (("weight", weight), ("bias", bias)):
            if value is not None:
                require_parameter(value, name, x)


class _Memory:
    """The place of a parameter in memory, and an array over it.

    The storage can be resized: the array is used for a tensor at this place only, which has its memory then.
    """

    __slots__ = ("array", "at", "dtype", "shape", "steps")

    def __init__(self, tensor: Maybe) -> None:
        self.array: Array | None = None
        if tensor is not None:
            self.array = memory_of(tensor)
            # Negated views and tensors that stand for zeros were copied: the copy is used for this call only.
            self.at = -1 if tensor.is_neg() or tensor._is_zerotensor() else tensor.data_ptr()
            self.dtype, self.shape, self.steps = tensor.dtype, tensor.shape, tensor.stride()

    def fits(self, tensor: Maybe) -> bool:
        """Return whether the tensor is this memory, seen in the same way."""
        if tensor is None or self.array is None:
            return tensor is None and self.array is None
        return (
            tensor.data_ptr() == self.at
            and tensor.dtype is self.dtype
            and tensor.shape == self.shape
            and tensor.stride() == self.steps
        )


class _Bound(NamedTuple):
    """The last parameters, for inputs of a dtype, and the kernels that they are bound to once they are used again."""

    dtype: torch.dtype
    weight: _Memory
    bias: _Memory
    kernels: Computation | None


def forward(
    kernels: Computation,
    scaling: Array | None,
    biases: Array | None,
    x: Array,
    mask: Array | None,
    moments: Pair | None,
    group: Any,
) -> tuple[Array, Array]:
    """Return the output of a kernel, and what its derivatives need."""
    given: Any = _given(moments)
    if group is not None:
        given = _moments(merged(_tensors(kernels.measure(x, mask)), group))
    return kernels.forward(x, scaling, biases, mask=mask, moments=given, shared=group is not None)


class Normalize(torch.autograd.Function):
    """Forward by a kernel, backward by a kernel; backward by the definition where that is differentiated itself."""

    @staticmethod
    def forward(
        ctx: Any,
        computation: TensorComputation,
        bound: tuple[Computation, Array | None, Array | None],
        x: Tensor,
        weight: Maybe,
        bias: Maybe,
        mask: Maybe,
        moments: Pair | None,
        group: Any,
    ) -> tuple[Tensor, Array]:
        counted = None if mask is None else array_of(mask)
        with threads_for(x):
            y, kept = forward(*bound, array_of(x), counted, moments, group)
        ctx.computation, ctx.kept, ctx.given, ctx.group = computation, kept, moments is not None, group
        ctx.save_for_backward(x, weight, bias, mask)
        ctx.set_materialize_grads(False)
        return tensor_of(y), kept

    @staticmethod
    def backward(ctx: Any, dy: Maybe, _: Any = None) -> tuple[Any, ...]:
        if dy is None:
            return (None,) * 8
        x, weight, bias, mask = ctx.saved_tensors
        found = (defined_gradients if is_grad_enabled() or not runs(dy, x) else gradients)(
            ctx, dy, x, weight, bias, mask
        )
        return None, None, *found, None, None, None


# Function.apply reads the signature of forward in each call, which takes 11 of 17 us and only serves torch.func.
record: Any = super(torch.autograd.Function, Normalize).apply


def runs(dy: Tensor, x: Tensor) -> bool:
    """Return whether a kernel can compute with a gradient: not where vmap maps over it, with `is_grads_batched` too."""
    on_cpu = torch._C._dispatch_keys(dy).has(torch._C.DispatchKey.CPU)
    return on_cpu and is_eager() and is_plain(dy) and is_plain(x)


def gradients(ctx: Any, dy: Tensor, x: Tensor, weight: Maybe, bias: Maybe, mask: Maybe) -> tuple[Maybe, ...]:
    """Return the gradients of input, weight and bias by a kernel."""
    kernels, scaling, biases = ctx.computation._bind(x, weight, bias)
    merge = None if ctx.group is None else lambda sums: added(from_numpy(sums), ctx.group).numpy()
    counted = None if mask is None else array_of(mask)
    with threads_for(x):
        found = kernels.backward(
            array_of(x), array_of(dy), ctx.kept, scaling, biases, mask=counted, given=ctx.given, merge=merge
        )
    return tuple(None if one is None else tensor_of(one) for one in (found.input, found.scaling, found.biases))


def defined_gradients(ctx: Any, dy: Tensor, x: Tensor, weight: Maybe, bias: Maybe, mask: Maybe) -> tuple[Maybe, ...]:
    """Return the same by the definition, which has derivatives of its own."""
    computation, group = ctx.computation, ctx.group
    resolved = computation._kernels.resolve(tuple(x.shape), given=ctx.given)
    moments: Any = None
    if ctx.given:
        mean, variance = from_numpy(ctx.kept)
        moments = mean, variance
    elif group is not None:
        moments = merged(definition.measure(x, computation.config, resolved, weights=mask), group)
    merge = None if group is None else partial(added, group=group)
    options: Any = {"scaling": weight, "biases": bias, "weights": mask, "moments": moments, "merge": merge}
    return definition.pull_back(x, dy, computation.config, resolved, **options)


def _is_like(rows: Array, variance: Tensor) -> bool:
    """Return whether rows of mean and second moment are of the slices that a moving variance has, all counted."""
    return len(rows) == 2 and rows.shape[1:] == variance.shape


def _fold_rows(
    rows: Array, mean: Tensor, variance: Tensor, elements: int, momentum: float, *, unbiased: bool
) -> tuple[Tensor, Tensor]:
    """Return what `Computation.fold` returns, to the bit, for rows in which every element counts: in 10 µs, not 60."""
    with np.errstate(all="ignore"):
        new = rows.copy()
        new[1] /= max(elements // variance.numel() - unbiased, 1)
        new *= 1 - momentum
        new[0] += momentum * array_of(mean).astype(np.float64)
        new[1] += momentum * array_of(variance).astype(np.float64)
    return from_numpy(new[0]), from_numpy(new[1])


def _given(moments: Pair | None) -> Given | None:
    """Return a pair of tensors as kernels take it."""
    if moments is None:
        return None
    mean, variance = moments
    return Given(None if mean is None else array_of(mean), array_of(variance))


def _tensors(moments: Moments) -> SliceMoments:
    """Return moments of arrays as moments of tensors."""
    return SliceMoments(
        *(None if one is None else torch.tensor(one) for one in (moments.count, moments.mean, moments.m2))
    )


def _moments(moments: SliceMoments) -> Moments:
    """Return moments of tensors as moments of arrays."""
    count, mean, m2 = moments
    return Moments.trusted(count.numpy(), None if mean is None else mean.numpy(), m2.numpy())


def _require_same_mapping(old: Tensor, new: Tensor) -> None:
    """Refuse to write one value for each of what `torch.func.vmap` maps over into one buffer."""
    mapped = torch._C._functorch.is_batchedtensor
    if mapped(new) and not mapped(old):
        msg = "vmap maps over the examples, and the moving moments are one buffer for all of them\n"
        msg += "call module.eval() first, or pass the buffers to torch.func.functional_call and map over them"
        raise TensorError(msg, code="T011")
