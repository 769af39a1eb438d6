"""Places the elements of `cubes` on a page: polygons, marks and texts, in pixels, for any renderer.

Every slice is a box, because on each level it has one position, one group or all positions. The boxes of different
slices have a gap between them, and their elements are separated by thin lines. So the picture says without its colours
which elements share a slice.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from gennorm.drawing.cubes import Cubes, Side

__all__ = ["DARK", "LIGHT", "Bar", "Face", "Mark", "Scene", "Text", "Theme", "colour", "letters", "place"]

Point = tuple[float, float]
Integers = npt.NDArray[np.int64]

# Paul Tol's "light" colours, on which black letters can be read, with pink and olive a little darker. To readers who
# lack one kind of cones, two of them are at least 8 apart in CIELAB on each side of a cube; with Tol's pink it is 7.5.
COLOURS = ("#77AADD", "#EE8866", "#EEDD88", "#44BB99", "#FF9FB2", "#A0A000", "#99DDFF", "#BBCC33", "#DDDDDD")

# Where one step along an axis goes on the page: to the right, down, and into the depth.
RIGHT, DOWN, BACK = (0.90, 0.30), (0.0, 1.0), (0.62, -0.42)
GAP = 0.42  # between slices, in steps
WIDTH = 400.0
LARGEST_STEP, SMALLEST_STEP = 36.0, 8.0  # pixels
LETTER = 0.58  # the width of a letter, as a part of its size
MARGIN, LINE = 12.0, 17.0
SMALL, NORMAL, TITLE = 11.0, 13.0, 15.0


@dataclass(frozen=True, slots=True)
class Theme:
    """The colours of lines and texts on a light or a dark page."""

    ink: str
    faint: str
    page: str
    lighter: float  # how much white the upper faces have
    darker: float  # how much black the right faces have


LIGHT = Theme("#1F2328", "#656D76", "#FFFFFF", 0.30, 0.20)
DARK = Theme("#E6EDF3", "#8D96A0", "#0D1117", 0.22, 0.22)


class Face(NamedTuple):
    """A visible face of an element.

    Attributes
    ----------
    corners : tuple of points
    side : {"front", "top", "right"}
    slice, place : int
        The number of its slice, and the place of its parameters.
    """

    corners: tuple[Point, ...]
    side: Literal["front", "top", "right"]
    slice: int
    place: int


class Mark(NamedTuple):
    """A diamond at a position of a level that has parameters, or in the legend, where axis and position are -1."""

    centre: Point
    axis: int
    position: int


class Bar(NamedTuple):
    """A line along a part of a level that statistics are taken over.

    Attributes
    ----------
    start, stop : Point
    kind : {"both", "divided", "centred"}
        Whether the mean that is subtracted, the number that is divided by, or both, are taken over the level.
    """

    start: Point
    stop: Point
    kind: Literal["both", "divided", "centred"]


class Text(NamedTuple):
    """A line of text."""

    at: Point
    anchor: Literal["start", "middle", "end"]
    words: str
    size: float
    strong: bool
    faint: bool


@dataclass(frozen=True, slots=True)
class Scene:
    """A page with the cubes of a layer.

    Attributes
    ----------
    width, height : float
        In pixels.
    step : float
        Length of the edge of an element that does not lie in the depth, in pixels.
    faces : tuple of Face
        From the back to the front.
    letters : tuple of (Point, int)
        Where the letter of a slice is written; none where a colour alone says which slice it is.
    marks : tuple of Mark
    bars : tuple of Bar
    texts : tuple of Text
    """

    width: float
    height: float
    step: float
    faces: tuple[Face, ...]
    letters: tuple[tuple[Point, int], ...]
    marks: tuple[Mark, ...]
    bars: tuple[Bar, ...]
    texts: tuple[Text, ...]

    @property
    def letter(self) -> float:
        """Size of the letters, in pixels."""
        return min(11.0, max(8.0, 0.5 * self.step))

    @property
    def mark(self) -> float:
        """Half the diagonal of a mark, in pixels; marks of neighbouring positions do not touch."""
        return min(4.5, 0.2 * self.step)


def letters(number: int) -> str:
    """Name a slice by its number: a, b, ..., z, aa, ab.

    Examples
    --------
    >>> letters(0), letters(25), letters(26)
    ('a', 'z', 'aa')
    """
    word = ""
    while number >= 0:
        number, last = number // 26 - 1, number % 26
        word = "abcdefghijklmnopqrstuvwxyz"[last] + word
    return word


def colour(number: int, side: str, theme: Theme) -> str:
    """Return the colour of a face of a slice.

    Examples
    --------
    >>> colour(0, "front", LIGHT), colour(9, "front", LIGHT), colour(0, "top", LIGHT)
    ('#77AADD', '#77AADD', '#A0C4E7')
    """
    base = COLOURS[number % len(COLOURS)]
    white, black = {"top": (theme.lighter, 0.0), "right": (0.0, theme.darker)}.get(side, (0.0, 0.0))
    parts = [int(base[i : i + 2], 16) for i in (1, 3, 5)]
    mixed = [round(part * (1 - white - black) + 255 * white) for part in parts]
    return "#" + "".join(f"{part:02X}" for part in mixed)


# ------------------------------------------------------------------------------------------------------------ one cube


def _edges(side: Side) -> list[tuple[float, float]]:
    """Return where each position of a side begins and ends, in steps, with gaps between slices."""
    return [(place + GAP * part, place + 1 + GAP * part) for place, part in enumerate(side.parts)]


def _at(right: float, down: float, back: float) -> Point:
    return (
        right * RIGHT[0] + down * DOWN[0] + back * BACK[0],
        right * RIGHT[1] + down * DOWN[1] + back * BACK[1],
    )


class _Cube(NamedTuple):
    """Three axes, of which some may be missing, and the numbers of the elements.

    Attributes
    ----------
    sides : tuple
        Back, down and right; None where the array has fewer axes.
    axes : tuple of int
        Their axes in the array, negative where they are missing.
    slices, places : ndarray
        Of three axes.
    """

    sides: tuple[Side | None, ...]
    axes: tuple[int, ...]
    slices: Integers
    places: Integers

    @property
    def edges(self) -> list[list[tuple[float, float]]]:
        """Where each position of the three sides begins and ends."""
        return [[(0.0, 1.0)] if side is None else _edges(side) for side in self.sides]


def _faces(cube: _Cube) -> Iterator[Face]:
    """Yield the visible faces, from the back to the front: a face is hidden where the same slice goes on behind it."""
    back, down, right = cube.edges
    slices = cube.slices
    for k, j, i in itertools.product(reversed(range(len(back))), reversed(range(len(down))), range(len(right))):
        number, place = int(slices[k, j, i]), int(cube.places[k, j, i])
        (b, b2), (d, d2), (r, r2) = back[k], down[j], right[i]
        if j == 0 or slices[k, j - 1, i] != number:
            yield Face((_at(r, d, b), _at(r2, d, b), _at(r2, d, b2), _at(r, d, b2)), "top", number, place)
        if i == len(right) - 1 or slices[k, j, i + 1] != number:
            yield Face((_at(r2, d, b), _at(r2, d2, b), _at(r2, d2, b2), _at(r2, d, b2)), "right", number, place)
        if k == 0 or slices[k - 1, j, i] != number:
            yield Face((_at(r, d, b), _at(r2, d, b), _at(r2, d2, b), _at(r, d2, b)), "front", number, place)


def _letters(cube: _Cube) -> Iterator[tuple[Point, int]]:
    """Yield a point for each slice that is not hidden, in the middle of its box on the front, the top or the right."""
    edges = cube.edges
    for number in np.unique(cube.slices):
        places = [np.unique(axis) for axis in np.nonzero(cube.slices == number)]
        ends = [(edge[where[0]][0], edge[where[-1]][1]) for edge, where in zip(edges, places, strict=True)]
        (b, b2), (d, d2), (r, r2) = ends
        if places[0][0] == 0:
            yield _at((r + r2) / 2, (d + d2) / 2, b), int(number)
        elif places[1][0] == 0:
            yield _at((r + r2) / 2, d, (b + b2) / 2), int(number)
        elif places[2][-1] == len(edges[2]) - 1:
            yield _at(r2, (d + d2) / 2, (b + b2) / 2), int(number)


class _Ruler(NamedTuple):
    """The line outside a cube that is parallel to one of its axes.

    Attributes
    ----------
    origin : tuple of float
        Where the ruler begins, in steps to the right, down and into the depth.
    along : Point
        One step on the page.
    away : Point
        The direction on the page that leads away from the cube.
    anchor : {"start", "middle", "end"}
        Of its label.
    """

    origin: Point
    along: Point
    away: Point
    anchor: Literal["start", "middle", "end"]

    def at(self, position: float, away: float) -> Point:
        """A point of the ruler, at a distance from the cube; both in steps."""
        return (
            self.origin[0] + position * self.along[0] + away * self.away[0],
            self.origin[1] + position * self.along[1] + away * self.away[1],
        )


def _rulers(cube: _Cube) -> list[_Ruler]:
    _, down, right = (edges[-1][1] for edges in cube.edges)
    return [
        _Ruler(_at(right, down, 0), BACK, (0.56, 0.83), "start"),
        _Ruler(_at(0, 0, 0), DOWN, (-1.0, 0.0), "end"),
        _Ruler(_at(0, down, 0), RIGHT, (-0.23, 0.97), "end"),
    ]


def _kind(side: Side) -> Literal["both", "divided", "centred"]:
    return "both" if side.centred and side.divided else "divided" if side.divided else "centred"


def _about(side: Side) -> list[str]:
    """The lines under the name of a side."""
    words = [f"level {side.level}"] if side.name != f"level {side.level}" else []
    return [*words, f"{side.full_groups} groups"] if side.full_groups > 1 else words


# ------------------------------------------------------------------------------------------------------------ the page


class _Drawn(NamedTuple):
    """What has been placed, in steps; texts have their sizes in pixels."""

    corners: list[Point]  # of the rectangles around the cubes
    faces: list[Face]
    letters: list[tuple[Point, int]]
    marks: list[Mark]
    bars: list[Bar]
    texts: list[Text]


def place(
    cubes: Cubes,
    *,
    width: float = WIDTH,
    height: float = 0.0,
    step: float = LARGEST_STEP,
    title: str | None = None,
    legend: bool = True,
) -> Scene:
    """Place the cubes, their labels and their legend on a page.

    Parameters
    ----------
    cubes : Cubes
    width, height : float
        Of the page, in pixels; they are larger where that is needed.
    step : float
        The largest length of the edge of an element, in pixels.
    title : str, optional
    legend : bool, default True
        Whether the numbers of levels with a name, and what the marks mean, are written too.

    Returns
    -------
    Scene

    Examples
    --------
    >>> from gennorm.drawing.cubes import describe
    >>> from gennorm.spec.config import LayerConfig
    >>> scene = place(describe(LayerConfig.make("2;;All"), (2, 2, 2)), legend=False)
    >>> len(scene.faces), {face.slice for face in scene.faces}
    (16, {0, 1})
    >>> scene.marks[0].axis, [mark.position for mark in scene.marks]
    (0, [0, 1])
    """
    notes = _legend(cubes) if legend else []
    above = MARGIN + (TITLE + 8 if title else 0)
    # Texts and distances keep their size in pixels, so the cubes get what they leave.
    scale = step
    while True:
        (left, top), (right, bottom) = _bounds(_placed(cubes, scale, legend=legend, elements=False), scale)
        fits = (width - 2 * MARGIN) / (right - left) / scale
        if fits >= 1 or scale == SMALLEST_STEP:
            break
        scale = max(scale * min(fits, 0.98), SMALLEST_STEP)
    width = max(width, round((right - left) * scale + 2 * MARGIN, 2))
    drawn = _placed(cubes, scale, legend=legend, elements=True)
    needed = above + (bottom - top) * scale + LINE * len(notes) + MARGIN
    shift = (width / scale - (right - left)) / 2 - left
    drop = above + max(0.0, height - needed) / 2

    def on_page(point: Point) -> Point:
        return (round((point[0] + shift) * scale, 2), round((point[1] - top) * scale + drop, 2))

    texts = [text._replace(at=on_page(text.at)) for text in drawn.texts]
    end = max(height, needed) - MARGIN - LINE * len(notes)
    if title:
        texts.insert(0, Text((width / 2, MARGIN + TITLE * 0.8), "middle", title, TITLE, True, False))
    marks = [mark._replace(centre=on_page(mark.centre)) for mark in drawn.marks]
    bars = [Bar(on_page(bar.start), on_page(bar.stop), bar.kind) for bar in drawn.bars]
    for kind, words in notes:
        end += LINE
        at = (MARGIN + 16.0, round(end, 2))
        if kind == "mark":
            marks.append(Mark((MARGIN + 5.0, round(end - 4, 2)), -1, -1))
        elif kind is not None:
            bars.append(Bar((MARGIN - 1.0, round(end - 4, 2)), (MARGIN + 11.0, round(end - 4, 2)), kind))
        texts.append(Text(at, "start", words, SMALL, False, True))
    return Scene(
        width=width,
        height=round(max(height, needed), 2),
        step=scale,
        faces=tuple(face._replace(corners=tuple(map(on_page, face.corners))) for face in drawn.faces),
        letters=tuple((on_page(point), number) for point, number in drawn.letters),
        marks=tuple(marks),
        bars=tuple(bars),
        texts=tuple(texts),
    )


def _placed(cubes: Cubes, scale: float, *, legend: bool, elements: bool) -> _Drawn:
    """Place one cube for each position on the levels before the last three; a step has this many pixels."""
    drawn = _Drawn([], [], [], [], [], [])
    beyond = max(0, len(cubes.sides) - 3)
    missing = max(0, 3 - len(cubes.sides))
    outer, inner = cubes.sides[:beyond], cubes.sides[beyond:]
    shape = (*(side.size for side in outer), *[1] * missing, *(side.size for side in inner))
    slices, places = cubes.slices.reshape(shape), cubes.places.reshape(shape)
    sides = (*[None] * missing, *inner)
    axes = tuple(range(beyond - missing, beyond - missing + 3))
    lettered = bool(outer) or cubes.count > len(COLOURS)
    indices = list(itertools.product(*(range(side.size) for side in outer)))
    grid = {index: _cell(index, outer) for index in indices}
    rows, columns = (1 + max(cell[i] for cell in grid.values()) for i in (0, 1))
    for index in indices:
        cube = _Cube(sides, axes, slices[index], places[index])
        box = _box(cube)
        row, column = grid[index]
        words = _address(outer, index)
        wide = max(box[1][0] - box[0][0] + 24 / scale, (LETTER * SMALL * len(words) + 12) / scale)
        high = box[1][1] - box[0][1] + 34 / scale
        offset = (column * wide, row * high)
        drawn.corners.extend(_moved(corner, offset) for corner in box)
        if elements:
            drawn.faces.extend(
                face._replace(corners=tuple(_moved(p, offset) for p in face.corners)) for face in _faces(cube)
            )
        if elements and lettered:
            drawn.letters.extend((_moved(point, offset), number) for point, number in _letters(cube))
        if outer:
            at = _moved((box[0][0], box[0][1] - 7 / scale), offset)
            drawn.texts.append(Text(at, "start", words, SMALL, False, True))
        for ruler, side, axis in zip(_rulers(cube), sides, axes, strict=True):
            # Each label once, where it is outside: at the lower left, or for the depth at the lower right.
            here = row == rows - 1 and column == (columns - 1 if ruler.anchor == "start" else 0)
            if side is not None and here:
                _place_ruler(ruler, side, axis, offset, drawn, scale, about=_about(side) if legend else [])
    return drawn


def _address(outer: tuple[Side, ...], index: tuple[int, ...]) -> str:
    """What is written over a cube: its place on the levels before the last three."""
    return f"{outer[0].name}: {index[0]}" if len(outer) == 1 else f"x[{', '.join(map(str, index))}]"


def _cell(index: tuple[int, ...], outer: tuple[Side, ...]) -> tuple[int, int]:
    """Return row and column of a cube: the last outer level runs across, the one before down, and so on."""
    found = [0, 0]
    steps = [1, 1]
    for turn, (place, side) in enumerate(zip(reversed(index), reversed(outer), strict=True)):
        way = 1 - turn % 2
        found[way] += place * steps[way]
        steps[way] *= side.size
    return found[0], found[1]


def _place_ruler(
    ruler: _Ruler, side: Side, axis: int, offset: Point, drawn: _Drawn, scale: float, *, about: list[str]
) -> None:
    edges, away = _edges(side), 14 / scale
    if side.aggregated:
        for part in range(side.parts[-1] + 1):
            inside = [edge for edge, own in zip(edges, side.parts, strict=True) if own == part]
            ends = (ruler.at(inside[0][0] + 0.1, away), ruler.at(inside[-1][1] - 0.1, away))
            drawn.bars.append(Bar(_moved(ends[0], offset), _moved(ends[1], offset), _kind(side)))
    if side.has_parameters:
        for position, (start, stop) in enumerate(edges):
            drawn.marks.append(Mark(_moved(ruler.at((start + stop) / 2, away), offset), axis, position))
    away = (28 if side.aggregated or side.has_parameters else 14) / scale
    at = _moved(ruler.at(edges[-1][1] / 2, away), offset)
    # The text is below the point on the slanted rulers, and beside the middle of the upright one.
    at = (at[0], at[1] + (0 if ruler.anchor == "end" and ruler.along == DOWN else 6) / scale)
    drawn.texts.append(Text(at, ruler.anchor, side.name, NORMAL, True, False))
    for line, words in enumerate(about, 1):
        below = (at[0], at[1] + 14 * line / scale)
        drawn.texts.append(Text(below, ruler.anchor, words, SMALL, False, True))


def _moved(point: Point, offset: Point) -> Point:
    return (point[0] + offset[0], point[1] + offset[1])


def _box(cube: _Cube) -> tuple[Point, Point]:
    back, down, right = (edges[-1][1] for edges in cube.edges)
    return _around([_at(r, d, b) for r in (0, right) for d in (0, down) for b in (0, back)])


def _around(points: list[Point]) -> tuple[Point, Point]:
    """Return the upper left and the lower right corner of the smallest rectangle around points."""
    across, down = zip(*points, strict=True)
    return (min(across), min(down)), (max(across), max(down))


def _bounds(drawn: _Drawn, scale: float) -> tuple[Point, Point]:
    """Return the corners of everything, in steps of this many pixels."""
    points = list(drawn.corners)
    points += [end for bar in drawn.bars for end in (bar.start, bar.stop)]
    points += [(x + sign * 6 / scale, y + sign * 6 / scale) for (x, y), *_ in drawn.marks for sign in (-1, 1)]
    for text in drawn.texts:
        length = LETTER * text.size * len(text.words) / scale
        start = text.at[0] - {"start": 0.0, "middle": 0.5, "end": 1.0}[text.anchor] * length
        points += [(start, text.at[1] - text.size / scale), (start + length, text.at[1] + 0.3 * text.size / scale)]
    return _around(points)


def _levels(sides: Sequence[Side]) -> str:
    """The levels of sides, by their names if they have any."""
    if any(side.label for side in sides):
        return ", ".join(side.name for side in sides)
    return f"level{'' if len(sides) == 1 else 's'} {', '.join(str(side.level) for side in sides)}"


def _legend(cubes: Cubes) -> list[tuple[Any, str]]:
    """What the picture means, line by line, each with the kind of its mark."""
    centred = any(side.centred for side in cubes.sides)
    statistic = "one mean and one deviation" if centred else "one root mean square"
    whole = "each letter" if len(cubes.sides) > 3 or cubes.count > len(COLOURS) else "each colour"
    lines: list[tuple[Any, str]] = []
    if len(cubes.sides) > 4:
        lines.append((None, f"x[...]: the position on {', '.join(side.name for side in cubes.sides[:-3])}"))
    aggregated = [cubes.sides[axis] for axis in cubes.aggregated_axes]
    varying = [cubes.sides[axis] for axis in cubes.parameter_axes]
    for kind in dict.fromkeys(map(_kind, aggregated)):
        lines.append((kind, f"{statistic} for {whole}, over {_levels(aggregated)}"))
    names = " and one ".join({"scaling": "scaling", "biases": "bias"}[name] for name in cubes.parameters)
    if names and not varying:
        lines.append(("mark", f"one {names} for all elements"))
    elif names:
        lines.append(("mark", f"one {names} for each position on {_levels(varying)}"))
    else:
        lines.append((None, "no parameters"))
    if cubes.smaller:
        full = " × ".join("any" if side.full_size is None else str(side.full_size) for side in cubes.sides)
        lines.append((None, f"drawn smaller: the array is {full}"))
    return lines
