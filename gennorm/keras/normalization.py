"""The layer as a Keras layer: any level spec, its weights, training and inference."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import keras
from keras import constraints, initializers, ops, regularizers

import gennorm
from gennorm.errors import ConfigError, InitializationError
from gennorm.extend import held_variance, kept_shape, parameter_shape
from gennorm.keras.computation import BackendComputation, floating, with_own_errors
from gennorm.keras.data import batches_of
from gennorm.spec.config import LayerConfig

__all__ = ["NormalizationLayer"]

Tensor = Any
WEIGHTS = ("scaling", "biases")
MOMENTS = ("mean", "variance")


@keras.saving.register_keras_serializable(package="gennorm")
class NormalizationLayer(keras.layers.Layer):
    r"""A Keras layer that normalizes over any levels, with weights on any levels.

    .. math:: y = s (x - \mu) / \sqrt{v + \epsilon} + b

    The settings are those of `gennorm.NormalizationLayer`, where they are explained. The first axis is the batch, level
    0; level `k` is axis `k`. The layer is built from the first input: the sizes of levels with weights have to be known
    then, and other sizes may be open.

    With ``statistics="moving"`` the layer normalizes by the moments of its input in training, and folds them into the
    weights ``mean`` and ``variance``; in inference, and where ``trainable=False``, it normalizes by these. With
    ``statistics="dataset"`` the weights are the moments of the data that `adapt` is called on; before that they are 0
    and 1.

    Parameters
    ----------
    aggregation_levels, scaling_levels, group_number, method, unbiased, epsilon
        As those of `gennorm.NormalizationLayer`.
    scaling, biases : "Automatic" or None, default "Automatic"
        Whether the layer has these weights.
    statistics : {"input", "moving", "dataset"}, default "input"
        The moments that the layer normalizes by.
    momentum : float, default 0.99
        The share of the moving moments that a batch keeps.
    epsilon_placement : {"inside", "floor", "outside"}, default "inside"
        As that of `gennorm.NormalizationLayer`.
    constant : {"floor", "one", "raise"}, default "floor"
        As that of `gennorm.NormalizationLayer`.
    invert : bool, default False
        Whether the layer computes the input from the output, by its own moments.
    scaling_initializer, biases_initializer, mean_initializer, variance_initializer : str or Initializer
        Initial values of the weights.
    scaling_regularizer, biases_regularizer : str or Regularizer, optional
        Losses of the weights.
    scaling_constraint, biases_constraint : str or Constraint, optional
        Projections of the weights after each step.
    **kwargs
        Those of every Keras layer: ``name``, ``dtype``, ``trainable``.

    Raises
    ------
    ConfigError
        ``invert`` without moments that the layer holds.
    InitializationError
        The size of a level with weights is not known.
    InputError
        The inputs are complex, or no dense tensor.
    GennormError
        As `gennorm.NormalizationLayer`.

    Examples
    --------
    >>> layer = NormalizationLayer("All", 1, {1: 2}, epsilon=0)  # group norm, channels first
    >>> y = layer(ops.reshape(ops.arange(8.0), (1, 4, 2)))
    >>> ops.convert_to_numpy(y)[0].round(2).tolist()
    [[-1.34, -0.45], [0.45, 1.34], [-1.34, -0.45], [0.45, 1.34]]
    >>> [(weight.name, tuple(weight.shape)) for weight in layer.weights]
    [('scaling', (4,)), ('biases', (4,))]
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
        scaling: str | None = "Automatic",
        biases: str | None = "Automatic",
        statistics: str = "input",
        momentum: float = 0.99,
        epsilon_placement: str = "inside",
        constant: str = "floor",
        invert: bool = False,
        scaling_initializer: Any = "ones",
        biases_initializer: Any = "zeros",
        mean_initializer: Any = "zeros",
        variance_initializer: Any = "ones",
        scaling_regularizer: Any = None,
        biases_regularizer: Any = None,
        scaling_constraint: Any = None,
        biases_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        config = LayerConfig.make(
            aggregation_levels,
            scaling_levels,
            group_number,
            method,
            unbiased,
            epsilon,
            scaling=scaling,
            biases=biases,
            batched=True,
            statistics=statistics,
            momentum=momentum,
            epsilon_placement=epsilon_placement,
            constant=constant,
        )
        if invert and config.statistics == "input":
            msg = 'invert=True needs moments, and with statistics="input" the layer holds none\n'
            msg += 'write statistics="dataset" or statistics="moving"'
            raise ConfigError(msg, code="K020")
        super().__init__(**kwargs)
        self._settings = _Settings(config)
        self.invert = invert
        self.scaling_initializer = initializers.get(scaling_initializer)
        self.biases_initializer = initializers.get(biases_initializer)
        self.mean_initializer = initializers.get(mean_initializer)
        self.variance_initializer = initializers.get(variance_initializer)
        self.scaling_regularizer = regularizers.get(scaling_regularizer)
        self.biases_regularizer = regularizers.get(biases_regularizer)
        self.scaling_constraint = constraints.get(scaling_constraint)
        self.biases_constraint = constraints.get(biases_constraint)
        self.scaling: Any = None
        self.biases: Any = None
        self.mean: Any = None
        self.variance: Any = None
        self.supports_masking = True
        self.autocast = False  # a half could not hold what is normalized

    @property
    def config(self) -> LayerConfig:
        """The settings of the layer of the core."""
        return self._settings.config

    def build(self, input_shape: Any) -> None:
        """Make the weights for inputs of a shape; open sizes are None."""
        config = self.config
        declared = replace(config, input_shape=tuple(input_shape[1:]))
        for name in WEIGHTS:
            if getattr(config, name) is not None:
                weight = self.add_weight(
                    name=name,
                    shape=parameter_shape(declared),
                    initializer=getattr(self, f"{name}_initializer"),
                    regularizer=getattr(self, f"{name}_regularizer"),
                    constraint=getattr(self, f"{name}_constraint"),
                    autocast=False,
                )
                setattr(self, name, weight)
        if config.statistics != "input":
            shape = kept_shape(declared)
            if shape is None:
                msg = "the sizes of the levels that moments keep are not known\n"
                msg += "build the layer with an input whose sizes along them are not None"
                raise InitializationError(msg, code="K021")
            for name in MOMENTS:
                if name == "variance" or config.method == "Standardize":
                    weight = self.add_weight(
                        name=name,
                        shape=shape,
                        initializer=getattr(self, f"{name}_initializer"),
                        trainable=False,
                        autocast=False,
                    )
                    setattr(self, name, weight)
        self.input_spec = keras.layers.InputSpec(ndim=len(input_shape))
        self.built = True

    @with_own_errors
    def call(
        self,
        inputs: Tensor,
        training: bool | None = None,
        mask: Tensor | None = None,
        scaling: Tensor | None = None,
        biases: Tensor | None = None,
    ) -> Tensor:
        """Normalize every example of a batch.

        Parameters
        ----------
        inputs : tensor
            A batch, of the rank that the layer was built for.
        training : bool, optional
            Whether moving moments move.
        mask : tensor, optional
            What is true counts in the statistics. Its axes are the first ones of the inputs, of the same size or 1.
        scaling, biases : tensor, optional
            Used in place of the weights: of their shape, or with the batch axis in front.

        Returns
        -------
        tensor
            Of the shape of the inputs, in the compute dtype.
        """
        x, computation, config = floating(inputs), self._settings.computation, self.config
        scaling, biases = self.scaling if scaling is None else scaling, self.biases if biases is None else biases
        if mask is not None:
            mask = ops.reshape(mask, (*ops.shape(mask), *[1] * (len(x.shape) - len(mask.shape))))
        moments: Any = None
        if config.statistics != "input":
            moments = None if self.mean is None else self.mean.value, self.variance.value
        if self.invert:
            y = computation.invert(x, moments, scaling, biases)
        elif config.statistics == "moving" and training and self.trainable:
            y, moved = computation.normalize_and_fold(x, scaling, biases, moments, config.momentum, mask=mask)
            for name, value in zip(MOMENTS, moved, strict=True):
                if value is not None:
                    weight = getattr(self, name)
                    weight.assign(ops.cast(value, weight.dtype))
        else:
            y = computation.normalize(x, scaling, biases, mask=mask if moments is None else None, moments=moments)
        return ops.cast(y, self.compute_dtype)

    def adapt(self, data: Any, *, mask: Any = None) -> None:
        """Take the moments of a data set, in one pass and in float64.

        Parameters
        ----------
        data : array, tensor, tf.data.Dataset, keras.utils.PyDataset or iterable
            All of the data, or batches of it, of any sizes. Of batches ``(x, y)`` only `x` is used.
        mask : array or iterable of them, optional
            What is true counts; each broadcasts to its batch.

        Raises
        ------
        GennormError
            As `gennorm.NormalizationLayer.adapt`.

        Examples
        --------
        >>> import numpy as np
        >>> layer = NormalizationLayer("{0, 1;;-2}", statistics="dataset", scaling=None, biases=None)
        >>> layer.adapt(np.array([[0.0, 10.0], [2.0, 30.0]]))
        >>> ops.convert_to_numpy(layer.mean).tolist()
        [1.0, 20.0]
        """
        config = replace(self.config, scaling=None, biases=None)
        batches = batches_of(data)
        first = next(batches, None)
        if first is not None:
            if not self.built:
                self.build(first.shape)
            batches = itertools.chain([first], batches)
        core = gennorm.NormalizationLayer.from_config(config.to_dict())
        moments = core.adapt(batches, mask=None if mask is None else batches_of(mask)).moments
        assert moments is not None
        if self.mean is not None:
            self.mean.assign(moments.mean)
        self.variance.assign(held_variance(moments, config))

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the output: that of the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make the layer, as JSON values."""
        values = self.config.to_dict()
        names = ("aggregation_levels", "scaling_levels", "group_number", "method", "unbiased", "epsilon", *WEIGHTS)
        own = {name: values[name] for name in (*names, "statistics", "momentum", "epsilon_placement", "constant")}
        own["invert"] = self.invert
        for name in (*WEIGHTS, *MOMENTS):
            own[f"{name}_initializer"] = initializers.serialize(getattr(self, f"{name}_initializer"))
        for name in WEIGHTS:
            own[f"{name}_regularizer"] = regularizers.serialize(getattr(self, f"{name}_regularizer"))
            own[f"{name}_constraint"] = constraints.serialize(getattr(self, f"{name}_constraint"))
        return {**super().get_config(), **own}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> NormalizationLayer:
        """Make the layer that `get_config` describes."""
        groups = config.get("group_number")
        if isinstance(groups, Mapping):
            config = {**config, "group_number": {int(level): number for level, number in groups.items()}}
        return cls(**config)


class _Settings:
    """The config of a layer, and its computation; Keras does not look into it."""

    __slots__ = ("computation", "config")

    def __init__(self, config: LayerConfig) -> None:
        self.config, self.computation = config, BackendComputation(config)
