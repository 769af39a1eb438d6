"""The layer as a pytree."""

import pickle

import numpy as np
import pytest

import gennorm as gn

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

import gennorm.jax as gj  # noqa: E402

BATCH_NORM = {"input_shape": (3, 5), "batched": True, "statistics": "moving", "momentum": 0.75}
X = np.random.default_rng(0).normal(2, 3, (8, 3, 5)).astype("float32")

LAYERS = {
    "layer norm": (gn.layer_norm(5, biases=None), 3),
    "rms norm": (gn.rms_norm((3, 5)), 3),
    "group norm": (gn.group_norm(3, 3, scaling=[1.0, 2.0, 3.0]), 3),
    "batch norm": (gn.batch_norm(3, momentum=0.5), 3),
    "moving instance norm": (gn.NormalizationLayer(2, 1, input_shape=(3, None), batched=True, statistics="moving"), 3),
    "moving rms": (gn.NormalizationLayer("{0, 2}", 1, method="RMS", input_shape=(3, None), statistics="moving"), 3),
    "feature norm": (gn.feature_norm(1).adapt(X), 3),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_core_s_layer_there_and_back(name):
    core, _ = LAYERS[name]
    layer = gj.NormalizationLayer.from_core(core)
    np.testing.assert_allclose(layer(jnp.asarray(X)), core(X), rtol=2e-5, atol=2e-5)
    back = layer.to_core()
    np.testing.assert_allclose(back(X), core(X), rtol=1e-5, atol=1e-6)
    assert repr(back) == repr(core)
    assert repr(layer) == repr(core) or name == "group norm"
    if core.moments is not None:
        np.testing.assert_allclose(layer.inverse(layer(X)), X, rtol=1e-4, atol=1e-4)
    copies = pickle.loads(pickle.dumps(layer)), jax.tree.map(lambda leaf: leaf + 0, layer)
    for copy in copies:
        assert jax.tree.structure(copy) == jax.tree.structure(layer)
        for one, other in zip(jax.tree.leaves(copy), jax.tree.leaves(layer), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["batch norm", "moving instance norm", "moving rms"])
def test_moving_moments_follow_the_core_s(name, masked):
    core, _ = LAYERS[name]
    core = gn.NormalizationLayer.from_config(core.to_config())
    layer = gj.NormalizationLayer.from_core(core)
    fold = jax.jit(gj.NormalizationLayer.fold)
    for step in range(3):
        x = X * (step + 1) + step
        mask = None if not masked else np.random.default_rng(step).random(X.shape) < 0.5
        expected = core(x, training=True, mask=mask)
        y, layer = fold(layer, x, mask=mask)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    if core.moments.mean is not None:
        np.testing.assert_allclose(layer.mean, core.moments.mean, rtol=1e-5)
    np.testing.assert_allclose(layer.variance, core.moments.m2, rtol=1e-5)
    np.testing.assert_allclose(layer(X), core(X), rtol=1e-4, atol=1e-4)


def test_moving_moments_over_a_mapped_axis():
    for levels in ("{0, 2}", 2):  # slices that are shared, and slices of each example
        one = gj.NormalizationLayer(levels, 1, **BATCH_NORM)
        many = gj.NormalizationLayer(levels, 1, **BATCH_NORM, axis_name="n")
        y, whole = jax.jit(one.fold)(X)
        parts, spread = jax.jit(jax.vmap(many.fold, axis_name="n", out_axes=(0, None)))(X.reshape(4, 2, 3, 5))
        np.testing.assert_allclose(parts.reshape(X.shape), y, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(spread.mean, whole.mean, rtol=1e-6)
        np.testing.assert_allclose(spread.variance, whole.variance, rtol=1e-5)


def test_gradients_of_a_layer():
    layer = gj.NormalizationLayer("{0, 2}", 1, **BATCH_NORM)

    @jax.jit
    def loss(layer, x):
        y, layer = layer.fold(x)
        return (y**3).sum() + layer.mean.sum(), layer

    (_, new), slope = jax.value_and_grad(loss, has_aux=True)(layer, X)
    assert isinstance(slope, gj.NormalizationLayer)
    assert not slope.mean.any()
    assert not slope.variance.any()
    assert slope.scaling.all()
    np.testing.assert_allclose(slope.biases, (3 * new.fold(X)[0] ** 2).sum((0, 2)), rtol=1e-4)
    held = jax.grad(lambda layer: (layer(X) ** 3).sum())(new)
    assert not held.mean.any()
    frozen = gj.NormalizationLayer("{0, 2}", 1, **BATCH_NORM, trainable=False)
    slope = jax.grad(lambda layer: (layer.fold(X)[0] ** 3).sum())(frozen)
    assert not any(leaf.any() for leaf in jax.tree.leaves(slope))
    assert frozen.fold(X)[1] is frozen


def test_parameters_of_a_call():
    layer = gj.NormalizationLayer("2;;All", 1, input_shape=(3, ...), batched=True)
    scaling = jnp.arange(24.0).reshape(8, 3)
    expected = layer.to_core()(X, scaling=np.asarray(scaling))
    np.testing.assert_allclose(layer(X, scaling=scaling), expected, rtol=1e-5, atol=1e-5)


def test_adapt_and_apply():
    layer = gj.NormalizationLayer.from_core(gn.feature_norm(1))
    adapted = layer.adapt(jnp.asarray(X))
    assert layer.mean is None
    np.testing.assert_allclose(adapted.mean, X.mean((0, 2)), rtol=1e-6)
    np.testing.assert_allclose(
        adapted(X[0, 0, 0] * jnp.ones(3)), (X[0, 0, 0] - adapted.mean) / jnp.sqrt(adapted.variance), rtol=1e-5
    )
    own = gj.NormalizationLayer("{0, 2}", 1, batched=True, input_shape=(3, 5))
    np.testing.assert_allclose(own.apply(X, own.measure(X)), own(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, "float16", np.float16, jnp.dtype("float32")])
def test_dtype_of_parameters(dtype):
    layer = gj.NormalizationLayer(-1, "Same", input_shape=(..., 4), dtype=dtype)
    assert layer.scaling.dtype == jnp.dtype(dtype)


def test_training_of_a_model_learns():
    """A few steps of descent with the layer inside of a pytree of a model."""
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(5, 3, (64, 4)), "float32")
    target = x[:, :1] * x[:, 1:2] / 10
    model = {
        "first": jnp.asarray(random.normal(0, 0.5, (4, 16)), "float32"),
        "norm": gj.NormalizationLayer(0, 1, input_shape=(16,), batched=True, statistics="moving", momentum=0.9),
        "last": jnp.asarray(random.normal(0, 0.3, (16, 1)), "float32"),
    }

    def loss(model):
        y, norm = model["norm"].fold(x @ model["first"])
        return ((jax.nn.relu(y) @ model["last"] - target) ** 2).mean(), norm

    @jax.jit
    def step(model):
        (value, norm), slope = jax.value_and_grad(loss, has_aux=True)(model)
        model = jax.tree.map(lambda leaf, change: leaf - 0.05 * change, model, slope)
        return {**model, "norm": norm.replace(scaling=model["norm"].scaling, biases=model["norm"].biases)}, value

    values = []
    for _ in range(60):
        model, value = step(model)
        values.append(float(value))
    assert values[-1] < 0.3 * values[0]
    y = jax.nn.relu(model["norm"](x @ model["first"])) @ model["last"]
    assert ((y - target) ** 2).mean() < 0.5 * values[0]


def test_parameters_of_a_new_layer_may_be_traced():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)

    def loss(scaling, biases):
        layer = gj.NormalizationLayer(-1, "Same", input_shape=(..., 3), scaling=scaling, biases=biases)
        return (layer(x) ** 2).sum()

    scaling, biases = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.5, 0.0, -1.0])
    z = gj.normalize(x, -1)
    found = jax.jit(jax.grad(loss, (0, 1)))(scaling, biases)
    np.testing.assert_allclose(found[0], (2 * (z * scaling + biases) * z).sum(0), rtol=1e-5)
    np.testing.assert_allclose(found[1], (2 * (z * scaling + biases)).sum(0), rtol=1e-4, atol=1e-5)
    with pytest.raises(gn.errors.ParameterError):
        jax.jit(loss)(jnp.ones(4), biases)
