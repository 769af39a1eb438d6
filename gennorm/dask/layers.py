"""The methods of a layer for arrays of Dask: the layer calls these functions where its argument is one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import dask.array as da
import numpy as np

import gennorm
from gennorm.dask import graphs
from gennorm.dask.parts import Geometry, Statistics, Whole
from gennorm.errors import InputError, OutputError, ParameterError, ShapeError
from gennorm.extend import held_variance, required
from gennorm.layer.arrays import dtype_name
from gennorm.layer.statistics import applicable, is_one_example, require_held, require_inverse, ungrouped
from gennorm.masks import broadcast, broadcast_mask
from gennorm.moments import Moments, real_array
from gennorm.spec.config import LayerConfig, Resolved, resolve_config

__all__ = ["apply", "call", "inverse", "measure", "moments_of"]


def call(
    layer: gennorm.NormalizationLayer,
    x: Any,
    *,
    training: bool = False,
    mask: Any = None,
    moments: Any = None,
    scaling: Any = None,
    biases: Any = None,
    out: Any = None,
) -> Any:
    """Return the normalized array, lazily and with the same chunks: ``layer(x)``.

    With the statistics of the input, the moments of chunks that share slices are merged, so the output of a chunk waits
    for all chunks that have its slices. With held or given moments, every chunk is for itself.

    Parameters
    ----------
    layer : NormalizationLayer
    x : dask.array.Array
    training : bool, default False
        Refused where it would change the layer.
    mask : ndarray or dask.array.Array of bool, optional
        Broadcasts to `x`. An array of Dask has the shape and the chunks of `x`.
    moments : Moments or tuple, optional
        As in a call of the layer.
    scaling, biases, out
        Refused.

    Returns
    -------
    dask.array.Array

    Raises
    ------
    ShapeError
        The sizes of chunks are not known; the mask has other chunks.
    InputError
        An argument is given that is for arrays of NumPy.
    GennormError
        As a call of the layer.

    Examples
    --------
    >>> import dask.array as da
    >>> layer = gennorm.NormalizationLayer(1, scaling=None, biases=None, epsilon=0)
    >>> call(layer, da.arange(5.0, chunks=2)).compute().round(4)
    array([-1.4142, -0.7071,  0.    ,  0.7071,  1.4142])
    """
    _refuse(scaling=scaling, biases=biases, out=out)
    state = layer._state
    if training and state.learnable:
        msg = "training with an array of Dask would change the layer when the array is computed\n"
        msg += 'leave out training, or use statistics="dataset" and layer.adapt(x)'
        raise InputError(msg, code="A141")
    x, single = _input(layer, x, "the input")
    own = moments is None and state.of_input
    resolved = _resolved(state.config, x.shape, given=not own)
    found = None if own else _held(layer, resolved) if moments is None else _given(moments, resolved, state.config)
    y = _moved(layer, resolved, x, found, mask=None if mask is None else _mask(mask, x))
    return y[0] if single else y


def apply(layer: gennorm.NormalizationLayer, x: Any, moments: Any, *, out: Any = None) -> Any:
    """Return the array normalized by given moments, lazily: ``layer.apply(x, moments)``.

    Parameters
    ----------
    layer : NormalizationLayer
    x : dask.array.Array
    moments : Moments or tuple
        As those of `NormalizationLayer.apply`.
    out
        Refused.

    Returns
    -------
    dask.array.Array

    Examples
    --------
    >>> import dask.array as da
    >>> layer = gennorm.NormalizationLayer(1, scaling=None, biases=None, epsilon=0)
    >>> apply(layer, da.arange(3.0, chunks=2), gennorm.Moments.from_variance(1.0, 4.0)).compute()
    array([-0.5,  0. ,  0.5])
    """
    _refuse(out=out)
    x, single = _input(layer, x, "the input")
    resolved = resolve_config(replace(layer._state.config, unbiased=False), x.shape)
    y = _moved(layer, resolved, x, _given(moments, resolved, layer._state.config))
    return y[0] if single else y


def inverse(layer: gennorm.NormalizationLayer, y: Any, moments: Any = None, *, out: Any = None) -> Any:
    """Return the array that has this output, lazily: ``layer.inverse(y)``.

    Parameters
    ----------
    layer : NormalizationLayer
    y : dask.array.Array
    moments : Moments or tuple, optional
        As those of `NormalizationLayer.inverse`.
    out
        Refused.

    Returns
    -------
    dask.array.Array

    Examples
    --------
    >>> import dask.array as da
    >>> layer = gennorm.feature_norm(mean=[1.0, 2.0], variance=[4.0, 9.0])
    >>> inverse(layer, da.ones((2, 2), chunks=1)).compute()
    array([[3., 5.],
           [3., 5.]])
    """
    _refuse(out=out)
    state = layer._state
    require_inverse(state.config, moments, state.parameters.scaling)
    y, single = _input(layer, y, "the output to invert")
    resolved = _resolved(state.config, y.shape, given=moments is None)
    found = _held(layer, resolved) if moments is None else _given(moments, resolved, state.config)
    x = _moved(layer, resolved, y, found, inverse=True)
    return x[0] if single else x


def measure(layer: gennorm.NormalizationLayer, x: Any, mask: Any = None) -> Moments:
    """Compute the moments of the slices of an array, in one graph: ``layer.measure(x)``.

    Parameters
    ----------
    layer : NormalizationLayer
    x : dask.array.Array
    mask : ndarray or dask.array.Array of bool, optional
        As in `call`.

    Returns
    -------
    Moments

    Examples
    --------
    >>> import dask.array as da
    >>> measure(gennorm.NormalizationLayer(1), da.arange(5.0, chunks=2))
    Moments(count=5., mean=2., m2=10.)
    """
    x, _ = _input(layer, x, "the input")
    config = layer._state.config
    geometry = Geometry.of(config, resolve_config(replace(config, unbiased=False), x.shape), held=False)
    found: Moments = graphs.all_moments(geometry, x, None if mask is None else _mask(mask, x)).compute()
    return found


def moments_of(layer: gennorm.NormalizationLayer, data: Any, mask: Any, weights: Any, nan: str) -> Moments:
    """Compute the moments of a data set, in one graph, for ``layer.adapt(data)``.

    Parameters
    ----------
    layer : NormalizationLayer
    data : dask.array.Array
    mask, weights : ndarray or dask.array.Array, optional
        They broadcast to the data. An array of Dask has the shape and the chunks of the data.
    nan : {"propagate", "omit", "raise"}
        As that of `NormalizationLayer.adapt`.

    Returns
    -------
    Moments
        Without an axis for the batch.

    Examples
    --------
    >>> import dask.array as da
    >>> moments_of(gennorm.feature_norm(), da.arange(6.0, chunks=4).reshape(3, 2), None, None, "propagate")
    Moments(count=[3., 3.], mean=[2., 3.], m2=[8., 8.])
    """
    x, _ = _input(layer, data, "the data")
    config = layer._state.config
    geometry = Geometry.of(config, _resolved(config, x.shape, given=True), held=True)
    counted = None if mask is None else _mask(mask, x)
    weight = None if weights is None else _weights(weights, x)
    found: Moments = graphs.all_moments(geometry, x, counted, weight, nan).compute()
    return found


def _moved(
    layer: gennorm.NormalizationLayer,
    resolved: Resolved,
    x: Any,
    found: Statistics | None,
    *,
    mask: Any = None,
    inverse: bool = False,
) -> Any:
    state = layer._state
    state.parameters.require_fitting(resolved)
    state.parameters.require_initialized(state.config)
    geometry = Geometry.of(state.config, resolved, held=False)
    unbiased = state.config.unbiased
    return graphs.output(geometry, x, found, *state.parameters, mask=mask, unbiased=unbiased, inverse=inverse)


def _resolved(config: LayerConfig, shape: tuple[int, ...], *, given: bool) -> Resolved:
    """Return the slices of an array; moments that are held or given have no groups of the batch."""
    return resolve_config(replace(ungrouped(config, shape), statistics="dataset") if given else config, shape)


def _held(layer: gennorm.NormalizationLayer, resolved: Resolved) -> Statistics:
    moments = required(layer._state.moments)
    require_held(moments, resolved)
    return Statistics(moments.mean, held_variance(moments, layer._state.config))


def _given(moments: Any, resolved: Resolved, config: LayerConfig) -> Statistics:
    mean, variance = applicable(moments, resolved, config)
    return Statistics(mean if config.method == "Standardize" else None, variance)


def _input(layer: gennorm.NormalizationLayer, x: Any, what: str) -> tuple[Any, bool]:
    """Return an array with an axis for the batch, and whether it was one example of a layer that aggregates it."""
    dtype_name(x.dtype, what)
    x = graphs.known(x, what)
    config = layer._state.config
    single = config.statistics == "dataset" and is_one_example(config, x.shape)
    return (x[None] if single else x), single


def _mask(mask: Any, x: Any) -> Any:
    if isinstance(mask, da.Array):
        return _like(mask, x, "mask")
    return Whole(mask, broadcast_mask(mask, x.shape).shape)


def _weights(weights: Any, x: Any) -> Any:
    if isinstance(weights, da.Array):
        return _like(weights, x, "weights")
    values = real_array(weights, "weights")
    return Whole(values, broadcast(values, x.shape, "weights", "the data").shape)


def _like(values: Any, x: Any, name: str) -> Any:
    if name == "mask" and values.dtype != np.bool_:
        broadcast_mask(np.zeros(1, values.dtype), (1,))  # raises
    if values.chunks != x.chunks:
        has = "have" if name == "weights" else "has"
        msg = f"{name} of shape {values.shape} {has} other chunks than the array of shape {x.shape}\n"
        msg += f"write da.broadcast_to({name}, x.shape).rechunk(x.chunks)"
        raise ShapeError(msg, code="S141")
    return values


def _refuse(**arguments: Any) -> None:
    for name, value in arguments.items():
        if value is not None:
            msg = f"{name} is given for an array of Dask, which is computed later\n"
            msg += "leave it out" if name == "out" else f"leave it out, or set layer.{name}"
            raise OutputError(msg, code="O140") if name == "out" else ParameterError(msg, code="P144")
