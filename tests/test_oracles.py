"""Presets and layers of any levels against PyTorch, Keras, ONNX and scikit-learn; photographs too."""

import warnings

import numpy as np
import pytest

import gennorm as gn

torch = pytest.importorskip("torch")
functional = torch.nn.functional

# What the others are off by in float32, relative to the largest output; in float64 they agree to the last digits.
CLOSE = {"float32": 3e-6, "float64": 1e-13}
both = pytest.mark.parametrize("dtype", ["float32", "float64"])


def sample(shape, dtype="float64", seed=0):
    return np.random.default_rng(seed).normal(0.5, 1.5, shape).astype(dtype)


def numbers(answer):
    """A NumPy array from a tensor of whatever framework."""
    return answer.detach().cpu().numpy() if isinstance(answer, torch.Tensor) else np.asarray(answer)


def agree(y, other, dtype, *, loose=1.0):
    other = numbers(other)
    assert y.dtype == other.dtype == dtype
    atol = loose * CLOSE[dtype] * max(1.0, np.abs(other).max(initial=0.0))
    np.testing.assert_allclose(y, other, rtol=0, atol=atol, strict=True)


def moved(x, channels_last):
    """The array with its channels, axis 1, last: a contiguous one."""
    return np.ascontiguousarray(np.moveaxis(x, 1, -1)) if channels_last else x


def affine(layer, seed=7):
    """Give the layer parameters that differ, and return them as tensors."""
    for i, name in enumerate(("scaling", "biases")):
        value = getattr(layer, name)
        if value is not None:
            setattr(layer, name, sample(value.shape, value.dtype, seed + i) + 1 - i)
    return [None if p is None else torch.from_numpy(p.copy()) for p in (layer.scaling, layer.biases)]


# ------------------------------------------------------------------------------------------------- PyTorch: the presets


@both
@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("epsilon", [1e-3, 1e-5])
def test_layer_norm(dtype, shape, levels, epsilon):
    sizes = shape[-levels:]
    x = sample((4, *shape), dtype)
    layer = gn.layer_norm(sizes, epsilon=epsilon, dtype=dtype)
    weight, bias = affine(layer)
    agree(layer(x), functional.layer_norm(torch.from_numpy(x), sizes, weight, bias, epsilon), dtype)
    plain = gn.layer_norm(sizes, epsilon=epsilon, dtype=dtype, scaling=None, biases=None)
    agree(plain(x), functional.layer_norm(torch.from_numpy(x), sizes, eps=epsilon), dtype)


@both
@pytest.mark.parametrize("sizes", [(5,), (4, 5), (3, 4, 5)])
def test_rms_norm(dtype, sizes):
    x = sample((2, 3, 4, 5), dtype)
    layer = gn.rms_norm(sizes, dtype=dtype)
    weight, bias = affine(layer)
    assert bias is None
    agree(layer(x), functional.rms_norm(torch.from_numpy(x), sizes, weight, 1e-6), dtype)


@both
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(5, 12), (3, 12, 7), (2, 12, 5, 6), (2, 12, 3, 4, 5)])
@pytest.mark.parametrize("groups", [1, 3, 12])
def test_group_norm(dtype, channels_last, shape, groups):
    x = sample(shape, dtype)
    layer = gn.group_norm(groups, 12, channel_level=-1 if channels_last else 1, dtype=dtype)
    other = functional.group_norm(torch.from_numpy(x), groups, *affine(layer), 1e-3)
    agree(layer(moved(x, channels_last)), np.ascontiguousarray(moved(numbers(other), channels_last)), dtype)


@both
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(3, 5, 40), (2, 5, 7, 6), (2, 3, 3, 4, 5)])
def test_instance_norm(dtype, channels_last, shape):
    x = sample(shape, dtype)
    layer = gn.instance_norm(shape[1], channel_level=-1 if channels_last else 1, dtype=dtype)
    weight, bias = affine(layer)
    other = functional.instance_norm(torch.from_numpy(x), weight=weight, bias=bias, eps=1e-3)
    agree(layer(moved(x, channels_last)), moved(numbers(other), channels_last), dtype)


@both
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(20, 5), (3, 5, 40), (4, 5, 7, 6), (2, 3, 3, 4, 5)])
def test_batch_norm(dtype, channels_last, shape):
    x = sample(shape, dtype)
    layer = gn.batch_norm(shape[1], channel_level=-1 if channels_last else 1, dtype=dtype)
    weight, bias = affine(layer)
    other = functional.batch_norm(torch.from_numpy(x), None, None, weight, bias, training=True, eps=1e-3)
    y = layer(moved(x, channels_last), training=True)
    agree(y, moved(numbers(other), channels_last), dtype)


@both
def test_memory_format_channels_last(dtype):
    """A tensor whose channels are last in memory and first in its shape, as PyTorch has them."""
    tensor = torch.from_numpy(sample((2, 12, 5, 6), dtype)).to(memory_format=torch.channels_last)
    x = tensor.numpy()
    assert not x.flags.c_contiguous
    for layer, other in [
        (gn.group_norm(3, 12), functional.group_norm(tensor, 3, eps=1e-3)),
        (gn.instance_norm(12), functional.instance_norm(tensor, eps=1e-3)),
        (gn.batch_norm(12), functional.batch_norm(tensor, None, None, training=True, eps=1e-3)),
    ]:
        y = layer(x, training=True)
        assert y.strides == x.strides
        agree(y, other, dtype)


# ------------------------------------------------------------------------------------------ PyTorch: levels of any kind

LEVELS = [[4], [1], [2], [3], [1, 2], [2, 4], [1, 4], [1, 3], [4, 2, 3], [1, 2, 3, 4], [2, 3], [3, 1, 4]]


@both
@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_layer_norm_over_any_levels(dtype, levels):
    """Any levels, brought to the end and back; parameters on the same levels."""
    x = sample((3, 2, 5, 4, 6), dtype)
    layer = gn.NormalizationLayer(levels, levels, input_shape=x.shape[1:], dtype=dtype)
    weight, bias = affine(layer)
    kept = [axis for axis in range(5) if axis not in levels]
    order = [*kept, *levels]
    sizes = [x.shape[level] for level in levels]
    other = functional.layer_norm(torch.from_numpy(x).permute(order), sizes, weight, bias, 1e-3)
    agree(layer(x), other.permute([order.index(axis) for axis in range(5)]).contiguous(), dtype)


@both
@pytest.mark.parametrize("levels", [levels for levels in LEVELS if len(levels) < 4], ids=str)
def test_complement_over_any_levels(dtype, levels):
    """Parameters on the levels that are not aggregated."""
    x = sample((3, 2, 5, 4, 6), dtype)
    layer = gn.NormalizationLayer(levels, input_shape=x.shape[1:], dtype=dtype)
    weight, bias = affine(layer)
    tensor = torch.from_numpy(x)
    variance, mean = torch.var_mean(tensor, levels, correction=0, keepdim=True)
    sizes = [1 if axis in levels else x.shape[axis] for axis in range(1, 5)]
    other = (tensor - mean) / torch.sqrt(variance + 1e-3) * weight.reshape(sizes) + bias.reshape(sizes)
    agree(layer(x), other, dtype, loose=3)


@both
@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_unbiased_and_rms_over_any_levels(dtype, levels):
    x = sample((3, 2, 5, 4, 6), dtype)
    tensor = torch.from_numpy(x).double()
    variance, mean = torch.var_mean(tensor, levels, correction=1, keepdim=True)
    unbiased = gn.normalize(x, levels, unbiased=True, epsilon=1e-5, batched=True)
    agree(unbiased, ((tensor - mean) / torch.sqrt(variance + 1e-5)).numpy().astype(dtype), dtype)
    square = (tensor**2).mean(levels, keepdim=True)
    rms = gn.normalize(x, levels, method="RMS", batched=True)
    agree(rms, (tensor / torch.sqrt(square + 1e-3)).numpy().astype(dtype), dtype)


@both
def test_groups_of_two_levels(dtype):
    """Each of two levels in groups: a reshape, a permutation and layer normalization."""
    x = sample((3, 6, 5, 8), dtype)
    tensor = torch.from_numpy(x).reshape(3, 2, 3, 5, 4, 2).permute(0, 1, 3, 4, 2, 5)
    other = functional.layer_norm(tensor, (3, 2), eps=1e-3).permute(0, 1, 4, 2, 3, 5).reshape(x.shape)
    agree(gn.normalize(x, [1, 3], group_number=[2, 4], batched=True), other, dtype)


@both
def test_ghost_batch_norm(dtype):
    """The batch in groups: batch normalization of each part."""
    x = sample((12, 5, 7), dtype)
    layer = gn.batch_norm(5, group_number={0: 3}, dtype=dtype)
    weight, bias = affine(layer)
    parts = torch.from_numpy(x).split(4)
    other = torch.cat([functional.batch_norm(p, None, None, weight, bias, training=True, eps=1e-3) for p in parts])
    agree(layer(x, training=True), other, dtype)


@both
def test_unit_vectors(dtype):
    """What `F.normalize` makes: RMS without epsilon, over the root of the length."""
    x = sample((6, 9), dtype)
    other = functional.normalize(torch.from_numpy(x), dim=-1)
    agree(gn.normalize(x, -1, method="RMS", epsilon=0, scaling=1 / 3, scaling_levels=(), dtype=dtype), other, dtype)


# ---------------------------------------------------------------------------------------------------------------- Keras


@pytest.fixture(scope="module")
def keras():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("keras")
    assert module.backend.backend() == "torch"
    return module


def in_keras(layer, x, ours, **call):
    """A Keras layer with the parameters of ours, on the array."""
    layer.build(x.shape)
    for name, value in (("gamma", ours.scaling), ("beta", ours.biases), ("scale", ours.scaling)):
        variable = getattr(layer, name, None)
        if value is not None and hasattr(variable, "assign"):
            variable.assign(value.reshape(variable.shape))
    return layer(torch.from_numpy(np.ascontiguousarray(x)), **call)


def agree_in(y, other, dtype):
    """Keras rounds part of its work to float32, whatever the dtype of the layer."""
    agree(y, other, dtype, loose=1.0 if dtype == "float32" else CLOSE["float32"] / CLOSE["float64"])


@both
@pytest.mark.parametrize("axis", [-1, (3,), (2, 3), (1, 2, 3), (1, 3)])
def test_keras_layer_normalization(keras, dtype, axis):
    x = sample((4, 3, 5, 6), dtype)
    levels = [axis] if isinstance(axis, int) else list(axis)
    ours = gn.NormalizationLayer(levels, levels, input_shape=x.shape[1:], dtype=dtype)
    affine(ours)
    theirs = keras.layers.LayerNormalization(axis=axis, epsilon=1e-3, dtype=dtype)
    agree_in(ours(x), in_keras(theirs, x, ours), dtype)


@both
@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("groups", [1, 4, 12])
def test_keras_group_normalization(keras, dtype, axis, groups):
    x = moved(sample((3, 12, 5, 6), dtype), axis == -1)
    ours = gn.group_norm(groups, 12, channel_level=axis, dtype=dtype)
    affine(ours)
    theirs = keras.layers.GroupNormalization(groups=groups, axis=axis, epsilon=1e-3, dtype=dtype)
    agree_in(ours(x), in_keras(theirs, x, ours), dtype)


@both
@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("shape", [(20, 5), (4, 5, 7, 6)])
def test_keras_batch_normalization(keras, dtype, axis, shape):
    x = moved(sample(shape, dtype), axis == -1)
    ours = gn.batch_norm(5, channel_level=axis, dtype=dtype)
    affine(ours)
    theirs = keras.layers.BatchNormalization(axis=axis, dtype=dtype)
    agree_in(ours(x, training=True), in_keras(theirs, x, ours, training=True), dtype)


@both
@pytest.mark.parametrize("axis", [-1, (2, 3)])
def test_keras_rms_normalization(keras, dtype, axis):
    x = sample((4, 3, 5, 6), dtype)
    levels = [axis] if isinstance(axis, int) else list(axis)
    sizes = [x.shape[level] for level in levels]
    ours = gn.rms_norm(sizes, dtype=dtype)
    affine(ours)
    theirs = keras.layers.RMSNormalization(axis=axis, epsilon=1e-6, dtype=dtype)
    agree_in(ours(x), in_keras(theirs, x, ours), dtype)


@both
def test_keras_unit_normalization(keras, dtype):
    x = sample((6, 16), dtype)
    ours = gn.normalize(x, -1, method="RMS", epsilon=0, scaling=0.25, scaling_levels=(), dtype=dtype)
    agree_in(ours, in_keras(keras.layers.UnitNormalization(dtype=dtype), x, gn.layer_norm(16)), dtype)


# ----------------------------------------------------------------------------------------------------------------- ONNX


def model_of(operator, inputs, **attributes):
    """A model of one operator."""
    onnx = pytest.importorskip("onnx")
    helper, of = onnx.helper, onnx.TensorProto.FLOAT
    names = [f"input{i}" for i in range(len(inputs))]
    described = [helper.make_tensor_value_info(name, of, x.shape) for name, x in zip(names, inputs, strict=True)]
    node = helper.make_node(operator, names, ["output"], **attributes)
    output = helper.make_tensor_value_info("output", of, None)
    graph = helper.make_graph([node], "one operator", described, [output])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), names


def in_onnx_runtime(operator, inputs, **attributes):
    runtime = pytest.importorskip("onnxruntime")
    model, names = model_of(operator, inputs, **attributes)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["output"], dict(zip(names, inputs, strict=True)))[0]


def in_onnx_reference(operator, inputs, **attributes):
    """The answer of the definition that comes with ONNX."""
    pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    model, names = model_of(operator, inputs, **attributes)
    return ReferenceEvaluator(model).run(["output"], dict(zip(names, inputs, strict=True)))[0]


@pytest.mark.parametrize("axes", [(0, 2, 3), (2, 3), (1, 2, 3), (1,), (0, 1, 2, 3), (0,)])
@pytest.mark.parametrize("deviation", [1.0, 1e-6])
def test_onnx_mean_variance_normalization(axes, deviation):
    """Epsilon, 1e-9, is outside the root: slices of deviation 1e-6 are a thousandth smaller for it."""
    x = sample((3, 4, 5, 6), "float32") * np.float32(deviation)
    y = gn.normalize(x, list(axes), batched=True, epsilon=1e-9, epsilon_placement="outside")
    # Their E[x^2] - E[x]^2 in float32 costs them a few digits, and where a slice has three elements more.
    loose = 300 if axes == (0,) else 30
    agree(y, in_onnx_reference("MeanVarianceNormalization", [x], axes=list(axes)), "float32", loose=loose)
    if deviation == 1:  # ONNX Runtime leaves epsilon out
        agree(y, in_onnx_runtime("MeanVarianceNormalization", [x], axes=list(axes)), "float32", loose=loose)
    without = gn.normalize(x, list(axes), batched=True, epsilon=0)
    assert (np.abs(without - y).max() > 5e-4) == (deviation < 1)


@pytest.mark.parametrize("axis", [-1, 2, 1])
def test_onnx_layer_normalization(axis):
    x = sample((3, 4, 5, 6), "float32")
    sizes = x.shape[axis:]
    layer = gn.layer_norm(sizes, epsilon=1e-5)
    weight, bias = (p.numpy() for p in affine(layer))
    agree(layer(x), in_onnx_runtime("LayerNormalization", [x, weight, bias], axis=axis, epsilon=1e-5), "float32")


def test_onnx_instance_and_group_normalization():
    x = sample((3, 12, 5, 6), "float32")
    layer = gn.instance_norm(12, epsilon=1e-5)
    weight, bias = (p.numpy() for p in affine(layer))
    agree(layer(x), in_onnx_runtime("InstanceNormalization", [x, weight, bias], epsilon=1e-5), "float32")
    layer = gn.group_norm(4, 12, epsilon=1e-5)
    weight, bias = (p.numpy() for p in affine(layer))
    other = in_onnx_runtime("GroupNormalization", [x, weight, bias], num_groups=4, epsilon=1e-5)
    agree(layer(x), other, "float32")


# --------------------------------------------------------------------------------------------------------- scikit-learn


@both
def test_standard_scaler(dtype):
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    x = sample((50, 7), dtype) * np.arange(7, dtype=dtype)  # one feature is constant
    y = gn.normalize(x, 1, epsilon=0)
    agree(y, preprocessing.StandardScaler().fit_transform(x), dtype)
    agree(gn.batch_norm(7, epsilon=0)(x, training=True), y, dtype)


def test_vectors_of_length_one():
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    x = sample((50, 16))
    y = gn.normalize(x, 2, method="RMS", epsilon=0, scaling=0.25, scaling_levels=(), dtype="float64")
    agree(y, preprocessing.normalize(x), "float64")


# ---------------------------------------------------------------------------------------------------------- photographs


@pytest.fixture(scope="module")
def photographs():
    datasets = pytest.importorskip("sklearn.datasets")
    images = np.stack(datasets.load_sample_images().images)
    assert images.shape == (2, 427, 640, 3)
    assert images.dtype == np.uint8
    return images


LAYERS = [
    ("instance", lambda **others: gn.instance_norm(3, **others), lambda x: functional.instance_norm(x, eps=1e-3)),
    (
        "batch",
        lambda **others: gn.batch_norm(3, **others),
        lambda x: functional.batch_norm(x, None, None, training=True, eps=1e-3),
    ),
    ("group", lambda **others: gn.group_norm(1, 3, **others), lambda x: functional.group_norm(x, 1, eps=1e-3)),
]


@pytest.mark.parametrize(("name", "ours", "theirs"), LAYERS, ids=[name for name, *_ in LAYERS])
def test_photographs(photographs, name, ours, theirs):
    """Bytes with the channels last, as they are, against float64 with the channels first."""
    other = moved(numbers(theirs(torch.from_numpy(np.moveaxis(photographs, -1, 1).astype(np.float64)))), True)
    agree(ours(channel_level=-1)(photographs, training=True), other.astype(np.float32), "float32")
    single = photographs.astype(np.float32)
    agree(ours(channel_level=-1)(single, training=True), other.astype(np.float32), "float32")
    agree(ours(channel_level=-1)(photographs.astype(np.float64), training=True), other, "float64", loose=10)
    first = np.ascontiguousarray(np.moveaxis(single, -1, 1))
    agree(moved(ours()(first, training=True), True), other.astype(np.float32), "float32")


def test_lines_of_photographs(photographs):
    """Layer normalization of pixels and of lines, views that are crops and mirrors included."""
    x = photographs.astype(np.float32) / 255
    for view in (x, x[:, ::-1, :, ::-1], x[:, 10:-10, 5:-7], x[:, ::2, ::3]):
        tensor = torch.from_numpy(np.ascontiguousarray(view, np.float64))
        for levels, first in ((1, 3), (2, 2)):
            other = functional.layer_norm(tensor, view.shape[first:], eps=1e-3).numpy().astype(np.float32)
            agree(gn.layer_norm(view.shape[-levels:])(view), other, "float32")
