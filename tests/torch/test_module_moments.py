"""What the layer of the core does beside a call: measure, apply, inverse, adapt, parameters of a call, settings."""

import copy
import io
import pickle
import warnings

import numpy as np
import pytest

import gennorm as gn
from gennorm.errors import ConfigError, FrozenError, GennormError, ParameterError, UnknownNameError

torch = pytest.importorskip("torch")
pytest.importorskip("ml_dtypes")

from torch import nn  # noqa: E402

import gennorm.torch as gt  # noqa: E402

# Levels, settings, the shape of an input.
LAYERS = {
    "layer": ((-1, "Same"), {"input_shape": (3, 8)}, (4, 3, 8)),
    "RMS": ((-1, "Same"), {"input_shape": (3, 8), "method": "RMS"}, (4, 3, 8)),
    "unbiased": ((-1, "Same"), {"input_shape": (3, 8), "unbiased": True}, (4, 3, 8)),
    "groups": (("All", 1, {1: 2}), {"input_shape": (4, None), "batched": True}, (3, 4, 5)),
    "instance": ((2, 1), {"input_shape": (4, None), "batched": True}, (3, 4, 5)),
    "batch": (("{0, 2}", 1), {"input_shape": (4, None), "batched": True}, (3, 4, 5)),
    "groups of the batch": (("{0, 2}", 1, {0: 2}), {"input_shape": (4, None), "batched": True}, (6, 4, 5)),
    "outside": ((2, 1), {"input_shape": (4, None), "batched": True, "epsilon_placement": "outside"}, (3, 4, 5)),
}
layers = pytest.mark.parametrize("name", LAYERS)


def sample(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(name):
    """The module and the layer of the core with the same parameters, and an input."""
    arguments, settings, shape = LAYERS[name]
    module = gt.NormalizationLayer(*arguments, dtype="float64", **settings)
    with torch.no_grad():
        for seed, parameter in enumerate(module.parameters(), 5):
            parameter.copy_(sample(*parameter.shape, seed=seed) + 3)
    core = gn.NormalizationLayer(
        *arguments,
        scaling=module.weight.detach().numpy(),
        biases=module.bias.detach().numpy(),
        dtype="float64",
        **settings,
    )
    return module, core, sample(*shape) * 2 + 1


def close(found, expected, tolerance=1e-11):
    expected = torch.as_tensor(np.array(expected)) if not isinstance(expected, torch.Tensor) else expected
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@layers
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_measure(name, masked, grad):
    module, core, x = made(name)
    mask = sample(*x.shape, seed=3) < 0.5 if masked else None
    expected = core.measure(x.numpy(), None if mask is None else mask.numpy())
    found = module.measure(x.requires_grad_(grad), mask)
    assert type(found) is gt.Moments
    assert found.m2.requires_grad == grad
    for one, other in zip(found, (expected.count, expected.mean, expected.m2), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            close(one.detach(), other)
    if expected.mean is not None:
        close(found.variance().detach(), expected.variance())
        close(found.variance(unbiased=True).detach(), expected.variance(True))


@layers
def test_apply_and_inverse(name):
    """A prediction of one tensor is taken back by the moments of another."""
    module, core, x = made(name)
    moments = module.measure(x)
    close(module.apply(x, moments), module(x).detach())
    other = sample(*x.shape, seed=9)
    close(module.apply(other, moments), core.apply(other.numpy(), core.measure(x.numpy())))
    close(module.apply(other, moments.to_core()), module.apply(other, moments).detach())
    close(module.inverse(module(x), moments), x, 1e-9)
    close(module.inverse(other, moments), core.inverse(other.numpy(), core.measure(x.numpy())))
    pair = (None if moments.mean is None else moments.mean), moments.variance(module.config.unbiased)
    close(module.inverse(other, pair), module.inverse(other, moments).detach())


@layers
def test_derivatives_by_the_moments(name):
    module, _, x = made(name)
    moments = module.measure(x)

    def roundtrip(x, m2, weight):
        there = torch.func.functional_call(module, {"weight": weight}, (x,))
        mean = None if moments.mean is None else moments.mean
        return module.inverse(there, gt.Moments(moments.count, mean, m2)) + module.apply(x, module.measure(x))

    weight = module.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(
        roundtrip, (x.requires_grad_(), moments.m2.detach().requires_grad_(), weight), atol=1e-4, rtol=1e-3
    )


def test_reversible_instance_norm_in_a_model():
    """Forecasts of a series in its own units: the gradient goes through the moments too."""
    layer = gt.NormalizationLayer(2, 1, input_shape=(3, None), batched=True)
    linear = nn.Linear(12, 4)
    x = sample(5, 3, 12).float() * 10 + 1000
    with torch.no_grad():
        moments = layer.measure(x)
    forecast = layer.inverse(linear(layer.apply(x, moments)), moments)
    assert forecast.shape == (5, 3, 4)
    assert 900 < forecast.mean() < 1100
    forecast.sum().backward()
    assert layer.weight.grad is not None
    compiled = torch.compile(
        lambda x: layer.inverse(linear(layer.apply(x, layer.measure(x))), layer.measure(x)),
        backend="aot_eager",
        fullgraph=True,
    )
    torch.testing.assert_close(compiled(x), forecast)


# ------------------------------------------------------------------------------------------------ parameters of a call


@pytest.mark.parametrize("name", ["instance", "groups", "batch", "layer"])
@pytest.mark.parametrize("per_example", [False, True])
@pytest.mark.parametrize("road", ["kernels", "definition"])
@pytest.mark.parametrize("which", [("scaling",), ("biases",), ("scaling", "biases")], ids=str)
def test_parameters_of_a_call(name, per_example, road, which):
    shape = LAYERS[name][2]
    module, core, x = made(name)
    size = (len(x),) if per_example else ()
    passed = {key: sample(*size, *module.weight.shape, seed=i).requires_grad_() for i, key in enumerate(which)}
    dy = sample(*shape, seed=8)
    y, pullback = core.vjp(x.numpy(), **{key: value.detach().numpy() for key, value in passed.items()})
    expected = pullback(dy.numpy())
    x.requires_grad_()
    with torch.overrides.BaseTorchFunctionMode() if road == "definition" else torch.enable_grad():
        for _ in range(2):
            found = module(x, **passed)
            close(found.detach(), y)
            gradients = torch.autograd.grad(found, [x, *passed.values()], dy)
    for one, other in zip(gradients, [expected.input, *(getattr(expected, key) for key in which)], strict=True):
        close(one, other)
    close(module(x).detach(), core(x.detach().numpy()))  # the module's own parameters are used again


def test_parameters_of_a_call_for_styles():
    """Adaptive instance norm: the parameters of each example are computed by a network, and train it."""
    layer = gt.NormalizationLayer(2, 1, input_shape=(4, None), batched=True, scaling=None, biases=None)
    style = nn.Linear(6, 8)
    scaling, biases = style(torch.randn(3, 6)).chunk(2, -1)
    y = layer(sample(3, 4, 5).float(), scaling=scaling, biases=biases)
    torch.testing.assert_close(y.mean(2), biases)
    y.pow(2).sum().backward()
    assert style.weight.grad.abs().sum() > 0
    traced = torch.fx.symbolic_trace(Styled(layer))
    torch.testing.assert_close(
        traced(sample(3, 4, 5).float(), scaling), layer(sample(3, 4, 5).float(), scaling=scaling)
    )


class Styled(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, scaling):
        return self.layer(x, scaling=scaling)


# ------------------------------------------------------------------------------------------------------- held moments


def features(**settings):
    settings = {"epsilon_placement": "floor", "scaling": None, "biases": None, **settings}
    return gt.NormalizationLayer("{0, 1;;-2}", batched=True, statistics="dataset", **settings)


def test_adapting_goes_on():
    data = sample(60, 4, 3) * 3 + 7
    whole = features().adapt(data)
    parts = features()
    for batch in data.split([1, 20, 39]):
        parts.adapt(batch, reset=False)
    merged = features()
    merged.moments = features().adapt(data[:25]).moments + features().adapt(data[25:]).moments
    for one in (parts, merged):
        for name in ("count", "mean", "variance"):
            close(getattr(one, name), getattr(whole, name), 1e-13)
    close(whole.moments.mean, gn.feature_norm().adapt(data.numpy()).moments.mean)
    again = features()
    again.load_state_dict(whole.state_dict())
    again.adapt(data + 1, reset=False)
    assert again.count.tolist() == [480.0] * 3


def test_a_state_dict_without_a_count():
    old = {"mean": torch.tensor([1.0, 2.0]), "variance": torch.tensor([4.0, 9.0])}
    layer = features().adapt(sample(5, 2))
    layer.load_state_dict(old)
    assert layer.count is None
    torch.testing.assert_close(layer(torch.tensor([[3.0, 5.0]])), torch.tensor([[1.0, 1.0]]))
    with pytest.raises(ParameterError, match="without their count"):
        layer.adapt(torch.zeros(1, 2), reset=False)
    assert layer.adapt(torch.zeros(3, 2)).count.tolist() == [3.0, 3.0]
    moving = gt.NormalizationLayer(0, 1, input_shape=(2,), batched=True, statistics="moving")
    moving.load_state_dict({**old, "weight": torch.ones(2), "bias": torch.zeros(2)})
    torch.testing.assert_close(moving.eval()(torch.tensor([[3.0, 5.0]])), torch.tensor([[1.0, 1.0]]), rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_are_exact(dtype):
    """Unix times, and a mean that is a million deviations away."""
    x = (sample(500, 2) + 1.7e9).to(dtype) if dtype is torch.float64 else (sample(500, 2) + 1e6).to(dtype)
    expected = (x.double() - x.double().mean(0)) / x.double().std(0, unbiased=False)
    layer = features().adapt(x)
    layer = layer.half().float()  # the moments stay float64
    torch.testing.assert_close(layer(x).double(), expected, rtol=0, atol=1e-6)
    moving = gt.NormalizationLayer(
        0, (), batched=True, input_shape=(2,), statistics="moving", momentum=0.0, epsilon=0.0
    )
    moving = moving.to(dtype)
    moving(x)
    torch.testing.assert_close(moving.eval()(x).double().detach(), expected, rtol=0, atol=1e-6)


def test_moments_can_be_set_and_reset():
    layer = features()
    assert layer.moments is None
    layer.moments = gn.Moments.from_variance([1.0], [4.0], 10)
    assert layer.moments.to_core() == gn.Moments.from_variance([1.0], [4.0], 10)
    layer.moments = None
    assert layer.moments is None
    moving = gt.NormalizationLayer(0, 1, input_shape=(2,), batched=True, statistics="moving")
    mean = moving.mean
    moving(sample(4, 2).float() + 5)
    assert moving.batches.item() == 1
    moving.moments = gn.Moments.from_variance([5.0, 6.0], [1.0, 4.0])
    assert moving.mean is mean
    assert mean.tolist() == [5.0, 6.0]
    assert moving.reset_moments() is moving
    assert mean.tolist() == [0.0, 0.0]
    assert moving.batches.item() == 0
    assert moving.moments.variance().tolist() == [1.0, 1.0]
    with pytest.raises(ConfigError):
        gt.NormalizationLayer(-1, (), scaling=None, biases=None).moments = gn.Moments.from_variance(0.0, 1.0)


def test_update_bn_finds_the_layer():
    """The moments after it are those of all batches together, each of which counts the same."""
    layer = gt.NormalizationLayer(
        "{0, 2;;All}", 1, input_shape=(3, ...), batched=True, statistics="moving", momentum=0.9
    )
    theirs = nn.BatchNorm1d(3)
    loader = [sample(4, 3, 5, seed=seed).float() + seed for seed in range(4)]
    layer(loader[0] * 100)
    models = nn.Sequential(layer).eval(), nn.Sequential(theirs).eval()
    for model in models:
        torch.optim.swa_utils.update_bn(loader, model)
        assert not model.training
    close(layer.mean.float(), theirs.running_mean, 1e-6)
    biased = torch.stack([x.double().var((0, 2), unbiased=False) for x in loader]).mean(0)
    close(layer.variance, biased, 1e-6)
    assert layer.momentum == 0.9
    before = layer.mean.clone()
    layer.train()(loader[0])
    close(layer.mean, 0.9 * before + 0.1 * loader[0].double().mean((0, 2)), 1e-6)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_moving_layer_stays_one(copied):
    layer = gt.NormalizationLayer(0, 1, input_shape=(2,), batched=True, statistics="moving")
    layer.momentum = 0.5
    other = copied(layer)
    assert isinstance(other, gt.NormalizationLayer)
    assert isinstance(other, nn.modules.batchnorm._BatchNorm)
    assert (
        repr(other)
        == repr(layer)
        == ("NormalizationLayer(0, 1, input_shape=(2,), batched=True, statistics='moving', momentum=0.5)")
    )
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    assert torch.load(stream, weights_only=False).momentum == 0.5
    with pytest.raises(UnknownNameError, match="synchronized=True"):
        nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(layer))


# ------------------------------------------------------------------------------------------------------------ settings


def test_settings_can_be_assigned():
    module, core, x = made("instance")
    for name, value in {"epsilon": 0.5, "epsilon_placement": "floor", "unbiased": True}.items():
        setattr(module, name, value)
        setattr(core, name, value)
        assert getattr(module, name) == value
        close(module(x).detach(), core(x.numpy()))
    with pytest.raises(GennormError):
        module.epsilon = -1.0
    assert module.epsilon == 0.5
    moving = gt.NormalizationLayer(0, 1, input_shape=(2,), batched=True, statistics="moving")
    moving.momentum = 0.0
    moving(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert moving.mean.tolist() == [2.0, 3.0]
    moving.trainable = False
    moving(torch.zeros(2, 2))
    assert moving.mean.tolist() == [2.0, 3.0]


@pytest.mark.parametrize(
    "name", ["aggregation_levels", "scaling_levels", "group_number", "method", "input_shape", "batched", "statistics"]
)
def test_settings_that_cannot_be_assigned(name):
    module, core, _ = made("groups")
    assert getattr(module, name) == getattr(core, name)
    with pytest.raises(FrozenError):
        setattr(module, name, getattr(module, name))


@pytest.mark.parametrize(
    ("multipliers", "rates"), [(None, (0.1, 0.1)), (2.0, (0.2, 0.2)), ({"biases": 0.0}, (0.1, 0.0))]
)
def test_parameter_groups(multipliers, rates):
    layer = gt.NormalizationLayer(-1, "Same", input_shape=(4,), learning_rate_multipliers=multipliers)
    groups = layer.parameter_groups(0.1)
    assert [group["lr"] for group in groups] == pytest.approx(rates)
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    optimizer = torch.optim.SGD(groups, lr=99.0)
    layer(torch.randn(3, 4)).pow(3).sum().backward()
    optimizer.step()
    for parameter, old, rate in zip(layer.parameters(), before, rates, strict=True):
        torch.testing.assert_close(parameter.detach(), old - rate * parameter.grad)


def test_reset_parameters_after_meta():
    with torch.device("meta"):
        layer = gt.NormalizationLayer(0, 1, input_shape=(2,), batched=True, statistics="moving")
    layer = layer.to("meta").to_empty(device="cpu")
    layer.reset_parameters()
    assert layer.weight.tolist() == [1.0, 1.0]
    assert layer.variance.tolist() == [1.0, 1.0]
    assert layer.variance.dtype is torch.float64


# ------------------------------------------------------------------------------------------------------------- folding

FOLDED = {
    "linear": (lambda: nn.Linear(3, 4), (5, 3)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 2), (5, 3, 6)),
    "conv2d": (lambda: nn.Conv2d(4, 4, 2, groups=2, bias=False), (5, 4, 6, 6)),
    "conv3d": (lambda: nn.Conv3d(3, 4, 2), (2, 3, 3, 3, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 4, 2, groups=2), (5, 6, 3, 3)),
}
NORMS = {
    "batch norm": lambda: nn.BatchNorm2d(4),
    "drop-in": lambda: gt.BatchNorm2d(4),
    "moving": lambda: gt.NormalizationLayer("{0, 2;;All}", 1, input_shape=(4, ...), batched=True, statistics="moving"),
    "RMS": lambda: gt.NormalizationLayer(
        "{0, 2;;All}", 1, method="RMS", biases=None, input_shape=(4, ...), batched=True, statistics="moving"
    ),
    "groups": lambda: gt.NormalizationLayer(
        "{0, 1, 2;;All}",
        1,
        {1: 2},
        input_shape=(4, ...),
        batched=True,
        statistics="moving",
        epsilon_placement="outside",
    ),
    "data set": lambda: gt.NormalizationLayer(
        "{0, 2;;All}", 1, input_shape=(4, ...), batched=True, statistics="dataset", epsilon_placement="floor"
    ),
}


@pytest.mark.parametrize("before", FOLDED)
@pytest.mark.parametrize("after", NORMS)
def test_fold(before, after):
    make, shape = FOLDED[before]
    layer, norm = make(), NORMS[after]()
    x = sample(*shape).float() * 3 + 2
    y = layer(x).detach()
    if after == "data set":
        norm.adapt(y)
    elif isinstance(norm, nn.BatchNorm2d):
        norm.running_mean.copy_(sample(4, seed=1) + 2)
        norm.running_var.copy_(sample(4, seed=2) ** 2)
    else:
        norm(y)
    for seed, parameter in enumerate(norm.parameters(), 5):
        parameter.data = sample(*parameter.shape, seed=seed).float()
    norm.eval()
    if isinstance(norm, nn.BatchNorm2d):
        expected = nn.functional.batch_norm(
            y, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )
    else:
        expected = norm(y)
    folded = gt.fold(layer, norm)
    assert type(folded) is type(layer)
    assert folded is not layer
    torch.testing.assert_close(folded(x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer(x), y)


def test_torch_s_own_fusers():
    """They fold drop-in classes too: directly, or where the fuser is given the pair of classes."""
    layer, norm = nn.Conv2d(3, 4, 2).eval(), gt.BatchNorm2d(4)
    x = sample(5, 3, 6, 6).float()
    norm(layer(x))
    model = nn.Sequential(layer, norm.eval())
    expected = model(x)
    torch.testing.assert_close(nn.utils.fusion.fuse_conv_bn_eval(layer, norm)(x), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises((NotImplementedError, AssertionError), match="fuse"):
            torch.ao.quantization.fuse_modules(model, ["0", "1"])
        pair = {(nn.Conv2d, gt.BatchNorm2d): torch.ao.quantization.fuse_conv_bn}
        fused = torch.ao.quantization.fuse_modules(
            model, ["0", "1"], fuse_custom_config_dict={"additional_fuser_method_mapping": pair}
        )
    torch.testing.assert_close(fused(x), expected)
