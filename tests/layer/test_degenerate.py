"""Slices that have no normalization: one policy, for every preset, in the output and in its derivatives."""

import numpy as np
import pytest

import gennorm as gn
from spec import reference
from tests.strategies import dtype_of, sample, slow

SHAPE = (4, 6, 5)
PRESETS = {
    "batch_norm": lambda **keywords: gn.batch_norm(6, **{"statistics": "input", **keywords}),
    "batch_norm, channels last": lambda **keywords: gn.batch_norm(
        5, channel_level=-1, **{"statistics": "input", **keywords}
    ),
    "batch_norm, training": lambda **keywords: gn.batch_norm(6, **keywords),
    "layer_norm": lambda **keywords: gn.layer_norm(5, **keywords),
    "layer_norm, two levels": lambda **keywords: gn.layer_norm((6, 5), **keywords),
    "rms_norm": lambda **keywords: gn.rms_norm(5, **keywords),
    "instance_norm": lambda **keywords: gn.instance_norm(6, **keywords),
    "group_norm": lambda **keywords: gn.group_norm(3, 6, **keywords),
    "group_norm, channels last": lambda **keywords: gn.group_norm(5, 5, channel_level=-1, **keywords),
}
# Shapes that leave a slice one element, where there is one.
LONE = {
    "batch_norm": (1, 6, 1),
    "batch_norm, channels last": (1, 1, 5),
    "batch_norm, training": (1, 6, 1),
    "layer_norm": (4, 6, 1),
    "layer_norm, two levels": (4, 1, 1),
    "rms_norm": (4, 6, 1),
    "instance_norm": (4, 6, 1),
    "group_norm": (4, 3, 1),
    "group_norm, channels last": (4, 1, 5),
}
LAYERS_OF_ONE = {
    "layer_norm": lambda **keywords: gn.layer_norm(1, **keywords),
    "layer_norm, two levels": lambda **keywords: gn.layer_norm((1, 1), **keywords),
    "rms_norm": lambda **keywords: gn.rms_norm(1, **keywords),
    "group_norm": lambda **keywords: gn.group_norm(3, 3, **keywords),
}
every_preset = pytest.mark.parametrize("preset", PRESETS)
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64", slow("float16")])


def training(preset):
    return {"training": True} if preset.endswith("training") else {}


def made(preset, **keywords):
    """The preset with biases of 2, 3, ... and scaling of 0.5, 1, ..."""
    layer = {**PRESETS, **keywords.pop("instead", {})}[preset](**keywords)
    for name, first, step in (("scaling", 0.5, 0.5), ("biases", 2.0, 1.0)):
        value = getattr(layer, name)
        if value is not None:
            value[...] = np.arange(value.size).reshape(value.shape) * step + first
    return layer


def settings_of(layer):
    """The layer in the reference's words."""
    names = ("aggregation_levels", "scaling_levels", "group_number", "method", "unbiased", "epsilon")
    settings = {name: layer.information(name) for name in (*names, "epsilon_placement")}
    return {**settings, "batched": bool(layer.information("batched"))}


def biases_of(layer, x):
    """What is left where a slice has no deviation: the biases, or 0."""
    nothing = np.zeros(x.shape)
    if layer.biases is None:
        return nothing
    settings = {**settings_of(layer), "epsilon": 1.0, "unbiased": False}
    return reference.normalize(nothing, **settings, biases=layer.biases)


def derivatives(layer, x, dy, **call):
    """The output, the gradients and the derivative along a direction; the reference has the same."""
    y, pullback = layer.vjp(x, **call)
    found, along = pullback(dy), layer.jvp(x, dy, **call)[1]
    others = {"scaling": layer.scaling, "biases": layer.biases, "mask": call.get("mask")}
    dx, dscaling, dbiases = reference.vjp(x.astype(float), dy.astype(float), **settings_of(layer), **others)
    exact = reference.normalize(x.astype(float), **settings_of(layer), **others)
    close = {"rtol": 4e-3, "atol": 4e-3} if y.dtype == np.float16 else {"rtol": 2e-5, "atol": 2e-5}
    scale = max(1.0, np.abs(dx[np.isfinite(dx)]).max(initial=0.0))
    np.testing.assert_allclose(y.astype(float), exact, **close)
    np.testing.assert_allclose(found.input.astype(float) / scale, dx / scale, **close)
    for one, other in ((found.scaling, dscaling), (found.biases, dbiases)):
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_allclose(one, other, rtol=1e-2 if y.dtype == np.float16 else 1e-4, atol=1e-3)
    return y, found, along


def direction(shape, dtype):
    return (np.random.default_rng(1).integers(-8, 9, shape) / 4).astype(dtype_of(dtype))


# ------------------------------------------------------------------------------------------------ zero variance (8.1-3)


@every_preset
@dtypes
@pytest.mark.parametrize("placement", ["inside", "floor", "outside"])
def test_zero_variance_without_epsilon(preset, dtype, placement):
    """8.2: the output is the biases; nothing reaches the input or the scaling, the biases get what they always do."""
    layer = made(preset, epsilon=0, epsilon_placement=placement)
    value = 0.0 if preset == "rms_norm" else 0.1
    x, dy = np.full(SHAPE, value, dtype_of(dtype)), direction(SHAPE, dtype)
    y, found, along = derivatives(layer, x, dy, **training(preset))
    np.testing.assert_array_equal(y, biases_of(layer, x).astype(y.dtype))
    assert not found.input.any()
    assert not along.any()
    assert not found.scaling.any()
    if found.biases is not None:
        assert found.biases.any()


@every_preset
@dtypes
def test_zero_variance_with_epsilon(preset, dtype):
    """8.3: nothing special. A constant slice has variance 0 exactly, so its output is the biases exactly."""
    layer = made(preset, epsilon=0.25)
    x, dy = np.full(SHAPE, 0.1, dtype_of(dtype)), direction(SHAPE, dtype)
    y, found, _ = derivatives(layer, x, dy, **training(preset))
    if preset != "rms_norm":
        np.testing.assert_array_equal(y, biases_of(layer, x).astype(y.dtype))
        assert not layer.measure(x).m2.any()
        assert not found.scaling.any()
    assert found.input.any()


@every_preset
@pytest.mark.parametrize("value", [0.1, 1e30, -1e-30, 16777217.0, 1 / 3])
def test_a_constant_slice_has_no_deviation(preset, value):
    """8.1, for numbers whose sums are rounded; among slices that have a deviation."""
    layer = made(preset, epsilon=0)
    if preset == "rms_norm":
        return
    for dtype in ("float32", "float64"):
        x = np.full(SHAPE, value, dtype)
        moments = layer.measure(x)
        assert not moments.m2.any()
        np.testing.assert_array_equal(moments.mean, np.full(moments.shape, x.flat[0], np.float64))


# ---------------------------------------------------------------------------------------------------------- one element


@every_preset
@dtypes
@pytest.mark.parametrize("epsilon", [0.0, 0.25])
def test_one_element(preset, dtype, epsilon):
    """A slice of one element has variance 0; its output does not depend on it."""
    layer = made(preset, epsilon=epsilon, instead=LAYERS_OF_ONE)
    x, dy = sample(LONE[preset], dtype), direction(LONE[preset], dtype)
    assert (layer.measure(x).count == 1).all()
    y, found, along = derivatives(layer, x, dy, **training(preset))
    if preset == "rms_norm":
        root = np.sqrt(x.astype(float) ** 2 + epsilon)
        np.testing.assert_allclose(y.astype(float), layer.scaling * x.astype(float) / root, rtol=2e-3)
        return
    np.testing.assert_array_equal(y, biases_of(layer, x).astype(y.dtype))
    room = 2e-3 if dtype == "float16" else 1e-5
    np.testing.assert_allclose(found.input.astype(float), 0, atol=room * 2 * 100)
    np.testing.assert_allclose(along.astype(float), 0, atol=room * 2 * 100)
    assert not found.scaling.any()


PLACEMENTS = [
    (placement, epsilon) for placement in ("inside", "floor", "outside") for epsilon in (0.0, 1e-16, 1e-8, 0.25)
]
placements = pytest.mark.parametrize(("placement", "epsilon"), PLACEMENTS)


@every_preset
@dtypes
@placements
def test_the_only_element_has_no_gradient(preset, dtype, placement, epsilon):
    """For rounding either, however much a deviation of 0 is magnified."""
    if preset == "rms_norm":
        return
    layer = made(preset, epsilon=epsilon, epsilon_placement=placement, instead=LAYERS_OF_ONE)
    x = sample(LONE[preset], dtype)
    dy = np.random.default_rng(1).normal(size=x.shape).astype(x.dtype)
    y, pullback = layer.vjp(x, **training(preset))
    found, along = pullback(dy), layer.jvp(x, dy, **training(preset))[1]
    np.testing.assert_array_equal(y, biases_of(layer, x).astype(y.dtype))
    assert not found.input.any()
    assert not found.scaling.any()
    assert not along.any()


@pytest.mark.parametrize("levels", [2, 1])
@pytest.mark.parametrize("method", ["Standardize", "RMS"])
def test_one_element_by_given_or_shared_moments(method, levels):
    """Moments that are given, or those of other arrays too, make one element as any other."""
    layer = gn.NormalizationLayer(levels, (), scaling=None, biases=None, method=method, epsilon=0.25)
    x = np.array([[3.0], [4.0]]) if levels == 2 else np.array([[3.0, 4.0]])
    given = gn.Moments.from_variance(np.zeros(2), np.full(2, 3.75))
    _, pullback = layer.vjp(x, moments=given)
    assert (pullback(np.ones_like(x)).input == 0.5).all()
    if method == "Standardize":
        both = gn.Moments(np.full(2, 4.0), np.zeros(2), np.full(2, 15.0))
        _, pullback = layer.vjp(x, moments=both, shared=True)
        assert pullback(np.ones_like(x), merge=lambda sums: sums).input.any()


@every_preset
@dtypes
@placements
def test_constant_slices_by_placement(preset, dtype, placement, epsilon):
    """8.2 and 8.3, in the output and in both derivatives."""
    value = 0.0 if epsilon == 0 and preset == "rms_norm" else 0.5
    layer = made(preset, epsilon=epsilon, epsilon_placement=placement)
    x, dy = np.full(SHAPE, value, dtype_of(dtype)), direction(SHAPE, dtype)
    if dtype == "float16" and 0 < epsilon < 1e-3:  # the gradient is out of its range
        return
    y, found, along = derivatives(layer, x, dy, **training(preset))
    if preset != "rms_norm":
        np.testing.assert_array_equal(y, biases_of(layer, x).astype(y.dtype))
        assert not found.scaling.any()
    if epsilon == 0:
        assert not found.input.any()
        assert not along.any()


@every_preset
@dtypes
@placements
def test_nothing_counted_by_placement(preset, dtype, placement, epsilon):
    """8.4, in the output and in both derivatives."""
    layer = made(preset, epsilon=epsilon, epsilon_placement=placement)
    x, dy = sample(SHAPE, dtype), direction(SHAPE, dtype)
    if dtype == "float16" and 0 < epsilon < 1e-3:  # out of its range
        return
    y, found, along = derivatives(layer, x, dy, mask=np.zeros((1,), bool), **training(preset))
    if epsilon == 0:
        np.testing.assert_array_equal(y, biases_of(layer, x).astype(y.dtype))
        assert not found.input.any()
        assert not along.any()


@every_preset
def test_unbiased_with_one_element(preset):
    """2.3: the shape says that there is no variance, and no call is made."""
    if preset == "rms_norm":
        with pytest.raises(gn.GennormError, match="unbiased"):
            gn.rms_norm(5, unbiased=True)
        return
    layer = made(preset, unbiased=True, instead=LAYERS_OF_ONE)
    x, out = sample(LONE[preset]), np.full(LONE[preset], 7, np.float32)
    for call in (
        lambda: layer(x, out=out, **training(preset)),
        lambda: layer.vjp(x, **training(preset)),
        lambda: layer.jvp(x, x, **training(preset)),
    ):
        with pytest.raises(gn.GennormError, match="unbiased=True over one element"):
            call()
    assert (out == 7).all()


@every_preset
@dtypes
def test_unbiased_where_a_mask_leaves_one(preset, dtype):
    """8.5: the variance is 0, and the output is the distance from that one element, over what epsilon leaves."""
    if preset == "rms_norm":
        return
    layer = made(preset, unbiased=True, epsilon=0.25)
    x, dy = sample(SHAPE, dtype), direction(SHAPE, dtype)
    counts = layer.measure(x).count.shape
    where = reference.geometry(SHAPE, *[settings_of(layer)[name] for name in (
        "aggregation_levels", "scaling_levels", "group_number", "batched")])  # fmt: skip
    places = np.arange(x.size).reshape(where.split)
    last = places.max(axis=where.aggregated)
    mask = np.isin(np.arange(x.size).reshape(SHAPE), last)
    moments = layer.measure(x, mask)
    np.testing.assert_array_equal(moments.count, np.ones(counts))
    assert not moments.m2.any()
    y, found, _ = derivatives(layer, x, dy, mask=mask, **training(preset))
    np.testing.assert_array_equal(y[mask], biases_of(layer, x)[mask].astype(y.dtype))
    assert found.input[~mask].any()


# ------------------------------------------------------------------------------------------------ nothing counted (8.4)


@every_preset
@dtypes
@pytest.mark.parametrize("epsilon", [0.0, 0.25])
def test_nothing_counted(preset, dtype, epsilon):
    """Mean 0 and variance 0: a multiple of the input, or the biases; the moments are no part of the derivative."""
    layer = made(preset, epsilon=epsilon)
    x, dy = sample(SHAPE, dtype), direction(SHAPE, dtype)
    mask = np.zeros((1,), bool)
    y, found, along = derivatives(layer, x, dy, mask=mask, **training(preset))
    if epsilon == 0:
        np.testing.assert_array_equal(y, biases_of(layer, x).astype(y.dtype))
        assert not found.input.any()
        assert not along.any()
        assert not found.scaling.any()
        return
    gains = reference.normalize(
        np.ones(SHAPE), **{**settings_of(layer), "unbiased": False}, scaling=layer.scaling, mask=mask
    )
    room = {"rtol": 2e-3, "atol": 1e-2} if dtype == "float16" else {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(found.input.astype(float), gains * dy, **room)
    np.testing.assert_allclose(along.astype(float), gains * dy, **room)
    np.testing.assert_allclose(y.astype(float), gains * x + biases_of(layer, x), **room)


# ----------------------------------------------------------------------------------------------- without elements (8.6)

EMPTY = {
    "batch_norm": [(0, 6, 5), (4, 6, 0), (0, 6, 0)],
    "batch_norm, channels last": [(0, 6, 5), (4, 0, 5)],
    "batch_norm, training": [(0, 6, 5), (4, 6, 0)],
    "layer_norm": [(0, 6, 5), (4, 0, 5)],
    "layer_norm, two levels": [(0, 6, 5)],
    "rms_norm": [(0, 6, 5), (4, 0, 5)],
    "instance_norm": [(0, 6, 5), (4, 6, 0)],
    "group_norm": [(0, 6, 5), (4, 6, 0)],
    "group_norm, channels last": [(0, 6, 5), (4, 0, 5)],
}


@pytest.mark.parametrize(("preset", "shape"), [(preset, shape) for preset, shapes in EMPTY.items() for shape in shapes])
@dtypes
def test_an_array_without_elements(preset, shape, dtype):
    """Of its batch, or of what is aggregated: an output without elements, gradients of zeros, counts of 0."""
    layer = made(preset)
    x = np.empty(shape, dtype_of(dtype))
    before = layer.moments
    for call in ({}, {"mask": np.ones(shape, bool)}, {"mask": np.array(True)}):
        y, pullback = layer.vjp(x, **call, **training(preset))
        found = pullback(x)
        y_too, along = layer.jvp(x, x, **call, **training(preset))
        for array in (y, found.input, y_too, along, layer(x, **call, **training(preset))):
            assert array.shape == shape
            assert array.dtype == x.dtype
        for name in ("scaling", "biases"):
            gradient, value = getattr(found, name), getattr(layer, name)
            assert (gradient is None) == (value is None)
            if value is not None:
                assert gradient.shape == value.shape
                assert not gradient.any()
    moments = layer.measure(x)
    assert not moments.count.any()
    assert moments.mean is None or not moments.mean.any()
    assert layer.moments == before


@pytest.mark.parametrize("preset", EMPTY)
def test_an_empty_array_is_written_to_out(preset):
    layer = made(preset)
    for shape in EMPTY[preset]:
        x = np.empty(shape, np.float32)
        out = np.empty_like(x)
        assert layer(x, out=out, **training(preset)) is out


@pytest.mark.parametrize("shape", [(0, 2), (0, 0)])
def test_groups_without_elements(shape):
    """A batch of nothing, in groups: as many slices as groups, with nothing in them."""
    layer = gn.NormalizationLayer(0, 1, 2, input_shape=(None,), batched=True, scaling=None, biases=None)
    x = np.empty(shape)
    assert layer(x).shape == shape
    assert not layer.measure(x).count.any()
    assert layer.vjp(x)[1](x).input.shape == shape


@pytest.mark.parametrize("preset", ["layer_norm", "rms_norm"])
def test_parameters_without_elements(preset):
    layer = getattr(gn, preset)(0)
    x = np.empty((3, 0))
    y, pullback = layer.vjp(x)
    assert y.shape == pullback(x).input.shape == (3, 0)
    assert pullback(x).scaling.shape == (0,)


# ----------------------------------------------------------------------------------------------------- not finite (9.1)


@every_preset
@dtypes
@pytest.mark.parametrize("spoil", [np.nan, np.inf, -np.inf])
def test_members_that_are_not_finite(preset, dtype, spoil):
    """What IEEE arithmetic makes of the formulas in their slice, and nothing in any other slice, to the bit."""
    layer = made(preset)
    x, dy = sample(SHAPE, dtype), direction(SHAPE, dtype)
    clean = (
        layer(x, **training(preset)),
        layer.vjp(x, **training(preset))[1](dy),
        layer.jvp(x, dy, **training(preset))[1],
    )
    x[1, 2, 3] = spoil
    marked = np.zeros(SHAPE)
    marked[1, 2, 3] = 1
    settings = settings_of(layer)
    where = reference.geometry(SHAPE, *[settings[name] for name in (
        "aggregation_levels", "scaling_levels", "group_number", "batched")])  # fmt: skip
    inside = where.over_slices(where.total(marked)) > 0
    assert inside.any()
    assert not inside.all()
    y, pullback = layer.vjp(x, **training(preset))
    found, along = pullback(dy), layer.jvp(x, dy, **training(preset))[1]
    exact = reference.normalize(x.astype(float), **settings, scaling=layer.scaling, biases=layer.biases)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(exact))
    if preset == "rms_norm" and np.isinf(spoil):
        assert (y[inside] == 0).sum() == inside.sum() - 1
    else:
        assert np.isnan(y[inside]).all()
    for one, other in ((y, clean[0]), (found.input, clean[1].input), (along, clean[2])):
        assert one[~inside].tobytes() == other[~inside].tobytes()
    dx, dscaling, dbiases = reference.vjp(
        x.astype(float), dy.astype(float), **settings, scaling=layer.scaling, biases=layer.biases
    )
    np.testing.assert_array_equal(np.isnan(found.input), np.isnan(dx))
    np.testing.assert_array_equal(np.isnan(found.scaling), np.isnan(dscaling))
    if dbiases is not None:
        np.testing.assert_allclose(found.biases, dbiases, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------------ moments that are held


@pytest.mark.parametrize("epsilon", [0.0, 0.25])
def test_features_that_never_varied(epsilon):
    """A data set's constant feature, and moving moments without deviation: as any slice of variance 0."""
    data = np.array([[1.0, 5.0], [1.0, 7.0], [1.0, 9.0]])
    layer = gn.feature_norm(epsilon=epsilon).adapt(data)
    x = np.array([[1.0, 7.0], [3.0, 7.0]])
    y, pullback = layer.vjp(x)
    assert y.tolist() == [[0.0, 0.0], [2 / epsilon if epsilon else 0.0, 0.0]]
    found = pullback(np.ones((2, 2)))
    assert found.input[:, 0].tolist() == [1 / epsilon if epsilon else 0.0] * 2
    assert (found.scaling, found.biases) == (None, None)
    np.testing.assert_array_equal(layer.inverse(y), np.where([[True, True], [bool(epsilon), True]], x, 1.0))
    moving = gn.batch_norm(1, epsilon=epsilon, dtype="float64")
    moving.moments = gn.Moments.from_variance([3.0], [0.0])
    y, pullback = moving.vjp(np.array([[5.0]]))
    assert y.item() == (2 / np.sqrt(epsilon) if epsilon else 0.0)
    assert pullback(np.ones((1, 1))).input.item() == (1 / np.sqrt(epsilon) if epsilon else 0.0)
