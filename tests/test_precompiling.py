"""`gn.precompile`: afterwards calls compile nothing, and the layer is unchanged."""

import copy
import functools

import numpy as np
import pytest

import gennorm as gn
from gennorm import engine
from gennorm.engine import call as engine_call
from gennorm.engine import openmp, sharing, threads
from gennorm.engine.compiler import jit
from tests.strategies import named_layouts, sample

# Layers, each with the shape of an input.
PRESETS = {
    "batch norm": (lambda: gn.batch_norm(6), (4, 6, 5, 5)),
    "batch norm, channels last": (lambda: gn.batch_norm(6, channel_level=-1), (4, 5, 5, 6)),
    "layer norm": (lambda: gn.layer_norm(20), (9, 20)),
    "RMS norm": (lambda: gn.rms_norm(20), (9, 20)),
    "instance norm": (lambda: gn.instance_norm(6), (4, 6, 5, 5)),
    "group norm": (lambda: gn.group_norm(2, 6), (4, 6, 5, 5)),
    "feature norm": (gn.feature_norm, (40, 6)),
    "uninitialized": (gn.NormalizationLayer, (6, 5, 5)),
}
presets = pytest.mark.parametrize("name", PRESETS)


@pytest.fixture
def fresh(monkeypatch):
    """Use one thread, and forget all compiled kernels."""
    monkeypatch.setattr(threads, "_threads", 1)
    monkeypatch.setattr(sharing, "_pools", [])
    monkeypatch.setattr(openmp, "runtime", lambda: None)
    monkeypatch.setattr(engine_call, "kernel_of", functools.cache(engine_call.kernel_of.__wrapped__))
    monkeypatch.setattr(jit, "_results", {})
    monkeypatch.setattr(jit, "built", [])


def learn(layer, x):
    if layer.information("statistics") == "dataset":
        layer.adapt(x)
    else:
        layer(x, training=True)


@presets
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_afterwards_nothing_is_compiled(name, dtype, fresh):
    make, shape = PRESETS[name]
    layer = make()
    done = gn.precompile(layer, shape, dtype, training=True, gradients=True)
    assert len(done.compiled) + len(done.loaded) == len(engine.built()) > 0
    assert 0 < done.seconds < 600
    x = sample(shape, dtype)
    layer.initialize(shape)
    learn(layer, x)
    layer(x)
    y, pullback = layer.vjp(x, training=True)
    pullback(y)
    assert len(engine.built()) == len(done.compiled) + len(done.loaded)
    expected = layer(x)
    again = gn.precompile(layer, shape, dtype, training=True, gradients=True)
    assert (again.compiled, again.loaded) == ((), ())
    assert layer(x).tobytes() == expected.tobytes()


@presets
def test_without_gradients_no_backward_kernel_is_compiled(name, fresh):
    make, shape = PRESETS[name]
    for_calls = gn.precompile(make(), shape)
    assert not [one for one in (*for_calls.compiled, *for_calls.loaded) if "backward" in one]
    for_all = gn.precompile(make(), shape, gradients=True)
    assert [one for one in (*for_all.compiled, *for_all.loaded) if "backward" in one]


@presets
def test_a_training_step_has_two_kernels(name, fresh):
    make, shape = PRESETS[name]
    layer, x = make().initialize(shape), sample(shape)
    if name == "feature norm":
        layer.moments = gn.Moments.of(x, axes=0)
    y, pullback = layer.vjp(x, training=True)
    pullback(y)
    assert [one.name.split(".")[1] for one in engine.built()] == ["forward", "backward"]


def test_the_layer_is_unchanged():
    layer = gn.batch_norm(6)
    layer.scaling = np.arange(6)
    before = copy.deepcopy(layer)
    gn.precompile(layer, (4, 6, 5, 5), training=True, gradients=True)
    assert repr(layer) == repr(before)
    assert layer.moments.mean.tobytes() == before.moments.mean.tobytes()
    fresh = gn.NormalizationLayer()
    gn.precompile(fresh, (6, 5, 5))
    assert not fresh.initialized


def test_an_array_is_given_instead_of_a_shape(fresh):
    x = named_layouts(3)["channels last"].hold(sample((4, 6, 20)))
    layer = gn.instance_norm(6)
    before = x.tobytes()
    gn.precompile(layer, x)
    assert {one.name for one in engine.built()} == {"columns.forward"}
    found = len(engine.built())
    layer(x)
    assert len(engine.built()) == found
    assert x.tobytes() == before


def test_the_thread_pool_is_compiled_too(fresh):
    gn.set_num_threads(2)
    layer = gn.layer_norm(20)
    gn.precompile(layer, (9, 20), gradients=True)
    names = [one.name for one in engine.built()]
    assert sorted(set(names)) == [
        "row_gradients.backward",
        "rows.forward",
        "workers.share",
        "workers.work_until_idle",
    ]
    assert str(engine.built()[names.index("workers.share")]).startswith("workers.share of int64, ")
    y, pullback = layer.vjp(np.ones((20_000, 20), np.float32))
    pullback(y)
    assert len(engine.built()) == len(names)
    assert sharing._pools[0].workers


def test_the_report(fresh):
    gn.precompile(gn.layer_norm(20), (9, 20))
    jit._results.clear()
    engine_call.kernel_of.cache_clear()
    jit.built.clear()
    told = str(gn.precompile(gn.layer_norm(20), (9, 20))).splitlines()
    assert len(told) == 2
    assert told[0].startswith("loaded   rows.forward of float32 (apply, biases, ")
    assert told[1].endswith(" s")


def test_inputs_that_a_call_refuses_are_refused():
    with pytest.raises(gn.errors.ShapeError):
        gn.precompile(gn.layer_norm(20), (9, 21))
    with pytest.raises(gn.errors.DtypeError):
        gn.precompile(gn.layer_norm(20), (9, 20), complex)
    with pytest.raises(gn.errors.ShapeError):
        gn.precompile(gn.layer_norm(20), "9")
