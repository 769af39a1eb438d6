"""Calls of a layer that are one kernel call each: what they have in common is settled once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gennorm.engine.memory import WORTH, empty_like
from gennorm.engine.threads import shared

from .layout import NOTHING_REAL, dense, flat
from .sharing import alone, run

if TYPE_CHECKING:
    from .bound import Bound

__all__ = ["Shortcut"]

Array = npt.NDArray[Any]
Kernel = Callable[..., None]
NOTHING = np.empty(0)
FORWARD = 12, 3  # numbers for each lane of a tile in the scratch of a forward kernel: float64, arithmetic


class Shortcut:
    """What the calls of a layer on arrays of one plan have in common, where each is one kernel call.

    Parameters
    ----------
    bound : Bound
    gains, shifts : ndarray or None
        Views of the layer's parameters in the kernel's order and type.
    moments : ndarray or None
        Mean and variance that each of them applies, in the kernel's order.
    """

    def __init__(self, bound: Bound, gains: Array | None, shifts: Array | None, moments: Array | None) -> None:
        plan = bound.plan
        self.bound, self._gains, self._shifts, self._held = bound, gains, shifts, moments
        self._shape = plan.resolved.moments_shape
        self._rows = np.ones((4, plan.slices))  # of which the first two are measured; then they are `Bound.factors`
        plain = plan.dtype == plan.result == plan.compute and plan.order == tuple(range(len(plan.resolved.shape)))
        self._small = plain and bound.size * bound.compute.itemsize < WORTH  # and then in the order of its axes
        self._unused = NOTHING_REAL[plan.compute]

    @functools.cached_property
    def normalize(self) -> Callable[[Array], Array]:
        """The output, by the input's own moments or by those that are the same to each call."""
        if self._held is None:
            return self._measuring(keep=0)
        apply, (means, variances) = self._applying, self._held
        return lambda x: apply(x, means, variances)

    def keep(self, x: Array) -> tuple[Array, Array, Array]:
        """The output, what was measured, and the factors that a gradient is told."""
        rows = self._rows.copy()
        y = self._keeping(x, rows[0], rows[1])
        return y, rows[:2], self.bound.shaped(rows * self.bound.per)

    def apply(self, x: Array, mean: Array | None, variance: Array) -> tuple[Array, Array] | None:
        """The output by a mean and a variance whose axes are the last of the moments', and the factors; else None."""
        if self._shape[len(self._shape) - variance.ndim :] != variance.shape:
            return None
        if mean is not None and mean.shape != variance.shape:
            return None
        factors = np.zeros((4, *self._shape))
        factors[0] = 0.0 if mean is None else mean
        factors[1] = variance
        means, variances = self.bound.ordered(factors[:2])
        return self._applying(x, means, variances), factors

    def fits(self, factors: Array) -> bool:
        """Whether an array may be factors of these calls; a kernel would not notice."""
        return factors.dtype.char == "d" and factors.shape == (4, *self._shape)

    def backward(
        self, x: Array, dy: Array, factors: Array, scaling: Array | None
    ) -> tuple[Array, Array | None, Array | None]:
        """The gradients, as `Bound.backward` has them, for a scaling that lies as the layer's own."""
        bound, plan = self.bound, self.bound.plan
        if self._small and x.flags.c_contiguous and dy.flags.c_contiguous:
            dx = np.empty(x.shape, x.dtype)
            source, slopes, target = x.reshape(-1), dy.reshape(-1), dx.reshape(-1)
        else:
            dx = empty_like(x, dy.dtype)
            if dy.strides != dx.strides:
                laid = dense(plan, dy.dtype)
                np.copyto(laid, dy)
                dy = laid
            source, slopes, target = flat(x, plan.dtype), flat(dy, plan.result), flat(dx, plan.result)
        gains = self._unused if scaling is None else bound.parameter(scaling)
        summed = self._pulling(source, slopes, target, gains, bound.ordered(factors).reshape(-1))
        to_scaling = None if scaling is None else bound.gradient(summed[0])
        return dx, to_scaling, None if self._shifts is None else bound.gradient(summed[1])

    @functools.cached_property
    def _pulling(self) -> Callable[..., Array]:
        """From arrays as the kernel takes them to the gradients by parameters, by one kernel."""
        bound, plan, unused = self.bound, self.bound.plan, self._unused
        sweep = bound._sweep(self._gains is not None, self._shifts is not None, 0, False, False)

        def general(x: Array, dy: Array, dx: Array, scaling: Array, factors: Array) -> Array:
            return bound._backward(sweep, x, dy, dx, unused, scaling, factors, None)

        if plan.family == "columns" or len(sweep.kernels) > 1 or sweep.own == 0:
            return general
        ((kernel,), geometry, _, parameters, blocks, block, own, often, recent, _), numbers = sweep, bound.numbers
        size, new, shape, zeros = bound.size, np.empty if recent else np.zeros, (own, 2, parameters), np.zeros

        def pulling(x: Array, dy: Array, dx: Array, scaling: Array, factors: Array) -> Array:
            if not alone(size):
                return general(x, dy, dx, scaling, factors)
            found, latest = new(shape), zeros(recent, unused.dtype)
            kernel(
                x, dy, dx, unused, scaling, factors, NOTHING, found.reshape(-1), geometry, numbers, latest,
                block, parameters, often, 0, blocks, 0,
            )  # fmt: skip
            return found[0] if own == 1 else found.sum(0)

        return pulling

    @functools.cached_property
    def _keeping(self) -> Callable[[Array, Array, Array], Array]:
        return self._measuring(keep=1)

    def _measuring(self, *, keep: int) -> Callable[..., Array]:
        bound = self.bound
        return self._call(bound.numbers, bound.geometry, bound.blocks, MEASURE=1, KEEP=keep, APPLY=1)

    @functools.cached_property
    def _applying(self) -> Callable[[Array, Array, Array], Array]:
        geometry, tasks, across = self.bound._across
        return self._call(self.bound.given, geometry, tasks, APPLY=1, ACROSS=across)

    def _call(self, numbers: Array, geometry: Array, tasks: int, **flags: int) -> Callable[..., Array]:
        """From an array, and perhaps where its moments are, to the output, by one kernel."""
        bound, plan = self.bound, self.bound.plan
        gains, shifts, kind = self._gains, self._shifts, plan.parameter_kind
        flags |= {"SCALING": 0 if gains is None else kind, "BIASES": 0 if shifts is None else kind}
        kernel: Kernel | None = None
        own_gains, own_shifts, measures = gains, shifts, "MEASURE" in flags
        gains, shifts = self._unused if gains is None else gains, self._unused if shifts is None else shifts
        size, space, shape, nothing, empty = bound.size, bound._space, plan.resolved.shape, NOTHING, np.empty
        result = None if plan.result == plan.dtype else np.dtype(plan.result)
        small = self._small
        rows, few = plan.family == "rows", not shared(size)

        def call(x: Array, means: Array = nothing, spreads: Array = nothing) -> Array:
            nonlocal kernel
            if small and x.flags.c_contiguous:
                source, y = x.reshape(-1), empty(shape, x.dtype)
                target = y.reshape(-1)
            else:
                source, y = flat(x, plan.dtype), empty_like(x, result or x.dtype)
                target = flat(y, plan.result)
            if kernel is None:  # where there is no memory for the output, compiling would end the process
                kernel = bound._kernel("forward", **flags)
            if few or alone(size):
                if rows:
                    kernel(source, target, gains, shifts, means, spreads, geometry, numbers, 0, tasks, 0)
                else:
                    beside = space(*FORWARD, 1)
                    kernel(source, target, gains, shifts, means, spreads, geometry, numbers, *beside, 0, tasks, 0)
                return y
            if measures and bound.shares_slices():
                found = bound._normalize_in_two(source, target, own_gains, own_shifts, keep=bool(flags["KEEP"]))
                if flags["KEEP"]:
                    means[:], spreads[:] = found
                return y

            def work(parts: int, lo: int, hi: int, team: int, kernel: Kernel = kernel) -> None:
                beside = space(*FORWARD, parts)
                kernel(source, target, gains, shifts, means, spreads, geometry, numbers, *beside, lo, hi, team)

            run(work, tasks, size)
            return y

        return call
