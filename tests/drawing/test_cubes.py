"""What the picture of a layer encodes: which elements share a slice, and which levels have parameters."""

import itertools
import math
import re
from xml.etree import ElementTree as ET

import numpy as np
import pytest

import gennorm as gn
from gennorm.drawing.characters import in_characters
from gennorm.drawing.cubes import describe
from gennorm.drawing.scene import COLOURS, DARK, LIGHT, colour, letters, place
from gennorm.drawing.svg import alternative, inline_svg, svg_file
from gennorm.layer.pictures import described
from gennorm.spec.config import LayerConfig
from spec import reference

# Levels, scaling levels, groups, whether there is a batch, and a shape that is drawn as it is.
CASES = [
    ("2;;All", "Complement", None, False, (3, 4, 4)),
    ("2;;All", "Complement", None, True, (2, 3, 4)),
    ("{0, 2;;All}", 1, None, True, (3, 2, 4)),
    ("0;;All", (), None, True, (2, 3, 4)),
    ("0;;-2", -1, None, True, (3, 4, 2)),
    ("0;;1", "Complement", None, True, (3, 2, 4)),
    ("All", 1, {1: 2}, True, (2, 4, 3)),
    ("All", 1, {1: 2, 2: 3}, True, (2, 4, 6)),
    ("{0, 2}", 1, {0: 2, 2: 2}, True, (4, 3, 4)),
    ("All", "Same", {1: 4}, False, (4, 3)),
    (-1, "Same", None, False, (3, 5)),
    (1, "Same", None, False, (5,)),
    (1, (), None, False, (5,)),
    ([3, 1], [2, 1], None, False, (2, 3, 4)),
    ("2;;All", "Complement", None, True, (2, 3, 4, 4)),
    ("{0, 2;;All}", 1, None, True, (3, 2, 4, 4)),
    (1, "2;;All", None, True, (2, 3, 4, 4)),
    ("All", 1, {1: 2}, True, (2, 2, 4, 3, 3)),
    ("0", "{2, 4}", None, True, (2, 2, 2, 2, 2)),
    ("{1, 3}", 2, {3: 2}, False, (2, 2, 2, 2, 2, 2)),
]
EACH = pytest.mark.parametrize(("levels", "scaling", "groups", "batched", "shape"), CASES)


def drawn(levels, scaling, groups, batched, shape):
    return describe(LayerConfig.make(levels, scaling, groups, batched=batched), shape)


@EACH
def test_elements_of_a_slice_are_those_of_the_specification(levels, scaling, groups, batched, shape):
    cubes = drawn(levels, scaling, groups, batched, shape)
    where = reference.geometry(shape, levels, scaling, groups, batched)
    numbers = where.over_slices(np.arange(float(math.prod(where.kept))).reshape(where.kept))
    np.testing.assert_array_equal(cubes.slices, numbers)
    assert (cubes.shape, cubes.moments_shape, cubes.smaller) == (shape, where.kept, False)
    sizes = tuple(shape[axis] for axis in where.scaling)
    places = where.over_levels(np.arange(float(math.prod(sizes))).reshape(sizes), batched)
    np.testing.assert_array_equal(cubes.places, np.broadcast_to(places, shape))
    marked = {axis for axis, side in enumerate(cubes.sides) if side.has_parameters}
    assert marked == {*where.scaling}


@EACH
def test_moving_an_element_changes_its_slice(levels, scaling, groups, batched, shape):
    cubes = drawn(levels, scaling, groups, batched, shape)
    x = np.random.default_rng(0).normal(size=shape)
    y = reference.normalize(x, levels, scaling, groups, batched=batched)
    for element in [(0,) * len(shape), tuple(size - 1 for size in shape)]:
        moved = x.copy()
        moved[element] += 1
        changed = reference.normalize(moved, levels, scaling, groups, batched=batched) != y
        np.testing.assert_array_equal(changed, cubes.slices == cubes.slices[element])


def test_parameters_of_each_example():
    config = LayerConfig.make("2;;All", batched=True)
    cubes = describe(config, (2, 3, 4), per_example=True)
    assert [side.has_parameters for side in cubes.sides] == [True, True, False]
    np.testing.assert_array_equal(cubes.places[..., 0], np.arange(6).reshape(2, 3))
    assert describe(LayerConfig.make(), (2, 3), per_example=True) == describe(LayerConfig.make(), (2, 3))


@pytest.mark.parametrize(
    ("arguments", "shape", "small", "groups"),
    [
        (("2;;All",), (7, 100, 100), (3, 4, 4), (1, 1, 1)),
        (("2;;All",), (6, 6, 7), (6, 6, 4), (1, 1, 1)),
        (("All", 1, {1: 32}), (256, 100, 3), (4, 4, 3), (2, 1, 1)),
        (("All", 1, {1: 100}), (100, 3, 3), (3, 3, 3), (3, 1, 1)),
        (("All", 1, {1: 3}), (9, 3, 3), (4, 3, 3), (2, 1, 1)),
        (("2;;All",), (9, 9, 9, 9), (2, 4, 4, 4), (1, 1, 1, 1)),
        (("2;;All",), (3, 9, 9, 9), (3, 4, 4, 4), (1, 1, 1, 1)),
        (("All", (), {1: 8}), (8, 9, 9, 9), (2, 4, 4, 4), (2, 1, 1, 1)),
        (("1;;All",), (10**9, 10**9), (4, 4), (1, 1)),
    ],
)
def test_a_large_array_is_drawn_smaller(arguments, shape, small, groups):
    """The small array is one that the same levels cut in the same way, with fewer groups."""
    cubes = describe(LayerConfig.make(*arguments), shape)
    assert (cubes.shape, tuple(side.groups for side in cubes.sides)) == (small, groups)
    assert cubes.smaller
    assert tuple(side.full_size for side in cubes.sides) == shape
    fewer = {level: number for level, number in enumerate(groups, 1) if number > 1}
    alone = describe(LayerConfig.make(*arguments[:2], group_number=fewer or None), small)
    np.testing.assert_array_equal(cubes.slices, alone.slices)
    assert not alone.smaller


@pytest.mark.parametrize(
    ("layer", "sizes"),
    [
        (gn.NormalizationLayer(), (None, None, None)),
        (gn.NormalizationLayer(input_shape=(3, None, None)), (3, None, None)),
        (gn.NormalizationLayer(5), (None,) * 5),
        (gn.NormalizationLayer("{0, 1}", batched=True), (None, None, None)),
        (gn.batch_norm(64), (None, 64, None)),
        (gn.batch_norm(64, channel_level=-1, spatial_levels=2), (None, None, None, 64)),
        (gn.group_norm(32, 256), (None, 256, None)),
        (gn.group_norm(3, None), (None, None, None)),
        (gn.layer_norm(768), (None, None, 768)),
        (gn.layer_norm((2, 3, 4, 5)), (2, 3, 4, 5)),
        (gn.feature_norm(), (None, None, None)),
        (gn.NormalizationLayer(0, input_shape=(5,)), (None, 5)),
        (gn.NormalizationLayer(1, (), {1: 6}, input_shape=(12,)), (12,)),
        (gn.NormalizationLayer("All", group_number={1: 2, 2: 3, 3: 5}), (None, None, None)),
    ],
)
def test_a_shape_is_found_for_a_layer(layer, sizes):
    cubes = described(LayerConfig.from_dict(layer.to_config()), None)
    assert tuple(side.full_size for side in cubes.sides) == sizes
    assert cubes.smaller == (None in sizes or max(sizes) > 6)


def test_one_example_of_a_data_set_is_a_batch_of_one():
    layer = gn.feature_norm(mean=[1.0, 2.0], variance=1.0)
    config = LayerConfig.from_dict(layer.to_config())
    assert layer.plan((2,)).resolved.shape == described(config, (2,)).shape == (1, 2)


def test_names_of_levels_are_the_labels():
    config = LayerConfig.make("height;;width", input_levels="batch channel ... height width")
    cubes = describe(config, (2, 3, 5, 4, 4))
    assert [side.label for side in cubes.sides] == ["batch", "channel", None, "height", "width"]
    assert [side.name for side in cubes.sides][2] == "level 2"
    given = describe(config, (2, 3, 5, 4, 4), ["N", None, "T", None, None])
    assert [side.label for side in given.sides] == ["N", None, "T", None, None]
    words = [text.words for text in place(cubes).texts]
    assert "one mean and one deviation for each letter, over height, width" in words
    assert "one scaling and one bias for each position on channel, level 2" in words


# ------------------------------------------------------------------------------------------------------------- the page


@EACH
def test_faces_are_those_between_slices(levels, scaling, groups, batched, shape):
    cubes = drawn(levels, scaling, groups, batched, shape)
    scene = place(cubes)
    pairs = {(int(a), int(b)) for a, b in zip(cubes.slices.flat, cubes.places.flat, strict=True)}
    assert {(face.slice, face.place) for face in scene.faces} <= pairs
    # The last three axes are the depth, down and right; a face is drawn where the next slice or nothing begins.
    numbers = cubes.slices.reshape((1,) * max(0, 3 - len(shape)) + shape)
    expected = 0
    for axis, end in ((-3, 0), (-2, 0), (-1, -1)):
        lines = np.moveaxis(numbers, axis, -1)
        expected += (np.diff(lines, axis=-1) != 0).sum() + lines[..., end].size
    assert len(scene.faces) == expected
    visible = {face.slice for face in scene.faces}
    assert visible == {*range(cubes.count)}


@EACH
def test_marks_and_bars(levels, scaling, groups, batched, shape):
    cubes = drawn(levels, scaling, groups, batched, shape)
    scene = place(cubes, legend=False)
    axes = cubes.parameter_axes
    inner = [axis for axis in range(len(shape)) if axis >= len(shape) - 3]
    assert {(mark.axis, mark.position) for mark in scene.marks} == {
        (axis, position) for axis in axes if axis in inner for position in range(shape[axis])
    }
    bars = sum(cubes.sides[axis].groups for axis in inner if cubes.sides[axis].aggregated)
    assert [bar.kind for bar in scene.bars] == ["both"] * bars
    settings = {"method": "RMS", "scaling": None, "biases": None, "batched": batched}
    without = place(describe(LayerConfig.make(levels, "Complement", groups, **settings), shape))
    assert {bar.kind for bar in without.bars} == {"divided"}
    assert without.marks == ()


def test_an_outer_level_with_parameters_is_named_in_the_legend():
    scene = place(drawn("3;;All", "{1, 2}", None, True, (2, 3, 2, 2, 2)))
    words = [text.words for text in scene.texts]
    assert "one scaling and one bias for each position on levels 1, 2" in words
    assert "x[...]: the position on batch, level 1" in words
    assert [word for word in words if word.startswith("x[") and ":" not in word] == [
        f"x[{example}, {position}]" for example in range(2) for position in range(3)
    ]


@EACH
def test_letters(levels, scaling, groups, batched, shape):
    """Where a slice has several boxes, or more slices than colours, each box that is not hidden has its letter."""
    cubes = drawn(levels, scaling, groups, batched, shape)
    scene = place(cubes)
    if len(shape) <= 3 and cubes.count <= len(COLOURS):
        assert scene.letters == ()
        return
    boxes = math.prod(shape[:-3])
    lettered = [number for _, number in scene.letters]
    for number in range(cubes.count):
        own = np.argwhere((cubes.slices == number).reshape(boxes, *shape[-3:]))
        cubes_of_it = {int(cube) for cube, *_ in own}
        outside = {int(cube) for cube, back, down, right in own if back == 0 or down == 0 or right == shape[-1] - 1}
        assert lettered.count(number) == len(outside)
        assert outside <= cubes_of_it
    assert len({letters(number) for number in range(1000)}) == 1000


@pytest.mark.parametrize("theme", [LIGHT, DARK])
@EACH
def test_elements_that_share_a_colour_share_a_slice(levels, scaling, groups, batched, shape, theme):
    cubes = drawn(levels, scaling, groups, batched, shape)
    scene = place(cubes)
    root = ET.fromstring(svg_file(scene, theme, "title"))
    rules = dict(re.findall(r"\.(\w\w)\{fill:(#\w{6})\}", root.find("{*}style").text))
    faces = [path for path in root.iter("{http://www.w3.org/2000/svg}path") if path.get("class") in rules]
    assert len(faces) == len(scene.faces)
    colours = {}
    for path, face in zip(faces, scene.faces, strict=True):
        colours.setdefault((face.slice, face.side), set()).add(rules[path.get("class")])
    assert all(len(found) == 1 for found in colours.values())
    if not scene.letters:
        for side in ("front", "top", "right"):
            found = [shade for (_, own), shades in colours.items() if own == side for shade in shades]
            assert len(found) == len(set(found))


@EACH
def test_everything_is_on_the_page(levels, scaling, groups, batched, shape):
    for settings in ({}, {"width": 200, "title": "a title", "legend": False}):
        scene = place(drawn(levels, scaling, groups, batched, shape), **settings)
        points = [corner for face in scene.faces for corner in face.corners]
        points += [mark.centre for mark in scene.marks] + [end for bar in scene.bars for end in bar[:2]]
        points += [text.at for text in scene.texts] + [point for point, _ in scene.letters]
        assert all(0 <= x <= scene.width and 0 <= y <= scene.height for x, y in points)
        assert scene.width == 400 or len(shape) > 3 or settings


def test_a_page_can_be_higher_than_its_cubes():
    cubes = drawn("2;;All", "Complement", None, False, (3, 4, 4))
    natural = place(cubes, title="title")
    higher = place(cubes, title="title", height=natural.height + 40)
    assert (higher.height, higher.texts[0]) == (round(natural.height + 40, 2), natural.texts[0])
    shifts = {round(b.corners[0][1] - a.corners[0][1], 1) for a, b in zip(natural.faces, higher.faces, strict=True)}
    assert shifts == {20.0}


# -------------------------------------------------------------------------------------------------------------- colours


def linear(code):
    value = np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ np.clip(rgb, 0, 1)
    t = np.cbrt(xyz / np.array([0.9505, 1.0, 1.089]))
    return np.array([116 * t[1] - 16, 500 * (t[0] - t[1]), 200 * (t[1] - t[2])])


# Machado, Oliveira and Fernandes 2009, for the complete lack of one kind of cones.
SEEN_BY = {
    "everyone": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("eyes", SEEN_BY)
@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_colours_can_be_told_apart(eyes, theme):
    for side in ("front", "top", "right"):
        shades = [lab(np.array(SEEN_BY[eyes]) @ linear(colour(number, side, theme))) for number in range(len(COLOURS))]
        assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(shades, 2)) > 8


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_letters_and_texts_can_be_read(theme):
    def contrast(one, other):
        values = sorted(float(np.array([0.2126, 0.7152, 0.0722]) @ linear(code)) for code in (one, other))
        return (values[1] + 0.05) / (values[0] + 0.05)

    assert min(contrast(theme.ink, theme.page), contrast(theme.faint, theme.page)) > 4.5
    for number, side in itertools.product(range(len(COLOURS)), ("front", "top", "right")):
        assert contrast("#111111", colour(number, side, theme)) > 4


# ---------------------------------------------------------------------------------------------------- words, characters


@EACH
def test_characters_have_the_letter_of_each_element(levels, scaling, groups, batched, shape):
    cubes = drawn(levels, scaling, groups, batched, shape)
    text = in_characters(cubes)
    head, *lines, told = [line[11:] for line in text.split("\n")]
    assert head.startswith(" x ".join(map(str, shape)) + " elements, ")
    found = {}
    titles = None
    rows = shape[-2] if len(shape) > 1 else 1
    for line in lines:
        if line.startswith("x["):
            titles = [tuple(map(int, title.split(", "))) for title in re.findall(r"x\[(.*?)\]", line)]
        elif line.startswith("and "):
            assert int(line.split()[1]) == math.prod(shape[:-2]) - len(found)
        elif line:
            words = line.split()
            for title, own in zip(titles or [()], np.array(words).reshape(-1, shape[-1]), strict=True):
                found.setdefault(title, []).append(list(own))
    for title, sheet in found.items():
        assert len(sheet) == rows
        assert sheet == [[letters(number) for number in row] for row in cubes.slices[title].reshape(rows, -1)]
    assert len(found) == min(math.prod(shape[:-2]), 12)
    marked = [side.name for side in cubes.sides if side.has_parameters]
    assert re.findall(r"(batch|level \d) \*", told) == marked
    assert told.endswith("; * has parameters") == bool(marked)


def test_words_for_readers_who_do_not_see():
    assert alternative(drawn("All", 1, {1: 2}, True, (2, 4, 3))) == (
        "A cube of 2 × 4 × 3 elements, cut along batch, level 1 in 2 groups into 4 slices of 6. "
        "scaling and biases vary along level 1."
    )
    assert alternative(drawn("All", (), None, False, (2, 3))) == "A cube of 2 × 3 elements, one slice of 6."


# -------------------------------------------------------------------------------------------------------- in a notebook


def test_an_element_names_its_slice_and_its_parameters():
    cubes = drawn("All", "{1, 2}", {1: 2}, True, (3, 4, 3))
    scene = place(cubes)
    root = ET.fromstring(inline_svg(scene, cubes))
    faces = [path for path in root.iter("path") if path.get("data-s")]
    for path, face in zip(faces, scene.faces, strict=True):
        element = next(index for index in np.ndindex(3, 4, 3) if (cubes.slices[index], cubes.places[index]) == face[2:])
        example, channel, position = element
        assert path.get("data-s") == str(face.slice)
        assert path.get("data-p").split() == ["-1.-1", f"1.{channel}", f"2.{position}"]
        own = f"[{channel}, {position}]"
        assert path.get("data-say") == f"moments[{example}, {channel // 2}], scaling{own}, biases{own}"
    marks = {path.get("data-m") for path in root.iter("path") if path.get("data-m")}
    assert marks == {"-1.-1", *(f"1.{c}" for c in range(4)), *(f"2.{p}" for p in range(3))}
    assert root.get("aria-label") == alternative(cubes)
    assert "data-s" in root.get("onmouseover")


@pytest.mark.parametrize(
    ("layer", "parts"),
    [
        (gn.NormalizationLayer(input_shape=(3, 8, 8)), ["<svg", "3 slices of 64 elements", "float32 (3,)"]),
        (gn.batch_norm(64), ["<svg", "(64,)"]),
        (gn.NormalizationLayer(0, input_shape=(4, 4)), ["<svg"]),
        (gn.NormalizationLayer(12), ["NormalizationLayer(12)"]),
        (gn.layer_norm((2,) * 9), ["<table>"]),
    ],
)
def test_a_layer_in_a_notebook(layer, parts):
    html = layer._repr_html_()
    root = ET.fromstring(html)
    assert root[0][0].text == repr(layer)
    assert all(part in html for part in parts)
    assert ("<svg" in html, "<pre" in html) == ("<svg" in parts, "elements" in str(parts))
    assert not re.search(r"https?:|src=|href=|<script|@import|url\(", html)
