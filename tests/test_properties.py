"""What holds for every layer and every array: sums and squares, batches, groups, orders, layouts, threads, merging."""

import functools
import itertools
import operator

import numpy as np
import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

import gennorm as gn
from gennorm.engine import sharing
from gennorm.spec.config import LayerConfig, resolve_config
from spec import reference
from tests import engines, strategies
from tests.accuracy import V, judge
from tests.strategies import dtype_of, named_layouts, sample

# An example takes milliseconds.
many = settings(max_examples=4 * settings.default.max_examples)


def layer_of(case, **others):
    """The layer of a case; its parameters differ from place to place."""
    layer = gn.NormalizationLayer(**{**case.settings, **others}).initialize(case.shape)
    for seed, name in enumerate(("scaling", "biases")):
        value = getattr(layer, name)
        if value is not None:
            value[...] = np.random.default_rng(seed).normal(1 - seed, 0.5, value.shape)
    return layer


def same(one, two):
    """Equal to the bit, NaN included."""
    assert one.dtype == two.dtype
    assert one.shape == two.shape
    assert np.ascontiguousarray(one).tobytes() == np.ascontiguousarray(two).tobytes()


def slices_of(y, case):
    """Sum and sum of squares of the slices of an output, in float64."""
    levels = {key: case.settings[key] for key in ("aggregation_levels", "group_number", "batched")}
    count, mean, m2 = reference.moments(y.astype(np.float64), **levels)
    return count, mean, m2 / np.maximum(count, 1)


# ---------------------------------------------------------------------------------------------------- mean and variance


@many
@given(strategies.cases())
def test_zero_mean_and_unit_variance(case):
    """The output's mean is 0 and its variance v / (v + epsilon), v being the input's.

    An element is z + e, where |e| <= 10 u |z| + 2**-30 by `accuracy`, 2**-30 being more than 32m + 2v |mean| / divisor
    for the slices here. So the mean is at most 10 u mean|z| + 2**-30, and mean|z| <= 1 since the mean of z**2 is at
    most 1. The variance, mean (z + e)**2 less the square of that mean, differs from that of z by at most
    2 mean|z e| + mean e**2 + mean(e)**2 <= 2 (10 u + 2**-30) + 2 (10 u + 2**-30)**2 <= 21 u.
    """
    u = 2.0**-24
    case = case._replace(settings={**case.settings, "method": "Standardize", "epsilon_placement": "inside"})
    x = sample(case.shape)
    layer = layer_of(case, scaling=None, biases=None)
    y = layer(x)
    count, mean, variance = slices_of(y, case)
    found = layer.measure(x)
    np.testing.assert_array_equal(found.count, count)
    v, epsilon = found.m2 / np.maximum(count, 1), case.settings["epsilon"]
    divisor = (found.m2 / np.maximum(count - case.settings["unbiased"], 1)) + epsilon
    exact = np.divide(v, divisor, out=np.zeros_like(v), where=divisor > 0)
    wide = np.sqrt(np.maximum(exact, 1))  # unbiased makes it smaller, never larger
    assert np.all(wide == 1)
    assert np.all(np.abs(mean) <= 10 * u + 2.0**-30)
    assert np.all(np.abs(variance - exact) <= 21 * u)
    # The slices of an RMS layer have a mean square in the same way.
    rms = layer_of(
        case._replace(settings={**case.settings, "method": "RMS", "unbiased": False}), scaling=None, biases=None
    )
    levels = {key: case.settings[key] for key in ("aggregation_levels", "group_number", "batched")}
    squares = reference.moments(rms(x).astype(np.float64), **levels, method="RMS")[2] / np.maximum(count, 1)
    v = rms.measure(x).mean_square()
    exact = np.divide(v, v + epsilon, out=np.zeros_like(v), where=v + epsilon > 0)
    assert np.all(np.abs(squares - exact) <= 21 * u)


# --------------------------------------------------------------------------------------------------------- independence


@many
@given(
    strategies.cases(batch_aggregated=False, batched=True, least=2), st.sampled_from(("float32", "float64")), st.data()
)
def test_an_example_alone_equals_it_in_a_batch(case, dtype, data):
    """To the bit, for any part of the batch."""
    x = sample(case.shape, dtype)
    layer = layer_of(case)
    y = layer(x)
    alone = {**case.settings, "batched": False}
    for i in range(case.shape[0]):
        same(layer(x[i : i + 1])[0], y[i])
        single = gn.NormalizationLayer(**alone, scaling=layer.scaling, biases=layer.biases)
        same(single(x[i]), y[i])
    lo, hi = sorted(data.draw(st.tuples(*[st.integers(0, case.shape[0])] * 2)))
    same(layer(x[lo:hi]), y[lo:hi])
    if len(x):
        assert all(itertools.starmap(np.array_equal, zip(layer(list(x[:, None])), y[:, None], strict=True)))


@many
@given(strategies.cases(elements=600), st.sampled_from([np.nan, np.inf, -np.inf]), st.data())
def test_non_finite_numbers_stay_in_their_slice(case, value, data):
    x = sample(case.shape)
    assume(x.size)
    layer = layer_of(case)
    y = layer(x)
    place = tuple(data.draw(st.integers(0, size - 1)) for size in case.shape)
    spoilt = x.copy()
    spoilt[place] = value
    answer = layer(spoilt)
    judge(answer, spoilt, case.settings, layer.scaling, layer.biases)
    others = ~slice_of(place, case)
    assert answer[others].tobytes() == y[others].tobytes()


def slice_of(place, case):
    """Which elements share a slice with the one at this place."""
    config = LayerConfig.make(**case.settings)
    resolved = resolve_config(config, case.shape)
    found = np.ones(case.shape, bool)
    for axis, size in enumerate(case.shape):
        index = np.arange(size)
        if axis not in resolved.aggregation:
            together = index == place[axis]
        else:
            within = size // resolved.groups[axis]
            together = index // within == place[axis] // within
        found &= together.reshape([-1 if other == axis else 1 for other in range(len(case.shape))])
    return found


# ---------------------------------------------------------------------------------------------------- levels and groups


@many
@given(strategies.cases(), st.data())
def test_the_order_of_a_level_list_is_irrelevant(case, data):
    """To the bit; the parameters of "Complement" and of () do not know it, and group numbers go with their levels."""
    config = LayerConfig.make(**case.settings)
    resolved = resolve_config(config, case.shape)
    level = {axis: resolved.level(axis) for axis in range(len(case.shape))}
    order = data.draw(st.permutations(resolved.aggregation))
    shuffled = {
        **case.settings,
        "aggregation_levels": [level[axis] for axis in order],
        "group_number": [resolved.groups[axis] for axis in order],
    }
    x = sample(case.shape)
    same(layer_of(case._replace(settings=shuffled))(x), layer_of(case)(x))


@many
@given(strategies.cases(), st.data())
def test_the_order_of_scaling_levels_is_that_of_the_parameters(case, data):
    config = LayerConfig.make(**case.settings)
    resolved = resolve_config(config, case.shape)
    places = data.draw(st.permutations(range(len(resolved.scaling))))
    levels = [resolved.level(resolved.scaling[place]) for place in places]
    layer, x = layer_of(case), sample(case.shape)
    turned = {name: getattr(layer, name).transpose(places) for name in ("scaling", "biases")}
    other = gn.NormalizationLayer(**{**case.settings, "scaling_levels": levels}, **turned)
    same(other(x), layer(x))


@many
@given(strategies.cases())
def test_one_group_equals_no_groups(case):
    config = LayerConfig.make(**case.settings)
    resolved = resolve_config(config, case.shape)
    ones = [1] * len(resolved.aggregation)
    x = sample(case.shape)
    none = layer_of(case, group_number=None)
    y = none(x)
    same(layer_of(case, group_number=ones)(x), y)
    same(layer_of(case, group_number={resolved.level(axis): 1 for axis in resolved.aggregation})(x), y)
    if len(ones) == 1:
        same(layer_of(case, group_number=1)(x), y)


@many
@given(strategies.cases(most=4))
def test_groups_are_a_reshape_and_one_level_deeper(case):
    """W12, E11: each split level becomes two, of which the second is aggregated. To the bit."""
    resolved = resolve_config(LayerConfig.make(**case.settings), case.shape)
    assume(max(resolved.groups) > 1)
    first = 0 if resolved.batched else 1
    shape, deeper, scaling = [], [], {}
    for axis, size in enumerate(case.shape):
        number = resolved.groups[axis]
        before = len(shape)
        shape += [number, size // number] if number > 1 else [size]
        if axis in resolved.aggregation:
            deeper.append(len(shape) - 1 + first)
        scaling[axis] = range(before, len(shape))
    # A split batch becomes level 0, of which there are groups, and level 1.
    carrying = [place + first for axis in resolved.scaling for place in scaling[axis]]
    layer, x = layer_of(case), sample(case.shape)
    sizes = [shape[level - first] for level in carrying]
    settings = {**case.settings, "group_number": None, "aggregation_levels": deeper, "scaling_levels": carrying}
    split = gn.NormalizationLayer(**settings, scaling=layer.scaling.reshape(sizes), biases=layer.biases.reshape(sizes))
    same(split(x.reshape(shape)).reshape(case.shape), layer(x))
    count, mean, m2 = (getattr(layer.measure(x), name) for name in ("count", "mean", "m2"))
    deep = split.measure(x.reshape(shape))
    same(deep.m2, m2)
    same(deep.count, count)
    assert (mean is None) == (deep.mean is None)


# -------------------------------------------------------------------------------------------------------------- presets

WRITTEN = [
    (
        gn.batch_norm(6),
        gn.NormalizationLayer("{0, 2;;All}", 1, input_shape=(6, ...), batched=True, statistics="moving"),
    ),
    (
        gn.batch_norm(6, channel_level=-1, epsilon=0.5, momentum=0.5),
        gn.NormalizationLayer(
            "{0, 1;;-2}", -1, epsilon=0.5, momentum=0.5, input_shape=(..., 6), batched=True, statistics="moving"
        ),
    ),
    (gn.instance_norm(6), gn.NormalizationLayer("2;;All", 1, input_shape=(6, ...), batched=True)),
    (
        gn.instance_norm(6, channel_level=-1, biases=None),
        gn.NormalizationLayer("1;;-2", -1, biases=None, input_shape=(..., 6), batched=True),
    ),
    (gn.group_norm(3, 6), gn.NormalizationLayer("All", 1, {1: 3}, input_shape=(6, ...), batched=True)),
    (
        gn.group_norm(3, 6, channel_level=-1, unbiased=True),
        gn.NormalizationLayer("All", -1, {-1: 3}, "Standardize", True, input_shape=(..., 6), batched=True),
    ),
    (gn.layer_norm(6), gn.NormalizationLayer(-1, "Same", input_shape=(..., 6))),
    (gn.layer_norm((6, 6)), gn.NormalizationLayer("-2;;All", "Same", input_shape=(..., 6, 6))),
    (
        gn.rms_norm(6),
        gn.NormalizationLayer(-1, "Same", method="RMS", epsilon=1e-6, biases=None, input_shape=(..., 6)),
    ),
    (
        gn.rms_norm([6, 6], dtype="float64", epsilon_placement="floor"),
        gn.NormalizationLayer(
            "-2;;All", "Same", method="RMS", epsilon=1e-6, biases=None, input_shape=(..., 6, 6),
            dtype="float64", epsilon_placement="floor",
        ),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("preset", "written"), WRITTEN, ids=repr)
@pytest.mark.parametrize("shape", [(4, 6, 6), (2, 6, 5, 6, 6)])
def test_a_preset_is_its_written_out_layer(preset, written, shape):
    assert repr(preset) == repr(written)
    assert preset.to_config() == written.to_config()
    for training in (True, False):
        same(preset(sample(shape), training=training), written(sample(shape), training=training))
    assert str(preset.plan(shape)) == str(written.plan(shape))


def test_normalize_is_its_written_out_layer():
    x = sample((4, 6, 5), "float64")
    written = gn.NormalizationLayer("{0, 2}", group_number=[2, 5], scaling=None, biases=None, epsilon=0, batched=True)
    same(gn.normalize(x, "{0, 2}", group_number=[2, 5], epsilon=0, batched=True), written(x))
    assert gn.normalize(x, 2, out=x) is x


def test_normalize_does_not_confuse_cached_layers():
    x = sample((4, 6), "float64")
    same(gn.normalize(x, 1), gn.NormalizationLayer(1, scaling=None, biases=None)(x))
    with pytest.raises(gn.GennormError, match="True"):
        gn.normalize(x, True)
    same(gn.normalize(x, 1, epsilon=1), gn.NormalizationLayer(1, scaling=None, biases=None, epsilon=1)(x))
    same(gn.normalize(x, 1, scaling=2.0 * np.ones(6), scaling_levels=2), 2 * gn.normalize(x, 1))
    same(gn.normalize(x, 1, biases=None, scaling=np.ones(6), scaling_levels=2), gn.normalize(x, 1))


# -------------------------------------------------------------------------------------------------------------- layouts


@many
@given(strategies.cases(), st.sampled_from(("float16", "float32", "float64")), st.data())
def test_any_layout_is_as_good_as_c_order(case, dtype, data):
    """The values of an array decide, not where they lie: the same to the bit where the loops are, else to the bound."""
    layout = data.draw(strategies.layouts(len(case.shape)))
    x = layout.hold(sample(case.shape, dtype))
    plain = np.ascontiguousarray(x.astype(x.dtype.newbyteorder("=")))
    layer = layer_of(case)
    y = layer(x)
    one, two = (loops(layer.plan(array)) for array in (x, plain))
    event(f"the same loops: {one == two}")
    if one == two:
        same(y, layer(plain))
    else:
        judge(y, plain, case.settings, layer.scaling, layer.biases)
        judge(layer(plain), plain, case.settings, layer.scaling, layer.biases)


def loops(plan):
    """What decides in which order a slice is summed."""
    aggregated = [(run.size, run.axes) for run in plan.runs if run.aggregated]
    return plan.family, plan.cut, aggregated, plan.runs[-1].size


@pytest.mark.parametrize("layout", ["unaligned", "read-only", "big-endian", "gapped innermost", "gapped outermost"])
def test_layouts_with_the_loops_of_c_order(layout):
    for levels in (1, 2, "1;;2"):
        x = sample((40, 70))
        same(gn.normalize(named_layouts(2)[layout].hold(x), levels), gn.normalize(x, levels))


# -------------------------------------------------------------------------------------------------------------- threads

LARGE = {
    "rows": ((96, 8192), {"aggregation_levels": 2}),
    "rows of every example": ((64, 6, 2048), {"aggregation_levels": "{0, 2}", "batched": True}),
    "columns": ((3000, 300), {"aggregation_levels": 1}),
    "columns, many tiles": ((30, 30_000), {"aggregation_levels": 1}),
    "folded columns": ((8, 600, 192), {"aggregation_levels": "All", "group_number": {2: 48}, "batched": True}),
    "one slice": ((1 << 20,), {"aggregation_levels": 1}),
    "one slice of columns": ((1 << 17, 8), {"aggregation_levels": "All"}),
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cut", [False, True])
def test_the_number_of_threads_makes_no_difference(name, dtype, cut, threads, monkeypatch):
    shape, settings = LARGE[name]
    if cut:
        engines.cut_small(monkeypatch, CUT=1 << 10, UNIT=1 << 12, BLOCK=1 << 9)
    sharers = []
    gather = sharing.Executor.request

    def noted(team, threads, parts):
        sharers.append(threads)
        return gather(team, threads, parts)

    monkeypatch.setattr(sharing.Executor, "request", noted)
    x = sample(shape, dtype)
    layer = gn.NormalizationLayer(**settings).initialize(shape)
    layer.scaling = sample(layer.scaling.shape, seed=1)
    answers = []
    for number in (1, 2, 7):
        threads(number)
        moments = layer.measure(x)
        answers.append((layer(x), layer.apply(x, moments), moments.mean, moments.m2))
    for others in answers[1:]:
        for one, other in zip(answers[0], others, strict=True):
            same(one, other)
    shares = layer.plan(x).tasks > 1
    assert (2 in sharers) == shares


# ----------------------------------------------------------------------------------------------------- what cancels out


@many
@given(strategies.cases(), st.integers(-20, 20))
def test_a_power_of_two_cancels(case, power):
    """Without epsilon a positive factor makes no difference; a power of two makes none to the bit."""
    case = case._replace(settings={**case.settings, "epsilon": 0.0})
    layer, x = layer_of(case, scaling=None, biases=None), sample(case.shape)
    # The root of a variance scaled by an even power of two is scaled exactly, that by an odd one too: 4**power.
    same(layer(x * np.float32(2.0**power)), layer(x))
    same(layer(-x), -layer(x) + np.float32(0))


@many
@given(strategies.cases(), st.floats(1e-3, 1e3), st.floats(-10, 10))
def test_a_positive_affine_change_cancels_without_epsilon(case, factor, shift):
    case = case._replace(settings={**case.settings, "method": "Standardize", "epsilon": 0.0})
    x = sample(case.shape, "float64")
    layer = layer_of(case, scaling=None, biases=None)
    y, changed = layer(x), layer(x * factor + shift)
    count, _, m2 = reference.moments(
        x, **{key: case.settings[key] for key in ("aggregation_levels", "group_number", "batched")}
    )
    # The change itself rounds: v |factor x + shift| over a deviation of factor times that of x.
    deviation = np.sqrt(m2 / np.maximum(count, 1))
    least = np.min(deviation, where=deviation > 0, initial=1.0)
    assert least > 1e-6
    largest = np.abs(x * factor + shift).max(initial=0.0)
    np.testing.assert_allclose(
        changed, y, rtol=0, atol=1e3 * V * (1 + largest / (factor * least)) * np.abs(y).max(initial=1)
    )


@many
@given(strategies.cases(), st.sampled_from((1e-4, 1e-8, 1e-12)))
def test_epsilon_vanishes(case, epsilon):
    """The difference that epsilon makes is at most epsilon / (2 v) of the output."""
    case = case._replace(settings={**case.settings, "epsilon_placement": "inside", "epsilon": 0.0})
    x = sample(case.shape, "float64")
    exact = layer_of(case, scaling=None, biases=None)
    near = layer_of(case, scaling=None, biases=None, epsilon=epsilon)
    moments = exact.measure(x)
    v = moments.m2 / np.maximum(moments.count - case.settings["unbiased"], 1)
    least = np.min(v, where=v > 0, initial=1.0)
    y = exact(x)
    assert np.all(np.abs(near(x) - y) <= np.abs(y) * (epsilon / (2 * least) + 1e-9))


@many
@given(strategies.cases(), st.data())
def test_elements_may_change_places(case, data):
    """A permutation of an ungrouped aggregated level permutes the output: sums in another order, to the bound."""
    resolved = resolve_config(LayerConfig.make(**case.settings), case.shape)
    axis = data.draw(st.sampled_from(resolved.aggregation))
    assume(resolved.groups[axis] == 1)
    order = data.draw(st.permutations(range(case.shape[axis])))
    x = sample(case.shape)
    y = layer_of(case, scaling=None, biases=None)(np.ascontiguousarray(x.take(order, axis)))
    judge(y, x.take(order, axis), case.settings)
    whole = layer_of(case, scaling=None, biases=None)(x).take(order, axis)
    np.testing.assert_allclose(y, whole, rtol=2.0**-20, atol=2.0**-24)


# -------------------------------------------------------------------------------------------------------------- merging


@many
@given(strategies.cases(batch_aggregated=True), st.sampled_from(("float32", "float64")), st.data())
def test_moments_of_parts_are_those_of_the_whole(case, dtype, data):
    """Cut anywhere along a level that is aggregated as a whole, and merged in any order."""
    case = case._replace(settings={**case.settings, "unbiased": False})
    resolved = resolve_config(LayerConfig.make(**case.settings), case.shape)
    axis = data.draw(st.sampled_from(resolved.aggregation))
    assume(resolved.groups[axis] == 1)
    x = sample(case.shape, dtype)
    layer = layer_of(case, scaling=None, biases=None)
    places = data.draw(st.lists(st.integers(0, case.shape[axis]), max_size=4).map(sorted))
    parts = data.draw(st.permutations(np.split(x, places, axis)))
    whole, merged = layer.measure(x), functools.reduce(operator.add, map(layer.measure, parts))
    np.testing.assert_array_equal(merged.count, whole.count, strict=True)
    m = (resolved.count + 8) * V
    np.testing.assert_allclose(merged.m2, whole.m2, rtol=1100 * m, atol=1e-300)
    assert (merged.mean is None) == (whole.mean is None)
    if whole.mean is not None:
        atol = 40 * m * np.sqrt(np.max(whole.m2, initial=0.0) + 1)
        np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-14, atol=atol)


def test_applying_merged_moments_is_normalizing_the_whole():
    """A batch norm in four parts: measured apart, merged, applied apart."""
    x = sample((64, 5, 6, 7))
    layer = gn.batch_norm(5)
    parts = np.split(x, [10, 11, 40])
    moments = functools.reduce(operator.add, map(layer.measure, parts))
    y = np.concatenate([layer.apply(part, moments) for part in parts])
    judge(y, x, {"aggregation_levels": "{0, 2, 3}", "scaling_levels": 1, "batched": True}, layer.scaling, layer.biases)


@pytest.mark.parametrize("dtype", strategies.DTYPES)
def test_every_dtype_through_a_list(dtype):
    """A list is answered by a list, each as if alone, whatever the sizes."""
    layer = gn.instance_norm(3, batched=False)
    arrays = [sample((3, *size), dtype, seed) for seed, size in enumerate([(4, 5), (1, 1), (7, 2), (0, 3)])]
    answers = layer(arrays)
    assert type(answers) is list
    for array, answer in zip(arrays, answers, strict=True):
        assert answer.dtype == dtype_of(strategies.RESULTS[dtype])
        same(answer, layer(array))
