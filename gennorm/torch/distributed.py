"""Statistics of a batch that is spread over a group of processes. Every function is differentiable, to any order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed

from gennorm import definition
from gennorm.definition import SliceMoments
from gennorm.errors import TensorError
from gennorm.extend import resolve_config
from gennorm.spec.config import LayerConfig

__all__ = ["added", "joined", "merged", "process_group"]

PROCESSES = LayerConfig.make(0, (), batched=True)  # aggregates the first axis, which is that of the processes


def process_group(group: Any) -> Any:
    """Return a process group, by default that of all processes; None where this process is alone.

    Examples
    --------
    >>> process_group(None) is None
    True
    """
    if not distributed.is_available() or not distributed.is_initialized():
        return None
    group = distributed.group.WORLD if group is None else group
    return group if distributed.get_world_size(group) > 1 else None


class Sum(torch.autograd.Function):
    """The sum of the tensors of all processes; its derivative is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = own.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return Sum.apply(gradient, ctx.group), None  # type: ignore[no-untyped-call]


def added(own: Tensor, group: Any) -> Tensor:
    """Return the sum of the tensors of all processes."""
    if own.device.type not in {device.type for device in group._device_types}:
        msg = f"the process group {group.group_name} has no backend for tensors on the device {own.device.type}\n"
        msg += "make one with backend gloo for the CPU, or nccl for CUDA"
        raise TensorError(msg, code="T020")
    total: Tensor = Sum.apply(own, group)  # type: ignore[no-untyped-call]
    return total


def merged(moments: SliceMoments, group: Any) -> SliceMoments:
    """Return the moments of the slices of all processes together."""
    count, mean, m2 = moments
    counts, means, spreads = _gathered(torch.stack([count, m2 if mean is None else mean, m2]), group).unbind(1)
    if mean is None:
        return SliceMoments(counts.sum(0), None, spreads.sum(0))
    resolved = resolve_config(PROCESSES, tuple(means.shape))
    count, mean, between = definition.measure(means, PROCESSES, resolved, weights=counts)
    return SliceMoments(count, mean, between + spreads.sum(0))


def joined(moments: SliceMoments, group: Any) -> SliceMoments:
    """Return the moments of the slices of all processes, one process after another along the axis of the examples."""
    count, mean, m2 = moments
    own = torch.stack([count, m2 if mean is None else mean, m2], 1)
    sizes = [int(size) for size in _gathered(torch.tensor(len(own)), group)]
    padded = own.new_zeros(max(sizes), *own.shape[1:])  # collectives take tensors of one shape
    padded[: len(own)] = own
    parts = [part[:size] for part, size in zip(_gathered(padded, group), sizes, strict=True)]
    count, middle, m2 = torch.cat(parts).unbind(1)
    return SliceMoments(count, None if mean is None else middle, m2)


def _gathered(own: Tensor, group: Any) -> Tensor:
    """Return the tensors of all processes, of one shape, behind an axis for the ranks."""
    rank, number = distributed.get_rank(group), distributed.get_world_size(group)
    empty = torch.zeros_like(own)
    return added(torch.stack([own if i == rank else empty for i in range(number)]), group)
