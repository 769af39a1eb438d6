"""Torch's own normalization layers, computed by gennorm.

Each is a subclass of torch's class of the same name and has its constructor, parameters, buffers and state dict; only
`forward` differs. Settings such as ``eps`` are read again when they are assigned. For small inputs, where torch's own
operators are faster, the layers call these (`gennorm.torch.crossover`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import gennorm
from gennorm.errors import ConfigError, GroupError, LevelRangeError, ParameterError, ShapeError, TensorError
from gennorm.spec.config import LayerConfig
from gennorm.torch.computation import Pair, TensorComputation
from gennorm.torch.crossover import Crossover, computed, is_faster_in_torch
from gennorm.torch.module import Normalization

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

# Measured on two cores of an AMD EPYC with torch 2.13, in inputs of 64 channels or rows of 768. Those that end with
# LAST are for inputs with channels last, or without axes behind the channels.
LAYER = Crossover(200_000, 200_000, 1_500_000, 2_500_000)
RMS = Crossover(1_000, 16_000, 1_000, 16_000)
GROUP, GROUP_LAST = Crossover(2_000_000, 2_000_000, 2_000_000, 2_000_000), Crossover(4_000_000, 0, 4_000_000, 0)
BATCH, BATCH_LAST = Crossover(100_000, 300_000, 150_000, 300_000), Crossover(2_000_000, 4_000_000, 3_000_000, 4_000_000)
EVALUATION = Crossover(2_500_000, 2_000_000, 2_500_000, 2_500_000)
INSTANCE, INSTANCE_LAST = Crossover(4_000, 150_000, 4_000, 200_000), Crossover(0, 0, 0, 0)
FEATURE_MAP = 1024  # elements of one channel of one example from which torch's group norm is fast with channels last


class Configured(Normalization):
    """A module whose config follows from its attributes, and is made again when one of them is assigned."""

    __constants__: Any
    layer: Callable[[], gennorm.NormalizationLayer]  # makes the layer of the core that the attributes stand for

    def _settings(self) -> LayerConfig:
        return LayerConfig.from_dict(self.layer().to_config())

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if "_gennorm" in vars(self) and name in self.__constants__:
            self._begin()

    def _normalized(
        self, x: Tensor, moments: Pair | None = None, computation: TensorComputation | None = None
    ) -> Tensor:
        computation = computation or self._gennorm
        try:
            return computation.normalize(x, self._parameter("weight"), self._parameter("bias"), moments=moments)
        except MISFITS as error:
            raise TensorError(error.message, code=error.code) from None  # of the class that torch raises


class TorchNorm(Configured):
    """The base of the layers that torch has too."""

    def reset_parameters(self) -> None:
        """Set the initial parameters; torch's constructors do this last."""
        super().reset_parameters()  # type: ignore[misc] # torch's class comes after this one
        self._begin()


class LayerNorm(TorchNorm, nn.LayerNorm):
    """`torch.nn.LayerNorm`, computed by ``gennorm.layer_norm``.

    Examples
    --------
    >>> LayerNorm(4)(torch.tensor([[1.0, 2.0, 4.0, 5.0]])).detach()
    tensor([[-1.2649, -0.6325,  0.6325,  1.2649]])
    """

    def layer(self) -> gennorm.NormalizationLayer:
        """Make the layer of the core that the attributes stand for."""
        return gennorm.layer_norm(self.normalized_shape, epsilon=self.eps)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize over the trailing axes."""
        weight = self._parameter("weight")
        if is_faster_in_torch(input, weight, LAYER):
            bias = self._parameter("bias")
            y = computed(torch.layer_norm, input, self.normalized_shape, weight, bias, self.eps, False)
            if y is not None:
                return y
        recorded = self._recorded(input)
        return self._normalized(input) if recorded is None else recorded


class RMSNorm(TorchNorm, nn.RMSNorm):
    """`torch.nn.RMSNorm`, computed by ``gennorm.rms_norm``.

    Examples
    --------
    >>> RMSNorm(2)(torch.tensor([[1.0, 7.0]])).detach()
    tensor([[0.2000, 1.4000]])
    """

    _gennorm_float64: TensorComputation  # with its epsilon, where none is given

    def layer(self, dtype: torch.dtype = torch.float32) -> gennorm.NormalizationLayer:
        """Make the layer of the core that the attributes stand for."""
        return gennorm.rms_norm(self.normalized_shape, epsilon=torch.finfo(dtype).eps if self.eps is None else self.eps)

    def _begin(self) -> None:
        super()._begin()
        self._gennorm_float64 = TensorComputation(LayerConfig.from_dict(self.layer(torch.float64).to_config()))

    def forward(self, x: Tensor) -> Tensor:
        """Divide by the root mean square over the trailing axes."""
        weight = self._parameter("weight")
        if is_faster_in_torch(x, weight, RMS):
            y = computed(torch.rms_norm, x, self.normalized_shape, weight, self.eps)
            if y is not None:
                return y
        recorded = self._recorded(x)
        if recorded is not None:
            return recorded
        return self._normalized(x, computation=self._of(x))

    def _of(self, x: Any) -> TensorComputation:
        """Return the computation with the epsilon for the dtype of an input."""
        return self._gennorm_float64 if isinstance(x, Tensor) and x.dtype is torch.float64 else self._gennorm


class GroupNorm(TorchNorm, nn.GroupNorm):
    """`torch.nn.GroupNorm`, computed by ``gennorm.group_norm``.

    Examples
    --------
    >>> GroupNorm(2, 4, affine=False)(torch.tensor([[[1.0], [3.0], [10.0], [30.0]]])).flatten()
    tensor([-1.0000,  1.0000, -1.0000,  1.0000])
    """

    def layer(self) -> gennorm.NormalizationLayer:
        """Make the layer of the core that the attributes stand for."""
        return gennorm.group_norm(self.num_groups, self.num_channels if self.affine else None, epsilon=self.eps)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize every example over groups of channels and all other axes."""
        recorded = self._recorded(input)
        if recorded is not None:
            return recorded
        _require_several(input, input.shape[0] * input.shape[1] // self.num_groups if input.dim() > 1 else 0)
        weight = self._parameter("weight")
        # With channels last torch takes far longer for feature maps of fewer elements than it divides among threads.
        if is_faster_in_torch(input, weight, GROUP, GROUP_LAST) and (
            input.is_contiguous() or input.shape[2:].numel() >= FEATURE_MAP
        ):
            y = computed(torch.group_norm, input, self.num_groups, weight, self._parameter("bias"), self.eps, False)
            if y is not None:
                return y
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

    def _settings(self) -> LayerConfig:
        config = super()._settings()
        return replace(config, momentum=1 - (self.momentum or 0.0))  # torch counts the share of the new value

    def _channels(self) -> int | None:
        """Return the number of channels that an input has; None where any number will do."""
        return self.num_features if self.affine or self.running_mean is not None else None

    def _running(self) -> Any:
        return self.running_mean, self.running_var

    def _normalized_by_batch(self, x: Tensor, momentum: float | Tensor) -> Tensor:
        """Normalize by the moments of the input, and fold them into the running ones."""
        weight, bias = self._parameter("weight"), self._parameter("bias")
        try:
            return self._gennorm.normalize_and_fold(x, weight, bias, self._running(), momentum, unbiased=True)
        except MISFITS as error:
            raise TensorError(error.message, code=error.code) from None


class _BatchNorm(_Running):
    """Over the batch and everything but the channels."""

    def layer(self) -> gennorm.NormalizationLayer:
        """Make the layer of the core that the attributes stand for."""
        return gennorm.batch_norm(self._channels(), epsilon=self.eps)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize by the batch in training, by the running statistics in evaluation."""
        recorded = self._recorded(input)
        if recorded is not None:
            return recorded
        self._check_input_dim(input)
        running = self.running_mean is not None
        if not self.training:
            moments = self._running() if running else None
            y = self._by_torch(input, moments, 0.0)
            return self._normalized(input, moments) if y is None else y
        _require_several(input, input.shape[0])
        if self.eps <= 0:
            msg = f"eps is {self.eps}, and torch's batch norm trains with a positive one\nassign module.eps = 1e-5"
            raise ConfigError(msg, code="C122")
        if not (self.track_running_stats and running):
            y = self._by_torch(input, None, 0.0)
            return self._normalized(input) if y is None else y
        batches: Any = self.num_batches_tracked
        share = self.momentum
        if share is None and batches is not None:  # each batch counts as much as every one before it
            share = (batches + 1).double().reciprocal()
        y = self._by_torch(input, self._running(), 0.0 if share is None else share)
        if y is None:
            momentum = share if isinstance(share, Tensor) else self._gennorm.config.momentum
            y = self._normalized_by_batch(input, momentum)
        if batches is not None:
            batches.add_(1)
        return y

    def _by_torch(self, x: Tensor, moments: Any, share: float | Tensor) -> Tensor | None:
        """Return the output of torch's operator, which folds in the moments in training; None if kernels are faster."""
        weight, measures = self._parameter("weight"), self.training or moments is None
        if not measures:
            faster = is_faster_in_torch(x, weight, EVALUATION)
        else:
            faster = is_faster_in_torch(x, weight, BATCH if x.dim() > 2 else BATCH_LAST, BATCH_LAST)
        if not faster:
            return None
        mean, variance = (None, None) if moments is None else moments
        bias = self._parameter("bias")
        return computed(torch.batch_norm, x, weight, bias, mean, variance, measures, float(share), self.eps, False)


class _InstanceNorm(_Running):
    """Over everything but the channels, for every example."""

    def layer(self) -> gennorm.NormalizationLayer:
        """Make the layer of the core that the attributes stand for."""
        return gennorm.instance_norm(self._channels(), epsilon=self.eps)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize by the input, or by the running statistics in evaluation."""
        recorded = self._recorded(input)
        return super().forward(input) if recorded is None else recorded

    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        weight = self._parameter("weight")
        own = self.training or not self.track_running_stats  # whether it is normalized by its own moments
        if (own or self.running_mean is not None) and is_faster_in_torch(input, weight, INSTANCE, INSTANCE_LAST):
            if own:
                _require_several(input, 1)
            bias, share = self._parameter("bias"), self.momentum or 0.0
            y = computed(torch.instance_norm, input, weight, bias, *self._running(), own, share, self.eps, False)
            if y is not None:
                return y
        if not self.training and self.track_running_stats:
            return self._normalized(input, self._running())
        _require_several(input, 1)
        if self.running_mean is None:
            return self._normalized(input)
        return self._normalized_by_batch(input, self._gennorm.config.momentum)


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


def _require_several(x: Tensor, first: int) -> None:
    """Refuse slices of one value, which are all alike when they are normalized; `first` is how many an example has."""
    if first * x.shape[2:].numel() == 1:
        msg = f"an input of shape {tuple(x.shape)} has one value for each mean, and its normalization is 0\n"
        msg += "pass more examples, or more values of each; or call module.eval() where it has running statistics"
        raise ShapeError(msg, code="S040")
