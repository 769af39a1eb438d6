"""Moving moments: what training does to them, what inference takes from them, and what must not happen in between."""

import copy
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gennorm as gn
from spec import reference

RNG = np.random.default_rng(5)
X = RNG.normal(3, 2, (6, 4, 5)).astype(np.float32)  # examples of four channels


@pytest.fixture(scope="module")
def keras():
    return pytest.importorskip("keras")


def call(layer, *args, **kwargs):
    """What a Keras layer gives, as an array."""
    return layer(*args, **kwargs).detach().cpu().numpy()


def value(variable):
    """What a Keras variable holds."""
    return variable.value.detach().cpu().numpy()


def held(layer):
    return layer.moments.mean, layer.moments.variance()


# What Keras' BatchNormalization does ----------------------------------------------------------------------------------


def test_b1_training_normalizes_by_the_batch():
    scaling, biases = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 1.0, -1.0, 2.0])
    layer = gn.batch_norm(4, scaling=scaling, biases=biases)
    mean, variance = X.mean((0, 2), keepdims=True), X.var((0, 2), keepdims=True)
    expected = scaling[:, None] * (X - mean) / np.sqrt(variance + 1e-3) + biases[:, None]
    np.testing.assert_allclose(layer(X, training=True), expected, rtol=1e-5, atol=1e-5)


def test_b2_inference_normalizes_by_the_moving_moments():
    layer = gn.batch_norm(4)
    layer.moments = gn.Moments.from_variance([1, 2, 3, 4], [1, 4, 9, 16])
    expected = (X - np.array([[1], [2], [3], [4]])) / np.sqrt(np.array([[1], [4], [9], [16]]) + 1e-3)
    np.testing.assert_allclose(layer(X), expected, rtol=1e-5, atol=1e-5)
    assert layer.moments.mean.tolist() == [1, 2, 3, 4]


def test_b3_moving_moments_decay_and_their_variance_is_biased():
    layer = gn.batch_norm(4, momentum=0.75)
    layer(X, training=True)
    np.testing.assert_allclose(layer.moments.mean, 0.25 * X.mean((0, 2), dtype=np.float64), rtol=1e-6)
    expected = 0.75 + 0.25 * X.var((0, 2), dtype=np.float64)
    np.testing.assert_allclose(layer.moments.variance(), expected, rtol=1e-6)


def test_b4_without_scaling_and_biases():
    layer = gn.batch_norm(4, scaling=None, biases=None)
    assert layer.scaling is None
    assert layer.biases is None
    y = layer(X, training=True)
    np.testing.assert_allclose(y.mean((0, 2)), 0, atol=1e-6)


def test_b5_defaults():
    layer = gn.batch_norm(4)
    assert [layer.information(name) for name in ("momentum", "epsilon", "statistics", "trainable")] == [
        0.99, 1e-3, "moving", True
    ]  # fmt: skip


def test_b6_masked_elements_do_not_change_moving_moments():
    layer = gn.batch_norm(4, momentum=0)
    mask = np.ones((6, 1, 5), bool)
    mask[2:, :, 3:] = False
    spoiled = np.where(mask, X, np.nan).astype(np.float32)
    y = layer(spoiled, training=True, mask=mask)
    kept = [spoiled[:, channel][mask[:, 0]].astype(np.float64) for channel in range(4)]
    np.testing.assert_allclose(layer.moments.mean, [values.mean() for values in kept], rtol=1e-6)
    np.testing.assert_allclose(layer.moments.variance(), [values.var() for values in kept], rtol=1e-6)
    np.testing.assert_array_equal(np.isnan(y), np.broadcast_to(~mask, X.shape))


def test_b7_an_untrainable_layer_infers_and_does_not_change():
    layer = gn.batch_norm(4, trainable=False)
    np.testing.assert_array_equal(layer(X, training=True), layer(X))
    assert held(layer)[0].tolist() == [0] * 4
    layer.trainable = True
    layer(X, training=True)
    assert (held(layer)[0] != 0).all()
    before = layer.moments
    layer.trainable = False
    layer(X, training=True)
    assert layer.moments is before
    with pytest.raises(gn.GennormError, match="trainable cannot be"):
        layer.trainable = "no"


def test_b7_inference_is_the_default():
    layer = gn.batch_norm(4)
    before = layer.moments
    layer(X)
    assert layer.moments is before


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 5), (6, 4, 2, 3), (2, 4, 2, 2, 3)])
def test_b8_any_rank_and_channels_first_or_last(shape):
    x = RNG.normal(size=shape)
    first, last = gn.batch_norm(4, momentum=0), gn.batch_norm(4, channel_level=-1, momentum=0)
    y = first(x, training=True)
    axes = tuple(axis for axis in range(x.ndim) if axis != 1)
    np.testing.assert_allclose(first.moments.mean, x.mean(axes), atol=1e-12)
    np.testing.assert_allclose(last(np.moveaxis(x, 1, -1), training=True), np.moveaxis(y, 1, -1), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(held(last), held(first), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("flags", [{}, {"center": False}, {"scale": False, "momentum": 0.5, "epsilon": 1e-5}])
def test_keras_batch_normalization(keras, axis, flags):
    """Three steps of training, then inference."""
    theirs = keras.layers.BatchNormalization(axis=axis, **flags)
    keywords = {name: flags[name] for name in ("momentum", "epsilon") if name in flags}
    keywords |= {"biases": None} if flags.get("center") is False else {}
    keywords |= {"scaling": None} if flags.get("scale") is False else {}
    ours = gn.batch_norm(X.shape[axis], channel_level=axis, **keywords)
    for step in range(3):
        x = X * (step + 1) + step
        np.testing.assert_allclose(ours(x, training=True), call(theirs, x, training=True), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(ours.moments.mean, value(theirs.moving_mean), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(ours.moments.variance(), value(theirs.moving_variance), rtol=1e-4)
    np.testing.assert_allclose(ours(X), call(theirs, X), rtol=1e-4, atol=1e-5)
    theirs.trainable = ours.trainable = False
    np.testing.assert_allclose(ours(X, training=True), call(theirs, X, training=True), rtol=1e-4, atol=1e-5)


def test_keras_batch_normalization_with_a_mask(keras):
    """Channels last, where Keras lines its masks up; it adds 1e-7 to the counts."""
    x = np.moveaxis(X, 1, -1).copy()
    mask = RNG.random(x.shape[:2]) < 0.7
    theirs, ours = keras.layers.BatchNormalization(), gn.batch_norm(4, channel_level=-1)
    for _ in range(3):
        y = ours(x, training=True, mask=mask[..., None])
        np.testing.assert_allclose(y, call(theirs, x, training=True, mask=mask), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.moments.mean, value(theirs.moving_mean), rtol=1e-4)
    np.testing.assert_allclose(ours.moments.variance(), value(theirs.moving_variance), rtol=1e-4)


# What Keras does not have ---------------------------------------------------------------------------------------------


SETTINGS = st.fixed_dictionaries(
    {
        "aggregation_levels": st.sampled_from(["{0, 2}", 0, 2, "0;;All", "All"]),
        "method": st.sampled_from(["Standardize", "RMS"]),
        "momentum": st.sampled_from([0.0, 0.5, 0.99, 1.0]),
    }
)


@given(SETTINGS, st.booleans(), st.integers(0, 99))
def test_steps_are_those_of_the_reference(settings, ghosts, seed):
    if ghosts and settings["aggregation_levels"] == 0:
        settings["group_number"] = 2
    layer = gn.NormalizationLayer(**settings, statistics="moving", batched=True, scaling=None, biases=None)
    config = {name: settings.get(name) for name in ("aggregation_levels", "group_number", "method", "momentum")}
    mean, variance = np.zeros(()), np.ones(())
    rng = np.random.default_rng(seed)
    for _ in range(3):
        x = rng.normal(2, 3, (4, 3, 5))
        layer(x, training=True)
        mean, variance = reference.moving(mean, variance, x, **config)
        if settings["method"] == "RMS":
            assert layer.moments.mean is None
            np.testing.assert_allclose(layer.moments.mean_square(), variance, rtol=1e-12)
        else:
            np.testing.assert_allclose(layer.moments.mean, mean, rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(layer.moments.variance(), variance, rtol=1e-12)
    assert layer.moments.count.tolist() == np.ones(layer.moments.shape).tolist()


def test_unbiased_does_not_change_moving_moments():
    x = np.array([[0.0], [4.0]])
    layer = gn.batch_norm(1, unbiased=True, momentum=0, epsilon=0)
    np.testing.assert_allclose(layer(x, training=True).ravel(), [-np.sqrt(0.5), np.sqrt(0.5)])
    assert layer.moments.variance().tolist() == [4.0]
    np.testing.assert_allclose(layer(x).ravel(), [-1, 1])
    with pytest.raises(gn.GennormError, match="unbiased=True over one element"):
        layer(x[:1], training=True)
    layer(x[:1])


def test_groups_of_the_batch_are_for_training_alone():
    layer = gn.NormalizationLayer(
        "{0, 2}", 1, {0: 3}, batched=True, statistics="moving", scaling=None, biases=None, momentum=0
    )
    layer(X, training=True)
    np.testing.assert_allclose(layer(X[:1]), layer(X)[:1], rtol=1e-6)
    np.testing.assert_allclose(layer.inverse(layer(X[:1])), X[:1], rtol=1e-5, atol=1e-5)
    with pytest.raises(gn.GennormError, match="cannot be split into 3 groups"):
        layer(X[:1], training=True)


def test_sizes_are_known_from_the_declaration_or_from_the_first_use():
    assert gn.batch_norm(4).moments.shape == (4,)
    layer = gn.batch_norm(None, scaling=None, biases=None)
    assert layer.moments.shape == ()
    np.testing.assert_allclose(layer(X), X / np.sqrt(1.001), rtol=1e-6)  # mean 0 and variance 1
    layer(X, training=True)
    assert layer.moments.shape == (4,)
    with pytest.raises(
        gn.GennormError, match=r"level 1 \(axis 1\) of the input has size 3, and the moments of the layer have 4 there"
    ):
        layer(X[:, :3])
    assert gn.batch_norm(None).initialize(X.shape).moments.shape == (4,)


def test_empty_moments_change_nothing():
    layer = gn.batch_norm(2, momentum=0.5)
    x = np.array([[1.0, 5.0], [3.0, 7.0]])
    layer(x, training=True, mask=np.array([[True, False]]))
    assert layer.moments.mean.tolist() == [1, 0]
    assert layer.moments.variance().tolist() == [1, 1]
    before = layer.moments
    layer(x[:0], training=True)
    assert layer.moments == before


def test_a_momentum_of_one_or_zero_ignores_the_other_moments():
    spoiled = np.full((2, 1), np.nan)
    layer = gn.batch_norm(1, momentum=1)
    layer(spoiled, training=True)
    assert layer.moments.mean.tolist() == [0]
    layer = gn.batch_norm(1, momentum=0)
    layer(spoiled, training=True)
    layer(np.array([[1.0], [3.0]]), training=True)
    assert layer.moments.mean.tolist() == [2]


def test_moments_are_set_and_reset():
    layer = gn.batch_norm(4)
    layer.moments = gn.Moments.from_variance(2.0, 9.0)
    assert layer.moments.mean.tolist() == [2] * 4
    assert layer.reset_moments() is layer
    assert layer.moments.mean.tolist() == [0] * 4
    with pytest.raises(gn.GennormError, match=r"have the shape \(3,\), and those of the layer \(4,\)"):
        layer.moments = gn.Moments.from_variance([1, 2, 3], 1)
    squares = gn.NormalizationLayer(0, 1, method="RMS", batched=True, statistics="moving")
    squares.moments = gn.Moments.from_variance([3.0], [16.0])
    assert squares.moments.mean is None
    assert squares.moments.mean_square().tolist() == [25]
    plain = gn.layer_norm(4)
    assert plain.moments is None
    assert plain.reset_moments().moments is None
    with pytest.raises(gn.GennormError, match="the layer holds no moments"):
        plain.moments = layer.moments


CHANGES = {
    "training": lambda layer: layer(X, training=True),
    "vjp": lambda layer: layer.vjp(X, training=True),
    "moments": lambda layer: setattr(layer, "moments", gn.Moments.from_variance(2.0, 9.0)),
    "reset": lambda layer: layer.reset_moments(),
    "scaling": lambda layer: setattr(layer, "scaling", np.full(4, 3.0)),
    "biases in place": lambda layer: np.copyto(layer.biases, 7.0),
    "state": lambda layer: layer.__setstate__(gn.batch_norm(4, epsilon=5.0).__getstate__()),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "batch", [X, X.transpose(0, 2, 1).copy().transpose(0, 2, 1)], ids=["channels first", "channels last"]
)
def test_inference_sees_every_change(change, batch):
    layer = gn.batch_norm(4, biases=np.ones(4))
    layer.moments = gn.Moments.from_variance([1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0])
    before = [layer(batch) for _ in range(3)]
    np.testing.assert_array_equal(before[0], before[2])
    CHANGES[change](layer)
    mean, variance = (moment[:, None] for moment in held(layer))
    expected = (X - mean) / np.sqrt(variance + layer.epsilon) * layer.scaling[:, None] + layer.biases[:, None]
    for _ in range(3):
        np.testing.assert_allclose(layer(batch), expected, rtol=1e-5, atol=1e-5)
    assert not np.allclose(before[0], expected)


def test_inference_sees_what_is_adapted():
    layer = gn.feature_norm(1, input_shape=(4, 5))
    for data in (X, X * 3 + 1, X):
        layer.adapt(data)
        mean, deviation = data.mean((0, 2), keepdims=True), data.std((0, 2), keepdims=True)
        for batch in (X, X[:1], X[0]):
            for _ in range(3):
                expected = ((batch - mean) / deviation).reshape(batch.shape)
                np.testing.assert_allclose(layer(batch), expected, rtol=1e-5, atol=1e-5)


def test_training_has_no_effect_on_other_statistics():
    for layer in (gn.batch_norm(4, statistics="input"), gn.feature_norm(1, mean=1, variance=2)):
        np.testing.assert_array_equal(layer(X, training=True), layer(X))


def test_in_place_and_a_list():
    layer, twin = gn.batch_norm(4), gn.batch_norm(4)
    x = X.copy()
    assert layer(x, training=True, out=x) is x
    np.testing.assert_array_equal(x, twin(X, training=True))
    assert layer.moments == twin.moments
    for y, example in zip(twin([X, 2 * X]), (X, 2 * X), strict=True):
        np.testing.assert_array_equal(y, twin(example))


@pytest.mark.parametrize("twin", [copy.copy, copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_have_the_moments_and_are_independent(twin):
    layer = gn.batch_norm(4)
    layer(X, training=True)
    other = twin(layer)
    assert other.moments == layer.moments
    np.testing.assert_array_equal(other(X), layer(X))
    other(X, training=True)
    assert other.moments != layer.moments


def test_the_derivative_of_inference_is_that_of_given_moments():
    layer = gn.batch_norm(4)
    layer.moments = gn.Moments.from_variance([1, 2, 3, 4], [1, 4, 9, 16])
    before = layer.moments
    y, pullback = layer.vjp(X)
    np.testing.assert_array_equal(y, layer(X))
    expected = np.broadcast_to(1 / np.sqrt(np.array([1, 4, 9, 16]) + 1e-3)[:, None], X.shape)
    np.testing.assert_allclose(pullback(np.ones_like(y)).input, expected, rtol=1e-6)
    assert layer.moments is before
    layer.vjp(X, training=True)
    assert layer.moments.mean[0] == pytest.approx(0.99 + 0.01 * X[:, 0].mean(), rel=1e-6)


# All or nothing -------------------------------------------------------------------------------------------------------


def test_eight_threads_train_and_every_update_counts():
    """A constant batch doubles what is missing to it: after n updates the mean is exactly 1 - 2**-n."""
    layer = gn.batch_norm(1, momentum=0.5)
    batch = np.ones((4, 1))
    layer(batch, training=True)
    layer.reset_moments()
    start = threading.Barrier(8)

    def train():
        start.wait()
        for _ in range(6):
            layer(batch, training=True)

    threads = [threading.Thread(target=train) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 - layer.moments.mean.item() == 2.0**-48
    assert layer.moments.variance().item() == 2.0**-48


@pytest.mark.parametrize("place", ["folded_rows", "run"])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError])
def test_an_interruption_leaves_the_moments_as_they_were(monkeypatch, place, kind):
    layer = gn.batch_norm(4)
    layer(X, training=True)
    before = layer.moments

    def interrupted(*_):
        raise kind

    with monkeypatch.context() as patch:
        patch.setattr(f"gennorm.layer.layer.{place}", interrupted)
        with pytest.raises(kind):
            layer(X, training=True)
    assert layer.moments is before
    layer(X, training=True)  # and the lock is free
    assert layer.moments is not before


def test_an_error_comes_before_anything_is_written():
    layer, x = gn.batch_norm(None, scaling=None, biases=None), X.copy()
    layer.moments = gn.Moments.from_variance([1, 2, 3], 1)
    with pytest.raises(gn.GennormError, match="the moments of the layer have 3 there"):
        layer(x, training=True, out=x)
    np.testing.assert_array_equal(x, X)
    assert layer.moments.mean.tolist() == [1, 2, 3]


# The inverse ----------------------------------------------------------------------------------------------------------


@given(
    st.sampled_from(["Standardize", "RMS"]),
    st.sampled_from(["inside", "floor", "outside"]),
    st.sampled_from(["{0, 2}", 0, 2, "0;;All"]),
    st.booleans(),
)
def test_the_inverse_undoes_a_call(method, placement, levels, fortran):
    layer = gn.NormalizationLayer(
        levels, 1, method=method, epsilon_placement=placement, batched=True, statistics="moving", dtype="float64",
        scaling=[1.0, -2.0, 3.0], biases=[0.0, 1.0, -1.0], momentum=0.5,
    )  # fmt: skip
    x = np.random.default_rng(1).normal(2, 3, (4, 3, 5))
    x = np.asfortranarray(x) if fortran else x
    layer(x, training=True)
    found = layer.inverse(layer(x))
    np.testing.assert_allclose(found, x, rtol=1e-12, atol=1e-12)
    assert found.strides == x.strides
    y = layer(x)
    assert layer.inverse(y, out=y) is y
    np.testing.assert_allclose(y, x, rtol=1e-12, atol=1e-12)


def test_the_inverse_of_an_input_needs_its_moments():
    layer = gn.instance_norm(4)
    moments = layer.measure(X)
    np.testing.assert_allclose(layer.inverse(layer(X), moments), X, rtol=1e-4, atol=1e-5)
    with pytest.raises(gn.GennormError, match="inverse needs moments"):
        layer.inverse(X)


def test_a_scaling_of_zero_has_no_inverse():
    layer = gn.layer_norm((2, 3), scaling=[[1, 2, 3], [4, 0, 6]])
    with pytest.raises(gn.GennormError, match=r"scaling is 0 at \[1, 1\]"):
        layer.inverse(np.ones((5, 2, 3)), gn.Moments.from_variance(np.zeros(5), np.ones(5)))


def test_where_the_divisor_is_zero_the_inverse_is_the_mean():
    layer = gn.feature_norm(mean=[3.0, 4.0], variance=[0.0, 1.0], epsilon=0)
    assert layer.inverse(np.array([[7.0, 1.0]])).tolist() == [[3.0, 5.0]]
