"""What a layer computes, as functions of arrays of JAX: checks, mapped axes, and the definition.

The functions can be transformed by `jit`, `grad`, `vjp`, `jvp`, `vmap`, `scan`, `checkpoint` and `shard_map`, to any
order and in any combination.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import gennorm
from gennorm import definition
from gennorm.definition import SliceMoments
from gennorm.errors import GroupError, ParameterError
from gennorm.extend import Computation, Given
from gennorm.jax.arrays import array_of, has_open_sizes, mask_of, parameter_of, weights_of
from gennorm.jax.kernels import are_possible_for, normalize_by_kernels
from gennorm.jax.merging import MappedAxis, concatenated, merged, shared_mean
from gennorm.jax.moments import Moments
from gennorm.layer.statistics import applicable
from gennorm.spec import levels
from gennorm.spec.config import LayerConfig, Resolved

__all__ = ["Pair", "compute", "compute_moments", "folded", "measure", "moments_of", "normalize", "slices_are_shared"]

Array = Any
Pair = tuple[Array | None, Array]  # mean and variance; no mean for the method RMS


def normalize(
    x: Any,
    aggregation_levels: Any = "2;;All",
    scaling_levels: Any = "Complement",
    group_number: Any = None,
    method: str = "Standardize",
    unbiased: bool = False,
    epsilon: float = 1e-3,
    epsilon_placement: str = "inside",
    *,
    scaling: Any = None,
    biases: Any = None,
    mask: Any = None,
    weights: Any = None,
    moments: Any = None,
    axis_name: Any = None,
    batched: bool | None = None,
) -> Array:
    r"""Normalize an array over any levels.

    .. math:: y = s \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + b
              \qquad\text{or, with method "RMS",}\qquad
              y = s \frac{x}{\sqrt{\overline{x^2} + \epsilon}} + b

    Parameters
    ----------
    x : array of shape (...)
        One example, or with ``batched=True`` a batch of examples. Real numbers or booleans.
    aggregation_levels, scaling_levels, group_number, method, unbiased, epsilon, epsilon_placement
        As those of `gennorm.NormalizationLayer`. They are static: no tracers.
    scaling, biases : array, optional
        Of the sizes of the scaling levels, or with the batch axis in front of them: one for each example.
    mask : array of bool, optional
        Broadcasts to `x`; what is True counts in the statistics.
    weights : array, optional
        How much an element counts; at least 0, and broadcasts to `x`.
    moments : tuple of arrays or Moments, optional
        ``(mean, variance)``, or what `measure` returned, to normalize by in place of the array's own. Shapes broadcast
        to the levels that are kept, the batch included. Derivatives go through them.
    axis_name : str or tuple of str, optional
        Names of mapped axes that the batch is spread over. Where level 0 is aggregated the moments are those of all
        parts together, and so are the gradients. Where it is not there is nothing to merge, and no communication.
    batched : bool, optional
        Whether the first axis is the batch, level 0. If not given, the array is one example.

    Returns
    -------
    Array
        Of the shape of `x`, in its dtype if that is floating, else in float32 or float64.

    Raises
    ------
    InputError, DtypeError
        An array is of a wrong type or dtype.
    ParameterError, ShapeError
        A parameter, moments or a mask have a wrong shape.
    GennormError
        As `gennorm.NormalizationLayer`.

    Examples
    --------
    >>> x = jnp.array([[1.0, 2.0, 3.0], [0.0, 0.0, 6.0]])
    >>> normalize(x, -1, epsilon=0).round(4)
    Array([[-1.2247,  0.    ,  1.2247],
           [-0.7071, -0.7071,  1.4142]], dtype=float32)
    >>> jax.jit(jax.grad(lambda x: normalize(x, -1)[0, 0]))(x).round(3)
    Array([[ 0.205, -0.408,  0.203],
           [ 0.   ,  0.   ,  0.   ]], dtype=float32)
    """
    config = _config(
        *(aggregation_levels, scaling_levels, group_number, method, unbiased, epsilon),
        epsilon_placement=epsilon_placement,
        batched=batched,
    )
    axis = MappedAxis.of(axis_name)
    axis = axis if slices_are_shared(config, axis) else None
    return compute(x, config, scaling, biases, mask=mask, weights=weights, moments=moments, axis=axis)[0]


def measure(
    x: Any,
    aggregation_levels: Any = "2;;All",
    group_number: Any = None,
    method: str = "Standardize",
    *,
    mask: Any = None,
    weights: Any = None,
    axis_name: Any = None,
    batched: bool | None = None,
) -> Moments:
    r"""Return the moments of the slices of an array: count, mean and :math:`M = \sum w (x - \mu)^2`.

    Parameters
    ----------
    x, aggregation_levels, group_number, method, mask, weights, axis_name, batched
        As those of `normalize`.

    Returns
    -------
    Moments
        A named tuple of `count`, `mean` and `m2`, with one value for each slice, in float64 if ``jax_enable_x64`` is
        set and else in float32. With the method RMS `mean` is None, and `m2` the sum of squares.

    Raises
    ------
    GennormError
        As `normalize`.

    Examples
    --------
    >>> measure(jnp.array([[1.0, 3.0, 8.0]]), -1, mask=jnp.array([True, True, False]))
    Moments(count=Array([2.], dtype=float32), mean=Array([2.], dtype=float32), m2=Array([2.], dtype=float32))
    """
    config = _config(aggregation_levels, (), group_number, method, batched=batched)
    axis = MappedAxis.of(axis_name)
    return compute_moments(
        x, config, mask=mask, weights=weights, axis=axis if slices_are_shared(config, axis) else None
    )


# ------------------------------------------------------------------------------------------- for the layer and modules


def compute(
    x: Any,
    config: LayerConfig,
    scaling: Any,
    biases: Any,
    *,
    mask: Any = None,
    weights: Any = None,
    moments: Any = None,
    grouped: bool = False,
    axis: MappedAxis | None = None,
) -> tuple[Array, Any]:
    """Return the output for an array, and the moments that it was normalized by.

    Parameters
    ----------
    x, scaling, biases, mask, weights, moments
        As those of `normalize`.
    config : LayerConfig
        Its `statistics` are not used.
    grouped : bool, default False
        Whether given moments have one value for each group of the batch, as those of `x` have.
    axis : MappedAxis, optional
        Of which all devices hold parts of the same slices.
    """
    x = array_of(x, "the input")
    given = moments is not None
    resolved = _computation(config).resolve(x.shape, given=given and not grouped)
    _require_whole_batch(resolved, axis)
    scaling, biases = parameter_of(scaling, "scaling", resolved), parameter_of(biases, "biases", resolved)
    counted = _counted(mask, weights, x.shape)
    if given:
        moments = moments_of(moments, config, resolved)
    static = {"config": config, "grouped": grouped, "axis": None if given else axis}
    return _compute(x, scaling, biases, counted, moments, **static)


def compute_moments(
    x: Any, config: LayerConfig, *, mask: Any = None, weights: Any = None, axis: MappedAxis | None = None
) -> Moments:
    """Return the moments of an array; the arguments are those of `compute`."""
    x = array_of(x, "the input")
    _require_whole_batch(_computation(config).resolve(x.shape), axis)
    return Moments(*_measure(x, _counted(mask, weights, x.shape), config=config, axis=axis))


def folded(
    moving: Pair,
    moments: SliceMoments,
    shape: tuple[int, ...],
    config: LayerConfig,
    axis: MappedAxis | None = None,
    *,
    unbiased: bool = False,
) -> Pair:
    """Return the moving mean and variance after the moments of an array of a shape are folded in, as constants.

    Parameters
    ----------
    moving : tuple of arrays
        Mean, None for the method RMS, and variance.
    moments : SliceMoments
        Those of the array; merged over the axis where its slices extend over it.
    shape : tuple of int
        Of the array.
    config : LayerConfig
        Its `momentum` is used.
    axis : MappedAxis, optional
        Of which all devices hold arrays with slices for the same moving moments.
    unbiased : bool, default False
        Fold the unbiased variance.

    Returns
    -------
    tuple of arrays
        In the dtypes of the moving ones.
    """
    resolved = _computation(config).resolve(shape)
    moments = lax.stop_gradient(moments)
    if axis is not None and not slices_are_shared(config, axis):
        moments = concatenated(moments, axis)
    mean, variance = (None if one is None else lax.stop_gradient(one) for one in moving)
    news = definition.fold(mean, variance, moments, config, resolved, unbiased=unbiased)
    old = mean, variance
    return tuple(None if one is None else new.astype(one.dtype) for one, new in zip(old, news, strict=True))  # type: ignore[return-value]


def moments_of(moments: Any, config: LayerConfig, resolved: Resolved) -> Pair:
    """Return given moments as mean and variance, arrays of JAX.

    Raises
    ------
    ParameterError
        They are not a pair, `Moments` or `gennorm.Moments`, or have a wrong shape.
    """
    rms = config.method == "RMS"
    if isinstance(moments, (SliceMoments, gennorm.Moments)):
        count, mean, m2 = moments.count, moments.mean, moments.m2
        if (mean is None) != rms:
            has = (
                "no mean, as those of the method RMS" if mean is None else "a mean, as those of the method Standardize"
            )
            msg = f"the moments have {has}, and the layer has the method {config.method}\n"
            msg += f'measure them with method="{config.method}", or pass (mean, variance)'
            raise ParameterError(msg, code="P040")
        count, m2 = jnp.asarray(count), jnp.asarray(m2)
        degrees = count - 1 if config.unbiased else count
        variance = jnp.where(degrees > 0, m2 / jnp.where(degrees > 0, degrees, 1), 0)
    elif isinstance(moments, tuple) and len(moments) == 2:
        mean, variance = moments
        if mean is None and not rms:
            msg = "moments have no mean, and the method Standardize subtracts one\npass (mean, variance)"
            raise ParameterError(msg, code="P041")
        variance = array_of(variance, "the variance")
    else:
        msg = f"moments are of type {type(moments).__name__}\n"
        msg += "pass a tuple of two arrays, (mean, variance), what measure(x) returned, or gn.Moments"
        raise ParameterError(msg, code="P042")
    mean = None if rms else array_of(mean, "the mean")
    if not has_open_sizes(resolved.moments_shape):
        for one in (mean, variance):
            if one is not None:
                applicable(Given(None, np.broadcast_to(np.float32(0), one.shape)), resolved, config)
    return mean, variance


def slices_are_shared(config: LayerConfig, axis: MappedAxis | None) -> bool:
    """Return whether slices extend over the devices of an axis that the batch is spread over."""
    return axis is not None and levels.uses_batch(config.aggregation_levels)


def _require_whole_batch(resolved: Resolved, axis: MappedAxis | None) -> None:
    """Refuse groups of a batch that is spread over devices: every device has a part of each group."""
    if axis is not None and resolved.batched and resolved.groups[0] > 1:
        msg = f"level 0, the batch, is split into {resolved.groups[0]} groups, and devices hold parts of it\n"
        msg += "leave out its groups, or leave out axis_name: every device is a group then"
        raise GroupError(msg, code="G030")


# --------------------------------------------------------------------------------------------------------- the numbers


@functools.partial(jax.jit, static_argnames=("config", "grouped", "axis"))
def _compute(
    x: Array,
    scaling: Array | None,
    biases: Array | None,
    weights: Array | None,
    moments: Any,
    *,
    config: LayerConfig,
    grouped: bool,
    axis: MappedAxis | None,
) -> tuple[Array, Any]:
    resolved = _computation(config).resolve(x.shape, given=moments is not None and not grouped)
    parameters = {"scaling": scaling, "biases": biases}
    by_own = axis is None and weights is None and moments is None
    if by_own and are_possible_for(x, (scaling, biases), resolved):
        return normalize_by_kernels(x, scaling, biases, _computation(config).config, resolved)
    if axis is None:
        return definition.normalize(x, config, resolved, **parameters, weights=weights, moments=moments)
    counted = None if weights is None else weights != 0
    hidden = None if counted is None else ~counted & ~jnp.isfinite(x)
    centred, centre = _centred(x, hidden, config, resolved, weights, axis)
    found = merged(definition.measure(centred, config, resolved, weights=weights), axis)
    y, _ = definition.normalize(centred, config, resolved, **parameters, moments=found)
    if hidden is not None:  # what does not count has no part in a derivative either
        shown = _spread(centre, x, resolved)
        rest, _ = definition.normalize(
            *(x.astype(centred.dtype) - shown, config, resolved), scaling=scaling, moments=lax.stop_gradient(found)
        )
        y = jnp.where(hidden, lax.stop_gradient(rest), y)
    return y.astype(_result_dtype(x)), found._replace(mean=None if found.mean is None else found.mean + centre)


@functools.partial(jax.jit, static_argnames=("config", "axis"))
def _measure(x: Array, weights: Array | None, *, config: LayerConfig, axis: MappedAxis | None) -> SliceMoments:
    resolved = _computation(config).resolve(x.shape)
    if axis is None:
        return definition.measure(x, config, resolved, weights=weights)
    hidden = None if weights is None else (weights == 0) & ~jnp.isfinite(x)
    centred, centre = _centred(x, hidden, config, resolved, weights, axis)
    found = merged(definition.measure(centred, config, resolved, weights=weights), axis)
    return found._replace(mean=None if found.mean is None else found.mean + centre)


def _centred(
    x: Array,
    hidden: Array | None,
    config: LayerConfig,
    resolved: Resolved,
    weights: Array | None,
    axis: MappedAxis,
) -> tuple[Array, Array]:
    """Return the array less one constant for each slice, in the dtype of the arithmetic, and the constants.

    The output does not depend on the constants. With them the merged moments are as exact as those of one array,
    without float64 too: float32 data whose mean is a million deviations from zero is right.
    """
    values = x.astype(jnp.promote_types(_result_dtype(x), jnp.float32))
    if hidden is not None:
        values = jnp.where(hidden, 0, values)
    if config.method == "RMS":
        return values, jnp.zeros((), values.dtype)
    centre = shared_mean(definition.measure(values, config, resolved, weights=weights), axis)
    centre = centre.astype(values.dtype)
    return values - _spread(centre, x, resolved), centre


def _spread(values: Array, x: Array, resolved: Resolved) -> Array:
    """Return a value for each slice as an array that broadcasts to the elements."""
    if values.ndim == 0:
        return values
    shape: list[Any] = []
    groups: list[int] = []
    sizes = iter(values.shape)
    for at, (size, number) in enumerate(zip(x.shape, resolved.groups, strict=True)):
        kept = at not in resolved.aggregation or number > 1
        shape.append(next(sizes) if kept else 1)
        groups.append(size // number if number > 1 else 1)
    values = values.reshape(shape)
    for at, repeats in enumerate(groups):
        values = values if repeats == 1 else jnp.repeat(values, repeats, axis=at)
    return values


def _result_dtype(x: Array) -> Any:
    """Return the dtype of the output, as the definition has it."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x.dtype
    return jnp.float32 if x.dtype.itemsize <= 2 else jax.dtypes.canonicalize_dtype(np.float64)


def _counted(mask: Any, weights: Any, shape: tuple[int, ...]) -> Array | None:
    """Return the weights of the elements: 0 where a mask is False."""
    mask, weights = mask_of(mask, shape), weights_of(weights, shape)
    if mask is None or weights is None:
        return mask if weights is None else weights
    return jnp.where(mask, weights, jnp.zeros_like(weights))


def _config(*arguments: Any, **keywords: Any) -> LayerConfig:
    try:
        return _cached_config(*arguments, **keywords)
    except TypeError:  # a list or a mapping, which cannot be hashed
        return LayerConfig.make(*arguments, **keywords)


@functools.lru_cache(maxsize=256, typed=True)
def _cached_config(*arguments: Any, **keywords: Any) -> LayerConfig:
    return LayerConfig.make(*arguments, **keywords)


@functools.lru_cache(maxsize=256)
def _computation(config: LayerConfig) -> Computation:
    return Computation(replace(config, statistics="input"))
