"""The state of a layer: its config, its parameters, its held moments, and the cache of prepared calls.

A state is immutable: a change of the layer replaces the state in one assignment. A call reads the state once, so it
sees a change completely or not at all. A prepared call is stored in the state that it was made for, so it is never
stale.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from gennorm.layer.calls import Calls
from gennorm.layer.parameters import NAMES, Parameter, Parameters
from gennorm.moments import Moments
from gennorm.spec.config import LayerConfig
from gennorm.spec.equivalence import Equivalence, ascending

__all__ = ["State", "same_values"]


class State:
    """The settings, parameters and moments of a layer.

    Parameters
    ----------
    config : LayerConfig
    parameters : Parameters
    moments : Moments or None
        The held moments.
    calls : Calls, optional
        The prepared calls for this config and these parameters; an empty cache if not given.
    """

    __slots__ = ("calls", "config", "learnable", "moments", "of_input", "own", "parameters")

    def __init__(
        self, config: LayerConfig, parameters: Parameters, moments: Moments | None, calls: Calls | None = None
    ) -> None:
        self.config, self.parameters, self.moments = config, parameters, moments
        self.calls = Calls(config, parameters) if calls is None else calls
        self.own = Parameter(parameters.scaling, False), Parameter(parameters.biases, False)
        self.of_input = config.statistics == "input"
        self.learnable = config.statistics == "moving" and config.trainable

    def holding(self, moments: Moments | None) -> State:
        """Return the same state with other moments."""
        state = State.__new__(State)
        state.config, state.parameters, state.calls, state.own = self.config, self.parameters, self.calls, self.own
        state.of_input, state.learnable, state.moments = self.of_input, self.learnable, moments
        return state


def same_values(proved: Equivalence, first: State, second: State) -> Equivalence:
    """Compare the parameters and held moments of two layers whose settings are equivalent."""
    for name in NAMES:
        pair = [_ascending(state, getattr(state.parameters, name)) for state in (first, second)]
        if not _equal(*pair):
            return Equivalence(False, f"the layers have other values of {name}")
    held = [state.moments for state in (first, second)]
    if any(moments is None for moments in held):
        same = held[0] is held[1]
    else:
        ours, theirs = ((one.mean, one.variance()) for one in held if one is not None)
        same = all(itertools.starmap(_equal, zip(ours, theirs, strict=True)))
    return proved if same else Equivalence(False, "the layers hold other moments")


def _ascending(state: State, array: npt.NDArray[Any] | None) -> npt.NDArray[Any] | None:
    """Return a parameter with its axes in the order of the levels that they lie on."""
    if array is None:
        return None
    return array.transpose(ascending(state.config, array.shape))


def _equal(first: npt.NDArray[Any] | None, second: npt.NDArray[Any] | None) -> bool:
    """Return whether two arrays have the same elements, apart from axes of size 1."""
    if first is None or second is None:
        return first is second
    return bool(np.array_equal(np.squeeze(first), np.squeeze(second), equal_nan=True))
