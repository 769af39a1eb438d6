"""The same functions as operators of torch, for what looks at a model without running it: torch.compile, torch.export.

An operator is opaque: it says which shapes and strides come out, and what its derivative is, which is an operator too.
A core layer and a group of processes are named by texts: a config as JSON, and torch's name of the group.
"""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

import gennorm
from gennorm.spec.config import LayerConfig, resolve_config
from gennorm.torch import functional
from gennorm.torch._autograd import Job, Normalize, Pullback
from gennorm.torch.functional import require
from gennorm.torch.tensors import moments_of

__all__ = ["fold", "modes", "normalize", "pullback", "traced", "tracing"]


modes = torch._C._len_torch_dispatch_stack  # how many look at every operator
tracing = torch._C._get_tracing_state  # of torch.jit


def traced(x: Any) -> bool:
    """Whether somebody looks at what is computed from this tensor, without being autograd or torch.func."""
    if is_dynamo_compiling() or modes() > 0 or tracing() is not None:
        return True
    return type(x) is not Tensor and isinstance(x, Tensor) and type(x) is not torch.nn.Parameter


@functools.lru_cache(1024)
def _job(config: str, group: str | None) -> Job:
    core = replace(_config(config), statistics="input")
    return Job(gennorm.NormalizationLayer.from_config(core.to_dict()), core.method, group, measures=True)


@functools.lru_cache(1024)
def _config(config: str) -> LayerConfig:
    return LayerConfig.from_dict(json.loads(config))


def _like(result: Tensor, x: Tensor) -> Tensor:
    """The result with the strides that were announced, from which NumPy's differ where the input has gaps."""
    announced = torch.empty_like(x, device="meta").stride()
    return result if result.stride() == announced else torch.empty_like(x).copy_(result)


def _nothing(value: Tensor | None, x: Tensor) -> Tensor:
    """An operator gives tensors: an empty one stands for None."""
    return x.new_empty(0) if value is None else value


@torch.library.custom_op("gennorm::normalize", mutates_args=())
def normalize(
    x: Tensor,
    scaling: Tensor | None,
    biases: Tensor | None,
    mask: Tensor | None,
    moments: Tensor | None,
    config: str,
    group: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, the factors that its pullback keeps, and the moments."""
    require(x, scaling, biases, mask)
    y, factors, measured = Normalize.forward(_job(config, group), x, scaling, biases, mask, moments)
    return _like(y, x), factors, measured


@normalize.register_fake
def _(x: Tensor, scaling: Any, biases: Any, mask: Any, moments: Tensor | None, config: str, group: Any) -> Any:
    shape = resolve_config(_config(config), tuple(x.shape)).moments_shape
    measured = x.new_empty((3, *shape), dtype=torch.float64) if moments is None else torch.empty_like(moments)
    return torch.empty_like(x), x.new_empty((4, *shape), dtype=torch.float64), measured


@torch.library.custom_op("gennorm::pullback", mutates_args=())
def pullback(
    x: Tensor,
    scaling: Tensor | None,
    biases: Tensor | None,
    mask: Tensor | None,
    factors: Tensor,
    dy: Tensor,
    config: str,
    group: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """From the gradient of the output to those of the input, the scaling and the biases."""
    found = Pullback.forward(_job(config, group), x, scaling, biases, mask, None, factors, dy)
    to_input, to_scaling, to_biases = found
    return _like(to_input, x), _nothing(to_scaling, x), _nothing(to_biases, x)


@pullback.register_fake
def _(x: Tensor, scaling: Any, biases: Any, mask: Any, factors: Any, dy: Any, config: str, group: Any) -> Any:
    like = (None if value is None else torch.empty_like(value) for value in (scaling, biases))
    return torch.empty_like(x), *(_nothing(value, x) for value in like)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, scaling, biases, mask, _, *ctx.names = inputs
    ctx.save_for_backward(x, scaling, biases, mask, output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if dy is None:
        return (None,) * 7
    x, scaling, biases, mask, factors = ctx.saved_tensors
    found = pullback(x, scaling, biases, mask, factors, dy, *ctx.names)
    to_scaling, to_biases = (
        None if parameter is None else one for parameter, one in zip((scaling, biases), found[1:], strict=True)
    )
    return found[0], to_scaling, to_biases, None, None, None, None


normalize.register_autograd(_backward, setup_context=_keep)


@torch.library.custom_op("gennorm::fold", mutates_args=())
def fold(
    mean: Tensor | None,
    variance: Tensor,
    measured: Tensor,
    shape: list[int],
    config: str,
    group: str | None,
    unbiased: bool = False,
) -> tuple[Tensor, Tensor]:
    """As `gennorm.torch.functional.fold`."""
    folds = _config(config)
    return functional.fold(folds, mean, variance, moments_of(measured, folds.method), tuple(shape), group, unbiased)


@fold.register_fake
def _(mean: Any, variance: Tensor, *_: Any) -> Any:
    return tuple(torch.empty_like(variance, dtype=torch.float64) for _ in range(2))
