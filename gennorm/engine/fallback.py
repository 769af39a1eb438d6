"""Prepared calls without kernels: they compute by the definition in NumPy. `interface` documents the methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from gennorm import definition
from gennorm.engine.memory import empty_like
from gennorm.plan import Plan

__all__ = ["DefinitionCall"]

Array = npt.NDArray[Any]


class DefinitionCall:
    """Computes for arrays of one shape, dtype and layout by the definition.

    Its arguments are parameters with their own shape and dtype, and rows in the order of the moments' axes.

    Parameters
    ----------
    plan : Plan
    strides : tuple of int
        Strides of the output, in bytes.
    """

    def __init__(self, plan: Plan, strides: tuple[int, ...]) -> None:
        self.plan, self.strides = plan, strides
        self.center = plan.config.method == "Standardize"
        self.single = False
        self.held_shape: tuple[int, ...] = ()
        self.views: tuple[Array | None, Array | None] | None = None

    # Parameters and moments ------------------------------------------------------------------------------------------

    def parameter(self, array: Array | None) -> Array | None:
        return array

    def unordered(self, array: Array) -> Array:
        return array

    def views_of(self, scaling: Array | None, biases: Array | None) -> tuple[Array | None, Array | None]:
        return scaling, biases

    def shaped(self, rows: Array) -> Array:
        return rows.reshape(len(rows), *self.plan.resolved.moments_shape)

    def ordered(self, moments: Array) -> Array:
        return moments.reshape(len(moments), -1)

    def last(self, moments: object, held: bool = True) -> Array | None:
        return None  # rows are not cached

    def remember(self, moments: object, held: bool, rows: Array) -> Array:
        return rows

    def statistics(self, moments: Array) -> Array:
        count: Any = moments[2] if len(moments) == 3 else float(self.plan.resolved.count)
        with np.errstate(all="ignore"):
            variance = moments[1] / np.maximum(count - self.plan.config.unbiased, 1.0)
        return np.stack([moments[0] if self.center else np.zeros_like(variance), variance])

    def fold(self, moments: Array, held: Array) -> None:
        """Fold mean and second moment of every slice into moving means and variances, in place."""
        with np.errstate(all="ignore"):
            new = self.shaped(moments).copy()
            new[1] /= self.plan.resolved.count
            if new.ndim > held.ndim:  # one axis more: the batch, or its groups
                if new.shape[1] == 0:
                    return
                new = new.sum(axis=1) / new.shape[1]
            momentum = self.plan.config.momentum
            held *= momentum
            held += (1 - momentum) * new

    # Computation ---------------------------------------------------------------------------------------------------

    def output(self, x: Array) -> Array:
        return empty_like(x, x.dtype if self.plan.result == self.plan.dtype else np.dtype(self.plan.result))

    def normalize(
        self, x: Array, y: Array, gains: Array | None, shifts: Array | None, *, keep: bool = False
    ) -> Array | None:
        with np.errstate(all="ignore"):
            found, moments = definition.normalize(x, self.plan.config, self.plan.resolved, scaling=gains, biases=shifts)
        y[...] = found
        return self._rows(moments)[:2] if keep else None

    def apply(self, x: Array, y: Array, moments: Array, gains: Array | None, shifts: Array | None) -> None:
        mean, variance = self.shaped(moments)
        with np.errstate(all="ignore"):
            y[...] = definition.apply(
                x, self.plan.config, self.plan.resolved, mean, variance, scaling=gains, biases=shifts
            )

    def invert(self, y: Array, x: Array, moments: Array, gains: Array | None, shifts: Array | None) -> None:
        mean, variance = self.shaped(moments)
        with np.errstate(all="ignore"):
            x[...] = definition.invert(
                y, self.plan.config, self.plan.resolved, (mean, variance), scaling=gains, biases=shifts
            )

    def measure(self, x: Array, weights: Array | None = None) -> Array:
        with np.errstate(all="ignore"):
            return self._rows(definition.measure(x, self.plan.config, self.plan.resolved, weights=weights))

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
        config, resolved = self.plan.config, self.plan.resolved
        given = self._moments(moments, through=through)
        with np.errstate(all="ignore"):
            if merge is not None:
                merge = self._of_deviations(merge, moments)
            if tangent:
                dx[...] = definition.push_forward(
                    x, dy, config, resolved, scaling=gains, weights=weights, moments=given, merge=merge
                )
                return None, None
            biases = np.zeros(resolved.parameter_shape) if biased else None
            wide = None if gains is None else gains.astype(np.float64)
            found = definition.pull_back(
                x, dy, config, resolved, scaling=wide, biases=biases, weights=weights, moments=given, merge=merge
            )
        dx[...] = found.input
        return found.scaling, found.biases

    def _of_deviations(self, merge: Callable[[Array], Array], moments: Array) -> Callable[[Array], Array]:
        """Return a function of the definition's sums, which calls one of the sums that kernels take.

        The second sum of kernels has the deviations as factors, and that of the definition deviations by the divisor.
        """
        spread = definition.divisor_of(self.shaped(self.statistics(moments))[1], self.plan.config)
        per_spread = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread != 0)

        def merged(sums: Array) -> Array:
            found = merge(np.stack([sums[0], sums[1] * spread]))
            return np.stack([found[0], found[1] * per_spread])

        return merged

    def _rows(self, moments: Any) -> Array:
        count, mean, m2 = moments
        rows = np.empty((3, self.plan.slices))
        rows[0] = 0.0 if mean is None else np.reshape(mean, -1)
        rows[1], rows[2] = np.reshape(m2, -1), np.reshape(count, -1)
        return rows

    def _moments(self, rows: Array, *, through: bool) -> Any:
        mean, spread, *counted = self.shaped(rows)
        if not through:
            return mean, spread
        count = counted[0] if counted else np.full(spread.shape, float(self.plan.resolved.count))
        return definition.SliceMoments(count, mean if self.center else None, spread)
