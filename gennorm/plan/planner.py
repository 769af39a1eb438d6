"""Makes plans for one shape, dtype and layout: axes become runs, and runs become the geometry of a kernel.

The planner uses integers only. A grouped axis is split in two, axes are sorted by memory order, and neighbouring axes
of the same role that are contiguous are merged into runs. The role of the innermost run selects one of two families of
kernels. If it is aggregated, a slice is a set of contiguous *rows*; if it is kept, neighbouring slices are *columns* of
lines in memory, and a tile of them is processed at once.

Parameters have strides in the same runs, 0 where they do not vary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from gennorm.plan.printing import text_of
from gennorm.spec.config import LayerConfig, Resolved, resolve_config

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Pass", "Plan", "Run", "dense_strides", "make_plan"]

LANES = 16  # elements in a vector of the kernels; a plan never cuts a tile inside one
TOGETHER = 8  # lines that the kernels process at a time; pieces are multiples of it

# Slices, or tiles of columns, of up to this many bytes are read from memory once: the second reading, for the output,
# finds them in the cache.
CACHED = 4 << 20
# A slice, or a tile of columns, of at least CUT elements is cut into units, which threads can share: up to UNITS of
# them, of at least UNIT elements. The cut depends neither on the number of threads nor on the number of slices: the
# results are the same to the bit for any number of threads, and for any size of the batch.
CUT = 1 << 15
UNITS = 64
UNIT = 1 << 13
LARGEST = 1 << 21  # the largest number of elements in a unit: larger slices have more than UNITS units
LINES = 128  # the smallest number of lines in a unit of columns: merging its moments takes as long as about ten lines
BLOCK = 1 << 13  # elements of a piece of lines, which stays in the first-level cache for all lanes
WIDEST = 1024  # the largest number of lanes in a tile: its sums fill half of the first-level cache
# Rows with this many parameters, which fill the cache, are processed piece by piece: a piece of every slice before the
# next piece. Parameters are then read once, not once for each slice, and their gradients are written once. With 2 MB of
# second-level cache the backward pass of 32 slices of 65,536 takes 1.66 ms in pieces and 1.38 without, of 16 of 102,400
# 1.39 and 1.58, of 16 of 200,704 2.7 and 4.5; with a smaller cache pieces pay earlier.
LONG = 1 << 16
WINDOW = 1 << 11  # elements of such a piece: the sums for its parameters stay in the first-level cache
TILE, FOLD = 10, 12  # fields of the geometry of columns
FOLDED = 32  # a shorter aggregated innermost run is summed as columns and folded, if possible

COMPUTED = {
    **dict.fromkeys(("bool", "int8", "uint8", "int16", "uint16", "float16", "bfloat16", "float32"), "float32"),
    **dict.fromkeys(("int32", "uint32", "int64", "uint64", "float64"), "float64"),
}
ITEMSIZE = {
    **dict.fromkeys(("bool", "int8", "uint8"), 1),
    **dict.fromkeys(("int16", "uint16", "float16", "bfloat16"), 2),
    **dict.fromkeys(("int32", "uint32", "float32"), 4),
    **dict.fromkeys(("int64", "uint64", "float64"), 8),
}


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring axes in memory that have the same role and are contiguous.

    Attributes
    ----------
    size : int
        Number of positions.
    x, y, p : int
        Stride from one position to the next in the input, the output and the parameters, in elements.
    aggregated : bool
        Whether it is part of slices; otherwise it enumerates slices.
    axes : tuple of int
        Its axes, outermost first.
    """

    size: int
    x: int
    y: int
    p: int
    aggregated: bool
    axes: tuple[int, ...]


class _Cell(NamedTuple):
    """An axis, or one of the two parts of a grouped axis."""

    size: int
    x: int
    y: int
    aggregated: bool
    varies: bool  # whether the parameters vary along it
    axis: int
    part: int  # 0: the axis, or the number of the group; 1: the position within the group


class Pass(NamedTuple):
    """A pass over the array: what for, and how many bytes it reads and writes."""

    why: str
    read: int
    written: int


class _Cut(NamedTuple):
    """The cut of the lines or rows of a slice into pieces and units."""

    piece: int
    pieces: int
    portion: int
    units: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of the engine for arrays of one shape, dtype and layout; it can be printed.

    Attributes
    ----------
    config : LayerConfig
    resolved : Resolved
        The levels as axes, with the shapes of parameters and moments.
    dtype, result, compute : str
        Names of the dtypes of input, output and arithmetic. Moments are always float64.
    runs : tuple of Run
        The runs, outermost first.
    family : {"rows", "columns"}
        The family of kernels.
    cut : _Cut
    geometry : tuple of int
        The first array of integers of a kernel; see ``kernels/rows.py`` and ``kernels/columns.py`` for its fields.
    parameter_kind : int
        How the parameters vary in the innermost loop: the setting of the kernels.
    parameter_cells : tuple of tuple of int
        (axis, part, size) of every cell of the parameters in the order of the kernel; size 1 means that they do not
        vary along it.
    moments_cells : tuple of tuple of int
        (axis, size) of the kept cells, in the order in which the kernel counts slices.
    tasks : int
        Number of independent tasks that threads can share.
    copies : {"nothing", "input", "both"}
        Arrays that are copied, because their innermost run is not contiguous.
    order : tuple of int
        The axes in the memory order of a copy, outermost first.
    fallback : str or None
        Why calls use the definition in NumPy instead of kernels.

    Examples
    --------
    >>> import gennorm as gn
    >>> plan = gn.group_norm(32, 256).plan((8, 256, 14, 14))
    >>> plan.family, plan.slices, plan.reads
    ('rows', 256, 1)
    >>> [(run.size, run.aggregated) for run in plan.runs]
    [(8, False), (32, False), (8, True), (196, True)]
    """

    config: LayerConfig
    resolved: Resolved
    dtype: str
    result: str
    compute: str
    runs: tuple[Run, ...]
    family: Literal["rows", "columns"]
    cut: _Cut
    geometry: tuple[int, ...]
    parameter_kind: int
    parameter_cells: tuple[tuple[int, int, int], ...]
    moments_cells: tuple[tuple[int, int], ...]
    slices: int
    tasks: int
    copies: Literal["nothing", "input", "both"]
    order: tuple[int, ...]
    fallback: str | None = None

    @property
    def size(self) -> int:
        """Number of elements of the array."""
        return math.prod(self.resolved.shape)

    @property
    def reads(self) -> int:
        """Return how often the input is read from memory: once if slices stay in the cache until they are written.

        Once also for the moments of a data set. For moving moments it is the number of a call in training.
        """
        elements = self.resolved.count
        if self.family == "columns":
            lanes, fold = self.runs[-1].size, 1
            if len(self.runs) > 1 and self.geometry[FOLD] > 1:
                lanes, fold = self.runs[-2].size * self.runs[-1].size, self.runs[-1].size
            elements = elements // fold * min(lanes, self.geometry[TILE])
        once = elements * ITEMSIZE[self.dtype] <= CACHED and self.pieces is None
        return 0 if self.size == 0 else 1 if once or self.config.statistics == "dataset" else 2

    @property
    def pieces(self) -> _Cut | None:
        """Return the cut into pieces, if a piece of every slice is processed before the next piece; a piece is a unit.

        This is for rows with one parameter for each element, `LONG` or more, which are the same for all slices.
        """
        if self.family != "rows" or self.parameter_kind != 2:
            return None
        long = LONG <= math.prod(size for _, _, size in self.parameter_cells) == self.resolved.count
        if not long or any(run.p for run in self.runs if not run.aggregated):
            return None
        length = self.runs[-1].size
        piece = min(WINDOW, length)
        number = -(-length // piece)
        return _Cut(piece, number, 1, number * (self.resolved.count // length))

    @property
    def passes(self) -> tuple[Pass, ...]:
        """Return the passes over the array, in order: copies, readings, and the writing of the output.

        Examples
        --------
        >>> import gennorm as gn
        >>> for one in gn.instance_norm(1).plan((1, 1, 2048, 2048)).passes:
        ...     print(one.why, one.read, one.written)
        read for the moments 16777216 0
        read again for the output 16777216 0
        write the output 0 16777216
        """
        input_, output = self.size * ITEMSIZE[self.dtype], self.size * ITEMSIZE[self.result]
        whys = ("read the input",) if self.reads < 2 else ("read for the moments", "read again for the output")
        found = [] if self.copies == "nothing" else [Pass("copy the input", input_, input_)]
        found += [Pass(why, input_, 0) for why in whys[: self.reads]]
        found.append(Pass("write the output", 0, output))
        if self.copies == "both":
            found.append(Pass("copy the output", output, output))
        return tuple(found)

    @property
    def traffic(self) -> tuple[int, int]:
        """Return the bytes that are read and written, including copies."""
        return sum(one.read for one in self.passes), sum(one.written for one in self.passes)

    def draw(self, *, dark: bool = False) -> Figure:
        """Draw the runs, the passes over memory, and the tasks that threads share.

        Parameters
        ----------
        dark : bool, default False
            Whether the page is dark.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        DrawingError
            Matplotlib is not installed: ``pip install 'gennorm[plot]'``.

        Examples
        --------
        >>> import gennorm as gn
        >>> figure = gn.group_norm(32, 256).plan((8, 256, 14, 14)).draw()
        >>> [axes.get_title(loc="left") for axes in figure.axes]
        ['4 runs, outermost first', '1 reading, 1 writing', '256 tasks; the first 64']
        """
        from gennorm.drawing import matplotlib_figures

        figure: Figure = matplotlib_figures().figure_of_plan(self, dark=dark)
        return figure

    def __str__(self) -> str:
        return text_of(self)


def dense_strides(shape: tuple[int, ...], itemsize: int, like: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """Return strides in bytes of an array without gaps, its axes in the memory order of the strides ``like``.

    The order is that of ``numpy.empty_like``: C order where ``like`` is not given, and the magnitude of the strides,
    earlier axes outside later ones of the same stride, where it is.
    """
    strides = [0] * len(shape)
    step = itemsize
    for axis in reversed(range(len(shape)) if like is None else _memory_order(like)):
        strides[axis] = step
        step *= max(shape[axis], 1)
    return tuple(strides)


def _memory_order(strides: tuple[int, ...]) -> tuple[int, ...]:
    """Return the axes from the largest stride to the smallest; axes of equal stride keep their order."""
    for axis in range(1, len(strides)):
        if abs(strides[axis]) > abs(strides[axis - 1]):
            return tuple(sorted(range(len(strides)), key=lambda axis: -abs(strides[axis])))
    return tuple(range(len(strides)))


def make_plan(
    config: LayerConfig,
    shape: tuple[int, ...],
    dtype: str,
    strides: tuple[int, ...] | None = None,
    out_strides: tuple[int, ...] | None = None,
    *,
    per_example: bool = False,
) -> Plan:
    """Plan a layer for arrays of one shape, dtype and layout.

    Parameters
    ----------
    config : LayerConfig
    shape : tuple of int
    dtype : str
        Name of the input's dtype.
    strides, out_strides : tuple of int, optional
        Strides of input and output in bytes. C order, and the input's memory order without gaps, where not given.
    per_example : bool, default False
        Whether the parameters have a leading axis for the examples of the batch.

    Returns
    -------
    Plan

    Raises
    ------
    GennormError
        The shape does not fit the config; see `resolve_config`.
    """
    resolved = resolve_config(config, shape)
    if per_example:
        sizes = (shape[0], *resolved.parameter_shape)
        resolved = replace(resolved, scaling=(0, *resolved.scaling), parameter_shape=sizes)
    compute = COMPUTED[dtype]
    result = dtype if dtype in ("float16", "bfloat16") else compute
    itemsize, out_itemsize = ITEMSIZE[dtype], ITEMSIZE[result]
    if strides is None:
        strides = dense_strides(shape, itemsize)
    if out_strides is None:
        out_strides = dense_strides(shape, out_itemsize, strides)

    copies: Literal["nothing", "input", "both"] = "nothing"
    order = _memory_order(out_strides)
    cells = _cells(resolved, strides, itemsize, out_strides, out_itemsize)
    if cells is None:
        copies = "input"
        cells = _cells(resolved, dense_strides(shape, itemsize, out_strides), itemsize, out_strides, out_itemsize)
    if cells is None:
        copies = "both"
        order = tuple(range(len(shape)))
        dense = dense_strides(shape, itemsize), dense_strides(shape, out_itemsize)
        cells = _cells(resolved, dense[0], itemsize, dense[1], out_itemsize)
        assert cells is not None
    return _plan(config, resolved, dtype, result, compute, cells, copies, order)


def _cells(
    resolved: Resolved,
    strides: tuple[int, ...],
    itemsize: int,
    out_strides: tuple[int, ...],
    out_itemsize: int,
) -> list[_Cell] | None:
    """Return cells larger than 1, outermost first; None if the innermost is not contiguous in input and output."""
    cells: list[_Cell] = []
    in_order, last = True, math.inf
    for axis, (size, x, y) in enumerate(zip(resolved.shape, strides, out_strides, strict=True)):
        aggregated = axis in resolved.aggregation
        varies = axis in resolved.scaling
        if size == 1:
            continue
        if size > 1 and (x % itemsize or y % out_itemsize):
            return None
        x, y = x // itemsize, y // out_itemsize  # noqa: PLW2901
        groups = resolved.groups[axis]
        within = size // groups
        in_order, last = in_order and last > (y * within if groups > 1 else y) > 0 < y, y
        if groups > 1:
            cells.append(_Cell(groups, x * within, y * within, False, varies, axis, 0))
            if within != 1:
                cells.append(_Cell(within, x, y, True, varies, axis, 1))
        else:
            cells.append(_Cell(size, x, y, aggregated, varies, axis, 0))
    if not in_order:
        cells.sort(key=lambda cell: (-abs(cell.y), -abs(cell.x)))
    if not cells:  # one element: a slice of one
        return [_Cell(1, 1, 1, True, False, 0, 0)]
    contiguous = cells[-1].x == cells[-1].y == 1
    return cells if contiguous or 0 in resolved.shape else None


def _contiguous(cells: list[_Cell], size: int) -> tuple[int, int]:
    """Return how many of the innermost cells form one run with ``size`` inner elements, and the size of this run.

    Cells along which the parameters vary are not merged with others, so that there is one parameter for each row,
    unless the row would be too short: then the parameters are spread over the longer row.
    """
    last = cells[-1]
    taken = 0
    for cell in reversed(cells):
        apart = cell.varies != last.varies and size >= FOLDED
        if cell.aggregated != last.aggregated or apart or (cell.x, cell.y) != (size, size):
            break
        size *= cell.size
        taken += 1
    return taken, size


def _plan(
    config: LayerConfig,
    resolved: Resolved,
    dtype: str,
    result: str,
    compute: str,
    cells: list[_Cell],
    copies: Literal["nothing", "input", "both"],
    order: tuple[int, ...],
) -> Plan:
    taken, width = _contiguous(cells, 1)
    fold, prod = 1, math.prod
    family: Literal["rows", "columns"] = "rows" if cells[-1].aggregated else "columns"
    outside = cells[:-taken]
    if family == "rows" and 0 < width < FOLDED and any(cell.aggregated for cell in outside):
        kept_cells, lanes = _contiguous(outside, width)
        if kept_cells and not outside[-1].aggregated and any(cell.aggregated for cell in outside[:-kept_cells]):
            family, fold, taken, width = "columns", width, taken + kept_cells, lanes
    inner, rest = cells[-taken:], cells[:-taken]
    lanes_vary = True in [cell.varies for cell in inner]
    runs = _merged(rest, width if lanes_vary else 1)
    kept = [run for run in runs if not run.aggregated]
    outer = [run for run in runs if run.aggregated]
    moments_cells = [(cell.axis, cell.size) for cell in cells if not cell.aggregated]
    slices = prod([size for _, size in moments_cells])

    if family == "rows":
        rows = prod([run.size for run in outer])
        cut = _cut_row(width, rows)
        geometry: tuple[int, ...] = (
            *(width, cut.piece, cut.pieces, rows, cut.portion, cut.units),
            *(slices, len(kept), len(outer)),
        )
        kind = 2 if lanes_vary else 1
        tasks = slices * cut.units
    else:
        lines = outer.pop() if outer else Run(1, 0, 0, 0, True, ())
        rows = prod([run.size for run in outer])
        tile = _tile(max(width, 1), fold)
        block = max(BLOCK // tile // TOGETHER, 1) * TOGETHER
        cut = _cut_tile(lines.size, rows, min(tile, max(width, 1)), block)
        tiles = -(-width // tile)
        lines_vary = lines.p != 0 or any(run.p for run in outer)
        kind = 1 if not lines_vary else 2 if lanes_vary else 3
        geometry = (
            *(lines.size, cut.piece, cut.pieces, rows, cut.portion, cut.units, slices, len(kept), len(outer)),
            *(width, tile, tiles, fold, lines.x, lines.y, lines.p, int(lanes_vary)),
        )
        tasks = prod([run.size for run in kept]) * tiles * cut.units
    for run in (*reversed(kept), *reversed(outer)):
        geometry += (run.size, run.x, run.y, run.p)

    innermost = tuple(dict.fromkeys(cell.axis for cell in inner))
    if fold > 1:
        folded = tuple(dict.fromkeys(cell.axis for cell in inner if cell.aggregated))
        kept_lanes = tuple(dict.fromkeys(cell.axis for cell in inner if not cell.aggregated))
        last: tuple[Run, ...] = (
            Run(width // fold, fold, fold, fold if lanes_vary else 0, False, kept_lanes),
            Run(fold, 1, 1, int(lanes_vary), True, folded),
        )
    else:
        last = (Run(width, 1, 1, int(lanes_vary), inner[0].aggregated, innermost),)
    return Plan(
        config=config,
        resolved=resolved,
        dtype=dtype,
        result=result,
        compute=compute,
        runs=(*runs, *last),
        family=family,
        cut=cut,
        geometry=geometry,
        parameter_kind=kind,
        parameter_cells=tuple(
            [(cell.axis, cell.part, cell.size if cell.varies else 1) for cell in rest]
            + [(cell.axis, cell.part, cell.size if lanes_vary else 1) for cell in inner]
        ),
        moments_cells=tuple(moments_cells),
        slices=slices,
        tasks=tasks if 0 not in resolved.shape else 0,
        copies=copies,
        order=order,
    )


def _merged(cells: list[_Cell], inner: int) -> tuple[Run, ...]:
    """Merge the cells outside the innermost run into runs, outermost first; the inner run has ``inner`` parameters."""
    runs: list[Run] = []
    step = inner
    for cell in reversed(cells):
        p = step if cell.varies else 0
        step *= cell.size if cell.varies else 1
        last = runs[-1] if runs else None
        if (
            last is not None
            and last.aggregated == cell.aggregated
            and (cell.x, cell.y, p) == (last.x * last.size, last.y * last.size, last.p * last.size)
        ):
            axes = last.axes if cell.axis in last.axes else (cell.axis, *last.axes)
            runs[-1] = Run(last.size * cell.size, last.x, last.y, last.p, last.aggregated, axes)
        else:
            runs.append(Run(cell.size, cell.x, cell.y, p, cell.aggregated, (cell.axis,)))
    return tuple(reversed(runs))


def _tile(width: int, fold: int) -> int:
    """Return the lanes in a tile: whole vectors and whole slices, all lanes of a line if they are not too many."""
    step = math.lcm(LANES, fold)
    return min(max(WIDEST // step, 1), -(-width // step)) * step


def _cut_row(length: int, rows: int) -> _Cut:
    """Return the cut of a slice of ``rows`` rows into pieces and units of whole vectors."""
    elements = length * rows
    if elements < CUT:
        return _Cut(length, 1, rows, 1)
    unit = min(max(-(-elements // UNITS), UNIT), LARGEST)
    if length < 2 * unit:
        portion = -(-unit // length)
        return _Cut(length, 1, portion, -(-rows // portion))
    pieces = -(-length // unit)
    step = min(unit, LANES)
    piece = -(-length // (pieces * step)) * step
    pieces = -(-length // piece)
    return _Cut(piece, pieces, 1, rows * pieces)


def _cut_tile(length: int, rows: int, width: int, block: int) -> _Cut:
    """Return the cut of a tile of ``rows`` times ``length`` lines of ``width`` elements into pieces and units."""
    lines = length * rows
    unit = max(min(max(-(-lines // UNITS), UNIT // max(width, 1), LINES), LARGEST // max(width, 1)), 1)
    if lines * width < CUT or lines < 2 * unit:
        piece = min(block, length)
        pieces = -(-length // max(piece, 1))
        return _Cut(piece, pieces, rows * pieces, 1)
    piece = min(block, length, unit)
    pieces = -(-length // piece)
    portion = max(unit // piece, 1)
    return _Cut(piece, pieces, portion, -(-rows * pieces // portion))
