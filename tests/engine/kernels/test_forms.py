"""Every form of loops, dtype and memory layout against the reference: compiled, and in plain Python."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

import gennorm as gn
from gennorm.engine import call as engine_call
from gennorm.engine.kernels import columns, vector
from gennorm.plan import planner as plan
from spec import reference
from tests import strategies
from tests.accuracy import V, assert_within, judge
from tests.engines import SMALL, cut_small, in_plain_python
from tests.strategies import DTYPES, LAYOUTS, RESULTS, WRITABLE, buffer_of, dtype_of, named_layouts, sample, slow

ROOT = Path(__file__).resolve().parents[3]


class Form(NamedTuple):
    """A pattern of runs: the family that its plan in C order has, and the settings of a layer for batches."""

    family: str
    shape: tuple[int, ...]
    aggregation_levels: object
    scaling_levels: object = "Complement"
    group_number: object = None

    @property
    def settings(self):
        levels = ("aggregation_levels", "scaling_levels", "group_number")
        return {**{name: getattr(self, name) for name in levels}, "batched": True}


FORMS = {
    "a row a slice": Form("rows", (5, 37), -1, "Same"),
    "a row a slice, one scaling a row": Form("rows", (3, 4, 70), -1, [1]),
    "a row an example": Form("rows", (4, 3, 35), "{0, 2}", 1),
    "rows in groups of channels": Form("rows", (3, 8, 5, 9), "All", 1, {1: 4}),
    "short rows in groups of channels": Form("rows", (3, 8, 2, 3), "All", 1, {1: 4}),
    "rows apart": Form("rows", (2, 3, 4, 2, 33), "{1, 3, 4}", [4, 2], {3: 2}),
    "columns": Form("columns", (9, 37), 0, 1),
    "columns with the channels last": Form("columns", (2, 5, 3, 21), "{1, 2}", 3),
    "columns of channels": Form("columns", (3, 7, 4, 6), 1, "Same"),
    "columns with parameters everywhere": Form("columns", (3, 7, 4, 6), 1, [2, 3, 1]),
    "columns apart": Form("columns", (4, 3, 5, 2, 20), "{0, 2}", [4, 2]),
    "columns with one scaling a tile": Form("columns", (3, 4, 5, 20), 2, [1]),
    "columns with a scaling for each line": Form("columns", (2, 3, 4, 5, 20), "{1, 3}", [3, 1]),
    "folded columns": Form("columns", (2, 3, 4, 24), "All", 3, {3: 3}),
    "folded columns, three tiles": Form("columns", (2, 5, 2100), "All", 2, {2: 150}),
    "folded columns with parameters everywhere": Form("columns", (2, 3, 4, 24), "All", [2, 1, 3], {-1: 12}),
    "six runs": Form("rows", (2, 3, 2, 3, 2, 35), "{1, 3, 5}", [5, 2, 1]),
    "one element": Form("rows", (1, 1), "All", "Same"),
}
SPLIT = [name for name in FORMS if name != "one element"]

forms = pytest.mark.parametrize("name", FORMS)
# A kernel takes a second or two to compile: the other dtypes have one of each family.
ONE_EACH = ("a row a slice", "columns", "columns with the channels last", "folded columns")
MAIN = ("float16", "float32", "float64")


def with_dtypes(names, every, others):
    """The forms with these dtypes, and a few of them with the others; most but float32 are slow."""
    pairs = [(name, dtype) for dtype in (*every, *others) for name in names if dtype in every or name in ONE_EACH]
    return pytest.mark.parametrize(("name", "dtype"), [pair if is_fast(*pair) else slow(*pair) for pair in pairs])


def is_fast(name, dtype):
    """Float32 always, one form of each family with the other main dtypes, and one form with all dtypes."""
    return dtype == "float32" or (dtype in MAIN and name in ONE_EACH) or name == ONE_EACH[0]


@pytest.fixture
def split(monkeypatch):
    cut_small(monkeypatch)


@pytest.fixture(params=["compiled", "plain"])
def engine(request, monkeypatch):
    if request.param == "plain":
        in_plain_python(monkeypatch)
    return request.param


def made(settings, shape, *, scaling=True, biases=True, dtype="float32", **others):
    """A layer with parameters that differ, or without them."""
    given = {"scaling": "Automatic" if scaling else None, "biases": "Automatic" if biases else None}
    layer = gn.NormalizationLayer(**settings, **given, **others, dtype=dtype).initialize(shape)
    for seed, name in enumerate(given):
        value = getattr(layer, name)
        if value is not None:
            value[...] = np.random.default_rng(seed).normal(1 - seed, 0.5, value.shape)
    return layer


def steps(array):
    """The strides that lead anywhere."""
    return {axis: stride for axis, stride in enumerate(array.strides) if min(array.shape) and array.shape[axis] > 1}


def check(layer, x, settings):
    """Call a layer: the output is right, has the layout that NumPy would give it, and the input is as it was."""
    before = buffer_of(x).tobytes()
    y = layer(x)
    assert buffer_of(x).tobytes() == before
    native = np.empty(0, x.dtype).astype(x.dtype.newbyteorder("="))
    assert type(y) is np.ndarray
    assert y.dtype == dtype_of(RESULTS[native.dtype.name])
    assert y.dtype.isnative
    assert steps(y) == steps(np.empty_like(x, y.dtype))
    assert not np.shares_memory(x, y)
    assert y.flags.writeable
    judge(y, x, settings, layer.scaling, layer.biases)
    again = layer(x)  # by what was remembered of the first call
    assert again.tobytes() == y.tobytes()
    assert again.strides == y.strides
    assert not np.shares_memory(again, y)
    assert buffer_of(x).tobytes() == before
    return y


# ----------------------------------------------------------------------------------------------------- forms and dtypes


@with_dtypes(FORMS, MAIN, [dtype for dtype in DTYPES if dtype not in MAIN])
def test_form(name, dtype, engine):
    form = FORMS[name]
    layer, x = made(form.settings, form.shape), sample(form.shape, dtype)
    assert layer.plan(x).family == form.family
    check(layer, x, form.settings)


def test_forms_have_the_plans_of_their_names():
    plans = {name: made(form.settings, form.shape).plan(form.shape) for name, form in FORMS.items()}
    folded = [name for name, of in plans.items() if of.family == "columns" and of.runs[-1].aggregated]
    assert folded == [name for name in FORMS if name.startswith("folded")]
    assert plans["folded columns, three tiles"].tasks == 2 * 3
    assert {of.parameter_kind for of in plans.values() if of.family == "rows"} == {1, 2}
    assert {of.parameter_kind for of in plans.values() if of.family == "columns"} == {1, 2, 3}
    assert len(plans["six runs"].runs) == 6


@with_dtypes(SPLIT, ["float32"], ["float16", "bfloat16", "float64", "int8", "int64"])
def test_split_form(name, dtype, engine, split):
    form = FORMS[name]
    layer, x = made(form.settings, form.shape), sample(form.shape, dtype)
    found = layer.plan(x)
    assert found.cut.units > 1
    assert found.reads == 2
    check(layer, x, form.settings)


def test_split_forms_are_cut(split):
    """Into pieces of rows and of lines, into units of one piece and of several, with a rest and without."""
    cuts = {name: made(FORMS[name].settings, FORMS[name].shape).plan(FORMS[name].shape).cut for name in SPLIT}
    assert all(cut.pieces > 1 for name, cut in cuts.items() if name != "columns apart"), cuts
    assert all(cut.units > 1 for cut in cuts.values()), cuts


@with_dtypes(FORMS, ["float16", "float32"], ["bfloat16", "bool", "int8", "uint8", "int16", "uint16"])
def test_compiled_and_plain_python_give_the_same_bits(name, dtype, monkeypatch):
    """Squares of up to 24 bits are exact in float64, so not even a fused multiplication makes a difference."""
    form = FORMS[name]
    x = sample(form.shape, dtype)
    compiled = made(form.settings, form.shape)(x)
    in_plain_python(monkeypatch)
    plain = made(form.settings, form.shape)(x)
    assert compiled.tobytes() == plain.tobytes()


@forms
@pytest.mark.parametrize(("scaling", "biases"), [(True, False), slow(False, True), slow(False, False)])
def test_absent_parameters(name, scaling, biases, engine):
    form = FORMS[name]
    layer = made(form.settings, form.shape, scaling=scaling, biases=biases)
    assert (layer.scaling is None, layer.biases is None) == (not scaling, not biases)
    check(layer, sample(form.shape), form.settings)


SETTINGS = [
    {"method": "RMS"},
    {"method": "RMS", "epsilon_placement": "floor", "epsilon": 1.5},
    {"method": "RMS", "epsilon_placement": "outside", "epsilon": 0.25},
    {"epsilon": 0.0},
    {"epsilon": 2.0},
    {"epsilon_placement": "floor", "epsilon": 1.25},
    {"epsilon_placement": "outside", "epsilon": 0.25},
    {"unbiased": True},
]


@pytest.mark.parametrize(
    ("name", "others"),
    # Unbiased over one element is an error.
    [(name, others) for name in FORMS for others in SETTINGS if name != "one element" or "unbiased" not in others],
    ids=str,
)
def test_settings(name, others, engine):
    form = FORMS[name]
    layer = made(form.settings, form.shape, **others)
    check(layer, sample(form.shape), {**form.settings, **others})


@forms
@pytest.mark.parametrize("dtype", ["float16", slow("bfloat16"), slow("float64")])
def test_parameters_of_other_dtypes(name, dtype):
    form = FORMS[name]
    layer = made(form.settings, form.shape, dtype=dtype)
    assert layer.scaling.dtype == dtype_of(dtype)
    check(layer, sample(form.shape, "float64"), form.settings)


# ---------------------------------------------------------------------------------------------------------- the layouts


@with_dtypes(FORMS, ["float32"], ["float16", "float64"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(name, layout, dtype):
    form = FORMS[name]
    x = named_layouts(len(form.shape))[layout].hold(sample(form.shape, dtype))
    check(made(form.settings, form.shape), x, form.settings)


@forms
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_in_plain_python(name, layout, monkeypatch):
    in_plain_python(monkeypatch)
    form = FORMS[name]
    x = named_layouts(len(form.shape))[layout].hold(sample(form.shape))
    check(made(form.settings, form.shape), x, form.settings)


@pytest.mark.parametrize("name", SPLIT)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_of_split_form(name, layout, split):
    form = FORMS[name]
    x = named_layouts(len(form.shape))[layout].hold(sample(form.shape))
    check(made(form.settings, form.shape), x, form.settings)


def test_layouts_have_the_strides_of_their_names():
    values = sample((3, 4, 5))
    found = {name: of.hold(values) for name, of in named_layouts(3).items()}
    assert found["C"].strides == (80, 20, 4)
    assert found["F"].strides == (4, 12, 48)
    assert found["channels last"].strides == (80, 4, 16)
    assert found["gapped innermost"].strides == (160, 40, 8)
    assert found["reversed outermost"].strides == (-80, 20, 4)
    assert found["repeated everywhere"].strides == (0, 0, 0)
    assert found["padded"].strides == (8 * 9 * 4, 36, 4)
    assert not found["unaligned"].flags.aligned
    assert not found["read-only"].flags.writeable
    assert found["big-endian"].dtype.str == ">f4"
    for name, x in found.items():
        if not name.startswith("repeated"):
            np.testing.assert_array_equal(x, values, err_msg=name)
        assert np.count_nonzero(np.frombuffer(buffer_of(x), np.uint8) == 0xA5) >= 128


# ----------------------------------------------------------------------------------------------------------------- out=


def offset_of(array):
    return array.__array_interface__["data"][0] - buffer_of(array).__array_interface__["data"][0]


def around(out):
    """The memory of an array with its elements as they were before anything was written there."""
    memory = buffer_of(out).copy()
    elements = np.ndarray(out.shape, out.dtype, memory, offset_of(out), out.strides)
    elements[...] = np.frombuffer(b"\xa5" * out.itemsize, out.dtype)
    return memory


@pytest.mark.parametrize(
    ("name", "layout", "source"),
    [(name, layout, "C") for name in FORMS for layout in WRITABLE]
    + [
        (name, layout, source)
        for name in ONE_EACH
        for layout in WRITABLE
        for source in ("F", "gapped innermost", "repeated innermost")
    ],
)
def test_out(name, layout, source):
    form, rank = FORMS[name], len(FORMS[name].shape)
    layer, x = made(form.settings, form.shape), named_layouts(rank)[source].hold(sample(form.shape))
    out = named_layouts(rank)[layout].empty(form.shape, np.float32)
    before = buffer_of(x).tobytes()
    answer = layer(x, out=out)
    assert answer is out
    judge(out, x, form.settings, layer.scaling, layer.biases)
    assert buffer_of(x).tobytes() == before
    # What lies between the elements and around them is as it was.
    assert set(around(out).tobytes()) == {0xA5}


@pytest.mark.parametrize("name", SPLIT)
@pytest.mark.parametrize("layout", WRITABLE)
def test_out_of_split_form(name, layout, split):
    form, rank = FORMS[name], len(FORMS[name].shape)
    layer, x = made(form.settings, form.shape), sample(form.shape)
    out = named_layouts(rank)[layout].empty(form.shape, np.float32)
    judge(layer(x, out=out), x, form.settings, layer.scaling, layer.biases)


@with_dtypes(FORMS, MAIN, ["bfloat16"])
@pytest.mark.parametrize("layout", WRITABLE)
def test_in_place(name, dtype, layout):
    form, rank = FORMS[name], len(FORMS[name].shape)
    layer, values = made(form.settings, form.shape), sample(form.shape, dtype)
    x = named_layouts(rank)[layout].hold(values)
    y = layer(x)
    assert layer(x, out=x) is x
    judge(x, values, form.settings, layer.scaling, layer.biases)
    if layout in {"C", "F", "channels last", "rotated", "unaligned"}:  # the same plan, hence the same bits
        assert x.tobytes() == y.tobytes()


@pytest.mark.parametrize("name", SPLIT)
def test_in_place_of_split_form(name, split):
    form = FORMS[name]
    layer, x = made(form.settings, form.shape), sample(form.shape)
    y = layer(x)
    assert layer(x, out=x) is x
    assert x.tobytes() == y.tobytes()


@pytest.mark.parametrize("dtype", ["int8", "bool", "int64"])
def test_out_of_integers(dtype):
    form = FORMS["columns"]
    layer, x = made(form.settings, form.shape), sample(form.shape, dtype)
    out = np.empty(form.shape, RESULTS[dtype], order="F")
    assert layer(x, out=out) is out
    judge(out, x, form.settings, layer.scaling, layer.biases)


# ---------------------------------------------------------------------------------------------------- measure and apply


def check_moments(layer, x, settings):
    """The moments of a layer are those of the reference; applying them gives what a call gives, bit for bit."""
    before = buffer_of(x).tobytes()
    moments = layer.measure(x)
    method = settings.get("method", "Standardize")
    levels = {key: settings[key] for key in ("aggregation_levels", "group_number", "batched")}
    count, mean, m2 = reference.moments(x.astype(np.float64), **levels, method=method)
    np.testing.assert_array_equal(moments.count, count, strict=True)
    assert moments.m2.dtype == np.float64
    assert moments.m2.shape == m2.shape
    # As in `accuracy`: one pass loses a factor of 1024 at the most.
    m = 1024 * (float(np.max(count, initial=0.0)) + 8) * V
    halves = x.dtype.itemsize == 2 and x.dtype.kind not in "iu"  # whose sums may be of float32
    of_m2, of_mean = (752 * 2.0**-24, 64 * 2.0**-24) if halves else (m, m)
    np.testing.assert_allclose(moments.m2, m2, rtol=of_m2, atol=0)
    assert (moments.mean is None) == (mean is None)
    if mean is not None:
        assert np.all(np.abs(moments.mean - mean) <= of_mean * np.sqrt(m2 / count) + 4 * V * np.abs(mean))
    assert layer.apply(x, moments).tobytes() == layer(x).tobytes()
    out = np.empty(x.shape, layer(x).dtype, order="F")
    assert layer.apply(x, moments, out=out) is out
    judge(out, x, settings, layer.scaling, layer.biases)
    assert buffer_of(x).tobytes() == before


@with_dtypes(FORMS, ["float32"], ["float16", "float64"])
def test_moments(name, dtype, engine):
    form = FORMS[name]
    check_moments(made(form.settings, form.shape), sample(form.shape, dtype), form.settings)


@pytest.mark.parametrize("name", SPLIT)
def test_moments_of_split_form(name, split, engine):
    form = FORMS[name]
    check_moments(made(form.settings, form.shape), sample(form.shape), form.settings)


@forms
def test_moments_of_rms(name):
    form = FORMS[name]
    settings = {**form.settings, "method": "RMS"}
    check_moments(made(settings, form.shape), sample(form.shape), settings)


@forms
@pytest.mark.parametrize("layout", LAYOUTS)
def test_moments_of_layout(name, layout):
    form = FORMS[name]
    x = named_layouts(len(form.shape))[layout].hold(sample(form.shape))
    check_moments(made(form.settings, form.shape), x, form.settings)


@forms
def test_apply_moments_of_another_array(name, engine):
    form = FORMS[name]
    layer, x, other = made(form.settings, form.shape), sample(form.shape), sample(form.shape, seed=1)
    y = layer.apply(x, layer.measure(other))
    levels = {key: form.settings[key] for key in ("aggregation_levels", "group_number", "batched")}
    count, mean, m2 = reference.moments(other.astype(np.float64), **levels)
    given = {"mean": mean, "variance": m2 / count, "scaling": layer.scaling, "biases": layer.biases}
    exact = reference.normalize(x.astype(np.float64), **form.settings, **given)
    # Far from the mean of the other array the magnitudes are those of the largest output.
    assert_within(y, exact, np.full(x.shape, 2.0**-19 * np.abs(exact).max()))


# -------------------------------------------------------------------------------------------------------- any of it all


# An example takes milliseconds.
many = settings(max_examples=6 * settings.default.max_examples)


@many
@given(strategies.cases(), st.data())
def test_any_layer_on_any_layout(case, data):
    layout = data.draw(strategies.layouts(len(case.shape)))
    x = layout.hold(sample(case.shape))
    layer = made(case.settings, case.shape)
    found = layer.plan(x)
    event(f"{found.family}, {found.copies} copied")
    check(layer, x, case.settings)
    if x.size and x.dtype.isnative:
        assert str(found) == str(layer._state.calls.find(x, False).plan)
    out = data.draw(strategies.layouts(len(case.shape), writable=True)).empty(case.shape, np.float32)
    judge(layer(x, out=out), x, case.settings, layer.scaling, layer.biases)


@many
@given(strategies.cases(), st.data())
def test_any_split_layer_on_any_layout(case, data):
    with pytest.MonkeyPatch.context() as patch:
        larger = {name: data.draw(st.sampled_from((value, 8 * value)), name) for name, value in SMALL.items()}
        cut_small(patch, **larger)
        patch.setattr(engine_call, "NEAR", data.draw(st.sampled_from((1, 300, 3000))))
        layout = data.draw(strategies.layouts(len(case.shape)))
        x = layout.hold(sample(case.shape))
        layer = made(case.settings, case.shape)
        event(f"{layer.plan(x).reads} reads")
        check(layer, x, case.settings)


@many
@given(strategies.cases(elements=500), st.sampled_from(DTYPES), st.data())
def test_any_layer_on_any_dtype_in_plain_python(case, dtype, data):
    with pytest.MonkeyPatch.context() as patch:
        in_plain_python(patch)
        layout = data.draw(strategies.layouts(len(case.shape)))
        absent = {"scaling": data.draw(st.booleans()), "biases": data.draw(st.booleans())}
        layer = made(case.settings, case.shape, **absent)
        check(layer, layout.hold(sample(case.shape, dtype)), case.settings)


@pytest.mark.slow
def test_without_numba():
    """The same tests in a process in which Numba is switched off."""
    chosen = "test_form and plain and (float32 or bfloat16 or int64) or test_in_place and C-float16 or test_absent"
    answer = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-m", "", "-k", chosen],
        cwd=ROOT,
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert answer.returncode == 0, answer.stdout[-3000:]


def test_the_judge_sees_an_error():
    """Seen red: 16 rounding errors of float32, one unit in the last place of float16, a wrong bias."""
    form = FORMS["a row a slice"]
    plain = made(form.settings, form.shape, scaling=False, biases=False)
    for dtype, spoil in (("float32", lambda y: y * np.float32(1 + 2.0**-20)), ("float16", np.spacing)):
        x = sample(form.shape, dtype)
        y = plain(x)
        judge(y, x, form.settings)
        spoilt = spoil(y) if dtype == "float32" else y + spoil(y)
        with pytest.raises(AssertionError, match=r"^1[5-8]\d of 185 are off; at "):
            judge(spoilt, x, form.settings)
    layer = made(form.settings, form.shape)
    y = layer(x)
    layer.biases[3] += 0.125
    with pytest.raises(AssertionError, match=r"^5 of 185 are off; at \(\d, 3\)"):
        judge(y, x, form.settings, layer.scaling, layer.biases)


def test_plans_and_kernels_agree():
    """Kernels do not read the plan's module: what names a compiled one is a digest of their own sources."""
    assert (plan.LANES, plan.TOGETHER) == (vector.LANES, columns.TOGETHER)


# -------------------------------------------------------------------------------------------------- past the caches

WHOLE = {
    "lines of whole vectors": Form("columns", (19, 80), 0, 1),
    "whole vectors of channels": Form("columns", (3, 11, 4, 8), 1, 1),
    "whole vectors, folded": Form("columns", (2, 3, 4, 64), "All", 3, {3: 16}),
}


COLUMNS = {name: form for name, form in FORMS.items() if form.family == "columns"}


# Each compiles four kernels.
STREAMS = [
    *((name, "float32") for name in WHOLE),
    *(slow(name, "float32") for name in COLUMNS if name in ONE_EACH or "everywhere" in name or "each line" in name),
    slow("lines of whole vectors", "float64"),
    slow("whole vectors of channels", "float16"),
    slow("whole vectors, folded", "float16"),
]


@pytest.mark.parametrize(("name", "dtype"), STREAMS)
def test_streamed_columns_have_the_bits_of_others(name, dtype, monkeypatch):
    """Wherever they begin, and whatever lies between their lines."""
    form = {**COLUMNS, **WHOLE}[name]
    x, dy = sample(form.shape, dtype), sample(form.shape, dtype, seed=1)
    found = []
    for streamed in ({}, {"forward": 0, "kept": 0, "backward": 0}):
        monkeypatch.setattr(engine_call, "STREAMED", {**engine_call.STREAMED, **streamed})
        layer = made(form.settings, form.shape)
        y, pullback = layer.vjp(x)
        gradients = pullback(dy)
        found.append([y.tobytes(), gradients.input.tobytes(), gradients.scaling.tobytes()])
        for layout in ("C", "padded", "unaligned"):
            out = named_layouts(x.ndim)[layout].empty(form.shape, dtype_of(dtype))
            found[-1].append(layer(x, out=out).tobytes())
            assert set(around(out).tobytes()) == {0xA5}
    assert found[0] == found[1]
