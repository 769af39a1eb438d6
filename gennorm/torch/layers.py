"""Torch's own normalization layers, computed by the engine.

Each is a subclass of torch's class of the same name and has its constructor, parameters, buffers and state dict; what
is its own is `forward`. The settings that torch reads when it is called, such as ``eps``, are read from the module too:
one that is assigned counts from the next call on.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import gennorm
from gennorm.errors import ConfigError, GroupError, LevelRangeError, ParameterError, ShapeError, TensorError
from gennorm.spec.config import LayerConfig
from gennorm.torch.module import Normalization
from gennorm.torch.tensors import Held

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "RMSNorm",
]

MISFITS = (ShapeError, LevelRangeError, GroupError, ParameterError)


class Computed(Normalization):
    """A module whose config follows from settings of its own, read again when they are assigned."""

    __constants__: Any
    layer: Callable[[], gennorm.NormalizationLayer]  # makes that of the core which the settings are

    def _begin(self) -> None:
        self.config = LayerConfig.from_dict(self.layer().to_config())
        super()._begin()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in self.__constants__ and self._present is not None:
            self._begin()

    def _normalized(self, x: Tensor, moments: Held | None = None) -> Tensor:
        try:
            return self.normalize(x, None, moments)
        except MISFITS as error:
            raise _as_torch(error) from None


class TorchNorm(Computed):
    """What the layers have in common that torch has too."""

    def reset_parameters(self) -> None:
        """Begin anew; the last that torch's constructors do."""
        super().reset_parameters()  # type: ignore[misc] # torch's class comes after this one
        self._begin()


class LayerNorm(TorchNorm, nn.LayerNorm):
    """`torch.nn.LayerNorm`, computed by ``gennorm.layer_norm``.

    Examples
    --------
    >>> LayerNorm(4)(torch.tensor([[1.0, 2.0, 4.0, 5.0]]))
    tensor([[-1.2649, -0.6325,  0.6325,  1.2649]], grad_fn=<NormalizeBackward>)
    """

    def layer(self) -> gennorm.NormalizationLayer:
        """Make the layer of the core that these settings are."""
        return gennorm.layer_norm(self.normalized_shape, epsilon=self.eps)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize over the trailing axes."""
        return self._normalized(input)


class RMSNorm(TorchNorm, nn.RMSNorm):
    """`torch.nn.RMSNorm`, computed by ``gennorm.rms_norm``.

    Examples
    --------
    >>> RMSNorm(2)(torch.tensor([[1.0, 7.0]]))
    tensor([[0.2000, 1.4000]], grad_fn=<NormalizeBackward>)
    """

    _double = False  # whether epsilon, where it is not given, is that of float64

    def layer(self) -> gennorm.NormalizationLayer:
        """Make the layer of the core that these settings are."""
        smallest = torch.finfo(torch.float64 if self._double else torch.float32).eps
        return gennorm.rms_norm(self.normalized_shape, epsilon=smallest if self.eps is None else self.eps)

    def forward(self, x: Tensor) -> Tensor:
        """Divide by the root mean square over the trailing axes."""
        if self.eps is None and isinstance(x, Tensor) and (x.dtype is torch.float64) != self._double:
            self._double = not self._double
            self._begin()
        return self._normalized(x)


class GroupNorm(TorchNorm, nn.GroupNorm):
    """`torch.nn.GroupNorm`, computed by ``gennorm.group_norm``.

    Examples
    --------
    >>> GroupNorm(2, 4, affine=False)(torch.tensor([[[1.0], [3.0], [10.0], [30.0]]])).flatten()
    tensor([-1.0000,  1.0000, -1.0000,  1.0000])
    """

    def layer(self) -> gennorm.NormalizationLayer:
        """Make the layer of the core that these settings are."""
        return gennorm.group_norm(self.num_groups, self.num_channels if self.affine else None, epsilon=self.eps)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize every example over groups of channels and all other axes."""
        _require_several(input, input.shape[0] * input.shape[1] // self.num_groups if input.dim() > 1 else 0)
        return self._normalized(input)


class _Running(TorchNorm):
    """What the layers with running statistics have in common: they are folded as torch folds them."""

    running_mean: Tensor | None
    momentum: float | None
    num_features: int
    affine: bool
    track_running_stats: bool
    eps: float
    _check_input_dim: Callable[[Tensor], None]

    def _channels(self) -> int | None:
        """How many channels an input has; any number where nothing of the module has one for each."""
        return self.num_features if self.affine or self.running_mean is not None else None

    def _momentum(self) -> float:
        """How much of themselves the running moments keep: the core's momentum is one minus torch's."""
        return 1 - (self.momentum or 0.0)

    def _normalized_by_batch(self, x: Tensor, *, tracks: bool) -> Tensor:
        """Normalize by the moments of the input, and fold them into the running ones if asked to."""
        if not tracks:
            return self._normalized(x)
        try:
            y, measured = self.normalize_and_measure(x)
            self._fold(x, measured, *self._running(), unbiased=True)
        except MISFITS as error:
            raise _as_torch(error) from None
        return y

    def _normalized_by_running(self, x: Tensor) -> Tensor:
        return self._normalized(x, Held(*self._running()))

    def _running(self) -> tuple[Tensor | None, Any]:
        """The running moments. Asking the module for one of them takes half a microsecond."""
        return self._buffers["running_mean"], self._buffers["running_var"]


class _BatchNorm(_Running):
    """Over the batch and everything but the channels."""

    def layer(self) -> gennorm.NormalizationLayer:
        """Make the layer of the core that these settings are."""
        return gennorm.batch_norm(self._channels(), epsilon=self.eps, momentum=self._momentum())

    def forward(self, input: Tensor) -> Tensor:
        """Normalize by the batch in training, by the running statistics in evaluation."""
        self._check_input_dim(input)
        mean, _ = self._running()
        if not self.training and mean is not None:
            return self._normalized_by_running(input)
        tracks = self.training and self.track_running_stats and mean is not None
        batches = self._buffers["num_batches_tracked"]
        if tracks and batches is not None:
            batches.add_(1)
            if self.momentum is None:
                self._cumulate(batches)
        if self.training:
            _require_several(input, input.shape[0])
            if self.eps <= 0:
                msg = f"eps is {self.eps}, and torch's batch norm trains with a positive one\nassign module.eps = 1e-5"
                raise ConfigError(msg, code="C122")
        return self._normalized_by_batch(input, tracks=tracks)

    @torch._disable_dynamo  # type: ignore[attr-defined] # torch.compiler's own imports the compiler, for a second
    def _cumulate(self, batches: Tensor) -> None:
        """Let the next batch count as much as each one before it: the momentum changes from call to call."""
        self._require_present(self._parameters["weight"], self._parameters["bias"])
        self.config = replace(self.config, momentum=1 - 1 / int(batches))
        self._text = json.dumps(self.config.to_dict())


class _InstanceNorm(_Running):
    """Over everything but the channels, for every example."""

    def layer(self) -> gennorm.NormalizationLayer:
        """Make the layer of the core that these settings are."""
        return gennorm.instance_norm(self._channels(), epsilon=self.eps, momentum=self._momentum())

    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        if not self.training and self.track_running_stats:
            return self._normalized_by_running(input)
        _require_several(input, 1)
        return self._normalized_by_batch(input, tracks=self.running_mean is not None)


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d`, computed by ``gennorm.batch_norm``; the running variance is unbiased, as torch's.

    Examples
    --------
    >>> layer = BatchNorm1d(1)
    >>> layer(torch.tensor([[0.0], [10.0]])).flatten()
    tensor([-1.,  1.], grad_fn=<ViewBackward0>)
    >>> layer.running_mean, layer.running_var
    (tensor([0.5000]), tensor([5.9000]))
    """


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, computed by ``gennorm.batch_norm``.

    Examples
    --------
    >>> BatchNorm2d(3).eval()(torch.ones(2, 3, 4, 4)).shape
    torch.Size([2, 3, 4, 4])
    """


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d`, computed by ``gennorm.batch_norm``.

    Examples
    --------
    >>> BatchNorm3d(3).eval()(torch.ones(2, 3, 4, 4, 4)).shape
    torch.Size([2, 3, 4, 4, 4])
    """


class InstanceNorm1d(_InstanceNorm, nn.InstanceNorm1d):
    """`torch.nn.InstanceNorm1d`, computed by ``gennorm.instance_norm``.

    Examples
    --------
    >>> InstanceNorm1d(2)(torch.tensor([[0.0, 2.0], [5.0, 25.0]]))
    tensor([[-1.0000,  1.0000],
            [-1.0000,  1.0000]])
    """


class InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    """`torch.nn.InstanceNorm2d`, computed by ``gennorm.instance_norm``.

    Examples
    --------
    >>> InstanceNorm2d(3)(torch.ones(2, 3, 4, 4)).shape
    torch.Size([2, 3, 4, 4])
    """


class InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    """`torch.nn.InstanceNorm3d`, computed by ``gennorm.instance_norm``.

    Examples
    --------
    >>> InstanceNorm3d(3)(torch.ones(2, 3, 4, 4, 4)).shape
    torch.Size([2, 3, 4, 4, 4])
    """


def _as_torch(error: Any) -> TensorError:
    """The error in the class that torch has for what does not fit a module."""
    return TensorError(error.message, code=error.code)


def _require_several(x: Tensor, first: int) -> None:
    """Refuse slices of one value, which are all alike when they are normalized; `first` is how many an example has."""
    if first * x.shape[2:].numel() == 1:
        msg = f"an input of shape {tuple(x.shape)} has one value for each mean, and its normalization is 0\n"
        msg += "pass more examples, or more values of each; or call module.eval() where it has running statistics"
        raise ShapeError(msg, code="S040")
