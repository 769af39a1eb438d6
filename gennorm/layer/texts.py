"""A layer as text: the Python expression that makes it, and a table of its settings and properties."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from gennorm.layer.parameters import NAMES
from gennorm.layer.state import State
from gennorm.spec.config import LayerConfig

__all__ = ["DEFAULTS", "INITIAL", "Information", "is_constant", "represent", "write"]

Array = npt.NDArray[Any]

DEFAULTS = LayerConfig.make().arguments()
POSITIONAL = 6  # arguments before the first that is by keyword only
INITIAL = {"scaling": 1, "biases": 0}  # values of parameters that are "Automatic"


class Information(dict[str, Any]):
    """Settings and properties of a layer, by name; printed as a table."""

    def __str__(self) -> str:
        width = max(map(len, self)) + 2
        written = {name: write(value) if isinstance(value, tuple) else value for name, value in self.items()}
        return "\n".join(f"{name:<{width}}{value}" for name, value in written.items())


def represent(state: State) -> str:
    """Return the call that makes a layer; settings that have their default values are left out."""
    arguments = state.config.arguments()
    for name, array in zip(NAMES, state.parameters, strict=True):
        automatic = getattr(state.config, name) == "Automatic"
        if array is not None and not (automatic and is_constant(array, array.dtype.type(INITIAL[name]))):
            arguments[name] = array
    words: list[str] = []
    names = state.config.input_levels
    for position, (name, default) in enumerate(DEFAULTS.items()):
        value = arguments[name]
        if not isinstance(value, np.ndarray) and value == default:
            continue
        if names is not None and value == {"input_shape": names.shape, "batched": names.batch is not None}.get(name):
            continue  # the names of the levels declare it
        leading = position < POSITIONAL and len(words) == position
        words.append(write(value) if leading else f"{name}={write(value)}")
    return f"NormalizationLayer({', '.join(words)})"


def is_constant(array: Array, value: Any) -> bool:
    """Return whether every element has the bits of the value; 0 is not -0."""
    return bool(array.tobytes() == value.tobytes() * array.size)


def write(value: Any) -> str:
    """Return a Python expression for a value; arrays are exact to the last bit."""
    if isinstance(value, np.ndarray):
        dtype = f"dtype={value.dtype.name!r}"
        if value.size and np.isfinite(value.flat[0]) and is_constant(value, value.flat[0]):
            return f"np.full({value.shape}, {value.flat[0].item()!r}, {dtype})"
        if value.size == 0:
            return f"np.zeros({value.shape}, {dtype})"
        numbers = re.sub(r"\b(nan|inf)\b", r"np.\1", repr(value.tolist()))
        return f"np.array({numbers}, {dtype})"
    if isinstance(value, tuple):
        inside = ", ".join("..." if item is ... else repr(item) for item in value)
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    return repr(value)
