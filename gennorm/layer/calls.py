"""The cache of prepared calls: one for each layout, source of the moments and form of the parameters."""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gennorm import engine
from gennorm.engine.forks import changing
from gennorm.layer.arrays import result_dtype
from gennorm.layer.parameters import Parameters
from gennorm.layer.statistics import held_shape, is_one_example, ungrouped
from gennorm.plan import dense_strides
from gennorm.spec.config import LayerConfig, Resolved

if TYPE_CHECKING:
    from gennorm.engine.interface import PreparedCall

__all__ = ["Calls"]

Array = npt.NDArray[Any]

MOST = 1024  # prepared calls in the cache of a layer
DROPPED = 64  # the oldest of them, which are dropped together to make room
# Shapes of examples of any rank with the channels of colour pictures last, and the least sides of a picture.
PICTURES = (..., 3), (..., 4)
LEAST_SIDE = 16

_names: dict[np.dtype[Any], str] = {}  # NumPy takes a microsecond to find the name of a dtype


class Calls:
    """The prepared calls of a layer; another config or other parameter arrays need another cache.

    Parameters
    ----------
    config : LayerConfig
    parameters : Parameters
        The layer's own.
    """

    __slots__ = ("_complete", "_config", "_parameters", "_without_batch", "found")

    def __init__(self, config: LayerConfig, parameters: Parameters) -> None:
        self._config, self._parameters = config, parameters
        self._complete = all(
            array is not None or getattr(config, name) is None for name, array in parameters._asdict().items()
        )
        self._without_batch: dict[int, LayerConfig] = {}  # by number of axes
        self.found: dict[Any, PreparedCall] = {}

    def find(
        self, x: Array, given: bool, *, per_example: bool = False, out: tuple[int, ...] | None = None
    ) -> PreparedCall:
        """Return the prepared call for an array; make it where there is none yet.

        Parameters
        ----------
        x : ndarray
            A plain array of a dtype that is normalized.
        given : bool
            Whether the moments are given or held by the layer. Those of `x` are taken otherwise.
        per_example : bool, default False
            Whether the parameters have a leading axis for the examples of the batch.
        out : tuple of int, optional
            Strides of the output, where these are not the ones of a new array.
        """
        if per_example or out is not None:
            key: tuple[Any, ...] = (x.shape, x.strides, x.dtype, given, per_example, out)
        else:
            key = (x.shape, x.strides, x.dtype, given)
        call = self.found.get(key)
        if call is None:
            call = self._prepare(x, given, per_example, out)
            with changing:
                if len(self.found) >= MOST:
                    for old in [*islice(self.found, DROPPED)]:
                        del self.found[old]
                self.found[key] = call
        return call

    def _prepare(self, x: Array, given: bool, per_example: bool, out: tuple[int, ...] | None) -> PreparedCall:
        config = self._config
        single = config.statistics == "dataset" and is_one_example(config, x.shape)
        if single:
            x = x[None]
        if given:
            config = self._for_given(x.shape)
        strides = _new_strides(x) if out is None else out
        name = _names.get(x.dtype) or _names.setdefault(x.dtype, x.dtype.name)
        call = engine.prepare(config, x.shape, name, x.strides, strides, per_example=per_example)
        call.single = single
        call.held_shape = held_shape(call.plan.resolved)
        if config.batched and config.input_shape in PICTURES:
            _warn_of_picture(call.plan.resolved)
        if not per_example:
            self._parameters.require_fitting(call.plan.resolved)
            if self._complete:
                call.views = call.views_of(*self._parameters)
        return call

    def _for_given(self, shape: tuple[int, ...]) -> LayerConfig:
        """Return the config for moments that are given or held: groups of the batch have no part in them."""
        config = self._without_batch.get(len(shape))
        if config is None:
            config = replace(ungrouped(self._config, shape), statistics="dataset")
            self._without_batch[len(shape)] = config
        return config


def _warn_of_picture(resolved: Resolved) -> None:
    """Warn if an array that is taken for a batch looks like one picture, and the difference matters.

    It has three axes with 3 or 4 channels last, and its rows would be normalized apart. Sequences of so many channels
    have the same shape: a layer that declares the rank of an example is not in doubt.
    """
    shape = resolved.shape
    if len(shape) != 3 or min(shape[:2]) < LEAST_SIDE or 1 not in resolved.aggregation or 0 in resolved.aggregation:
        return
    msg = f"an array of shape {shape} is taken for a batch of {shape[0]} sequences of shape {shape[1:]}; "
    msg += f"for one picture pass x[None] or declare input_shape=(None, None, {shape[2]}), for sequences "
    msg += f"(None, {shape[2]}); the presets take spatial_levels=2 or 1"
    depth, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "gennorm":
        depth, frame = depth + 1, frame.f_back
    warnings.warn(msg, UserWarning, stacklevel=depth)


def _new_strides(x: Array) -> tuple[int, ...]:
    """Return the strides of a new output for an array; those of ``numpy.empty_like``."""
    dtype = result_dtype(x.dtype)
    if x.flags.c_contiguous:
        return dense_strides(x.shape, dtype.itemsize)
    return np.empty_like(x, dtype).strides
