"""The modules of Flax, next to Flax's own: values, states, modes; what Flax's own tests of normalization check."""

import itertools

import numpy as np
import pytest

jax = pytest.importorskip("jax")
pytest.importorskip("flax")

import jax.numpy as jnp  # noqa: E402
from flax import linen, nnx  # noqa: E402

import gennorm as gn  # noqa: E402
import gennorm.jax.nnx as gnx  # noqa: E402

X = jax.random.normal(jax.random.key(0), (10, 4, 6))
MASK = np.array([True, False, True, False, True, False])
CLASSES = {
    "BatchNorm": {},
    "LayerNorm": {},
    "RMSNorm": {},
    "GroupNorm": {"num_groups": 3},
    "InstanceNorm": {},
}
each_class = pytest.mark.parametrize("name", CLASSES)
# Every pair of dtype, param_dtype and mask that Flax's tests go through is in one of these.
PRODUCT = [
    *((None, "float32", False), (None, "float16", True), ("float32", "float16", False), ("float32", "float32", True)),
    *(("float16", "float32", True), ("float16", "float16", False)),
]
FLOAT16 = {"rtol": 5e-3, "atol": 5e-3}
CLOSE = {"rtol": 2e-5, "atol": 1e-5}


def pair(name, **keywords):
    """Our module and Flax's, with the same parameters."""
    keywords = {**CLASSES[name], "rngs": nnx.Rngs(0), **keywords}
    ours, theirs = getattr(gnx, name)(6, **keywords), getattr(nnx, name)(6, **keywords)
    for module in (ours, theirs):
        if module.scale is not None:
            module.scale[...] = jnp.linspace(0.5, 2, 6).astype(module.param_dtype)
        if getattr(module, "bias", None) is not None:
            module.bias[...] = jnp.linspace(-1, 1, 6).astype(module.param_dtype)
    return ours, theirs


def numbers(module):
    return {".".join(map(str, path)): np.asarray(leaf) for path, leaf in nnx.to_flat_state(nnx.state(module))}


def same_state(ours, theirs, **tolerance):
    one, other = numbers(ours), numbers(theirs)
    assert one.keys() == other.keys()
    for key in one:
        assert one[key].dtype == other[key].dtype
        np.testing.assert_allclose(one[key], other[key], **tolerance)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@each_class
def test_as_flax(name):
    """The product of dtypes and masks that Flax's tests go through, and which parameters there are."""
    for dtype, param, masked in PRODUCT:
        ours, theirs = pair(
            name, dtype=dtype and jnp.dtype(dtype), param_dtype=jnp.dtype(param), use_fast_variance=False
        )
        keywords = {"mask": jnp.asarray(MASK)} if masked and name not in {"BatchNorm", "InstanceNorm"} else {}
        if masked and not keywords:
            keywords = {"mask": jnp.arange(10)[:, None, None] % 3 > 0}
            keywords = keywords if name == "BatchNorm" else {"mask": jnp.arange(4)[:, None] % 3 > 0}
        y, expected = ours(X, **keywords), theirs(X, **keywords)
        assert (y.dtype, y.shape) == (expected.dtype, expected.shape)
        tolerance = FLOAT16 if "float16" in (dtype, param) else CLOSE
        np.testing.assert_allclose(y, expected, **tolerance)
        same_state(ours, theirs, **tolerance)


@each_class
def test_parameters_can_be_left_out(name):
    for scale, bias in itertools.product((True, False), repeat=2):
        keywords = {"use_scale": scale} | ({} if name == "RMSNorm" else {"use_bias": bias})
        ours, theirs = pair(name, **keywords)
        np.testing.assert_allclose(ours(X), theirs(X), **CLOSE)
        same_state(ours, theirs, **CLOSE)


@each_class
def test_states_load_both_ways(name):
    ours, theirs = pair(name)
    fresh = (
        getattr(gnx, name)(6, **CLASSES[name], rngs=nnx.Rngs(1)),
        getattr(nnx, name)(6, **CLASSES[name], rngs=nnx.Rngs(1)),
    )
    y, expected = ours(X + 1), theirs(X + 1)
    nnx.update(fresh[0], nnx.state(theirs))
    nnx.update(fresh[1], nnx.state(ours))
    for module in (*fresh, ours, theirs):
        module.eval()
    np.testing.assert_allclose(fresh[0](X), theirs(X), **CLOSE)
    np.testing.assert_allclose(fresh[1](X), ours(X), **CLOSE)
    assert y.shape == expected.shape
    assert isinstance(ours, getattr(nnx, name))


@pytest.mark.parametrize("axis", [-1, 1, 0, (1, 2)])
def test_axes_of_batch_norm(axis):
    size = int(np.prod([X.shape[one] for one in (axis if isinstance(axis, tuple) else (axis,))]))
    ours, theirs = (kind(size, axis=axis, rngs=nnx.Rngs(0)) for kind in (gnx.BatchNorm, nnx.BatchNorm))
    if isinstance(axis, tuple):  # Flax adds (4, 6) to (24,) and fails; the state has its shape here
        y = ours(X)
        np.testing.assert_allclose(y.mean(0), 0, atol=1e-5)
        assert ours.mean[...].shape == (24,)
        return
    np.testing.assert_allclose(ours(X), theirs(X), **CLOSE)
    same_state(ours, theirs, **CLOSE)


@pytest.mark.parametrize("kind", ["LayerNorm", "RMSNorm"])
@pytest.mark.parametrize(
    ("reduced", "features"), [(-1, -1), ((1, 2), -1), ((0, 2), 1), ((1, 2), (1, 2)), (1, (2, 1)), (2, 0)]
)
def test_axes_of_layer_norm(kind, reduced, features):
    sizes = [X.shape[axis] for axis in (features if isinstance(features, tuple) else (features,))]
    keywords = {"reduction_axes": reduced, "feature_axes": features, "use_fast_variance": False}
    ours, theirs = (getattr(of, kind)(int(np.prod(sizes)), **keywords, rngs=nnx.Rngs(0)) for of in (gnx, nnx))
    for module in (ours, theirs):
        module.scale[...] = jnp.arange(1.0, np.prod(sizes) + 1)
    np.testing.assert_allclose(ours(X), theirs(X), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("name", "keywords", "shape"),
    [
        ("InstanceNorm", {}, (10, 6)),
        ("BatchNorm", {}, (6,)),
        ("BatchNorm", {"use_running_average": True}, (6,)),
        ("LayerNorm", {"reduction_axes": ()}, (10, 6)),
        ("RMSNorm", {"reduction_axes": ()}, (10, 6)),
    ],
)
def test_inputs_without_axes_to_reduce(name, keywords, shape, masked):
    x = jax.random.normal(jax.random.key(2), shape)
    mask = {"mask": jnp.ones(shape, bool)} if masked else {}
    ours, theirs = pair(name, use_fast_variance=False, **keywords)
    np.testing.assert_allclose(ours(x, **mask), theirs(x, **mask), **CLOSE)
    same_state(ours, theirs, **CLOSE)


def test_groups():
    x = jax.random.normal(jax.random.key(1), (3, 4, 5, 6))
    ours = gnx.GroupNorm(6, num_groups=None, group_size=2, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(ours(x), nnx.GroupNorm(6, 3, rngs=nnx.Rngs(0))(x), **CLOSE)
    # Flax fails where an axis between the batch and the channels is kept.
    rows = gnx.GroupNorm(6, 3, reduction_axes=(2, 3), rngs=nnx.Rngs(0))(x)
    np.testing.assert_allclose(rows[:, 1], ours(x[:, 1:2])[:, 0], rtol=1e-4, atol=1e-4)
    for wrong in ({"num_groups": 4}, {"group_size": 2}, {"num_groups": None}):
        with pytest.raises(ValueError, match="group"):
            gnx.GroupNorm(6, **wrong, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("kind", ["drop-in", "general"])
def test_modes_of_batch_norm(kind):
    """What the example of Flax's documentation checks: train() moves the moments, eval() uses them."""
    module = gnx.BatchNorm(6, momentum=0.9, rngs=nnx.Rngs(0))
    if kind == "general":
        module = gnx.NormalizationLayer(
            *("{0, 1;;-2}", -1),
            epsilon=1e-5,
            momentum=0.9,
            statistics="moving",
            batched=True,
            input_shape=(..., 6),
            rngs=nnx.Rngs(0),
        )
    other = nnx.BatchNorm(6, momentum=0.9, use_fast_variance=False, rngs=nnx.Rngs(0))
    nnx.update(other, nnx.state(module))  # the same names
    for step, mode in enumerate(["train", "train", "eval", "train", "eval"]):
        x = X * (step + 1) + step
        before = numbers(module)
        for one in (module, other):
            getattr(one, mode)()
        np.testing.assert_allclose(module(x), other(x), rtol=1e-4, atol=1e-5)
        same_state(module, other, rtol=1e-5, atol=1e-6)
        assert (before["mean"] == numbers(module)["mean"]).all() == (mode == "eval")
    np.testing.assert_allclose(
        module(X, use_running_average=False), other(X, use_running_average=False), rtol=1e-4, atol=1e-4
    )


def test_use_running_average_has_to_be_known():
    with pytest.raises(ValueError, match="use_running_average"):
        gnx.BatchNorm(6, use_running_average=None, rngs=nnx.Rngs(0))(X)


@pytest.mark.parametrize("masked", [False, True])
def test_batch_norm_as_linen_s(masked):
    """The check of Flax's tests: a BatchNorm and a linear layer, next to those of linen."""
    mask = jnp.asarray(MASK) if not masked else jnp.arange(10)[:, None] % 2 == 0
    mask = mask if masked else None
    x = X[:, 0]
    theirs = linen.BatchNorm(use_running_average=False, use_fast_variance=False)
    variables = theirs.init(jax.random.key(1), x)
    expected, updates = theirs.apply(variables, x, mask=mask, mutable=["batch_stats"])
    ours = gnx.BatchNorm(6, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(ours(x, mask=mask), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours.mean[...], updates["batch_stats"]["mean"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(ours.var[...], updates["batch_stats"]["var"], rtol=1e-5)


def test_a_far_mean_and_a_slice_of_nothing():
    """Where Flax is wrong: its variance is a difference of large numbers, and a slice without a mask is NaN."""
    x = jnp.asarray(1e4 + np.random.default_rng(0).normal(size=(4, 64)), "float32")
    y = gnx.LayerNorm(64, rngs=nnx.Rngs(0))(x)
    exact = gn.layer_norm(64, epsilon=1e-6)(np.asarray(x, np.float64))
    np.testing.assert_allclose(y, exact, atol=1e-4)
    assert np.abs(nnx.LayerNorm(64, rngs=nnx.Rngs(0))(x) - exact).max() > 0.1
    module = gnx.BatchNorm(64, rngs=nnx.Rngs(0))
    module(x, mask=jnp.zeros_like(x, dtype=bool))
    np.testing.assert_array_equal(module.mean[...], 0)
    np.testing.assert_array_equal(module.var[...], 1)


REDUCED = {"BatchNorm": (0, 1, 2), "LayerNorm": (0, 3), "RMSNorm": (0, 3), "InstanceNorm": (0, 2)}


@pytest.mark.parametrize("name", REDUCED)
def test_mapped_axes(name):
    """The statistics are those of all parts together."""
    graph, state = nnx.split(pair(name, axis_name="n")[0])
    x = X.reshape(2, 5, 4, 6) * jnp.asarray([1.0, 3.0]).reshape(2, 1, 1, 1)
    y = jax.vmap(lambda state, x: nnx.merge(graph, state)(x), in_axes=(None, 0), axis_name="n")(state, x)
    values = np.asarray(x, np.float64)
    mean = 0 if name == "RMSNorm" else values.mean(REDUCED[name], keepdims=True)
    spread = ((values - mean) ** 2).mean(REDUCED[name], keepdims=True)
    bias = 0 if name == "RMSNorm" else np.linspace(-1, 1, 6)
    expected = (values - mean) / np.sqrt(spread + 1e-6) * np.linspace(0.5, 2, 6) + bias
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_learns_under_jit():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.first, self.last = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 1, rngs=rngs)
            self.norm = gnx.NormalizationLayer(0, 1, input_shape=(8,), batched=True, statistics="moving", rngs=rngs)

        def __call__(self, x):
            return self.last(nnx.relu(self.norm(self.first(x))))

    model = Model(nnx.Rngs(0))
    x = X[:, 0]
    target = x[:, :1] * x[:, 1:2]

    @nnx.jit
    def step(model):
        value, slope = nnx.value_and_grad(lambda model: ((model(x) - target) ** 2).mean())(model)
        params = jax.tree.map(lambda leaf, change: leaf - 0.1 * change, nnx.state(model, nnx.Param), slope)
        nnx.update(model, params)
        return value

    values = [float(step(model)) for _ in range(40)]
    assert values[-1] < 0.5 * values[0]
    assert np.abs(model.norm.mean[...]).max() > 0
