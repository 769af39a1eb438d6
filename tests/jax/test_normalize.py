"""The function and the layer: values, derivatives and transformations."""

import functools

import numpy as np
import pytest

import gennorm as gn
from spec import reference

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

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
MASKED = ("batch norm", "group norm", "rms norm")


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


@pytest.mark.parametrize(("name", "masked"), [*((name, False) for name in CASES), *((name, True) for name in MASKED)])
def test_values_and_derivatives(name, masked, double):
    settings, x, parameters, mask = given(name, masked)

    def call(x, scaling, biases):
        return gj.normalize(x, **settings, scaling=scaling, biases=biases, mask=mask)

    @jax.jit
    def step(dy, *arguments):
        y, back = jax.vjp(call, *arguments)
        return y, *back(dy)

    dy = np.random.default_rng(1).normal(size=x.shape)
    y, *slopes = step(dy, x, *parameters.values())
    exact = reference.normalize(x, **settings, **parameters, mask=mask)
    np.testing.assert_allclose(y, exact, rtol=1e-12, atol=1e-12)
    expected = reference.vjp(x, dy, **settings, **parameters, mask=mask)
    for one, other in zip(slopes, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["group norm", "rms norm"])
def test_derivatives_of_any_order(name, double):
    """Of second order by three ways, and of third order against differences."""
    settings, x, parameters, mask = given(name, True, (2, 3, 2))
    x, along = jnp.asarray(x), jnp.asarray(np.random.default_rng(1).normal(size=x.shape))

    def loss(x):
        return (gj.normalize(x, **settings, mask=mask, scaling=parameters["scaling"]) ** 3).sum()

    @jax.jit
    def orders(x):
        hessian = jnp.tensordot(jax.hessian(loss)(x), along, 3)
        backward = jax.grad(lambda x: (jax.grad(loss)(x) * along).sum())
        third = jax.jvp(backward, (x,), (along,))[1]
        return hessian, backward(x), jax.jvp(jax.grad(loss), (x,), (along,))[1], third

    hessian, backward, forward, third = orders(x)
    np.testing.assert_allclose(hessian, backward, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(forward, backward, rtol=1e-8, atol=1e-8)
    step = 1e-5
    difference = (orders(x + step * along)[1] - orders(x - step * along)[1]) / (2 * step)
    np.testing.assert_allclose(third, difference, rtol=1e-4, atol=1e-5 * np.abs(third).max())


@pytest.mark.parametrize("name", ["group norm", "ghost batch norm"])
def test_vmap_scan_and_remat(name):
    settings, x, parameters, _ = given(name)
    x = jnp.asarray(x, "float32")
    parameters = {key: jnp.asarray(value, "float32") for key, value in parameters.items()}
    call = functools.partial(gj.normalize, **settings, **parameters)

    def loss(call):
        return jax.grad(lambda x: (call(x) ** 2).sum())

    @jax.jit
    def transformed(x):
        mapped = [
            jnp.moveaxis(jax.vmap(call, in_axes=axis, out_axes=axis)(jnp.stack([x, 2 * x - 1], axis)), axis, 0)
            for axis in range(x.ndim + 1)
        ]
        _, steps = jax.lax.scan(lambda carry, one: (carry, call(one)), 0, jnp.stack([x, 2 * x - 1]))
        slopes = loss(call)(x), loss(jax.checkpoint(call))(x), jax.vmap(loss(call))(jnp.stack([x, x + 1]))[0]
        return call(x), call(2 * x - 1), [*mapped, steps], slopes

    one, other, many, slopes = transformed(x)
    for found in many:
        np.testing.assert_allclose(found, [one, other], rtol=1e-5, atol=1e-5)
    for slope in slopes[1:]:
        np.testing.assert_allclose(slope, slopes[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "x64"),
    [("float32", False), ("float16", False), ("bfloat16", True), ("int8", True), ("int32", False), ("int32", True)],
)
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


@pytest.mark.parametrize(("name", "masked"), [("batch norm", True), ("everything", False)])
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

    def moments(x, mask, **keywords):
        return gj.measure(x, settings["aggregation_levels"], mask=mask, batched=True, **keywords)

    @jax.jit
    def found(x, scaling):
        results = []
        for call in (whole, parted):
            y, back = jax.vjp(call, x, scaling)
            results.append((y, *back(dy)))
        parts = jax.vmap(lambda x, mask: moments(x, mask, axis_name="parts"), axis_name="parts", out_axes=None)
        return *results, moments(x, mask), parts(x.reshape(3, 2, 6, 5), mask.reshape(3, 2, 6, 5))

    whole_slopes, parted_slopes, measured, merged = found(x, parameters["scaling"])
    for one, other in zip((*parted_slopes, *merged), (*whole_slopes, *measured), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


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
