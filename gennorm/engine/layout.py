"""Converts arrays, parameters and moments to the arguments of kernels: one-dimensional, in memory order."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from gennorm.plan import Plan

from .compiler import jit

__all__ = ["Layout", "deliver", "dense", "flat", "stored_empty"]

Array = npt.NDArray[Any]

NOTHING_REAL = {name: np.empty(0, name) for name in ("float32", "float64")}
VIEWED: dict[str, np.dtype[Any]] = {
    "float16": np.dtype(np.uint16),
    "bfloat16": np.dtype(np.uint16),
    "bool": np.dtype(np.uint8),
}


class Layout:
    """A plan, and the memory layout of its arrays, parameters and moments.

    Parameters
    ----------
    plan : Plan
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.size = plan, plan.size
        self.compute = np.dtype(plan.compute)
        self._in_order = plan.order == tuple(range(len(plan.resolved.shape)))
        self._parameter_steps = self._prepared_steps()
        kept = [axis for axis, _ in plan.moments_cells]
        self._moments_sizes = [size for _, size in plan.moments_cells]
        in_order = kept == sorted(kept)  # as in the kernel
        self._moments_order = [] if in_order else sorted(range(len(kept)), key=kept.__getitem__)

    # Arrays ----------------------------------------------------------------------------------------------------------

    def source(self, x: Array) -> Array:
        """Return the array itself, or a contiguous copy if the plan says so."""
        if self.plan.copies == "nothing":
            return x
        copy = dense(self.plan, x.dtype)
        np.copyto(copy, x)
        return copy

    def target(self, y: Array) -> Array:
        """Return the array itself, or a contiguous one that `deliver` copies into it."""
        return y if self.plan.copies != "both" else dense(self.plan, y.dtype)

    def laid_out(self, values: Array) -> Array:
        """Return values that broadcast to the input, in the layout of an output and in the type of the arithmetic."""
        if self._in_order and values.shape == self.plan.resolved.shape:
            return values.astype(self.compute, "C")
        laid = dense(self.plan, self.compute)
        np.copyto(laid, values, casting="unsafe")
        return laid

    # Moments ---------------------------------------------------------------------------------------------------------

    def shaped(self, rows: Array) -> Array:
        """Convert rows in the kernel's order of slices to arrays of the shape of the layer's moments."""
        if self._moments_order:
            rows = rows.reshape(len(rows), *self._moments_sizes).transpose(0, *(1 + i for i in self._moments_order))
        shape = (len(rows), *self.plan.resolved.moments_shape)
        return rows if rows.shape == shape else rows.reshape(shape)

    def ordered(self, moments: Array) -> Array:
        """Convert arrays of the shape of the layer's moments to rows in the kernel's order of slices."""
        if self._moments_order:
            sizes = [self._moments_sizes[i] for i in self._moments_order]
            back = sorted(range(len(sizes)), key=self._moments_order.__getitem__)
            moments = moments.reshape(len(moments), *sizes).transpose(0, *(1 + i for i in back))
        return moments.reshape(len(moments), -1)

    # Parameters ------------------------------------------------------------------------------------------------------

    def _prepared_steps(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None:
        """Return how a parameter is converted to the kernel's order; None if it has this order already."""
        plan, resolved = self.plan, self.plan.resolved
        split, places = [], []
        for axis in resolved.scaling:
            grouped = resolved.groups[axis] > 1 and axis in resolved.aggregation
            size, groups = resolved.shape[axis], resolved.groups[axis]
            for part, of in enumerate((groups, size // groups) if grouped else (size,)):
                if of != 1:
                    split.append(of)
                    places.append((axis, part))
        cells = [(axis, part) for axis, part, _ in plan.parameter_cells]
        spread = tuple([size for _, _, size in plan.parameter_cells])
        if [cell for cell in cells if cell in places] == places and math.prod(spread) == math.prod(split):
            return None
        order = tuple(sorted(range(len(places)), key=lambda i: cells.index(places[i])))
        aligned = tuple(split[places.index(cell)] if cell in places else 1 for cell in cells)
        return tuple(split), order, aligned, spread

    def parameter(self, array: Array | None) -> Array | None:
        """Return a parameter as a contiguous array in the kernel's order and type; it is copied only if necessary."""
        if array is None:
            return None
        if self._parameter_steps is None:
            if array.dtype == self.compute and array.flags.c_contiguous:
                return array if array.ndim == 1 else array.reshape(-1)
        else:
            split, order, aligned, spread = self._parameter_steps
            array = np.broadcast_to(array.reshape(split).transpose(order).reshape(aligned), spread)
        with np.errstate(all="ignore"):
            return np.ascontiguousarray(array, self.compute).reshape(-1)

    def unordered(self, array: Array) -> Array:
        shape = self.plan.resolved.parameter_shape
        if self._parameter_steps is None:
            return array.reshape(shape)
        split, order, aligned, spread = self._parameter_steps
        once = tuple(slice(None) if size == wide else slice(0, 1) for size, wide in zip(aligned, spread, strict=True))
        back = sorted(range(len(order)), key=lambda place: order[place])
        values = array.reshape(spread)[once].reshape([split[i] for i in order]).transpose(back)
        return np.ascontiguousarray(values).reshape(shape)

    def views_of(self, scaling: Array | None, biases: Array | None) -> tuple[Array | None, Array | None] | None:
        """Return parameters as `parameter` does, if they share memory with the arrays; else None."""
        views = self.parameter(scaling), self.parameter(biases)
        for array, view in zip((scaling, biases), views, strict=True):
            if array is not None and view is not None and not np.may_share_memory(array, view):
                return None
        return views

    def gradient(self, array: Array) -> Array:
        """Convert a gradient from the kernel's order to the shape of the parameters; spread parameters are summed."""
        shape = self.plan.resolved.parameter_shape
        if self._parameter_steps is None:
            return array.reshape(shape)
        split, order, aligned, spread = self._parameter_steps
        axes = tuple(axis for axis, size in enumerate(aligned) if size != spread[axis])
        back = sorted(range(len(order)), key=lambda place: order[place])
        summed = array.reshape(spread).sum(axes, np.float64, keepdims=True)
        return np.ascontiguousarray(summed.reshape([split[i] for i in order]).transpose(back)).reshape(shape)


def deliver(target: Array, y: Array) -> None:
    """Copy a target into the array, if it is not the array itself."""
    if target is not y:
        np.copyto(y, target)


def dense(plan: Plan, dtype: np.dtype[Any]) -> Array:
    """Return a new contiguous array in the memory order of the plan."""
    order, shape = plan.order, plan.resolved.shape
    inverse = sorted(range(len(order)), key=lambda place: order[place])
    return np.empty([shape[axis] for axis in order], dtype).transpose(inverse)


@functools.cache
def stored_empty(dtype: str) -> Array:
    """Return an empty array of the storage type of a dtype in kernels."""
    return np.empty(0, (VIEWED.get(dtype) if jit.JIT else None) or np.dtype(dtype))


def flat(array: Array, dtype: str) -> Array:
    """Return a one-dimensional view from the first element on; kernels access the others by strides."""
    if not array.flags.c_contiguous:
        array = array[(slice(0, 1),) * array.ndim]
    line = array.reshape(-1)
    return line.view(VIEWED[dtype]) if jit.JIT and dtype in VIEWED else line
