"""Moments of a data set: what Keras' Normalization does, in any chunks, from anywhere, all or nothing."""

import sys
import threading
import time
import tracemalloc
import warnings
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gennorm as gn
from gennorm.layer import adapting

DATA = np.array([[0.0, 7.0, 4.0], [2.0, 9.0, 6.0], [0.0, 7.0, 4.0], [2.0, 9.0, 6.0]], np.float32)


@pytest.fixture(scope="module")
def keras():
    return pytest.importorskip("keras")


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(adapting, "CHUNK", 1 << 10)


def same(moments, others, tolerance=1e-12):
    assert (moments.mean is None) == (others.mean is None)
    for name in ("count", "mean", "m2") if moments.mean is not None else ("count", "m2"):
        np.testing.assert_allclose(
            getattr(moments, name), getattr(others, name), rtol=tolerance, atol=tolerance, err_msg=name
        )


# What Keras' Normalization does ------------------------------------------------------------------------


def test_k1_one_mean_for_all():
    layer = gn.feature_norm(None).adapt(np.array([1.0, 2.0, 3.0, 4.0, 5.0], np.float32))
    y = layer(np.array([1.0, 2.0, 3.0], np.float32))
    np.testing.assert_allclose(y, [-1.4142135, -0.70710677, 0], rtol=1e-6)
    assert y.dtype == np.float32


def test_k2_a_mean_for_each_feature():
    layer = gn.feature_norm(-1).adapt(DATA)
    assert layer(np.array([[0.0, 7.0, 4.0]], np.float32)).tolist() == [[-1, -1, -1]]
    assert layer(np.array([0.0, 7.0, 4.0], np.float32)).tolist() == [-1, -1, -1]


def test_k3_given_mean_and_variance():
    layer = gn.feature_norm(mean=3.0, variance=2.0)
    y = layer(np.array([[1.0], [2.0], [3.0]], np.float32))
    np.testing.assert_allclose(y, [[-1.4142135], [-0.70710677], [0.0]], rtol=1e-6)


def test_k4_the_inverse():
    layer = gn.feature_norm(-1).adapt(DATA)
    assert layer.inverse(np.array([[1.0, 2.0, 3.0]], np.float32)).tolist() == [[2, 10, 8]]
    assert layer.inverse(np.array([1.0, 2.0, 3.0], np.float32)).tolist() == [2, 10, 8]


def test_k5_a_mean_that_does_not_fit():
    layer = gn.feature_norm(mean=[1.0, 2.0], variance=1.0)
    with pytest.raises(gn.GennormError, match=r"level 1 \(axis 1\) of the input has size 3, and the moments"):
        layer(DATA)
    with pytest.raises(gn.GennormError, match=r"the moments have the shape \(2,\), and those of the layer \(3,\)"):
        gn.feature_norm(mean=[1.0, 2.0], variance=1.0, input_shape=(3,))
    with pytest.raises(gn.GennormError, match="mean is given, and variance is not"):
        gn.feature_norm(mean=[1.0, 2.0])
    with pytest.raises(gn.GennormError, match="do not broadcast"):
        gn.feature_norm(mean=[1.0, 2.0], variance=[1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("level", "axes"), [(1, (0, 2, 3)), (-1, (0, 1, 2)), ((1, 3), (0, 2)), ([-1, 1], (0, 2)), (None, (0, 1, 2, 3))]
)
def test_k6_levels_are_kept(level, axes):
    x = np.random.default_rng(0).normal(3, 2, (7, 3, 4, 5))
    layer = gn.feature_norm(level).adapt(x)
    np.testing.assert_allclose(layer.moments.mean, x.mean(axes), rtol=1e-12)
    np.testing.assert_allclose(layer.moments.variance(), x.var(axes), rtol=1e-12)
    np.testing.assert_allclose(layer(x), (x - x.mean(axes, keepdims=True)) / x.std(axes, keepdims=True), rtol=1e-9)


def test_k6_a_batch_of_scalars_is_one_example_of_features():
    """As Keras normalizes each index of such a batch; level None makes one scalar of it."""
    x = np.array([1.0, 5.0, 9.0])
    with pytest.warns(UserWarning, match=r"one example of shape \(3,\): each slice has one value.*write x\[:, None\]"):
        layer = gn.feature_norm(-1).adapt(x)
    assert layer.moments.mean.tolist() == [1, 5, 9]
    assert layer(x).tolist() == [0, 0, 0]
    assert gn.feature_norm(None).adapt(x).moments.mean.tolist() == 5


def test_one_example_is_a_batch_of_one_to_every_method():
    layer = gn.feature_norm(mean=[3.0, 4.0, 5.0], variance=2.0, scaling=[1.0, 2.0, 3.0], input_shape=(3,))
    x, t = np.array([1.0, 5.0, 9.0]), np.array([0.5, -1.0, 2.0])
    scaling, mask = np.array([2.0, 3.0, 4.0]), np.array([True, False, True])
    for call in ({}, {"scaling": scaling}, {"mask": mask}):
        (y, pullback), (ys, pull) = layer.vjp(x, **call), layer.vjp(x[None], **call)
        one, batch = pullback(t), pull(t[None])
        assert one.input.tolist() == batch.input[0].tolist()
        assert one.scaling.tolist() == batch.scaling.tolist()
        assert one.biases is batch.biases is None
        along = layer.jvp(x, t, **call)
        assert [part.tolist() for part in along] == [part[0].tolist() for part in layer.jvp(x[None], t[None], **call)]
        assert y.tolist() == ys[0].tolist() == along[0].tolist() == layer(x, **call).tolist()
    assert layer.measure(x) == layer.measure(x[None])
    assert layer.measure(x, mask).count.tolist() == [1, 0, 1]
    moments, out = gn.Moments.from_variance([1.0, 2.0, 3.0], 4.0), np.empty(3)
    assert layer.apply(x, moments).tolist() == layer.apply(x[None], moments)[0].tolist()
    assert layer.apply(x, moments, out=out) is out
    assert out.tolist() == layer.apply(x, moments).tolist()


CASES = {
    "features": ((40, 3), -1),
    "scalars": ((40,), None),
    "each index": ((6,), -1),
    "one channel level": ((40, 3, 5), 1),
    "two levels": ((40, 3, 5), (1, 2)),
    "all": ((8, 3, 5), None),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_keras_normalization(keras, name, dtype):
    shape, level = CASES[name]
    x = np.random.default_rng(1).normal(10, 5, shape).astype(dtype)
    theirs, inverse = keras.layers.Normalization(axis=level), keras.layers.Normalization(axis=level, invert=True)
    theirs.adapt(x)
    inverse.adapt(x)
    with pytest.warns(UserWarning, match="each slice has one value") if name == "each index" else nullcontext():
        ours = gn.feature_norm(level).adapt(x)
    y = ours(x)
    np.testing.assert_allclose(y, theirs(x).cpu().numpy(), rtol=1e-4, atol=1e-5)
    y = y.astype(np.float32)
    np.testing.assert_allclose(ours.inverse(y), inverse(y).cpu().numpy(), rtol=1e-4, atol=1e-5)


def test_keras_normalization_of_a_constant_feature(keras):
    x = np.array([[3.0, 1.0], [3.0, 2.0]], np.float32)
    theirs = keras.layers.Normalization()
    theirs.adapt(x)
    z = np.array([[3.0, 1.5], [3.5, 1.0]], np.float32)
    np.testing.assert_allclose(gn.feature_norm().adapt(x)(z), theirs(z).cpu().numpy(), rtol=1e-5)


# From anywhere, in any chunks --------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any),
    st.sampled_from([None, -1, 1, (1, 2)]),
    st.sampled_from(["Standardize", "RMS"]),
    st.sampled_from(["nothing", "mask", "weights", "both"]),
    st.integers(0, 99),
)
def test_any_chunks_equal_one_pass(sizes, level, method, extras, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(1e3, 1, (sum(sizes), 3, 4))
    mask = rng.random((len(x), 3, 1)) < 0.8 if extras in {"mask", "both"} else None
    weights = rng.integers(0, 4, (len(x), 1, 4)) / 2 if extras in {"weights", "both"} else None
    cuts = np.cumsum(sizes)[:-1]
    parts = {name: None if a is None else iter(np.split(a, cuts)) for name, a in (("mask", mask), ("weights", weights))}
    if (mask is not None and not mask.any()) or (weights is not None and not weights.any()):
        return
    layer = gn.feature_norm(level, method=method).adapt(iter(np.split(x, cuts)), **parts)
    kept = () if level is None else (level % 3,) if isinstance(level, int) else level
    axes = tuple(axis for axis in range(3) if axis not in kept)
    same(layer.moments, gn.Moments.of(x, axes=axes, mask=mask, weights=weights, method=method))
    same(layer.adapt(x, mask=mask, weights=weights).moments, layer.moments)


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_is_taken_in_chunks(small_chunks, order):
    x = np.asarray(np.random.default_rng(2).normal(50, 3, (2000, 3)), order=order)
    mask = np.random.default_rng(3).random((2000, 1)) < 0.5
    same(gn.feature_norm().adapt(x).moments, gn.Moments.of(x, axes=0))
    same(gn.feature_norm().adapt(x[::-2], mask=mask[::-2]).moments, gn.Moments.of(x[::-2], axes=0, mask=mask[::-2]))
    same(gn.feature_norm().adapt(x.astype(">f8"), weights=mask).moments, gn.Moments.of(x, axes=0, mask=mask))


def test_one_mask_for_every_batch():
    x = np.random.default_rng(4).normal(size=(6, 4))
    mask = np.array([True, False, True, True])
    layer = gn.feature_norm(None).adapt([x[:1], x[1:]], mask=mask)
    same(layer.moments, gn.Moments.of(x[:, mask]))


def test_a_batch_that_is_kept_or_split_is_pooled():
    x = np.random.default_rng(5).normal(size=(7, 3, 4))
    for levels, groups in (("2;;All", None), ("{0, 2}", {0: 7}), ("{0, 2}", [7, 1])):
        layer = gn.NormalizationLayer(levels, 1, groups, batched=True, statistics="dataset", scaling=None, biases=None)
        layer.adapt([x[:5], x[5:]])
        same(layer.moments, gn.Moments.of(x, axes=(0, 2)))
    layer = gn.NormalizationLayer(-1, (), input_shape=(3, 4), statistics="dataset").adapt(iter(x))  # examples alone
    same(layer.moments, gn.Moments.of(x, axes=(0, 2)))


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_a_file_is_mapped_and_not_read_whole(tmp_path, monkeypatch, mode):
    monkeypatch.setattr(adapting, "CHUNK", 1 << 16)
    x = np.random.default_rng(6).normal(7, 2, (50_000, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode=mode)
    if mode == "c":
        mapped[123] = x[123] = 99
    gn.feature_norm().adapt(x)  # what is compiled and imported is not counted
    tracemalloc.start()
    layer = gn.feature_norm().adapt(mapped)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < x.nbytes // 4
    same(layer.moments, gn.Moments.of(x, axes=0))
    np.testing.assert_array_equal(mapped, x)
    same(gn.feature_norm().adapt(mapped[1000::3]).moments, gn.Moments.of(x[1000::3], axes=0))


def test_a_mean_of_a_hundred_million_with_deviation_one():
    rng = np.random.default_rng(7)
    batches = [1e8 + rng.standard_normal(500_000) for _ in range(4)]
    layer = gn.feature_norm(None).adapt(batch for batch in batches)
    whole = np.concatenate(batches) - 1e8
    assert layer.moments.mean - 1e8 == pytest.approx(whole.mean(), abs=3e-8)
    assert layer.moments.variance() == pytest.approx(whole.var(), rel=1e-9)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int8", "uint16", "bool", "int64"])
def test_dtypes(dtype):
    number = pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype
    x = np.random.default_rng(8).integers(0, 2 if dtype == "bool" else 100, (60, 3)).astype(number)
    layer = gn.feature_norm().adapt(x)
    same(layer.moments, gn.Moments.of(x, axes=0), 1e-6)


def test_scikit_learn_with_weights():
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    rng = np.random.default_rng(9)
    theirs, ours = preprocessing.StandardScaler(), gn.feature_norm()
    for _ in range(4):
        x, weights = rng.normal(4, 3, (30, 5)), rng.random(30)
        theirs.partial_fit(x, sample_weight=weights)
        ours.adapt(x, weights=weights[:, None], reset=False)
    np.testing.assert_allclose(ours.moments.mean, theirs.mean_, rtol=1e-12)
    np.testing.assert_allclose(ours.moments.variance(), theirs.var_, rtol=1e-12)
    np.testing.assert_allclose(ours(x), theirs.transform(x), rtol=1e-9)
    np.testing.assert_allclose(ours.inverse(x), theirs.inverse_transform(x), rtol=1e-9)


def test_without_a_reset_the_data_are_added():
    layer = gn.feature_norm().adapt(DATA[:1])
    layer.adapt(DATA[1:], reset=False)
    same(layer.moments, gn.Moments.of(DATA, axes=0))
    assert layer.adapt(DATA[:1]).moments.count.tolist() == [1, 1, 1]


# How exact ---------------------------------------------------------------------------------------------

HALVES = ["float16", "bfloat16"]


def numbers(dtype, rows, center, seed=0):
    x = center + np.random.default_rng(seed).choice([-1.0, 1.0, 0.5], (rows, 4))
    x[:, 3] = center
    return x.astype(pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype)


@pytest.mark.parametrize("extras", ["nothing", "mask", "weights"])
@pytest.mark.parametrize(
    ("dtype", "center"),
    [(dtype, center) for dtype in HALVES for center in (0, 1, 3, 64)]
    + [("float32", center) for center in (0, 3, 20, 1e6)]
    + [("float64", center) for center in (0, 3, 1e6, 1e12)]
    + [("int8", 3), ("uint16", 60000), ("int64", 2**40)],
)
def test_chunks_are_as_exact_as_numpy_for_the_whole_array(monkeypatch, dtype, center, extras):
    monkeypatch.setattr(adapting, "CHUNK", 1 << 12)
    monkeypatch.setattr(adapting, "RUN", 1)
    monkeypatch.setattr(adapting, "SMALL", 64)
    x = numbers(dtype, 1000, center)
    rng = np.random.default_rng(1)
    weights = rng.integers(1, 2**25, (len(x), 1)).astype(float) if extras == "weights" else np.ones((len(x), 1))
    mask = rng.random((len(x), 1)) < 0.5 if extras == "mask" else np.ones((len(x), 1), bool)
    given = {"weights": weights} if extras == "weights" else {"mask": mask} if extras == "mask" else {}
    moments = gn.feature_norm().adapt(x, **given).moments
    for feature in range(4):
        pairs = [
            (Fraction(float(v)), Fraction(w))
            for v, w in zip(x[:, feature], (weights * mask)[:, 0].tolist(), strict=True)
        ]
        total = sum(w for _, w in pairs)
        mean = sum(v * w for v, w in pairs) / total
        m2 = sum(w * (v - mean) ** 2 for v, w in pairs)
        assert moments.count[feature] == total
        assert abs(Fraction(float(moments.mean[feature])) - mean) <= np.spacing(abs(float(mean))) + 2**-50
        assert abs(Fraction(float(moments.m2[feature])) - m2) <= m2 * 2**-46


@pytest.mark.parametrize("rows", [8, 6000])
@pytest.mark.parametrize(
    "values", [[1.7e308, 1.5e308], [np.inf, 1.0], [-np.inf, np.inf], [1e-170, 3e-170], [1e200, 0.0]]
)
@pytest.mark.parametrize("error", ["ignore", "raise"])
def test_extreme_values_are_right_or_not_finite(rows, values, error):
    x = np.tile(np.array(values)[:, None], (rows // 2, 1)) * np.ones(2)
    x[:, 1] = 0
    with np.errstate(all="ignore"):
        mean, variance = np.ldexp(np.ldexp(x, -20).mean(0), 20), x.var(0)
        if abs(values[0]) > 1e300:
            variance[0] = np.inf if np.isfinite(values[0]) else np.nan
    finite = np.isfinite(variance).all()
    with np.errstate(all=error):
        for reset in (True, False):
            layer = gn.feature_norm()
            with nullcontext() if finite else pytest.warns(RuntimeWarning, match="1 of 2 variances are not finite"):
                layer.adapt(x[:2])
            with nullcontext() if finite else pytest.warns(RuntimeWarning, match="1 of 2 variances are not finite"):
                layer.adapt(x, reset=reset)
            np.testing.assert_allclose(layer.moments.mean, mean, rtol=1e-12)  # NumPy adds one after another
            np.testing.assert_allclose(layer.moments.variance(), variance, rtol=1e-11)


@pytest.mark.parametrize("weight", [1e39, 1e-46, 16777217.0, 0.1])
@pytest.mark.parametrize("dtype", ["float16", "float32", "int8", "float64"])
@pytest.mark.parametrize("rows", [8, 6000])
def test_weights_are_float64_whatever_the_data(weight, dtype, rows):
    x = np.random.default_rng(2).integers(0, 5, (rows, 2)).astype(dtype)
    weights = np.full((rows, 1), weight)
    moments = gn.feature_norm().adapt(x, weights=weights).moments
    np.testing.assert_allclose(moments.count, rows * weight, rtol=1e-13)
    np.testing.assert_allclose(moments.mean, x.mean(0, dtype=float), rtol=1e-13)
    np.testing.assert_allclose(moments.variance(), x.var(0, dtype=float), rtol=1e-12)


def test_a_small_step_is_a_few_numpy_calls():
    """Reinforcement learning adapts at every step; this took a hundred times as long once."""
    x = np.random.default_rng(3).normal(size=(8, 17)).astype(np.float32)
    layer = gn.feature_norm().adapt(x)
    best = dict.fromkeys(("adapt", "numpy"), np.inf)
    for _ in range(60):
        for name in best:
            start = time.perf_counter()
            for _ in range(10):
                layer.adapt(x, reset=False) if name == "adapt" else (x.mean(0), x.var(0))
            best[name] = min(best[name], time.perf_counter() - start)
    assert best["adapt"] < 6 * best["numpy"]
    same(layer.moments, gn.Moments.of(np.tile(x, (601, 1)).astype(float), axes=0))


def test_a_stream_of_single_examples_does_not_warn():
    x = np.random.default_rng(4).normal(size=(20, 3))
    layer = gn.feature_norm()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for row in x:
            layer.adapt(row, reset=False)
    same(layer.moments, gn.Moments.of(x, axes=0))
    same(gn.feature_norm().adapt(iter(x)).moments, gn.Moments.of(x, axes=0))
    declared = gn.feature_norm(input_shape=(3,)).adapt(x[0])
    same(declared.moments, gn.Moments.of(x[:1], axes=0))


# NaN ---------------------------------------------------------------------------------------------------

MISSING = {"nothing": {}, "mask": {"mask": np.arange(6) % 2 == 0}, "weights": {"weights": np.arange(6.0)}}


@pytest.mark.parametrize("extras", MISSING)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
@pytest.mark.parametrize("rows", [6, 6000])
@pytest.mark.parametrize("form", ["array", "batches", "reset=False"])
@pytest.mark.parametrize("method", ["Standardize", "RMS"])
def test_nan(form, rows, dtype, extras, method):
    x = numbers(dtype, rows, 1)
    x[2, 1] = np.nan
    given = {name: np.tile(value, rows // 6)[:, None] for name, value in MISSING[extras].items()}
    layer = gn.feature_norm(method=method)
    expected = gn.Moments.of(x, axes=0, method=method, **given)

    def adapt(nan):
        values, more = x, given
        if form == "batches":
            values, more = [x[:3], x[3:]], {name: [value[:3], value[3:]] for name, value in given.items()}
        return layer.adapt(values, nan=nan, reset=form != "reset=False", **more).moments

    with pytest.raises(gn.errors.ParameterError, match=r"has NaN at \(2, 1\)\nwrite nan=\"omit\""):
        adapt("raise")
    assert layer.moments is None
    with pytest.warns(RuntimeWarning, match="1 of 4 variances are not finite"):
        found = adapt("propagate")
    assert np.isnan(found.m2).tolist() == np.isnan(expected.m2).tolist() == [False, True, False, False]
    layer.reset_moments()
    found = adapt("omit")
    clean = given | {"mask": given.get("mask", np.True_) & ~np.isnan(x)}
    same(found, gn.Moments.of(x, axes=0, method=method, **clean), 1e-11)


# What is refused, and what stays then ------------------------------------------------------------------


def batches(count, array=None):
    return (np.ones(3, bool) if array is None else array for _ in range(count))


@pytest.mark.parametrize(
    ("given", "kind", "text"),
    [
        ({"mask": batches(3)}, gn.errors.ParameterError, "there are 2 batches of data, and more arrays of mask"),
        ({"weights": [1, 2, 3]}, gn.errors.ParameterError, "there are 2 batches of data, and more arrays of weights"),
        ({"weights": object()}, gn.errors.InputError, "weights for an iterable of batches is of type object"),
        ({"weights": "heavy"}, gn.errors.InputError, 'weights for an iterable of batches is "heavy"'),
        ({"mask": True}, gn.errors.InputError, "mask for an iterable of batches is True"),
    ],
)
def test_masks_and_weights_of_batches(given, kind, text):
    layer = gn.feature_norm()
    with pytest.raises(kind, match=text):
        layer.adapt([DATA, DATA + 1], **given)
    assert layer.moments is None


def test_a_number_is_the_weight_of_every_element():
    for weights in (0.5, np.float32(0.5), np.array(0.5), [0.5, 0.5]):
        layer = gn.feature_norm().adapt([DATA, DATA], weights=weights)
        assert layer.moments.count.tolist() == [4, 4, 4]
    assert gn.feature_norm().adapt(DATA, weights=0.5).moments.count.tolist() == [2, 2, 2]


@pytest.mark.parametrize("name", ["mask", "weights"])
@pytest.mark.parametrize(
    ("shape", "of", "text"),
    [
        ((4,), (4, 3), "; write {}[:, None]"),
        ((4, 2), (4, 2, 3), "; write {}[:, :, None]"),
        ((2,), (4, 2, 3), "; write {}[None, :, None]"),
        ((3,), (3, 3), "write {}[:, None] for the first axes, or {}[None, :] for the last"),
        ((2, 2), (2, 2, 2), "write {}[:, :, None] for the first axes, or {}[None, :, :] for the last"),
        ((1, 2), (5, 2, 2), "write {}[:, :, None] for the first axes, or {}[None, :, :] for the last"),
    ],
)
def test_values_that_could_mean_two_axes_are_refused_everywhere(shape, of, text, name):
    x, values = np.ones(of), np.ones(shape, bool)
    calls = [
        lambda: gn.feature_norm().adapt(x, **{name: values}),
        lambda: gn.feature_norm().adapt([x, x], **{name: values}),
        lambda: gn.Moments.of(x, **{name: values}),
    ]
    layer = gn.layer_norm(of[-1])
    if name == "mask":
        calls += [lambda: layer(x, mask=values), lambda: layer.measure(x, values), lambda: layer.vjp(x, mask=values)]
    for call in calls:
        with pytest.raises(gn.errors.ShapeError) as caught:
            call()
        assert text.format(name, name) in str(caught.value)


@pytest.mark.parametrize("held", [(), (1,), (1, 3)])
def test_moments_of_other_slices_are_not_added(held):
    layer = gn.feature_norm().adapt(DATA)
    layer._state = layer._state.holding(gn.Moments.from_variance(np.zeros(held), np.ones(held)))
    with pytest.raises(gn.errors.ParameterError, match=r"the layer holds moments of shape .* have the shape \(3,\)"):
        layer.adapt(DATA, reset=False)
    assert layer.moments.shape == held


# Memory ------------------------------------------------------------------------------------------------


def test_mask_and_weights_together_take_the_memory_of_a_chunk(monkeypatch):
    monkeypatch.setattr(adapting, "CHUNK", 1 << 16)
    x = np.ones((100_000, 4), np.float32)
    mask, weights = np.ones(x.shape, bool), np.ones(x.shape, np.float32)
    gn.feature_norm().adapt(x[:5000], mask=mask[:5000], weights=weights[:5000])
    tracemalloc.start()
    gn.feature_norm().adapt(x, mask=mask, weights=weights)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < x.nbytes // 2


def resident(path):
    """Bytes of a mapped file that are in the memory of the process."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    total = 0
    for line in lines:
        if line.endswith(str(path)):
            total += next(int(entry.split()[1]) for entry in lines if entry.startswith("Rss:")) << 10
    return total


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs /proc/self/smaps")
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("key", [np.s_[:], np.s_[::3], np.s_[::-1], np.s_[:, ::2]])
def test_pages_of_a_mapped_file_are_released(tmp_path, monkeypatch, order, key):
    monkeypatch.setattr(adapting, "CHUNK", 1 << 20)
    x = np.asarray(np.random.default_rng(5).normal(size=(1_000_000, 8)).astype(np.float32), order=order)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    layer = gn.feature_norm().adapt(mapped[key])
    assert resident(tmp_path / "x.npy") < x.nbytes // 8
    same(layer.moments, gn.Moments.of(x[key], axes=0))


def test_before_there_are_moments_a_call_is_an_error():
    layer = gn.feature_norm()
    for call in (layer, layer.inverse, layer.vjp):
        with pytest.raises(gn.GennormError, match="the layer has no moments yet"):
            call(DATA)
    with pytest.raises(gn.GennormError, match="takes no moments from a data set"):
        gn.batch_norm(3).adapt(DATA)


def broken():
    yield DATA
    raise OSError(5, "the disk is gone")


def interrupted():
    yield DATA
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("data", "kind", "text"),
    [
        (lambda: (DATA, DATA[:, 0]), gn.errors.InputError, "the data are a pair"),
        (lambda: [(DATA, DATA[:, 0])], gn.errors.InputError, r"batch 1 of the data is a tuple.*\n.*only x"),
        (lambda: [DATA, DATA.tolist()], gn.errors.InputError, "batch 2 of the data is a list"),
        (lambda: 5, gn.errors.InputError, "the data are of type int"),
        (lambda: DATA.astype(complex), gn.errors.DtypeError, "the data has the dtype complex128"),
        (lambda: [DATA, DATA[:, :2]], gn.errors.ShapeError, "batch 2 of the data has slices of shape"),
        (list, gn.errors.InitializationError, "the data have no element that counts"),
        (lambda: DATA[:0], gn.errors.InitializationError, "the data have no element that counts"),
        (lambda: np.ma.masked_array(DATA), gn.errors.InputError, "masked array"),
        (broken, OSError, "the disk is gone"),
        (interrupted, KeyboardInterrupt, None),
    ],
)
@pytest.mark.parametrize("reset", [True, False])
def test_all_or_nothing(data, kind, text, reset):
    layer = gn.feature_norm().adapt(2 * DATA)
    before = layer.moments
    with pytest.raises(kind, match=text):
        layer.adapt(data(), reset=reset)
    assert layer.moments is before


@pytest.mark.parametrize(
    ("extras", "text"),
    [
        ({"mask": np.ones(3)}, "mask has the dtype float64"),
        ({"mask": np.ones(2, bool)}, r"mask of shape \(2,\) does not broadcast"),
        ({"mask": np.zeros(3, bool)}, "the data have no element that counts"),
        ({"weights": [-1.0, 1.0, 1.0]}, "a weight is -1.0"),
        ({"weights": np.ones(3) * np.nan}, "a weight is nan"),
    ],
)
def test_masks_and_weights_that_do_not_fit(extras, text):
    with pytest.raises(gn.GennormError, match=text):
        gn.feature_norm().adapt(DATA, **extras)
    with pytest.raises(gn.GennormError, match="there are 1 arrays of mask"):
        gn.feature_norm().adapt([DATA, DATA], mask=[np.ones(3, bool)])


def test_levels_that_cannot_be_kept():
    with pytest.raises(gn.GennormError, match="level 0 is the batch"):
        gn.feature_norm(0)
    with pytest.raises(gn.GennormError, match="does not exist in a batch of arrays of rank 1"):
        gn.feature_norm(3).adapt(DATA)


# Progress ----------------------------------------------------------------------------------------------


class Terminal:
    """Standard error, and whether somebody looks."""

    def __init__(self, looked_at):
        self.looked_at, self.text = looked_at, ""

    def isatty(self):
        return self.looked_at

    def write(self, text):
        self.text += text
        return len(text)

    def flush(self):
        pass


@pytest.mark.parametrize("bar", ["tqdm", "rich", "line"])
@pytest.mark.parametrize(
    ("wanted", "looked_at", "patience", "shown"),
    [(None, True, -1, True), (None, True, 60, False), (None, False, -1, False), (True, False, 60, True),
     (False, True, -1, False)],
)  # fmt: skip
def test_progress(monkeypatch, small_chunks, bar, wanted, looked_at, patience, shown):
    terminal = Terminal(looked_at)
    hidden = {"tqdm": [], "rich": ["tqdm"], "line": ["tqdm", "rich.console"]}[bar]
    for name in hidden:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(adapting, "PATIENCE", patience)
    monkeypatch.setattr(adapting, "RUN", 1)
    x = np.ones((1000, 3))
    gn.feature_norm().adapt(x, progress=wanted)
    gn.feature_norm().adapt((x for _ in range(2)), progress=wanted)
    assert bool(terminal.text) == shown
    if bar == "line" and shown:
        assert terminal.text.endswith("2,000 examples\n")
        assert "\r1,000 of 1,000 examples\n" in terminal.text


# Layouts of small arrays: the layer, the shape of a batch, and what brings the aggregated axes to the front.
STEPS = {
    "features": (gn.feature_norm, (8, 17)),
    "one feature": (gn.feature_norm, (3, 1)),
    "more features than a vector has": (gn.feature_norm, (4, 40)),
    "channels first": (lambda: gn.NormalizationLayer("{0, 2;;All}", batched=True, statistics="dataset"), (2, 3, 5)),
    "channels last": (lambda: gn.NormalizationLayer("{0, 1}", batched=True, statistics="dataset"), (2, 5, 3)),
    "groups": (lambda: gn.NormalizationLayer("{0, 1}", 1, {1: 2}, batched=True, statistics="dataset"), (2, 4, 3)),
    "one slice": (lambda: gn.feature_norm(None), (4, 3)),
}


@pytest.mark.parametrize("center", [0.0, 1e6, 1e12])
@pytest.mark.parametrize("name", STEPS)
def test_small_batches_are_merged_in_one_pass_as_exactly_as_in_two(name: str, center: float) -> None:
    make, shape = STEPS[name]
    rng = np.random.default_rng(3)
    x = center + rng.normal(size=(40, *shape))
    x[..., -1] = center  # a constant, and a part of the slices of other layouts
    layer = make().adapt(x[:2].reshape(-1, *shape[1:]))
    assert layer.moments is not None
    for batch in x[2:]:
        following = adapting.extended(layer.moments, batch, layer._state.config)
        layer.adapt(batch, reset=False)
        if following is not None:
            assert following == layer.moments
    whole = make().adapt(x.reshape(-1, *shape[1:])).moments
    np.testing.assert_array_equal(layer.moments.count, whole.count)
    np.testing.assert_allclose(layer.moments.mean, whole.mean, rtol=2**-52, atol=1e-14)
    np.testing.assert_allclose(layer.moments.m2, whole.m2, rtol=1e-13, atol=1e-25)


def test_what_one_pass_would_lose_is_measured_in_two() -> None:
    for values in ([np.nan], [np.inf], [1e-160], [1e200], [1.0] * 3):
        held = gn.Moments.of(np.array([[0.0], [0.0]]), axes=0)
        config = gn.feature_norm()._state.config
        assert adapting.extended(held, np.array(values)[:, None], config) is None
    rms = gn.Moments([4.0], None, [1.0])
    assert adapting.extended(rms, np.ones((1, 1)), gn.feature_norm()._state.config) is None


def test_adapting_while_another_thread_adapts_loses_nothing() -> None:
    layer = gn.feature_norm().adapt(np.zeros((4, 3)))

    def adapt() -> None:
        for _ in range(200):
            layer.adapt(np.ones((1, 3)), reset=False)

    threads = [threading.Thread(target=adapt) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert layer.moments is not None
    np.testing.assert_array_equal(layer.moments.count, 4 + 4 * 200)
