"""Fold a norm with held moments into the convolution or the linear layer before it, for inference."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import gennorm
from gennorm import definition
from gennorm.errors import ConfigError, GennormError, InputError
from gennorm.extend import resolve_config
from gennorm.spec.config import LayerConfig
from gennorm.torch.module import NormalizationLayer

__all__ = ["fold"]

CONVOLUTIONS = {nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}  # the number of axes of their outputs
TRANSPOSED = {nn.ConvTranspose1d: 3, nn.ConvTranspose2d: 4, nn.ConvTranspose3d: 5}


def fold(layer: nn.Module, norm: nn.Module) -> nn.Module:
    r"""Return a copy of a layer that computes the layer and the norm after it, as the norm computes in evaluation.

    With the held moments :math:`\mu` and :math:`v` a norm of the channels is :math:`y = g x + h` with
    :math:`g = s / \delta(v)` and :math:`h = b - g \mu`. The weight of the layer is multiplied by :math:`g`, and its
    bias :math:`c` becomes :math:`g c + h`. Both are computed in float64 and rounded once.

    Parameters
    ----------
    layer : torch.nn.Linear, a convolution or a transposed convolution of torch.nn
    norm : NormalizationLayer, or a batch norm of torch or of gennorm.torch
        With moving statistics or those of a data set, one for each channel. Instance norms with running statistics too.

    Returns
    -------
    torch.nn.Module
        Of the class of `layer`, in evaluation mode, with new parameters and a bias. Neither argument is changed.

    Raises
    ------
    InputError
        The layer or the norm is of another class.
    ConfigError
        The norm holds no moments, or they or its parameters are not one for each channel of the layer.

    Examples
    --------
    >>> layer, norm = nn.Linear(3, 2), NormalizationLayer(0, 1, input_shape=(2,), batched=True, statistics="moving")
    >>> norm.moments = gennorm.Moments.from_variance([1.0, 2.0], [4.0, 9.0])
    >>> x = torch.randn(5, 3)
    >>> torch.allclose(fold(layer, norm)(x), norm.eval()(layer(x)), atol=1e-6)
    True
    """
    rank, axis = _form(layer)
    channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    size: Any = [1] * rank
    size[axis] = channels
    config, moments = _held(norm)
    parameters = [
        None if one is None else one.detach().double().cpu()
        for one in (getattr(norm, "weight", None), getattr(norm, "bias", None))
    ]
    zeros = torch.zeros(size, dtype=torch.float64)
    try:
        resolved = resolve_config(config, tuple(size))
        options: Any = {"scaling": parameters[0], "moments": moments}
        shift, _ = definition.normalize(zeros, config, resolved, biases=parameters[1], **options)
        gain = definition.push_forward(zeros, torch.ones_like(zeros), config, resolved, **options)
    except (GennormError, RuntimeError) as error:
        cause = str(error).partition("\n")[0]
        msg = f"the norm does not fit the {channels} channels of the layer: {cause}\n"
        msg += "fold norms over the batch and everything but the channels, such as batch norm"
        raise ConfigError(msg, code="C123") from None
    gain, shift = gain.reshape(-1), shift.reshape(-1)
    folded = copy.deepcopy(layer).eval()
    weight: Tensor = layer.weight  # type: ignore[assignment]
    device = weight.device
    own = torch.zeros(channels, dtype=torch.float64) if layer.bias is None else layer.bias.detach().double().cpu()  # type: ignore[operator]
    multiplied = _multiplied(layer, weight.detach().double().cpu(), gain)
    folded.weight = nn.Parameter(multiplied.to(device, weight.dtype), weight.requires_grad)
    folded.bias = nn.Parameter((own * gain + shift).to(device, weight.dtype), weight.requires_grad)
    return folded


def _form(layer: Any) -> tuple[int, int]:
    """Return the number of axes of an output, and the axis of its channels."""
    if isinstance(layer, nn.Linear):
        return 2, 1
    for kind, rank in (CONVOLUTIONS | TRANSPOSED).items():
        if isinstance(layer, kind):
            return rank, 1
    msg = f"the layer is of type {type(layer).__name__}\npass a torch.nn.Linear or a convolution"
    raise InputError(msg, code="A042")


def _held(norm: Any) -> tuple[LayerConfig, tuple[Tensor | None, Tensor]]:
    """Return the config of a norm and the mean and the variance that it holds, as float64 on the CPU."""
    if isinstance(norm, NormalizationLayer):
        if norm.config.statistics == "input":
            msg = "the norm holds no moments: it computes them from each input\n"
            msg += 'fold a norm with statistics="moving" or "dataset", or a batch norm'
            raise ConfigError(msg, code="C124")
        config, (mean, variance) = norm.config, norm._held()
    elif isinstance(norm, (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)):
        if norm.running_mean is None:
            msg = "the norm holds no moments: it was made with track_running_stats=False\n"
            msg += "fold a norm with running statistics"
            raise ConfigError(msg, code="C125")
        make = gennorm.instance_norm if isinstance(norm, nn.modules.instancenorm._InstanceNorm) else gennorm.batch_norm
        config = LayerConfig.from_dict(make(norm.num_features, epsilon=norm.eps).to_config())
        mean, variance = norm.running_mean, norm.running_var
    else:
        msg = f"the norm is of type {type(norm).__name__}\npass a NormalizationLayer or a batch norm"
        raise InputError(msg, code="A043")
    wide = [None if one is None else one.detach().double().cpu() for one in (mean, variance)]
    return config, (wide[0], wide[1])  # type: ignore[return-value]


def _multiplied(layer: Any, weight: Any, gain: Tensor) -> Tensor:
    """Return the weight with the outputs of each channel multiplied."""
    if not any(isinstance(layer, kind) for kind in TRANSPOSED):
        return weight * gain.reshape(-1, *[1] * (weight.dim() - 1))
    # The weight of a transposed convolution has the inputs first; the outputs of each group follow.
    gains = gain.reshape(layer.groups, 1, -1, *[1] * (weight.dim() - 2))
    return (weight.unflatten(0, (layer.groups, -1)) * gains).flatten(0, 1)
