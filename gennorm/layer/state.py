"""The state of a layer: its config, its parameters, its held moments, and the cache of prepared calls.

A state is immutable: a change of the layer replaces the state in one assignment. A call reads the state once, so it
sees a change completely or not at all. A prepared call is stored in the state that it was made for, so it is never
stale.
"""

from __future__ import annotations

from gennorm.layer.calls import Calls
from gennorm.layer.parameters import Parameter, Parameters
from gennorm.moments import Moments
from gennorm.spec.config import LayerConfig

__all__ = ["State"]


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
