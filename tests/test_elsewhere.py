"""Layers of other libraries, read from their arguments, compute what those libraries compute."""

import warnings

import numpy as np
import pytest

import gennorm as gn
from tests.frameworks import torch

RNG = np.random.default_rng(5)


def sample(*shape, dtype="float32"):
    return RNG.normal(0.5, 1.5, shape).astype(dtype)


def close(y, other):
    assert y.dtype == other.dtype
    np.testing.assert_allclose(y, other, rtol=0, atol=5e-6 * max(1, np.abs(other).max()))


def with_values(layer, shape):
    """Give a layer parameters that differ, for inputs of a shape."""
    layer.initialize(shape)
    for name in ("scaling", "biases"):
        value = getattr(layer, name)
        if value is not None:
            setattr(layer, name, sample(*value.shape))
    return layer


# --------------------------------------------------------------------------------------------------------------- torch

TORCH = [
    ("LayerNorm", (5,), {}, (3, 4, 5)),
    ("LayerNorm", ((4, 5),), {"eps": 1e-2, "bias": False}, (3, 4, 5)),
    ("LayerNorm", (5, 1e-3, False), {}, (3, 4, 5)),
    ("RMSNorm", (5,), {}, (3, 4, 5)),
    ("RMSNorm", (5, 0.1), {"elementwise_affine": False}, (3, 4, 5)),
    ("GroupNorm", (2, 6), {}, (3, 6, 4, 5)),
    ("GroupNorm", (3, 6), {"affine": False, "eps": 0.1}, (3, 6, 4)),
    ("BatchNorm1d", (6,), {}, (9, 6)),
    ("BatchNorm1d", (6,), {"momentum": 0.3}, (9, 6, 4)),
    ("BatchNorm2d", (6, 1e-2, 0.25), {"bias": False}, (3, 6, 4, 5)),
    ("BatchNorm2d", (6,), {"track_running_stats": False}, (3, 6, 4, 5)),
    ("BatchNorm3d", (6,), {"affine": False}, (3, 6, 2, 4, 5)),
    ("InstanceNorm1d", (6,), {}, (3, 6, 8)),
    ("InstanceNorm2d", (6,), {"affine": True}, (3, 6, 4, 5)),
    ("InstanceNorm2d", (6,), {"affine": True, "bias": False, "eps": 0.1}, (3, 6, 4, 5)),
    ("InstanceNorm2d", (6,), {"track_running_stats": True, "momentum": 0.5}, (3, 6, 4, 5)),
]


@pytest.mark.parametrize(("kind", "arguments", "keywords", "shape"), TORCH)
@pytest.mark.parametrize("as_class", [False, True])
def test_torch(kind, arguments, keywords, shape, as_class):
    class_ = getattr(torch.nn, kind)
    layer = with_values(gn.from_torch(class_ if as_class else kind, *arguments, **keywords), shape)
    module = class_(*arguments, **keywords)
    assert (module.weight is None) == (layer.scaling is None)
    assert (getattr(module, "bias", None) is None) == (layer.biases is None)
    for name, value in (("weight", layer.scaling), ("bias", layer.biases)):
        if value is not None:
            setattr(module, name, torch.nn.Parameter(torch.from_numpy(value.copy())))
    x = sample(*shape)
    close(layer(x, training=True), module(torch.from_numpy(x)).detach().numpy())
    mean = getattr(module, "running_mean", None)
    assert (mean is None) == (layer.moments is None)
    if mean is not None:
        np.testing.assert_allclose(layer.moments.mean, mean.numpy(), atol=1e-6)


def test_torch_s_epsilon_of_rms_norm():
    assert gn.from_torch("RMSNorm", 4).epsilon == torch.finfo(torch.float32).eps
    double = gn.from_torch("RMSNorm", 4, dtype=torch.float64)
    assert (double.epsilon, double.information("dtype")) == (torch.finfo(torch.float64).eps, "float64")
    assert gn.from_torch("RMSNorm", 4, dtype=torch.bfloat16).epsilon == torch.finfo(torch.float32).eps


def test_torch_s_layers_of_a_rank_take_that_rank():
    for kind, rank in (("BatchNorm2d", 4), ("BatchNorm3d", 5)):
        layer = gn.from_torch(kind, 6)
        for other in {2, 3, 4, 5, 6} - {rank}:
            with pytest.raises(gn.errors.ShapeError):
                layer(sample(2, 6, *[3] * (other - 2)), training=True)


# --------------------------------------------------------------------------------------------------------------- Keras


@pytest.fixture(scope="module")
def keras():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("keras")


KERAS = [
    ("LayerNormalization", {}, (3, 4, 5)),
    ("LayerNormalization", {"axis": [1, 3], "epsilon": 1e-2}, (3, 4, 5, 2)),
    ("LayerNormalization", {"axis": (-2, -1), "scale": False}, (3, 4, 5)),
    ("LayerNormalization", {"axis": 2, "center": False, "name": "own"}, (3, 4, 5)),
    ("BatchNormalization", {}, (3, 4, 5, 6)),
    ("BatchNormalization", {"axis": 1, "momentum": 0.8, "epsilon": 0.1}, (3, 4, 5, 6)),
    ("BatchNormalization", {"center": False, "scale": False}, (9, 4)),
    ("BatchNormalization", {"trainable": False}, (9, 4)),
    ("GroupNormalization", {"groups": 2}, (3, 4, 5, 6)),
    ("GroupNormalization", {"groups": 2, "axis": 1, "scale": False}, (3, 4, 5, 6)),
    ("GroupNormalization", {"groups": -1}, (3, 4, 5, 6)),
    ("RMSNormalization", {}, (3, 4, 5)),
    ("RMSNormalization", {"axis": (1, 2), "epsilon": 0.1}, (3, 4, 5)),
    ("Normalization", {"mean": [1.0, 2.0], "variance": [3.0, 0.0]}, (3, 4, 2)),
    ("Normalization", {"axis": None, "mean": 1.0, "variance": 4.0}, (3, 4, 2)),
    ("Normalization", {"axis": (1, 2), "mean": np.ones((4, 2)), "variance": np.ones((4, 2))}, (3, 4, 2)),
]


@pytest.mark.parametrize(("kind", "keywords", "shape"), KERAS)
@pytest.mark.parametrize("how", ["arguments", "config", "serialized"])
def test_keras(keras, kind, keywords, shape, how):
    theirs = getattr(keras.layers, kind)(**keywords)
    if how == "arguments":
        layer = gn.from_keras(type(theirs), **keywords)
    elif how == "config":
        layer = gn.from_keras(kind, **theirs.get_config())
    else:
        layer = gn.from_keras(keras.layers.serialize(theirs))
    theirs.build(shape)
    with_values(layer, shape)
    for value, names in ((layer.scaling, ("gamma", "scale")), (layer.biases, ("beta",))):
        variables = [getattr(theirs, name, None) for name in names]
        variables = [one for one in variables if hasattr(one, "assign")]
        assert len(variables) == (value is not None)
        for one in variables:
            one.assign(value.reshape(one.shape))
    x = sample(*shape)
    call = {"training": True} if kind == "BatchNormalization" else {}
    close(layer(x, **call), keras.ops.convert_to_numpy(theirs(x, **call)))
    if kind == "BatchNormalization":
        np.testing.assert_allclose(layer.moments.mean, keras.ops.convert_to_numpy(theirs.moving_mean), atol=1e-6)
        np.testing.assert_allclose(
            layer.moments.variance(), keras.ops.convert_to_numpy(theirs.moving_variance), rtol=1e-5
        )


def test_policies_of_keras():
    policy = {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "mixed_bfloat16"}}
    assert gn.from_keras("LayerNormalization", dtype=policy).information("dtype") == "float32"
    assert gn.from_keras("LayerNormalization", dtype="float16").information("dtype") == "float16"


# ---------------------------------------------------------------------------------------------------------------- Flax

FLAX = [
    ("LayerNorm", {}, (3, 4, 5)),
    ("LayerNorm", {"reduction_axes": (1, 2), "feature_axes": 3, "epsilon": 1e-2}, (2, 3, 4, 5)),
    ("LayerNorm", {"reduction_axes": (1, -1), "feature_axes": (2,), "use_bias": False}, (2, 3, 4, 5)),
    ("LayerNorm", {"reduction_axes": (2, 1), "feature_axes": (3, 1)}, (2, 3, 4, 5)),
    ("LayerNorm", {"reduction_axes": (0, 1), "use_scale": False, "use_bias": False}, (2, 3, 4)),
    ("RMSNorm", {}, (3, 4, 5)),
    ("RMSNorm", {"reduction_axes": (-2, -1), "use_scale": False}, (3, 4, 5)),
    ("GroupNorm", {"num_groups": 2}, (3, 4, 5, 6)),
    ("GroupNorm", {"num_groups": 3, "reduction_axes": (2, -1), "use_bias": False}, (3, 4, 5, 6)),
    ("InstanceNorm", {}, (3, 4, 5, 6)),
    ("InstanceNorm", {"feature_axes": (1, 3)}, (3, 4, 5, 6)),
    ("BatchNorm", {"use_running_average": False}, (3, 4, 5, 6)),
    ("BatchNorm", {"axis": 1, "momentum": 0.8, "use_running_average": False}, (3, 4, 5, 6)),
    ("BatchNorm", {"use_running_average": True}, (3, 4, 5, 6)),
]


@pytest.mark.parametrize(("kind", "keywords", "shape"), FLAX)
def test_flax(kind, keywords, shape):
    jax = pytest.importorskip("jax")
    linen = pytest.importorskip("flax.linen")
    theirs = getattr(linen, kind)(**keywords, use_fast_variance=False)
    layer = with_values(gn.from_flax(type(theirs), **keywords), shape)
    x = sample(*shape)
    variables = theirs.init(jax.random.key(0), x)
    given = {"scale": layer.scaling, "bias": layer.biases}
    given = {name: value for name, value in given.items() if value is not None}
    assert {name: value.shape for name, value in variables.get("params", {}).items()} == {
        name: value.shape for name, value in given.items()
    }
    y, changed = theirs.apply({**variables, "params": given}, x, mutable=["batch_stats"])
    close(layer(x, training=True), np.asarray(y))
    if "batch_stats" in variables:
        changed = {**variables["batch_stats"], **changed.get("batch_stats", {})}
        np.testing.assert_allclose(layer.moments.mean, changed["mean"], atol=1e-6)
        np.testing.assert_allclose(layer.moments.variance(), changed["var"], rtol=1e-5)


def test_the_number_of_features_of_nnx_declares_the_shape():
    for arguments, keywords, shape in [
        (("LayerNorm", 8), {}, (..., 8)),
        (("LayerNorm", 8), {"reduction_axes": (1, 2), "feature_axes": 1}, (8, ...)),
        (("RMSNorm", 8), {"feature_axes": -2, "reduction_axes": -2}, (..., 8, None)),
        (("GroupNorm", 8), {"num_groups": None, "group_size": 2}, (..., 8)),
        (("InstanceNorm", 8), {}, (..., 8)),
    ]:
        layer = gn.from_flax(*arguments, **keywords)
        assert layer.information("input_shape") == shape
        assert layer.initialized
    assert gn.from_flax("GroupNorm", 8, num_groups=None, group_size=2).group_number == {-1: 4}


# ---------------------------------------------------------------------------------------------------------------- ONNX

ONNX = [
    ("LayerNormalization", {}, (3, 4, 5)),
    ("LayerNormalization", {"axis": 1, "epsilon": 1e-2}, (3, 4, 5)),
    ("LayerNormalization", {"axis": -2}, (3, 4, 5)),
    ("GroupNormalization", {"num_groups": 2}, (3, 6, 4, 5)),
    ("InstanceNormalization", {"epsilon": 1e-2}, (3, 6, 4, 5)),
    ("BatchNormalization", {"epsilon": 1e-2}, (3, 6, 4, 5)),
    ("MeanVarianceNormalization", {}, (3, 6, 4, 5)),
    ("MeanVarianceNormalization", {"axes": [1, 2]}, (3, 6, 4, 5)),
    ("RMSNormalization", {"axis": 1}, (3, 4, 5)),
]


@pytest.mark.parametrize(("kind", "attributes", "shape"), ONNX)
def test_onnx(kind, attributes, shape):
    onnx = pytest.importorskip("onnx")
    reference = pytest.importorskip("onnx.reference")
    layer = with_values(gn.from_onnx(kind, **attributes), shape)
    x = sample(*shape)
    inputs = [x, *(value for value in (layer.scaling, layer.biases) if value is not None)]
    if kind == "BatchNormalization":
        layer.moments = gn.Moments.from_variance(sample(6), sample(6) ** 2)
        inputs += [layer.moments.mean.astype(np.float32), layer.moments.variance().astype(np.float32)]
    names = [f"input{i}" for i in range(len(inputs))]
    of = onnx.TensorProto.FLOAT
    described = [onnx.helper.make_tensor_value_info(n, of, i.shape) for n, i in zip(names, inputs, strict=True)]
    node = onnx.helper.make_node(kind, names, ["y"], **attributes)
    graph = onnx.helper.make_graph([node], "one", described, [onnx.helper.make_tensor_value_info("y", of, None)])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)])
    (y,) = reference.ReferenceEvaluator(model).run(["y"], dict(zip(names, inputs, strict=True)))
    close(layer(x), y)


# -------------------------------------------------------------------------------------------------------- written again

LIBRARIES = {"torch": (TORCH, gn.from_torch, gn.to_torch), "keras": (KERAS, gn.from_keras, gn.to_keras)}
LIBRARIES |= {"flax": (FLAX, gn.from_flax, gn.to_flax), "onnx": (ONNX, gn.from_onnx, gn.to_onnx)}


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_is_read_is_written_again(library):
    table, read, write = LIBRARIES[library]
    for kind, *arguments, keywords, shape in table:
        if kind == "BatchNorm1d":  # takes two ranks, and the layer any
            continue
        layer = read(kind, *(arguments[0] if arguments else ()), **keywords).initialize(shape)
        found = write(layer)
        again = read(found.kind, **found.arguments)
        x = sample(*shape)
        if layer.moments is not None:
            layer.moments = again.initialize(shape).moments = gn.Moments.from_variance(1.5, 4.0)
        np.testing.assert_array_equal(again.initialize(shape)(x), layer(x))
        assert eval(str(found).replace(f"{found.library}.{found.kind}", "dict")) == found.arguments


WRITTEN = {
    "torch": {
        "LayerNorm": gn.layer_norm((4, 8)),
        "RMSNorm": gn.rms_norm(8),
        "GroupNorm": gn.group_norm(4, 8),
        "BatchNorm1d": gn.batch_norm(8, spatial_levels=1),
        "BatchNorm2d": gn.batch_norm(8, spatial_levels=2, momentum=0.6),
        "InstanceNorm3d": gn.instance_norm(8, spatial_levels=3, biases=None),
    },
    "keras": {
        "LayerNormalization": gn.layer_norm((4, 8)),
        "RMSNormalization": gn.rms_norm(8),
        "GroupNormalization": gn.instance_norm(8),
        "BatchNormalization": gn.batch_norm(8),
        "Normalization": gn.feature_norm((1, -1)),
    },
    "flax": {
        "LayerNorm": gn.NormalizationLayer(1, "{2, 3}", input_shape=(2, 3, 4), batched=True),
        "RMSNorm": gn.NormalizationLayer(1, 1, method="RMS", biases=None, input_shape=(2, 3), batched=True),
        "GroupNorm": gn.NormalizationLayer("2;;All", -1, {-1: 2}, input_shape=(5, 3, 4), batched=True),
        "BatchNorm": gn.batch_norm(8),
    },
    "onnx": {
        "LayerNormalization": gn.layer_norm(8, biases=None),
        "RMSNormalization": gn.rms_norm(8),
        "GroupNormalization": gn.group_norm(4, 8),
        "InstanceNormalization": gn.instance_norm(8, epsilon=0.1),
        "BatchNormalization": gn.batch_norm(8, spatial_levels=2),
        "MeanVarianceNormalization": gn.NormalizationLayer(
            "0;;1", (), epsilon=1e-9, epsilon_placement="outside", scaling=None, biases=None, batched=True
        ),
    },
}


@pytest.mark.parametrize(("library", "kind"), [(library, kind) for library, kinds in WRITTEN.items() for kind in kinds])
def test_written(library, kind):
    found = LIBRARIES[library][2](WRITTEN[library][kind])
    assert found.kind == kind
    assert found.library.split(".")[0] == library
