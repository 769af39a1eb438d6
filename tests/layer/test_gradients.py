"""Derivatives: of every form, setting, mask, parameter, dtype and layout; and what a pullback is."""

import gc
import math
import threading
import tracemalloc
import weakref

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

import gennorm as gn
from gennorm import extend
from gennorm.engine import call as engine_call
from spec import reference
from tests import accuracy, strategies
from tests.derivatives import bounds, judge, judge_tangent
from tests.engine.kernels.test_forms import FORMS, ONE_EACH, SPLIT, made, steps
from tests.engines import cut_small, in_pieces, in_plain_python
from tests.frameworks import functional, torch
from tests.strategies import LAYOUTS, RESULTS, buffer_of, dtype_of, named_layouts, sample, slow, some

forms = pytest.mark.parametrize("name", FORMS)
split_forms = pytest.mark.parametrize("name", SPLIT)
SMALL = [name for name in FORMS if "three tiles" not in name]


def direction(shape, dtype="float64", seed=11):
    """A gradient of an output, or a direction of an input."""
    return np.random.default_rng(seed).normal(0.25, 1, shape).astype(dtype_of(dtype))


def check(layer, x, settings, mask=None, dy=None, **call):
    """Both derivatives are right and lie as a new output would; nothing that was given has been written into."""
    result = dtype_of(RESULTS[x.dtype.newbyteorder("=").name])
    dy = direction(x.shape, result) if dy is None else dy
    given = {name: call.get(name, getattr(layer, name)) for name in ("scaling", "biases")}
    before = [buffer_of(array).tobytes() for array in (x, dy)]
    y, pullback = layer.vjp(x, mask=mask, **call)
    found = pullback(dy)
    same, shorter = layer.vjp(x, mask=mask, **call)  # a second call may take a shorter way
    computation = extend.Computation.of(layer)
    third, kept = computation.forward(x, given["scaling"], given["biases"], mask=mask)
    later = computation.backward(x, dy, kept, given["scaling"], given["biases"], mask=mask)
    for pulled in (shorter(dy), later):
        for name in ("input", "scaling", "biases"):
            one, other = getattr(pulled, name), getattr(found, name)
            assert one is other is None or (one.tobytes(), one.dtype) == (other.tobytes(), other.dtype)
    assert same.tobytes() == y.tobytes()
    assert third.tobytes() == y.tobytes()
    assert shorter.moments == pullback.moments
    again, along = layer.jvp(x, dy, mask=mask, **call)
    assert [buffer_of(array).tobytes() for array in (x, dy)] == before
    plain = layer(x, mask=mask, **call)
    assert y.tobytes() == again.tobytes() == plain.tobytes()
    for array in (found.input, along):
        assert type(array) is np.ndarray
        assert array.dtype == result
        assert steps(array) == steps(np.empty_like(x, result))
        assert array.flags.writeable
        assert not np.shares_memory(array, x)
        assert not np.shares_memory(array, dy)
    for name, value in given.items():
        gradient = getattr(found, name)
        assert (gradient is None) == (value is None)
        if value is not None:
            assert gradient.shape == np.shape(value)
            assert gradient.dtype == np.asarray(value).dtype
    judge(found, x, dy, settings, **given, mask=mask)
    judge_tangent(along, x, dy, settings, given["scaling"], mask)
    return found, along


@pytest.fixture
def split(monkeypatch):
    cut_small(monkeypatch)


# ----------------------------------------------------------------------------------------------------- forms and dtypes


@pytest.mark.parametrize("dtype", ["float32", slow("float64")])
@forms
def test_form(name, dtype):
    form = FORMS[name]
    check(made(form.settings, form.shape), sample(form.shape, dtype), form.settings)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, "float16") for name in ONE_EACH[:2]]
    + [slow(name, "float16") for name in ONE_EACH[2:]]
    + [slow(name, "bfloat16") for name in ONE_EACH]
    + [slow(name, dtype) for name in ONE_EACH[:2] for dtype in ("int8", "int64")],
)
def test_dtype(name, dtype):
    form = FORMS[name]
    check(made(form.settings, form.shape), sample(form.shape, dtype), form.settings)


@split_forms
def test_split_form(name, split):
    form = FORMS[name]
    layer, x = made(form.settings, form.shape), sample(form.shape)
    assert layer.plan(x).cut.units > 1
    check(layer, x, form.settings)


@pytest.mark.parametrize("name", [*ONE_EACH[:2], *(slow(name) for name in SPLIT if name not in ONE_EACH[:2])])
def test_masked_split_form(name, split):
    form = FORMS[name]
    check(made(form.settings, form.shape), sample(form.shape), form.settings, mask=some(form.shape))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_in_plain_python(name, cut, masked, monkeypatch):
    in_plain_python(monkeypatch)
    form = FORMS[name]
    if cut and name in SPLIT:
        cut_small(monkeypatch)
    mask = some(form.shape) if masked else None
    check(made(form.settings, form.shape), sample(form.shape), form.settings, mask=mask)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("engine", ["compiled", "plain"])
def test_a_gradient_that_overflows_is_infinite(engine, monkeypatch):
    """The slice is constant: what its gradient is divided by is epsilon alone."""
    if engine == "plain":
        in_plain_python(monkeypatch)
    layer = gn.NormalizationLayer(1, scaling=None, biases=None, epsilon=1e-10)
    _, pullback = layer.vjp(np.full(4, 2, np.float16))
    dx = pullback(np.array([1e4, 0, 0, 0], np.float16)).input
    assert dx.tolist() == [math.inf, -math.inf, -math.inf, -math.inf]


# More slices than terms that are added up before they join the rest.
PIECEWISE = {
    "a row a slice": ((41, 83), {"aggregation_levels": -1}),
    "rows apart": ((7, 3, 5, 37), {"aggregation_levels": "{1, 3}", "batched": True}),
    "slices of several units": ((3, 2, 450), {"aggregation_levels": [2, 3]}),
}


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("dtype", ["float32", slow("float64"), slow("bfloat16")])
@pytest.mark.parametrize("name", PIECEWISE)
def test_piece_by_piece(name, dtype, plain, monkeypatch):
    shape, every = PIECEWISE[name]
    every = {**every, "scaling_levels": "Same"}
    if name == "slices of several units":
        cut_small(monkeypatch, CUT=700, UNIT=300)
    if plain:
        in_plain_python(monkeypatch)
    whole = made(every, shape)(sample(shape, dtype))
    in_pieces(monkeypatch)
    layer, x = differing(made(every, shape)), sample(shape, dtype)
    assert layer.plan(x).pieces.units > 1
    assert layer.plan(x).reads == 2
    accuracy.judge(layer(x), x, every, layer.scaling, layer.biases)
    check(layer, x, every)
    check(layer, x, every, mask=some(shape))
    assert made(every, shape)(x).tobytes() == whole.tobytes()


# No more terms of a parameter than are added up before they join others.
FEW = {
    "a row a slice": ((7, 83), {"aggregation_levels": -1}),
    "rows apart": ((5, 3, 5, 37), {"aggregation_levels": "{1, 3}", "batched": True}),
    "slices of several units": ((3, 2, 450), {"aggregation_levels": [2, 3]}),
    "parameters spread over a row": ((6, 3, 20), {"aggregation_levels": [1, 2], "batched": True}),
}


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("dtype", ["float32", slow("float64"), slow("bfloat16")])
@pytest.mark.parametrize("name", FEW)
def test_few_terms_are_summed_in_float32_only(name, dtype, plain, pieces, monkeypatch):
    shape, every = FEW[name]
    levels = 2 if name == "parameters spread over a row" else "Same"
    every = {**every, "scaling_levels": levels}
    if name == "slices of several units":
        cut_small(monkeypatch, CUT=700, UNIT=300)
    if plain:
        in_plain_python(monkeypatch)
    if pieces:
        in_pieces(monkeypatch)
    x, dy = sample(shape, dtype), direction(shape, dtype)
    found = []
    for least in (1, 1 << 30):
        monkeypatch.setattr(engine_call, "FEW", least)
        layer = differing(made(every, shape))
        gradients = layer.vjp(x)[1](dy)
        found.append([getattr(gradients, key).tobytes() for key in ("input", "scaling", "biases")])
        assert {sweep.own for sweep in layer._state.calls.find(x, False)._sweeps.values()} == {int(least > 1)}
        if least == 1:
            check(layer, x, every)
            check(layer, x, every, mask=some(shape))
    assert found[0] == found[1]


@pytest.mark.parametrize(("scaling", "biases"), [(True, False), (False, True), (False, False)])
def test_piece_by_piece_with_absent_parameters(scaling, biases, monkeypatch):
    in_pieces(monkeypatch)
    shape, every = PIECEWISE["rows apart"]
    every = {**every, "scaling_levels": "Same", "method": "RMS"}
    check(made(every, shape, scaling=scaling, biases=biases), sample(shape), every)


@pytest.mark.parametrize(
    "every",
    [
        {"aggregation_levels": -1, "scaling_levels": [1, 2]},  # each slice has parameters of its own
        {"aggregation_levels": [1, 2], "scaling_levels": 2},  # rows of a slice share them
        {"aggregation_levels": -1, "scaling_levels": ()},
        {"aggregation_levels": 1, "scaling_levels": "Same"},
    ],
)
def test_layers_that_are_not_processed_piece_by_piece(every, monkeypatch):
    in_pieces(monkeypatch)
    shape = (3, 5, 40)
    layer = differing(made({**every, "batched": True}, shape))
    assert layer.plan(shape).pieces is None
    check(layer, sample(shape), {**every, "batched": True})


@forms
@pytest.mark.parametrize(("scaling", "biases"), [(True, False), slow(False, True), slow(False, False)])
def test_absent_parameters(name, scaling, biases):
    form = FORMS[name]
    check(made(form.settings, form.shape, scaling=scaling, biases=biases), sample(form.shape), form.settings)


@pytest.mark.parametrize("dtype", ["float16", slow("bfloat16"), slow("float64")])
@pytest.mark.parametrize("name", ONE_EACH)
def test_parameters_of_other_dtypes(name, dtype):
    """The gradient of a parameter has the parameter's dtype, whatever that of the array."""
    form = FORMS[name]
    check(made(form.settings, form.shape, dtype=dtype), sample(form.shape), form.settings)


def test_a_gradient_of_another_dtype_is_taken_in_that_of_the_output():
    form = FORMS["a row a slice"]
    layer, x = made(form.settings, form.shape), sample(form.shape)
    dy = np.round(direction(form.shape) * 8).astype(np.int32)
    _, pullback = layer.vjp(x)
    for other in (dy.astype(np.float64), dy.astype(">f4"), dy, dy.astype(np.int8)):
        assert pullback(other).input.tobytes() == pullback(dy.astype(np.float32)).input.tobytes()


@pytest.mark.parametrize("mean", [1e6, -3e4])
@pytest.mark.parametrize("name", ONE_EACH)
def test_a_mean_far_from_zero(name, mean):
    """The mean is rounded to the arithmetic, and what that lost is put back."""
    form = FORMS[name]
    x = (sample(form.shape, "float64") + mean).astype(np.float32)
    check(made(form.settings, form.shape), x, form.settings)


# ---------------------------------------------------------------------------------------------------------- the layouts


@forms
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(name, layout):
    form = FORMS[name]
    x = named_layouts(len(form.shape))[layout].hold(sample(form.shape))
    check(made(form.settings, form.shape), x, form.settings)


@split_forms
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_of_split_form(name, layout, split):
    form = FORMS[name]
    x = named_layouts(len(form.shape))[layout].hold(sample(form.shape))
    check(made(form.settings, form.shape), x, form.settings)


@pytest.mark.parametrize("name", ONE_EACH)
@pytest.mark.parametrize(
    ("of_x", "of_dy"),
    [(of_x, of_dy) for of_x in ("C", "channels last") for of_dy in LAYOUTS]
    + [(of_x, of_dy) for of_x in ("gapped innermost", "F") for of_dy in ("C", "F", "repeated innermost", "unaligned")],
)
def test_layout_of_the_gradient(name, of_x, of_dy):
    """The gradient has any layout, and the mask too."""
    form, rank = FORMS[name], len(FORMS[name].shape)
    x = named_layouts(rank)[of_x].hold(sample(form.shape))
    dy = named_layouts(rank)[of_dy].hold(direction(form.shape, "float32"))
    mask = named_layouts(rank)[of_dy].hold(some(form.shape))
    check(made(form.settings, form.shape), x, form.settings, dy=dy)
    check(made(form.settings, form.shape), x, form.settings, mask=mask, dy=dy)


# --------------------------------------------------------------------------------------------------------- the settings

SETTINGS = [
    {"method": method, "epsilon_placement": placement, "epsilon": epsilon}
    for method in ("Standardize", "RMS")
    for placement, epsilon in [
        ("inside", 0.0),
        ("inside", 2.0),
        ("floor", 0.0),
        ("floor", 1.4),
        ("outside", 0.0),
        ("outside", 0.5),
    ]
]
SETTINGS += [{**one, "unbiased": True} for one in SETTINGS if one["method"] == "Standardize"]


@pytest.mark.parametrize(
    ("name", "others"),
    # What a setting changes is the factors of a slice, which all forms share.
    [(ONE_EACH[0], others) for others in SETTINGS]
    + [slow(name, others) for name in (*ONE_EACH[1:], "rows in groups of channels") for others in SETTINGS],
    ids=str,
)
def test_settings(name, others):
    form = FORMS[name]
    every = {**form.settings, **others}
    layer = made(form.settings, form.shape, **others)
    check(layer, sample(form.shape, "float64"), every)
    check(layer, sample(form.shape, "float64"), every, mask=some(form.shape))


@given(strategies.cases(elements=600), st.booleans(), st.integers(0, 999))
def test_any_case_in_plain_python(case, masked, seed):
    """Any levels, groups and settings; any mask that broadcasts."""
    with pytest.MonkeyPatch.context() as patch:
        in_plain_python(patch)
        any_case(case, masked, seed)


@pytest.mark.slow  # it compiles nearly all kernels of float64
@settings(max_examples=4 * settings.default.max_examples)
@given(strategies.cases(elements=600), st.booleans(), st.integers(0, 999))
def test_any_case(case, masked, seed):
    any_case(case, masked, seed)


def any_case(case, masked, seed):
    layer = gn.NormalizationLayer(**case.settings).initialize(case.shape)
    for name in ("scaling", "biases"):
        value = getattr(layer, name)
        value[...] = np.random.default_rng(seed).normal(1, 0.5, value.shape)
    x = sample(case.shape, "float64", seed)
    mask = None
    if masked:
        rng = np.random.default_rng(seed)
        mask = rng.random([size if rng.random() < 0.6 else 1 for size in case.shape]) < 0.7
    event(f"{layer.plan(x).family}, {'masked' if masked else 'not masked'}")
    dy = direction(case.shape, "float64", seed)
    found, along = check(layer, x, case.settings, mask=mask, dy=dy)
    t = direction(case.shape, "float64", seed + 1)
    along = layer.jvp(x, t, mask=mask)[1]
    room = np.abs(dy) * bounds(x, t, case.settings, layer.scaling, mask=mask)["tangent"]
    room = room + np.abs(t) * bounds(x, dy, case.settings, layer.scaling, mask=mask)["input"]
    assert abs((dy * along).sum() - (found.input * t).sum()) <= room.sum() + 1e-300


@pytest.mark.parametrize(
    ("name", "engine"), [*((name, "plain") for name in SMALL), *(slow(name, "compiled") for name in ONE_EACH)]
)
@pytest.mark.parametrize("masked", [False, True])
def test_the_two_derivatives_are_adjoint(name, engine, masked, monkeypatch):
    """<dy, J t> = <J^T dy, t>, in float64 to a few rounding errors; parts of it with directions of one element."""
    if engine == "plain":
        in_plain_python(monkeypatch)
    form = FORMS[name]
    layer, x = made(form.settings, form.shape, dtype="float64"), sample(form.shape, "float64")
    mask = some(form.shape) if masked else None
    _, pullback = layer.vjp(x, mask=mask)
    rng = np.random.default_rng(2)
    for seed in range(4):
        dy, t = direction(form.shape, seed=seed), direction(form.shape, seed=seed + 50)
        if seed > 1:
            t = np.zeros(form.shape)
            t.flat[rng.integers(t.size)] = 1
        along, back = layer.jvp(x, t, mask=mask)[1], pullback(dy).input
        size = np.abs(dy * along).sum() + np.abs(back * t).sum()
        assert abs((dy * along).sum() - (back * t).sum()) <= 1e-13 * max(size, 1)


@pytest.mark.parametrize("masked", ["", "masked", "one element counts", "nothing counts"])
@pytest.mark.parametrize("others", SETTINGS, ids=str)
def test_differences(others, masked):
    """What no framework has: every method and placement with masks and groups, against differences of outputs."""
    shape = (3, 4, 6)
    every = {"aggregation_levels": "All", "scaling_levels": 1, "group_number": {1: 2}, "batched": True, **others}
    layer = made(every, shape, dtype="float64")
    x, dy, t = sample(shape, "float64", 5), direction(shape, seed=1), direction(shape, seed=2)
    mask = {"masked": some(shape), "nothing counts": some(shape), "one element counts": some(shape)}.get(masked)
    if masked == "nothing counts":
        mask[0, :2] = False
    elif masked == "one element counts":
        mask[0, :2] = False
        mask[0, 1, 2] = True
    if mask is not None and mask[0, :2].sum() < 2:
        # A lone element has the deviation 0, where the root has a corner: that slice stays where it is, and has no
        # derivative of its own by the policy for degenerate slices.
        t[0, :2] = 0
    _, pullback = layer.vjp(x, mask=mask)
    gradients = pullback(dy)
    step = 1e-5
    difference = (layer(x + step * t, mask=mask) - layer(x - step * t, mask=mask)) / (2 * step)
    along = layer.jvp(x, t, mask=mask)[1]
    np.testing.assert_allclose(along, difference, rtol=0, atol=3e-8 * max(1, np.abs(difference).max()))
    np.testing.assert_allclose((gradients.input * t).sum(), (dy * difference).sum(), rtol=1e-7, atol=1e-7)
    for name in ("scaling", "biases"):
        value = getattr(layer, name)
        away = direction(value.shape, seed=4)
        ends = [layer(x, mask=mask, **{name: value + side * away}) for side in (-1, 1)]  # linear: any step
        expected = (dy * (ends[1] - ends[0])).sum() / 2
        np.testing.assert_allclose((getattr(gradients, name) * away).sum(), expected, rtol=1e-11, atol=1e-11)


# ------------------------------------------------------------------------------------------------------------ the masks


@pytest.mark.parametrize("dtype", ["float32", slow("float64")])
@forms
def test_masked_form(name, dtype):
    form = FORMS[name]
    check(made(form.settings, form.shape), sample(form.shape, dtype), form.settings, mask=some(form.shape))


@forms
def test_masks_that_broadcast(name):
    form = FORMS[name]
    layer, x = made(form.settings, form.shape), sample(form.shape)
    for axis in range(len(form.shape)):
        one = [1] * len(form.shape)
        one[axis] = form.shape[axis]
        check(layer, x, form.settings, mask=some(one, axis))
    if form.shape[0] != form.shape[-1]:  # else a mask of one axis could be meant for either, and is refused
        check(layer, x, form.settings, mask=some(form.shape[-1:]))
    check(layer, x, form.settings, mask=np.array(True))


@forms
def test_a_mask_of_everything_and_of_nothing(name):
    form = FORMS[name]
    layer, x, dy = made(form.settings, form.shape), sample(form.shape), direction(form.shape, "float32")
    full, _ = check(layer, x, form.settings, mask=np.ones(form.shape, bool), dy=dy)
    plain, _ = check(layer, x, form.settings, dy=dy)
    np.testing.assert_allclose(full.input, plain.input, rtol=1e-4, atol=1e-5 * np.abs(plain.input).max())
    # Nothing counts: mean 0, variance 0, and the output is the input over the root of epsilon.
    empty, along = check(layer, x, form.settings, mask=np.zeros(form.shape, bool), dy=dy)
    assert not np.isnan(empty.input).any()
    gain = layer(np.ones(form.shape, np.float32), mask=np.zeros(form.shape, bool), biases=0 * layer.biases)
    np.testing.assert_allclose(empty.input, gain * dy, rtol=1e-5)
    np.testing.assert_allclose(along, gain * dy, rtol=1e-5)


# ---------------------------------------------------------------------------------------------- parameters for one call

CONDITIONAL = {
    "AdaIN": ((4, 5, 6, 7), {"aggregation_levels": "2;;All", "scaling_levels": 1}),
    "AdaIN, channels last": ((4, 6, 7, 21), {"aggregation_levels": "1;;-2", "scaling_levels": -1}),
    "conditional batch norm (FiLM)": ((4, 5, 6, 7), {"aggregation_levels": "{0, 2;;All}", "scaling_levels": 1}),
    "adaptive layer norm": ((4, 9, 37), {"aggregation_levels": -1, "scaling_levels": "Same"}),
    "adaptive group norm": ((4, 6, 5, 7), {"aggregation_levels": "All", "scaling_levels": 1, "group_number": {1: 3}}),
    "one number an example": ((4, 5, 6), {"aggregation_levels": "All", "scaling_levels": ()}),
    "parameters everywhere, in another order": ((4, 5, 6, 3), {"aggregation_levels": 2, "scaling_levels": [3, 1, 2]}),
}


@pytest.mark.parametrize(
    ("name", "which", "dtype"),
    [(name, which, "float32") for name in CONDITIONAL for which in ("both", "scaling", "biases", "neither")]
    + [slow(name, "both", "float64") for name in ("AdaIN", "AdaIN, channels last", "adaptive layer norm")],
)
def test_parameters_for_one_call(name, which, dtype):
    """Parameters of the layer's shape or one set for each example; the layer's own, where one is not given."""
    shape, every = CONDITIONAL[name]
    every = {**every, "batched": True}
    layer, x = made(every, shape), sample(shape, dtype)
    own = layer.scaling.copy(), layer.biases.copy()
    one = layer.scaling.shape
    for scaling_shape, biases_shape in [
        ((4, *one), (4, *one)) if which == "both" else
        ((4, *one), one) if which == "scaling" else
        (one, (4, *one)) if which == "biases" else
        (one, one)
    ]:  # fmt: skip
        call = {"scaling": direction(scaling_shape, seed=1), "biases": direction(biases_shape, "float32", seed=2)}
        check(layer, x, every, **call)
        check(layer, x, every, mask=some(shape), **call)
        check(layer, x, every, scaling=call["scaling"])
        check(layer, x, every, biases=call["biases"])
        # And where the layer has none.
        bare = made(every, shape, scaling=False, biases=False)
        check(bare, x, every, **call)
        check(bare, x, every, biases=call["biases"])
    assert (layer.scaling == own[0]).all()
    assert (layer.biases == own[1]).all()


def test_parameters_of_integers_have_gradients_of_floats():
    layer, x = gn.layer_norm(4), sample((3, 4), "float64")
    found = layer.vjp(x, scaling=[1, 2, 3, 4])[1](np.ones((3, 4)))
    assert found.scaling.dtype == np.float64
    assert found.biases.dtype == np.float32


# -------------------------------------------------------------------------------------------------------------- PyTorch


def agree(found, other):
    """To 1e-10 of the largest."""
    other = other.detach().numpy()
    assert found.shape == other.shape
    np.testing.assert_allclose(found, other, rtol=0, atol=1e-10 * max(1.0, np.abs(other).max()))


def tensors(layer):
    """The parameters as leaves."""
    return [
        None if p is None else torch.from_numpy(p.astype(np.float64)).requires_grad_()
        for p in (layer.scaling, layer.biases)
    ]


def against_torch(layer, function, shape, mask=None, **call):
    """Derivatives in both modes against autograd, of a function of tensors of input, scaling and biases."""
    x, dy, t = sample(shape, "float64"), direction(shape), direction(shape, seed=12)
    parameters = tensors(layer)
    for i, name in enumerate(("scaling", "biases")):
        if name in call:
            parameters[i] = torch.from_numpy(call[name].copy()).requires_grad_()
    leaf = torch.from_numpy(x.copy()).requires_grad_()
    other = function(leaf, *parameters)
    other.backward(torch.from_numpy(dy))
    y, pullback = layer.vjp(x, mask=mask, **call)
    agree(y, other)
    found = pullback(dy)
    agree(found.input, leaf.grad)
    for gradient, parameter in zip((found.scaling, found.biases), parameters, strict=True):
        assert (gradient is None) == (parameter is None)
        if gradient is not None:
            agree(gradient, parameter.grad)
    fixed = [None if p is None else p.detach() for p in parameters]
    _, tangent = torch.autograd.functional.jvp(lambda v: function(v, *fixed), torch.from_numpy(x), torch.from_numpy(t))
    agree(layer.jvp(x, t, mask=mask, **call)[1], tangent)


TORCH = {
    "layer norm": (
        gn.layer_norm((5, 6), dtype="float64"),
        (4, 3, 5, 6),
        lambda x, w, b: functional.layer_norm(x, (5, 6), w, b, 1e-3),
    ),
    "layer norm, wide": (
        gn.layer_norm(300, dtype="float64"),
        (40, 300),
        lambda x, w, b: functional.layer_norm(x, (300,), w, b, 1e-3),
    ),
    "rms norm": (gn.rms_norm(6, dtype="float64"), (4, 5, 6), lambda x, w, _: functional.rms_norm(x, (6,), w, 1e-6)),
    "group norm": (
        gn.group_norm(3, 12, dtype="float64"),
        (4, 12, 5, 6),
        lambda x, w, b: functional.group_norm(x, 3, w, b, 1e-3),
    ),
    "group norm, channels last": (
        gn.group_norm(3, 12, channel_level=-1, dtype="float64"),
        (4, 5, 6, 12),
        lambda x, w, b: functional.group_norm(x.permute(0, 3, 1, 2), 3, w, b, 1e-3).permute(0, 2, 3, 1),
    ),
    "instance norm": (
        gn.instance_norm(5, dtype="float64"),
        (4, 5, 7, 6),
        lambda x, w, b: functional.instance_norm(x, weight=w, bias=b, eps=1e-3),
    ),
    "batch norm": (
        gn.batch_norm(5, statistics="input", dtype="float64"),
        (4, 5, 7, 6),
        lambda x, w, b: functional.batch_norm(x, None, None, w, b, training=True, eps=1e-3),
    ),
    "batch norm, features": (
        gn.batch_norm(70, statistics="input", dtype="float64"),
        (50, 70),
        lambda x, w, b: functional.batch_norm(x, None, None, w, b, training=True, eps=1e-3),
    ),
}


def differing(layer):
    """The layer, its parameters no longer ones and zeros."""
    for i, name in enumerate(("scaling", "biases")):
        value = getattr(layer, name)
        if value is not None:
            value[...] = direction(value.shape, seed=20 + i)
    return layer


@pytest.mark.parametrize("name", TORCH)
def test_presets_against_torch(name):
    layer, shape, function = TORCH[name]
    against_torch(differing(layer), function, shape)


def defined(settings, axes, shape, mask=None):
    """A layer that aggregates these axes, in tensors; parameters on the other levels of an example."""
    counted = torch.ones(shape, dtype=torch.float64) if mask is None else torch.from_numpy(mask.astype(np.float64))

    def function(x, scaling, biases):
        count = counted.sum(axes, keepdim=True)
        rms = settings.get("method") == "RMS"
        mean = 0 if rms else (x * counted).sum(axes, keepdim=True) / count
        variance = ((x - mean) ** 2 * counted).sum(axes, keepdim=True) / (count - int(settings.get("unbiased", False)))
        epsilon = settings["epsilon"]
        divisor = {
            "inside": lambda: torch.sqrt(variance + epsilon),
            "floor": lambda: torch.clamp(torch.sqrt(variance), min=epsilon),
            "outside": lambda: torch.sqrt(variance) + epsilon,
        }[settings["epsilon_placement"]]()
        sizes = [1 if axis in axes or axis == 0 else size for axis, size in enumerate(shape)]
        batch = [shape[0], *sizes[1:]]
        scaling, biases = (p.reshape(batch if len(p) == shape[0] and p.ndim == 3 else sizes) for p in (scaling, biases))
        return (x - mean) / divisor * scaling + biases

    return function


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("others", SETTINGS, ids=str)
@pytest.mark.parametrize("axes", [(2, 4), (0, 1), (1, 2)], ids=str)
def test_settings_against_torch(axes, others, masked):
    shape = (4, 3, 5, 2, 6)
    layer = gn.NormalizationLayer(list(axes), input_shape=shape[1:], batched=True, dtype="float64", **others)
    mask = some(shape) if masked else None
    against_torch(differing(layer), defined(others, axes, shape, mask), shape, mask)


def test_parameters_for_each_example_against_torch():
    shape = (4, 3, 5, 2, 6)
    others = {"epsilon": 1e-3, "epsilon_placement": "inside"}
    layer = gn.NormalizationLayer([2, 4], input_shape=shape[1:], batched=True, dtype="float64", **others)
    call = {"scaling": direction((4, 3, 2), seed=5), "biases": direction((4, 3, 2), seed=6)}
    against_torch(differing(layer), defined(others, (2, 4), shape), shape, **call)
    del call["biases"]
    against_torch(differing(layer), defined(others, (2, 4), shape), shape, **call)


@pytest.mark.parametrize("split_small", [False, True])
def test_ghost_batch_norm_against_torch(split_small, monkeypatch):
    if split_small:
        cut_small(monkeypatch)

    def parts(x, w, b):
        apart = [functional.batch_norm(p, None, None, w, b, training=True, eps=1e-3) for p in x.split(4)]
        return torch.cat(apart)

    layer = gn.batch_norm(5, statistics="input", group_number={0: 3}, dtype="float64")
    against_torch(differing(layer), parts, (12, 5, 7))


# ----------------------------------------------------------------------------------------------- moments that are given


def test_moments_that_the_layer_holds_are_constants():
    """Inference of batch norm, and a data set's: nothing goes through the statistics, the unbiased variance neither."""
    mean, variance = np.array([1.0, 2.0, 3.0]), np.array([1.0, 4.0, 0.25])
    x = sample((6, 3, 5), "float64")
    dy = direction(x.shape)
    for layer in (
        gn.batch_norm(3, unbiased=True, dtype="float64"),
        gn.batch_norm(3, epsilon=0.75, epsilon_placement="floor", dtype="float64"),
    ):
        differing(layer)
        layer.moments = gn.Moments.from_variance(mean, variance, 10)
        every = {
            "aggregation_levels": "{0, 2}",
            "scaling_levels": 1,
            "batched": True,
            "epsilon": layer.epsilon,
            "epsilon_placement": layer.information("epsilon_placement"),
        }
        _, pullback = layer.vjp(x)
        found = pullback(dy)
        held = {"mean": mean, "variance": variance}
        judge(found, x, dy, every, layer.scaling, layer.biases, **held)
        judge_tangent(layer.jvp(x, dy)[1], x, dy, every, layer.scaling, **held)
        # In training they come through.
        _, pullback = layer.vjp(x, training=True)
        found = pullback(dy)
        every["unbiased"] = layer.information("unbiased")
        judge(found, x, dy, every, layer.scaling, layer.biases)


# -------------------------------------------------------------------------------------------------------- what it keeps


def reachable(start):
    """Every object that another one leads to, but for modules, classes and what they hold."""
    seen, todo = {}, [start]
    while todo:
        one = todo.pop()
        # The type is asked, because `isinstance` asks what a weak proxy stands for, and that may be gone.
        if id(one) in seen or issubclass(type(one), (type, type(np), *weakref.ProxyTypes)):
            continue
        if one is globals():
            continue
        seen[id(one)] = one
        if callable(one) and hasattr(one, "__closure__"):
            todo += [cell.cell_contents for cell in one.__closure__ or ()]
        else:
            todo += gc.get_referents(one)
    return list(seen.values())


def test_a_pullback_holds_the_input_itself():
    x = sample((64, 32), "float64")
    y, pullback = gn.layer_norm(32, dtype="float64").vjp(x)
    kept = [one for one in reachable(pullback) if isinstance(one, np.ndarray)]
    assert any(one is x for one in kept)
    assert all(one is x or one.nbytes <= 4 * 64 * 8 for one in kept if one is not y)


def test_a_pullback_does_not_hold_the_output():
    """The output dies with the last name that its caller has for it."""
    x = sample((64, 32), "float64")
    layer = gn.layer_norm(32, dtype="float64")
    layer.vjp(x)
    y, pullback = layer.vjp(x)
    kept = weakref.ref(y)
    del y
    assert kept() is None
    assert pullback(direction(x.shape)).input.shape == x.shape


@pytest.mark.parametrize("masked", [False, True])
def test_a_pullback_is_small(masked):
    """What stays allocated is a few numbers a slice."""
    x = sample((256, 1024), "float64")
    layer = gn.layer_norm(1024, dtype="float64")
    mask = np.ones((1, 1024), bool) if masked else None
    layer.vjp(x, mask=mask)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        y, pullback = layer.vjp(x, mask=mask)
        assert tracemalloc.get_traced_memory()[0] - before < y.nbytes + 200_000
    finally:
        tracemalloc.stop()
    assert pullback(y).input.shape == x.shape


def same(one, two):
    for name in ("input", "scaling", "biases"):
        assert getattr(one, name).tobytes() == getattr(two, name).tobytes()


def test_a_pullback_can_be_called_again_and_from_other_threads():
    form = FORMS["rows in groups of channels"]
    layer, x, dy = made(form.settings, form.shape), sample(form.shape), direction(form.shape, "float32")
    _, pullback = layer.vjp(x, mask=some(form.shape))
    first = pullback(dy)
    same(pullback(dy), first)
    pullback(2 * dy)
    same(pullback(dy), first)
    found, start = [], threading.Barrier(6)

    def pull():
        start.wait()
        found.extend(pullback(dy) for _ in range(20))

    workers = [threading.Thread(target=pull) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 120
    for one in found:
        same(one, first)


def test_a_pullback_of_a_shorter_way_belongs_to_its_call():
    """The scaling that counts is that of the call, and moments are what was measured then."""
    layer, x, dy = gn.layer_norm(8), direction((3, 8)), direction((3, 8), seed=2)
    expected = layer.vjp(x)[1](dy)
    _, pullback = layer.vjp(x)
    moments = pullback.moments
    layer.scaling *= 3
    assert pullback(dy).input.tobytes() == expected.input.tobytes()
    assert moments == layer.measure(x)
    assert layer.vjp(x)[1](dy).input.tobytes() != expected.input.tobytes()


def test_a_pullback_belongs_to_its_call():
    """Whatever happens to the layer afterwards."""
    layer, x, dy = gn.layer_norm(8, dtype="float64"), sample((5, 8), "float64"), direction((5, 8))
    given = direction((8,), seed=3)
    _, pullback = differing(layer).vjp(x)
    _, called = layer.vjp(x, scaling=given)
    expected, expected_too = pullback(dy), called(dy)
    layer.scaling *= 2
    layer.biases = direction((8,), seed=4)
    given[...] = 0
    same(pullback(dy), expected)
    same(called(dy), expected_too)
    layer.scaling = None
    same(pullback(dy), expected)
    for mask in (some((5, 8)), some((8,)), some((5, 1)), np.array(True)):
        _, pullback = gn.layer_norm(8, dtype="float64").vjp(x, mask=mask)
        expected = pullback(dy)
        mask[...] = ~mask
        same(pullback(dy), expected)
    moving = gn.batch_norm(8, dtype="float64")
    _, pullback = moving.vjp(x)
    expected = pullback(dy)
    moving(x, training=True)
    same(pullback(dy), expected)


def test_gradients_and_directions_may_be_the_input_and_the_output():
    layer, x = gn.layer_norm(8, dtype="float64"), sample((5, 8), "float64")
    y, pullback = layer.vjp(x)
    same(pullback(y), pullback(y.copy()))
    same(pullback(x), pullback(x.copy()))
    assert layer.jvp(x, x)[1].tobytes() == layer.jvp(x, x.copy())[1].tobytes()


# -------------------------------------------------------------------------------------------------------------- threads

LARGE = {
    "rows": ((96, 8192), {"aggregation_levels": 2, "scaling_levels": "Same"}),
    "rows apart": ((16, 30, 4, 205), {"aggregation_levels": "{1, 3}", "scaling_levels": "Same", "batched": True}),
    "rows of every example": ((64, 6, 2048), {"aggregation_levels": "{0, 2}", "batched": True}),
    "columns": ((3000, 300), {"aggregation_levels": 1}),
    "columns, a parameter a line": ((3000, 300), {"aggregation_levels": 1, "scaling_levels": "Same"}),
    "folded columns": ((8, 600, 192), {"aggregation_levels": "All", "group_number": {2: 48}, "batched": True}),
    "one slice": ((1 << 20,), {"aggregation_levels": 1}),
}


def one_by_one(work, tasks, elements, *, apart=True):
    """Every range by itself, from the last to the first."""
    for i in reversed(range(tasks)):
        work(1, i, i + 1, 0)


@pytest.mark.parametrize("cut", [False, True, "pieces"])
@pytest.mark.parametrize("name", LARGE)
def test_the_number_of_threads_makes_no_difference(name, cut, threads, monkeypatch):
    shape, every = LARGE[name]
    if cut == "pieces":
        in_pieces(monkeypatch)
    elif cut:
        cut_small(monkeypatch, CUT=1 << 10, UNIT=1 << 12, BLOCK=1 << 9)
    x, dy = sample(shape), direction(shape, "float32")
    layer = differing(gn.NormalizationLayer(**every).initialize(shape))
    mask = some(shape[-1:])
    answers = []
    for number in (1, 2, 7, "backwards"):
        if number == "backwards":  # as if whoever has the last range was first
            monkeypatch.setattr(engine_call, "run", one_by_one)
        else:
            threads(number)
        found = [layer.vjp(x, mask=m)[1](dy) for m in (None, mask)]
        bits = [getattr(one, key).tobytes() for one in found for key in ("input", "scaling", "biases")]
        answers.append([*bits, layer.jvp(x, dy)[1].tobytes(), layer.jvp(x, dy, mask=mask)[1].tobytes()])
    assert all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize("name", ["rows", "columns", "folded columns"])
def test_large_arrays(name):
    shape, every = LARGE[name]
    layer, x, dy = (
        differing(gn.NormalizationLayer(**every).initialize(shape)),
        sample(shape),
        direction(shape, "float32"),
    )
    judge(layer.vjp(x)[1](dy), x, dy, every, layer.scaling, layer.biases)
    judge_tangent(layer.jvp(x, dy)[1], x, dy, every, layer.scaling)


# -------------------------------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("wrong", "kind", "text"),
    [
        (np.ones((3, 5)), gn.errors.ShapeError, r"has the shape \(3, 5\), and must have the shape \(3, 4\)"),
        (np.ones(4), gn.errors.ShapeError, r"has the shape \(4,\), and must have the shape \(3, 4\)"),
        (np.ones((1, 4)), gn.errors.ShapeError, r"has the shape \(1, 4\)"),
        (np.ones((3, 4), complex), gn.errors.DtypeError, "has the dtype complex128"),
        (np.full((3, 4), None), gn.errors.DtypeError, "has the dtype object"),
        ([[1.0] * 4] * 3, gn.errors.InputError, "is a list"),
        (None, gn.errors.InputError, "is of type NoneType"),
        (1.0, gn.errors.InputError, "is of type float"),
        (lambda: torch.ones(3, 4), gn.errors.InputError, "is a torch tensor"),
        (np.ma.ones((3, 4)), gn.errors.InputError, "is a masked array"),
    ],
)
def test_a_wrong_gradient_or_direction(wrong, kind, text):
    wrong = wrong() if callable(wrong) else wrong
    layer, x = gn.layer_norm(4), sample((3, 4))
    _, pullback = layer.vjp(x)
    with pytest.raises(kind, match="^the gradient of the output " + text):
        pullback(wrong)
    if wrong is None:  # an input that stays what it is
        assert not layer.jvp(x, wrong)[1].any()
        return
    with pytest.raises(kind, match="^the direction " + text):
        layer.jvp(x, wrong)
    assert pullback(np.ones((3, 4))).input.shape == (3, 4)


def test_an_input_that_is_wrong_is_refused_as_in_a_call():
    layer = gn.layer_norm(4)
    for wrong in ([np.ones(4)], np.ones((3, 5)), np.ones(4, complex), np.array(["x"])):
        with pytest.raises(gn.GennormError) as called:
            layer.__class__.__call__(layer, np.asarray(wrong[0]).tolist() if isinstance(wrong, list) else wrong)
        for derivative in (layer.vjp, lambda x: layer.jvp(x, x)):
            with pytest.raises(type(called.value)):
                derivative(wrong)


# ------------------------------------------------------------------------------------------------------------------ NaN


@pytest.mark.parametrize("spoil", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["input", "gradient"])
@pytest.mark.parametrize("name", [name for name in FORMS if name != "one element"])
def test_non_finite_numbers_stay_in_their_slice(name, where, spoil):
    form = FORMS[name]
    layer, x, dy = made(form.settings, form.shape), sample(form.shape), direction(form.shape, "float32")
    clean, along = layer.vjp(x)[1](dy), layer.jvp(x, dy)[1]
    place = tuple(size // 2 for size in form.shape)
    (x if where == "input" else dy)[place] = spoil
    found, spoiled = layer.vjp(x)[1](dy), layer.jvp(x, dy)[1]
    marked = np.zeros(form.shape)
    marked[place] = 1
    levels = {key: form.settings[key] for key in ("aggregation_levels", "group_number", "batched")}
    s = reference.geometry(form.shape, levels["aggregation_levels"], "Complement", levels["group_number"], True)
    inside = s.over_slices(s.total(marked)) > 0
    assert inside.any()
    assert not np.isfinite(found.input[inside]).any()
    for one, other in ((found.input, clean.input), (spoiled, along)):
        assert one[~inside].tobytes() == other[~inside].tobytes()
    # Parameters gather from slices: those that none of the spoiled ones reaches are as they were.
    resolved = layer.plan(x).resolved
    reached = np.any(inside, axis=tuple(axis for axis in range(x.ndim) if axis not in resolved.scaling))
    reached = reached.transpose([sorted(resolved.scaling).index(axis) for axis in resolved.scaling])
    for key in ("scaling", "biases"):
        one, other = getattr(found, key), getattr(clean, key)
        assert one[~reached].tobytes() == other[~reached].tobytes()
        if where == "gradient" and key == "biases":
            assert np.sum(~np.isfinite(one)) == 1


@pytest.mark.parametrize("spoil", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("name", FORMS)
def test_padding_without_gradient_has_no_effect(name, spoil):
    """To the bit: what does not count and gets no gradient adds nothing to any sum, as in the moments."""
    form = FORMS[name]
    layer, mask = made(form.settings, form.shape), some(form.shape)
    dy = np.where(mask, direction(form.shape, "float32"), np.float32(0))
    x, padded = (np.where(mask, sample(form.shape), np.float32(pad)) for pad in (0, spoil))
    clean, found = (layer.vjp(array, mask=mask)[1](dy) for array in (x, padded))
    for part in ("input", "scaling", "biases"):
        one, other = getattr(found, part), getattr(clean, part)
        assert (one is None) == (other is None)
        assert one is None or one.tobytes() == other.tobytes(), part
    assert not np.any(found.input[~mask])
    judge(found, x, dy, form.settings, layer.scaling, layer.biases, mask=mask)
    given = {**form.settings, "scaling": layer.scaling, "biases": layer.biases, "mask": mask}
    for one, other in zip(reference.vjp(x, dy, **given), reference.vjp(padded, dy, **given), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", SPLIT)
def test_a_directional_derivative_ignores_masked_elements(name):
    """As the moments do not: a NaN that is masked is in its own output, and in no other."""
    form = FORMS[name]
    layer, x, t, mask = (
        made(form.settings, form.shape),
        sample(form.shape),
        direction(form.shape, "float32"),
        some(form.shape),
    )
    clean = layer.jvp(x, t, mask=mask)[1]
    spoiled = layer.jvp(np.where(mask, x, np.float32(np.nan)), t, mask=mask)[1]
    np.testing.assert_allclose(spoiled[mask], clean[mask], rtol=1e-4, atol=1e-5)
    assert np.isnan(spoiled[~mask]).all()
