"""What looks at a module without running it: torch.compile, torch.export, fake tensors."""

import copy

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import gennorm.torch as gt  # noqa: E402
from gennorm import definition  # noqa: E402
from gennorm.spec.config import LayerConfig, resolve_config  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


def layer_norm(**keywords):
    return gt.NormalizationLayer(-1, "Same", epsilon=1e-5, input_shape=(..., 8), **keywords)


def batch_norm(**keywords):
    return gt.NormalizationLayer("{0, 2}", 1, input_shape=(5, None), batched=True, statistics="moving", **keywords)


MADE = {"layer": (layer_norm, (4, 8)), "batch": (batch_norm, (6, 5, 8))}


def compiled(make, shape, backend, **keywords):
    """A network and its compiled twin after one step of training; outputs and everything that the step changed."""
    torch._dynamo.reset()
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), make(**keywords), nn.Tanh(), nn.Linear(8, 8))
    twin = copy.deepcopy(net)
    fast = torch.compile(twin, fullgraph=True, backend=backend)
    x = torch.randn(shape)
    for one in (net, fast):
        y = one(x)
        y.square().mean().backward()
    for one, other in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad)
    for one, other in zip(net.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(other, one)
    net.eval()
    twin.eval()
    with torch.no_grad():
        torch.testing.assert_close(fast(x), net(x))
        more = torch.randn(shape[0] + 1, *shape[1:])
        torch.testing.assert_close(fast(more), net(more))


@pytest.mark.parametrize(
    "settings", [{}, {"method": "RMS", "biases": None}, {"scaling": None, "biases": None}], ids=str
)
@pytest.mark.parametrize("name", MADE)
def test_one_graph(name, settings):
    compiled(*MADE[name], "aot_eager", **settings)


def test_one_graph_for_a_compiler():
    compiled(*MADE["batch"], "inductor")


def test_fake_tensors_and_exports():
    module, x = layer_norm(), torch.randn(3, 8)
    with torch._subclasses.FakeTensorMode():
        assert layer_norm()(torch.randn(3, 8)).shape == (3, 8)
    exported = torch.export.export(module, (x,))
    torch.testing.assert_close(exported.module()(x), module(x))
    traced = torch.fx.experimental.proxy_tensor.make_fx(module)(x)
    other = torch.randn(3, 8)
    torch.testing.assert_close(traced(other), module(other))
    frozen = layer_norm().requires_grad_(False)
    torch.testing.assert_close(torch.jit.trace(frozen, x)(other), frozen(other))


DEFINITIONS = {
    "layer": ((-1, "Same"), {}, (6, 8)),
    "order of the scaling levels": (((2, 3), (3, 2)), {"batched": True}, (4, 3, 5, 8)),
    "groups": (("All", 1, {1: 3}), {"batched": True}, (4, 6, 5, 8)),
    "batch": (("{0, 2;;All}", 1), {"batched": True}, (4, 6, 5, 8)),
    "high axes": (((3, 4), (4, 2)), {"batched": True}, (4, 3, 5, 8, 2)),
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_the_definition_with_open_sizes(name):
    """Config and axes are arguments: torch.compile takes their integers for symbolic."""
    levels, settings, shape = DEFINITIONS[name]
    torch._dynamo.reset()
    config = LayerConfig.make(*levels, **settings)

    def function(x, scaling, config, resolved):
        return definition.normalize(x, config, resolved, scaling=scaling)[0]

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="eager")
    for number in (1, 3):
        sizes = number * shape[0], *shape[1:]
        resolved = resolve_config(config, sizes)
        x, scaling = torch.randn(sizes), torch.randn(resolved.parameter_shape)
        torch.testing.assert_close(compiled(x, scaling, config, resolved), function(x, scaling, config, resolved))
