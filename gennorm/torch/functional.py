"""Differentiable functions of tensors, each a call of the core and none with arithmetic of its own."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
from torch import Tensor, is_grad_enabled

from gennorm.layer.statistics import following, require_held
from gennorm.moments import Moments
from gennorm.spec.config import LayerConfig, resolve_config
from gennorm.torch._autograd import Job, Normalize, arrays, threads_for, transformed
from gennorm.torch.distributed import gathered
from gennorm.torch.tensors import (
    Held,
    array_of,
    moments_of,
    require_mask,
    require_parameter,
    require_tensor,
    tensor_of,
)

__all__ = ["Job", "fold", "normalize", "normalize_and_measure", "require"]


def normalize(
    job: Job,
    x: Tensor,
    scaling: Tensor | None,
    biases: Tensor | None,
    *,
    mask: Tensor | None = None,
    moments: Tensor | None = None,
) -> Tensor:
    """Normalize a tensor by its own moments or by given ones.

    Parameters
    ----------
    job : Job
        Who computes.
    x : Tensor
        An example or a batch.
    scaling, biases : Tensor or None
        Of the shape of the core's parameters, or None where the core has none.
    mask : Tensor of bool, optional
        True counts.
    moments : Tensor, optional
        Count, mean and m2 of slices that broadcast to those of ``x``, as `stacked` lays them out: what to normalize by
        in place of the input's own moments. Constants.

    Returns
    -------
    Tensor

    Raises
    ------
    TensorError, InputError
        A tensor is not one that can be taken.
    GennormError
        As a call of the core.

    Examples
    --------
    >>> import gennorm, torch
    >>> job = Job(gennorm.NormalizationLayer(1, (), epsilon=0), "Standardize")
    >>> normalize(job, torch.tensor([1.0, 2.0, 3.0]), torch.tensor(2.0), torch.tensor(0.0))
    tensor([-2.4495,  0.0000,  2.4495])
    """
    require(x, scaling, biases, mask)
    if _differentiates(x, scaling, biases) or job.group is not None:
        return Normalize.apply(job, x, scaling, biases, mask, moments)[0]
    given = None if moments is None else moments_of(moments, job.method)
    gains, shifts, counted = arrays(scaling, biases, mask)
    with threads_for(x):
        return tensor_of(job.core(array_of(x), mask=counted, scaling=gains, biases=shifts, moments=given))


def normalize_and_measure(
    job: Job, x: Tensor, scaling: Tensor | None, biases: Tensor | None, *, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Normalize a tensor by its own moments, and return them too.

    Parameters
    ----------
    job, x, scaling, biases, mask
        As in `normalize`.

    Returns
    -------
    y, moments : Tensor
        The output; and count, mean and m2 of the slices, as `stacked` lays them out, without a gradient.

    Raises
    ------
    GennormError
        As `normalize`.

    Examples
    --------
    >>> import gennorm, torch
    >>> job = Job(gennorm.NormalizationLayer(1, (), epsilon=0), "Standardize")
    >>> normalize_and_measure(job, torch.tensor([1.0, 2.0, 3.0]), torch.tensor(1.0), None)[1]
    tensor([3., 2., 2.], dtype=torch.float64)
    """
    require(x, scaling, biases, mask)
    y, _, measured = Normalize.apply(replace(job, measures=True), x, scaling, biases, mask, None)
    return y, measured


def fold(
    config: LayerConfig,
    mean: Tensor | None,
    variance: Tensor,
    batch: Moments,
    shape: tuple[int, ...],
    group: str | None = None,
    unbiased: bool = False,
) -> tuple[Tensor, Tensor]:
    """Fold the moments of a batch into a moving mean and variance.

    Parameters
    ----------
    config : LayerConfig
        Says how, and with which momentum.
    mean, variance : Tensor
        The moving ones; no mean for the method RMS.
    batch : Moments
        Those of the batch.
    shape : tuple of int
        That of the batch.
    group : str, optional
        The processes whose examples count too, where every example has moments of its own.
    unbiased : bool, default False
        Whether the variance that is folded in is that over the count minus one.

    Returns
    -------
    mean, variance : Tensor
        The next ones, in float64; a mean of zeros for the method RMS.

    Examples
    --------
    >>> import gennorm, torch
    >>> config = LayerConfig.make(0, 1, batched=True, statistics="moving", momentum=0.75)
    >>> fold(config, torch.zeros(1), torch.ones(1), gennorm.Moments([4], [8.0], [20.0]), (4, 1))
    (tensor([2.], dtype=torch.float64), tensor([2.], dtype=torch.float64))
    """
    means, variances = Held(mean, variance).arrays()
    if group is not None:
        batch = gathered(batch, group)
    resolved = _resolved(config, shape)
    require_held(variances, resolved)
    doubled = None if means is None else means.astype(np.float64)
    centre, spread = following(doubled, variances.astype(np.float64), batch, resolved, config, unbiased=unbiased)
    return tensor_of(np.zeros(spread.shape) if centre is None else centre), tensor_of(spread)


_resolved = functools.lru_cache(1024)(resolve_config)


def require(x: Tensor, scaling: Tensor | None, biases: Tensor | None, mask: Tensor | None) -> None:
    """Refuse tensors that cannot be taken together; see `normalize`."""
    require_tensor(x, "the input")
    for name, value in (("weight", scaling), ("bias", biases)):
        if value is not None:
            require_parameter(value, name, x)
    if mask is not None:
        require_mask(mask)


def _differentiates(*tensors: Tensor | None) -> bool:
    """Whether a derivative may be asked for of what is computed from these tensors now, in any way that torch has."""
    if is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return transformed()
