"""Figures: what Matplotlib is given, what files have, and the data of pictures of arrays, moments and plans."""

import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex

import gennorm as gn
from gennorm.drawing.comparison import compare, summarize
from gennorm.drawing.cubes import describe
from gennorm.drawing.scene import DARK, LIGHT, colour, letters, place
from gennorm.spec.config import LayerConfig, resolve_config
from spec import reference


def values(shape, seed=0):
    return np.random.default_rng(seed).normal(5, 2, shape).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------- cubes


@pytest.mark.parametrize(("dark", "theme"), [(False, LIGHT), (True, DARK)])
@pytest.mark.parametrize("shape", [(2, 4, 3), (2, 4, 3, 3)])
def test_a_figure_has_the_scene(shape, dark, theme):
    layer = gn.group_norm(2, 4)
    figure = layer.draw(shape, dark=dark)
    scene = place(describe(LayerConfig.from_dict(layer.to_config()), shape))
    (axes,) = figure.axes
    (faces,) = axes.collections
    wanted = [colour(face.slice, face.side, theme).lower() for face in scene.faces]
    assert [to_hex(shade) for shade in faces.get_facecolor()] == wanted
    for path, face in zip(faces.get_paths(), scene.faces, strict=True):
        np.testing.assert_allclose(path.vertices[:4], face.corners)
    words = [text.get_text() for text in axes.texts]
    assert words == [letters(number) for _, number in scene.letters] + [text.words for text in scene.texts]
    diamonds = [line for line in axes.lines if line.get_marker() == "D"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in diamonds] == [mark.centre for mark in scene.marks]
    assert len(axes.lines) == len(scene.marks) + len(scene.bars)
    assert to_hex(figure.get_facecolor()) == theme.page.lower()


@pytest.mark.parametrize(("suffix", "start"), [(".svg", b"<?xml"), (".png", b"\x89PNG"), (".PDF", b"%PDF")])
def test_a_file_of_a_picture(suffix, start, tmp_path):
    layer = gn.NormalizationLayer("2;;All")
    path, other = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    layer.draw((3, 4, 4), path)
    with mpl.rc_context({"font.size": 30, "svg.hashsalt": "other", "axes.facecolor": "red"}):
        layer.draw(np.zeros((3, 4, 4)), str(other))
    assert path.read_bytes().startswith(start)
    assert path.read_bytes() == other.read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name, other.name]


def test_a_notebook_gets_a_picture_without_pyplot():
    script = "import gennorm as gn, sys; figure = gn.layer_norm(3).draw(); print(figure._repr_png_()[1:4], "
    script += "'matplotlib.pyplot' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    assert answer.stdout == "b'PNG' False\n"


# ----------------------------------------------------------------------------------------------------- before and after

COMPARED = [
    (("2;;All", "Complement", None), False, (3, 8, 9)),
    (("All", 1, {1: 2}), True, (5, 4, 6)),
    (("{0, 2}", 1, {0: 2, 2: 3}), True, (4, 3, 6)),
    ((-1, "Same", None, "RMS"), False, (9, 7)),
    (("0;;All", (), None), True, (3, 4)),
    ((-1, (), None), False, (70, 4)),
]


@pytest.mark.parametrize(("arguments", "batched", "shape"), COMPARED)
def test_numbers_of_slices(arguments, batched, shape):
    x = values(shape)
    y = x * 2 - 1
    found = compare(x, y, resolve_config(LayerConfig.make(*arguments, batched=batched), shape))
    where = reference.geometry(shape, *arguments[:3], batched)
    numbers = where.over_slices(np.arange(float(np.prod(where.kept))).reshape(where.kept))
    count = int(np.prod(where.kept))
    assert (len(found.slices), len(found.histograms)) == (min(count, 48), min(count, 6))
    assert found.slices[-1] == found.histograms[-1] == tuple(size - 1 for size in where.kept)
    for array, half in ((x, found.before), (y, found.after)):
        for at, index in enumerate(found.slices):
            own = array[numbers == np.ravel_multi_index(index, where.kept)].astype(float)
            np.testing.assert_allclose((half.means[at], half.deviations[at]), (own.mean(), own.std()), rtol=1e-9)
            if index in found.histograms:
                counts = half.counts[found.histograms.index(index)]
                np.testing.assert_array_equal(counts, np.histogram(own, half.edges)[0])
                assert counts.sum() == where.size


@pytest.mark.parametrize(
    ("shape", "batched", "pixels", "curves"),
    [
        ((3, 8, 9), False, (8, 9, 3), None),
        ((2, 1, 8, 9), True, (8, 9, 1), None),
        ((8, 9, 3), False, (8, 9, 3), None),
        ((8, 9), False, (8, 9, 1), None),
        ((4, 8, 9), False, None, None),
        ((3, 7, 9), False, None, None),
        ((9,), False, None, (1, 9)),
        ((2, 6, 9), True, None, (4, 9)),
        ((2, 9, 2), True, None, (2, 9)),
        ((2, 2, 2, 2), False, None, None),
    ],
)
def test_a_picture_or_a_sequence(shape, batched, pixels, curves):
    x = values(shape)
    half = compare(x, x, resolve_config(LayerConfig.make(1, (), batched=batched), shape)).before
    assert (None if half.pixels is None else half.pixels.shape) == pixels
    assert (None if half.curves is None else half.curves.shape) == curves
    example = x[0] if batched else x
    if curves is not None:
        lines = np.atleast_2d(example)
        np.testing.assert_array_equal(half.curves, (lines if lines.shape[1] == curves[1] else lines.T)[: curves[0]])


def test_pixels_keep_the_order_of_values():
    x = np.arange(900.0).reshape(30, 30)
    x[0, 0], x[29, 29] = -np.inf, np.nan
    half = compare(x, x, resolve_config(LayerConfig.make("All", ()), (30, 30))).before
    pixels = half.pixels[..., 0]
    assert (pixels[0, 0], pixels[29, 29], pixels[0, 1], pixels[29, 28]) == (0, 0, 0, 255)
    assert (np.diff(pixels.ravel()[1:-1].astype(int)) >= 0).all()
    assert 125 <= pixels[15, 0] <= 130
    assert half.counts.sum() == 898


def test_a_figure_shows_the_comparison():
    x = values((6, 3, 8, 8))
    layer = gn.instance_norm(3)
    figure = layer.show(x)
    found = compare(x, layer(x), resolve_config(LayerConfig.from_dict(layer.to_config()), x.shape))
    pictures, _, _, after, bars, _ = figure.axes
    np.testing.assert_array_equal(pictures.images[0].get_array(), found.before.pixels)
    stairs = [patch.get_data().values for patch in after.patches]
    np.testing.assert_array_equal(stairs, found.after.counts)
    np.testing.assert_array_equal(bars.lines[0].get_ydata(), found.before.means)
    assert [text.get_text() for text in after.get_legend().get_texts()] == [
        f"[{', '.join(map(str, index))}]" for index in found.histograms
    ]
    dark = layer.show(x, dark=True)
    assert to_hex(dark.get_facecolor()) == DARK.page.lower()


def test_showing_does_not_change_a_layer():
    layer = gn.batch_norm(3)
    before = layer.moments
    layer.show(values((4, 3, 5)))
    assert layer.moments is before
    feature = gn.feature_norm().adapt(values((9, 4)))
    assert len(feature.show(values(4)).axes) == 6


# ------------------------------------------------------------------------------------------------------ moments, plans


def test_numbers_of_moments():
    rng = np.random.default_rng(0)
    moments = gn.Moments(rng.integers(2, 9, (3, 4)), rng.normal(size=(3, 4)), rng.uniform(1, 2, (3, 4)))
    found = summarize(moments.count, moments.mean, moments.variance())
    for place_, index in enumerate(found.slices):
        assert found.means[place_] == moments.mean[index]
        assert found.deviations[place_] == np.sqrt(moments.m2[index] / moments.count[index])
        assert found.counts[place_] == moments.count[index]
    assert len(found.slices) == 12
    (axes,) = moments.show().axes
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), found.means)
    (rms,) = gn.Moments(4, None, [16.0, 36.0]).show(dark=True).axes
    assert rms.get_title(loc="left") == "root mean square of 2 slices, of 4 elements each"
    ends = rms.collections[0].get_segments()
    np.testing.assert_array_equal(ends, [[[0, -2], [0, 2]], [[1, -3], [1, 3]]])
    assert gn.Moments(1, 2.0, 0.0).show().axes[0].get_title(loc="left").endswith("1 slice, of 1 elements each")


@pytest.mark.parametrize(
    ("layer", "x", "whys"),
    [
        (gn.layer_norm(8), np.zeros((4, 8)), ["read the input", "write the output"]),
        (
            gn.instance_norm(1),
            np.broadcast_to(np.float32(0), (1, 1, 2048, 2048)),
            ["copy the input", "read for the moments", "read again for the output", "write the output"],
        ),
        (gn.layer_norm(8), np.zeros((4, 8)).T[::-2].T, ["copy the input", "read the input", "write the output"]),
        (gn.layer_norm(8), np.zeros((4, 8), np.uint8), ["read the input", "write the output"]),
        (gn.layer_norm(8), np.zeros((0, 8)), ["write the output"]),
    ],
)
def test_passes_of_a_plan(layer, x, whys):
    if x.shape[-1] == 4:
        layer = gn.layer_norm(4)
    plan = layer.plan(x)
    assert [one.why for one in plan.passes] == whys
    assert plan.reads == sum(one.why.startswith("read") for one in plan.passes)
    assert plan.traffic == tuple(map(sum, zip(*(one[1:] for one in plan.passes), strict=True)))
    written = x.size * np.dtype(plan.result).itemsize
    for one in plan.passes:
        assert one.read in {0, x.nbytes}
        assert one.written in {0, x.nbytes if one.why.startswith("copy") else written}
        assert (one.read > 0) == (x.size > 0 and not one.why.startswith("write"))
        assert (one.written > 0) == (x.size > 0 and not one.why.startswith("read"))


def test_a_figure_shows_the_plan():
    plan = gn.batch_norm(64).plan((32, 64, 56, 56))
    runs, passes, tasks = plan.draw(dark=True).axes
    assert [text.get_text().split("\n")[:2] for text in runs.texts] == [
        [f"{run.size:,}", "aggregated" if run.aggregated else "kept"] for run in plan.runs
    ]
    assert [label.get_text() for label in passes.get_yticklabels()] == [one.why for one in plan.passes]
    widths = [bar.get_width() for bar in passes.patches]
    assert widths == [size for one in plan.passes for size in one[1:]]
    assert len(tasks.patches) == min(plan.tasks, 64)
    assert tasks.get_title(loc="left").startswith(f"{plan.tasks} tasks")
    assert len(gn.layer_norm(8).plan((0, 8)).draw().axes) == 3
