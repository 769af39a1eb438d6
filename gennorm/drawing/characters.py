"""Draws the slices of a small array in characters, for a terminal."""

from __future__ import annotations

import itertools
import math

import numpy as np

from gennorm.drawing.cubes import Cubes, Side
from gennorm.drawing.scene import letters

__all__ = ["in_characters"]

WIDTH = 88  # columns of sheets that stand side by side
SHEETS = 12  # that are written
BETWEEN = 3  # columns between two sheets


def in_characters(cubes: Cubes) -> str:
    """Return the elements as letters, one letter for each slice: the last two levels as sheets, one beside the other.

    Parameters
    ----------
    cubes : Cubes

    Returns
    -------
    str
        Lines without a newline at the end. A ``*`` marks a level that has parameters.

    Examples
    --------
    >>> from gennorm.drawing.cubes import describe
    >>> from gennorm.spec.config import LayerConfig
    >>> print(in_characters(describe(LayerConfig.make("All", 1, {1: 2}, batched=True), (2, 4, 3))))
    slices     2 x 4 x 3 elements, a letter for each of 4 slices
               x[0]    x[1]
               a a a   c c c
               a a a   c c c
               b b b   d d d
               b b b   d d d
               sheets: batch; down: level 1 *; across: level 2; * has parameters
    """
    names = np.array([letters(number) for number in range(cubes.count)])
    longest = max(map(len, names))
    *outer, down, across = (None, None, *cubes.sides)[-max(2, len(cubes.sides)) :]
    sheets = cubes.slices.reshape(*(side.size for side in outer if side), _size(down), _size(across))
    blocks = []
    for index in itertools.islice(itertools.product(*(range(_size(side)) for side in outer)), SHEETS):
        head = f"x[{', '.join(map(str, index))}]"
        rows = [" ".join(f"{names[number]:<{longest}}" for number in row).rstrip() for row in sheets[index]]
        blocks.append([head, *rows] if outer else rows)
    shape = " x ".join(map(str, cubes.shape))
    smaller = ", drawn smaller" if cubes.smaller else ""
    each = f"a letter for each of {cubes.count} slices" if cubes.count > 1 else "1 slice"
    lines = [f"{shape} elements{smaller}, {each}", *_beside(blocks, _size(outer[-1]) if outer else 1)]
    if (number := math.prod(map(_size, outer))) > SHEETS:
        lines.append(f"and {number - SHEETS} more sheets")
    ways = {"sheets": outer, "down": [down], "across": [across]}
    told = [
        f"{way}: " + ", ".join(f"{side.name}{' *' if side.has_parameters else ''}" for side in sides if side)
        for way, sides in ways.items()
        if any(sides)
    ]
    if any(side.has_parameters for side in cubes.sides):
        told.append("* has parameters")
    lines.append("; ".join(told))
    return "\n".join(f"{'' if number else 'slices':<11}{line}".rstrip() for number, line in enumerate(lines))


def _size(side: Side | None) -> int:
    return 1 if side is None else side.size


def _beside(blocks: list[list[str]], together: int) -> list[str]:
    """Place blocks of lines side by side, at most so many in a row."""
    wide = max(len(line) for block in blocks for line in block) + BETWEEN
    together = max(1, min(together, WIDTH // wide))
    lines: list[str] = []
    for first in range(0, len(blocks), together):
        if lines:
            lines.append("")
        for parts in zip(*blocks[first : first + together], strict=True):
            lines.append("".join(f"{part:<{wide}}" for part in parts).rstrip())
    return lines
