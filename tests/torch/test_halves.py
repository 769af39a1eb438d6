"""The two halves of a normalization: `measure`, and `apply` by moments that may have been changed in between.

Both have derivatives by everything that goes in. The outside oracle is the formula in torch's own operations, and
finite differences for the derivatives of any order.
"""

import numpy as np
import pytest

import gennorm as gn
from gennorm import definition
from gennorm.errors import GennormError, ParameterError

torch = pytest.importorskip("torch")
pytest.importorskip("ml_dtypes")

import gennorm.torch as gt  # noqa: E402

CHANNELS = {"input_shape": (2, None), "batched": True}
# Levels and groups, settings, the shape of an input, the axes of its statistics after it was split as shown.
LAYERS = {
    "layer": ((-1, "Same"), {"input_shape": (2, 4)}, (2, 2, 4), None, (2,)),
    "RMS": ((-1, "Same"), {"input_shape": (2, 4), "method": "RMS"}, (2, 2, 4), None, (2,)),
    "unbiased": ((-1, "Same"), {"input_shape": (2, 4), "unbiased": True}, (2, 2, 4), None, (2,)),
    "groups": (("All", 1, {1: 2}), {"input_shape": (4, None), "batched": True}, (2, 4, 3), (2, 2, 2, 3), (2, 3)),
    "batch": (("{0, 2}", 1), CHANNELS, (3, 2, 2), None, (0, 2)),
    "ghost": (("{0, 2}", 1, {0: 2}), CHANNELS, (4, 2, 2), (2, 2, 2, 2), (1, 3)),
    "outside": ((2, 1), {**CHANNELS, "epsilon_placement": "outside"}, (2, 2, 3), None, (2,)),
    "floor": ((2, 1), {**CHANNELS, "epsilon_placement": "floor"}, (2, 2, 3), None, (2,)),
}
layers = pytest.mark.parametrize("name", LAYERS)


def sample(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(name, **others):
    arguments, settings, shape, *_ = LAYERS[name]
    module = gt.NormalizationLayer(*arguments, dtype="float64", **{**settings, **others})
    with torch.no_grad():
        for seed, parameter in enumerate(module.parameters(), 5):
            parameter.copy_(sample(*parameter.shape, seed=seed) + 3)
    return module, sample(*shape) * 2 + 1


def formula(name, module, x, mean, variance, weight, bias):
    """The output by given moments, in torch's operations; mean and variance broadcast to the split array."""
    _, settings, shape, split, _ = LAYERS[name]
    values = x if split is None else x.reshape(split)
    epsilon = module.epsilon
    placement = settings.get("epsilon_placement", "inside")
    root = {
        "inside": (variance + epsilon).sqrt,
        "outside": lambda: variance.sqrt() + epsilon,
        "floor": lambda: variance.sqrt().clamp(min=epsilon),
    }[placement]()
    z = ((values if mean is None else values - mean) / root).reshape(shape)
    parameters = (one if name in ("layer", "RMS", "unbiased") else one[:, None] for one in (weight, bias))
    scaling, biases = parameters
    return z * scaling + biases


def measured(name, x):
    """Mean and variance, with the aggregated axes kept, in torch's operations."""
    _, settings, _, split, over = LAYERS[name]
    values = x if split is None else x.reshape(split)
    if settings.get("method") == "RMS":
        return None, (values**2).mean(over, keepdim=True)
    return values.mean(over, keepdim=True), values.var(over, correction=settings.get("unbiased", 0), keepdim=True)


def given(name, module, x):
    """Moments that are not those of `x`, with a gradient: as the module takes them and as the formula does."""
    moments = module.measure(x * 3 - 1).detach()
    mean = None if moments.mean is None else moments.mean.requires_grad_()
    variance = moments.variance(module.unbiased).requires_grad_()
    over = LAYERS[name][4]
    shown = [None if one is None else one.reshape(measured(name, x)[1].shape) for one in (mean, variance)]
    assert over
    return (mean, variance), shown


@layers
def test_both_halves_are_the_whole(name):
    """`apply` by what `measure` returned is the layer, and so is its gradient, which the layer takes by kernels."""
    module, x = made(name)
    dy = sample(*x.shape, seed=8)
    x.requires_grad_()
    inputs = [x, *module.parameters()]
    whole = module(x)
    halves = module.apply(x, module.measure(x))
    torch.testing.assert_close(halves, whole, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(halves, formula(name, module, x, *measured(name, x), module.weight, module.bias))
    for one, other in zip(torch.autograd.grad(halves, inputs, dy), torch.autograd.grad(whole, inputs, dy), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@layers
def test_gradients_by_moments(name):
    """Against the derivatives that torch takes of the formula, by the input, the moments and the parameters."""
    module, x = made(name)
    pair, shown = given(name, module, x)
    x.requires_grad_()
    inputs = [x, *(one for one in pair if one is not None), *module.parameters()]
    dy = sample(*x.shape, seed=8)
    found = module.apply(x, pair)
    expected = formula(name, module, x, *shown, module.weight, module.bias)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(found, inputs, dy)
    for one, other in zip(gradients, torch.autograd.grad(expected, inputs, dy), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
        assert one.abs().sum() > 0


@layers
def test_gradients_of_moments(name):
    """Mean and variance against torch's own, with a gradient for each."""
    module, x = made(name)
    x.requires_grad_()
    moments = module.measure(x)
    mean, variance = measured(name, x)
    weights = sample(*variance.shape, seed=3), sample(*variance.shape, seed=4)
    expected = (variance * weights[1]).sum()
    found = (moments.variance(module.unbiased).reshape(variance.shape) * weights[1]).sum()
    if mean is not None:
        expected = expected + (mean * weights[0]).sum()
        found = found + (moments.mean.reshape(mean.shape) * weights[0]).sum()
    torch.testing.assert_close(*(torch.autograd.grad(one, x)[0] for one in (found, expected)), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["layer", "RMS", "ghost", "outside"])
def test_second_order(name):
    """Finite differences of the halves, with moments changed in between, and of their gradients."""
    module, x = made(name)

    moments = module.measure(x * 2 + 1)
    other = gt.Moments.from_variance(moments.mean, moments.variance())

    def run(x, weight, share):
        moments = module.measure(x)
        mixed = moments.mixed(other, share, between=True).pooled(0, spread=True) + moments
        return torch.func.functional_call(Applied(module), {"layer.weight": weight}, (x, mixed))

    inputs = [x, module.weight.detach().clone(), torch.tensor(0.3).double()]
    for one in inputs:
        one.requires_grad_()
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


class Applied(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, moments):
        return self.layer.apply(x, moments)


def test_gradients_of_the_algebra():
    """By counts, means, second moments and shares; also at the ends of a share, and with a slice of nothing."""
    counts = torch.tensor([[3.0, 1.0], [2.0, 5.0]]).double().requires_grad_()
    means, squares = sample(2, 2, seed=1).requires_grad_(), (sample(2, 2, seed=2) ** 2 + 0.1).requires_grad_()
    share = torch.tensor([0.2, 0.7]).double().requires_grad_()

    def run(counts, means, squares, share):
        one, other = gt.Moments(counts, means, squares), gt.Moments.from_variance(means * 2, squares, counts + 1)
        found = one.mixed(other, share, between=True).pooled(1) + one.mixed(other, share).pooled(0, groups=2).pooled(1)
        return found.mean, found.variance(), found.mean_square(), one.pooled(1, groups=2, spread=True).m2

    assert torch.autograd.gradcheck(run, (counts, means, squares, share))
    assert torch.autograd.gradgradcheck(run, (counts, means, squares, share))
    ends = torch.tensor([0.0, 1.0]).double().requires_grad_()
    one, other = gt.Moments.from_variance(means, squares), gt.Moments.from_variance(means + 2, squares * 3)
    slope = torch.autograd.grad(one.mixed(other, ends, between=True).variance().sum(), ends)[0]
    expected = (2 * squares + 4 * (1 - 2 * ends)).sum(0)
    torch.testing.assert_close(slope, expected)
    empty = gt.Moments(torch.zeros(2).double(), torch.zeros(2).double(), torch.zeros(2).double())
    for found in (empty.mixed(empty, ends), one.pooled(0).mixed(empty, ends), empty.pooled(0, spread=True)):
        slopes = torch.autograd.grad(
            found.mean.sum() + found.variance().sum() + 0 * (means + squares).sum(), [means, squares]
        )
        assert all(slope.isfinite().all() for slope in slopes)


# ------------------------------------------------------------------------------------------------- kernels, transforms


@layers
def test_kernels_where_moments_have_no_gradient(name, monkeypatch):
    """The definition is not called, also where input and parameters have a gradient; the values are the same."""
    module, x = made(name)
    pair, _ = given(name, module, x)
    x.requires_grad_()
    inputs, dy = [x, *module.parameters()], sample(*x.shape, seed=8)
    expected = module.apply(x, pair)
    slopes = torch.autograd.grad(expected, inputs, dy)
    constants = tuple(None if one is None else one.detach() for one in pair)
    if name != "ghost":  # the moments of kernels have no axis for groups of the batch
        monkeypatch.setattr(definition, "normalize", None)
    found = module.apply(x, constants)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for one, other in zip(torch.autograd.grad(found, inputs, dy), slopes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
    with torch.no_grad():
        torch.testing.assert_close(module.apply(x, pair), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_dtypes(dtype, tolerance):
    """The output has the input's dtype, and the moments are float64."""
    module = gt.NormalizationLayer(2, 1, input_shape=(2, None), batched=True).to(dtype)
    x = sample(3, 2, 16).to(dtype).requires_grad_()
    moments = module.measure(x)
    y = module.apply(x, moments)
    assert (y.dtype, moments.m2.dtype) == (dtype, torch.float64)
    torch.testing.assert_close(y, module(x))
    dy = sample(3, 2, 16, seed=1).to(dtype)
    slopes = (torch.autograd.grad(one, x, dy)[0] for one in (y, module(x)))
    torch.testing.assert_close(*slopes, rtol=tolerance, atol=tolerance)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_transforms():
    """torch.func and forward mode give the gradients that autograd gives."""
    module, x = made("batch")
    mean, variance = sample(2, seed=1), sample(2, seed=2) ** 2 + 0.5

    def loss(x, mean, variance, share):
        moments = module.measure(x).mixed(gt.Moments.from_variance(mean, variance), share)
        return module.apply(x, moments).pow(3).sum()

    inputs = x, mean, variance, torch.tensor(0.4).double()
    tracked = [one.clone().requires_grad_() for one in inputs]
    expected = torch.autograd.grad(loss(*tracked), tracked)
    found = torch.func.grad(loss, argnums=(0, 1, 2, 3))(*inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    directions = tuple(sample(*one.shape, seed=9) for one in inputs)
    _, slope = torch.func.jvp(loss, inputs, directions)
    torch.testing.assert_close(slope, sum((one * other).sum() for one, other in zip(expected, directions, strict=True)))
    shares = torch.tensor([0.1, 0.9]).double()
    mapped = torch.func.vmap(torch.func.grad(loss, argnums=1), (None, None, None, 0))(*inputs[:3], shares)
    for share, one in zip(shares, mapped, strict=True):
        torch.testing.assert_close(one, torch.func.grad(loss, argnums=1)(*inputs[:3], share))


def test_compiled():
    module, x = made("batch")
    held = gt.Moments.from_variance(sample(2, seed=1), sample(2, seed=2) ** 2 + 0.5)

    def run(x, held):
        moments = (module.measure(x).mixed(held, 0.4) + held).pooled(0, groups=2, spread=True)
        return module.apply(x, moments), moments

    compiled = torch.compile(run, backend="eager", fullgraph=True)
    y, moments = compiled(x, held)
    assert type(moments) is gt.Moments
    torch.testing.assert_close(y, run(x, held)[0])


def test_moments_are_a_pytree():
    moments = gt.Moments(torch.ones(2), torch.zeros(2), torch.ones(2))
    leaves, structure = torch.utils._pytree.tree_flatten(moments)
    assert len(leaves) == 3
    assert type(torch.utils._pytree.tree_unflatten(leaves, structure)) is gt.Moments


# ------------------------------------------------------------------------------------------------- the core, and errors


@layers
def test_apply_is_that_of_the_core(name):
    module, x = made(name)
    core = gn.NormalizationLayer.from_config(
        {**module.config.to_dict(), "scaling": "explicit", "biases": "explicit"},
        scaling=module.weight.detach().numpy(),
        biases=module.bias.detach().numpy(),
    )
    moments = module.measure(x * 2 + 1)
    expected = core.apply(x.numpy(), moments.to_core())
    np.testing.assert_allclose(module.apply(x, moments).detach(), expected, rtol=1e-12)
    np.testing.assert_allclose(module.apply(x, moments.to_core()).detach(), expected, rtol=1e-12)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("wrong", ["mean", "variance", "both", "axes"])
def test_moments_that_do_not_fit(wrong, gradient):
    """The same error by kernels and by the definition."""
    module, x = made("batch")
    shapes = {"mean": ((3,), (2,)), "variance": ((2,), (3,)), "both": ((3,), (3,)), "axes": ((1, 2), (1, 2))}[wrong]
    pair = tuple(torch.ones(shape).double().requires_grad_(gradient) for shape in shapes)
    with pytest.raises(ParameterError) as caught:
        module.apply(x, pair)
    assert caught.value.code == "T031"
    assert isinstance(caught.value, GennormError)
