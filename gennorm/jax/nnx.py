"""Modules of Flax: the layer as a `flax.nnx.Module`, and Flax's own normalization modules with gennorm's arithmetic.

>>> import jax.numpy as jnp
>>> from flax import nnx
>>> import gennorm.jax.nnx as gnx
>>> module = gnx.BatchNorm(4, rngs=nnx.Rngs(0))
>>> module(jnp.ones((2, 4))).shape
(2, 4)
"""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes, initializers

from gennorm.errors import ConfigError, InitializationError
from gennorm.extend import kept_shape, parameter_shape
from gennorm.jax.arrays import array_of
from gennorm.jax.computation import compute, folded, slices_are_shared
from gennorm.jax.merging import MappedAxis
from gennorm.spec.config import LayerConfig

__all__ = ["BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "NormalizationLayer", "RMSNorm"]

Array = Any

ONES, ZEROS = initializers.ones_init(), initializers.zeros_init()


class NormalizationLayer(nnx.Module):
    """A module that normalizes over any levels, with parameters on any levels.

    Scaling and biases are the `flax.nnx.Param` ``scale`` and ``bias``. With ``statistics="moving"`` the moving moments
    are the `flax.nnx.BatchStat` ``mean`` and ``var``: after ``train()`` a call normalizes by the moments of its input
    and folds them in, after ``eval()`` it normalizes by the moving ones.

    Parameters
    ----------
    aggregation_levels, scaling_levels, group_number, method, unbiased, epsilon, **keywords
        As those of `gennorm.NormalizationLayer`; ``scaling`` and ``biases`` are "Automatic" or None. The sizes of the
        parameters have to be known from the arguments.
    use_running_average : bool, default False
        Whether a call normalizes by the moving moments. ``train()`` and ``eval()`` set it.
    dtype : dtype, optional
        Of the output; as in Flax, that of input and parameters together if not given.
    param_dtype : dtype, default float32
        Of the parameters.
    scale_init, bias_init : callable
        Initializers of Flax.
    axis_name, axis_index_groups
        The mapped axis that the batch is spread over, as in Flax.
    rngs : flax.nnx.Rngs
        Keys for the initializers.

    Raises
    ------
    InitializationError
        The size of a scaling level, or of a level that moving moments keep, is not known.
    ConfigError
        The statistics are those of a data set, or a parameter is given as an array.
    GennormError
        As `gennorm.NormalizationLayer`.

    Examples
    --------
    >>> module = NormalizationLayer("All", 1, {1: 2}, input_shape=(4, None), rngs=nnx.Rngs(0))
    >>> module(jnp.arange(24.0).reshape(2, 4, 3)).mean().round(3) + 0.0
    Array(0., dtype=float32)
    >>> sorted(nnx.to_pure_dict(nnx.state(module)))
    ['bias', 'scale']
    """

    def __init__(
        self,
        aggregation_levels: Any = "2;;All",
        scaling_levels: Any = "Complement",
        group_number: Any = None,
        method: str = "Standardize",
        unbiased: bool = False,
        epsilon: float = 1e-3,
        *,
        use_running_average: bool = False,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        scale_init: Any = ONES,
        bias_init: Any = ZEROS,
        axis_name: Any = None,
        axis_index_groups: Any = None,
        rngs: nnx.Rngs,
        **keywords: Any,
    ) -> None:
        for name, instead in (("scaling", "scale_init"), ("biases", "bias_init")):
            if keywords.get(name, "Automatic") not in ("Automatic", None):
                msg = f'{name} of a module of Flax is "Automatic" or None\n'
                msg += f"for other values pass an initializer as {instead}, or assign them to the module"
                raise ConfigError(msg, code="C153")
        config = LayerConfig.make(
            aggregation_levels, scaling_levels, group_number, method, unbiased, epsilon, **keywords
        )
        if config.statistics == "dataset":
            msg = 'a module of Flax takes no statistics="dataset"\n'
            msg += "use gennorm.jax.NormalizationLayer and its adapt, or gennorm.NormalizationLayer"
            raise ConfigError(msg, code="C154")
        self.config = config
        absent = config.scaling is None and config.biases is None
        shape = () if absent else parameter_shape(config)
        self.scale = nnx.data(None)
        self.bias = nnx.data(None)
        if config.scaling is not None:
            self.scale = nnx.Param(scale_init(rngs.params(), shape, param_dtype))
        if config.biases is not None:
            self.bias = nnx.Param(bias_init(rngs.params(), shape, param_dtype))
        self.mean = nnx.data(None)
        self.var = nnx.data(None)
        if config.statistics == "moving":
            kept = kept_shape(config)
            if kept is None:
                msg = "the sizes of the levels that moving moments keep are not known\ndeclare them in input_shape"
                raise InitializationError(msg, code="I022")
            if config.method == "Standardize":
                self.mean = nnx.BatchStat(jnp.zeros(kept, jnp.float32))
            self.var = nnx.BatchStat(jnp.ones(kept, jnp.float32))
        self.use_running_average = use_running_average
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups

    def __call__(self, x: Any, use_running_average: bool | None = None, *, mask: Any = None) -> Array:
        """Normalize an example or a batch.

        Parameters
        ----------
        x : array
            Of the declared `input_shape`, or a batch of such.
        use_running_average : bool, optional
            In place of that of the module.
        mask : array of bool, optional
            Broadcasts to the input; what is True counts in the statistics.

        Returns
        -------
        Array
            Of the shape of `x`.

        Raises
        ------
        GennormError
            As `gennorm.jax.normalize`.
        """
        config, axis = self.config, MappedAxis.of(self.axis_name, self.axis_index_groups)
        shared = axis if slices_are_shared(config, axis) else None
        scale, bias = _value(self.scale), _value(self.bias)
        x, scale, bias = dtypes.promote_dtype((array_of(x, "the input"), scale, bias), dtype=self.dtype)
        if config.statistics == "input":
            return compute(x, config, scale, bias, mask=mask, axis=shared)[0]
        held = _value(self.mean), _value(self.var)
        average = self.use_running_average if use_running_average is None else use_running_average
        if average or not config.trainable:
            return compute(x, config, scale, bias, moments=held)[0]
        y, moments = compute(x, config, scale, bias, mask=mask, axis=shared)
        _store((self.mean, self.var), folded(held, moments, x.shape, config, axis))
        return y


class BatchNorm(nnx.BatchNorm):
    """`flax.nnx.BatchNorm` with gennorm's arithmetic: the same arguments, variables and modes.

    `use_fast_variance` has no effect: the variance is always exact. A slice in which the mask counts nothing leaves the
    moving moments as they are.

    Examples
    --------
    >>> module = BatchNorm(2, momentum=0.5, rngs=nnx.Rngs(0))
    >>> y = module(jnp.array([[1.0, 2.0], [3.0, 6.0]]))
    >>> module.mean[...], module.var[...]
    (Array([1., 2.], dtype=float32), Array([1. , 2.5], dtype=float32))
    """

    def __call__(self, x: Any, use_running_average: bool | None = None, *, mask: Any = None) -> Array:
        """Normalize by the moments of the input and fold them in, or by the moving ones; see `flax.nnx.BatchNorm`."""
        average = nnx.module.first_from(
            use_running_average,
            self.use_running_average,
            error_msg="pass use_running_average to BatchNorm or to its call, or set it by train() or eval()",
        )
        x, reduced, features, mask, whole = _reducible(array_of(x, "the input"), None, self.axis, mask)
        config = _config(x.ndim, reduced, features, 1, "Standardize", self.epsilon)
        held = self.mean[...], self.var[...]
        scale, bias = _value(self.scale), _value(self.bias)
        x, _, _, scale, bias = self.promote_dtype((x, *held, scale, bias), dtype=self.dtype)
        scale, bias = _shaped(scale, x, features), _shaped(bias, x, features)
        if average:
            shape = tuple(x.shape[axis] for axis in features)
            moments = tuple(one.reshape(shape) for one in held)
            return _as(compute(x, config, scale, bias, moments=moments)[0], x, scale, bias, self.dtype).reshape(whole)
        axis = MappedAxis.of(self.axis_name, self.axis_index_groups)
        y, moments = compute(x, config, scale, bias, mask=mask, axis=axis)
        config = _config(x.ndim, reduced, features, 1, "Standardize", self.epsilon, momentum=self.momentum)
        flat = type(moments)(*(one.reshape(held[1].shape) for one in moments))
        _store((self.mean, self.var), folded(held, flat, x.shape, config))
        return _as(y, x, scale, bias, self.dtype).reshape(whole)


class LayerNorm(nnx.LayerNorm):
    """`flax.nnx.LayerNorm` with gennorm's arithmetic: the same arguments and variables.

    Examples
    --------
    >>> LayerNorm(3, rngs=nnx.Rngs(0))(jnp.array([[1.0, 2.0, 3.0]])).round(3)
    Array([[-1.225,  0.   ,  1.225]], dtype=float32)
    """

    def __call__(self, x: Any, *, mask: Any = None) -> Array:
        """Normalize; see `flax.nnx.LayerNorm`."""
        return _by_own_moments(self, x, self.reduction_axes, self.feature_axes, mask)


class RMSNorm(nnx.RMSNorm):
    """`flax.nnx.RMSNorm` with gennorm's arithmetic: the same arguments and variables.

    Examples
    --------
    >>> RMSNorm(2, rngs=nnx.Rngs(0))(jnp.array([[1.0, 7.0]])).tolist()
    [[0.2, 1.4]]
    """

    def __call__(self, x: Any, mask: Any = None) -> Array:
        """Normalize; see `flax.nnx.RMSNorm`."""
        return _by_own_moments(self, x, self.reduction_axes, self.feature_axes, mask, method="RMS")


class GroupNorm(nnx.GroupNorm):
    """`flax.nnx.GroupNorm` with gennorm's arithmetic: the same arguments and variables.

    `reduction_axes` may be any axes that include the last one.

    Examples
    --------
    >>> GroupNorm(4, num_groups=2, rngs=nnx.Rngs(0))(jnp.array([[1.0, 3.0, 5.0, 9.0]])).round(3)
    Array([[-1.,  1., -1.,  1.]], dtype=float32)
    """

    def __call__(self, x: Any, *, mask: Any = None) -> Array:
        """Normalize; see `flax.nnx.GroupNorm`."""
        x = array_of(x, "the input")
        axes = (*range(1, x.ndim - 1), -1) if self.reduction_axes is None else self.reduction_axes
        return _by_own_moments(self, x, axes, -1, mask, groups=self.num_groups)


class InstanceNorm(nnx.InstanceNorm):
    """`flax.nnx.InstanceNorm` with gennorm's arithmetic: the same arguments and variables.

    Examples
    --------
    >>> InstanceNorm(1, rngs=nnx.Rngs(0))(jnp.array([[[1.0], [2.0], [3.0]]]))[0, :, 0].round(3)
    Array([-1.225,  0.   ,  1.225], dtype=float32)
    """

    def __call__(self, x: Any, *, mask: Any = None) -> Array:
        """Normalize; see `flax.nnx.InstanceNorm`."""
        x = array_of(x, "the input")
        features = _axes(x.ndim, self.feature_axes)
        if 0 in features:
            msg = f"feature_axes {self.feature_axes} include axis 0, which is the batch\n"
            msg += "write the axes of the channels, such as -1"
            raise ConfigError(msg, code="C155")
        return _by_own_moments(self, x, tuple(i for i in range(1, x.ndim) if i not in features), features, mask)


# ---------------------------------------------------------------------------------------------- Flax's terms and ours


def _by_own_moments(
    module: Any, x: Any, reduced: Any, features: Any, mask: Any, *, groups: int = 1, method: str = "Standardize"
) -> Array:
    """Return the output of a module without moving moments."""
    x, reduced, features, mask, whole = _reducible(array_of(x, "the input"), reduced, features, mask)
    config = _config(x.ndim, reduced, features, groups, method, module.epsilon)
    scale, bias = _value(module.scale), _value(getattr(module, "bias", None))
    arrays = (x, scale) if method == "RMS" else (x, scale, bias)
    x, scale, *rest = module.promote_dtype(arrays, dtype=module.dtype)
    bias = rest[0] if rest else None
    axis = MappedAxis.of(module.axis_name, module.axis_index_groups)
    scale, bias = _shaped(scale, x, features), _shaped(bias, x, features)
    y, _ = compute(x, config, scale, bias, mask=mask, axis=axis)
    return _as(y, x, scale, bias, module.dtype).reshape(whole)


def _reducible(x: Array, reduced: Any, features: Any, mask: Any) -> Any:
    """Return an array with an axis to reduce: one of size 1 in front, where Flax reduces none; and its shape before.

    `reduced` None stands for all axes but those of the features.
    """
    features, shape, mask = _axes(x.ndim, features), x.shape, _mask(mask, x)
    reduced = tuple(i for i in range(x.ndim) if i not in features) if reduced is None else _axes(x.ndim, reduced)
    if not reduced:
        x, mask = x[None], None if mask is None else mask[None]
        reduced, features = (0,), tuple(axis + 1 for axis in features)
    return x, reduced, features, mask, shape


@functools.lru_cache(maxsize=256)
def _config(
    rank: int,
    reduced: tuple[int, ...],
    features: tuple[int, ...],
    groups: int,
    method: str,
    epsilon: float,
    momentum: float = 0.99,
) -> LayerConfig:
    """Return the config for axes of an array of this rank. Every axis is a level of one example, the batch too."""
    return LayerConfig.make(
        [axis + 1 for axis in reduced],
        [axis + 1 for axis in features],
        {rank: groups} if groups > 1 else None,
        method,
        epsilon=epsilon,
        momentum=momentum,
        batched=False,
    )


def _axes(rank: int, axes: Any) -> tuple[int, ...]:
    """Return axes as numbers from 0 on, in ascending order, each once."""
    axes = axes if isinstance(axes, (tuple, list)) else (axes,)
    return tuple(sorted({rank + axis if axis < 0 else axis for axis in axes}))


def _value(variable: Any) -> Array | None:
    """Return the array of a variable of Flax."""
    return None if variable is None else variable[...]


def _store(variables: Any, values: Any) -> None:
    for variable, value in zip(variables, values, strict=True):
        if variable is not None:
            variable[...] = value


def _shaped(parameter: Array | None, x: Array, features: tuple[int, ...]) -> Array | None:
    """Return a parameter, which is flat in Flax, with one axis for each feature axis."""
    return None if parameter is None else parameter.reshape(tuple(x.shape[axis] for axis in features))


def _mask(mask: Any, x: Array) -> Array | None:
    """Return a mask of Flax, which broadcasts as NumPy does and may have numbers."""
    return None if mask is None else jnp.broadcast_to(jnp.asarray(mask) != 0, x.shape)


def _as(y: Array, x: Array, scale: Array | None, bias: Array | None, dtype: Any) -> Array:
    """Return the output in the dtype that Flax gives it."""
    return y.astype(dtypes.canonicalize_dtype(x, scale, bias, dtype=dtype))
