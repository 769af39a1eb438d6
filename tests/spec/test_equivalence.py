"""Layers are equivalent where the reference computes the same output for them: every pair of many spellings."""

import itertools

import numpy as np
import pytest

import gennorm as gn
from gennorm.spec.config import LayerConfig
from gennorm.spec.equivalence import _cost, _exact, _identical, compare, key, simplified
from spec import reference

RNG = np.random.default_rng(3)
SHAPE = (2, 1, 4)
ARRAYS = [RNG.normal(1, 2, SHAPE), RNG.normal(1, 2, (2, *SHAPE))]
OPEN = [RNG.normal(1, 2, (4,) * ndim) for ndim in range(1, 5)]

AGGREGATIONS = [
    "2;;All",
    "All",
    1,
    -1,
    3,
    "1;;2",
    "{3, 1}",
    "{-1, 1;;2}",
    "{1, 3}",
    "0;;All",
    "{0, 3}",
    "{2, 0}",
    "2;;3",
]
SCALINGS = ["Complement", "Same", (), 1, "All", "{3, 1}", "{1, 3}", -1]
GROUPS = [None, {1: 2}, {3: 2}, {3: 4}, {1: 2, -1: 2}, {1: 1}, {-1: 4}]


def made(*arguments, **settings):
    try:
        return LayerConfig.make(*arguments, **settings)
    except gn.GennormError:
        return None


def closed():
    """Every spelling for examples of one shape."""
    settings = {"biases": None, "input_shape": SHAPE}
    found = (made(*one, **settings) for one in itertools.product(AGGREGATIONS, SCALINGS, GROUPS))
    return [one for one in found if one is not None]


def opened():
    """Spellings for examples of any rank, of arrays that are batches or not."""
    specs = ["2;;All", "All", 1, -1, 2, ";;-2", "{0, 2;;All}", "{1;;-2, -1}", "{0, 1;;-2}", "1;;All;;2", "0;;All"]
    scalings = ["Complement", "Same", 1, -1, ()]
    groups = [None, {1: 2}, {-1: 2}]
    batched = [None, True]
    found = (
        made(spec, scaling, group, biases=None, batched=batch)
        for spec, scaling, group, batch in itertools.product(specs, scalings, groups, batched)
    )
    return [one for one in found if one is not None]


def outputs(config, arrays):
    """What the reference computes for each array; nothing where it refuses it. Parameters differ on each axis."""
    found = []
    for x in arrays:
        batched = x.ndim == len(config.input_shape) + 1 if config.input_shape else bool(config.batched)
        arguments = config.arguments()
        levels = [arguments[name] for name in ("aggregation_levels", "scaling_levels", "group_number")]
        try:
            where = reference.geometry(x.shape, *levels, batched)
            scaling = np.ones([x.shape[axis] for axis in where.scaling])
            for place, axis in enumerate(where.scaling):
                column = [1] * scaling.ndim
                column[place] = -1
                scaling *= (1 + np.arange(x.shape[axis]) * (1.3 + axis)).reshape(column)
            found.append(reference.normalize(x, *levels, config.method, epsilon=0.1, scaling=scaling, batched=batched))
        except ValueError:
            found.append(None)
    return found


def agree(ours, theirs):
    return all(
        (a is None and b is None) or (a is not None and b is not None and np.allclose(a, b, atol=1e-12))
        for a, b in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize(("configs", "arrays"), [(closed(), ARRAYS), (opened(), OPEN)], ids=["closed", "open"])
def test_every_pair_by_brute_force(configs, arrays):
    """Configs are equivalent if and only if the reference computes the same."""
    computed = [outputs(config, arrays) for config in configs]
    keys = [key(config) for config in configs]
    chosen = np.random.default_rng(0)
    pairs = [(i, j) for i, j in itertools.combinations(range(len(configs)), 2) if keys[i] == keys[j]]
    pairs = [pairs[i] for i in chosen.choice(len(pairs), 400, replace=False)]
    pairs += [tuple(chosen.choice(len(configs), 2, replace=False)) for _ in range(800)]
    same = 0
    for i, j in pairs:
        found = compare(configs[i], configs[j])
        expected = agree(computed[i], computed[j])
        assert bool(found) == expected, (configs[i].arguments(), configs[j].arguments(), found.reason)
        assert bool(found) == (keys[i] == keys[j])
        same += expected
    assert same >= 400
    assert len(pairs) - same > 600


@pytest.mark.parametrize(("configs", "arrays"), [(closed(), ARRAYS), (opened(), OPEN)], ids=["closed", "open"])
def test_simplified_is_the_same_and_the_shortest(configs, arrays):
    chosen = np.random.default_rng(1).choice(len(configs), 20, replace=False)
    for config in (configs[i] for i in chosen):
        short = simplified(config)
        assert agree(outputs(config, arrays), outputs(short, arrays))
        assert compare(config, short)
        assert simplified(short) == short
        axes = [axes for ndim in range(9) if (axes := _exact(config, ndim)) is not None]
        if any(any(one.roles) for one in axes):  # some array has slices of more than one element
            assert all(_cost(short) <= _cost(one) for one in configs if _identical(config, one))


@pytest.mark.parametrize(
    ("written", "short"),
    [
        (
            gn.NormalizationLayer("{3, 2}", [1], [1, 1], input_shape=(3, None, None)),
            "NormalizationLayer(input_shape=(3, None, None))",
        ),
        (
            gn.NormalizationLayer("1;;3", 1, [8, 1, 1], input_shape=(8, 4, 4)),
            "NormalizationLayer(input_shape=(8, 4, 4))",
        ),
        (
            gn.batch_norm(64, momentum=0.5),
            "NormalizationLayer('{0, 2;;All}', input_shape=(64, ...), batched=True, statistics='moving', momentum=0.5)",
        ),
        (gn.group_norm(1, 8), "NormalizationLayer('All', 1, input_shape=(8, ...), batched=True)"),
        (gn.group_norm(4, 8), "NormalizationLayer('All', 1, {1: 4}, input_shape=(8, ...), batched=True)"),
        (gn.NormalizationLayer(2, (), [4], input_shape=(3, 8)), "NormalizationLayer(2, (), 4, input_shape=(3, 8))"),
        (
            gn.NormalizationLayer("{1, -1}", (), input_shape=(None, ..., 3)),
            "NormalizationLayer('{1, -1}', (), input_shape=(..., 3))",
        ),
        (gn.NormalizationLayer(epsilon=0, epsilon_placement="floor"), "NormalizationLayer(epsilon=0.0)"),
        (gn.NormalizationLayer("{1;;-1}", momentum=0.3), "NormalizationLayer('All')"),
        (
            gn.NormalizationLayer("{1}", [3, 2], input_shape=(2, 3, 4)),
            "NormalizationLayer(1, '{3, 2}', input_shape=(2, 3, 4))",
        ),
    ],
)
def test_shortest_spellings(written, short):
    assert repr(written.simplified()) == short


def test_simplified_has_copies_of_parameters_and_moments():
    layer = gn.NormalizationLayer("{0, 2}", "{1}", input_shape=(3, 4), statistics="moving", scaling=[1, 2, 3])
    layer.moments = gn.Moments.from_variance([1, 2, 3], [4, 5, 6])
    short = layer.simplified()
    assert layer.equivalent(short)
    x = RNG.normal(size=(5, 3, 4))
    np.testing.assert_array_equal(short(x), layer(x))
    short.scaling[:] = 0
    assert layer.scaling.tolist() == [1, 2, 3]


SAME = [
    (gn.layer_norm(8), gn.NormalizationLayer(-1, -1, input_shape=(..., 8))),
    (gn.layer_norm(8, momentum=0.5), gn.layer_norm(8)),
    (gn.layer_norm(8, epsilon=0), gn.layer_norm(8, epsilon=0, epsilon_placement="outside")),
    (gn.layer_norm(8, learning_rate_multipliers=2), gn.layer_norm(8)),
    (gn.layer_norm(8, scaling=None, biases=None, dtype="float64"), gn.layer_norm(8, scaling=None, biases=None)),
    (gn.layer_norm(8, scaling=np.ones(8)), gn.layer_norm(8)),
    (gn.group_norm(8, 8, spatial_levels=2), gn.instance_norm(8, spatial_levels=2)),
    (gn.group_norm(8, 8, spatial_levels=2), gn.from_torch("InstanceNorm2d", 8, 1e-3, affine=True)),
    (gn.from_torch("LayerNorm", (4, 8)), gn.NormalizationLayer("-2;;-1", "Same", None, "Standardize", False, 1e-5,
                                                               input_shape=(..., 4, 8))),
    (gn.NormalizationLayer(1, "{2, 3}", input_shape=(2, 3, 4), scaling=np.arange(12).reshape(3, 4)),
     gn.NormalizationLayer(1, "{3, 2}", input_shape=(2, 3, 4), scaling=np.arange(12).reshape(3, 4).T)),
    (gn.feature_norm(mean=[1, 2], variance=[3, 4], input_shape=(5, 2)),
     gn.NormalizationLayer("0;;1", (), epsilon=1e-7, epsilon_placement="floor", scaling=None, biases=None,
                           statistics="dataset", input_shape=(5, 2), batched=True)),
]  # fmt: skip
SAME[-1][1].moments = SAME[-1][0].moments


@pytest.mark.parametrize(("first", "second"), SAME)
def test_equivalent_layers(first, second):
    found = first.equivalent(second)
    assert found, found.reason
    assert second.equivalent(first)
    assert str(found).startswith("the same: equal settings, slices and parameters in arrays with ")


DIFFERENT = [
    (gn.layer_norm(8), gn.layer_norm(9), "level 1 (axis 0) has size 8 in the first layer and size 9 in the second"),
    (gn.layer_norm(8), gn.layer_norm(8, unbiased=True), "unbiased is False in the first layer and True in the second"),
    (gn.layer_norm(8), gn.layer_norm(8, epsilon=1), "epsilon is 0.001 in the first layer and 1.0 in the second"),
    (gn.layer_norm(8), gn.layer_norm(8, biases=None), "biases is present in the first layer and absent in the second"),
    (gn.layer_norm(8), gn.rms_norm(8), "method is Standardize in the first layer and RMS in the second"),
    (
        gn.layer_norm(8),
        gn.layer_norm(8, batched=True),
        "the first layer takes arrays with 1 axis, and the second does not",
    ),
    (gn.layer_norm(8), gn.NormalizationLayer(1, "Same", input_shape=(8,)), "the first layer takes arrays with 3 axes"),
    (gn.layer_norm(8), gn.layer_norm(8, scaling=np.arange(8)), "the layers have other values of scaling"),
    (gn.batch_norm(8), gn.batch_norm(8, momentum=0.9), "momentum is 0.99 in the first layer and 0.9 in the second"),
    (
        gn.batch_norm(8),
        gn.batch_norm(8, trainable=False),
        "trainable is True in the first layer and False in the second",
    ),
    (gn.batch_norm(8), gn.instance_norm(8, statistics="moving"), "the first layer takes arrays with 1 axis"),
    (gn.batch_norm(8, statistics="input"), gn.instance_norm(8), "the second does not"),
    (
        gn.NormalizationLayer("{0, 2}", 1, input_shape=(3, 4), statistics="moving"),
        gn.NormalizationLayer(2, 1, input_shape=(3, 4), statistics="moving"),
        "of an array with 3 axes, level 0 (axis 0) is aggregated by the first layer and kept by the second",
    ),
    (
        gn.group_norm(2, 8, spatial_levels=2),
        gn.group_norm(4, 8, spatial_levels=2),
        "level 1 (axis 0) is aggregated in 2 groups by the first layer and aggregated in 4 groups by the second",
    ),
    (
        gn.NormalizationLayer(2, 1, input_shape=(3, 4)),
        gn.NormalizationLayer(2, 2, input_shape=(3, 4)),
        "of an array with 2 axes, level 1 (axis 0) has parameters in the first layer only",
    ),
    (
        gn.feature_norm(mean=[1, 2], variance=1),
        gn.feature_norm(mean=[1, 3], variance=1),
        "the layers hold other moments",
    ),
    (gn.feature_norm(mean=[1, 2], variance=1), gn.feature_norm(), "the layers hold other moments"),
]


@pytest.mark.parametrize(("first", "second", "reason"), DIFFERENT)
def test_layers_that_differ(first, second, reason):
    found = first.equivalent(second)
    assert not found
    assert reason in found.reason
    assert not second.equivalent(first)
    assert str(found).startswith("not the same: ")


# ---------------------------------------------------------------------------------------------------------------- space


@pytest.mark.parametrize(
    ("shape", "batch", "groups"), [((2, 4), False, [2]), ((2, 1, 3), False, []), ((4,), True, [2])]
)
def test_a_space_has_every_layer_once(shape, batch, groups):
    arrays = [np.random.default_rng(1).normal(size=size) for size in (shape, (2, *shape))]
    found = [
        outputs(layer._state.config, arrays) for layer in gn.space(shape, batch=batch, groups=groups, methods=["RMS"])
    ]
    assert not any(agree(a, b) for a, b in itertools.combinations(found, 2))
    levels = range(0 if batch else 1, len(shape) + 1)
    every = [subset for n in range(1, len(shape) + 2) for subset in itertools.combinations(levels, n)]
    scalings = [s for n in range(len(shape) + 1) for s in itertools.combinations(range(1, len(shape) + 1), n)]
    for subset, scaling in itertools.product(every, scalings):
        choices = [[1, *(g for g in groups if level and shape[level - 1] % g == 0)] for level in subset]
        for numbers in itertools.product(*choices):
            config = LayerConfig.make(
                subset, scaling, dict(zip(subset, numbers, strict=True)), method="RMS", input_shape=shape
            )
            assert sum(agree(outputs(config, arrays), one) for one in found) == 1


def test_a_space_of_layers_that_are_ready():
    layers = gn.space((4, 8), biases=None, epsilon=1e-5)
    assert len(layers) == 3 * 4 * 2
    assert all(layer.initialized and layer.biases is None and layer.epsilon == 1e-5 for layer in layers)
    assert [repr(layer.simplified()) for layer in layers] == [repr(layer) for layer in layers]
    assert len(gn.space(4, methods=["RMS"])) == 15 * 16
    assert len(gn.space(2, scaling=None, biases=None)) == 3 * 2
    x = RNG.normal(size=(3, 4, 8))
    assert len({layer(x).round(6).tobytes() for layer in gn.space((4, 8), scaling=None, biases=None)}) == 6
