"""Kernels inside of XLA programs: where they run, their values and derivatives, and what happens to errors."""

import functools
import os
import re
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

import gennorm as gn
from gennorm.engine import fallback_reason
from spec import reference

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

import gennorm.jax as gj  # noqa: E402
from gennorm.engine import CompilationError, handlers  # noqa: E402
from gennorm.jax import computation, kernels  # noqa: E402

BOTH, NEITHER = (True, True), (False, False)
# Settings, which parameters there are, and the family of kernels.
CASES = {
    "layer norm": ({"aggregation_levels": 2, "scaling_levels": "Same"}, BOTH, "rows"),
    "rms norm": ({"aggregation_levels": 2, "scaling_levels": "Same", "method": "RMS"}, (True, False), "rows"),
    "biases": ({"aggregation_levels": 2, "scaling_levels": 2, "unbiased": True}, (False, True), "rows"),
    "group norm": ({"aggregation_levels": "All", "scaling_levels": 1, "group_number": {1: 3}}, BOTH, "rows"),
    "batch norm": (
        {"aggregation_levels": "{0, 2}", "scaling_levels": 1, "epsilon_placement": "outside"},
        *(BOTH, "rows"),
    ),
    "batch norm, channels last": ({"aggregation_levels": "0;;1", "scaling_levels": 2}, BOTH, "columns"),
    "group norm, channels last": (
        {"aggregation_levels": "All", "scaling_levels": 2, "group_number": {2: 5}},
        *(BOTH, "columns"),
    ),
    "two parameter levels": ({"aggregation_levels": "All", "scaling_levels": [2, 1]}, BOTH, "rows"),
    "a parameter several times": ({"aggregation_levels": "All", "scaling_levels": 1}, BOTH, "rows"),
}
SHAPE = (4, 6, 40)


@pytest.fixture(autouse=True)
def worth(monkeypatch):
    """Kernels are used for every size, and programs that were compiled before do not count."""
    if not kernels.are_available():
        pytest.skip(f"kernels cannot be used here: {fallback_reason() or kernels._api_version()}")
    for name in ("WORTH", "WORTH_RMS", "WORTH_LENGTH"):
        monkeypatch.setattr(kernels, name, 1)
    jax.clear_caches()
    yield
    jax.clear_caches()


def given(name, dtype="float32", shape=SHAPE):
    """A function of an input and parameters, and what it is called on."""
    settings, has, _ = CASES[name]
    settings = {**settings, "batched": True}
    random = np.random.default_rng(0)
    x = random.normal(3, 2, shape)
    sizes = gn.NormalizationLayer(**settings).initialize(x).scaling.shape
    parameters = {
        what: jnp.asarray(random.normal(1, 1, sizes), dtype)
        for what, there in zip(("scaling", "biases"), has, strict=True)
        if there
    }
    return functools.partial(gj.normalize, **settings), jnp.asarray(x, dtype), parameters


def calls(function, *arguments):
    """The kernels that a function calls when it is compiled."""
    text = jax.jit(function).lower(*arguments).as_text()
    return sorted(set(re.findall(r"custom_call @gennorm_(\w+?)_[0-9a-f]{16}", text)))


def kernels_of(name):
    return [f"{step}_{CASES[name][2]}" for step in ("backward", "forward")]


def close(one, other, tolerance, message=""):
    assert one.shape == other.shape, message
    scale = max(1.0, np.abs(np.asarray(other, np.float64)).max())
    difference = np.asarray(one, np.float64) - np.asarray(other, np.float64)
    np.testing.assert_allclose(difference / scale, 0, atol=tolerance, err_msg=message)


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_reference(name):
    call, x, parameters = given(name)
    dy = jnp.asarray(np.random.default_rng(1).normal(size=SHAPE), "float32")

    def step(x, parameters, dy):
        y, back = jax.vjp(lambda x, parameters: call(x, **parameters), x, parameters)
        return y, back(dy)

    assert calls(step, x, parameters, dy) == kernels_of(name)
    y, (dx, slopes) = jax.jit(step)(x, parameters, dy)
    wide = {what: np.asarray(one, np.float64) for what, one in parameters.items()}
    close(y, reference.normalize(np.asarray(x, np.float64), **call.keywords, **wide), 3e-6)
    expected = reference.vjp(np.asarray(x, np.float64), np.asarray(dy, np.float64), **call.keywords, **wide)
    close(dx, expected[0], 3e-6, "of the input")
    for what, other in zip(("scaling", "biases"), expected[1:], strict=True):
        if what in parameters:
            close(slopes[what], other, 3e-6, what)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("bfloat16", 2e-2)])
def test_dtypes(dtype, tolerance):
    with jax.enable_x64(dtype == "float64"):
        call, x, parameters = given("layer norm", dtype)
        y, back = jax.vjp(lambda x, parameters: call(x, **parameters), x, parameters)
        dx, slopes = back(y)
        assert calls(lambda x: jax.vjp(functools.partial(call, **parameters), x)[1](x), x) == kernels_of("layer norm")
    found = dx, slopes["scaling"], slopes["biases"]
    assert {one.dtype.name for one in (y, *found)} == {dtype}
    wide = [np.asarray(one, np.float64) for one in (x, y, *parameters.values())]
    named = dict(zip(parameters, wide[2:], strict=True))
    close(y, reference.normalize(wide[0], **call.keywords, **named), tolerance)
    for one, other in zip(found, reference.vjp(*wide[:2], **call.keywords, **named), strict=True):
        close(one, other, 3 * tolerance)


def test_moments_are_those_that_are_measured():
    layer = gj.NormalizationLayer("{0, 2}", 1, batched=True, input_shape=SHAPE[1:], statistics="moving")
    x = given("batch norm")[1]
    core = layer.to_core()
    assert calls(gj.NormalizationLayer.fold, layer, x) == ["forward_rows"]
    y, layer = jax.jit(gj.NormalizationLayer.fold)(layer, x)
    close(y, core(np.asarray(x), training=True), 1e-6)
    np.testing.assert_allclose(layer.mean, core.moments.mean, rtol=1e-6)
    np.testing.assert_allclose(layer.variance, core.moments.variance(), rtol=1e-6)


def test_large_means_are_exact():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 64)) + 1e6, "float32")
    y = jax.jit(lambda x: gj.normalize(x, -1, batched=True))(x)
    close(y, reference.normalize(np.asarray(x, np.float64), -1, batched=True), 1e-6)


# --------------------------------------------------------------------------------------------- where kernels are used


def test_derivatives_of_derivatives(monkeypatch):
    call, x, parameters = given("layer norm", shape=(2, 2, 5))
    call = functools.partial(call, **parameters)

    def loss(x):
        return (call(x) ** 3).sum()

    functions = {
        "hessian": jax.hessian(loss),
        "reverse over reverse": jax.grad(lambda x: (jax.grad(loss)(x) ** 2).sum()),
        "reverse over forward": jax.grad(lambda x: jax.jvp(loss, (x,), (x,))[1]),
        "samples": lambda x: jax.vmap(jax.grad(loss), in_axes=2, out_axes=1)(jnp.stack([x, 2 * x], 2)),
        "jacobian": jax.jacrev(call),
        "transposed twice": lambda x: jax.linear_transpose(lambda dy: jax.vjp(call, x)[1](dy)[0], x)(x)[0],
    }
    found = {name: jax.jit(function)(x) for name, function in functions.items()}
    used = [name for name, function in functions.items() if calls(function, x)]
    assert used == ["hessian", "reverse over reverse", "reverse over forward", "transposed twice"]
    monkeypatch.setattr(kernels, "WORTH", sys.maxsize)
    jax.clear_caches()
    for name, function in functions.items():
        close(found[name], jax.jit(function)(x), 3e-4, name)


def test_scan_remat_vmap_and_no_jit():
    call, x, parameters = given("layer norm")
    call = functools.partial(call, **parameters)
    y = call(x)
    with jax.disable_jit():
        close(call(x), y, 1e-5)
    assert calls(jax.vmap(call), jnp.stack([x, -x])) == []
    close(jax.vmap(call)(jnp.stack([x, -x]))[0], y, 1e-5)
    scanned = lambda xs: jax.lax.scan(lambda carry, one: (carry, call(one)), 0, xs)[1]  # noqa: E731
    assert calls(scanned, jnp.stack([x, x, x])) == ["forward_rows"]
    np.testing.assert_array_equal(scanned(jnp.stack([x, x, x]))[2], y)
    slopes = [jax.grad(lambda x, f=f: (f(x) ** 3).sum())(x) for f in (call, jax.checkpoint(call))]
    close(slopes[0], slopes[1], 1e-6)


def test_what_is_left_to_the_definition(monkeypatch):
    call, x, _ = given("layer norm")
    assert calls(call, x) == ["forward_rows"]
    moments = gj.measure(x, 2, batched=True)
    each = jnp.ones((SHAPE[0], SHAPE[2]))
    for left, argument in (
        (functools.partial(call, mask=jnp.ones(x.shape, bool)), x),
        (functools.partial(call, moments=moments), x),
        (functools.partial(call, scaling=each), x),
        (call, (10 * x).astype("int8")),
    ):
        assert calls(left, argument) == [], left.keywords
    monkeypatch.setattr(kernels, "WORTH", x.size + 1)
    jax.clear_caches()
    assert calls(call, x) == []


def test_a_forward_pass_alone_has_other_limits(monkeypatch):
    monkeypatch.undo()
    small, large = (64, 16, 768), (4096, 16, 768)

    def worth(shape, levels, **settings):
        config = gn.NormalizationLayer(levels, batched=True, **settings)._state.config
        plan = handlers.plan_of(config, shape, "float32")
        return [kernels._is_worth_it(plan, keep) for keep in (True, False)]

    assert worth(small, 2) == worth(small, "0;;1") == worth(large, 2, method="RMS") == [True, True]
    assert worth(small, 2, method="RMS") == worth((64, 768, 16), 2) == [True, False]
    call = functools.partial(gj.normalize, aggregation_levels=-1, batched=True)
    for rows, expected in ((kernels.WORTH // 256 - 1, []), (kernels.WORTH // 256, ["forward_rows"])):
        assert calls(call, jnp.ones((rows, 256))) == expected


def test_an_exported_program_has_no_kernels():
    call, x, _ = given("layer norm")
    exported = jax.export.export(jax.jit(call))(x)
    assert "custom_call" not in exported.mlir_module()
    close(jax.export.deserialize(exported.serialize()).call(x), call(x), 1e-5)


@pytest.mark.parametrize("version", [None, (0, 2), (1, 0)])
def test_other_versions_of_the_interface_use_the_definition(version, monkeypatch):
    monkeypatch.setattr(kernels, "_api_version", lambda: version)
    kernels.are_available.cache_clear()
    try:
        assert calls(*given("layer norm")[:2]) == []
    finally:
        kernels.are_available.cache_clear()


def test_a_kernel_that_cannot_be_compiled_uses_the_definition(monkeypatch):
    def fail(*_):
        msg = "no compiler"
        raise CompilationError(msg)

    told = []
    monkeypatch.setattr(handlers, "forward", fail)
    monkeypatch.setattr(kernels, "use_definition", told.append)
    call, x, _ = given("layer norm")
    assert calls(call, x) == []
    assert [str(one) for one in told] == ["no compiler"]


def test_the_backward_pass_follows_any_forward_pass():
    """It takes what the definition has kept, as where residuals move to another device."""
    numbers = np.array([0, -0.0, 1, -2.5, 1e-30, 3e38, np.inf, -np.inf, np.nan, 1.1], np.float32)
    kept = np.asarray(kernels._bytes_of_float64(jnp.asarray(numbers))).view(np.float64)
    np.testing.assert_array_equal(kept, numbers.astype(np.float64))
    call, x, parameters = given("group norm")
    config = computation._computation(gn.NormalizationLayer(**call.keywords)._state.config).config
    settings = {"config": config, "has": BOTH}
    _, kept, _ = kernels._normalize(x, *parameters.values(), **settings, keep=True)
    found = kernels.gradient_p.bind(kept, x, x, *parameters.values(), **settings)
    for one, other in zip(found, kernels._gradient(kept, x, x, *parameters.values(), **settings), strict=True):
        close(one, other, 1e-5)


# ------------------------------------------------------------------------------------------------- errors and threads


def altered(**changed):
    """A compiled call of a kernel whose buffers are not those that it was compiled for."""
    plan = handlers.plan_of(gn.layer_norm(40, batched=True)._state.config, (6, 40), "float32")
    call = handlers.forward(plan, False, False, "float32")
    given = SimpleNamespace(operands=[jnp.ones((6, 40)), jnp.zeros(0), jnp.zeros(0)], results=list(call.results))
    for name, change in changed.items():
        change(getattr(given, name))
    kernels._called(call, *given.operands[:3])  # registers its name
    results = [jax.ShapeDtypeStruct((size,), dtype) for dtype, size in given.results]
    return jax.jit(lambda *operands: jax.ffi.ffi_call(f"gennorm_{call.name}", results)(*operands, **call.attributes))(
        *given.operands
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"operands": lambda arrays: arrays.append(jnp.zeros(3))},
        {"operands": lambda arrays: arrays.pop()},
        {"operands": lambda arrays: arrays.__setitem__(0, jnp.ones((6, 39)))},
        {"operands": lambda arrays: arrays.__setitem__(0, jnp.ones((6, 40), "int32"))},
        {"results": lambda results: results.append(("float32", 3))},
        {"results": lambda results: results.__setitem__(0, ("float32", 239))},
    ],
    ids=["one more", "one less", "a shorter one", "another dtype", "a result more", "a shorter result"],
)
def test_wrong_buffers_are_an_error_of_jax(changed):
    with pytest.raises(jax.errors.JaxRuntimeError, match="gennorm: the buffers of a call are not those"):
        jax.block_until_ready(altered(**changed))


def test_right_buffers_are_no_error():
    assert not np.asarray(altered()[0]).any()


def test_threads_share_a_call(monkeypatch):
    """Several callers at a time, more of them than there are control blocks; the bits are those of one thread."""
    before = gn.get_num_threads()
    found = {}
    try:
        for threads in (1, 3):
            gn.set_num_threads(threads)
            monkeypatch.setattr(handlers, "WORTH_SHARING", 1 if threads > 1 else sys.maxsize)
            jax.clear_caches()
            for name in ("layer norm", "batch norm", "batch norm, channels last"):
                call, x, parameters = given(name, shape=(64, 6, 400))
                step = jax.jit(jax.value_and_grad(lambda x, s, call=call: (call(x, **s) ** 2).sum(), (0, 1)))
                found.setdefault(name, []).append((step.lower(x, parameters).compile(), x, parameters))
    finally:
        gn.set_num_threads(before)
    wrong = []

    def work():
        for _ in range(5):
            for name, (one, other) in found.items():
                leaves = (jax.tree.leaves(program(*arguments)) for program, *arguments in (one, other))
                if not all(map(np.array_equal, *leaves)):
                    wrong.append(name)

    callers = [threading.Thread(target=work) for _ in range(10)]
    for one in callers:
        one.start()
    for one in callers:
        one.join(60)
    assert not wrong


def test_donated_buffers_and_calls_in_flight():
    call, x, parameters = given("layer norm", shape=(64, 6, 50))
    step = jax.jit(lambda x: call(x, **parameters), donate_argnums=0)
    expected = [np.asarray(step(x + i)) for i in range(20)]
    found = [step(x + i) for i in range(20)]  # several are in flight
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    donated = x + 0
    step(donated)
    assert donated.is_deleted()


PROGRAM = """
import sys
import jax, jax.numpy as jnp, numpy as np
import gennorm.jax as gj
from gennorm.jax import kernels
kernels.WORTH = 1
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name.rsplit("/", 1)[-1]))
f = jax.jit(jax.grad(lambda x: (gj.normalize(x, -1, batched=True) ** 3).sum()))
x = jnp.asarray(np.random.default_rng(0).normal(size=(2048, 512)), "float32")
text = f.lower(x).compile().as_text()
print(text.count("gennorm_forward"), text.count("gennorm_backward"), "cache_hits" in events)
print(float(abs(f(x)).sum()))
sys.stdout.flush()
late = [f(x + i) for i in range(10)]  # the process ends while they run
"""


def test_stored_programs_and_the_end_of_a_process(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0"}
    texts = []
    for stored in (False, True):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=200, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
        first, text = done.stdout.splitlines()
        assert first == f"1 1 {stored}"
        assert "Fatal" not in done.stderr
        texts.append(text)
    assert texts[0] == texts[1]
