"""The two halves of a normalization: `measure`, and `apply` by moments that may have been changed in between.

The outside oracle is the formula in JAX's operations, and finite differences for the derivatives of any order.
"""

import numpy as np
import pytest

import gennorm as gn

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from jax.test_util import check_grads  # noqa: E402

import gennorm.jax as gj  # noqa: E402

RNG = np.random.default_rng(0)
X = RNG.normal(2, 3, (4, 2, 3))
CHANNELS = {"input_shape": (2, None), "batched": True, "dtype": "float64"}
# Levels and groups, settings, the shape that the array is split to, the axes of its statistics.
LAYERS = {
    "RMS": (("{1, 2}", 1), {**CHANNELS, "method": "RMS"}, (4, 2, 3), (1, 2)),
    "unbiased": ((2, 1), {**CHANNELS, "unbiased": True}, (4, 2, 3), (2,)),
    "ghost": (("{0, 2}", 1, {0: 2}), CHANNELS, (2, 2, 2, 3), (1, 3)),
    "outside": ((2, 1), {**CHANNELS, "epsilon_placement": "outside"}, (4, 2, 3), (2,)),
}
layers = pytest.mark.parametrize("name", LAYERS)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def made(name):
    arguments, settings, *_ = LAYERS[name]
    layer = gj.NormalizationLayer(*arguments, **settings)
    return layer.replace(scaling=jnp.array([2.0, 0.5]), biases=jnp.array([1.0, -1.0])), jnp.asarray(X)


def formula(name, layer, x, mean, variance):
    """The output by moments that broadcast to the split array."""
    split = x.reshape(LAYERS[name][2])
    epsilon = layer.config.epsilon
    root = {
        "inside": lambda: jnp.sqrt(variance + epsilon),
        "outside": lambda: jnp.sqrt(variance) + epsilon,
        "floor": lambda: jnp.maximum(jnp.sqrt(variance), epsilon),
    }[layer.config.epsilon_placement]()
    z = ((split if mean is None else split - mean) / root).reshape(x.shape)
    return z * layer.scaling[:, None] + layer.biases[:, None]


def measured(name, layer, x):
    split, over = x.reshape(LAYERS[name][2]), LAYERS[name][3]
    if layer.config.method == "RMS":
        return None, (split**2).mean(over, keepdims=True)
    return split.mean(over, keepdims=True), split.var(over, keepdims=True, ddof=int(layer.config.unbiased))


def agree(found, expected, tolerance=1e-10):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)
        assert np.abs(np.asarray(one)).sum() > 0


@layers
def test_gradients_of_both_halves(name):
    """By the input, the moments and the parameters, and through the moments that were measured."""
    layer, x = made(name)
    dy = jnp.asarray(RNG.normal(size=x.shape))
    mean, variance = measured(name, layer, x * 2 + 1)
    small = [None if one is None else one.squeeze(LAYERS[name][3]) for one in (mean, variance)]

    def by_halves(layer, x, mean, variance):
        return (layer.apply(x, (mean, variance)) * dy).sum()

    def by_formula(layer, x, mean, variance):
        shape = measured(name, layer, x)[1].shape
        shown = (None if one is None else one.reshape(shape) for one in (mean, variance))
        return (formula(name, layer, x, *shown) * dy).sum()

    slopes = (jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(layer, x, *small) for loss in (by_halves, by_formula))
    agree(*slopes)

    def whole(layer, x):
        return (formula(name, layer, x, *measured(name, layer, x)) * dy).sum()

    def halves(layer, x):
        return (layer.apply(x, layer.measure(x)) * dy).sum()

    agree(*(jax.jit(jax.grad(loss, argnums=(0, 1)))(layer, x) for loss in (halves, whole)))
    np.testing.assert_allclose(layer.apply(x, layer.measure(x)), layer(x), rtol=1e-12, atol=1e-12)


def test_second_order_under_jit():
    """Finite differences of gradients, of moments that are mixed before they are applied."""
    layer, x = made("unbiased")
    other = layer.measure(x[:1] * 2 + 1)

    @jax.jit
    def run(x, share):
        return layer.apply(x, layer.measure(x).mixed(other, share, between=True))

    check_grads(run, (x, jnp.array(0.3)), order=2, modes=["rev"], rtol=1e-4)


@layers
def test_apply_and_inverse_are_those_of_the_core(name):
    layer, x = made(name)
    core, moments = layer.to_core(), layer.measure(x * 2 + 1)
    y = core.apply(X, moments.to_core())
    np.testing.assert_allclose(layer.apply(x, moments), y, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(layer.inverse(y, moments), X, rtol=1e-10, atol=1e-10)


def test_the_algebra_in_transforms():
    """Moments are a pytree: results and arguments of transformed functions."""
    layer, x = made("ghost")

    @jax.jit
    def pooled(moments):
        return moments.pooled(0, groups=2)

    moments = jax.vmap(layer.measure)(jnp.stack([x, x + 1]))
    assert type(moments) is gj.Moments
    assert type(pooled(moments)) is gj.Moments
    np.testing.assert_allclose(pooled(moments).m2, moments.m2, rtol=1e-12)
    shares = jnp.array([0.0, 0.5, 1.0])
    one, other = gj.Moments.from_variance(0.0, jnp.array(1.0)), gj.Moments.from_variance(3.0, jnp.array(2.0))
    slopes = jax.vmap(jax.grad(lambda share: one.mixed(other, share, between=True).variance()))(shares)
    np.testing.assert_allclose(slopes, 1 + 9 * (1 - 2 * shares))


def test_held_moments():
    """They are constants with the count 1; None where there are none."""
    layer = gj.NormalizationLayer("{0, 2}", 1, **CHANNELS, statistics="moving", momentum=0.5)
    _, layer = layer.fold(jnp.asarray(X))
    assert type(layer.moments) is gj.Moments
    np.testing.assert_array_equal(layer.moments.mean, layer.mean)
    np.testing.assert_array_equal(layer.moments.variance(), layer.variance)
    slopes = jax.grad(lambda layer: layer.apply(jnp.asarray(X), layer.moments).sum())(layer)
    assert not np.asarray(slopes.mean).any()
    assert not np.asarray(slopes.variance).any()
    assert gj.NormalizationLayer("{0, 2}", 1, **CHANNELS).moments is None


def test_moments_of_the_core_there_and_back():
    for core in (gn.Moments([2, 3], [1, 2], [3, 4]), gn.Moments([2, 3], None, [3, 4])):
        assert gj.Moments.from_core(core).to_core() == core
