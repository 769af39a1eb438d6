"""Calls without kernels go by the definition, say why once, and give the same values."""

import functools
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import gennorm as gn
from gennorm import engine
from gennorm.engine import call as engine_call
from gennorm.engine.compiler import CompilationError, jit

X = np.random.default_rng(0).normal(3, 2, (4, 6, 5)).astype(np.float32)
DY = np.random.default_rng(1).normal(size=X.shape).astype(np.float32)
MASK = np.random.default_rng(2).random(X.shape) > 0.3
LAYERS = {
    "layer norm": lambda: gn.layer_norm(5, batched=True),
    "rms norm": lambda: gn.rms_norm(5, batched=True),
    "group norm": lambda: gn.group_norm(2, 6),
    "batch norm": lambda: gn.batch_norm(6),
    "columns": lambda: gn.NormalizationLayer("{0, 1}", -1, batched=True, input_shape=(6, 5)),
}


def trained(layer):
    layer(X, training=True)
    return layer(X), layer.moments.mean, layer.moments.m2


def derivatives(layer, **call):
    y, pullback = layer.vjp(X, training=True, **call)
    found = pullback(DY)
    return y, found.input, found.scaling, found.biases, layer.jvp(X, DY, training=True, **call)[1]


def into(layer):
    out = np.empty((6, 4, 5), np.float32).transpose(1, 0, 2)
    layer(X, training=True, out=out)
    return (out,)


CALLS = {
    "call": lambda layer: (layer(X, training=True),),
    "out": into,
    "mask": lambda layer: (layer(X, training=True, mask=MASK),),
    "parameters of the call": lambda layer: (
        layer(X, training=True, scaling=np.full(layer.scaling.shape, 2.0), biases=np.full(layer.scaling.shape, 1.0)),
    ),
    "one set for each example": lambda layer: (
        layer(X, training=True, scaling=np.random.default_rng(3).normal(size=(4, *layer.scaling.shape))),
    ),
    "derivatives": derivatives,
    "derivatives with a mask": lambda layer: derivatives(layer, mask=MASK),
    "measure": lambda layer: (layer.measure(X).m2, layer.measure(X, MASK).count),
    "apply": lambda layer: (layer.apply(X, layer.measure(X)),),
    "inverse": lambda layer: (layer.inverse(layer.apply(X, layer.measure(X)), layer.measure(X)),),
}


def differing(make):
    layer = make()
    for seed, name in enumerate(("scaling", "biases")):
        value = getattr(layer, name)
        if value is not None:
            value[...] = np.random.default_rng(seed).normal(1, 0.3, value.shape)
    return layer


def close(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.dtype == other.dtype
            np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


def refused(*_):
    """What a build is that LLVM refuses."""
    msg = "no machine code"
    raise CompilationError(msg) from RuntimeError("LLVM ERROR: out of registers")


@pytest.fixture
def failing(monkeypatch):
    """No kernel can be compiled, and none is remembered."""

    monkeypatch.setattr(jit, "build", refused)
    monkeypatch.setattr(engine_call, "kernel_of", functools.cache(engine_call.kernel_of.__wrapped__))
    monkeypatch.setattr(engine_call, "merger", functools.cache(engine_call.merger.__wrapped__))
    engine.fallback_reason()
    monkeypatch.setattr(engine, "_reason", None)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_kernel_that_cannot_be_compiled(name, call, failing, monkeypatch):
    layer = differing(LAYERS[name])
    with pytest.warns(RuntimeWarning, match=r"Numba could not compile a kernel \(RuntimeError: LLVM ERROR") as caught:
        found = CALLS[call](layer)
    assert len(caught) == 1
    assert "none, the definition in NumPy: Numba could not compile" in str(layer.plan(X))
    again = CALLS[call](differing(LAYERS[name]))  # without a warning, which would be an error
    close(found, again)
    monkeypatch.undo()
    engine._reason = None
    close(found, CALLS[call](differing(LAYERS[name])))


def test_moving_moments_are_folded_once(failing, monkeypatch):
    with pytest.warns(RuntimeWarning):
        found = trained(gn.batch_norm(6))
    monkeypatch.undo()
    engine._reason = None
    close(found, trained(gn.batch_norm(6)))


# Calls in training that need a second kernel after the first has computed an output.
LATER = {
    "jvp": (lambda layer: layer.jvp(X, DY, training=True), "backward"),
    "list": (
        lambda layer: layer([X, X.transpose(0, 2, 1).copy().transpose(0, 2, 1)], training=True),
        "columns",
    ),
}


@pytest.mark.parametrize("name", LATER)
def test_moments_are_folded_once_where_a_later_kernel_is_missing(name, monkeypatch):
    call, missing = LATER[name]
    expected = gn.batch_norm(6)
    call(expected)
    build = engine_call.kernel_of.__wrapped__

    def partly(family, step, *rest):
        return refused() if missing in (family, step) else build(family, step, *rest)

    layer = gn.batch_norm(6)
    with monkeypatch.context() as patch:
        patch.setattr(engine_call, "kernel_of", partly)
        patch.setattr(engine, "_reason", None)
        with pytest.warns(RuntimeWarning, match="LLVM ERROR"):
            call(layer)
    np.testing.assert_allclose(layer.moments.mean, expected.moments.mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(layer.moments.m2, expected.moments.m2, rtol=1e-5)


def test_a_pullback_whose_kernel_cannot_be_compiled(monkeypatch):
    layer = differing(LAYERS["group norm"])
    expected = layer.vjp(X)[1](DY)

    fresh = gn.NormalizationLayer.from_config(layer.to_config())
    fresh.scaling[...], fresh.biases[...] = layer.scaling, layer.biases
    _, pullback = fresh.vjp(X)
    monkeypatch.setattr(jit, "build", refused)
    monkeypatch.setattr(engine_call, "kernel_of", functools.cache(engine_call.kernel_of.__wrapped__))
    monkeypatch.setattr(engine, "_reason", None)
    with pytest.warns(RuntimeWarning, match="LLVM ERROR"):
        found = pullback(DY)
    close((found.input, found.scaling, found.biases), (expected.input, expected.scaling, expected.biases))


@pytest.mark.parametrize("each", [False, True], ids=["own", "one set for each example"])
@pytest.mark.parametrize("name", [*LAYERS, "folded columns", "reversed parameters"])
def test_a_pullback_of_the_definition_has_the_parameters_of_its_call(name, each, monkeypatch):
    """A kernel is missing when a pullback is called, and the parameters have been written to since."""
    others = {
        "folded columns": lambda: gn.group_norm(2, 6, channel_level=-1).initialize((*X.shape[::2], 6)),
        "reversed parameters": lambda: gn.NormalizationLayer(1, "{2, 1}", batched=True).initialize(X.shape),
    }
    layer = differing({**LAYERS, **others}[name])
    x, dy = (X, DY) if name != "folded columns" else (np.moveaxis(X, 1, -1).copy(), np.moveaxis(DY, 1, -1).copy())
    own = np.random.default_rng(3).normal(1, 0.5, (len(x),) * each + layer.scaling.shape).astype(np.float32)
    keywords = {"scaling": own} if each else {}
    _, pullback = layer.vjp(x, training=True, **keywords)
    expected = pullback(dy)
    own[...] = 50
    layer.scaling[...] = 50
    with monkeypatch.context() as patch:
        patch.setattr(jit, "build", refused)
        patch.setattr(engine_call, "kernel_of", functools.cache(engine_call.kernel_of.__wrapped__))
        patch.setattr(engine, "_reason", None)
        pullback._residuals.call._sweeps.clear()
        with pytest.warns(RuntimeWarning, match="LLVM ERROR"):
            found = pullback(dy)
    close((found.input, found.scaling, found.biases), (expected.input, expected.scaling, expected.biases))


PROGRAM = """
import sys, warnings
{block}
warnings.simplefilter("always")
import numpy as np
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import gennorm as gn
    layer, x = gn.layer_norm(4), np.arange(8.0).reshape(2, 4)
    try:
        y, pullback = layer.vjp(x)
        layer(x), pullback(y), layer.measure(x)
    except gn.GennormError as error:
        print(error)
        sys.exit(3)
print(len(caught), *[one.message for one in caught])
print(str(layer.plan(x)).splitlines()[6])
print(y.round(3).tolist())
"""
BLOCK = 'sys.modules["numba"] = None'


def run(block="", **variables):
    program = PROGRAM.format(block=textwrap.dedent(block))
    environment = {**os.environ, **variables}
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=120, check=False
    )


def test_without_numba():
    done = run(BLOCK)
    warned, plan, values = done.stdout.splitlines()
    assert warned.startswith("1 gennorm computes by its definition in NumPy, which is correct but slow: ")
    assert "pip install 'numba>=" in warned
    assert plan.startswith("kernel     none, the definition in NumPy: ")
    assert values == "[[-1.341, -0.447, 0.447, 1.341], [-1.341, -0.447, 0.447, 1.341]]"


def test_the_definition_by_choice_warns_of_nothing():
    warned, plan, _ = run(GENNORM_ENGINE="definition").stdout.splitlines()
    assert (warned, plan) == ("0", "kernel     none, the definition in NumPy: GENNORM_ENGINE=definition")


def test_kernels_by_choice():
    warned, plan, _ = run(GENNORM_ENGINE="kernels").stdout.splitlines()
    assert (warned, plan) == ("0", "kernel     rows, float64 arithmetic")


def test_kernels_that_are_demanded_and_not_available():
    done = run(BLOCK, GENNORM_ENGINE="kernels")
    assert done.returncode == 3
    assert done.stdout.startswith("GENNORM_ENGINE requires kernels, and they are not available: ")
    assert done.stdout.rstrip().endswith("or leave out GENNORM_ENGINE [C131]")


def test_an_engine_that_does_not_exist():
    done = run(GENNORM_ENGINE="kernel")
    assert done.returncode == 3
    assert done.stdout == (
        'GENNORM_ENGINE cannot be "kernel"; did you mean "kernels"?\n'
        'set it to "kernels" or "definition", or leave it out [C130]\n'
    )
