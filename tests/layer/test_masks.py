"""Masks: what counts in the statistics, that nothing else does, and that everything is normalized."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gennorm as gn
from spec import reference
from tests import strategies
from tests.accuracy import judge
from tests.engine.kernels.test_forms import FORMS, ONE_EACH, SPLIT, made
from tests.engines import cut_small, in_plain_python
from tests.strategies import LAYOUTS, buffer_of, named_layouts, sample, some

forms = pytest.mark.parametrize("name", FORMS)
SHAPE = (2, 6, 4, 5)
# Rows, rows apart, columns, folded columns, one slice.
SETTINGS = [
    {"aggregation_levels": "2;;All", "batched": True},
    {"aggregation_levels": -1, "scaling_levels": "Same", "batched": True},
    {"aggregation_levels": "{0, 2, 3}", "scaling_levels": 1, "batched": True},
    {"aggregation_levels": 1, "method": "RMS", "batched": True},
    {"aggregation_levels": "All", "scaling_levels": 1, "group_number": {1: 2}, "unbiased": True, "batched": True},
    {"aggregation_levels": "All", "scaling_levels": -1, "group_number": {-2: 2}, "epsilon_placement": "floor"},
]
each_setting = pytest.mark.parametrize("settings", SETTINGS, ids=str)


def broadcastable(shape):
    """Every shape that broadcasts to this one and is no larger."""
    found = [tuple(axes) for axes in itertools.product(*[(1, size) for size in shape])]
    return sorted({axes[first:] for axes in found for first in range(len(shape) + 1)})


def layer_for(settings, **others):
    return made(settings, SHAPE, dtype="float64", **others)


def levels_of(settings):
    return {key: settings[key] for key in ("aggregation_levels", "group_number", "batched") if key in settings}


def counted(settings, mask, shape=SHAPE):
    """How many elements of each slice a mask counts, by brute force."""
    where = reference.geometry(
        shape,
        settings["aggregation_levels"],
        "Complement",
        settings.get("group_number"),
        settings.get("batched", False),
    )
    return where.total(np.broadcast_to(mask, shape).astype(np.float64))


# ---------------------------------------------------------------------------------------------------- shapes and counts


@each_setting
def test_every_shape_that_broadcasts(settings):
    layer, x = layer_for(settings), sample(SHAPE, "float64")
    shapes = broadcastable(SHAPE)
    assert len(shapes) == 31  # 2**4 of four axes, 2**3 of the last three, ..., () - but for none twice
    for i, shape in enumerate(shapes):
        mask = some(shape, i) if i % 5 else np.ones(shape, bool)
        y = layer(x, mask=mask)
        exact = reference.normalize(x, **settings, scaling=layer.scaling, biases=layer.biases, mask=mask)
        np.testing.assert_allclose(y, exact, rtol=0, atol=1e-12 * np.abs(exact).max(), err_msg=str(shape))
        assert y.tobytes() == layer(x, mask=np.broadcast_to(mask, SHAPE)).tobytes()
        assert y.tobytes() == layer(x, mask=np.array(np.broadcast_to(mask, SHAPE), order="F")).tobytes()
        moments = layer.measure(x, mask)
        count, mean, m2 = reference.moments(
            x, **levels_of(settings), method=settings.get("method", "Standardize"), mask=mask
        )
        np.testing.assert_array_equal(moments.count, counted(settings, mask), strict=True)
        np.testing.assert_array_equal(moments.count, count, strict=True)
        np.testing.assert_allclose(moments.m2, m2, rtol=1e-12, atol=1e-300)
        assert (moments.mean is None) == (mean is None)
        if mean is not None:
            np.testing.assert_allclose(moments.mean, mean, rtol=1e-12, atol=1e-14)


@each_setting
@pytest.mark.parametrize("shape", [(3,), (2, 6, 4, 4), (2, 6, 4, 5, 1), (6,), (2, 6), (1, 1, 1, 1, 1), (0,)])
def test_a_mask_of_another_shape_is_refused(settings, shape):
    layer, x = layer_for(settings), sample(SHAPE, "float64")
    out = np.full(SHAPE, 7.0)
    text = re.escape(f"mask of shape {shape} does not broadcast to an input of shape (2, 6, 4, 5)")
    for call in (
        lambda mask: layer(x, mask=mask),
        lambda mask: layer(x, mask=mask, out=out),
        lambda mask: layer.measure(x, mask),
        lambda mask: layer.vjp(x, mask=mask),
        lambda mask: layer.jvp(x, x, mask=mask),
    ):
        with pytest.raises(gn.errors.ShapeError, match=text):
            call(np.ones(shape, bool))
    assert (out == 7).all()


@pytest.mark.parametrize("dtype", ["int8", "float64", "uint8"])
def test_a_mask_is_of_booleans(dtype):
    layer, x = layer_for(SETTINGS[0]), sample(SHAPE)
    with pytest.raises(gn.errors.DtypeError, match=f"mask has the dtype {dtype}"):
        layer(x, mask=np.ones(5, dtype))
    with pytest.raises(gn.errors.InputError, match="mask is of type list"):
        layer(x, mask=[True] * 5)
    with pytest.raises(gn.errors.InputError, match="mask is of type MaskedArray"):
        layer.measure(x, np.ma.ones(5, dtype=bool))


def test_counts_are_exact_where_float32_cannot_count():
    """2**24 + 9 elements that count, one by one: float32 would stop at 2**24."""
    size = (1 << 24) + 12
    mask = np.ones(size, bool)
    mask[[5, 1000, size - 1]] = False
    x = np.ones(size, np.int8)
    layer = gn.NormalizationLayer(1, (), scaling=None, biases=None)
    moments = layer.measure(x, mask)
    assert moments.count == (1 << 24) + 9
    assert (moments.mean, moments.m2) == (1, 0)


# ------------------------------------------------------------------------------------------------- every form of kernel


def check(layer, x, settings, mask):
    """The output is right within the bound for one without a mask, and nothing that was given has been written into."""
    before = [buffer_of(array).tobytes() for array in (x, mask)]
    y = layer(x, mask=mask)
    assert [buffer_of(array).tobytes() for array in (x, mask)] == before
    judge(y, x, {**settings, "mask": mask}, layer.scaling, layer.biases)
    moments = layer.measure(x, mask)
    np.testing.assert_array_equal(moments.count, counted(settings, mask, x.shape), strict=True)
    applied = layer.apply(x, moments)
    assert applied.tobytes() == y.tobytes()
    out = np.empty_like(y, order="F")
    assert layer(x, mask=mask, out=out) is out
    judge(out, x, {**settings, "mask": mask}, layer.scaling, layer.biases)
    return y


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *itertools.product(FORMS, ["float32", "float64"]),
        *itertools.product(ONE_EACH, ["float16", "bfloat16", "int8", "bool", "int64"]),
    ],
)
def test_form(name, dtype):
    form = FORMS[name]
    check(made(form.settings, form.shape), sample(form.shape, dtype), form.settings, some(form.shape))


@pytest.mark.parametrize("engine", ["compiled", "plain"])
@pytest.mark.parametrize("name", SPLIT)
def test_split_form(name, engine, monkeypatch):
    cut_small(monkeypatch)
    if engine == "plain":
        in_plain_python(monkeypatch)
    form = FORMS[name]
    check(made(form.settings, form.shape), sample(form.shape), form.settings, some(form.shape))


@pytest.mark.parametrize("name", ONE_EACH)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(name, layout):
    form = FORMS[name]
    layouts = named_layouts(len(form.shape))
    layer, mask = made(form.settings, form.shape), some(form.shape)
    check(layer, layouts[layout].hold(sample(form.shape)), form.settings, mask)
    check(layer, sample(form.shape), form.settings, layouts[layout].hold(mask))


@pytest.mark.parametrize("name", ONE_EACH)
def test_in_place(name):
    form = FORMS[name]
    layer, x, mask = made(form.settings, form.shape), sample(form.shape), some(form.shape)
    y = layer(x, mask=mask)
    assert layer(x, mask=mask, out=x) is x
    assert x.tobytes() == y.tobytes()


@given(strategies.cases(elements=600), st.integers(0, 999))
def test_any_case(case, seed):
    rng = np.random.default_rng(seed)
    mask = rng.random([size if rng.random() < 0.6 else 1 for size in case.shape]) < 0.6
    layer, x = made(case.settings, case.shape), sample(case.shape, "float64", seed)
    moments = layer.measure(x, mask)
    levels = {**levels_of(case.settings), "method": case.settings["method"]}
    count, mean, m2 = reference.moments(x, **levels, mask=mask)
    np.testing.assert_array_equal(moments.count, count, strict=True)
    np.testing.assert_allclose(moments.m2, m2, rtol=1e-12, atol=1e-12)
    if mean is not None:
        np.testing.assert_allclose(moments.mean, mean, rtol=1e-12, atol=1e-14)
    exact = reference.normalize(x, **case.settings, scaling=layer.scaling, biases=layer.biases, mask=mask)
    y = layer(x, mask=mask)
    close = np.abs(y - exact) <= 1e-11 * (1 + np.abs(exact))
    # A variance of rounding errors, divided by nothing else, may be 0 in one of the two.
    if case.settings["epsilon"] > 0:
        assert close.all()
    else:
        firm = m2 > 1e-20
        where = reference.geometry(case.shape, levels["aggregation_levels"], "Complement", levels.get("group_number"),
                                   case.settings["batched"])  # fmt: skip
        assert close[where.over_slices(firm.astype(float)) > 0].all()


# -------------------------------------------------------------------------------------------------------- what it means


@each_setting
def test_a_mask_of_ones_equals_no_mask(settings):
    layer, x = layer_for(settings), sample(SHAPE, "float64")
    np.testing.assert_allclose(layer(x, mask=np.ones(SHAPE, bool)), layer(x), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("method", ["Standardize", "RMS"])
@pytest.mark.parametrize("unbiased", [False, True])
def test_a_mask_is_as_good_as_taking_the_elements_out(method, unbiased):
    """The padded end of sequences of one length: the shorter sequence has the same outputs."""
    if unbiased and method == "RMS":
        return
    x = sample((3, 4, 9), "float64")
    layer = gn.NormalizationLayer(2, 1, input_shape=(4, None), method=method, unbiased=unbiased, dtype="float64")
    layer.scaling[...], layer.biases[...] = sample((4,), seed=1), sample((4,), seed=2)
    for length in (2, 5, 9):
        mask = np.arange(9) < length
        np.testing.assert_allclose(layer(x, mask=mask)[..., :length], layer(x[..., :length]), rtol=1e-12, atol=1e-13)
        for pad in (0.0, 1e30, np.nan):
            padded = np.where(mask, x, pad)
            y = layer(padded, mask=mask)
            np.testing.assert_allclose(y[..., :length], layer(x[..., :length]), rtol=1e-12, atol=1e-13)
    scattered = some((3, 4, 9))
    moments = layer.measure(x, scattered)
    for i, j in itertools.product(range(3), range(4)):
        kept = gn.Moments.of(x[i, j][scattered[i, j]], method=method)
        assert moments.count[i, j] == kept.count == scattered[i, j].sum()
        np.testing.assert_allclose(moments.m2[i, j], kept.m2, rtol=1e-12)
        if method == "Standardize":
            np.testing.assert_allclose(moments.mean[i, j], kept.mean, rtol=1e-12)


@pytest.mark.parametrize("spoil", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("name", SPLIT)
def test_masked_elements_have_no_effect(name, cut, spoil, monkeypatch):
    """The moments are the same to the bit, and so is every output but those that do not count."""
    if cut:
        cut_small(monkeypatch)
    form = FORMS[name]
    layer, x, mask = made(form.settings, form.shape), sample(form.shape), some(form.shape)
    spoiled = np.where(mask, x, np.float32(spoil))
    clean, other = layer.measure(x, mask), layer.measure(spoiled, mask)
    np.testing.assert_array_equal(other.count, clean.count)
    np.testing.assert_allclose(other.mean, clean.mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(other.m2, clean.m2, rtol=1e-11, atol=1e-12)
    y = layer(spoiled, mask=mask)
    np.testing.assert_allclose(y[mask], layer(x, mask=mask)[mask], rtol=1e-5, atol=1e-6)
    assert np.isfinite(y[mask]).all()
    if not np.isfinite(spoil):
        assert not np.isfinite(y[~mask]).any()


@each_setting
def test_everything_is_normalized(settings):
    """By the moments of what counts: as `apply` with them, or with the moments of the reference."""
    layer, x, mask = layer_for(settings), sample(SHAPE, "float64"), some(SHAPE)
    y = layer(x, mask=mask)
    _, mean, m2 = reference.moments(x, **levels_of(settings), method=settings.get("method", "Standardize"), mask=mask)
    variance = m2 / np.maximum(counted(settings, mask) - settings.get("unbiased", False), 1)
    exact = reference.normalize(
        x, **settings, scaling=layer.scaling, biases=layer.biases, mean=0.0 if mean is None else mean, variance=variance
    )
    np.testing.assert_allclose(y, exact, rtol=1e-11, atol=1e-12)
    assert (np.abs(y[~mask]) > 1e-3).mean() > 0.9


@each_setting
@pytest.mark.parametrize("epsilon", [0.0, 0.25])
def test_nothing_counts(settings, epsilon):
    """Mean 0 and variance 0: the output is the input over what epsilon leaves, or the biases."""
    layer, x = layer_for(settings, epsilon=epsilon), sample(SHAPE, "float64")
    mask = np.array(False)
    moments = layer.measure(x, mask)
    assert not moments.count.any()
    assert not moments.m2.any()
    assert moments.mean is None or not moments.mean.any()
    divisor = epsilon if settings.get("epsilon_placement") == "floor" else np.sqrt(epsilon)
    y = layer(x, mask=mask, scaling=np.ones(layer.scaling.shape), biases=np.zeros(layer.biases.shape))
    np.testing.assert_allclose(y, x / divisor if epsilon else 0 * x, rtol=1e-14)


def test_examples_do_not_depend_on_their_batch():
    layer = gn.NormalizationLayer("2;;All", input_shape=(6, None, None))
    x, mask = sample((4, 6, 8, 9)), some((4, 6, 8, 9))
    whole = layer(x, mask=mask)
    for example, its_mask, y in zip(x, mask, whole, strict=True):
        assert layer(example, mask=its_mask).tobytes() == y.tobytes()


def test_masks_do_not_stay():
    """A call without a mask after one with a mask, and the other way round."""
    layer, x, mask = layer_for(SETTINGS[0]), sample(SHAPE, "float64"), some(SHAPE)
    plain, masked = layer(x), layer(x, mask=mask)
    for _ in range(3):
        assert layer(x).tobytes() == plain.tobytes()
        assert layer(x, mask=mask).tobytes() == masked.tobytes()
    assert plain.tobytes() != masked.tobytes()


# ---------------------------------------------------------------------------------------------------------------- Keras


@pytest.mark.parametrize("shape", [(6, 5, 4), (6, 3, 5, 4)])
def test_keras_batch_normalization(shape):
    """In training, channels last, where Keras lines its masks up. It adds 1e-7 to the counts, in float32."""
    keras = pytest.importorskip("keras")
    torch = pytest.importorskip("torch")
    x, mask = sample(shape), some(shape[:-1])
    theirs = keras.layers.BatchNormalization()
    ours = gn.batch_norm(4, channel_level=-1)
    y = theirs(torch.from_numpy(x), training=True, mask=torch.from_numpy(mask)).detach().cpu().numpy()
    np.testing.assert_allclose(ours(x, training=True, mask=mask[..., None]), y, rtol=1e-5, atol=2e-6)
    held = theirs.moving_mean.value.detach().cpu().numpy(), theirs.moving_variance.value.detach().cpu().numpy()
    np.testing.assert_allclose(ours.moments.mean, held[0], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(ours.moments.variance(), held[1], rtol=1e-5)
