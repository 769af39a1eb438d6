"""A plan with its kernels: what a layer asks for, and which kernel does which part of it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gennorm.engine.memory import LINE, address
from gennorm.engine.threads import get_num_threads
from gennorm.plan import ITEMSIZE, Plan, dense_strides, make_plan
from gennorm.spec.config import LayerConfig

from .compiler import jit
from .kernels import column_gradients, columns, merging, row_gradients, rows, steps
from .kernels.vector import LANES
from .layout import NOTHING_REAL, Layout, deliver, dense, flat, stored
from .sharing import STEP, alone, assembled, run
from .shortcut import FORWARD, Shortcut

__all__ = ["Bound", "assembled", "bind", "jit"]

Array = npt.NDArray[Any]
Kernel = Callable[..., None]

PLACEMENTS = {"inside": 0, "floor": 1, "outside": 2}
NEAR = 16 << 20  # bytes of slices that are measured before they are applied, still in the last-level cache by then
BACKWARD = 8, 5  # numbers for each lane of a tile in the scratch of a backward kernel: float64, arithmetic
NOTHING = np.empty(0)
NOTHINGS = np.empty((2, 0))
MODULES = {
    ("rows", "forward"): rows,
    ("columns", "forward"): columns,
    ("rows", "backward"): row_gradients,
    ("columns", "backward"): column_gradients,
}
# Blocks of units that add up the parameters' gradients in arrays of their own: at most one for each of 64 threads, with
# at least as many elements as are worth a thread, and so many that the arrays are small in comparison with the input.
SHARES = 64
SHARE = 1 << 15
ENOUGH = 4  # slices, or tiles, for each thread from which no slice is shared by threads
RECENT = 32  # terms of a parameter's gradient that are added up before they join the rest in float64
# Bytes of output, or of gradients, from which rows are written past the caches. With layer norms of 1024 elements the
# output of 16 MB takes 890 us with it and 720 without, that of 24 MB 1.12 ms and 1.25, that of 64 MB 3.8 and 4.1. Where
# a gradient will be asked for there are two arrays more: output and gradient of 16.8 MB each take 4.1 ms together, and
# 5.0 through the caches (on two cores 2.4 and 2.3), of 25 MB 6.7 and 8.2, of 12 MB 3.1 and 2.6.
STREAMED = {"forward": 1 << 25, "kept": 15 << 20, "backward": 15 << 20}
# Parameters from which such terms are the gradients where there are no others: 216 us are 130 for (2, 64, 28, 28) over
# three levels, 6.2 ms are 5.3 for (16, 64, 56, 56). 768 would pay 0.5 us for it.
FEW = 1 << 11
SPARE = 1 << 26  # bytes their sums may take


@functools.cache
def kernel_of(family: str, step: str, dtypes: tuple[str, str, str], flags: frozenset[tuple[str, int]]) -> Kernel:
    """Compile a kernel for some dtypes and settings; what is not set is 0."""
    storage, result, compute = dtypes
    module = MODULES[family, step]
    names = (
        "CENTER",
        "MEASURE",
        "KEEP",
        "WEIGHTED",
        "APPLY",
        "INVERT",
        "SUMS",
        "TANGENT",
        "STREAM",
        "ACROSS",
        "SCALING",
        "BIASES",
    )
    settings = {**dict.fromkeys(names, 0), **dict(flags)}
    settings["EXACT"] = int(compute == "float32" or not settings["CENTER"])
    if storage in ("float16", "bfloat16") and not settings["WEIGHTED"]:
        settings["EXACT"] = 2
    real, double = compute, "float64"
    space = (double, real) if family == "columns" else ()
    if step == "forward":
        y = real if settings["WEIGHTED"] else result
        arrays = (storage, y, real, real, double, double, "int64", double, *space)
        return jit.build(module.forward, settings, dtypes, arrays, 3)
    arrays = (storage, result, result, real, real, double, double, double, "int64", double, *(space or (real,)))
    return jit.build(module.backward, settings, dtypes, arrays, 6)


class _Sweep(NamedTuple):
    """How a backward kernel goes over the units of a plan."""

    kernels: tuple[Kernel, ...]  # one, or where slices are larger than the cache one that sums and one that applies
    geometry: Array
    units: int  # in a slice
    parameters: int  # of each kind
    blocks: int  # of units
    block: int  # units in one
    own: int  # arrays of gradients: one for each block, one for all where no two blocks share a parameter, or none
    often: int  # parts of slices after which recent terms are added to the array
    recent: int  # room for them, the gradients where there is no array, and to begin at the start of a cache line
    key: tuple[bool, bool, int, bool, bool]  # what `Bound._sweep` made it for


@functools.cache
def merger(name: str, center: int) -> Kernel:
    """Compile a kernel that merges the results of the units of slices."""
    arrays, integers = (("float64",) * 3, 3) if name == "merge_moments" else (("float64",), 2)
    return jit.build(getattr(merging, name), {"CENTER": center}, ("float64",) * 3, arrays, integers)


class Bound(Layout):
    """A plan with its kernels, for arrays of its shape, dtype and layout.

    Parameters
    ----------
    plan : Plan
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        config, resolved = plan.config, plan.resolved
        epsilon = config.epsilon, PLACEMENTS[config.epsilon_placement]
        self.numbers = np.array([max(resolved.count - config.unbiased, 1), *epsilon], np.float64)
        self.given = np.array([1, *epsilon], np.float64)  # for variances instead of second moments
        counts = resolved.count * (config.method == "Standardize"), resolved.count - config.unbiased
        per_count, per_degree = (1 / count if count > 0 else 0.0 for count in counts)
        self.per = np.array([[1.0], [per_degree], [per_count], [per_degree]])
        self.geometry = np.array(plan.geometry, np.int64)
        self.center = config.method == "Standardize"
        self.dtypes = (plan.dtype, plan.result, plan.compute)
        if plan.family == "columns":
            self.tile = plan.geometry[columns.TILE]
        self._parameters = math.prod(size for _, _, size in plan.parameter_cells)
        self._pieces = plan.pieces
        self.blocks = plan.tasks // plan.cut.units  # slices, or tiles of slices
        self._across = self._in_order_of_memory()
        self._kernels: dict[Any, Kernel] = {}
        self._sweeps: dict[Any, _Sweep] = {}

    # Calls -----------------------------------------------------------------------------------------------------------

    def normalize(
        self, x: Array, y: Array, scaling: Array | None, biases: Array | None, *, keep: bool = False
    ) -> Array:
        """Write the layer's output for ``x`` into ``y``, from the moments of ``x``; return them if they are to be kept.

        They are the mean and the second moment of every slice, one row of an array each, in the kernel's order.
        """
        plan = self.plan
        moments = np.empty((2, plan.slices)) if keep else NOTHINGS
        if plan.tasks == 0:
            moments[:] = 0.0
            return moments
        source, target = self.source(x), self.target(y)
        gains, shifts = self.parameter(scaling), self.parameter(biases)
        by_piece = self._pieces is not None and (scaling is not None or biases is not None)
        if not (by_piece or self.shares_slices()):
            mean, spread = moments
            self._run(
                flat(source, plan.dtype), flat(target, plan.result), gains, shifts, mean, spread, self.numbers,
                0, self.blocks, MEASURE=1, KEEP=int(keep), APPLY=1,
            )  # fmt: skip
        else:
            moments = self._normalize_in_two(
                flat(source, plan.dtype), flat(target, plan.result), gains, shifts, keep=keep
            )
        deliver(target, y)
        return moments

    def measure(self, x: Array, weights: Array | None = None) -> Array:
        """Return mean, second moment and count of every slice of ``x``: rows of an array, in the kernel's order.

        The weights, or a mask, broadcast to ``x``; without them every element counts once.
        """
        plan = self.plan
        moments = np.zeros((3, plan.slices))
        if weights is None:
            moments[2] = plan.resolved.count
        if plan.tasks:
            laid = NOTHING if weights is None else flat(self.laid_out(weights), plan.compute)
            self._measure(flat(self.source(x), plan.dtype), moments, laid)
        return moments

    def factors(self, rows: Array, *, given: bool = False) -> Array:
        """Return the factors of every slice that a gradient needs, in arrays of the shape of the layer's moments.

        The rows are those that `normalize` or `measure` returned; or, with ``given``, mean and variance, which a
        gradient does not go through. ``kernels.steps`` lists the four factors.
        """
        factors = np.ones((4, self.plan.slices))
        factors[:2] = rows[:2]
        if given:
            factors[2:] = 0.0
        elif len(rows) == 2:
            factors *= self.per
        else:
            for row, lost in ((2, 0), (3, self.plan.config.unbiased)):
                factors[row] = np.divide(1.0, rows[2] - lost, out=np.zeros_like(rows[2]), where=rows[2] > lost)
            factors[2] *= self.center
            factors[1] *= factors[3]
        return self.shaped(factors)

    def apply(
        self, x: Array, y: Array, moments: Array, scaling: Array | None, biases: Array | None, **flags: int
    ) -> None:
        """Write the output for ``x`` into ``y``, from mean and variance of every slice, in the kernel's order."""
        plan = self.plan
        if plan.tasks == 0:
            return
        source, target = self.source(x), self.target(y)
        mean, variance = moments
        geometry, tasks, across = self._across
        self._run(
            flat(source, plan.dtype), flat(target, plan.result), self.parameter(scaling), self.parameter(biases),
            mean, variance, self.given, 0, tasks, geometry, APPLY=1, ACROSS=across, **flags,
        )  # fmt: skip
        deliver(target, y)

    def shortcut(
        self, scaling: Array | None, biases: Array | None, moments: Array | None = None, *, measures: bool
    ) -> Shortcut | None:
        """What calls with a layer's own parameters have in common, where each is one kernel call; else None.

        They measure their input, or apply moments: the same to each, or those that each is given. A small call is
        mostly Python: everything that does not change from one to the next is settled here. The parameters are looked
        at through the views taken now.
        """
        plan = self.plan
        gains, shifts = self.parameter(scaling), self.parameter(biases)
        settled = all(
            given is None or np.may_share_memory(given, taken)
            for given, taken in ((scaling, gains), (biases, shifts))
            if taken is not None
        )
        again = measures and self._pieces is not None
        if again or plan.copies != "nothing" or plan.tasks == 0 or not settled:
            return None
        return Shortcut(self, gains, shifts, moments)

    def invert(self, y: Array, x: Array, moments: Array, scaling: Array | None, biases: Array | None) -> None:
        """Write into ``x`` the input whose output is ``y``, given mean and variance and a scaling without zeros."""
        reciprocals = None if scaling is None else 1.0 / scaling.astype(np.float64)
        self.apply(y, x, moments, reciprocals, biases, CENTER=1, INVERT=1)

    def backward(
        self,
        x: Array,
        dy: Array,
        dx: Array,
        factors: Array,
        scaling: Array | None,
        biases: Array | None,
        weights: Array | None = None,
        *,
        tangent: bool = False,
        merge: Callable[[Array], Array] | None = None,
    ) -> tuple[Array | None, Array | None]:
        """Write the input's gradient into ``dx``; return those of scaling and biases, as they were added up.

        The factors of the slices are those of `factors`. With ``tangent``, ``dy`` is a direction of the input and
        ``dx`` the output's derivative along it. ``merge`` makes of the two sums of every slice, shaped as the moments
        behind an axis of two, those of a larger slice that they are part of.
        """
        plan = self.plan
        if plan.tasks == 0:
            if merge is not None:
                merge(np.zeros((2, *plan.resolved.moments_shape)))
            shape = plan.resolved.parameter_shape
            found = [None if array is None or tangent else np.zeros(shape) for array in (scaling, biases)]
            return found[0], found[1]
        source, target, slopes = self.source(x), self.target(dx), dy
        if dy.strides != target.strides:
            slopes = dense(plan, dy.dtype)
            np.copyto(slopes, dy)
        weighted = 0 if weights is None else 2 if tangent else 1
        sweep = self._sweep(
            scaling is not None, biases is not None and not tangent, weighted, tangent, merge is not None
        )
        unused = NOTHING_REAL[plan.compute]
        gains = self.parameter(scaling)
        summed = self._backward(
            sweep,
            flat(source, plan.dtype),
            flat(slopes, plan.result),
            flat(target, plan.result),
            unused if weights is None else flat(self.laid_out(weights), plan.compute),
            unused if gains is None else gains,
            self.ordered(factors).reshape(-1),
            merge,
        )
        deliver(target, dx)
        if tangent:
            return None, None
        return (
            None if scaling is None else self.gradient(summed[0]),
            None if biases is None else self.gradient(summed[1]),
        )

    # Kernels ---------------------------------------------------------------------------------------------------------

    def _kernel(self, step: str, /, **flags: int) -> Kernel:
        key = (step, *flags.items())
        kernel = self._kernels.get(key)
        if kernel is None:
            plan = self.plan
            large = self.size * ITEMSIZE[plan.result] >= STREAMED["kept" if flags.get("KEEP") else step]
            flags["STREAM"] = int(large and "APPLY" in flags)
            if step == "forward":  # going back, the method is in the numbers
                flags.setdefault("CENTER", self.center)
                # Where nothing is measured, KEEP only chooses the threshold above; the kernel does not need it.
                flags["KEEP"] = flags.get("KEEP", 0) * flags.get("MEASURE", 0)
            kernel = self._kernels[key] = kernel_of(plan.family, step, self.dtypes, frozenset(flags.items()))
        return kernel

    def _run(
        self,
        x: Array,
        y: Array,
        scaling: Array | None,
        biases: Array | None,
        means: Array,
        spreads: Array,
        numbers: Array,
        first: int = 0,
        last: int | None = None,
        geometry: Array | None = None,
        **flags: int,
    ) -> None:
        """Run one forward kernel over the tasks ``first`` to ``last``."""
        plan = self.plan
        kind = plan.parameter_kind
        kernel = self._kernel(
            "forward", SCALING=0 if scaling is None else kind, BIASES=0 if biases is None else kind, **flags
        )
        unused = NOTHING_REAL[plan.compute]
        gains = unused if scaling is None else scaling
        shifts = unused if biases is None else biases
        fields = self.geometry if geometry is None else geometry
        last = plan.tasks if last is None else last
        if first == 0 and alone(self.size):
            kernel(x, y, gains, shifts, means, spreads, fields, numbers, *self._space(*FORWARD, 1), 0, last, 0)
            return

        def work(parts: int, lo: int, hi: int, team: int) -> None:
            space = self._space(*FORWARD, parts)
            kernel(x, y, gains, shifts, means, spreads, fields, numbers, *space, first + lo, first + hi, team)

        tasks = last - first
        whole = self.blocks if flags.get("MEASURE") and flags.get("APPLY") else plan.tasks
        run(work, tasks, self.size * min(tasks, whole) // whole)

    def shares_slices(self) -> bool:
        """Return whether a call measures units of slices in parallel, and then merges them.

        Where there are enough slices for the threads each of them measures whole slices. The answer is the same to the
        bit: a slice is always measured unit by unit, and its units are merged by the same operations.
        """
        if self.plan.cut.units == 1 or alone(self.size):
            return False
        if self.size > STEP * self.blocks:  # between units Python may look for an interrupt
            return True
        threads = get_num_threads()
        return self.blocks < ENOUGH * threads and self.blocks % threads > 0

    def _in_order_of_memory(self) -> tuple[Array, int, int]:
        """Geometry, tasks and the setting ACROSS for moments that are given: rows of all slices, one after another."""
        cut, fields = self._pieces, self.plan.geometry
        geometry = self.geometry.copy()
        if cut is not None:
            geometry[rows.PIECE : rows.UNITS + 1] = cut.piece, cut.pieces, fields[rows.ROWS], cut.portion, cut.units
            return geometry, cut.units * self.plan.slices, 1
        if self.plan.family == "columns" or fields[rows.ROWS] == 1:
            return self.geometry, self.plan.tasks, 0
        portion = fields[rows.PIECES] if fields[rows.ROWS] * self.plan.slices >= SHARES else 1
        geometry[rows.PORTION] = portion
        return geometry, fields[rows.ROWS] * fields[rows.PIECES] // portion * self.plan.slices, 1

    def _space(self, doubles: int, reals: int, parts: int, more: int = 0) -> tuple[Array, ...]:
        """Allocate the scratch of a call: for each part numbers for every lane of a tile, and ``more`` behind them."""
        if self.plan.family == "rows":
            return ()
        return np.empty(parts * doubles * self.tile), np.empty(parts * (reals * self.tile + more), self.compute)

    def _measure(self, x: Array, moments: Array, weights: Array) -> None:
        """Fill in the moments of every slice; the count where there are weights."""
        units, slices = self.plan.cut.units, self.plan.slices
        weighted = weights is not NOTHING
        means, spreads = np.zeros((units, slices)), np.zeros(((1 + weighted) * units, slices))
        self._measure_units(x, means, spreads, 0, self.plan.tasks, weights)
        if weighted:
            counts = spreads[units:]
            moments[2] = counts.sum(0)
            moments[0], moments[1] = self._merged(counts, means, spreads[:units])
        else:
            self._merge(means, spreads, 0, slices)
            moments[0], moments[1] = means[0], spreads[0]

    def _merge(self, means: Array, spreads: Array, first: int, last: int) -> None:
        """Merge the moments of units, for the slices ``first`` to ``last``, into the first row of each array."""
        if len(means) > 1:
            merge = merger("merge_moments", int(self.center))
            merge(means.reshape(-1), spreads.reshape(-1), self._counts, self.plan.slices, first, last)

    def _measure_units(
        self, x: Array, means: Array, spreads: Array, lo: int, hi: int, weights: Array = NOTHING
    ) -> None:
        weighted = weights is not NOTHING
        y = weights if weighted else np.empty(0, stored(self.plan.result))
        self._run(
            x, y, None, None, means.reshape(-1), spreads.reshape(-1), self.numbers, lo, hi,
            MEASURE=1, KEEP=1, WEIGHTED=int(weighted),
        )  # fmt: skip

    def _merged(self, counts: Array, means: Array, spreads: Array) -> tuple[Array, Array]:
        """Merge the moments of units with weights. The first unit may have hardly any, so there are two passes."""
        if len(means) == 1:
            return means[0], spreads[0]
        if not self.center:
            return means[0], _summed(spreads)
        with np.errstate(all="ignore"):
            pivot = np.where(np.isfinite(means[0]), means[0], 0.0)  # an infinite mean stays infinite
            away = means - pivot
            away *= counts
            mean = pivot + _summed(away) / np.maximum(counts.sum(0), steps.NOTHING)
            away = np.subtract(means, mean, out=means)
            away *= away
            away *= counts
            away += spreads
            return mean, _summed(away)

    def _sweep(self, scaled: bool, biased: bool, weighted: int, tangent: bool, merged: bool) -> _Sweep:
        """How the backward kernel is run for some settings, made once and remembered."""
        key = (scaled, biased, weighted, tangent, merged)
        sweep = self._sweeps.get(key)
        if sweep is not None:
            return sweep
        plan, kind = self.plan, self.plan.parameter_kind
        parameters = self._parameters if (scaled or biased) and not tangent else 0
        varying = plan.family == "rows" and parameters > 0 and kind == 2
        few = varying and self.size <= RECENT * parameters and parameters >= FEW
        across = varying and self._pieces is not None
        if varying and self._pieces is not None:
            geometry, tasks, _ = self._across
            room, units, often, own = self._pieces.piece, self._pieces.units, RECENT, 1
            block = -(-units // SHARES) * plan.slices
        else:
            geometry, room, units, tasks = self.geometry, parameters, plan.cut.units, plan.tasks
            often = _parts_between(plan) if varying else 1
            least = max(32 * parameters, SHARE)
            own = max(1, min(SHARES, tasks, SPARE // max(16 * parameters, 1), self.size // least))
            # Blocks of whole slices, or tiles, where there are as many of these as blocks.
            block = -(-self.blocks // own) * units if self.blocks >= own else -(-tasks // own)
            own = -(-tasks // block)
        if few:
            room, own = parameters, 0
        sweep = self._sweeps[key] = _Sweep(
            self._backward_kernels(key, apart=merged or (across and units > 1)),
            geometry,
            units,
            parameters,
            -(-tasks // block),
            block,
            own,
            often,
            (2 * room + LANES) * varying,
            key,
        )
        return sweep

    def _backward_kernels(
        self, key: tuple[bool, bool, int, bool, bool], *, apart: bool
    ) -> tuple[Kernel, ...]:  # fmt: skip
        """The kernel that takes the sums of slices and writes their gradient; or, apart, one for each."""
        scaled, biased, weighted, tangent, _ = key
        plan, kind = self.plan, self.plan.parameter_kind
        flags = {"SCALING": kind * scaled, "BIASES": kind * biased, "WEIGHTED": weighted, "TANGENT": int(tangent)}
        if plan.family == "rows" and kind == 2 and (scaled or biased) and not tangent:
            flags["ACROSS"] = int(self._pieces is not None)
        phases = [{"SUMS": 1}, {"APPLY": 1}] if apart else [{"SUMS": 1, "APPLY": 1}]
        return tuple(self._kernel("backward", **flags, **phase) for phase in phases)

    def _backward(
        self,
        sweep: _Sweep,
        x: Array,
        dy: Array,
        dx: Array,
        weights: Array,
        scaling: Array,
        factors: Array,
        merge: Callable[[Array], Array] | None,
    ) -> Array:
        """Run the backward kernels, with the sums of slices between two of them; gradients by parameter."""
        plan, units, slices = self.plan, sweep.units, self.plan.slices
        blocks, block, parameters, often = sweep.blocks, sweep.block, sweep.parameters, sweep.often
        gradients = (np.empty if sweep.recent else np.zeros)((sweep.own, 2, parameters))
        geometry, flat, numbers = sweep.geometry, gradients.reshape(-1), self.numbers

        recent = np.zeros(sweep.recent, self.compute)
        if sweep.own == 0:
            begin = -address(recent) % LINE // self.compute.itemsize
            gradients = recent[begin : begin + 2 * parameters].reshape(1, 2, parameters)

        def work(parts: int, lo: int, hi: int, team: int) -> None:
            space = self._space(*BACKWARD, parts, column_gradients.TERMS)
            if not space:
                space = (recent if parts == 1 else np.zeros(parts * sweep.recent, self.compute),)
            kernel(
                x, dy, dx, weights, scaling, factors, sums, flat, geometry, numbers, *space,
                block, parameters, often, lo, hi, team,
            )  # fmt: skip

        kernels, sums = sweep.kernels, NOTHING
        if len(kernels) == 1 and not alone(self.size) and (block % units or self.shares_slices()):
            kernels = self._backward_kernels(sweep.key, apart=True)
        kernel = kernels[0]
        if len(kernels) > 1:
            sums = np.zeros(units * 2 * slices)
            run(work, blocks, self.size, apart=sweep.own > 0)
            if units > 1:
                merger("merge_sums", 1)(sums, units, 2 * slices)
            sums = sums[: 2 * slices]
            if merge is not None:
                sums = self.ordered(merge(self.shaped(sums.reshape(2, slices)))).reshape(-1)
            kernel = kernels[1]
            if geometry is self.geometry:  # no gradient of a parameter is added up: every unit is a block
                block, blocks = 1, plan.tasks
        run(work, blocks, self.size, apart=sweep.own > 0)
        return gradients[0] if len(gradients) == 1 else gradients.sum(0)

    @functools.cached_property
    def _counts(self) -> Array:
        """Elements that each unit of a slice contributes to it."""
        cut, geometry = self.plan.cut, self.plan.geometry
        length, repeats = geometry[rows.LENGTH], geometry[rows.ROWS]
        sizes = np.full(cut.pieces, cut.piece, np.float64)
        sizes[-1] = length - cut.piece * (cut.pieces - 1)
        sizes *= geometry[columns.FOLD] if self.plan.family == "columns" else 1
        return np.add.reduceat(np.tile(sizes, repeats), np.arange(0, repeats * cut.pieces, cut.portion))

    def _normalize_in_two(
        self, x: Array, y: Array, scaling: Array | None, biases: Array | None, *, keep: bool
    ) -> Array:
        """Measure units in parallel, merge them and apply the moments of the slices.

        A few slices at a time for the last-level cache; or all of them where a piece of every slice is written before
        the next piece, for the parameters.
        """
        units, slices = self.plan.cut.units, self.plan.slices
        means, spreads = np.zeros((units, slices)), np.zeros((units, slices))
        blocks = self.blocks
        by_piece = self._pieces is not None and (scaling is not None or biases is not None)
        together = blocks if by_piece else max(1, NEAR * blocks // (self.size * x.itemsize))
        for block in range(0, blocks, together):
            following = min(block + together, blocks)
            lo, hi = block * units, following * units
            self._measure_units(x, means, spreads, lo, hi)
            self._merge(means, spreads, self._first_slice(block), self._first_slice(following))
            if not by_piece:
                self._run(x, y, scaling, biases, means[0], spreads[0], self.numbers, lo, hi, APPLY=1, KEEP=int(keep))
        if by_piece:
            geometry, tasks, across = self._across
            self._run(
                x, y, scaling, biases, means[0], spreads[0], self.numbers, 0, tasks, geometry,
                APPLY=1, KEEP=int(keep), ACROSS=across,
            )  # fmt: skip
        return np.stack((means[0], spreads[0])) if keep else NOTHINGS

    def _first_slice(self, block: int) -> int:
        """The first slice of a block of the kernel's units: a slice, or a tile of columns."""
        if self.plan.family == "rows":
            return block
        width, tile, tiles, fold = self.plan.geometry[columns.WIDTH : columns.FOLD + 1]
        return block // tiles * (width // fold) + block % tiles * tile // fold


def _parts_between(plan: Plan) -> int:
    """How many parts of slices, one after another, no parameter has more than `RECENT` terms in.

    Parts are counted as the kernel takes them: pieces of a row, then the runs from the innermost outwards.
    """
    span, terms = plan.cut.pieces, 1
    nest = [run for run in reversed(plan.runs[:-1]) if run.aggregated]
    nest += [run for run in reversed(plan.runs[:-1]) if not run.aggregated]
    for loop in nest:
        if loop.p == 0:
            if terms * loop.size > RECENT:
                return span * (RECENT // terms)
            terms *= loop.size
        span *= loop.size
    return span


def _summed(terms: Array) -> Array:
    """Sums down the first axis, halves added to halves, in place."""
    count = len(terms)
    while count > 1:
        half = -(-count // 2)
        terms[: count - half] += terms[half:count]
        count = half
    return terms[0]


def bind(
    config: LayerConfig,
    shape: tuple[int, ...],
    dtype: str,
    strides: tuple[int, ...],
    out_strides: tuple[int, ...],
    *,
    per_example: bool = False,
) -> Bound:
    """Plan a layer for arrays of one shape, dtype and layout, and give the plan its kernels."""
    if jit.JIT:
        return Bound(make_plan(config, shape, dtype, strides, out_strides, per_example=per_example))
    # Plain Python cannot reach beyond a view by its strides: everything but C order goes through copies.
    plan = make_plan(config, shape, dtype, per_example=per_example)
    plain = (plan.order, dense_strides(shape, ITEMSIZE[dtype]), dense_strides(shape, ITEMSIZE[plan.result]))
    direct = plain == (tuple(range(len(shape))), strides, out_strides)
    return Bound(plan if direct else replace(plan, copies="both", order=tuple(range(len(shape)))))
