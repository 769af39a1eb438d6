"""Torch's own normalization layers, computed by gennorm.

Each is a subclass of torch's class of the same name and has its constructor, parameters, buffers and state dict; only
`forward` differs. Settings such as ``eps`` are read again when they are assigned. For small inputs, where torch's own
operators are faster, the layers call these (`gennorm.torch.crossover`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils._expanded_weights.expanded_weights_impl import ExpandedWeight

import gennorm
from gennorm.errors import (
    ConfigError,
    GennormError,
    GroupError,
    LevelRangeError,
    ParameterError,
    ShapeError,
    TensorError,
)
from gennorm.spec.config import LayerConfig
from gennorm.torch.computation import Pair, TensorComputation
from gennorm.torch.crossover import Crossover, computed, is_faster_in_torch
from gennorm.torch.layouts import arranged, restrided
from gennorm.torch.module import Normalization
from gennorm.torch.tensors import FLOATING, HALVES, is_eager

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
    _gennorm_arrangement = "contiguous"  # the strides that torch gives the output: see gennorm.torch.layouts
    _gennorm_layer: Callable[
        [], gennorm.NormalizationLayer
    ]  # makes the layer of the core that the attributes stand for

    def _gennorm_settings(self) -> LayerConfig:
        return LayerConfig.from_dict(self._gennorm_layer().to_config())

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if "_gennorm" in vars(self) and name in self.__constants__:
            self._gennorm_begin()

    def _gennorm_normalized(
        self, x: Tensor, moments: Pair | None = None, computation: TensorComputation | None = None
    ) -> Tensor:
        return self._gennorm_run(partial((computation or self._gennorm).normalize, moments=moments), x)

    def _gennorm_run(self, compute: Callable[..., Tensor], x: Tensor) -> Tensor:
        """Compute with the parameters; the output has torch's strides, and an error torch's class."""
        x, strided = self._gennorm_arranged(x)
        try:
            y = compute(x, self._gennorm_parameter("weight"), self._gennorm_parameter("bias"))
        except MISFITS as error:
            raise TensorError(error.message, code=error.code) from None
        return restrided(y, x) if strided else y

    def _gennorm_arranged(self, x: Tensor) -> tuple[Tensor, bool]:
        """Return an input with the strides that the output is to have, and whether those are not contiguous.

        While torch traces or compiles, strides depend on sizes that may be open, and stay as they are.
        """
        if not isinstance(x, Tensor) or not is_eager() or x.is_contiguous():
            return x, False
        return arranged(x, self._gennorm_arrangement), True


class TorchNorm(Configured):
    """The base of the layers that torch has too.

    Every name that it adds to torch's class begins with ``_gennorm``, so that it hides no attribute of a subclass.
    """

    def _gennorm_begin(self) -> None:
        try:
            super()._gennorm_begin()
        except GennormError:  # settings that torch takes and gennorm does not, such as eps=-1
            vars(self)["_gennorm"] = None

    def _gennorm_defers(self, x: Any) -> bool:
        """Return whether torch's own forward computes: for settings, dtypes and tensors that only torch takes."""
        if self._gennorm is None:
            return True
        if not isinstance(x, Tensor):
            return False
        if x.is_nested:
            return True
        for name in ("weight", "bias"):
            parameter = self._gennorm_parameter(name)
            if parameter is None or parameter.dtype is x.dtype:
                if type(parameter) is ExpandedWeight:  # per-sample gradients
                    return True
            elif x.dtype in FLOATING and not (parameter.dtype is torch.float32 and x.dtype in HALVES):
                return True
        return False

    def __prepare_scriptable__(self) -> nn.Module:
        # torch.jit.script compiles what this returns: torch's own layer with the same parameters.
        original: Any = getattr(type(self), "_gennorm_original", None) or next(
            kind for kind in type(self).__mro__ if not issubclass(kind, Normalization)
        )
        made: nn.Module = object.__new__(original)
        vars(made).update({name: value for name, value in vars(self).items() if not name.startswith("_gennorm")})
        return made

    def reset_parameters(self) -> None:
        """Set the initial parameters; torch's constructors do this last."""
        super().reset_parameters()  # type: ignore[misc] # torch's class comes after this one
        self._gennorm_begin()


class LayerNorm(TorchNorm, nn.LayerNorm):
    """`torch.nn.LayerNorm`, computed by ``gennorm.layer_norm``.

    Examples
    --------
    >>> LayerNorm(4)(torch.tensor([[1.0, 2.0, 4.0, 5.0]])).detach()
    tensor([[-1.2649, -0.6325,  0.6325,  1.2649]])
    """

    def _gennorm_layer(self) -> gennorm.NormalizationLayer:
        """Make the layer of the core that the attributes stand for."""
        return gennorm.layer_norm(self.normalized_shape, epsilon=self.eps)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize over the trailing axes."""
        weight = self._gennorm_parameter("weight")
        if is_faster_in_torch(input, weight, LAYER):
            bias = self._gennorm_parameter("bias")
            y = computed(torch.layer_norm, input, self.normalized_shape, weight, bias, self.eps, False)
            if y is not None:
                return y
        recorded = self._gennorm_recorded(input)
        if recorded is not None:
            return recorded
        return super().forward(input) if self._gennorm_defers(input) else self._gennorm_normalized(input)


class RMSNorm(TorchNorm, nn.RMSNorm):
    """`torch.nn.RMSNorm`, computed by ``gennorm.rms_norm``.

    Examples
    --------
    >>> RMSNorm(2)(torch.tensor([[1.0, 7.0]])).detach()
    tensor([[0.2000, 1.4000]])
    """

    _gennorm_arrangement = "suggested"
    _gennorm_float64: TensorComputation  # with its epsilon, where none is given

    def _gennorm_layer(self, dtype: torch.dtype = torch.float32) -> gennorm.NormalizationLayer:
        """Make the layer of the core that the attributes stand for."""
        return gennorm.rms_norm(self.normalized_shape, epsilon=torch.finfo(dtype).eps if self.eps is None else self.eps)

    def _gennorm_begin(self) -> None:
        super()._gennorm_begin()
        if self._gennorm is None:
            return
        self._gennorm_float64 = TensorComputation(LayerConfig.from_dict(self._gennorm_layer(torch.float64).to_config()))

    def forward(self, x: Tensor) -> Tensor:
        """Divide by the root mean square over the trailing axes."""
        weight = self._gennorm_parameter("weight")
        if is_faster_in_torch(x, weight, RMS):
            y = computed(torch.rms_norm, x, self.normalized_shape, weight, self.eps)
            if y is not None:
                return y
        recorded = self._gennorm_recorded(x)
        if recorded is not None:
            return recorded
        return (
            super().forward(x)
            if self._gennorm_defers(x)
            else self._gennorm_normalized(x, computation=self._gennorm_of(x))
        )

    def _gennorm_of(self, x: Any) -> TensorComputation:
        """Return the computation with the epsilon for the dtype of an input."""
        return self._gennorm_float64 if isinstance(x, Tensor) and x.dtype is torch.float64 else self._gennorm


class GroupNorm(TorchNorm, nn.GroupNorm):
    """`torch.nn.GroupNorm`, computed by ``gennorm.group_norm``.

    Examples
    --------
    >>> GroupNorm(2, 4, affine=False)(torch.tensor([[[1.0], [3.0], [10.0], [30.0]]])).flatten()
    tensor([-1.0000,  1.0000, -1.0000,  1.0000])
    """

    _gennorm_arrangement = "suggested"

    def _gennorm_layer(self) -> gennorm.NormalizationLayer:
        """Make the layer of the core that the attributes stand for."""
        return gennorm.group_norm(self.num_groups, self.num_channels if self.affine else None, epsilon=self.eps)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize every example over groups of channels and all other axes."""
        recorded = self._gennorm_recorded(input)
        if recorded is not None:
            return recorded
        if self._gennorm_defers(input):
            return super().forward(input)
        _require_several(input, input.shape[0] * input.shape[1] // self.num_groups if input.dim() > 1 else 0)
        weight = self._gennorm_parameter("weight")
        # With channels last torch takes far longer for feature maps of fewer elements than it divides among threads.
        if is_faster_in_torch(input, weight, GROUP, GROUP_LAST) and (
            input.is_contiguous() or input.shape[2:].numel() >= FEATURE_MAP
        ):
            y = computed(
                torch.group_norm, input, self.num_groups, weight, self._gennorm_parameter("bias"), self.eps, False
            )
            if y is not None:
                return y
        return self._gennorm_normalized(input)


class _Running(TorchNorm):
    """What the layers with running statistics have in common: they are folded as torch folds them."""

    running_mean: Tensor | None
    momentum: float | None
    num_features: int
    affine: bool
    track_running_stats: bool
    eps: float
    _check_input_dim: Callable[[Tensor], None]

    def _gennorm_settings(self) -> LayerConfig:
        config = super()._gennorm_settings()
        if not 0 <= (self.momentum or 0.0) <= 1:
            msg = f"momentum is {self.momentum}, and gennorm takes the share of the new value, from 0 to 1\n"
            msg += "assign module.momentum = 0.1"
            raise ConfigError(msg, code="C126")
        return replace(config, momentum=1 - float(self.momentum or 0.0))  # torch counts the share of the new value

    def _gennorm_channels(self) -> int | None:
        """Return the number of channels that an input has; None where any number will do."""
        return self.num_features if self.affine or self.running_mean is not None else None

    def _gennorm_running(self) -> Any:
        return self.running_mean, self.running_var

    def _gennorm_by_batch(self, x: Tensor, share: float | Tensor | None) -> Tensor:
        """Normalize by the moments of the input, of which the running ones take a share."""
        momentum = share if isinstance(share, Tensor) else self._gennorm.config.momentum
        compute = partial(
            self._gennorm.normalize_and_fold, moving=self._gennorm_running(), momentum=momentum, unbiased=True
        )
        return self._gennorm_run(compute, x)


class _BatchNorm(_Running):
    """Over the batch and everything but the channels."""

    _gennorm_arrangement = "suggested, or channels last"

    def _gennorm_layer(self) -> gennorm.NormalizationLayer:
        """Make the layer of the core that the attributes stand for."""
        return gennorm.batch_norm(self._gennorm_channels(), epsilon=self.eps)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize by the batch in training, by the running statistics in evaluation."""
        recorded = self._gennorm_recorded(input)
        if recorded is not None:
            return recorded
        if self._gennorm_defers(input):
            return super().forward(input)
        self._check_input_dim(input)
        running = self.running_mean is not None
        if not self.training:
            moments = self._gennorm_running() if running else None
            y = self._gennorm_by_torch(input, moments, 0.0)
            return self._gennorm_normalized(input, moments) if y is None else y
        _require_several(input, input.shape[0])
        if self.eps <= 0:
            msg = f"eps is {self.eps}, and torch's batch norm trains with a positive one\nassign module.eps = 1e-5"
            raise ConfigError(msg, code="C122")
        if not (self.track_running_stats and running):
            y = self._gennorm_by_torch(input, None, 0.0)
            return self._gennorm_normalized(input) if y is None else y
        batches: Any = self.num_batches_tracked
        share = self.momentum
        if share is None and batches is not None:  # each batch counts as much as every one before it
            share = (batches + 1).double().reciprocal()
        y = self._gennorm_by_torch(input, self._gennorm_running(), 0.0 if share is None else share)
        if y is None:
            y = self._gennorm_by_batch(input, share)
        if batches is not None:
            batches.add_(1)
        return y

    def _gennorm_by_torch(self, x: Tensor, moments: Any, share: float | Tensor) -> Tensor | None:
        """Return the output of torch's operator, which folds in the moments in training; None if kernels are faster."""
        weight, measures = self._gennorm_parameter("weight"), self.training or moments is None
        if not measures:
            faster = is_faster_in_torch(x, weight, EVALUATION)
        else:
            faster = is_faster_in_torch(x, weight, BATCH if x.dim() > 2 else BATCH_LAST, BATCH_LAST)
        if not faster:
            return None
        mean, variance = (None, None) if moments is None else moments
        bias = self._gennorm_parameter("bias")
        return computed(torch.batch_norm, x, weight, bias, mean, variance, measures, float(share), self.eps, False)


class _InstanceNorm(_Running):
    """Over everything but the channels, for every example."""

    def _gennorm_layer(self) -> gennorm.NormalizationLayer:
        """Make the layer of the core that the attributes stand for."""
        return gennorm.instance_norm(self._gennorm_channels(), epsilon=self.eps)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize by the input, or by the running statistics in evaluation."""
        recorded = self._gennorm_recorded(input)
        return super().forward(input) if recorded is None else recorded

    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        if self._gennorm_defers(input):
            return super()._apply_instance_norm(input)  # type: ignore[misc] # torch's class comes after this one
        weight = self._gennorm_parameter("weight")
        own = self.training or not self.track_running_stats  # whether it is normalized by its own moments
        if (own or self.running_mean is not None) and is_faster_in_torch(input, weight, INSTANCE, INSTANCE_LAST):
            if own:
                _require_several(input, 1)
            bias, share = self._gennorm_parameter("bias"), self.momentum or 0.0
            y = computed(
                torch.instance_norm, input, weight, bias, *self._gennorm_running(), own, share, self.eps, False
            )
            if y is not None:
                return y
        if not self.training and self.track_running_stats:
            return self._gennorm_normalized(input, self._gennorm_running())
        _require_several(input, 1)
        if self.running_mean is None:
            return self._gennorm_normalized(input)
        return self._gennorm_by_batch(input, self.momentum)


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
