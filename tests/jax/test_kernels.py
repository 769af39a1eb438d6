"""Kernels inside of XLA programs: where they run, that they agree with the definition, and what happens to errors."""

import functools
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import gennorm as gn
from gennorm.engine import fallback_reason

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

import gennorm.jax as gj  # noqa: E402
from gennorm.jax import ffi, operations  # noqa: E402

CASES = {
    "layer norm": {"aggregation_levels": 2, "scaling_levels": "Same"},
    "batch norm": {"aggregation_levels": "{0, 2}", "scaling_levels": 1},
    "group norm": {"aggregation_levels": "All", "scaling_levels": 1, "group_number": {1: 3}, "unbiased": True},
    "rms norm": {"aggregation_levels": -1, "scaling_levels": "Same", "method": "RMS"},
    "two parameter levels": {"aggregation_levels": "All", "scaling_levels": [2, 1]},
}
KINDS = {"both": (True, True), "scaling": (True, False), "biases": (False, True), "none": (False, False)}


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """Every size is worth a kernel, and programs that were compiled before do not count."""
    if not ffi.is_available():
        pytest.skip(f"kernels cannot be used here: {fallback_reason() or ffi.api_version()}")
    monkeypatch.setattr(operations, "ENABLED", True)
    monkeypatch.setattr(operations, "WORTH", 1)
    monkeypatch.setattr(operations, "WORTH_FORWARD", 1)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.fixture
def counted(monkeypatch):
    """How often each handler has computed."""
    counts = {"forward": 0, "backward": 0}
    for name in counts:
        original = getattr(ffi, f"_{name}")

        def counting(call, arguments, results, name=name, original=original):
            counts[name] += 1
            return original(call, arguments, results)

        monkeypatch.setitem(ffi.COMPUTE, name, counting)
    return counts


def given(name, kind="both", dtype="float32", shape=(4, 6, 5)):
    settings = {**CASES[name], "batched": True}
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(3, 2, shape), dtype)
    sizes = gn.NormalizationLayer(**settings).initialize(shape).scaling.shape
    parameters = [jnp.asarray(random.normal(1, 1, sizes), dtype) if present else None for present in KINDS[kind]]
    return functools.partial(gj.normalize, **settings), x, parameters


def by_definition(monkeypatch, function, *arguments):
    with monkeypatch.context() as patch:
        patch.setattr(operations, "WORTH", sys.maxsize)
        jax.clear_caches()
        found = function(*arguments)
    jax.clear_caches()
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_the_same_as_the_definition(name, kind, counted, monkeypatch):
    call, x, parameters = given(name, kind)
    present = [one for one in parameters if one is not None]

    def run(x, *present):
        rest = iter(present)
        scaling, biases = (next(rest) if one else None for one in KINDS[kind])
        y, back = jax.vjp(lambda x, *_: call(x, scaling=scaling, biases=biases), x)
        every = jax.grad(
            lambda x, s, b: (call(x, scaling=s, biases=b) ** 3).sum(),
            tuple(i for i in range(3) if (x, *parameters)[i] is not None),
        )
        _, pushed = jax.jvp(lambda x: call(x, scaling=scaling, biases=biases), (x,), (x * x,))
        return y, back(jnp.sin(y)), every(x, scaling, biases), pushed

    expected = by_definition(monkeypatch, run, x, *present)
    assert counted == {"forward": 0, "backward": 0}
    found = run(x, *present)
    assert min(counted.values()) > 0
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4 * float(jnp.abs(other).max()))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtypes(dtype, counted, monkeypatch):
    with jax.enable_x64(dtype == "float64"):
        call, x, (scaling, biases) = given("group norm", dtype=dtype)
        step = jax.value_and_grad(lambda x: call(x, scaling=scaling, biases=biases).astype("float32").sum())
        expected = by_definition(monkeypatch, step, x)
        found = step(x)
    assert counted == {"forward": 1, "backward": 1}
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        wide = np.asarray(other, np.float64)
        np.testing.assert_allclose(np.asarray(one, np.float64), wide, atol=0.02 * max(1, np.abs(wide).max()))


def test_derivatives_of_derivatives(counted, monkeypatch):
    call, x, (scaling, _) = given("group norm", shape=(2, 3, 2))
    loss = lambda x: (call(x, scaling=scaling) ** 3).sum()  # noqa: E731
    functions = {
        "hessian": jax.hessian(loss),
        "reverse over reverse": jax.grad(lambda x: (jax.grad(loss)(x) ** 2).sum()),
        "forward over reverse": lambda x: jax.jvp(jax.grad(loss), (x,), (x,))[1],
        "reverse over forward": jax.grad(lambda x: jax.jvp(loss, (x,), (x,))[1]),
        "third": jax.grad(lambda x: jax.grad(lambda x: (jax.grad(loss)(x) ** 2).sum())(x).sum()),
        "samples": jax.vmap(jax.grad(loss), in_axes=2, out_axes=1),
        "jacobian": jax.jacrev(lambda x: call(x, scaling=scaling)),
        "transposed twice": lambda x: jax.linear_transpose(lambda dy: jax.vjp(call, x)[1](dy)[0], x)(x)[0],
    }
    for name, function in functions.items():
        argument = jnp.stack([x, 2 * x], 2) if name == "samples" else x
        expected = by_definition(monkeypatch, jax.jit(function), argument)
        scale = float(jnp.abs(expected).max())
        for transformed in (function, jax.jit(function)):
            np.testing.assert_allclose(transformed(argument) / scale, expected / scale, atol=3e-4, err_msg=name)
    assert counted["forward"] > 0


def test_scan_remat_and_vmap(counted):
    call, x, (scaling, biases) = given("layer norm")
    call = functools.partial(call, scaling=scaling, biases=biases)
    y = call(x)
    before = counted["forward"]
    many = jax.vmap(call)(jnp.stack([x, -x]))
    assert counted["forward"] == before  # the definition
    np.testing.assert_allclose(many[0], y, rtol=1e-4, atol=1e-5)
    _, steps = jax.lax.scan(lambda carry, one: (carry, call(one)), 0, jnp.stack([x, x, x]))
    assert counted["forward"] == before + 3
    np.testing.assert_array_equal(steps[2], y)
    slopes = [jax.grad(lambda x, f=f: (f(x) ** 3).sum())(x) for f in (call, jax.checkpoint(call))]
    np.testing.assert_allclose(slopes[0], slopes[1], rtol=1e-5)


def test_small_and_other_arrays_are_left_to_the_definition(counted, monkeypatch):
    call, x, _ = given("layer norm")
    call(x, mask=jnp.ones(x.shape, bool))
    call(x, moments=gj.measure(x, 2, batched=True))
    call((10 * x).astype("int8"))
    call(x, scaling=jnp.ones((4, 5)))
    monkeypatch.setattr(operations, "WORTH", x.size + 1)
    jax.clear_caches()
    call(x)
    assert counted == {"forward": 0, "backward": 0}


def test_a_forward_pass_alone_has_a_threshold_of_its_own(counted, monkeypatch):
    call, x, _ = given("layer norm")
    monkeypatch.setattr(operations, "WORTH_FORWARD", x.size + 1)
    y = call(x)
    assert counted["forward"] == 0
    again, back = jax.vjp(call, x)
    back(y)
    assert counted == {"forward": 1, "backward": 1}
    np.testing.assert_allclose(y, again, rtol=1e-4, atol=1e-5)


def test_an_exported_program_has_no_kernels(counted):
    call, x, _ = given("layer norm")
    exported = jax.export.deserialize(jax.export.export(jax.jit(call))(x).serialize())
    y = exported.call(x)
    assert counted["forward"] == 0
    np.testing.assert_allclose(y, call(x), rtol=1e-4, atol=1e-5)
    assert counted["forward"] == 1


def test_moving_moments_from_kernels(counted):
    layer = gj.NormalizationLayer("{0, 2}", 1, batched=True, input_shape=(6, 5), statistics="moving")
    x = given("batch norm")[1]
    core = layer.to_core()
    y, layer = jax.jit(gj.NormalizationLayer.fold)(layer, x)
    np.testing.assert_allclose(y, core(np.asarray(x), training=True), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(layer.mean, core.moments.mean, rtol=1e-6)
    np.testing.assert_allclose(layer.variance, core.moments.variance(), rtol=1e-6)
    assert counted["forward"] == 1


@pytest.mark.parametrize("pass_", ["forward", "backward"])
def test_an_error_becomes_one_of_jax(pass_, monkeypatch):
    def fail(*_):
        msg = "the disk is on fire"
        raise MemoryError(msg)

    monkeypatch.setitem(ffi.COMPUTE, pass_, fail)
    call, x, _ = given("layer norm")
    with pytest.raises(jax.errors.JaxRuntimeError, match="MemoryError: the disk is on fire"):
        jax.block_until_ready(jax.jit(jax.grad(lambda x: (call(x) ** 3).sum()))(x))


@pytest.mark.parametrize("version", [None, (0, 2), (1, 0)])
def test_other_versions_of_the_interface_use_the_definition(version, monkeypatch, counted):
    ffi.is_available.cache_clear()
    monkeypatch.setattr(ffi, "api_version", lambda: version)
    try:
        call, x, _ = given("layer norm")
        call(x)
        assert counted["forward"] == 0
    finally:
        ffi.is_available.cache_clear()


def test_many_threads_and_donated_buffers(counted):
    call, x, (scaling, biases) = given("layer norm", shape=(64, 6, 50))
    step = jax.jit(lambda x: call(x, scaling=scaling, biases=biases), donate_argnums=0)
    expected = np.asarray(step(x + 0))
    wrong = []

    def work():
        for _ in range(20):
            y = step(x + 0)  # several are in flight
            if not np.array_equal(y, expected):
                wrong.append(y)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert not wrong
    assert counted["forward"] > 40  # the threads count without a lock


ENDS = """
import jax, jax.numpy as jnp
import gennorm.jax as gj
f = jax.jit(jax.grad(lambda x: (gj.normalize(x, -1) ** 3).sum()))
x = jnp.ones((2048, 512))
f(x)
ys = [f(x + i) for i in range(10)]
print("end")
"""


def test_a_process_ends_while_programs_run():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "GENNORM_JAX_KERNELS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ENDS], capture_output=True, text=True, timeout=100, env=environment, check=False
    )
    assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr
    assert "Fatal" not in done.stderr
