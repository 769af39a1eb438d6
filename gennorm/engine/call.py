"""The prepared call that runs kernels, for arrays of one layout. `interface` documents its methods.

A `PreparedCall` belongs to one plan: to one shape, dtype, layout and form of the parameters. It converts arrays,
parameters and moments to the layout of the kernels (`Layout`), chooses the kernels, and runs them. Parameters have
the order and type of the kernel, as `Layout.parameter` returns them. Rows of moments have one column for each slice,
in the order in which the kernel counts slices.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gennorm import engine
from gennorm.plan import ITEMSIZE, Plan, dense_strides, make_plan
from gennorm.spec.config import LayerConfig

from .compiler import CompilationError, Signature, jit
from .kernels import column_gradients, columns, merging, row_gradients, rows, steps
from .kernels.vector import LANES
from .layout import NOTHING_REAL, Layout, deliver, dense, flat, stored_empty
from .memory import LINE, WORTH, address, empty_like
from .sharing import STEP, alone, executor, run
from .threads import get_num_threads, shared

__all__ = ["PreparedCall", "executor", "jit", "prepare"]

Array = npt.NDArray[Any]
Kernel = Callable[..., None]

PLACEMENTS = {"inside": 0, "floor": 1, "outside": 2}
NEAR = 16 << 20  # bytes of slices that are measured and then applied: they stay in the last-level cache
FORWARD = 12, 3  # numbers for each lane of a tile in the scratch of a forward kernel: float64, arithmetic
BACKWARD = 8, 5  # the same for a backward kernel
NOTHING = np.empty(0)
Step = Callable[..., None]

# The forward kernels by what they do: settings of the kernel's module.
KINDS: dict[str, dict[str, int]] = {
    "normalize": {"MEASURE": 1, "KEEP": 0, "APPLY": 1},
    "normalize, keep": {"MEASURE": 1, "KEEP": 1, "APPLY": 1},
    "measure": {"MEASURE": 1, "KEEP": 1, "WEIGHTED": 0},
    "measure weighted": {"MEASURE": 1, "KEEP": 1, "WEIGHTED": 1},
    "apply": {"APPLY": 1},
    "apply measured": {"APPLY": 1},
    "apply measured, keep": {"APPLY": 1, "KEEP": 1},
    "apply by pieces": {"APPLY": 1},
    "apply by pieces, keep": {"APPLY": 1, "KEEP": 1},
    "invert": {"APPLY": 1, "CENTER": 1, "INVERT": 1},
}
MODULES = {
    ("rows", "forward"): rows,
    ("columns", "forward"): columns,
    ("rows", "backward"): row_gradients,
    ("columns", "backward"): column_gradients,
}
# Blocks of units with separate arrays for the gradients of parameters: at most one for each of 64 threads, each with
# enough elements for a thread, and so few that the arrays are small compared with the input.
SHARES = 64
SHARE = 1 << 15
ENOUGH = 4  # with this many slices, or tiles, for each thread, threads do not share slices
RECENT = 32  # terms of a parameter's gradient that are added up before their sum is added in float64
# Bytes of output, or of gradients, from which non-temporal stores are used. For a layer norm of 1024 elements an output
# of 16 MB takes 890 us with them and 720 without, one of 24 MB 1.12 ms and 1.25, one of 64 MB 3.8 and 4.1. If a
# gradient follows ("kept"), there are two more arrays: output and gradient of 16.8 MB each take 4.1 ms together, and
# 5.0 with normal stores (on two cores 2.4 and 2.3), of 25 MB 6.7 and 8.2, of 12 MB 3.1 and 2.6.
STREAMED = {"forward": 1 << 25, "kept": 15 << 20, "backward": 15 << 20}
# From this many parameters on, recent terms are the gradients if there are no more than RECENT of each: (2, 64, 28, 28)
# over three levels takes 130 us instead of 216, (16, 64, 56, 56) 5.3 ms instead of 6.2. 768 parameters take 0.5 us
# more.
FEW = 1 << 11
SPARE = 1 << 26  # the largest number of bytes of the separate arrays


@functools.cache
def kernel_of(family: str, step: str, dtypes: tuple[str, str, str], flags: frozenset[tuple[str, int]]) -> Kernel:
    """Compile a kernel for some dtypes and settings; settings that are not given are 0."""
    if (reason := engine.compilation_failure()) is not None:
        raise CompilationError(reason)
    storage, result, compute = dtypes
    module = MODULES[family, step]
    settings = settings_of(dtypes, flags)
    real, double = compute, "float64"
    space = (double, real) if family == "columns" else ()
    if step == "forward":
        y = real if settings["WEIGHTED"] else result
        arrays = (storage, y, real, real, double, double, "int64", double)
        return jit.build(module.forward, settings, dtypes, Signature(arrays, space, 3, shared=True))
    both = (storage, result, result, real, real, double, double, double, "int64", double)
    return jit.build(module.backward, settings, dtypes, Signature(both, space or (real,), 6, shared=True))


def settings_of(dtypes: tuple[str, str, str], flags: frozenset[tuple[str, int]]) -> dict[str, int]:
    """Return all settings of a kernel for some dtypes; those that are not given are 0."""
    storage, _, compute = dtypes
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
    return settings


class _Sweep(NamedTuple):
    """How a backward kernel processes the units of a plan."""

    kernels: tuple[Kernel, ...]  # one that sums and applies; or, for slices larger than the cache, one for each
    geometry: Array
    units: int  # in a slice
    parameters: int  # of each kind
    blocks: int  # of units
    block: int  # units in one
    own: int  # separate arrays of gradients: one for each block; one for all if no blocks share a parameter; or none
    often: int  # parts of slices after which recent terms are added to the array
    recent: int  # numbers in the scratch for recent terms, which are the gradients if there is no array
    key: tuple[bool, bool, int, bool, bool]  # arguments of `PreparedCall._sweep`


MERGERS = {"merge_moments": (3, 3), "merge_sums": (1, 2), "variances": (2, 2), "fold": (3, 2), "extend": (3, 2)}


@functools.cache
def merger(name: str, center: int) -> Kernel:
    """Compile a function of `kernels.merging`."""
    if (reason := engine.compilation_failure()) is not None:
        raise CompilationError(reason)
    arrays, integers = MERGERS[name]
    signature = Signature(("float64",) * arrays, (), integers)
    return jit.build(getattr(merging, name), {"CENTER": center}, ("float64",) * 3, signature)


def extend_moments(x: Array, rows: Array) -> bool:
    """Merge the values of examples into the moments of slices, in place.

    Parameters
    ----------
    x : ndarray of float64
        Of shape (examples, slices), contiguous.
    rows : ndarray of float64
        Count, mean, second moment, and what rounding the last two lost: of shape (5, slices), contiguous.

    Returns
    -------
    bool
        Whether the result is exact; if not, a second moment may have underflowed, or is not finite.
    """
    examples, slices = x.shape
    doubts = np.empty(slices)
    merger("extend", 1)(x.reshape(-1), rows.reshape(-1), doubts, examples, slices)
    return not np.logical_or.reduce(doubts, axis=None)


class PreparedCall(Layout):
    """Runs the kernels for arrays of one shape, dtype and layout.

    Parameters
    ----------
    plan : Plan
    strides : tuple of int
        Strides of the output, in bytes.
    """

    def __init__(self, plan: Plan, strides: tuple[int, ...]) -> None:
        super().__init__(plan)
        self.strides = strides
        self.single = False
        self.held_shape: tuple[int, ...] = ()
        self.views: tuple[Array | None, Array | None] | None = None
        self._given: tuple[object, bool, Array] | None = None
        config, resolved = plan.config, plan.resolved
        self.center = config.method == "Standardize"
        self.dtypes = (plan.dtype, plan.result, plan.compute)
        count, degrees = resolved.count, resolved.count - config.unbiased
        self.numbers = np.array((max(degrees, 1), config.epsilon, PLACEMENTS[config.epsilon_placement]), np.float64)
        self.geometry = np.array(plan.geometry, np.int64)
        if plan.family == "columns":
            self.tile = plan.geometry[columns.TILE]
        self._small = self._in_order and self.size * ITEMSIZE[plan.result] < WORTH
        self._result = None if plan.result == plan.dtype else np.dtype(plan.result)  # None: the input's dtype
        self._parameters = math.prod([size for _, _, size in plan.parameter_cells])
        # What `_per_counts` returns where every element counts.
        self._per = 1 / count if self.center and count > 0 else 0.0, 1 / degrees if degrees > 0 else 0.0
        self._pieces = plan.pieces
        self._blocks = plan.tasks // plan.cut.units  # slices, or tiles of slices
        self._steps: dict[Any, Step] = {}
        self._sweeps: dict[Any, _Sweep] = {}

    # Computation ----------------------------------------------------------------------------------------------------

    def output(self, x: Array) -> Array:
        if self._small and x.flags.c_contiguous:
            return np.empty(x.shape, self._result or x.dtype)
        return empty_like(x, self._result or x.dtype)

    def normalize(
        self, x: Array, y: Array, gains: Array | None, shifts: Array | None, *, keep: bool = False
    ) -> Array | None:
        plan = self.plan
        if plan.tasks == 0:
            return np.zeros((2, plan.slices)) if keep else None
        if plan.copies != "nothing":
            return self._by_copies(x, y, lambda x, y: self._normalize(x, y, gains, shifts, keep=keep))
        return self._normalize(x, y, gains, shifts, keep=keep)

    def apply(self, x: Array, y: Array, moments: Array, gains: Array | None, shifts: Array | None) -> None:
        self._by_given("apply", x, y, moments, gains, shifts)

    def invert(self, y: Array, x: Array, moments: Array, gains: Array | None, shifts: Array | None) -> None:
        reciprocals = None if gains is None else (1.0 / gains.astype(np.float64)).astype(gains.dtype)
        self._by_given("invert", y, x, moments, reciprocals, shifts)

    def measure(self, x: Array, weights: Array | None = None) -> Array:
        plan, units, slices = self.plan, self.plan.cut.units, self.plan.slices
        if plan.tasks == 0:
            return np.zeros((2 if weights is None else 3, slices))
        x = self.source(x)
        laid = stored_empty(plan.result) if weights is None else flat(self.laid_out(weights), plan.compute)
        kind = "measure" if weights is None else "measure weighted"
        if units == 1:
            moments = np.empty((2 if weights is None else 3, slices))
            spreads = moments[1] if weights is None else moments[1:].reshape(-1)
            self._step(kind, None, None)(x, laid, None, None, moments[0], spreads)
            return moments
        means, spreads = np.empty((units, slices)), np.empty(((1 + (weights is not None)) * units, slices))
        self._step(kind, None, None)(x, laid, None, None, means.reshape(-1), spreads.reshape(-1))
        if weights is None:
            self._merge(means, spreads, 0, slices)
            return np.stack((means[0], spreads[0]))
        moments = np.empty((3, slices))
        counts = spreads[units:]
        with np.errstate(all="ignore"):
            moments[2] = counts.sum(0)
            moments[0], moments[1] = self._merged(counts, means, spreads[:units])
        return moments

    def statistics(self, moments: Array) -> Array:
        unbiased, slices = self.plan.config.unbiased, self.plan.slices
        found = np.empty((2, slices))
        if len(moments) == 3:
            merger("variances", 1)(moments.reshape(-1), found.reshape(-1), slices, int(unbiased))
        else:
            # A slice with too few counted elements has the variance 0.
            found[0] = moments[0]
            with np.errstate(all="ignore"):
                np.divide(moments[1], max(self.plan.resolved.count - unbiased, 1.0), out=found[1])
        return found

    def fold(self, moments: Array, held: Array) -> None:
        if moments.size == 0:
            return
        rows = self.shaped(moments) if self._moments_order else moments
        examples = moments.size // held.size  # moments may have one axis more: the batch, or its groups
        merger("fold", 1)(rows.reshape(-1), held.reshape(-1), self._folding, examples, held.size // 2)

    def last(self, moments: object, held: bool = True) -> Array | None:
        last = self._given
        return last[2] if last is not None and last[0] is moments and last[1] is held else None

    def remember(self, moments: object, held: bool, rows: Array) -> Array:
        self._given = moments, held, rows
        return rows

    def _factors(self, moments: Array, *, through: bool) -> Array:
        """Return the four factors of every slice that a backward kernel needs; ``steps`` lists them."""
        factors = np.empty((4, self.plan.slices))
        factors[:2] = moments[:2]
        if not through:
            factors[2:] = 0.0
            return factors.reshape(-1)
        per_count, per_degree = self._per if len(moments) == 2 else self._per_counts(moments[2])
        factors[1] *= per_degree
        factors[2] = per_count
        factors[3] = per_degree
        return factors.reshape(-1)

    def _per_counts(self, count: Any) -> tuple[Any, Any]:
        """Return one over the count and over the degrees of freedom; 0 if these are 0 or the method has no mean."""
        count = np.asarray(count, np.float64)
        per_degree, per_count = (
            np.divide(1.0, number, out=np.zeros(count.shape), where=number > 0)
            for number in (count - self.plan.config.unbiased, count)
        )
        return per_count if self.center else 0.0, per_degree

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
        plan = self.plan
        scaled = gains is not None and not tangent
        biased = biased and not tangent
        if plan.tasks == 0:
            if merge is not None:
                merge(np.zeros((2, *plan.resolved.moments_shape)))
            shape = plan.resolved.parameter_shape
            return np.zeros(shape) if scaled else None, np.zeros(shape) if biased else None
        source, target = self.source(x), self.target(dx)
        if dy.strides != target.strides:
            laid = dense(plan, dy.dtype)
            np.copyto(laid, dy)
            dy = laid
        weighted = 0 if weights is None else 2 if tangent else 1
        sweep = self._sweep(gains is not None, biased, weighted, tangent, merge is not None)
        unused = NOTHING_REAL[plan.compute]
        summed = self._backward(
            sweep,
            flat(source, plan.dtype),
            flat(dy, plan.result),
            flat(target, plan.result),
            unused if weights is None else flat(self.laid_out(weights), plan.compute),
            unused if gains is None else gains,
            self._factors(moments, through=through),
            merge,
        )
        deliver(target, dx)
        return self.gradient(summed[0]) if scaled else None, self.gradient(summed[1]) if biased else None

    # Kernels ---------------------------------------------------------------------------------------------------------

    def _by_copies(self, x: Array, y: Array, work: Callable[[Array, Array], Any]) -> Any:
        """Run `work` on contiguous copies, if the kernels cannot read or write the arrays themselves."""
        source, target = self.source(x), self.target(y)
        result = work(source, target)
        deliver(target, y)
        return result

    def _by_given(
        self, kind: str, x: Array, y: Array, moments: Array, gains: Array | None, shifts: Array | None
    ) -> None:
        if self.plan.tasks == 0:
            return
        step = self._step(kind, gains, shifts)
        means, variances = moments
        if self.plan.copies != "nothing":
            self._by_copies(x, y, lambda x, y: step(x, y, gains, shifts, means, variances))
        else:
            step(x, y, gains, shifts, means, variances)

    def _normalize(self, x: Array, y: Array, gains: Array | None, shifts: Array | None, *, keep: bool) -> Array | None:
        by_piece = self._pieces is not None and (gains is not None or shifts is not None)
        if by_piece or self._shares_slices():
            return self._normalize_in_two(x, y, gains, shifts, keep=keep)
        if not keep:
            self._step("normalize", gains, shifts)(x, y, gains, shifts, NOTHING, NOTHING)
            return None
        moments = np.empty((2, self.plan.slices))
        self._step("normalize, keep", gains, shifts)(x, y, gains, shifts, moments[0], moments[1])
        return moments

    def _step(self, kind: str, gains: Array | None, shifts: Array | None) -> Step:
        """Return the function that runs one forward kernel, for parameters that are present or absent like these."""
        key = kind, gains is None, shifts is None
        step = self._steps.get(key)
        if step is None:
            step = self._steps[key] = self._new_step(*key)
        return step

    def _new_step(self, kind: str, unscaled: bool, unbiased: bool) -> Step:
        flags, by_given = dict(KINDS[kind]), kind in ("apply", "invert")
        numbers, geometry = self.numbers, self.geometry
        if by_given:  # variances, and no second moments that are still to be divided
            numbers = np.array((1, *numbers[1:]), np.float64)
        tasks = self._blocks if kind.startswith("normalize") else self.plan.tasks
        if by_given or kind.startswith("apply by pieces"):
            geometry, tasks, flags["ACROSS"] = self._in_order_of_memory()
        parameters = self.plan.parameter_kind
        flags |= {"SCALING": 0 if unscaled else parameters, "BIASES": 0 if unbiased else parameters}
        kernel = self._kernel("forward", **flags)
        plan, size, space, small = self.plan, self.size, self._space, not shared(self.size)
        unused, rows_ = NOTHING_REAL[plan.compute], plan.family == "rows"
        dtype, result = plan.dtype, plan.compute if kind == "measure weighted" else plan.result

        def step(
            x: Array,
            y: Array,
            gains: Array | None,
            shifts: Array | None,
            means: Array,
            spreads: Array,
            first: int = 0,
            last: int = tasks,
        ) -> None:
            source, target = flat(x, dtype), flat(y, result)
            scaling, biases = unused if gains is None else gains, unused if shifts is None else shifts
            if small or (last - first == tasks and alone(size)):
                if rows_:
                    kernel(source, target, scaling, biases, means, spreads, geometry, numbers, first, last, 0)
                else:
                    scratch = space(*FORWARD, 1)
                    kernel(source, target, scaling, biases, means, spreads, geometry, numbers, *scratch, first, last, 0)
                return

            def work(parts: int, lo: int, hi: int, request: int) -> None:
                scratch = space(*FORWARD, parts)
                lo, hi = first + lo, first + hi
                kernel(source, target, scaling, biases, means, spreads, geometry, numbers, *scratch, lo, hi, request)

            run(work, last - first, size * (last - first) // tasks)

        return step

    def _kernel(self, step: str, /, **flags: int) -> Kernel:
        plan = self.plan
        large = self.size * ITEMSIZE[plan.result] >= STREAMED["kept" if flags.get("KEEP") else step]
        flags["STREAM"] = int(large and "APPLY" in flags)
        if step == "forward":  # a backward kernel takes the method from its numbers
            flags.setdefault("CENTER", self.center)
            # Where nothing is measured, KEEP only chooses the threshold above; the kernel does not need it.
            flags["KEEP"] = flags.get("KEEP", 0) * flags.get("MEASURE", 0)
        return kernel_of(plan.family, step, self.dtypes, frozenset(flags.items()))

    def _shares_slices(self) -> bool:
        """Return whether a call measures units of slices in parallel, and then merges them.

        Where there are enough slices for the threads, each of them measures whole slices. The answer is the same to the
        bit: a slice is always measured unit by unit, and its units are merged by the same operations.
        """
        if self.plan.cut.units == 1 or alone(self.size):
            return False
        if self.size > STEP * self._blocks:  # Python can handle interrupts between units
            return True
        threads = get_num_threads()
        return self._blocks < ENOUGH * threads and self._blocks % threads > 0

    def _in_order_of_memory(self) -> tuple[Array, int, int]:
        """Return geometry, tasks and the setting ACROSS for given moments, in the order of memory."""
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
        """Allocate the scratch of a call: for each part, numbers for every lane of a tile and then ``more`` numbers."""
        if self.plan.family == "rows":
            return ()
        return np.empty(parts * doubles * self.tile), np.empty(parts * (reals * self.tile + more), self.compute)

    def _merge(self, means: Array, spreads: Array, first: int, last: int) -> None:
        """Merge the moments of units, for the slices ``first`` to ``last``, into the first row of each array."""
        if len(means) > 1:
            merge = merger("merge_moments", int(self.center))
            merge(means.reshape(-1), spreads.reshape(-1), self._counts, self.plan.slices, first, last)

    def _merged(self, counts: Array, means: Array, spreads: Array) -> tuple[Array, Array]:
        """Merge the moments of units with weights. The first unit may have little weight, so there are two passes."""
        if len(means) == 1:
            return means[0], spreads[0]
        if not self.center:
            return means[0], _summed(spreads)
        pivot = np.where(np.isfinite(means[0]), means[0], 0.0)  # an infinite mean stays infinite
        away = means - pivot
        away *= counts
        mean = pivot + _summed(away) / np.maximum(counts.sum(0), steps.LEAST_COUNT)
        away = np.subtract(means, mean, out=means)
        away *= away
        away *= counts
        away += spreads
        return mean, _summed(away)

    def _sweep(self, scaled: bool, biased: bool, weighted: int, tangent: bool, merged: bool) -> _Sweep:
        """Return how the backward kernel is run for some settings; it is cached."""
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
            geometry, tasks, _ = self._in_order_of_memory()
            room, units, often, own = self._pieces.piece, self._pieces.units, RECENT, 1
            block = -(-units // SHARES) * plan.slices
        else:
            geometry, room, units, tasks = self.geometry, parameters, plan.cut.units, plan.tasks
            often = parts_between(plan) if varying else 1
            own = separate(plan, parameters)
            # Blocks of whole slices, or tiles, if there are at least as many of these as blocks.
            block = -(-self._blocks // own) * units if self._blocks >= own else -(-tasks // own)
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

    def _backward_kernels(self, key: tuple[bool, bool, int, bool, bool], *, apart: bool) -> tuple[Kernel, ...]:
        """Return the kernel that sums slices and writes their gradient; with `apart`, one kernel for each step."""
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
        """Run the backward kernels, and merge sums between two of them; return the gradients of parameters."""
        plan, units, slices, rows_ = self.plan, sweep.units, self.plan.slices, self.plan.family == "rows"
        blocks, block, parameters, often = sweep.blocks, sweep.block, sweep.parameters, sweep.often
        gradients = (np.empty if sweep.recent else np.zeros)((sweep.own, 2, parameters))
        geometry, flat, numbers, kernels = sweep.geometry, gradients.reshape(-1), self.numbers, sweep.kernels
        recent = np.zeros(sweep.recent, self.compute)
        if sweep.own == 0:
            begin = -address(recent) % LINE // self.compute.itemsize
            gradients = recent[begin : begin + 2 * parameters].reshape(1, 2, parameters)
        if len(kernels) == 1 and alone(self.size):
            space = (recent,) if rows_ else self._space(*BACKWARD, 1, column_gradients.TERMS)
            kernels[0](
                x, dy, dx, weights, scaling, factors, NOTHING, flat, geometry, numbers, *space,
                block, parameters, often, 0, blocks, 0,
            )  # fmt: skip
            return gradients[0] if len(gradients) == 1 else gradients.sum(0)

        def work(parts: int, lo: int, hi: int, request: int) -> None:
            if not rows_:
                space = self._space(*BACKWARD, parts, column_gradients.TERMS)
            else:
                space = (recent if parts == 1 else np.zeros(parts * sweep.recent, self.compute),)
            kernel(
                x, dy, dx, weights, scaling, factors, sums, flat, geometry, numbers, *space,
                block, parameters, often, lo, hi, request,
            )  # fmt: skip

        sums = NOTHING
        if len(kernels) == 1 and (block % units or self._shares_slices()):
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
            if geometry is self.geometry:  # the second kernel adds up no gradients of parameters: a unit is a block
                block, blocks = 1, plan.tasks
        run(work, blocks, self.size, apart=sweep.own > 0)
        return gradients[0] if len(gradients) == 1 else gradients.sum(0)

    @functools.cached_property
    def _folding(self) -> Array:
        """Count of a slice and momentum, as `fold` needs them."""
        return np.array([self.plan.resolved.count, self.plan.config.momentum], np.float64)

    @functools.cached_property
    def _counts(self) -> Array:
        """Return the number of elements of each unit of a slice."""
        cut, geometry = self.plan.cut, self.plan.geometry
        length, repeats = geometry[rows.LENGTH], geometry[rows.ROWS]
        sizes = np.full(cut.pieces, cut.piece, np.float64)
        sizes[-1] = length - cut.piece * (cut.pieces - 1)
        sizes *= geometry[columns.FOLD] if self.plan.family == "columns" else 1
        return np.add.reduceat(np.tile(sizes, repeats), np.arange(0, repeats * cut.pieces, cut.portion))

    def _normalize_in_two(
        self, x: Array, y: Array, gains: Array | None, shifts: Array | None, *, keep: bool
    ) -> Array | None:
        """Measure units in parallel, merge them and apply the moments of the slices.

        A few slices at a time, so that they stay in the last-level cache; or all of them, if a piece of every slice is
        written before the next piece, so that parameters are read once.
        """
        units, slices, blocks = self.plan.cut.units, self.plan.slices, self._blocks
        means, spreads = np.empty((units, slices)), np.empty((units, slices))
        flat_means, flat_spreads = means.reshape(-1), spreads.reshape(-1)
        unwritten, measure = stored_empty(self.plan.result), self._step("measure", None, None)
        by_piece = self._pieces is not None and (gains is not None or shifts is not None)
        kind = "apply by pieces" if by_piece else "apply measured"
        apply = self._step(f"{kind}, keep" if keep else kind, gains, shifts)
        together = blocks if by_piece else max(1, NEAR * blocks // (self.size * x.itemsize))
        for block in range(0, blocks, together):
            following = min(block + together, blocks)
            lo, hi = block * units, following * units
            measure(x, unwritten, None, None, flat_means, flat_spreads, lo, hi)
            self._merge(means, spreads, self._first_slice(block), self._first_slice(following))
            if not by_piece:
                apply(x, y, gains, shifts, means[0], spreads[0], lo, hi)
        if by_piece:
            apply(x, y, gains, shifts, means[0], spreads[0])
        return np.stack((means[0], spreads[0])) if keep else None

    def _first_slice(self, block: int) -> int:
        """Return the first slice of a block: of a slice, or of a tile of columns."""
        if self.plan.family == "rows":
            return block
        width, tile, tiles, fold = self.plan.geometry[columns.WIDTH : columns.FOLD + 1]
        return block // tiles * (width // fold) + block % tiles * tile // fold


def separate(plan: Plan, parameters: int) -> int:
    """Return how many separate arrays of gradients there are, for a number of parameters of each kind."""
    least = max(32 * parameters, SHARE)
    return max(1, min(SHARES, plan.tasks, SPARE // max(16 * parameters, 1), plan.size // least))


def parts_between(plan: Plan) -> int:
    """Return how many parts of slices, one after another, contain at most `RECENT` terms of any parameter.

    Parts are counted in the order of the kernel: pieces of a row, then the runs from the innermost outwards.
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
    """Return the sums over the first axis; the second half is added to the first, in place."""
    count = len(terms)
    while count > 1:
        half = -(-count // 2)
        terms[: count - half] += terms[half:count]
        count = half
    return terms[0]


def prepare(
    config: LayerConfig,
    shape: tuple[int, ...],
    dtype: str,
    strides: tuple[int, ...],
    out_strides: tuple[int, ...],
    *,
    per_example: bool = False,
) -> PreparedCall:
    """Plan a layer for arrays of one shape, dtype and layout, and prepare the calls on them."""
    if jit.JIT:
        plan = make_plan(config, shape, dtype, strides, out_strides, per_example=per_example)
    else:
        # Plain Python cannot access memory outside a view, so arrays in other than C order are copied.
        plan = make_plan(config, shape, dtype, per_example=per_example)
        plain = (plan.order, dense_strides(shape, ITEMSIZE[dtype]), dense_strides(shape, ITEMSIZE[plan.result]))
        if plain != (tuple(range(len(shape))), strides, out_strides):
            plan = replace(plan, copies="both", order=tuple(range(len(shape))))
    return PreparedCall(plan, out_strides)
