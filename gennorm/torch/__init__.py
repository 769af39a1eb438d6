"""The layer as a PyTorch module: any level spec, its parameters, its derivatives.

>>> import torch
>>> import gennorm.torch
>>> module = gennorm.torch.NormalizationLayer("2;;All", input_shape=(3, None, None))
>>> module(torch.ones(2, 3, 8, 8)).shape
torch.Size([2, 3, 8, 8])

The modules, from the inside out: `tensors` has arrays over the memory of tensors, and checks; `computation` normalizes
tensors by a kernel or by `gennorm.definition`; `distributed` merges moments over processes; `moments` has moments as
tensors; `module` has the base class of every module and `NormalizationLayer`; `layouts` has the strides of outputs;
`layers` has torch's own layers; `crossover` decides where these call torch's operators; `folding` puts a norm into the
layer before it; `proving` proves that a forward is a norm; `accelerating` changes models; `zoo` has
published normalizations by name.
"""

from gennorm.torch import zoo
from gennorm.torch.accelerating import accelerate, restore
from gennorm.torch.crossover import get_batch_invariant, set_batch_invariant
from gennorm.torch.folding import fold
from gennorm.torch.layers import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LayerNorm,
    RMSNorm,
)
from gennorm.torch.module import NormalizationLayer
from gennorm.torch.moments import Moments

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "Moments",
    "NormalizationLayer",
    "RMSNorm",
    "accelerate",
    "fold",
    "get_batch_invariant",
    "restore",
    "set_batch_invariant",
    "zoo",
]
