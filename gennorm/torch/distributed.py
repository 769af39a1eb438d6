"""Statistics of a batch that is spread over processes: moments merged, sums added up, by torch's own collectives."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed

from gennorm.errors import TensorError
from gennorm.moments import Moments

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
    """The moments of the slices of all processes together, merged in the order of their ranks: the same bits for all."""
    mean = np.zeros(moments.shape) if moments.mean is None else moments.mean
    parts = _all(np.stack([moments.count, mean, moments.m2]), group)
    return sum(Moments(count, None if moments.mean is None else mean, m2) for count, mean, m2 in parts)


def gathered(moments: Moments, group: str) -> Moments:
    """The moments of the slices of all processes side by side, along the first axis, which is that of the examples."""
    sizes = [int(size) for size in np.concatenate(_all(np.array([len(moments.count)], np.float64), group))]
    mean = np.zeros(moments.shape) if moments.mean is None else moments.mean
    padded = np.zeros((3, max(sizes), *moments.shape[1:]))
    padded[:, : len(moments.count)] = moments.count, mean, moments.m2
    parts = [part[:, :size] for part, size in zip(_all(padded, group), sizes, strict=True)]
    count, mean, m2 = np.concatenate(parts, 1)
    return Moments(count, None if moments.mean is None else mean, m2)


def added(sums: Array, group: str) -> Array:
    """The sums of all processes, added up."""
    total = torch.from_numpy(sums)
    distributed.all_reduce(total, group=_group(group))
    return total.numpy()


def _all(array: Array, group: str) -> list[Array]:
    """An array of one shape from every process, in the order of their ranks."""
    own = torch.from_numpy(array)
    resolved = _group(group)
    parts = [torch.empty_like(own) for _ in range(distributed.get_world_size(resolved))]
    distributed.all_gather(parts, own, group=resolved)
    return [part.numpy() for part in parts]


def _group(name: str) -> Any:
    found = distributed.distributed_c10d._resolve_process_group(name)
    if "cpu" not in {device.type for device in found._device_types}:
        msg = f"the process group {name} has no backend for tensors on the CPU\nmake one with backend gloo"
        raise TensorError(msg, code="T020")
    return found
