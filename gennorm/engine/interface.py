"""The interface of a prepared call: what the layer uses of the engine.

`engine.call` implements it with kernels, `engine.fallback` with the definition. *Rows* of moments have one column for
each slice, in the order of the call: mean and second moment, or mean and variance; a third row is the count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy.typing as npt

from gennorm.plan import Plan

__all__ = ["PreparedCall"]

Array = npt.NDArray[Any]


class PreparedCall(Protocol):
    """Computes for arrays of one shape, dtype, layout and form of the parameters.

    Attributes
    ----------
    plan : Plan
    strides : tuple of int
        Strides of the output, in bytes.
    center : bool
        Whether the method subtracts a mean.
    single : bool
        Whether the call is made on one example, and the plan is that of a batch of one. Set by the layer.
    held_shape : tuple of int
        Shape of held moments. Set by the layer.
    views : tuple of (ndarray or None), or None
        The parameters of the layer as arguments of the call, if these are views of its arrays. Set by the layer.
    """

    plan: Plan
    strides: tuple[int, ...]
    center: bool
    single: bool
    held_shape: tuple[int, ...]
    views: tuple[Array | None, Array | None] | None

    # Parameters and moments ------------------------------------------------------------------------------------------

    def parameter(self, array: Array | None) -> Array | None:
        """Return a parameter as argument of the call; it is copied only if necessary."""

    def unordered(self, array: Array) -> Array:
        """Return a parameter in its own shape, from what `parameter` returned."""

    def views_of(self, scaling: Array | None, biases: Array | None) -> tuple[Array | None, Array | None] | None:
        """Return parameters as `parameter` does, if they share memory with the arrays; else None."""

    def shaped(self, rows: Array) -> Array:
        """Convert rows of moments to arrays of the shape of the layer's moments."""

    def ordered(self, moments: Array) -> Array:
        """Convert arrays of the shape of the layer's moments to rows."""

    def last(self, moments: object, held: bool = True) -> Array | None:
        """Return the rows of moments, if the last call of `remember` cached these moments; else None."""

    def remember(self, moments: object, held: bool, rows: Array) -> Array:
        """Cache and return the rows of immutable moments. Held moments are divided differently from given ones."""

    def statistics(self, moments: Array) -> Array:
        """Return mean and variance (or mean square) of slices from mean, second moment and perhaps count."""

    def fold(self, moments: Array, held: Array) -> None:
        """Fold rows of mean and second moment into moving means and variances, in place.

        ``held`` is contiguous, float64, and of shape (2, \\*held_shape).
        """

    # Computation -----------------------------------------------------------------------------------------------------

    def output(self, x: Array) -> Array:
        """Return a new array for the output of ``x``, or for a gradient; it has the memory order of ``x``."""

    def normalize(
        self, x: Array, y: Array, gains: Array | None, shifts: Array | None, *, keep: bool = False
    ) -> Array | None:
        """Write the output for ``x`` into ``y``, by the moments of ``x``; with `keep`, return their rows."""

    def apply(self, x: Array, y: Array, moments: Array, gains: Array | None, shifts: Array | None) -> None:
        """Write the output for ``x`` into ``y``, by rows of mean and variance."""

    def invert(self, y: Array, x: Array, moments: Array, gains: Array | None, shifts: Array | None) -> None:
        """Write the input with output ``y`` into ``x``, by rows of mean and variance; the scaling has no zeros."""

    def measure(self, x: Array, weights: Array | None = None) -> Array:
        """Return mean and second moment of every slice of ``x``, and its count where there are weights.

        Weights or a mask broadcast to ``x``; without them every element counts once.
        """

    def backward(
        self,
        x: Array,
        dy: Array,
        dx: Array,
        moments: Array,
        gains: Array | None,
        *,
        through: bool,
        biased: bool = False,
        weights: Array | None = None,
        tangent: bool = False,
        merge: Callable[[Array], Array] | None = None,
    ) -> tuple[Array | None, Array | None]:
        """Write the gradient of the input into ``dx``; return those of scaling and biases.

        Parameters
        ----------
        x, dy, dx : ndarray
            The input, the gradient of the output, and the array for the gradient of the input.
        moments : ndarray
            Mean and variance. If the gradient goes through the statistics: mean, second moment and, unless every
            element counts, count.
        gains : ndarray or None
            The scaling.
        through : bool
            Whether the gradient goes through the statistics.
        biased : bool
            Whether the gradient of biases is needed.
        weights : ndarray, optional
            The mask.
        tangent : bool
            ``dy`` is a direction of the input, and the derivative of the output along it is written into ``dx``.
        merge : callable, optional
            A function from the two sums of every slice, of gradients and of their products with the deviations from the
            mean, shaped as the moments after an axis of two, to those of the larger slice that it is part of.
        """
