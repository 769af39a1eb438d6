"""A call that raises changes nothing, whichever entry point it is; and concurrent calls change everything once.

Everything is checked before anything is written: the layer's state is the same object afterwards, its arrays have the
same bits, and so have the arrays of the caller.
"""

import copy
import io
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import gennorm as gn
from gennorm.layer import adapting
from gennorm.layer import layer as layers

X = np.random.default_rng(0).normal(1, 2, (4, 3, 5)).astype(np.float32)
COMPLEX = X.astype(complex)
WIDE = np.ones((1,) * 7)  # of no shape that is needed
MASK = np.ones(X.shape, bool)


def moving():
    layer = gn.batch_norm(3, scaling=[1, 2, 3], biases=[0, 1, 2], momentum=0.5)
    layer(X, training=True)
    return layer


def dataset():
    return gn.feature_norm(1, scaling=[1, 2, 3], biases=[0, 1, 2], input_shape=(3, None)).adapt(X)


def of_input():
    return gn.group_norm(1, 3, scaling=[1, 2, 3], biases=[0, 1, 2])


LAYERS = {"moving": moving, "dataset": dataset, "input": of_input}


def read_only():
    out = np.zeros_like(X)
    out.flags.writeable = False
    return out


def second_batch_fails():
    yield X
    msg = "the source of the data fails"
    raise OSError(msg)


# For each entry point, calls that raise although something in them is right. The arguments are a layer, and an array
# that could be written to.
CALLS = {
    "dtype": lambda layer, _: layer(COMPLEX, training=True),
    "rank": lambda layer, _: layer(X[0, 0], training=True),
    "size": lambda layer, _: layer(X[:, :2], training=True),
    "mask": lambda layer, x: layer(x, training=True, mask=MASK[:, :2], out=x),
    "mask of numbers": lambda layer, x: layer(x, training=True, mask=MASK.astype(float), out=x),
    "scaling": lambda layer, x: layer(x, training=True, scaling=WIDE, out=x),
    "biases": lambda layer, x: layer(x, training=True, scaling=np.ones(3), biases=WIDE, out=x),
    "out of another shape": lambda layer, x: layer(x, training=True, out=x[:2]),
    "out of another dtype": lambda layer, x: layer(x, training=True, out=np.zeros(x.shape)),
    "read-only out": lambda layer, x: layer(x, training=True, out=read_only()),
    "overlapping out": lambda layer, x: layer(x[:3], training=True, out=x[1:]),
    "broadcast out": lambda layer, x: layer(x, training=True, out=np.broadcast_to(x[:1], x.shape)),
    "moments": lambda layer, x: layer(x, training=True, moments=(np.zeros(7), np.ones(7)), out=x),
    "mean alone": lambda layer, x: layer(x, training=True, moments=(np.zeros(3),), out=x),
    "second array of a list": lambda layer, x: layer([x, COMPLEX], training=True),
    "second rank of a list": lambda layer, x: layer([x, x[0, 0]], training=True),
    "list with a mask": lambda layer, x: layer([x, x], training=True, mask=MASK),
    "vjp: mask": lambda layer, x: layer.vjp(x, training=True, mask=MASK[:, :2]),
    "vjp: scaling": lambda layer, x: layer.vjp(x, training=True, scaling=WIDE),
    "vjp: moments": lambda layer, x: layer.vjp(x, training=True, moments=3),
    "jvp: direction": lambda layer, x: layer.jvp(x, x[:2], training=True),
    "jvp: direction of complex numbers": lambda layer, x: layer.jvp(x, COMPLEX, training=True),
    "jvp: dscaling": lambda layer, x: layer.jvp(x, x, training=True, dscaling=WIDE),
    "jvp: dbiases": lambda layer, x: layer.jvp(x, x, training=True, dscaling=np.ones(3), dbiases=WIDE),
    "jvp: merge": lambda layer, x: layer.jvp(x, x, training=True, merge=lambda sums: sums[:1]),
    "jvp: mask": lambda layer, x: layer.jvp(x, x, training=True, mask=MASK[:, :2]),
    "measure": lambda layer, x: layer.measure(x, MASK.astype(float)),
    "apply": lambda layer, x: layer.apply(x, gn.Moments.from_variance(np.zeros(7), np.ones(7)), out=x),
    "inverse": lambda layer, x: layer.inverse(x, gn.Moments.from_variance(np.zeros(7), np.ones(7)), out=x),
    "inverse: out": lambda layer, x: layer.inverse(x, gn.Moments.from_variance(0.0, 1.0), out=read_only()),
    "scaling =": lambda layer, _: setattr(layer, "scaling", WIDE),
    "scaling = text": lambda layer, _: setattr(layer, "scaling", "ones"),
    "biases =": lambda layer, _: setattr(layer, "biases", np.ones(3, complex)),
    "biases = too large": lambda layer, _: setattr(layer, "biases", np.array([0, 1e300, 0])),
    "moments =": lambda layer, _: setattr(layer, "moments", gn.Moments.from_variance(np.zeros(7), np.ones(7))),
    "moments = a pair": lambda layer, _: setattr(layer, "moments", (0.0, 1.0)),
    "epsilon =": lambda layer, _: setattr(layer, "epsilon", -1.0),
    "epsilon_placement =": lambda layer, _: setattr(layer, "epsilon_placement", "behind"),
    "momentum =": lambda layer, _: setattr(layer, "momentum", 2.0),
    "trainable =": lambda layer, _: setattr(layer, "trainable", "no"),
    "unbiased =": lambda layer, _: setattr(layer, "unbiased", 2),
    "learning_rate_multipliers =": lambda layer, _: setattr(layer, "learning_rate_multipliers", {"gain": 1}),
    "dtype =": lambda layer, _: setattr(layer, "dtype", "float64"),
    "an attribute =": lambda layer, _: setattr(layer, "gamma", 1.0),
    "initialize": lambda layer, _: layer.initialize((4, 2, 5)),
    "initialize: rank": lambda layer, x: layer.initialize(x[0, 0]),
    "adapt: second batch": lambda layer, x: layer.adapt([x, COMPLEX]),
    "adapt: second shape": lambda layer, x: layer.adapt([x, x[:, :2]]),
    "adapt: more": lambda layer, x: layer.adapt([x, COMPLEX], reset=False),
    "adapt: weights": lambda layer, x: layer.adapt(x, weights=np.full(x.shape, -1.0)),
    "adapt: masks": lambda layer, x: layer.adapt([x, x], mask=[MASK]),
    "adapt: surplus masks": lambda layer, x: layer.adapt([x], mask=[MASK, MASK]),
    "adapt: NaN": lambda layer, x: layer.adapt([x, np.full_like(x, np.nan)], nan="raise"),
    "adapt: nan": lambda layer, x: layer.adapt(x, nan="ignore"),
    "adapt: a source that fails": lambda layer, _: layer.adapt(second_batch_fails()),
    "plan": lambda layer, x: layer.plan(x, np.float64),
    "information": lambda layer, _: layer.information("gamma"),
    "save": lambda layer, _: layer.save("layer.txt"),
    "load": lambda *_: gn.load(io.BytesIO(b"PK")),
}


def contents(layer):
    """The bits of everything that a layer holds."""
    held = layer.moments
    arrays = [layer.scaling, layer.biases, *([] if held is None else [held.count, held.mean, held.m2])]
    return [layer.to_config(), *(None if array is None else (array.dtype.name, array.tobytes()) for array in arrays)]


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_raises_changes_nothing(name, kind):
    layer, x = LAYERS[kind](), X.copy()
    state, before = layer._state, copy.deepcopy(contents(layer))
    for _ in range(2):  # the second call finds what the first one prepared
        with pytest.raises((gn.GennormError, OSError)):
            CALLS[name](layer, x)
        assert layer._state is state
        assert contents(layer) == before
        assert x.tobytes() == X.tobytes()
    np.testing.assert_array_equal(layer(x), LAYERS[kind]()(X))


# Where a call fails after its checks: what it would have changed is as it was.
FAILURES = {
    "run": (layers, "run", lambda layer: layer(X, training=True)),
    "run in vjp": (layers, "run", lambda layer: layer.vjp(X, training=True)),
    "run in jvp": (layers, "run", lambda layer: layer.jvp(X, X, training=True)),
    "fold": (layers, "folded_rows", lambda layer: layer(X, training=True)),
    "push forward": (layers, "push_forward", lambda layer: layer.jvp(X, X, training=True)),
    "second of a list": (layers, "run", lambda layer: layer([X, X], training=True)),
    "merge": (adapting, "added", lambda layer: layer.adapt([X], reset=False)),
    "fill": (layers, "filled", lambda layer: layer.initialize(X.shape)),
    "check": (layers, "checked_parameter", lambda layer: setattr(layer, "scaling", [3, 2, 1])),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", FAILURES)
def test_a_call_that_fails_in_the_middle_changes_nothing(name, kind, monkeypatch):
    module, function, call = FAILURES[name]
    layer = LAYERS[kind]()
    before = copy.deepcopy(contents(layer))

    real, number = getattr(module, function), [name == "second of a list"]

    def failing(*arguments, **keywords):
        if number[0]:
            number[0] -= 1
            return real(*arguments, **keywords)
        raise MemoryError

    monkeypatch.setattr(module, function, failing)
    try:
        call(layer)
    except (MemoryError, gn.GennormError):
        assert contents(layer) == before
    monkeypatch.undo()
    layer.initialize(X.shape)  # and no lock is held


def test_concurrent_initialization_makes_one_array():
    """Each thread gets the same arrays, and the calls that it prepares are on them."""
    for _ in range(20):
        layer = gn.NormalizationLayer("{0, 2}", 1, batched=True)
        start = threading.Barrier(4)

        def initialize(_, layer=layer, start=start):
            start.wait()
            layer.initialize(X.shape)
            layer(X)
            return layer.scaling, layer.biases

        with ThreadPoolExecutor(4) as pool:
            found = [*pool.map(initialize, range(4))]
        assert len({id(scaling) for scaling, _ in found}) == len({id(biases) for _, biases in found}) == 1
        before = layer(X)
        layer.scaling[...] = 2.0
        np.testing.assert_allclose(layer(X), 2 * before, rtol=1e-6)


CHANGES = {
    "epsilon": lambda layer, number: setattr(layer, "epsilon", 1e-3 + number),
    "scaling": lambda layer, number: setattr(layer, "scaling", np.full(3, 2.0 + number)),
    "moments": lambda layer, number: setattr(layer, "moments", gn.Moments.from_variance(number, 1.0 + number)),
    "reset": lambda layer, _: layer.reset_moments(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_concurrent_calls_see_one_state_or_the_other(change):
    """Every output belongs to the state before a change or after it, never to half of one."""
    layer = moving()
    other = pickle.loads(pickle.dumps(layer))
    CHANGES[change](other, 1)
    allowed = {layer(X).tobytes(), other(X).tobytes()}
    start, found = threading.Barrier(3), []

    def call():
        start.wait()
        for _ in range(20):
            found.append(layer(X).tobytes())

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    start.wait()
    CHANGES[change](layer, 1)
    for thread in threads:
        thread.join()
    assert {*found} <= allowed
    assert layer(X).tobytes() == other(X).tobytes()
