"""Statistics of a batch that is spread over processes: moments merged, sums added up, by torch's own collectives."""

from __future__ import annotations

import functools
import operator
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, distributed

from gennorm.errors import TensorError
from gennorm.moments import Moments
from gennorm.torch.tensors import moments_of, stacked

__all__ = ["added", "gathered", "group_name", "merged"]

Array = npt.NDArray[Any]


def group_name(group: Any) -> str | None:
    """The name of a process group, or of that of all processes; None where this process is alone.

    Examples
    --------
    >>> group_name(None) is None
    True
    """
    if not distributed.is_available() or not distributed.is_initialized():
        return None
    group = distributed.group.WORLD if group is None else group
    name: str = group.group_name
    return name if distributed.get_world_size(group) > 1 else None


def merged(moments: Moments, group: str) -> Moments:
    """The moments of the slices of all processes together; merged in the order of their ranks, so the same for all."""
    method = "RMS" if moments.mean is None else "Standardize"
    parts = [moments_of(part, method) for part in _all(stacked(moments), group)]
    return functools.reduce(operator.add, parts)


def gathered(moments: Moments, group: str) -> Moments:
    """The moments of the slices of all processes side by side, along the first axis, which is that of the examples."""
    own = stacked(moments)
    sizes = [int(size) for size in _all(torch.tensor(own.shape[1]), group)]
    padded = own.new_zeros((3, max(sizes), *own.shape[2:]))  # collectives take tensors of one shape
    padded[:, : own.shape[1]] = own
    parts = [part[:, :size] for part, size in zip(_all(padded, group), sizes, strict=True)]
    return moments_of(torch.cat(parts, 1), "RMS" if moments.mean is None else "Standardize")


def added(sums: Array, group: str) -> Array:
    """The sums of all processes, added up."""
    total = torch.from_numpy(sums)
    distributed.all_reduce(total, group=_group(group))
    return total.numpy()


def _all(own: Tensor, group: str) -> list[Tensor]:
    """A tensor of one shape from every process, in the order of their ranks."""
    resolved = _group(group)
    parts = [torch.empty_like(own) for _ in range(distributed.get_world_size(resolved))]
    distributed.all_gather(parts, own, group=resolved)
    return parts


def _group(name: str) -> Any:
    found: Any = distributed.distributed_c10d._resolve_process_group(name)  # type: ignore[attr-defined,arg-type]
    if "cpu" not in {device.type for device in found._device_types}:
        msg = f"the process group {name} has no backend for tensors on the CPU\nmake one with backend gloo"
        raise TensorError(msg, code="T020")
    return found
