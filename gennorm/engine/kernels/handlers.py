"""What XLA calls: a kernel, and what happens before and after it.

The array ``fields`` begins with the number of tasks. Each function is called with `lo` = BEFORE, then for ranges of
tasks, maybe by several threads, and then with `lo` = AFTER. ``kept`` has means and second moments, which the backward
pass needs of the forward pass, and ``moments`` the same numbers in the dtype that the program sees. An absent parameter
is an empty array.
"""

from __future__ import annotations

from .column_gradients import backward as column_gradients
from .columns import forward as columns
from .row_gradients import backward as row_gradients
from .rows import SLICES
from .rows import forward as rows
from .vector import Array

BEFORE, AFTER = -1, -2  # in the place of the first task
# Fields: the number of tasks, of parts of scratch arrays; for the backward pass arguments of its kernels.
TASKS, PARTS, BLOCK, PARAMETERS, OFTEN = 0, 1, 2, 3, 4
PER_COUNT, PER_DEGREE = 3, 4  # numbers after those of ``steps``


def forward_rows(
    x: Array, scaling: Array, biases: Array, y: Array, kept: Array, moments: Array,
    fields: Array, geometry: Array, numbers: Array, sizes: Array, lo: int, hi: int, number: int,
) -> None:  # fmt: skip
    """Normalize rows, and keep the moments of the slices."""
    if lo >= 0:
        slices = geometry[SLICES]
        rows(x, y, scaling, biases, kept[:slices], kept[slices:], geometry, numbers, lo, hi, 0)
    if lo == AFTER:
        copy(kept, moments)


def forward_columns(
    x: Array, scaling: Array, biases: Array, y: Array, kept: Array, moments: Array,
    fields: Array, geometry: Array, numbers: Array, sizes: Array, work: Array, lanes: Array,
    lo: int, hi: int, number: int,
) -> None:  # fmt: skip
    """Normalize columns, and keep the moments of the slices."""
    if lo >= 0:
        slices = geometry[SLICES]
        columns(x, y, scaling, biases, kept[:slices], kept[slices:], geometry, numbers, work, lanes, lo, hi, 0)
    if lo == AFTER:
        copy(kept, moments)


def backward_rows(
    x: Array, dy: Array, scaling: Array, kept: Array,
    dx: Array, to_scaling: Array, to_biases: Array, factors: Array, gradients: Array,
    fields: Array, geometry: Array, numbers: Array, sizes: Array, recent: Array, lo: int, hi: int, number: int,
) -> None:  # fmt: skip
    """Take the gradients of rows and of parameters."""
    block, parameters, often = fields[BLOCK], fields[PARAMETERS], fields[OFTEN]
    if lo == BEFORE:
        prepare(kept, factors, gradients, numbers)
    if lo >= 0:
        for i in range(recent.size):
            recent[i] = 0
        row_gradients(
            x, dy, dx, scaling, scaling, factors, factors, gradients, geometry, numbers, recent,
            block, parameters, often, lo, hi, 0,
        )  # fmt: skip
    if lo == AFTER:
        finish(gradients, to_scaling, to_biases, parameters)


def backward_columns(
    x: Array, dy: Array, scaling: Array, kept: Array,
    dx: Array, to_scaling: Array, to_biases: Array, factors: Array, gradients: Array,
    fields: Array, geometry: Array, numbers: Array, sizes: Array, work: Array, lanes: Array,
    lo: int, hi: int, number: int,
) -> None:  # fmt: skip
    """Take the gradients of columns and of parameters."""
    block, parameters, often = fields[BLOCK], fields[PARAMETERS], fields[OFTEN]
    if lo == BEFORE:
        prepare(kept, factors, gradients, numbers)
    if lo >= 0:
        column_gradients(
            x, dy, dx, scaling, scaling, factors, factors, gradients, geometry, numbers, work, lanes,
            block, parameters, often, lo, hi, 0,
        )  # fmt: skip
    if lo == AFTER:
        finish(gradients, to_scaling, to_biases, parameters)


def copy(kept: Array, moments: Array) -> None:
    """Convert moments to the dtype that the program sees."""
    for i in range(kept.size):
        moments[i] = kept[i]


def prepare(kept: Array, factors: Array, gradients: Array, numbers: Array) -> None:
    """Write the factors of slices that ``steps`` lists, and set the gradients of parameters to 0."""
    slices = kept.size // 2
    for i in range(slices):
        factors[i] = kept[i]
        factors[slices + i] = kept[slices + i] * numbers[PER_DEGREE]
        factors[2 * slices + i] = numbers[PER_COUNT]
        factors[3 * slices + i] = numbers[PER_DEGREE]
    for i in range(gradients.size):
        gradients[i] = 0.0


def finish(gradients: Array, to_scaling: Array, to_biases: Array, parameters: int) -> None:
    """Add up the gradients of parameters of all blocks, each with its own array."""
    for begin in range(2 * parameters, gradients.size, 2 * parameters):
        for i in range(2 * parameters):
            gradients[i] += gradients[begin + i]
    for i in range(to_scaling.size):
        to_scaling[i] = gradients[i]
    for i in range(to_biases.size):
        to_biases[i] = gradients[parameters + i]
