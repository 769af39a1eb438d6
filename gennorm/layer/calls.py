"""The cache of prepared calls: one for each layout, source of the moments and form of the parameters."""

from __future__ import annotations

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
from gennorm.spec.config import LayerConfig

if TYPE_CHECKING:
    from gennorm.engine.interface import PreparedCall

__all__ = ["Calls"]

Array = npt.NDArray[Any]

MOST = 1024  # layouts for which a layer remembers the prepared call
DROPPED = 64  # the oldest of them, which are dropped together to make room


class Calls:
    """The prepared calls of a layer; another config or other parameter arrays need another cache.

    Parameters
    ----------
    config : LayerConfig
    parameters : Parameters
        The layer's own.
    """

    __slots__ = ("_config", "_parameters", "found")

    def __init__(self, config: LayerConfig, parameters: Parameters) -> None:
        self._config, self._parameters = config, parameters
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
            # Groups of the batch have no part in moments that are not those of this batch.
            config = replace(ungrouped(config, x.shape), statistics="dataset")
        strides = np.empty_like(x, result_dtype(x.dtype)).strides if out is None else out
        call = engine.prepare(config, x.shape, x.dtype.name, x.strides, strides, per_example=per_example)
        call.single = single
        call.held_shape = held_shape(call.plan.resolved)
        if not per_example:
            self._parameters.require_fitting(call.plan.resolved)
            if all(
                array is not None or getattr(config, name) is None for name, array in self._parameters._asdict().items()
            ):
                call.views = call.views_of(*self._parameters)
        return call
