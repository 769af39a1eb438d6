"""The engine: a plan and arrays in, kernels called. The only folder that knows Numba."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gennorm._threads import run, shared
from gennorm.config import LayerConfig
from gennorm.plan import ITEMSIZE, Plan, dense_strides, make_plan

from . import _jit, columns, rows

__all__ = ["Bound", "bind"]

Array = npt.NDArray[Any]

PLACEMENTS = {"inside": 0, "floor": 1, "outside": 2}
VIEWED: dict[str, np.dtype[Any]] = {
    "float16": np.dtype(np.uint16),
    "bfloat16": np.dtype(np.uint16),
    "bool": np.dtype(np.uint8),
}
NEAR = 16 << 20  # bytes of slices that are measured before they are applied, still in the last-level cache by then
NOTHING = np.empty(0)


@functools.cache
def _kernel(
    family: str,
    dtypes: tuple[str, str, str],
    center: bool,
    measure: bool,
    keep: bool,
    apply: bool,
    scaling: int,
    biases: int,
) -> Callable[..., None]:
    storage, result, compute = dtypes
    flags = {"CENTER": center, "MEASURE": measure, "KEEP": keep, "APPLY": apply, "EXACT": compute == "float32"}
    settings = {**{name: int(flag) for name, flag in flags.items()}, "SCALING": scaling, "BIASES": biases}
    arrays = (storage, result, compute, compute, "float64", "float64", "int64", "float64")
    if family == "rows":
        return _jit.build(rows.forward, settings, dtypes, arrays, 2)
    return _jit.build(columns.forward, settings, dtypes, (*arrays, "float64", compute), 2)


def bind(
    config: LayerConfig, shape: tuple[int, ...], dtype: str, strides: tuple[int, ...], out_strides: tuple[int, ...]
) -> Bound:
    """Plan a layer for arrays of one shape, dtype and layout, and give the plan its kernels."""
    if _jit.JIT:
        return Bound(make_plan(config, shape, dtype, strides, out_strides))
    # Plain Python cannot reach beyond a view by its strides: everything but C order goes through copies.
    plan = make_plan(config, shape, dtype)
    plain = (plan.order, dense_strides(shape, ITEMSIZE[dtype]), dense_strides(shape, ITEMSIZE[plan.result]))
    direct = plain == (tuple(range(len(shape))), strides, out_strides)
    return Bound(plan if direct else replace(plan, copies="both", order=tuple(range(len(shape)))))


class Bound:
    """A plan with its kernels, for arrays of its shape, dtype and layout.

    Parameters
    ----------
    plan : Plan
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        config, resolved = plan.config, plan.resolved
        count = max(resolved.count - config.unbiased, 1)
        self.numbers = np.array([count, config.epsilon, PLACEMENTS[config.epsilon_placement]], np.float64)
        self.geometry = np.array(plan.geometry, np.int64)
        self.compute = np.dtype(plan.compute)
        self.center = config.method == "Standardize"
        self.dtypes = (plan.dtype, plan.result, plan.compute)
        if plan.family == "columns":
            self.tile = plan.geometry[columns.TILE]
        self._parameter_steps = self._prepared_steps()
        kept = [axis for axis, _ in plan.moments_cells]
        self._moments_order = sorted(range(len(kept)), key=lambda i: kept[i])
        self._moments_sizes = [size for _, size in plan.moments_cells]

    # What the layer asks for -----------------------------------------------------------------------------------------

    def normalize(self, x: Array, y: Array, scaling: Array | None, biases: Array | None) -> None:
        """Write the layer's output for ``x`` into ``y``, from the moments of ``x``."""
        if self.plan.tasks == 0:
            return
        with _Copies(self.plan, x, y) as (source, target):
            gains, shifts = self.parameter(scaling), self.parameter(biases)
            if self.plan.cut.units == 1:
                self._run(source, target, gains, shifts, NOTHING, NOTHING, self.numbers, measure=True)
            else:
                self._normalize_in_two(source, target, gains, shifts)

    def measure(self, x: Array) -> tuple[Array, Array]:
        """Return mean and second moment of every slice of ``x``, shaped as the layer's moments."""
        mean, spread = np.zeros(self.plan.slices), np.zeros(self.plan.slices)
        if self.plan.tasks:
            with _Copies(self.plan, x, None) as (source, _):
                self._measure(source, mean, spread)
        return self._shaped(mean), self._shaped(spread)

    def apply(
        self, x: Array, y: Array, mean: Array, variance: Array, scaling: Array | None, biases: Array | None
    ) -> None:
        """Write the output for ``x`` into ``y``, from a mean and a variance shaped as the layer's moments."""
        if self.plan.tasks == 0:
            return
        with _Copies(self.plan, x, y) as (source, target):
            numbers = np.array([1.0, *self.numbers[1:]])
            means, spreads = self._ordered(mean), self._ordered(variance)
            self._run(
                source, target, self.parameter(scaling), self.parameter(biases), means, spreads, numbers, measure=False
            )

    def shortcut(self, scaling: Array | None, biases: Array | None) -> Callable[[Array], Array] | None:
        """Return a function that does what `normalize` does, if that is one kernel call; else None.

        A small call is mostly Python: everything that does not change from one to the next is settled here. The
        parameters are looked at through the views taken now.
        """
        plan = self.plan
        gains, shifts = self.parameter(scaling), self.parameter(biases)
        settled = all(
            given is None or np.may_share_memory(given, taken)
            for given, taken in ((scaling, gains), (biases, shifts))
            if taken is not None
        )
        if plan.copies != "nothing" or plan.cut.units > 1 or plan.tasks == 0 or not settled or shared(plan.size):
            return None
        kind, tasks = plan.parameter_kind, plan.tasks
        kernel = _kernel(
            plan.family, self.dtypes, self.center, True, False, True,
            0 if gains is None else kind, 0 if shifts is None else kind,
        )  # fmt: skip
        unused = np.empty(0, self.compute)
        gains, shifts = unused if gains is None else gains, unused if shifts is None else shifts
        geometry, numbers, nothing, shape, empty = self.geometry, self.numbers, NOTHING, plan.resolved.shape, np.empty
        result = None if plan.result == plan.dtype else np.dtype(plan.result)
        plain = plan.dtype == plan.result == plan.compute and plan.order == tuple(range(len(shape)))
        space = (5 * self.tile, 3 * self.tile) if plan.family == "columns" else None

        def normalize(x: Array) -> Array:
            if plain and x.flags.c_contiguous:
                source, y = x.reshape(-1), empty(shape, result or x.dtype)
                target = y.reshape(-1)
            else:
                source, y = _flat(x, plan.dtype), np.empty_like(x, result)
                target = _flat(y, plan.result)
            if space is None:
                kernel(source, target, gains, shifts, nothing, nothing, geometry, numbers, 0, tasks)
            else:
                work = empty(space[0]), empty(space[1], self.compute)
                kernel(source, target, gains, shifts, nothing, nothing, geometry, numbers, *work, 0, tasks)
            return y

        return normalize

    # Kernels ---------------------------------------------------------------------------------------------------------

    def _run(
        self,
        x: Array,
        y: Array,
        scaling: Array | None,
        biases: Array | None,
        means: Array,
        spreads: Array,
        numbers: Array,
        *,
        measure: bool,
        keep: bool = False,
        apply: bool = True,
        lo: int = 0,
        hi: int | None = None,
    ) -> None:
        """Run one kernel over the tasks ``lo`` to ``hi``."""
        plan = self.plan
        kind = plan.parameter_kind
        kernel = _kernel(
            plan.family, self.dtypes, self.center, measure, keep, apply,
            0 if scaling is None else kind, 0 if biases is None else kind,
        )  # fmt: skip
        unused = np.empty(0, self.compute)
        gains, shifts = (unused if array is None else array for array in (scaling, biases))
        geometry = self.geometry
        hi = plan.tasks if hi is None else hi

        def work(first: int, last: int) -> None:
            space: tuple[Array, ...] = ()
            if plan.family == "columns":
                space = (np.empty(5 * self.tile), np.empty(3 * self.tile, self.compute))
            kernel(x, y, gains, shifts, means, spreads, geometry, numbers, *space, lo + first, lo + last)

        run(work, hi - lo, plan.size * (hi - lo) // plan.tasks)

    def _measure(self, x: Array, mean: Array, spread: Array) -> None:
        """Fill in mean and second moment of every slice, in the kernel's order."""
        units = self.plan.cut.units
        if units == 1:
            self._measure_units(x, mean, spread, 0, self.plan.tasks)
            return
        means, spreads = np.zeros((units, self.plan.slices)), np.zeros((units, self.plan.slices))
        self._measure_units(x, means.reshape(-1), spreads.reshape(-1), 0, self.plan.tasks)
        mean[:], spread[:] = self._merged(means, spreads)

    def _measure_units(self, x: Array, means: Array, spreads: Array, lo: int, hi: int) -> None:
        empty = np.empty(0, VIEWED.get(self.plan.result) or self.plan.result)
        self._run(
            x, empty, None, None, means, spreads, self.numbers, measure=True, keep=True, apply=False, lo=lo, hi=hi
        )

    def _merged(self, means: Array, spreads: Array) -> tuple[Array, Array]:
        """The moments of slices from those of their units: deviations of the units' means add to the spread."""
        if not self.center:
            return means[0], spreads.sum(0)
        counts = self._counts()[:, None]
        nearby = means[0]
        mean = nearby + (counts * (means - nearby)).sum(0) / counts.sum()
        return mean, spreads.sum(0) + (counts * (means - mean) ** 2).sum(0)

    def _counts(self) -> Array:
        """Elements that each unit of a slice contributes to it."""
        cut, geometry = self.plan.cut, self.plan.geometry
        length, repeats = geometry[rows.LENGTH], geometry[rows.ROWS]
        sizes = np.full(cut.pieces, cut.piece, np.float64)
        sizes[-1] = length - cut.piece * (cut.pieces - 1)
        sizes *= geometry[columns.FOLD] if self.plan.family == "columns" else 1
        return np.add.reduceat(np.tile(sizes, repeats), np.arange(0, repeats * cut.pieces, cut.portion))

    def _normalize_in_two(self, x: Array, y: Array, scaling: Array | None, biases: Array | None) -> None:
        """Measure slices that are larger than the cache, then apply; a few at a time, for the cache behind it."""
        plan, units, slices = self.plan, self.plan.cut.units, self.plan.slices
        mean, spread = np.zeros(slices), np.zeros(slices)
        means, spreads = np.zeros((units, slices)), np.zeros((units, slices))
        blocks = plan.tasks // units
        together = max(1, NEAR * blocks // (plan.size * x.itemsize))
        for block in range(0, blocks, together):
            following = min(block + together, blocks)
            lo, hi = block * units, following * units
            self._measure_units(x, means.reshape(-1), spreads.reshape(-1), lo, hi)
            part = slice(self._first_slice(block), self._first_slice(following))
            mean[part], spread[part] = self._merged(means[:, part], spreads[:, part])
            self._run(x, y, scaling, biases, mean, spread, self.numbers, measure=False, lo=lo, hi=hi)

    def _first_slice(self, block: int) -> int:
        """The first slice of a block of the kernel's units: a slice, or a tile of columns."""
        if self.plan.family == "rows":
            return block
        width, tile, tiles, fold = self.plan.geometry[columns.WIDTH : columns.FOLD + 1]
        return block // tiles * (width // fold) + block % tiles * tile // fold

    # Parameters and moments in memory order --------------------------------------------------------------------------

    def _prepared_steps(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None:
        """How to bring a parameter array into the kernel's order; None where it is in it already."""
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
        order = tuple(sorted(range(len(places)), key=lambda i: cells.index(places[i])))
        aligned = tuple(split[places.index(cell)] if cell in places else 1 for cell in cells)
        spread = tuple(size for _, _, size in plan.parameter_cells)
        if order == tuple(range(len(order))) and math.prod(spread) == math.prod(split):
            return None
        return tuple(split), order, aligned, spread

    def parameter(self, array: Array | None) -> Array | None:
        """Return parameters as one contiguous run in the kernel's order and type, copied only if they are not."""
        if array is None:
            return None
        if self._parameter_steps is not None:
            split, order, aligned, spread = self._parameter_steps
            array = np.broadcast_to(array.reshape(split).transpose(order).reshape(aligned), spread)
        return np.ascontiguousarray(array, self.compute).reshape(-1)

    def _shaped(self, moments: Array) -> Array:
        """From the order in which the kernel counts slices to the shape of the layer's moments."""
        ordered = moments.reshape(self._moments_sizes).transpose(self._moments_order)
        return np.ascontiguousarray(ordered).reshape(self.plan.resolved.moments_shape)

    def _ordered(self, moments: Array) -> Array:
        """From the shape of the layer's moments to the order in which the kernel counts slices."""
        sizes = [self._moments_sizes[i] for i in self._moments_order]
        back = sorted(range(len(sizes)), key=lambda i: self._moments_order[i])
        return np.ascontiguousarray(moments.reshape(sizes).transpose(back), np.float64).reshape(-1)


class _Copies:
    """The flat views that kernels take, of the arrays themselves or, where a plan says so, of copies."""

    def __init__(self, plan: Plan, x: Array, y: Array | None) -> None:
        self.plan, self.x, self.y, self.target = plan, x, y, y

    def __enter__(self) -> tuple[Array, Array]:
        plan, source = self.plan, self.x
        if plan.copies != "nothing":
            source = self._dense(self.x.dtype)
            np.copyto(source, self.x)
        if plan.copies == "both" and self.y is not None:
            self.target = self._dense(self.y.dtype)
        return _flat(source, plan.dtype), NOTHING if self.target is None else _flat(self.target, plan.result)

    def _dense(self, dtype: np.dtype[Any]) -> Array:
        """A new array without gaps, in the memory order that the plan was made for."""
        order, shape = self.plan.order, self.plan.resolved.shape
        inverse = sorted(range(len(order)), key=lambda place: order[place])
        return np.empty([shape[axis] for axis in order], dtype).transpose(inverse)

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and self.y is not None and self.target is not None and self.target is not self.y:
            np.copyto(self.y, self.target)


def _flat(array: Array, dtype: str) -> Array:
    """A one-dimensional view that begins at the array's first element; kernels reach the others by their strides."""
    if not array.flags.c_contiguous:
        array = array[(slice(0, 1),) * array.ndim]
    flat = array.reshape(-1)
    return flat.view(VIEWED[dtype]) if _jit.JIT and dtype in VIEWED else flat
