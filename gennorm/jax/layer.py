"""The layer as a pytree: parameters and moments are leaves, settings are static."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import gennorm
from gennorm import definition
from gennorm.errors import ConfigError, FrozenError, InitializationError
from gennorm.extend import Computation, held_variance, initial, is_one_example, kept_shape, parameter_shape, required
from gennorm.jax.arrays import array_of, parameter_of
from gennorm.jax.computation import compute, compute_moments, folded, moments_of, slices_are_shared
from gennorm.jax.merging import MappedAxis
from gennorm.jax.moments import Moments
from gennorm.layer.parameters import Parameters
from gennorm.layer.state import State
from gennorm.layer.texts import represent
from gennorm.spec.config import LayerConfig

__all__ = ["NormalizationLayer"]

Array = Any

LEAVES = ("scaling", "biases", "mean", "variance")


@jax.tree_util.register_pytree_with_keys_class
class NormalizationLayer:
    r"""A layer that normalizes over any levels, with parameters on any levels.

    The layer is a pytree and never changes. Its leaves are the arrays `scaling`, `biases`, `mean` and `variance`, each
    None where it is absent; its settings are static. So a layer is an argument of functions that `jax.jit` or
    `jax.grad` transforms. The gradient of `mean` and `variance` is 0, and that of the parameters too if `trainable` is
    False.

    Parameters
    ----------
    aggregation_levels, scaling_levels, group_number, method, unbiased, epsilon, **keywords
        As those of `gennorm.NormalizationLayer`. The sizes of the parameters have to be known from the arguments.
        ``dtype`` may be a dtype of JAX.
    axis_name : str or tuple of str, optional
        Names of mapped axes that the batch is spread over. Where level 0 is aggregated the moments are those of all
        parts together. Where it is not, only what is folded into the moving moments is.

    Raises
    ------
    InitializationError
        The size of a scaling level, or of a level that moving moments keep, is not known.
    GennormError
        As `gennorm.NormalizationLayer`.

    Examples
    --------
    >>> settings = {"input_shape": (3, ...), "batched": True, "statistics": "moving", "momentum": 0.5}
    >>> layer = NormalizationLayer("{0, 2;;All}", 1, **settings)
    >>> x = jnp.stack([jnp.zeros((3, 4)), jnp.full((3, 4), 2.0)])
    >>> y, layer = jax.jit(NormalizationLayer.fold)(layer, x)
    >>> layer.mean, layer.variance
    (Array([0.5, 0.5, 0.5], dtype=float32), Array([1., 1., 1.], dtype=float32))
    >>> layer(x)[:, 0, 0].round(3)
    Array([-0.5 ,  1.499], dtype=float32)
    """

    __slots__ = ("__weakref__", "axis", "biases", "config", "mean", "scaling", "variance")

    scaling: Array | None
    biases: Array | None
    mean: Array | None
    variance: Array | None
    config: LayerConfig
    axis: MappedAxis | None

    def __init__(
        self,
        aggregation_levels: Any = "2;;All",
        scaling_levels: Any = "Complement",
        group_number: Any = None,
        method: str = "Standardize",
        unbiased: bool = False,
        epsilon: float = 1e-3,
        *,
        axis_name: Any = None,
        **keywords: Any,
    ) -> None:
        traced = {}
        for name in ("scaling", "biases"):
            value = keywords.get(name)
            if isinstance(value, jax.core.Tracer):  # it has no values yet: its shape is checked by those of ones
                traced[name], keywords[name] = value, np.ones(value.shape)
            elif isinstance(value, jax.Array):
                keywords[name] = np.asarray(value)
        if isinstance(keywords.get("dtype"), type) or hasattr(keywords.get("dtype"), "dtype"):
            keywords["dtype"] = np.dtype(keywords["dtype"]).name
        core = gennorm.NormalizationLayer(
            aggregation_levels, scaling_levels, group_number, method, unbiased, epsilon, **keywords
        )
        self._take(core, axis_name)
        for name, value in traced.items():
            object.__setattr__(self, name, value.astype(getattr(self, name).dtype))

    def _take(self, core: gennorm.NormalizationLayer, axis_name: Any) -> None:
        """Take the settings, parameters and moments of a layer of the core."""
        config = LayerConfig.from_dict(core.to_config())
        if not core.initialized:
            parameter_shape(config)  # raises, and names the level whose size is not known
        axis = MappedAxis.of(axis_name)
        shape = kept_shape(config)
        moments = core.moments
        if config.statistics == "moving" and moments is not None and moments.shape == ():
            if shape is None:
                msg = "the sizes of the levels that moving moments keep are not known\ndeclare them in input_shape"
                raise InitializationError(msg, code="I021")
            moments = initial(config, shape) if moments == initial(config, ()) else moments
        dtype = np.float64 if config.dtype == "float64" else np.float32
        mean = variance = None
        if moments is not None:
            mean = moments.mean
            variance = held_variance(moments, config)
        found = {
            "scaling": core.scaling,
            "biases": core.biases,
            "mean": None if mean is None else np.asarray(mean, dtype),
            "variance": None if variance is None else np.asarray(variance, dtype),
        }
        for name, array in found.items():
            object.__setattr__(self, name, None if array is None else jnp.array(array))
        object.__setattr__(self, "config", config)
        object.__setattr__(self, "axis", axis)

    def __setattr__(self, name: str, _: Any) -> None:
        msg = f"a layer of gennorm.jax never changes, and {name} cannot be assigned\n"
        msg += f"write layer = layer.replace({name}=...)"
        raise FrozenError(msg, code="P120")

    # As a pytree

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        """Return the leaves with their names, and the static settings."""
        leaves = [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in LEAVES]
        return leaves, (self.config, self.axis)

    @classmethod
    def tree_unflatten(cls, settings: Any, leaves: Iterable[Any]) -> NormalizationLayer:
        """Return a layer of these settings and leaves, which may be any objects."""
        layer = object.__new__(cls)
        for name, leaf in zip(LEAVES, leaves, strict=True):
            object.__setattr__(layer, name, leaf)
        object.__setattr__(layer, "config", settings[0])
        object.__setattr__(layer, "axis", settings[1])
        return layer

    def __reduce__(self) -> Any:
        return self.tree_unflatten, ((self.config, self.axis), tuple(getattr(self, name) for name in LEAVES))

    def replace(self, **arrays: Any) -> NormalizationLayer:
        """Return the layer with other parameters or moments.

        Parameters
        ----------
        **arrays
            `scaling`, `biases`, `mean` or `variance`, of the same shapes.

        Returns
        -------
        NormalizationLayer

        Raises
        ------
        ConfigError
            A name is another one.

        Examples
        --------
        >>> NormalizationLayer(-1, "Same", input_shape=(..., 2)).replace(biases=jnp.ones(2)).biases
        Array([1., 1.], dtype=float32)
        """
        for name in arrays:
            if name not in LEAVES:
                msg = f"replace takes no {name}\nits arguments are scaling, biases, mean and variance"
                raise ConfigError(msg, code="C150")
        leaves = [
            array_of(arrays[n], n) if arrays.get(n) is not None else arrays.get(n, getattr(self, n)) for n in LEAVES
        ]
        return self.tree_unflatten((self.config, self.axis), leaves)

    # Calls

    def __call__(
        self, x: Any, *, mask: Any = None, weights: Any = None, scaling: Any = None, biases: Any = None
    ) -> Array:
        """Normalize an example or a batch: by its own moments, or by the moments that the layer holds.

        Parameters
        ----------
        x : array
            Of the declared `input_shape`, or a batch of such.
        mask, weights : array, optional
            As those of `gennorm.jax.normalize`. Held moments do not depend on them.
        scaling, biases : array, optional
            Used in place of the layer's own; with the batch axis in front, one for each example.

        Returns
        -------
        Array

        Raises
        ------
        InitializationError
            The layer has no moments of a data set yet.
        GennormError
            As `gennorm.jax.normalize`.
        """
        gains, shifts = self._parameters(scaling, biases)
        if self.config.statistics == "input":
            axis = self.axis if slices_are_shared(self.config, self.axis) else None
            return compute(x, self.config, gains, shifts, mask=mask, weights=weights, axis=axis)[0]
        x = array_of(x, "the input")
        alone = self.config.statistics == "dataset" and is_one_example(self.config, x.shape)
        y, _ = compute(x[None] if alone else x, self.config, gains, shifts, moments=self._held())
        return y[0] if alone else y

    def fold(self, x: Any, *, mask: Any = None, weights: Any = None) -> tuple[Array, NormalizationLayer]:
        """Normalize a batch by its own moments, and return the layer with these folded into the moving ones.

        This is the call for training of a layer with ``statistics="moving"``.

        Parameters
        ----------
        x, mask, weights
            As in a call.

        Returns
        -------
        y : Array
            The output.
        layer : NormalizationLayer
            The layer after the step. If it is not trainable, `y` is that of a call and the layer is the same.

        Raises
        ------
        ConfigError
            The layer has no moving moments.
        GennormError
            As a call.
        """
        config = self.config
        if config.statistics != "moving":
            msg = f'fold is for layers with statistics="moving", and this one has statistics="{config.statistics}"\n'
            msg += "call the layer: layer(x)"
            raise ConfigError(msg, code="C151")
        if not config.trainable:
            return self(x, mask=mask, weights=weights), self
        shared = self.axis if slices_are_shared(config, self.axis) else None
        y, moments = compute(x, config, *self._parameters(None, None), mask=mask, weights=weights, axis=shared)
        mean, variance = folded((self.mean, self.variance), moments, jnp.shape(x), config, self.axis)
        return y, self.tree_unflatten((config, self.axis), (self.scaling, self.biases, mean, variance))

    def measure(self, x: Any, *, mask: Any = None, weights: Any = None) -> Moments:
        """Return the moments of the slices of an array: what a layer with ``statistics="input"`` normalizes it by.

        Parameters
        ----------
        x, mask, weights
            As in a call.

        Returns
        -------
        Moments
            With one axis for each level that is kept, the batch included. Derivatives go through them.

        Raises
        ------
        GennormError
            As a call.

        Examples
        --------
        >>> layer = NormalizationLayer(-1, scaling=None, biases=None, epsilon=0)
        >>> layer.measure(jnp.array([[1.0, 3.0], [2.0, 2.0]])).variance()
        Array([1., 0.], dtype=float32)
        >>> jax.grad(lambda x: layer.measure(x).variance().sum())(jnp.array([[1.0, 3.0]]))
        Array([[-1.,  1.]], dtype=float32)
        """
        axis = self.axis if slices_are_shared(self.config, self.axis) else None
        return compute_moments(x, self.config, mask=mask, weights=weights, axis=axis)

    def apply(self, x: Any, moments: Any) -> Array:
        """Normalize an array by given moments. The output has derivatives by the array, the moments and the parameters.

        Parameters
        ----------
        x : array
            An example or a batch.
        moments : Moments, gennorm.Moments, or tuple of arrays
            For each slice of `x`, or fewer that broadcast to that shape: what `measure` returned, or a pair of mean and
            variance.

        Returns
        -------
        Array

        Raises
        ------
        ParameterError
            The moments do not fit the slices of `x`.
        GennormError
            As a call.

        Examples
        --------
        >>> layer = NormalizationLayer(1, scaling=None, biases=None, epsilon=0)
        >>> x, variance = jnp.array([1.0, 2.0, 3.0]), jnp.array(4.0)
        >>> layer.apply(x, (jnp.array(1.0), variance))
        Array([0. , 0.5, 1. ], dtype=float32)
        >>> float(jax.grad(lambda variance: layer.apply(x, (jnp.array(1.0), variance)).sum())(variance))
        -0.1875
        """
        return compute(x, self.config, *self._parameters(None, None), moments=moments, grouped=True)[0]

    @property
    def moments(self) -> Moments | None:
        """The moments that the layer holds, as constants with the count 1; None if it holds none.

        Examples
        --------
        >>> layer = NormalizationLayer(0, 1, input_shape=(2,), batched=True, statistics="moving")
        >>> layer.moments.variance()
        Array([1., 1.], dtype=float32)
        """
        return None if self.variance is None else Moments.from_variance(*self._held())

    def inverse(self, y: Any, moments: Any = None) -> Array:
        """Return the input whose output is `y`, by given moments or by those that the layer holds.

        Raises
        ------
        InitializationError, ConfigError
            There are no moments.
        """
        if moments is None and self.config.statistics == "input":
            msg = 'the layer holds no moments: with statistics="input" they are those of each input\n'
            msg += "pass the moments of the input: layer.inverse(y, layer.measure(x))"
            raise ConfigError(msg, code="C152")
        y = array_of(y, "the output")
        resolved = Computation(self.config).resolve(y.shape, given=moments is None)
        given = moments_of(self._held() if moments is None else moments, self.config, resolved)
        gains, shifts = self._parameters(None, None)
        gains, shifts = parameter_of(gains, "scaling", resolved), parameter_of(shifts, "biases", resolved)
        return definition.invert(y, self.config, resolved, given, scaling=gains, biases=shifts)

    def adapt(self, data: Any, *, mask: Any = None, **keywords: Any) -> NormalizationLayer:
        """Return the layer with the moments of a data set, which are computed by the core in one pass, in float64.

        Parameters
        ----------
        data : array, or iterable of arrays
            All examples as one batch, or batches of any sizes.
        mask, **keywords
            As those of `gennorm.NormalizationLayer.adapt`.

        Returns
        -------
        NormalizationLayer

        Raises
        ------
        GennormError
            As `gennorm.NormalizationLayer.adapt`.

        Examples
        --------
        >>> layer = NormalizationLayer(
        ...     "{0, 1;;-2}", batched=True, statistics="dataset", scaling=None, biases=None, epsilon_placement="floor"
        ... )
        >>> layer = layer.adapt([jnp.array([[0.0, 10.0]]), jnp.array([[2.0, 30.0]])])
        >>> layer.mean, layer(jnp.array([[0.0, 30.0]]))
        (Array([ 1., 20.], dtype=float32), Array([[-1.,  1.]], dtype=float32))
        """
        core = gennorm.NormalizationLayer.from_config(replace(self.config, scaling=None, biases=None).to_dict())
        core.adapt(_arrays(data), mask=_arrays(mask), **keywords)
        moments = required(core.moments)
        dtype = np.float64 if self.config.dtype == "float64" else np.float32
        spread = held_variance(moments, self.config)
        mean = None if moments.mean is None else jnp.asarray(np.asarray(moments.mean, dtype))
        leaves = (self.scaling, self.biases, mean, jnp.asarray(np.asarray(spread, dtype)))
        return self.tree_unflatten((self.config, self.axis), leaves)

    # The core's layer

    @classmethod
    def from_core(cls, layer: gennorm.NormalizationLayer, *, axis_name: Any = None) -> NormalizationLayer:
        """Return a layer of the core as one for JAX, with copies of its parameters and moments.

        Examples
        --------
        >>> import gennorm as gn
        >>> NormalizationLayer.from_core(gn.group_norm(2, 4))(jnp.ones((1, 4, 3))).shape
        (1, 4, 3)
        """
        made = object.__new__(cls)
        made._take(layer, axis_name)
        return made

    def to_core(self) -> gennorm.NormalizationLayer:
        """Return the layer as one of the core, which normalizes NumPy's arrays.

        Examples
        --------
        >>> NormalizationLayer(-1, "Same", input_shape=(..., 2)).to_core()
        NormalizationLayer(-1, 'Same', input_shape=(..., 2))
        """
        own = {
            name: np.asarray(getattr(self, name)) for name in ("scaling", "biases") if getattr(self, name) is not None
        }
        explicit = {name: array for name, array in own.items() if getattr(self.config, name) == "explicit"}
        core = gennorm.NormalizationLayer.from_config(self.config.to_dict(), **explicit)
        for name, array in own.items():
            if not np.array_equal(array, getattr(core, name)):
                setattr(core, name, array)
        if self.variance is not None:
            mean = None if self.mean is None else np.asarray(self.mean, np.float64)
            core.moments = gennorm.Moments.from_variance(mean, np.asarray(self.variance, np.float64))
        return core

    def __repr__(self) -> str:
        modes = {name: None if getattr(self, name) is None else "Automatic" for name in ("scaling", "biases")}
        text = represent(State(replace(self.config, **modes), Parameters(None, None), None))  # type: ignore[arg-type]
        return text if self.axis is None else f"{text[:-1]}, axis_name={self.axis.name!r})"

    def _parameters(self, scaling: Any, biases: Any) -> tuple[Array | None, Array | None]:
        """Return the parameters of a call, and the layer's own where there is none."""
        own = self.scaling, self.biases
        if not self.config.trainable:
            own = tuple(None if one is None else lax.stop_gradient(one) for one in own)  # type: ignore[assignment]
        return own[0] if scaling is None else scaling, own[1] if biases is None else biases

    def _held(self) -> tuple[Array | None, Array]:
        if self.variance is None:
            required(None)  # raises
        mean = None if self.mean is None else lax.stop_gradient(self.mean)
        return mean, lax.stop_gradient(self.variance)


def _arrays(data: Any) -> Any:
    """Return arrays of JAX as arrays of NumPy, one by one."""
    if data is None or isinstance(data, (jax.Array, np.ndarray)):
        return None if data is None else np.asarray(data)
    return (np.asarray(one) if isinstance(one, jax.Array) else one for one in data)
