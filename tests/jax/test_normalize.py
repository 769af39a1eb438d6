"""The function and the layer: values, derivatives and transformations."""

import functools

import numpy as np
import pytest

import gennorm as gn
from spec import reference

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from jax.test_util import check_grads  # noqa: E402

import gennorm.jax as gj  # noqa: E402

SHAPE = (4, 6, 5)
CASES = {
    "layer norm": {"aggregation_levels": "All", "scaling_levels": "Same"},
    "batch norm": {"aggregation_levels": "{0, 2}", "scaling_levels": 1},
    "group norm": {"aggregation_levels": "All", "scaling_levels": 1, "group_number": {1: 3}, "unbiased": True},
    "instance norm": {"aggregation_levels": 2, "scaling_levels": 1, "epsilon_placement": "outside"},
    "rms norm": {"aggregation_levels": -1, "scaling_levels": "Same", "method": "RMS"},
    "ghost batch norm": {"aggregation_levels": "0;;1", "scaling_levels": 2, "group_number": {0: 2}, "epsilon": 0.0},
    "everything": {"aggregation_levels": "0;;All", "scaling_levels": (), "epsilon_placement": "floor"},
}
each_case = pytest.mark.parametrize("name", CASES)
each_mask = pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def given(name, masked=False, shape=SHAPE):
    """Settings, an input, parameters and perhaps a mask."""
    settings = {**CASES[name], "batched": True}
    random = np.random.default_rng(0)
    x = random.normal(3, 2, shape)
    sizes = gn.NormalizationLayer(**settings).initialize(x).scaling.shape
    parameters = {"scaling": random.normal(1, 1, sizes), "biases": random.normal(0, 1, sizes)}
    return settings, x, parameters, random.random(shape) < 0.7 if masked else None


@each_mask
@each_case
def test_values_and_derivatives(name, masked, double):
    settings, x, parameters, mask = given(name, masked)

    def call(x, scaling, biases):
        return gj.normalize(x, **settings, scaling=scaling, biases=biases, mask=mask)

    exact = reference.normalize(x, **settings, **parameters, mask=mask)
    arguments = (jnp.asarray(x), *map(jnp.asarray, parameters.values()))
    np.testing.assert_allclose(call(*arguments), exact, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(jax.jit(call)(*arguments), exact, rtol=1e-12, atol=1e-12)
    dy = np.random.default_rng(1).normal(size=x.shape)
    _, back = jax.vjp(call, *arguments)
    for found, expected in zip(
        back(jnp.asarray(dy)), reference.vjp(x, dy, **settings, **parameters, mask=mask), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["batch norm", "group norm", "rms norm"])
def test_derivatives_of_any_order(name, double):
    settings, x, parameters, mask = given(name, True, (2, 3, 2))
    call = functools.partial(gj.normalize, **settings, mask=mask)
    arguments = jnp.asarray(x), jnp.asarray(parameters["scaling"])
    check_grads(jax.jit(lambda x, s: call(x, scaling=s)), arguments, order=2, rtol=1e-3)
    hessian = jax.hessian(lambda x: (call(x) ** 3).sum())(arguments[0])
    third = jax.jvp(jax.grad(lambda x: (call(x) ** 3).sum()), (arguments[0],), (jnp.ones_like(arguments[0]),))
    np.testing.assert_allclose(hessian.sum((3, 4, 5)), third[1], rtol=1e-7, atol=1e-7)


@each_case
def test_vmap_scan_and_remat(name):
    settings, x, parameters, _ = given(name)
    x = jnp.asarray(x, "float32")
    parameters = {key: jnp.asarray(value, "float32") for key, value in parameters.items()}
    call = functools.partial(gj.normalize, **settings, **parameters)
    y = call(x)
    for axis in range(x.ndim + 1):
        many = jax.vmap(call, in_axes=axis, out_axes=axis)(jnp.stack([x, 2 * x - 1], axis))
        np.testing.assert_allclose(jnp.take(many, 0, axis), y, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(jnp.take(many, 1, axis), call(2 * x - 1), rtol=1e-5, atol=1e-5)
    _, steps = jax.lax.scan(lambda carry, one: (carry, call(one)), 0, jnp.stack([x, -x]))
    np.testing.assert_allclose(steps[1], call(-x), rtol=1e-5, atol=1e-5)
    slope = jax.grad(lambda x: (call(x) ** 2).sum())(x)
    again = jax.grad(lambda x: (jax.checkpoint(call)(x) ** 2).sum())(x)
    np.testing.assert_allclose(again, slope, rtol=1e-5, atol=1e-5)
    samples = jax.vmap(jax.grad(lambda x: (call(x) ** 2).sum()))(jnp.stack([x, x + 1]))
    np.testing.assert_allclose(samples[0], slope, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8", "int32", "bool"])
@pytest.mark.parametrize("x64", [False, True])
def test_dtypes(dtype, x64):
    with jax.enable_x64(x64):
        x = jnp.asarray(np.arange(24).reshape(2, 12) % 7, dtype)
        y = gj.normalize(x, 2, epsilon=1e-3)
        wide = {"int8": "float32", "bool": "float32", "int32": "float64" if x64 else "float32"}
        assert y.dtype.name == wide.get(dtype, dtype)
        exact = reference.normalize(np.asarray(x, np.float64), aggregation_levels=2, epsilon=1e-3)
        np.testing.assert_allclose(
            np.asarray(y, np.float64), exact, atol={"float16": 2e-3, "bfloat16": 2e-2}.get(dtype, 2e-6)
        )
        parts = jax.vmap(lambda x: gj.normalize(x, "{0, 1}", batched=True, axis_name="n"), axis_name="n")(
            x.reshape(2, 2, 6)
        )
        assert parts.dtype == y.dtype


@pytest.mark.parametrize("moments", ["pair", "measured", "core's"])
@pytest.mark.parametrize("unbiased", [False, True])
def test_given_moments(moments, unbiased, double):
    settings = {"aggregation_levels": "{0, 2}", "scaling_levels": 1, "unbiased": unbiased, "batched": True}
    x, other = np.random.default_rng(0).normal(1, 2, (2, *SHAPE))
    core = gn.NormalizationLayer(**settings, scaling=None, biases=None)
    measured = core.measure(other)
    given = {
        "pair": (jnp.asarray(measured.mean), jnp.asarray(measured.variance(unbiased))),
        "measured": gj.measure(jnp.asarray(other), "{0, 2}", batched=True),
        "core's": measured,
    }[moments]
    y = gj.normalize(jnp.asarray(x), **settings, moments=given)
    np.testing.assert_allclose(y, core.apply(x, measured), rtol=1e-12, atol=1e-12)
    if moments == "pair":  # derivatives go through them
        slope = jax.grad(lambda mean: gj.normalize(jnp.asarray(x), **settings, moments=(mean, given[1])).sum())(
            given[0]
        )
        np.testing.assert_allclose(slope, -20 / np.sqrt(measured.variance(unbiased) + 1e-3), rtol=1e-9)


def test_weights_and_masks_together(double):
    random = np.random.default_rng(0)
    x, weights, mask = random.normal(size=(3, 8)), random.random((3, 8)), random.random((3, 8)) < 0.6
    y = gj.normalize(jnp.asarray(x), 2, weights=weights, mask=mask)
    kept = weights * mask
    mean = (kept * x).sum(1, keepdims=True) / kept.sum(1, keepdims=True)
    variance = (kept * (x - mean) ** 2).sum(1, keepdims=True) / kept.sum(1, keepdims=True)
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(variance + 1e-3), rtol=1e-9)


@each_mask
@pytest.mark.parametrize("name", ["batch norm", "everything"])
def test_moments_are_merged_over_a_mapped_axis(name, masked, double):
    """Uneven counts, a part in which nothing counts, and padding that is not finite: values and gradients."""
    settings, x, parameters, mask = given(name, masked, (6, 6, 5))
    x = jnp.asarray(x)
    if masked:
        mask[:2] = False
        x = jnp.where(mask, x, jnp.asarray([jnp.nan, jnp.inf, -jnp.inf])[np.arange(180).reshape(x.shape) % 3])
    mask = jnp.ones(x.shape, bool) if mask is None else jnp.asarray(mask)
    parameters = {key: jnp.asarray(value) for key, value in parameters.items()}
    dy = jnp.where(mask, jnp.asarray(np.random.default_rng(2).normal(size=x.shape)), 0)

    def whole(x, scaling):
        return gj.normalize(x, **settings, scaling=scaling, biases=parameters["biases"], mask=mask)

    def parted(x, scaling):
        one = lambda x, mask: gj.normalize(  # noqa: E731
            x, **settings, scaling=scaling, biases=parameters["biases"], mask=mask, axis_name="parts"
        )
        parts = jax.vmap(one, axis_name="parts")(x.reshape(3, 2, 6, 5), mask.reshape(3, 2, 6, 5))
        return parts.reshape(x.shape)

    expected, pull = jax.vjp(whole, x, parameters["scaling"])
    found, pull_parts = jax.jit(lambda x, s: jax.vjp(parted, x, s))(x, parameters["scaling"])
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-11)
    for one, other in zip(pull_parts(dy), pull(dy), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
    measured = jax.vmap(
        lambda x, mask: gj.measure(x, settings["aggregation_levels"], mask=mask, batched=True, axis_name="parts"),
        axis_name="parts",
    )(x.reshape(3, 2, 6, 5), mask.reshape(3, 2, 6, 5))
    for one, other in zip(
        measured, gj.measure(x, settings["aggregation_levels"], mask=mask, batched=True), strict=True
    ):
        np.testing.assert_allclose(one[0], other, rtol=1e-11)


@pytest.mark.parametrize(("mean", "deviation"), [(1e6, 1.0), (1e30, 1e27), (0.0, 1.0)])
def test_merged_moments_are_exact_without_float64(mean, deviation):
    with jax.enable_x64(False):
        x = (mean + deviation * np.random.default_rng(0).normal(size=(8, 100))).astype("float32")
        parts = jax.vmap(lambda x: gj.normalize(x, "{0, 1}", batched=True, epsilon=0, axis_name="n"), axis_name="n")(
            jnp.asarray(x).reshape(4, 2, 100)
        )
    exact = reference.normalize(x.astype("float64"), aggregation_levels="{0, 1}", batched=True, epsilon=0)
    if deviation**2 < 1e30:  # the sum of larger squares needs float64
        np.testing.assert_allclose(parts.reshape(8, 100), exact, atol=2e-6)
    constant = jax.vmap(lambda x: gj.normalize(x, "{0, 1}", batched=True, epsilon=0, axis_name="n"), axis_name="n")(
        jnp.full((3, 2, 7), 0.1)
    )
    assert not constant.any()


def test_a_kept_batch_needs_no_communication():
    call = functools.partial(gj.normalize, aggregation_levels=1, batched=True, axis_name="n")
    text = str(jax.make_jaxpr(jax.vmap(call, axis_name="n"))(jnp.ones((2, 3, 4))))
    assert "psum" not in text
    one = functools.partial(gj.normalize, aggregation_levels="{0, 1}", batched=True, axis_name="n")
    assert "psum" in str(jax.make_jaxpr(one, axis_env=[("n", 2)])(jnp.ones((3, 4))))


def test_export_with_open_sizes():
    layer = gj.NormalizationLayer("All", 1, {1: 2}, input_shape=(4, ...), batched=True)
    sizes = jax.export.symbolic_shape("n, 4, width")
    exported = jax.export.export(jax.jit(layer))(jax.ShapeDtypeStruct(sizes, "float32"))
    for shape in ((2, 4, 3), (5, 4, 7)):
        x = np.random.default_rng(0).normal(size=shape).astype("float32")
        np.testing.assert_allclose(exported.call(x), layer.to_core()(x), rtol=1e-5, atol=1e-6)
