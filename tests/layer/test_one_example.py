"""One example without a batch axis, to a layer whose moments are those of a data set: every method takes it.

The example is a batch of one. The result of each method has the shape of the example and the bits of the batch's.
"""

import numpy as np
import pytest

import gennorm as gn
from tests.engines import in_plain_python

SHAPE = (3, 4, 6)
DATA = np.random.default_rng(0).normal(2, 3, (9, *SHAPE))

LAYERS = {
    "last level": lambda: gn.feature_norm(dtype="float64").adapt(DATA),
    "level 1, with parameters": lambda: gn.feature_norm(
        1, scaling=[1.0, 2.0, -3.0], biases=[0.0, 1.0, 2.0], dtype="float64", input_shape=SHAPE
    ).adapt(DATA),
    "two levels": lambda: gn.feature_norm((1, -1), input_shape=SHAPE).adapt(DATA),
    "no level": lambda: gn.feature_norm(None).adapt(DATA),
    "groups": lambda: gn.NormalizationLayer(
        "0;;All", 3, {3: 2}, statistics="dataset", batched=True, scaling=np.arange(1.0, 7.0), dtype="float64"
    ).initialize(DATA.shape).adapt(DATA),
    "RMS": lambda: gn.NormalizationLayer(
        "{0, 1;;2}", 3, method="RMS", statistics="dataset", batched=True, scaling=None, biases=None
    ).adapt(DATA),
    "declared rank": lambda: gn.NormalizationLayer(
        "{0, 2;;3}", 1, statistics="dataset", input_shape=(3, None, None), dtype="float64"
    ).adapt(DATA),
}  # fmt: skip
X = DATA[0].astype(np.float32)
DY = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
MASK = np.random.default_rng(2).random(SHAPE) < 0.7


def into(call, of):
    """What a call writes into an output of another layout."""
    out = of(np.full(SHAPE[::-1], 7.0, np.float32).T)
    assert call(out) is out
    return out


def in_place(layer, x):
    assert layer(x, out=x) is x
    return x


def pulled(layer, x, dy, **keywords):
    y, pullback = layer.vjp(x, **keywords)
    found = pullback(dy)
    return y, found.input, found.scaling, found.biases


def parameters(layer):
    shape = layer.information("parameter_shape")
    return {} if layer.scaling is None else {"scaling": np.full(shape, 2.0), "biases": np.full(shape, 0.5)}


def directions(layer):
    return {f"d{name}": value for name, value in parameters(layer).items()}


# Each takes a layer, and a function that makes an array one example or a batch of one.
CALLS = {
    "call": lambda layer, of: [layer(of(X))],
    "training": lambda layer, of: [layer(of(X), training=True)],
    "list": lambda layer, of: layer([of(X), of(2 * X)]),
    "mask": lambda layer, of: [layer(of(X), mask=of(MASK))],
    "parameters": lambda layer, of: [layer(of(X), **parameters(layer))],
    "moments": lambda layer, of: [layer(of(X), moments=layer.moments)],
    "pair of moments": lambda layer, of: [layer(of(X), moments=(np.float64(1), np.float64(2)))],
    "out": lambda layer, of: [into(lambda out: layer(of(X), out=out), of)],
    "in place": lambda layer, of: [in_place(layer, of(X).copy())],
    "vjp": lambda layer, of: pulled(layer, of(X), of(DY)),
    "vjp with parameters": lambda layer, of: pulled(layer, of(X), of(DY), **parameters(layer)),
    "vjp with a mask": lambda layer, of: pulled(layer, of(X), of(DY), mask=of(MASK)),
    "vjp by given moments": lambda layer, of: pulled(layer, of(X), of(DY), moments=layer.moments),
    "jvp": lambda layer, of: layer.jvp(of(X), of(DY)),
    "jvp along parameters": lambda layer, of: layer.jvp(of(X), None, **directions(layer)),
    "measure": lambda layer, of: moments_of(layer.measure(of(X))),
    "measure with a mask": lambda layer, of: moments_of(layer.measure(of(X), of(MASK))),
    "apply": lambda layer, of: [layer.apply(of(X), layer.measure(of(X)))],
    "apply into": lambda layer, of: [into(lambda out: layer.apply(of(X), layer.moments, out=out), of)],
    "inverse": lambda layer, of: [layer.inverse(of(X))],
    "inverse by given moments": lambda layer, of: [layer.inverse(of(X), layer.measure(of(2 * X)))],
    "inverse into": lambda layer, of: [into(lambda out: layer.inverse(of(X), out=out), of)],
    "integers": lambda layer, of: [layer(of((10 * X).astype(np.int16)))],
    "Fortran order": lambda layer, of: [layer(of(np.asfortranarray(X)))],
}


def moments_of(moments):
    return [value for value in (moments.count, moments.mean, moments.m2) if value is not None]


@pytest.mark.parametrize("engine", ["kernels", "plain Python"])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", LAYERS)
def test_one_example_is_a_batch_of_one(kind, call, engine, monkeypatch):
    if engine == "plain Python":
        in_plain_python(monkeypatch)
    layer = LAYERS[kind]()
    wanted = CALLS[call](layer, lambda array: array[None])
    for _ in range(2):  # the second call finds what the first one prepared
        found = CALLS[call](layer, lambda array: array)
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            if one is None or other is None:
                assert one is other
                continue
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other.reshape(one.shape))
            alone = other.shape[1:] == SHAPE
            assert one.shape == (other.shape[1:] if alone else other.shape)


# Without a declared rank, an array is a batch where it can be one; what these compute is the same for both readings.
EITHER = ("last level", "no level")


@pytest.mark.parametrize("kind", [kind for kind in LAYERS if kind not in EITHER])
def test_plan_and_initialize_take_one_example(kind):
    layer = LAYERS[kind]()
    assert layer.initialize(X) is layer
    assert layer.initialize(SHAPE) is layer
    plan, of_batch = layer.plan(X), layer.plan(X[None])
    assert str(plan) == str(of_batch)
    assert str(layer.plan(SHAPE, np.float32)) == str(layer.plan((1, *SHAPE), np.float32))
    fresh = gn.NormalizationLayer.from_config({**layer.to_config(), "scaling": "Automatic", "biases": "Automatic"})
    assert fresh.initialize(X).scaling.shape == fresh.initialize(X[None]).scaling.shape


@pytest.mark.parametrize("kind", LAYERS)
def test_adapting_to_one_example_is_adapting_to_a_batch_of_one(kind):
    layer, other = LAYERS[kind](), LAYERS[kind]()
    assert layer.adapt(X).moments == other.adapt(X[None]).moments
    assert layer.adapt([X, X[None]]).moments == other.adapt([X[None], X[None]]).moments
