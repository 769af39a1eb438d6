"""What a layer computes, as functions of tensors of any backend of Keras.

The kernels of the engine compute arrays of NumPy, and `gennorm.torch` computes tensors of PyTorch, by the kernels in
eager mode on a CPU. Arrays of JAX and tensors of TensorFlow are computed by `gennorm.definition` in the operations of
their library, which can trace, compile and differentiate them. All give the same values.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial, wraps
from typing import Any

import keras
import numpy as np
from keras import backend, ops

from gennorm import definition
from gennorm.definition import SliceMoments
from gennorm.errors import GennormError, InputError
from gennorm.extend import Computation, Given
from gennorm.moments import Moments
from gennorm.spec.config import GroupMapping, LayerConfig, Resolved

__all__ = ["BackendComputation", "Pair", "floating", "library_of", "require_real", "with_own_errors"]

Tensor = Any
Pair = tuple[Tensor | None, Tensor]  # mean and variance; no mean for the method RMS

HALVES = ("float16", "bfloat16")
_dtype_name = lru_cache(None)(backend.standardize_dtype)


def with_own_errors(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return the `call` of a layer such that Keras does not replace the errors of gennorm by a ``RuntimeError``.

    Keras makes a new error of the same class with a longer text, and of another class where that fails.

    Examples
    --------
    >>> with_own_errors(lambda x: x + 1)(2)
    3
    """

    @wraps(call)
    def calling(*args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except GennormError as error:
            error._keras_call_info_injected = True  # type: ignore[attr-defined]
            raise

    return calling


def library_of(x: Tensor) -> str:
    """Return the name of the library that a tensor belongs to.

    Raises
    ------
    InputError
        It belongs to none of the backends of Keras, or is sparse or ragged.

    Examples
    --------
    >>> library_of(np.ones(2))
    'numpy'
    """
    if isinstance(x, np.ndarray):
        return "numpy"
    torch, tensorflow, jax = (sys.modules.get(name) for name in ("torch", "tensorflow", "jax"))
    if torch is not None and isinstance(x, torch.Tensor):
        return "torch"
    if jax is not None and isinstance(x, jax.Array):
        return "jax"
    if tensorflow is not None and isinstance(x, (tensorflow.Tensor, tensorflow.Variable)):
        return "tensorflow"
    msg = f"the input is of type {type(x).__module__}.{type(x).__name__}, and the layer takes dense tensors\n"
    msg += "pass a dense tensor of the backend, or a NumPy array"
    raise InputError(msg, code="K001")


def floating(x: Tensor) -> Tensor:
    """Return a tensor of integers or booleans as one of floats, by the promotion of Keras; others stay the same.

    Examples
    --------
    >>> backend.standardize_dtype(floating(ops.ones(2, "int32")).dtype)
    'float32'
    """
    name = _dtype_name(x.dtype)
    if name.startswith(("float", "bfloat")):
        return x
    require_real(x)
    return ops.cast(x, backend.result_type(name, "float32"))


def require_real(x: Tensor) -> None:
    """Refuse a tensor of complex numbers.

    Raises
    ------
    InputError
        It is one.

    Examples
    --------
    >>> require_real(np.ones(2, int))
    """
    name = _dtype_name(x.dtype)
    if name.startswith("complex"):
        msg = f"the input has the dtype {name}, and the layer takes real numbers\n"
        msg += "pass keras.ops.real(x) and keras.ops.imag(x), or keras.ops.absolute(x)"
        raise InputError(msg, code="K002")


class BackendComputation:
    """Normalizes tensors by one config.

    Parameters
    ----------
    config : LayerConfig
        Its `statistics` are not used: moments are those of the input, or are given.

    Examples
    --------
    >>> computation = BackendComputation(LayerConfig.make(1, (), epsilon=0))
    >>> y = computation.normalize(ops.array([1.0, 2.0, 3.0]), None, None)
    >>> ops.convert_to_numpy(y).round(4)
    array([-1.2247,  0.    ,  1.2247], dtype=float32)
    """

    __slots__ = ("_arrays", "_compiled", "_tensors", "config")

    def __init__(self, config: LayerConfig) -> None:
        self._arrays = Computation(config)
        self._tensors: Any = None
        self._compiled: dict[Any, Any] = {}
        self.config = self._arrays.config

    def normalize(
        self,
        x: Tensor,
        scaling: Tensor | None,
        biases: Tensor | None,
        *,
        mask: Tensor | None = None,
        moments: Pair | None = None,
        replicas: Any = None,
    ) -> Tensor:
        """Normalize a tensor by its own moments, or by given constants.

        Parameters
        ----------
        x : tensor
            Of floats, of any backend.
        scaling, biases : tensor or None
            Of the shape of the parameters, or with the batch axis in front.
        mask : tensor, optional
            Broadcasts to the input; what is true counts.
        moments : tuple, optional
            Mean, None for the method RMS, and variance, of shapes that broadcast to those of the slices.
        replicas : tf.distribute.ReplicaContext, optional
            Replicas that hold parts of the same slices.

        Returns
        -------
        tensor
            Of the shape and the dtype of `x`.

        Raises
        ------
        InputError
            `x` is no dense tensor of a backend.
        GennormError
            As a call of `gennorm.NormalizationLayer`.
        """
        library = library_of(x)
        scaling, biases = _fitting(scaling, x), _fitting(biases, x)
        mask = None if mask is None else ops.cast(mask, "bool")
        if library == "torch":
            return self._torch().normalize(x, scaling, biases, mask=mask, moments=moments)
        if library == "numpy":
            given = None if moments is None else Given(*moments)
            return self._arrays.normalize(x, scaling, biases, mask=mask, moments=given)
        if library == "jax":
            return self._jitted("_defined_output")(x, scaling, biases, mask, moments)
        return self._defined(x, scaling, biases, mask, moments, replicas)[0]

    def normalize_and_fold(
        self,
        x: Tensor,
        scaling: Tensor | None,
        biases: Tensor | None,
        moving: Pair,
        momentum: float,
        *,
        mask: Tensor | None = None,
        replicas: Any = None,
    ) -> tuple[Tensor, Pair]:
        """Normalize a tensor by its own moments, and return the moving ones after these are folded in.

        Parameters
        ----------
        x, scaling, biases, mask, replicas
            As in `normalize`.
        moving : tuple of tensor
            Mean and variance; they are not written to.
        momentum : float
            The share of the old values that is kept.

        Returns
        -------
        y : tensor
            As that of `normalize`.
        moving : tuple of tensor
            The new ones.

        Raises
        ------
        GennormError
            As `normalize`.
        """
        library = library_of(x)
        scaling, biases = _fitting(scaling, x), _fitting(biases, x)
        mask = None if mask is None else ops.cast(mask, "bool")
        if library == "torch":
            news: Any = tuple(None if one is None else one.detach().clone() for one in moving)
            return self._torch().normalize_and_fold(x, scaling, biases, news, momentum, mask=mask), news
        mean, variance = moving
        if library == "numpy":
            y, kept = self._arrays.forward(x, scaling, biases, mask=mask)
            measured = self._arrays.moments(x.shape, kept)
            olds = None if mean is None else np.asarray(mean), np.asarray(variance)
            return y, self._arrays.fold(*olds, measured, x.shape, momentum)
        if library == "jax":
            return self._jitted("_defined_fold", momentum)(x, scaling, biases, mask, moving)
        return self._defined_fold(momentum, x, scaling, biases, mask, moving, replicas)

    def _defined_output(self, x: Tensor, scaling: Any, biases: Any, mask: Any, moments: Pair | None) -> Tensor:
        return self._defined(x, scaling, biases, mask, moments, None)[0]

    def _defined_fold(
        self, momentum: float, x: Tensor, scaling: Any, biases: Any, mask: Any, moving: Pair, replicas: Any = None
    ) -> tuple[Tensor, Pair]:
        """Return the output by the definition, and the moving moments after those of the input are folded in."""
        y, moments, resolved = self._defined(x, scaling, biases, mask, None, replicas)
        config = replace(self.config, momentum=momentum)
        mean, variance = moving
        wrap, unwrap = _wrappers(library_of(x))
        new_mean, new_variance = definition.fold(wrap(mean), wrap(variance), moments, config, resolved)
        return y, (unwrap(new_mean), unwrap(new_variance))

    def invert(self, y: Tensor, moments: Pair, scaling: Tensor | None = None, biases: Tensor | None = None) -> Tensor:
        """Return the input whose output by given constants is `y`; `scaling` has no zeros.

        Raises
        ------
        GennormError
            As `normalize`.
        """
        wrap, unwrap = _wrappers(library_of(y))
        scaling, biases = _fitting(scaling, y), _fitting(biases, y)
        resolved = self._resolved(y, scaling, biases, given=True)
        given = tuple(wrap(one) for one in moments)
        with np.errstate(all="ignore"):
            return unwrap(
                definition.invert(wrap(y), self.config, resolved, given, scaling=wrap(scaling), biases=wrap(biases))
            )

    def measure(self, x: np.ndarray[Any, Any], mask: np.ndarray[Any, Any] | None = None) -> Moments:
        """Return the moments of the slices of an array."""
        return self._arrays.measure(x, mask)

    def _jitted(self, name: str, *settings: Any) -> Any:
        """Return a method compiled by JAX. Eager calls would compile every operation of the definition by itself."""
        key = (name, *settings)
        found = self._compiled.get(key)
        if found is None:
            import jax

            found = self._compiled[key] = jax.jit(partial(getattr(self, name), *settings))
        return found

    def _torch(self) -> Any:
        if self._tensors is None:
            from gennorm.torch.computation import TensorComputation

            self._tensors = TensorComputation(self.config)
        return self._tensors

    def _resolved(self, x: Tensor, *parameters: Any, given: bool) -> Resolved:
        """Return what the config means for a tensor.

        A size that is not known yet is that of the parameters, or one that all groups divide.
        """
        shape = tuple(x.shape)
        if all(type(size) is int for size in shape):
            return self._arrays.resolve(shape, given=given)
        groups = self.config.group_number
        numbers = [number for _, number in groups.items] if isinstance(groups, GroupMapping) else groups or 1
        open_size = 2 * math.prod(numbers if isinstance(numbers, (list, tuple)) else [numbers])
        sizes = [size if type(size) is int else open_size for size in shape]
        resolved = self._arrays.resolve(tuple(sizes), given=given)
        for parameter in parameters:
            own = () if parameter is None else _without_batch(tuple(parameter.shape), resolved)
            for axis, size in zip(resolved.scaling, own or (), strict=False):
                if type(shape[axis]) is not int and type(size) is int:
                    sizes[axis] = size
        return self._arrays.resolve(tuple(sizes), given=given)

    def _defined(
        self, x: Tensor, scaling: Any, biases: Any, mask: Any, moments: Pair | None, replicas: Any
    ) -> tuple[Tensor, SliceMoments, Resolved]:
        """Return the output by the definition, and the moments: arrays of the definition."""
        wrap, unwrap = _wrappers(library_of(x))
        resolved = self._resolved(x, scaling, biases, given=moments is not None)
        shapes = (None if one is None else tuple(one.shape) for one in (scaling, biases))
        self._arrays.require_parameters(resolved, *(_without_batch(one, resolved) for one in shapes))
        options: Any = {"weights": wrap(mask)}
        given: Any = None if moments is None else tuple(wrap(one) for one in moments)
        if replicas is not None:
            given = _shared(definition.measure(wrap(x), self.config, resolved, **options), replicas, wrap)
        options |= {"scaling": wrap(scaling), "biases": wrap(biases), "moments": given}
        y, found = definition.normalize(wrap(x), self.config, resolved, **options)
        y = unwrap(y)
        if hasattr(y, "set_shape"):
            y.set_shape(x.shape)
        return y, found, resolved  # type: ignore[return-value]


def _wrappers(library: str) -> tuple[Any, Any]:
    """Return functions from a tensor to an array of the definition, and back."""
    if library == "tensorflow":
        from gennorm.keras.tensorflow_arrays import unwrapped, wrapped

        return wrapped, unwrapped
    return _same, _same


def _same(value: Any) -> Any:
    return value


def _without_batch(shape: tuple[int, ...] | None, resolved: Resolved) -> tuple[int, ...] | None:
    """Return the shape of a parameter for one example: a parameter may have the batch axis in front."""
    if shape is not None and resolved.batched and len(shape) == len(resolved.parameter_shape) + 1:
        return shape[1:]
    return shape


def _fitting(parameter: Any, x: Tensor) -> Tensor | None:
    """Return a parameter in the dtype of the input; beside an input of 16 bits it may be float32."""
    if parameter is None:
        return None
    parameter = getattr(parameter, "value", parameter) if isinstance(parameter, keras.Variable) else parameter
    if parameter.dtype is x.dtype:
        return parameter
    of, to = _dtype_name(parameter.dtype), _dtype_name(x.dtype)
    if of == to or (of == "float32" and to in HALVES):
        return parameter
    return ops.cast(parameter, "float32" if to in HALVES else to)


def _shared(moments: SliceMoments, replicas: Any, wrap: Any) -> SliceMoments:
    r"""Return the moments of the slices of all replicas: :math:`M = \sum_k M_k + n_k (\mu_k - \mu)^2`."""
    import tensorflow as tf

    def added(*values: Any) -> list[Any]:
        found = replicas.all_reduce(tf.distribute.ReduceOp.SUM, [one.tensor for one in values])
        return [wrap(one) for one in found]

    count, m2 = moments.count, moments.m2
    if moments.mean is None:
        whole, squares = added(count, m2)
        return SliceMoments(whole, None, squares)
    whole, total = added(count, count * moments.mean)
    mean = total / definition.namespace_of(whole).where(whole == 0, 1.0, whole)
    (m2,) = added(m2 + count * (moments.mean - mean) * (moments.mean - mean))
    return SliceMoments(whole, mean, m2)
