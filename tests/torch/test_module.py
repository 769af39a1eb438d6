"""The module: the core's numbers, torch's manners."""

import copy
import pickle

import numpy as np
import pytest

import gennorm as gn

torch = pytest.importorskip("torch")

import gennorm.torch as gt  # noqa: E402

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


def layer_norm(size=8, **keywords):
    return gt.NormalizationLayer(-1, "Same", epsilon=1e-5, input_shape=(..., size), **keywords)


def batch_norm(channels=5, **keywords):
    settings = {"input_shape": (channels, ...), "batched": True, "statistics": "moving", **keywords}
    return gt.NormalizationLayer("{0, 2;;All}", 1, **settings)


def sample(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def differing(module, seed=1):
    """The module with parameters that differ from place to place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator, dtype=torch.float64) + 0.5)
    return module


@pytest.mark.parametrize("grad", [False, True])
def test_layer_norm_is_torch_s(grad):
    ours, theirs = differing(layer_norm(48)), torch.nn.LayerNorm(48)
    theirs.load_state_dict(ours.state_dict())
    x = sample(7, 48)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(ours(x), theirs(x))


def test_gradients_are_torch_s():
    ours, theirs = differing(layer_norm(48)), torch.nn.LayerNorm(48)
    theirs.load_state_dict(ours.state_dict())
    x, dy = sample(7, 48).requires_grad_(), sample(7, 48, seed=2)
    found, expected = (torch.autograd.grad(m(x), [x, *m.parameters()], dy) for m in (ours, theirs))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_moving_moments_are_the_core_s():
    module, core = batch_norm(dtype="float64", momentum=0.75), gn.batch_norm(5, dtype="float64", momentum=0.75)
    x = sample(6, 5, 4, dtype=torch.float64)
    for _ in range(2):
        assert np.array_equal(module(x).detach().numpy(), core(x.numpy(), training=True))
    assert np.array_equal(module.mean.numpy(), core.moments.mean)
    assert np.array_equal(module.variance.numpy(), core.moments.variance())
    module.eval()
    assert np.array_equal(module(x).detach().numpy(), core(x.numpy()))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_has_parameters_of_its_own(copied):
    module = differing(layer_norm())
    x = sample(3, 8)
    with torch.no_grad():
        expected = module(x)
        other = copied(module)
        assert torch.equal(other(x), expected)
        other.weight.mul_(2)
        assert not torch.equal(other(x), expected)
        assert torch.equal(module(x), expected)
