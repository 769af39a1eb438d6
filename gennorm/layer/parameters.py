"""Scaling and biases as one call uses them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gennorm.errors import ParameterError
from gennorm.layer.arrays import parameter_values
from gennorm.spec.config import Resolved

__all__ = ["Parameter", "together"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Parameter:
    """A parameter as a call uses it: an array or nothing, perhaps with an axis for the examples of the batch.

    Attributes
    ----------
    own : ndarray or None
    per_example : bool

    Examples
    --------
    >>> Parameter(np.ones(3), False).gradient(np.full((2, 3), 0.5))
    array([1., 1., 1.])
    """

    own: Array | None
    per_example: bool

    @classmethod
    def given(cls, name: str, value: Any, resolved: Resolved) -> Parameter:
        """Check a parameter that was given for one call."""
        array = parameter_values(name, value)
        shape = resolved.parameter_shape
        batch = (resolved.shape[0], *shape) if resolved.batched else None
        if array.shape == shape:
            return cls(array, False)
        if batch is not None and array.shape == batch:
            return cls(array, True)
        msg = f"{name} has the shape {array.shape}, and an input of shape {resolved.shape} needs {shape}"
        msg += "" if batch is None else f", or {batch} for one set an example"
        msg += "\nits axes are the scaling levels"
        if batch is None:
            msg += "; a layer with batched=True takes one set for each example"
        raise ParameterError(msg, code="P013")

    def array(self, per_example: bool, resolved: Resolved) -> Array | None:
        """The array, with an axis for the examples if the other parameter has one."""
        if self.own is None or self.per_example == per_example:
            return self.own
        return np.broadcast_to(self.own, (resolved.shape[0], *self.own.shape))

    def gradient(self, found: Array | None) -> Array | None:
        """The gradient in the shape and dtype of the parameter, from one that the engine found."""
        if found is None or self.own is None:
            return None
        summed = found.sum(0) if found.ndim > self.own.ndim else found
        return np.asarray(summed, self.own.dtype if self.own.dtype.kind in "fV" else np.float64)


def together(parameters: Sequence[Parameter], resolved: Resolved) -> tuple[bool, Array | None, Array | None]:
    """Whether one of them has an axis for the examples, and the arrays of both, which then have it both.

    Examples
    --------
    >>> together([Parameter(np.ones(3), False), Parameter(None, False)], None)
    (False, array([1., 1., 1.]), None)
    """
    scaling, biases = parameters
    if not (scaling.per_example or biases.per_example):
        return False, scaling.own, biases.own
    return True, scaling.array(True, resolved), biases.array(True, resolved)
