"""Moments as tensors: count, mean and second moment of every slice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import gennorm
from gennorm.definition import SliceMoments
from gennorm.errors import ParameterError
from gennorm.layer.statistics import used
from gennorm.spec.config import LayerConfig
from gennorm.torch.tensors import array_of

__all__ = ["Moments", "mean_and_variance", "moments_dtype"]


class Moments(SliceMoments):
    r"""Count :math:`n`, mean :math:`\mu` and second moment :math:`M = \sum (x - \mu)^2` of slices.

    The tensors have one axis for each level that is kept, the batch included, and a grouped level counts its groups.
    They are float64, or float32 on a device that has no float64. The method RMS has no mean, and its `m2` is the sum of
    squares.

    ``one + other`` are the moments of what is counted in either, `pooled` those of all slices along some axes, and
    `mixed` convex combinations. These, and the moments that `NormalizationLayer.measure` returns, are differentiable.

    Attributes
    ----------
    count : Tensor
    mean : Tensor or None
    m2 : Tensor

    Examples
    --------
    >>> one = Moments(torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([2.0]))
    >>> both = one + Moments(torch.tensor([2.0]), torch.tensor([5.0]), torch.tensor([2.0]))
    >>> both.mean, both.variance()
    (tensor([3.]), tensor([5.]))
    """

    __slots__ = ()

    def detach(self) -> Moments:
        """Return the same moments without their gradient."""
        return Moments(*(None if one is None else one.detach() for one in self))

    def to_core(self) -> gennorm.Moments:
        """Return the moments as arrays, as the layer of the core takes them."""
        count, m2 = (array_of(one.detach().cpu()) for one in (self.count, self.m2))
        return gennorm.Moments(count, None if self.mean is None else array_of(self.mean.detach().cpu()), m2)

    @classmethod
    def from_core(cls, moments: gennorm.Moments, device: Any = None) -> Moments:
        """Return moments of the core as tensors on a device.

        Examples
        --------
        >>> Moments.from_core(gennorm.Moments.from_variance([1.0], [4.0], 2)).m2
        tensor([8.], dtype=torch.float64)
        """
        dtype = moments_dtype(torch.device("cpu") if device is None else torch.device(device))
        arrays = moments.count, moments.mean, moments.m2
        return cls(*(None if one is None else torch.tensor(one, dtype=dtype, device=device) for one in arrays))


def moments_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of moments on a device: float64 where there is one."""
    return torch.float32 if device.type == "mps" else torch.float64


def mean_and_variance(moments: Any, config: LayerConfig, device: torch.device) -> tuple[Tensor | None, Tensor]:
    """Return the mean, None for the method RMS, and the variance that moments stand for.

    Parameters
    ----------
    moments : Moments, gennorm.Moments, or tuple of Tensor
        A tuple is a pair of mean and variance.

    Raises
    ------
    ParameterError
        They are of another type, or lack the mean that the method needs.
    """
    if isinstance(moments, Moments):
        if moments.mean is None or config.method == "RMS":
            if config.method == "Standardize":
                used(gennorm.Moments.from_variance(None, 1.0), config)  # raises
            square = moments.m2 if moments.mean is None else moments.m2 + moments.count * moments.mean**2
            return None, Moments(moments.count, None, square).variance()
        return moments.mean, moments.variance(config.unbiased)
    if isinstance(moments, tuple) and len(moments) == 2 and isinstance(moments[1], Tensor):
        mean, variance = moments
        if config.method == "RMS":
            return None, variance
        if mean is None:
            used(gennorm.Moments.from_variance(None, 1.0), config)  # raises
        return mean, variance
    if not isinstance(moments, gennorm.Moments):
        msg = f"moments are of type {type(moments).__name__}\n"
        msg += "pass what measure(x) returned, a pair of tensors (mean, variance), or gennorm.Moments"
        raise ParameterError(msg, code="T030")
    dtype = moments_dtype(device)
    center, spread = used(moments, config)
    mean = None if center is None else torch.tensor(center, dtype=dtype, device=device)
    return mean, torch.tensor(spread, dtype=dtype, device=device)
