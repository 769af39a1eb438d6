"""The layer as a PyTorch module, on a CPU: any level spec, its parameters, its derivatives.

>>> import torch
>>> import gennorm.torch
>>> module = gennorm.torch.NormalizationLayer("2;;All", input_shape=(3, None, None))
>>> module(torch.ones(2, 3, 8, 8)).shape
torch.Size([2, 3, 8, 8])

How it is made, for whoever adds a module: `tensors` turns tensors into arrays over the same memory and back, and
refuses those that it cannot; `_autograd` has what autograd knows, `functional` the functions that modules call and
`operators` the same for torch.compile; `module` has `Normalization`, the base of every module, which owns `weight`,
`bias` and a core. A module with statistics of its own keeps them in buffers, hands them to `Normalization.normalize` as
``moments=Held(mean, variance)``, and gets those of a batch from `Normalization.normalize_and_measure`.
"""

from gennorm.torch.accelerating import accelerate, restore
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

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "NormalizationLayer",
    "RMSNorm",
    "accelerate",
    "restore",
]
