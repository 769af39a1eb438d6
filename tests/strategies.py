"""Arrays and layers for tests: every memory layout, and Hypothesis strategies for shapes, levels and groups."""

import dataclasses
import math
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st

FLOATS = ("float16", "bfloat16", "float32", "float64")
INTEGERS = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
DTYPES = FLOATS + INTEGERS
# The dtype of the output for each dtype of the input.
RESULTS = {
    **{name: name for name in FLOATS},
    **dict.fromkeys(("bool", "int8", "uint8", "int16", "uint16"), "float32"),
    **dict.fromkeys(("int32", "uint32", "int64", "uint64"), "float64"),
}


def slow(*values):
    """Parameters of a test that is slow for them only, mostly because they compile more kernels."""
    return pytest.param(*values, marks=pytest.mark.slow)


def dtype_of(name):
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


# ---------------------------------------------------------------------------------------------------------- the layouts

GUARD = 64  # bytes before and after every array, in which tests find stray writes of kernels


@dataclasses.dataclass(frozen=True)
class Layout:
    """The memory layout of an array, which is a view of a larger parent array.

    ``order`` lists the axes from the outermost to the innermost. For each axis, ``steps`` is the step of the view in
    its parent (0 repeats the first element, -1 runs backwards) and ``margins`` the number of elements of the parent
    before and after the view. ``shift`` moves the parent by bytes. ``record`` is the number of bytes between
    neighbouring elements, as in one field of a structured array.
    """

    order: tuple[int, ...]
    steps: tuple[int, ...]
    margins: tuple[int, ...]
    shift: int = 0
    read_only: bool = False
    swapped: bool = False
    record: int = 0

    @property
    def writable(self):
        return 0 not in self.steps and not self.read_only and not self.swapped

    def empty(self, shape, dtype):
        """A writable array of this layout in a new buffer whose bytes are all 0xA5; repeated axes have size 1."""
        dtype = np.dtype(dtype)
        dtype = dtype.newbyteorder(">") if self.swapped and dtype.kind in "iuf" else dtype
        within = [min(shape[axis], 1) if self.steps[axis] == 0 else shape[axis] for axis in self.order]
        around = [
            size * max(abs(self.steps[axis]), 1) + 2 * self.margins[axis]
            for size, axis in zip(within, self.order, strict=True)
        ]
        if self.record:
            dtype = np.dtype({"names": ["x"], "formats": [dtype], "itemsize": dtype.itemsize + self.record})
        size = math.prod(around) * dtype.itemsize
        buffer = np.full(2 * GUARD + 64 + self.shift + size, 0xA5, np.uint8)
        first = GUARD + self.shift + -buffer.ctypes.data % 64  # the alignment does not depend on the allocator
        parent = buffer[first : first + size].view(dtype).reshape(around)
        parent = parent["x"] if self.record else parent
        parent = parent.transpose([self.order.index(axis) for axis in range(len(shape))])
        parts = []
        for axis, (margin, step) in enumerate(zip(self.margins, self.steps, strict=True)):
            parts.append(slice(margin, parent.shape[axis] - margin, max(abs(step), 1)))
        view = parent[(*parts, ...)]
        return view[(*(slice(None, None, -1 if step < 0 else 1) for step in self.steps), ...)]

    def hold(self, values):
        """An array of this layout with these values; repeated axes have the first of their values."""
        view = self.empty(values.shape, values.dtype)
        first = tuple(slice(0, 1) if step == 0 else slice(None) for step in self.steps)
        view[...] = values[first]
        view = np.broadcast_to(view, values.shape) if 0 in self.steps else view
        if self.read_only or 0 in self.steps:
            view.flags.writeable = False
        return view


def buffer_of(array):
    """The buffer that an array is a view of."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def layout(rank, *, order=None, innermost=1, outermost=1, every=1, margin=0, **others):
    order = tuple(range(rank)) if order is None else tuple(order)
    steps = [every] * rank
    if rank:
        steps[order[0]] *= outermost
        steps[order[-1]] *= innermost
    return Layout(order, tuple(steps), (margin,) * rank, **others)


def named_layouts(rank):
    """The named layouts of arrays of this rank."""
    channels_last = (0, *range(2, rank), 1) if rank > 1 else (0,)
    rotated = (*range(1, rank), 0)
    return {
        "C": layout(rank),
        "F": layout(rank, order=reversed(range(rank))),
        "channels last": layout(rank, order=channels_last),
        "rotated": layout(rank, order=rotated),
        "padded": layout(rank, margin=2),
        "padded channels last": layout(rank, order=channels_last, margin=1),
        "gapped innermost": layout(rank, innermost=2),
        "gapped outermost": layout(rank, outermost=3),
        "reversed innermost": layout(rank, innermost=-1),
        "reversed outermost": layout(rank, outermost=-1),
        "reversed and gapped": layout(rank, every=-2, order=rotated),
        "repeated innermost": layout(rank, innermost=0),
        "repeated outermost": layout(rank, outermost=0),
        "repeated everywhere": layout(rank, every=0),
        "read-only": layout(rank, read_only=True),
        "records": layout(rank, record=3),
        "unaligned": layout(rank, shift=1),
        "unaligned and padded": layout(rank, shift=3, margin=1),
        "big-endian": layout(rank, swapped=True),
        "big-endian F": layout(rank, order=reversed(range(rank)), swapped=True),
    }


LAYOUTS = tuple(named_layouts(2))
WRITABLE = tuple(name for name, of in named_layouts(2).items() if of.writable)


@st.composite
def layouts(draw, rank, *, writable=False):
    """Any layout of this rank; plain ones are frequent."""
    steps = (1, 1, 1, 1, 2, -1, -2) if writable else (1, 1, 1, 1, 2, -1, -2, 0)
    order = draw(st.permutations(range(rank))) if draw(st.booleans()) else range(rank)
    plain = draw(st.booleans())
    return Layout(
        order=tuple(order),
        steps=(1,) * rank if plain else tuple(draw(st.tuples(*[st.sampled_from(steps)] * rank))),
        margins=(0,) * rank if plain else tuple(draw(st.tuples(*[st.sampled_from((0, 0, 0, 1, 2))] * rank))),
        shift=draw(st.sampled_from((0, 0, 0, 1, 4))),
        record=draw(st.sampled_from((0, 0, 0, 0, 0, 3, 4))),
        read_only=False if writable else draw(st.booleans()),
        swapped=False if writable else draw(st.sampled_from((False, False, False, True))),
    )


# ----------------------------------------------------------------------------------------------------------- the layers


@st.composite
def shapes(draw, *, least=1, most=6, elements=2000):
    """Shapes of these ranks with sizes of 0 and 1, and sizes on both sides of a vector and of a folded run."""
    shape = []
    for _ in range(draw(st.integers(least, most))):
        fitting = [n for n in (1, 2, 3, 4, 5, 6, 8, 12, 16, 17, 32, 33, 48, 70) if n <= elements]
        shape.append(draw(st.sampled_from([*fitting, 0]) if draw(st.integers(0, 9)) == 0 else st.sampled_from(fitting)))
        elements //= max(shape[-1], 1)
    return tuple(draw(st.permutations(shape)))


class Case(NamedTuple):
    """A layer's settings, in words that the reference has too, and the shape they are for."""

    shape: tuple[int, ...]
    settings: dict


def divisors(size):
    return [n for n in range(1, max(size, 2) + 1) if size % n == 0]


@st.composite
def spelled(draw, levels, rank):
    """A level spec for these levels, in this order."""

    def written(level):
        return level - rank - 1 if level and draw(st.booleans()) else level

    ascending = list(range(levels[0], levels[0] + len(levels))) == levels if levels else False
    ways = ["list", "text"]
    if ascending and len(levels) > 1:
        ways += ["span", "span"]
    if len(levels) == 1:
        ways += ["level", "level"]
    match draw(st.sampled_from(ways)):
        case "level":
            return written(levels[0])
        case "span":
            first = draw(st.sampled_from([str(written(levels[0])), *([""] if levels[0] == 1 else [])]))
            last = draw(st.sampled_from([str(written(levels[-1])), *(["All"] if levels[-1] == rank else [])]))
            return f"{first};;{last}"
        case "text":
            return "{" + ", ".join(str(written(level)) for level in levels) + "}"
        case _:
            return [written(level) for level in levels]


@st.composite
def cases(draw, *, least=1, most=6, elements=2000, batch_aggregated=True, batched=None):
    """A shape and the settings of a layer for it."""
    shape = draw(shapes(least=least, most=most, elements=elements))
    if batched is None:
        batched = draw(st.booleans()) if len(shape) > 1 else False
    rank = len(shape) - batched
    first = 0 if batched else 1  # the level of axis 0
    possible = list(range(0 if batched and batch_aggregated else 1, rank + 1))
    levels = draw(st.lists(st.sampled_from(possible), min_size=1, unique=True))
    levels = sorted(levels) if draw(st.booleans()) else levels
    words = ["Complement"] if 0 in levels else ["Complement", "Same"]
    some = st.lists(st.sampled_from(range(1, rank + 1)), unique=True)
    scaling = draw(st.sampled_from(words)) if draw(st.booleans()) else draw(some)

    sizes = [shape[level - first] for level in levels]
    numbers = [draw(st.sampled_from(divisors(size))) for size in sizes] if draw(st.booleans()) else [1] * len(levels)
    groups = None
    if max(numbers) > 1 or draw(st.booleans()):
        kinds = ["list", "mapping"] + ["int"] * (len(levels) == 1)
        groups = {
            "list": numbers,
            "mapping": {
                draw(st.sampled_from([level, level - rank - 1])) if level else level: number
                for level, number in zip(levels, numbers, strict=True)
                if number > 1
            },
            "int": numbers[0],
        }[draw(st.sampled_from(kinds))]
    count = math.prod(size // number for size, number in zip(sizes, numbers, strict=True))
    method = draw(st.sampled_from(("Standardize", "Standardize", "RMS")))
    return Case(
        shape,
        {
            "aggregation_levels": draw(spelled(levels, rank)),
            "scaling_levels": scaling if isinstance(scaling, str) else draw(spelled(scaling, rank)) if scaling else (),
            "group_number": groups,
            "method": method,
            "unbiased": draw(st.booleans()) if method == "Standardize" and count != 1 else False,
            "epsilon": draw(st.sampled_from((1e-3, 0.0, 1e-5, 1.0))),
            "epsilon_placement": draw(st.sampled_from(("inside", "inside", "floor", "outside"))),
            "batched": batched,
        },
    )


def sample(shape, dtype="float32", seed=0):
    """Random numbers of one dtype, with mean 0.75 and deviation 1.5; integers are small enough to be exact."""
    normal = np.random.default_rng(seed).normal(0.75, 1.5, shape)
    if dtype == "bool":
        return normal > 0.5
    if dtype in INTEGERS:
        normal = np.abs(np.rint(normal * 20)) if dtype.startswith("u") else np.rint(normal * 20)
        return np.clip(normal, -100 * (not dtype.startswith("u")), 100).astype(dtype)
    return normal.astype(dtype_of(dtype))


def some(shape, seed=3, share=0.7):
    """A mask in which this share of the elements is True."""
    return np.random.default_rng(seed).random(shape) < share
