"""Scaling and biases: those of a layer, and those of one call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gennorm.errors import ParameterError
from gennorm.layer.arrays import parameter_values
from gennorm.spec import config as configs
from gennorm.spec.config import LayerConfig, Resolved

__all__ = ["NAMES", "Parameter", "Parameters"]

Array = npt.NDArray[Any]

NAMES = ("scaling", "biases")


class Parameter(NamedTuple):
    """A parameter of one call: an array, which may have an axis for the examples of the batch, or None.

    Attributes
    ----------
    array : ndarray or None
    per_example : bool

    Examples
    --------
    >>> Parameter(np.ones(3), False).gradient(np.full((2, 3), 0.5))
    array([1., 1., 1.])
    """

    array: Array | None
    per_example: bool

    @classmethod
    def checked(cls, name: str, value: Any, resolved: Resolved) -> Parameter:
        """Check a parameter that was passed to a call."""
        array, shape = parameter_values(name, value), resolved.parameter_shape
        if array.shape == shape:
            return cls(array, False)
        batch = (resolved.shape[0], *shape) if resolved.batched else None
        if batch is not None and array.shape == batch:
            return cls(array, True)
        msg = f"{name} has the shape {array.shape}, and an input of shape {resolved.shape} needs {shape}"
        msg += "" if batch is None else f", or {batch} for one set for each example"
        msg += "\nits axes are the scaling levels"
        if batch is None:
            msg += "; a layer with batched=True takes one set for each example"
        raise ParameterError(msg, code="P013")

    def over_batch(self, size: int) -> Array | None:
        """Return the array with an axis for the examples of a batch of this size."""
        if self.array is None or self.per_example:
            return self.array
        return np.broadcast_to(self.array, (size, *self.array.shape))

    def gradient(self, found: Array | None) -> Array | None:
        """Convert a gradient of the engine to the shape and dtype of the parameter."""
        if found is None or self.array is None:
            return None
        summed = found.sum(0) if found.ndim > self.array.ndim else found
        dtype = self.array.dtype
        return np.asarray(summed, dtype if dtype.kind in "fV" else np.float64)


class Parameters(NamedTuple):
    """The parameters of a layer; None for one that is absent or whose shape is not known yet.

    Examples
    --------
    >>> Parameters(np.ones(3), None).shape
    (3,)
    """

    scaling: Array | None
    biases: Array | None

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of both; None if there is no array."""
        return next((array.shape for array in self if array is not None), None)

    def require_initialized(self, config: LayerConfig, names: Iterable[str] = NAMES) -> None:
        """Refuse a call that uses a parameter whose shape is not known yet."""
        for name in names:
            if getattr(self, name) is None and getattr(config, name) is not None:
                configs.parameter_shape(config)  # raises, and names the level whose size is not known

    def require_fitting(self, resolved: Resolved) -> None:
        """Refuse an array whose scaling levels have other sizes than the parameters."""
        for name, array in zip(NAMES, self, strict=True):
            if array is None or array.shape == resolved.parameter_shape:
                continue
            if array.ndim == len(resolved.scaling):
                wrong = next(i for i, axis in enumerate(resolved.scaling) if array.shape[i] != resolved.shape[axis])
                axis = resolved.scaling[wrong]
                place = resolved.name(axis)
                msg = f"{place} of the input has size {resolved.shape[axis]}, and {name} {array.shape[wrong]}\n"
            else:
                msg = f"the input has {len(resolved.scaling)} scaling levels, and {name} {array.ndim}\n"
            msg += f"an input of shape {resolved.shape} needs parameters of shape {resolved.parameter_shape}; "
            msg += f"{name} has the shape {array.shape}"
            raise ParameterError(msg, code="P011")
