"""Checks on the backend of KERAS_BACKEND; `test_backends.py` starts a process for each backend that runs this file."""

import functools
import os

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
from keras import layers as theirs
from keras import ops

import gennorm as gn
import gennorm.keras as ours
from gennorm.errors import GennormError

BACKEND = keras.backend.backend()
TRAINS = BACKEND != "numpy"
NAMES = ("BatchNormalization", "GroupNormalization", "LayerNormalization", "Normalization", "RMSNormalization")
rng = np.random.default_rng(0)
X = rng.normal(3, 2, (4, 6, 5, 8)).astype("float32")

if BACKEND == "tensorflow":
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


def array(value):
    return np.asarray(ops.convert_to_numpy(value)).astype("float64")


def assert_close(ours, theirs, tolerance=3e-5):
    np.testing.assert_allclose(array(ours), array(theirs), rtol=tolerance, atol=tolerance)


def gradients(function, *arrays):
    """The gradients of a function of tensors whose value is a scalar, for each argument."""
    tensors = [ops.convert_to_tensor(one) for one in arrays]
    if BACKEND == "torch":
        for one in tensors:
            one.requires_grad_()
        function(*tensors).backward()
        return [one.grad for one in tensors]
    if BACKEND == "jax":
        import jax

        return jax.grad(function, tuple(range(len(arrays))))(*tensors)
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        value = function(*tensors)
    return tape.gradient(value, tensors)


def pair(name, shape=X.shape, **settings):
    """A layer of ours and one of Keras with the same random weights."""
    one, other = getattr(ours, name)(**settings), getattr(theirs, name)(**settings)
    for layer in (one, other):
        layer.build(shape)
    other.set_weights([rng.uniform(0.5, 2, weight.shape).astype("float32") for weight in other.weights])
    one.set_weights(other.get_weights())
    return one, other


def weighted_sum(layer, x, *, call, dy):
    return ops.sum(layer(x, **call) * ops.convert_to_tensor(dy))


CASES = [
    ("BatchNormalization", {}),
    ("BatchNormalization", {"axis": 1, "momentum": 0.5}),
    ("BatchNormalization", {"axis": 0}),
    ("BatchNormalization", {"axis": -2, "center": False}),
    ("BatchNormalization", {"scale": False, "epsilon": 0.1}),
    ("BatchNormalization", {"renorm": True, "renorm_clipping": {"rmax": 1.5, "rmin": 0.5, "dmax": 1.0}}),
    ("LayerNormalization", {}),
    ("LayerNormalization", {"axis": [2, 3], "scale": False}),
    ("LayerNormalization", {"axis": (-1, -2), "center": False}),
    ("LayerNormalization", {"axis": [0, 1, 2, 3], "epsilon": 0.1}),
    ("LayerNormalization", {"axis": [-1, 1]}),
    ("LayerNormalization", {"rms_scaling": True}),
    ("RMSNormalization", {}),
    ("RMSNormalization", {"axis": [-1, -2], "epsilon": 0.1}),
    ("GroupNormalization", {"groups": 4}),
    ("GroupNormalization", {"groups": 3, "axis": 1}),
    ("GroupNormalization", {"groups": -1, "scale": False}),
    ("GroupNormalization", {"groups": 1, "center": False}),
]


@pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
def test_outputs_weights_and_gradients_are_those_of_keras(name, settings):
    one, other = pair(name, **settings)
    assert [weight.name for weight in one.weights] == [weight.name for weight in other.weights]
    for training in (False, True) if name == "BatchNormalization" else (None,):
        call = {} if training is None else {"training": training}
        loss = functools.partial(weighted_sum, call=call, dy=rng.normal(size=X.shape).astype("float32"))
        assert_close(one(X, **call), other(X, **call))
        for mine, its in zip(one.weights, other.weights, strict=True):
            assert_close(mine, its)
        if TRAINS:
            found = [gradients(functools.partial(loss, layer), X)[0] for layer in (one, other)]
            assert_close(*found)
    mine, its = one.get_config(), other.get_config()
    assert {**mine, "name": ""} == {**its, "name": ""}


@pytest.mark.parametrize(
    "settings", [{}, {"axis": None}, {"axis": (1, 2)}, {"axis": (0, 1, 2, 3)}, {"axis": [-2]}], ids=str
)
@pytest.mark.parametrize("invert", [False, True])
def test_normalization_is_that_of_keras(settings, invert):
    one, other = (module.Normalization(invert=invert, **settings) for module in (ours, theirs))
    for layer in (one, other):
        layer.adapt(X)
    assert_close(one(X), other(X), 1e-4)
    assert one.get_config().keys() == other.get_config().keys()
    given = {"mean": array(other.adapt_mean), "variance": array(other.adapt_variance)}
    one, other = (module.Normalization(invert=invert, **settings, **given) for module in (ours, theirs))
    assert_close(one(X), other(X), 1e-4)


# --------------------------------------------------------------------------------------------- the documents of Keras


FEATURES = np.array([[0.0, 7.0, 4.0], [2.0, 9.0, 6.0], [0.0, 7.0, 4.0], [2.0, 9.0, 6.0]], "float32")


def test_k1_normalization_by_a_scalar():
    layer = ours.Normalization(axis=None)
    layer.adapt(np.array([1.0, 2.0, 3.0, 4.0, 5.0], "float32"))
    assert_close(layer(np.array([1.0, 2.0, 3.0], "float32")), [-1.4142135, -0.70710677, 0.0])


def test_k2_normalization_by_feature():
    layer = ours.Normalization(axis=-1)
    layer.adapt(FEATURES)
    assert_close(layer(np.array([[0.0, 7.0, 4.0]], "float32")), [[-1.0, -1.0, -1.0]])


def test_k3_normalization_by_given_values():
    layer = ours.Normalization(mean=3.0, variance=2.0)
    assert_close(layer(np.array([[1.0], [2.0], [3.0]], "float32")), [[-1.4142135], [-0.70710677], [0.0]])


def test_k4_normalization_inverted():
    layer = ours.Normalization(axis=-1, invert=True)
    layer.adapt(FEATURES)
    assert_close(layer(np.array([[1.0, 2.0, 3.0]], "float32")), [[2.0, 10.0, 8.0]])


def test_k5_a_mean_that_does_not_broadcast_is_refused_by_build():
    errors = []
    for module in (ours, theirs):
        layer = module.Normalization(mean=[1.0, 2.0], variance=[1.0, 2.0])
        with pytest.raises(Exception) as caught:  # noqa: PT011 # the class is the backend's
            layer.build((None, 3))
        errors.append(caught.type)
    assert errors[0] is errors[1]


def test_k6_scalars_in_a_batch_are_normalized_by_index():
    layer = ours.Normalization(axis=-1)
    layer.adapt(np.array([1.0, 5.0], "float32"))
    assert_close(layer(np.array([1.0, 5.0], "float32")), [0.0, 0.0])
    assert_close(layer.adapt_mean, [1.0, 5.0])


def test_b1_to_b3_batch_normalization_trains_infers_and_moves():
    layer = ours.BatchNormalization(momentum=0.75, epsilon=0.01)
    layer.build(X.shape)
    layer.gamma.assign(np.arange(1.0, 9.0))
    mean, variance = X.mean((0, 1, 2)), X.var((0, 1, 2))
    assert_close(layer(X, training=True), (X - mean) / np.sqrt(variance + 0.01) * np.arange(1.0, 9.0))
    assert_close(layer.moving_mean, mean / 4)
    assert_close(layer.moving_variance, 0.75 + variance / 4)
    moved = (X - mean / 4) / np.sqrt(0.75 + variance / 4 + 0.01) * np.arange(1.0, 9.0)
    assert_close(layer(X), moved)  # training=False is the default
    assert_close(layer(X, training=False), moved)


def test_b4_and_b5_scale_center_and_defaults():
    layer = ours.BatchNormalization()
    assert (layer.axis, layer.momentum, layer.epsilon, layer.center, layer.scale) == (-1, 0.99, 1e-3, True, True)
    layer = ours.BatchNormalization(center=False, scale=False)
    layer(X)
    assert [weight.name for weight in layer.weights] == ["moving_mean", "moving_variance"]


def test_b6_what_is_masked_is_not_counted():
    mask = rng.random(X.shape[:3]) < 0.5
    layer = ours.BatchNormalization(momentum=0)
    layer(X, training=True, mask=ops.convert_to_tensor(mask))
    assert_close(layer.moving_mean, X[mask].mean(0))
    assert_close(layer.moving_variance, X[mask].var(0))


def test_b7_frozen_is_inference():
    layer = ours.BatchNormalization(epsilon=0)
    layer.build(X.shape)
    layer.trainable = False
    assert_close(layer(X, training=True), X)
    assert (len(layer.trainable_weights), len(layer.non_trainable_weights)) == (0, 4)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2), (2, 3, 2, 2, 2)], ids=str)
@pytest.mark.parametrize("axis", [-1, 0])
def test_b8_any_rank(shape, axis):
    x = rng.normal(size=shape).astype("float32")
    one, other = pair("BatchNormalization", shape, axis=axis)
    assert_close(one(x, training=True), other(x, training=True), 1e-4)
    assert_close(one.moving_mean, other.moving_mean)


def test_b9_synchronized_is_for_tensorflow():
    if BACKEND != "tensorflow":
        with pytest.raises(ValueError, match="TensorFlow backend"):
            ours.BatchNormalization(synchronized=True)
        return
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    x = np.concatenate([rng.normal(0, 1, (4, 3)), rng.normal(50, 2, (4, 3))]).astype("float32")
    dy = rng.normal(size=x.shape).astype("float32")
    with strategy.scope():
        layer = ours.BatchNormalization(momentum=0.0, epsilon=0.0, synchronized=True)
        layer.build((None, 3))

    def step(index):
        part = tf.reshape(tf.gather(tf.reshape(tf.constant(x), (2, 4, 3)), index), (4, 3))
        with tf.GradientTape() as tape:
            tape.watch(part)
            value = tf.reduce_sum(layer(part, training=True) * tf.gather(tf.reshape(tf.constant(dy), (2, 4, 3)), index))
        return layer(part, training=True), tape.gradient(value, part)

    indices = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(context.replica_id_in_sync_group)
    )

    @tf.function
    def run(values):
        return strategy.run(step, args=(values,))

    found = run(indices)
    y, dx = (np.concatenate([one.numpy() for one in strategy.experimental_local_results(part)]) for part in found)
    alone = ours.BatchNormalization(momentum=0.0, epsilon=0.0)
    assert_close(y, alone(x, training=True), 1e-4)
    assert_close(dx, gradients(functools.partial(weighted_sum, alone, call={"training": True}, dy=dy), x)[0], 1e-4)
    assert_close(layer.moving_mean, x.mean(0), 1e-4)
    assert_close(layer.moving_variance, x.var(0), 1e-4)


def test_l1_to_l4_layer_normalization():
    layer = ours.LayerNormalization()
    assert (layer.axis, layer.epsilon, layer.center, layer.scale) == (-1, 1e-3, True, True)
    y = layer(X)
    assert tuple(y.shape) == X.shape
    assert_close(y, (X - X.mean(-1, keepdims=True)) / np.sqrt(X.var(-1, keepdims=True) + 1e-3))
    for axis in ([1, 3], (1, 3)):
        alone = ours.LayerNormalization(axis=axis)(X[:1])
        assert_close(ours.LayerNormalization(axis=axis)(X)[:1], alone)  # examples do not affect each other


# ------------------------------------------------------------------------------------------- where Keras is not right


@pytest.mark.parametrize("axis", [[1, 2], [0, 3], 1, (-3, -1), [-1, 1]], ids=str)
def test_norms_over_axes_that_are_not_the_last_ones(axis):
    layer = ours.LayerNormalization(axis=axis, epsilon=0.1)
    layer.build(X.shape)
    layer.gamma.assign(rng.uniform(0.5, 2, layer.gamma.shape))
    axes = tuple(one % 4 for one in np.atleast_1d(axis))
    gamma = array(layer.gamma).reshape([size if one in axes else 1 for one, size in enumerate(X.shape)])
    deviations = X - X.mean(axes, keepdims=True)
    assert_close(layer(X), deviations / np.sqrt(X.var(axes, keepdims=True) + 0.1) * gamma)
    layer = ours.RMSNormalization(axis=axis, epsilon=0.1)
    layer.build(X.shape)
    layer.scale.assign(gamma.reshape(layer.scale.shape))
    assert_close(layer(X), X / np.sqrt((X**2).mean(axes, keepdims=True) + 0.1) * gamma)
    if BACKEND == "torch" and axis in ([1, 2], 1):
        with pytest.raises(RuntimeError, match="normalized_shape"):
            theirs.LayerNormalization(axis=axis)(X)


def test_a_mask_of_channels_first():
    x, mask = rng.normal(size=(4, 3, 6)).astype("float32"), rng.random((4, 6)) < 0.5
    counted = np.moveaxis(x, 1, -1)[mask]
    for given in (mask, mask[:, None, :]):
        layer = ours.BatchNormalization(axis=1, momentum=0)
        layer(x, training=True, mask=ops.convert_to_tensor(given))
        assert_close(layer.moving_mean, counted.mean(0))
        assert_close(layer.moving_variance, counted.var(0))


def test_a_mask_that_keras_propagates():
    x = rng.normal(size=(4, 3, 6)).astype("float32")
    x[:, 1] = 0
    found = []
    for module in (ours, theirs):
        layer = module.BatchNormalization(axis=1, momentum=0)
        layer(theirs.Masking()(x), training=True)
        found.append(layer)
    rows = np.array([0, 2])
    assert_close(array(found[0].moving_mean)[rows], array(found[1].moving_mean)[rows])
    assert_close(found[0].moving_mean[1], 0.0)  # nothing counts: what it was before


def test_counts_are_exact_and_an_empty_batch_moves_nothing():
    x, mask = np.full((3, 2), 1000.0, "float32"), np.array([True, False, False])
    layer = ours.BatchNormalization(momentum=0)
    layer(x, training=True, mask=ops.convert_to_tensor(mask))
    assert array(layer.moving_mean).tolist() == [1000.0, 1000.0]
    layer(x + 1, training=True, mask=ops.convert_to_tensor(np.zeros(3, bool)))
    assert array(layer.moving_mean).tolist() == [1000.0, 1000.0]


def test_a_mean_that_is_large():
    x = (1e6 + rng.normal(size=(64, 4))).astype("float32")
    layer = ours.BatchNormalization(momentum=0, epsilon=0)
    layer(x, training=True)
    assert_close(
        array(layer.moving_variance) / x.astype("float64").var(0), np.ones(4), 1e-3 if BACKEND == "jax" else 1e-5
    )


def test_adapt_of_halves_does_not_overflow():
    x = rng.normal(0, 2e4, (256, 3)).astype("float16")
    x[np.isinf(x)] = 0
    layer = ours.Normalization(dtype="mixed_float16")
    layer.adapt(x)
    assert_close(array(layer.adapt_variance) / x.astype("float64").var(0), np.ones(3), 1e-5)
    assert_close(array(layer(x)).std(0), np.ones(3), 1e-3)
    merged = ours.Normalization()
    merged.adapt(iter([x[:100], x[100:101], x[101:]]))
    assert_close(merged.adapt_mean, x.astype("float64").mean(0), 1e-5)


# ----------------------------------------------------------------------------------------------------- life of a layer


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64", "float16"])
@pytest.mark.parametrize("name", [*NAMES, "NormalizationLayer"])
def test_dtype_policies(name, policy):
    settings = {"groups": 4} if name == "GroupNormalization" else {}
    layer = getattr(ours, name)(dtype=policy, **settings)
    symbolic = keras.Input(X.shape[1:], dtype="float32")
    y = layer(X)
    expected = keras.DTypePolicy(policy).compute_dtype
    if BACKEND == "jax" and policy == "float64":
        expected = "float32"
    assert keras.backend.standardize_dtype(y.dtype) == expected
    if not (BACKEND == "jax" and policy == "float64"):
        assert layer(symbolic).dtype == expected
    if name != "Normalization":
        reference = getattr(ours, name)(**settings)(X)
        assert_close(y, reference, 2e-2 if policy != "float64" else 1e-5)


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool"])
def test_integers_are_normalized_as_floats(dtype):
    x = (X > 3) if dtype == "bool" else np.abs(X).astype(dtype)
    for name in NAMES:
        settings = {"groups": 4} if name == "GroupNormalization" else {}
        y = getattr(ours, name)(**settings)(ops.convert_to_tensor(x))
        assert_close(y, getattr(ours, name)(**settings)(x.astype("float32")))


def model_of(module, seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((None, 6)),
            theirs.Masking(),
            theirs.Dense(8),
            module.BatchNormalization(),
            module.LayerNormalization(),
            theirs.GlobalAveragePooling1D(),
            module.RMSNormalization(),
            theirs.Dense(1),
        ]
    )


if TRAINS:

    @pytest.mark.parametrize("compiled", [False, True] if BACKEND != "torch" else [False])
    def test_a_model_learns_as_with_keras(compiled):
        x = rng.normal(size=(48, 5, 6)).astype("float32")
        y = x.sum((1, 2))[:, None]
        models = [model_of(module) for module in (ours, theirs)]
        models[1].set_weights(models[0].get_weights())
        losses = []
        for model in models:
            model.compile("sgd", "mse", jit_compile=compiled)
            history = model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
            losses.append(history.history["loss"])
            if not compiled:  # each of these is compiled for itself, which takes seconds
                losses[-1] += [model.evaluate(x, y, verbose=0), model.train_on_batch(x[:16], y[:16])]
        assert_close(losses[0], losses[1], 1e-3)
        if not compiled:
            assert_close(models[0].predict(x, verbose=0), models[1].predict(x, verbose=0), 1e-2)

    def test_general_layer_learns_with_regularizers_and_constraints():
        layer = ours.NormalizationLayer(
            scaling_regularizer="l2", biases_constraint="non_neg", biases_initializer="ones", statistics="moving"
        )
        model = keras.Sequential([keras.Input((3, 4, 4)), layer, theirs.Flatten(), theirs.Dense(1)])
        model.compile("sgd", "mse")
        x = rng.normal(size=(16, 3, 4, 4)).astype("float32")
        model.fit(x, x.sum((1, 2, 3)), verbose=0, epochs=2)
        assert len(layer.losses) == 1
        assert array(layer.biases).min() >= 0
        assert not np.array_equal(array(layer.scaling), np.ones(3))
        assert not np.array_equal(array(layer.mean), np.zeros(3))


def test_files_go_both_ways(tmp_path):
    model = model_of(ours)
    for weight in model.weights:
        weight.assign(rng.uniform(0.5, 2, weight.shape))
    x = rng.normal(size=(4, 5, 6)).astype("float32")
    y = model.predict(x, verbose=0) if TRAINS else model(x)
    path = tmp_path / "ours.keras"
    model.save(path)
    again = keras.saving.load_model(path)
    assert type(again.layers[2]) is ours.BatchNormalization
    assert_close(again(x), y)
    original = ours.convert_model(again, to="keras")
    assert type(original.layers[2]) is theirs.BatchNormalization
    assert_close(original(x), y)
    original.save(tmp_path / "theirs.keras")
    back = ours.convert_model(keras.saving.load_model(tmp_path / "theirs.keras"))
    assert type(back.layers[2]) is ours.BatchNormalization
    assert_close(back(x), y)
    original.save_weights(tmp_path / "x.weights.h5")
    fresh = model_of(ours, seed=1)
    fresh.load_weights(tmp_path / "x.weights.h5")
    assert_close(fresh(x), y)


SPECS = [
    (("2;;All",), {}),
    ((-1, "Same"), {"method": "RMS", "biases": None}),
    (("All", 1, {1: 3}), {"epsilon": 0.1}),
    (("{1, 3}", "{2, 1}"), {"unbiased": True}),
    (("{0, 2;;All}", 1), {}),
    (("All", ()), {"epsilon_placement": "outside"}),
    (("{2, 3}", "Complement", (5, 2)), {"epsilon_placement": "floor"}),
]


@pytest.mark.parametrize(("arguments", "settings"), SPECS, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_general_layer_is_the_core_s(arguments, settings, masked):
    layer = ours.NormalizationLayer(*arguments, **settings)
    layer.build((None, 6, None, 8) if arguments[1:] not in [("Same",), ("{2, 1}",)] else X.shape)
    values = [rng.uniform(0.5, 2, weight.shape).astype("float32") for weight in layer.weights]
    layer.set_weights(values)
    named = dict(zip([weight.name for weight in layer.weights], values, strict=True))
    core = gn.NormalizationLayer(*arguments, **{**settings, **named}, batched=True)
    mask = rng.random((4, 6, 5, 1)) < 0.7 if masked else None
    expected = core(X, mask=mask)
    given = None if mask is None else ops.convert_to_tensor(mask)
    assert_close(layer(X, mask=given), expected)
    if masked:
        assert_close(layer(X, mask=given[..., 0]), expected)
    again = ours.NormalizationLayer.from_config(layer.get_config())
    assert again.config == layer.config
    if TRAINS:
        dy = rng.normal(size=X.shape).astype("float32")
        found = gradients(functools.partial(weighted_sum, layer, call={"mask": given}, dy=dy), X)[0]
        assert_close(found, core.vjp(X, mask=mask)[1](dy).input, 1e-4)


@pytest.mark.parametrize("levels", [("{0, 2;;All}", 1), ("2;;All", 1), ("All", 1, {1: 2}), (-1, ())], ids=str)
@pytest.mark.parametrize("method", ["Standardize", "RMS"])
def test_general_layer_moves_as_the_core_s(levels, method):
    settings = {"method": method, "statistics": "moving", "momentum": 0.5}
    layer = ours.NormalizationLayer(*levels, **settings)
    core = gn.NormalizationLayer(*levels, **settings, batched=True, input_shape=X.shape[1:])
    for _ in range(2):
        assert_close(layer(X, training=True), core(X, training=True))
    if method == "Standardize":
        assert_close(layer.mean, core.moments.mean)
        assert_close(layer.variance, core.moments.variance())
    else:
        assert_close(layer.variance, core.moments.mean_square())
    assert_close(layer(X), core(X))
    layer.trainable = False
    assert_close(layer(X, training=True), core(X))


def test_general_layer_adapts_and_inverts(tmp_path):
    settings = {"statistics": "dataset", "scaling": None, "biases": None, "epsilon_placement": "floor"}
    layer = ours.NormalizationLayer("{0, 2, 3}", **settings)
    layer.adapt([(X[:1], 0), (X[1:], 0)], mask=None)
    assert_close(layer.mean, X.mean((0, 2, 3)))
    inverse = ours.NormalizationLayer("{0, 2, 3}", invert=True, **settings)
    inverse.build(X.shape)
    inverse.set_weights(layer.get_weights())
    assert_close(inverse(layer(X)), X, 1e-4)
    model = keras.Sequential([keras.Input((6, None, 8)), layer])
    model.save(tmp_path / "m.keras")
    assert_close(keras.saving.load_model(tmp_path / "m.keras")(X), layer(X))


def test_general_layer_divides_constant_features_by_1():
    layer = ours.NormalizationLayer(0, statistics="dataset", scaling=None, biases=None, epsilon=0.0, constant="one")
    with pytest.warns(UserWarning, match="1 of 2 slices are constant"):
        layer.adapt(np.array([[7.0, 1.0], [7.0, 5.0]], "float32"))
    assert_close(layer(np.array([[8.0, 5.0]], "float32")), [[1.0, 1.0]])
    assert ours.NormalizationLayer.from_config(layer.get_config()).config.constant == "one"


def test_general_layer_takes_parameters_of_a_call():
    layer = ours.NormalizationLayer("2;;All", epsilon=0.1)
    scaling, biases = (rng.normal(size=(4, 6)).astype("float32") for _ in range(2))
    core = gn.NormalizationLayer("2;;All", epsilon=0.1, batched=True, input_shape=(6, 5, 8))
    y = layer(X, scaling=ops.convert_to_tensor(scaling), biases=ops.convert_to_tensor(biases))
    assert_close(y, core(X, scaling=scaling, biases=biases))


def test_symbolic_shapes():
    for layer in (ours.NormalizationLayer(), ours.BatchNormalization(axis=1), ours.GroupNormalization(3, axis=1)):
        x = keras.Input((6, None, None))
        model = keras.Model(x, layer(x))
        assert model.output_shape == (None, 6, None, None)
        assert tuple(model(X).shape) == X.shape
        assert tuple(model(X[:, :, :2]).shape) == (4, 6, 2, 8)
        assert layer.compute_output_spec(keras.KerasTensor((None, 6, None, 8))).shape == (None, 6, None, 8)


ADAPTED = {
    "array": lambda: X,
    "tensor": lambda: ops.convert_to_tensor(X),
    "list": lambda: [X[:1], X[1:]],
    "pairs": lambda: ((part, None) for part in (X[:3], X[3:])),
    "PyDataset": lambda: Parts(workers=1),
}


class Parts(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return X[2 * index : 2 * index + 2], np.zeros(2)


@pytest.mark.parametrize("data", ADAPTED)
def test_adapt_takes(data):
    for layer in (ours.Normalization(), ours.NormalizationLayer("{0, 1, 2}", statistics="dataset")):
        layer.adapt(ADAPTED[data]())
        assert_close(layer.weights[0] if layer.weights[0].name == "mean" else layer.mean, X.mean((0, 1, 2)))


def test_adapt_takes_a_tf_data_set_and_the_layer_runs_in_one():
    tensorflow = pytest.importorskip("tensorflow")
    data = tensorflow.data.Dataset.from_tensor_slices((X, np.zeros(4))).batch(3)
    layer = ours.Normalization()
    layer.adapt(data)
    assert_close(layer.adapt_mean, X.mean((0, 1, 2)))
    (y,) = list(tensorflow.data.Dataset.from_tensors(X).map(layer))
    np.testing.assert_allclose(y.numpy(), array(layer(X)), atol=1e-5)


if BACKEND == "tensorflow":

    @pytest.mark.parametrize("compiled", [False, True])
    def test_graphs(compiled):
        layers = [
            ours.BatchNormalization(axis=1),
            ours.GroupNormalization(3, axis=1),
            ours.LayerNormalization(axis=[1]),
            ours.NormalizationLayer("All", 1, {1: 2}),
            ours.NormalizationLayer(2, 1, statistics="moving"),
        ]
        for layer in layers:
            layer.build((None, 6, None, 8) if "moving" not in str(layer.get_config()) else X.shape)
            if layer is layers[-1]:
                continue
            for sizes in ((None, 6, None, 8), (None, None, None, None)):
                signature = None if compiled and 6 in sizes else [tf.TensorSpec(sizes)]
                function = tf.function(layer, input_signature=signature, jit_compile=compiled)
                for x in (X, X[:2, :, :3]):
                    assert_close(function(tf.constant(x)), layer(x))

    def test_export(tmp_path):
        model = model_of(ours)
        x = rng.normal(size=(4, 5, 6)).astype("float32")
        model.export(tmp_path / "saved", verbose=False)
        served = tf.saved_model.load(str(tmp_path / "saved"))
        assert_close(served.serve(tf.constant(x)), model(x))


# ------------------------------------------------------------------------------------------------------------- errors


def test_errors_are_of_the_classes_of_keras():
    for kind in (ours.BatchNormalization, theirs.BatchNormalization):
        with pytest.raises(ValueError, match="mask"):
            kind()(X, mask=ops.ones((4, 6)), training=True)
    with pytest.raises(TypeError):
        ours.LayerNormalization(axis="last")
    for make, text in (
        (lambda: ours.NormalizationLayer("5")(X), "level 5"),
        (lambda: ours.NormalizationLayer(invert=True), "needs moments"),
        (lambda: ours.NormalizationLayer("All", 1, {1: 4})(X), "groups"),
        (lambda: ours.NormalizationLayer(2, 1)(keras.Input((None, 3))), "level 1"),
        (lambda: ours.Normalization().adapt(3), "adapt"),
    ):
        with pytest.raises((ValueError, TypeError), match=text) as caught:
            make()
        assert isinstance(caught.value, GennormError)
