"""The modules of the zoo compute what the layers of the zoo compute."""

import numpy as np
import pytest

import gennorm as gn
from tests.test_zoo import DATA, sample

torch = pytest.importorskip("torch")
gennorm_torch = pytest.importorskip("gennorm.torch")


@pytest.mark.parametrize("name", gn.zoo.names())
def test_module(name):
    arguments, shape, *_ = DATA[name]
    layer = eval(f"gn.zoo.{name}({arguments})", {"gn": gn})
    module = eval(f"zoo.{name}({arguments})", {"zoo": gennorm_torch.zoo})
    config = module.config.to_dict()
    assert {**config, "dtype": "float32"} == {**layer.to_config(), "dtype": "float32"}
    assert [one is None for one in (module.weight, module.bias)] == [
        one is None for one in (layer.scaling, layer.biases)
    ]
    if config["statistics"] == "dataset":
        return  # it has no moments yet
    shape = (shape[0], 2, *shape[2:]) if name == "ibn" else shape
    x = sample(*shape).astype("float32")
    y = module.eval()(torch.from_numpy(x))
    expected = layer(x)
    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_given_moments_have_a_gradient():
    """α-BN with a learned share."""
    module = gennorm_torch.zoo.alpha_batch_norm(4, dtype="float64")
    x = torch.from_numpy(sample(3, 4, 5, 6)).requires_grad_()
    alpha = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)

    def mixed(x, alpha):
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        moments = alpha * module.mean + (1 - alpha) * mean, alpha * module.variance + (1 - alpha) * variance
        return module.apply(x, moments)

    y = mixed(x, alpha).detach().numpy()
    m, v = x.detach().numpy().mean((0, 2, 3), keepdims=True), x.detach().numpy().var((0, 2, 3), keepdims=True)
    np.testing.assert_allclose(y, (x.detach().numpy() - 0.1 * m) / np.sqrt(0.9 + 0.1 * v + 1e-5), rtol=1e-9)
    assert torch.autograd.gradcheck(mixed, (x, alpha))


def test_names():
    assert gennorm_torch.zoo.names() == gn.zoo.names()
    assert "rev_in" in dir(gennorm_torch.zoo)
    assert gennorm_torch.zoo.rev_in.__doc__ == gn.zoo.rev_in.__doc__
