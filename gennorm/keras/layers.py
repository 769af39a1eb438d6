"""Keras' own normalization layers, computed by gennorm.

Each is a subclass of Keras' class of the same name and has its constructor, weights, config and errors. Only the
computation differs. A model that was saved with Keras' classes can be loaded with these, and the other way round.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import backend, ops
from keras.src.backend import get_keras_mask

from gennorm.errors import ShapeError
from gennorm.keras.computation import BackendComputation, Pair, floating, require_real, with_own_errors
from gennorm.keras.data import batches_of
from gennorm.moments import Moments
from gennorm.spec.config import LayerConfig

__all__ = [
    "BatchNormalization",
    "GroupNormalization",
    "LayerNormalization",
    "Normalization",
    "RMSNormalization",
]

Tensor = Any
registered = keras.saving.register_keras_serializable(package="gennorm")


class _Core:
    """Computations of a layer by the rank of its input and its settings."""

    __slots__ = ("found",)

    def __init__(self) -> None:
        self.found: dict[Any, BackendComputation] = {}

    def __call__(self, kept: tuple[int, ...], scaled: tuple[int, ...], ndim: int, **settings: Any) -> Any:
        """Return the computation that keeps some axes of an array, and has parameters on some.

        The array counts as one example: axis `k` is level `k + 1`. So any axis can be kept, the first one too.
        Where all axes are kept, the computation is for arrays with an axis of size 1 in front.
        """
        key = (kept, scaled, ndim, *settings.items())
        found = self.found.get(key)
        if found is None:
            lifted = len(kept) == ndim
            aggregated = [1] if lifted else [axis + 1 for axis in range(ndim) if axis not in kept]
            scaling = [axis + 1 + lifted for axis in scaled]
            groups = settings.pop("groups", None)
            if groups is not None:
                settings["group_number"] = {axis + 1: number for axis, number in groups}
            config = LayerConfig.make(aggregated, scaling or (), batched=False, **settings)
            found = self.found[key] = BackendComputation(config)
        return found


def _canonical(axis: Any, ndim: int) -> tuple[int, ...]:
    """Return axes as a tuple without negative ones, in the order written."""
    axes = axis if isinstance(axis, (list, tuple)) else (axis,)
    return tuple(one + ndim if one < 0 else one for one in axes)


def mask_over(inputs: Tensor, mask: Tensor | None, axis: int) -> Tensor | None:
    """Return a mask that broadcasts to the inputs.

    Keras propagates masks, such as those of ``Masking``, that have all axes of the inputs but the last one. A mask that
    the caller passes has all axes, or all but the axis of the channels.

    Raises
    ------
    ShapeError
        The mask does not broadcast to the inputs.

    Examples
    --------
    >>> tuple(mask_over(np.ones((2, 3, 5)), np.ones((2, 5)), 1).shape)
    (2, 1, 5)
    """
    if mask is None:
        return None
    shape, ndim = tuple(inputs.shape), len(inputs.shape)
    found = mask
    if len(mask.shape) == ndim - 1:
        found = ops.expand_dims(mask, -1 if mask is get_keras_mask(inputs) else axis % ndim)
    sizes = zip(tuple(found.shape), shape, strict=False)
    if len(found.shape) != ndim or any(one not in {1, size} for one, size in sizes if None not in {one, size}):
        msg = f"a mask of shape {tuple(mask.shape)} does not broadcast to inputs of shape {shape} with axis={axis}\n"
        msg += "pass one with the axes of the inputs, or with all of them but the axis of the channels"
        raise ShapeError(msg, code="K010")
    return found


@registered
class BatchNormalization(keras.layers.BatchNormalization):
    r"""`keras.layers.BatchNormalization`, computed by gennorm.

    .. math:: y = \gamma (x - \mu) / \sqrt{v + \epsilon} + \beta

    In training mean and variance are those of the batch, for each index of ``axis``, and are folded into the moving
    ones; in inference, and where ``trainable=False``, they are the moving ones. Arguments, weights and config are
    those of Keras' class.

    A mask has the axes of the inputs, or all of them but ``axis``; what is true counts. A channel in which nothing
    counts leaves its moving moments unchanged.

    Raises
    ------
    ShapeError
        A mask does not broadcast to the inputs.
    InputError
        The inputs are complex, or no dense tensor.

    Examples
    --------
    >>> layer = BatchNormalization(momentum=0.5, epsilon=0)
    >>> ops.convert_to_numpy(layer(np.array([[0.0], [10.0]]), training=True)).tolist()
    [[-1.0], [1.0]]
    >>> [float(value[0]) for value in (layer.moving_mean, layer.moving_variance)]
    [2.5, 13.0]
    """

    def build(self, input_shape: Any) -> None:
        """Make the weights."""
        super().build(input_shape)
        self._core = _Core()

    @with_own_errors
    def call(self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None) -> Tensor:
        """Normalize by the batch in training, by the moving moments in inference."""
        x, mask, replicas = floating(inputs), mask_over(inputs, mask, self.axis), None
        ndim = len(x.shape)
        axes = _canonical(self.axis, ndim)
        computation = self._core(axes, axes, ndim, epsilon=self.epsilon)
        gamma, beta = self.gamma if self.scale else None, self.beta if self.center else None
        mean, variance = self.moving_mean.value, self.moving_variance.value
        lifted = ndim == 1
        x = x[None] if lifted else x
        mask = mask[None] if lifted and mask is not None else mask
        if not (training and self.trainable):
            y = computation.normalize(x, gamma, beta, moments=(mean, variance))
            return ops.cast(y[0] if lifted else y, self.compute_dtype)
        if self.synchronized:
            replicas = _replicas()
        if self.renorm:
            y = self._renormalized(computation, x, gamma, beta, mask, replicas)
        else:
            y, (mean, variance) = computation.normalize_and_fold(
                x, gamma, beta, (mean, variance), self.momentum, mask=mask, replicas=replicas
            )
            self.moving_mean.assign(ops.cast(mean, self.moving_mean.dtype))
            self.moving_variance.assign(ops.cast(variance, self.moving_variance.dtype))
        return ops.cast(y[0] if lifted else y, self.compute_dtype)

    def _renormalized(
        self, computation: BackendComputation, x: Tensor, gamma: Any, beta: Any, mask: Any, replicas: Any
    ) -> Tensor:
        """Normalize by the batch, correct towards the moving moments, and fold."""
        x = ops.cast(x, backend.result_type(x.dtype, "float32"))
        olds = self.moving_mean.value, self.moving_variance.value
        z, moments = computation.normalize_and_fold(x, None, None, olds, 0.0, mask=mask, replicas=replicas)
        moments = tuple(ops.cast(one, x.dtype) for one in moments)
        r, d, mean, variance = self._renorm_correction_and_moments(*moments)
        gamma, beta = (None if one is None else ops.cast(one, x.dtype) for one in (gamma, beta))
        gain, offset = self._compose_transforms(r, d, gamma, beta, x.dtype)
        shape = [1] * len(x.shape)
        shape[self.axis] = -1
        self._update_renorm_statistics(mean, variance)
        return z * ops.reshape(gain, shape) + ops.reshape(offset, shape)


def _replicas() -> Any:
    """Return the replicas of TensorFlow's strategy, if there are several."""
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return context if context is not None and context.num_replicas_in_sync > 1 else None


class _Example:
    """What the layers have in common that normalize every example by its own moments."""

    _core: _Core
    axis: Any
    epsilon: float
    compute_dtype: str

    def build(self, input_shape: Any) -> None:
        """Make the weights."""
        super().build(input_shape)  # type: ignore[misc]
        self._core = _Core()

    def _normalized(
        self, inputs: Tensor, scaling: Any, biases: Any, kept: tuple[int, ...] | None = None, **settings: Any
    ) -> Tensor:
        """Normalize over all axes but the kept ones, by default over `axis`, which the parameters have."""
        x, ndim = floating(inputs), len(inputs.shape)
        axes = _canonical(self.axis, ndim)
        if list(axes) != sorted(axes):  # of [-1, 1] too Keras takes the elements in the order of ascending axes
            axes = tuple(sorted(axes))
            shape = [inputs.shape[axis] for axis in axes]
            scaling, biases = (None if one is None else ops.reshape(one, shape) for one in (scaling, biases))
        kept = tuple(axis for axis in range(ndim) if axis not in axes) if kept is None else kept
        computation = self._core(kept, axes, ndim, epsilon=self.epsilon, **settings)
        return ops.cast(computation.normalize(x, scaling, biases), self.compute_dtype)


@registered
class LayerNormalization(_Example, keras.layers.LayerNormalization):
    r"""`keras.layers.LayerNormalization`, computed by gennorm.

    .. math:: y = \gamma (x - \mu) / \sqrt{v + \epsilon} + \beta

    Mean and variance are those over ``axis``, an integer or a list of them. Arguments, weights and config are those of
    Keras' class. With the deprecated ``rms_scaling=True`` the computation is Keras' own.

    Raises
    ------
    InputError
        The inputs are complex, or no dense tensor.

    Examples
    --------
    >>> y = LayerNormalization(epsilon=0)(np.array([[1.0, 2.0, 4.0, 5.0]]))
    >>> ops.convert_to_numpy(y).round(4).tolist()
    [[-1.2649, -0.6325, 0.6325, 1.2649]]
    """

    @with_own_errors
    def call(self, inputs: Tensor) -> Tensor:
        """Normalize over the axes."""
        if self.rms_scaling:
            return super().call(inputs)
        return self._normalized(inputs, self.gamma, self.beta)


@registered
class RMSNormalization(_Example, keras.layers.RMSNormalization):
    r"""`keras.layers.RMSNormalization`, computed by gennorm.

    .. math:: y = \gamma x / \sqrt{\overline{x^2} + \epsilon}

    The mean square is over ``axis``, an integer or a list of them. Arguments, weights and config are those of Keras'
    class.

    Raises
    ------
    InputError
        The inputs are complex, or no dense tensor.

    Examples
    --------
    >>> ops.convert_to_numpy(RMSNormalization(epsilon=0)(np.array([[1.0, 7.0]]))).round(4).tolist()
    [[0.2, 1.4]]
    """

    @with_own_errors
    def call(self, x: Tensor) -> Tensor:
        """Divide by the root mean square over the axes."""
        return self._normalized(x, self.scale, None, method="RMS")


@registered
class GroupNormalization(_Example, keras.layers.GroupNormalization):
    r"""`keras.layers.GroupNormalization`, computed by gennorm.

    .. math:: y = \gamma (x - \mu) / \sqrt{v + \epsilon} + \beta

    Mean and variance are those of every example, over groups of neighbouring indices of ``axis`` and all other axes;
    ``groups=-1`` makes a group of each index. Arguments, weights and config are those of Keras' class.

    Raises
    ------
    InputError
        The inputs are complex, or no dense tensor.

    Examples
    --------
    >>> y = GroupNormalization(2, epsilon=0)(np.array([[1.0, 3.0, 10.0, 30.0]]))
    >>> ops.convert_to_numpy(y).tolist()
    [[-1.0, 1.0, -1.0, 1.0]]
    """

    @with_own_errors
    def call(self, inputs: Tensor) -> Tensor:
        """Normalize every example over groups of channels and all other axes."""
        (axis,) = _canonical(self.axis, len(inputs.shape))
        groups = ((axis, self.groups),) if self.groups > 1 else None
        return self._normalized(inputs, self.gamma, self.beta, (0,), groups=groups)


@registered
class Normalization(keras.layers.Normalization):
    r"""`keras.layers.Normalization`, computed by gennorm.

    .. math:: y = (x - \mu) / \max(\sqrt v, 10^{-7}), \qquad \text{inverted:} \quad x = y \max(\sqrt v, 10^{-7}) + \mu

    Mean and variance, one for each index of ``axis``, are given, or are those of the data that `adapt` is called on.
    `adapt` sums in float64 and merges batches exactly, whatever their sizes and dtypes. Arguments, weights and config
    are those of Keras' class.

    Raises
    ------
    InputError
        The inputs are complex, or no dense tensor.

    Examples
    --------
    >>> layer = Normalization(axis=None)
    >>> layer.adapt(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    >>> ops.convert_to_numpy(layer(np.array([1.0, 2.0, 3.0]))).round(4)
    array([-1.4142, -0.7071,  0.    ], dtype=float32)
    """

    def __init__(self, axis: Any = -1, mean: Any = None, variance: Any = None, invert: bool = False, **kwargs: Any):
        super().__init__(axis, mean, variance, invert, **kwargs)
        self.autocast = False  # a half could not hold what is normalized
        self._core = _Core()

    def build(self, input_shape: Any) -> None:
        """Make the weights, or broadcast the given mean and variance."""
        super().build(input_shape)
        if input_shape is not None and self.input_mean is not None:
            self.mean, self.variance = self._constant(self.input_mean), self._constant(self.input_variance)

    def finalize_state(self) -> None:
        """Use the mean and the variance of the weights."""
        super().finalize_state()
        if self.input_mean is None and self.built:
            wide = backend.result_type(self.compute_dtype, "float32")
            self.mean, self.variance = (
                ops.reshape(ops.cast(one, wide), self._broadcast_shape)
                for one in (self.adapt_mean, self.adapt_variance)
            )

    def _constant(self, value: Any) -> Tensor:
        kept = np.broadcast_to(ops.convert_to_numpy(value), self._mean_and_var_shape)
        wide = backend.result_type(self.compute_dtype, "float32")
        return ops.convert_to_tensor(np.reshape(kept, self._broadcast_shape), dtype=wide)

    def _computation(self) -> BackendComputation:
        ndim = len(self._broadcast_shape)
        return self._core(self._keep_axis, (), ndim, epsilon=backend.epsilon(), epsilon_placement="floor")

    @with_own_errors
    def call(self, inputs: Tensor) -> Tensor:
        """Normalize by the given or adapted moments, or invert that."""
        if self.mean is None:
            return super().call(inputs)  # raises
        names = self.backend.core, self.backend.numpy
        x = inputs if hasattr(inputs, "shape") and not isinstance(inputs, np.ndarray) else np.asarray(inputs)
        x = names[0].convert_to_tensor(x)
        if not backend.standardize_dtype(x.dtype).startswith(("float", "bfloat")):
            require_real(x)
            x = names[0].cast(x, backend.result_type(x.dtype, "float32"))
        if self._reduce_axis:
            return names[0].cast(self._applied(x), self.compute_dtype)
        y = self._applied(names[1].expand_dims(x, 0))
        return names[0].cast(y[0], self.compute_dtype)

    def _applied(self, x: Tensor) -> Tensor:
        shape = self._mean_and_var_shape
        moments: Pair = tuple(
            self.backend.numpy.reshape(self.convert_weight(one), shape) for one in (self.mean, self.variance)
        )
        computation = self._computation()
        return computation.invert(x, moments) if self.invert else computation.normalize(x, None, None, moments=moments)

    def adapt(self, data: Any) -> None:
        """Take the mean and the variance of a data set, in one pass and in float64.

        Parameters
        ----------
        data : array, tensor, tf.data.Dataset, keras.utils.PyDataset or iterable
            All of the data, or batches of it, of any sizes. Of batches ``(x, y)`` only `x` is used.

        Raises
        ------
        InputError
            The data are no array and no iterable of arrays.
        ShapeError
            There is no batch, or the batches have other shapes than the layer was built for.

        Examples
        --------
        >>> layer = Normalization()
        >>> layer.adapt([np.array([[0.0, 7.0]]), np.array([[2.0, 9.0]])])
        >>> ops.convert_to_numpy(layer.adapt_mean).tolist()
        [1.0, 8.0]
        """
        total: Moments | None = None
        for batch in batches_of(data):
            if not self.built:
                self.build(batch.shape)
            self._require_shape(batch.shape, first=total is None)
            found = self._computation().measure(batch if self._reduce_axis else batch[None])
            total = found if total is None else total + found
        if total is None:
            msg = "adapt() received an empty iterable (no batches)\n"
            msg += "pass at least one batch: layer.adapt([x])"
            raise ShapeError(msg, code="K011")
        self.adapt_mean.assign(total.mean)
        self.adapt_variance.assign(total.variance())
        self.finalize_state()

    def _require_shape(self, shape: tuple[int, ...], *, first: bool) -> None:
        built = self._build_input_shape
        if len(shape) == len(built) and all(shape[axis] == built[axis] for axis in self._keep_axis):
            return
        what = "data with an incompatible shape" if first else "a batch with an incompatible shape"
        msg = f"the layer was built with input_shape={tuple(built)}, and adapt() received {what}, {shape}\n"
        msg += "pass data with the same sizes along axis, or make another layer"
        raise ShapeError(msg, code="K012")
