"""Constant slices of a data set: what `constant` does, in the layer and in every front."""

import pickle
import warnings

import numpy as np
import pytest

import gennorm as gn
from gennorm.errors import ParameterError
from spec import reference

POLICIES = ("floor", "one", "raise")
# Features: one that varies, constant ones, and one that varies as much as rounding.
DATA = np.array([[1.0, 7.0, 0.0, 0.1, 1e9], [3.0, 7.0, 0.0, 0.1 + 2e-17, 1e9 + 1e-7], [8.0, 7.0, 0.0, 0.1, 1e9]])
CONSTANT = np.array([False, True, True, True, True])
NEW = DATA + np.array([[2.0], [0.0], [-1.0]])


def made(constant, method="Standardize", **settings):
    """A feature norm, with epsilon 0, so that "one" divides by 1."""
    levels = gn.feature_norm().aggregation_levels
    settings = {"epsilon": 0, "statistics": "dataset", "scaling": None, "biases": None, "batched": True, **settings}
    return gn.NormalizationLayer(levels, method=method, constant=constant, **settings)


def adapted(layer, data=DATA, **keywords):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return layer.adapt(data, **keywords)


@pytest.mark.parametrize("placement", ["inside", "floor", "outside"])
@pytest.mark.parametrize("method", ["Standardize", "RMS"])
@pytest.mark.parametrize("constant", ["floor", "one"])
def test_output_and_inverse_are_those_of_the_reference(constant, method, placement):
    layer = adapted(made(constant, method, epsilon_placement=placement, epsilon=0.25))
    held = layer.moments
    variance = reference.variance_of_dataset(held.count, held.mean, held.m2, constant)
    arguments = {"epsilon": 0.25, "epsilon_placement": placement, "batched": True, "method": method}
    defined = reference.normalize(NEW, 0, mean=held.mean, variance=variance, **arguments)
    np.testing.assert_allclose(layer(NEW), defined, rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(layer.inverse(layer(NEW)), NEW, rtol=1e-14, atol=1e-14)
    y, pullback = layer.vjp(NEW)
    dy = np.sin(np.arange(NEW.size)).reshape(NEW.shape)
    dx, _, _ = reference.vjp(NEW, dy, 0, mean=held.mean, variance=variance, **arguments)
    assert np.array_equal(y, layer(NEW))
    np.testing.assert_allclose(pullback(dy).input, dx, rtol=1e-14)


def test_one_divides_constant_features_by_1():
    with pytest.warns(UserWarning, match=r"4 of 5 slices are constant, the first at \(1,\)") as warned:
        layer = made("one").adapt(DATA)
    assert [warning.filename for warning in warned] == [__file__]
    assert np.array_equal(layer(NEW)[:, CONSTANT], (NEW - layer.moments.mean)[:, CONSTANT])
    assert np.array_equal(
        layer.moments.variance() == 0, [False, True, True, False, False]
    )  # they are stored as they are


def test_what_is_stored_can_be_added_to():
    whole = adapted(adapted(made("one"), DATA[:2]), DATA[2:], reset=False)
    np.testing.assert_allclose(whole.moments.m2, adapted(made("one")).moments.m2, rtol=1e-14, atol=1e-16)
    varies = adapted(adapted(made("one"), np.ones((2, 1))), np.zeros((2, 1)), reset=False)
    assert varies(np.ones((1, 1))) == 1


@pytest.mark.parametrize("constant", ["floor", "one"])
def test_a_copy_decides_alike(constant, tmp_path):
    layer = adapted(made(constant))
    layer.save(tmp_path / "layer.npz")
    again = gn.NormalizationLayer.from_config(layer.to_config())
    again.moments = layer.moments
    for copy in (gn.load(tmp_path / "layer.npz"), pickle.loads(pickle.dumps(layer)), again):
        assert copy.constant == constant
        assert np.array_equal(copy(NEW), layer(NEW))


def test_raise_leaves_the_layer_as_it_is():
    layer = made("raise").adapt(DATA[:, :1])
    before = layer.moments
    for change in (
        lambda: layer.adapt(DATA[:, 1:2]),
        lambda: layer.adapt(np.full((10_000, 1), 7.0)),
        lambda: setattr(layer, "moments", gn.Moments.from_variance([1.0], [0.0])),
    ):
        with pytest.raises(ParameterError, match="1 of 1 slices are constant"):
            change()
        assert layer.moments is before
    assert layer.adapt(DATA[:1, :1], reset=False).moments.count == 4  # a part may be constant


def test_no_slice_with_infinities_is_constant():
    with pytest.warns(RuntimeWarning, match="not finite"):
        layer = made("raise").adapt(np.array([[np.nan, np.inf, 1e300], [1.0, 2.0, -1e300]]))
    assert np.array_equal(np.isfinite(layer.moments.m2), [False, False, False])


def torch_layer(core):
    torch = pytest.importorskip("torch")
    from gennorm.torch import NormalizationLayer

    names = ("aggregation_levels", "epsilon", "scaling", "biases", "batched", "statistics", "constant")
    layer = NormalizationLayer(**{name: core.information(name) for name in names})
    layer.adapt([torch.tensor(DATA[:2])])
    layer.adapt([torch.tensor(DATA[2:])], reset=False)
    y = layer(torch.tensor(NEW))
    if core.constant == "one":  # an output that was multiplied by 0 has no inverse
        np.testing.assert_allclose(layer.inverse(y).numpy(), NEW, rtol=1e-14)
    layer.moments = core.moments
    return y.numpy(), layer(torch.tensor(NEW)).numpy()


def jax_layer(core):
    jnp = pytest.importorskip("jax.numpy")
    from gennorm.jax import NormalizationLayer

    layer = NormalizationLayer.from_core(core)
    return np.asarray(layer(jnp.asarray(NEW))), np.asarray(layer.adapt(DATA)(jnp.asarray(NEW)))


@pytest.mark.parametrize("front", [torch_layer, jax_layer])
@pytest.mark.parametrize("constant", ["floor", "one"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_fronts(front, constant):
    core = adapted(made(constant))
    exact = 1e-13 if front is torch_layer else 1e-5
    for found in front(core):
        # Float32 cannot tell the last feature apart, and the one before is noise with "floor".
        sound = slice(0, 4) if front is torch_layer and constant == "one" else slice(0, 3)
        np.testing.assert_allclose(found[:, sound], core(NEW)[:, sound], rtol=exact, atol=exact)
