"""Accelerate and restore: what is served and what is not, and that a model stays what it is."""

import copy
import importlib
import pickle

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers.models.gemma.modeling_gemma import GemmaRMSNorm  # noqa: E402
from transformers.models.llama.modeling_llama import LlamaRMSNorm  # noqa: E402
from transformers.models.mistral.modeling_mistral import MistralRMSNorm  # noqa: E402
from transformers.models.t5.modeling_t5 import T5LayerNorm  # noqa: E402

import gennorm.torch as gt  # noqa: E402
from gennorm.engine import sharing  # noqa: E402
from gennorm.torch import layers  # noqa: E402

nn = torch.nn


def sample(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


class NormWith(nn.Module):
    """A layer norm whose arithmetic is told: the part that is wrong, if one is."""

    def __init__(self, wrong=None):
        super().__init__()
        self.weight, self.bias, self.eps, self.wrong = (
            nn.Parameter(torch.ones(8)),
            nn.Parameter(torch.zeros(8)),
            1e-5,
            wrong,
        )

    def forward(self, x):
        variance = x.var(-1, keepdim=True, correction=1 if self.wrong == "unbiased" else 0)
        divisor = variance.sqrt() + self.eps if self.wrong == "epsilon outside" else (variance + self.eps).sqrt()
        if self.wrong == "constant statistics":
            divisor = divisor.detach()
        if self.wrong == "epsilon of its own":
            divisor = (variance + 2e-5).sqrt()
        if self.wrong == "evaluation" and not self.training:
            divisor = 2 * divisor
        y = (x - x.mean(-1, keepdim=True)) / divisor
        if self.wrong == "squared weight":
            return y * self.weight**2 + self.bias
        if self.wrong == "no bias":
            return y * self.weight
        return y * self.weight + self.bias


class GroupNorm32(nn.GroupNorm):
    def forward(self, x):
        return super().forward(x.float()).type(x.dtype)


class Named(nn.LayerNorm):
    def extra_repr(self):
        return "named"


class Other(nn.BatchNorm1d):
    def forward(self, x):
        return 2 * super().forward(x)


def served(module):
    return [one.by for one in gt.accelerate(module).replaced]


@pytest.mark.parametrize("made", [LlamaRMSNorm, MistralRMSNorm, T5LayerNorm, GemmaRMSNorm])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rms_norms_of_transformers(made, dtype):
    theirs = made(16).to(dtype)
    with torch.no_grad():
        theirs.weight.copy_(sample(16))
    ours = copy.deepcopy(theirs)
    text = "NormalizationLayer(-1, 'Same', method='RMS', epsilon=1e-06, input_shape=(..., 16))"
    assert served(ours) == [text + " of 1 + weight" * (made is GemmaRMSNorm)]
    assert isinstance(ours, made)
    x = sample(2, 3, 16, dtype=dtype)
    calls = []
    made_forward, made.forward = made.forward, lambda self, x: calls.append(x) or made_forward(self, x)
    try:
        torch.testing.assert_close(ours(x), theirs(x))
        assert len(calls) == 1  # theirs alone
        other = x.to(torch.float64)
        torch.testing.assert_close(ours(other), theirs(other), rtol=0, atol=0)
        assert len(calls) == 3
    finally:
        made.forward = made_forward


@pytest.mark.parametrize(
    ("wrong", "epsilon"), [(None, "1e-05"), ("epsilon of its own", "2e-05"), ("no bias", "1e-05")], ids=str
)
def test_right_arithmetic_is_proved(wrong, epsilon):
    module = NormWith(wrong)
    theirs, x = copy.deepcopy(module), sample(3, 8)
    assert served(module) == [f"NormalizationLayer(-1, 'Same', epsilon={epsilon}, input_shape=(..., 8))"]
    assert isinstance(module, NormWith)
    torch.testing.assert_close(module(x), theirs(x))


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("unbiased", "its forward is not a norm"),
        ("epsilon outside", "its forward is not a norm"),
        ("constant statistics", "its forward calls detach"),
        ("evaluation", "its forward computes something else in training"),
        ("squared weight", "its forward is not a norm"),
    ],
)
def test_wrong_arithmetic_is_left(wrong, why):
    """Each differs in one thing only, which parameters of one and inputs of one scale would not show."""
    module = NormWith(wrong)
    (left,) = gt.accelerate(nn.Sequential(module)).left
    assert type(module) is NormWith
    assert left.why == why


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: nn.LayerNorm(8, device="meta"), "its parameters are on the device meta"),
        (lambda: nn.SyncBatchNorm(8), "it has its own forward and running statistics"),
        (nn.LazyBatchNorm1d, "its parameters have no sizes yet: call the model once"),
        (lambda: Other(8), "it has its own forward and running statistics"),
        (
            lambda: nn.BatchNorm2d(8, momentum=1.5),
            "momentum is 1.5, and gennorm takes the share of the new value, from 0",
        ),
        (lambda: nn.LayerNorm(8, eps=-1.0), "epsilon cannot be -1.0"),
        (lambda: LlamaRMSNorm(8).double(), "its forward computes torch.float64 in torch.float32"),
        (lambda: nn.LayerNorm(8).to(torch.float8_e4m3fn), "its parameters are of the dtype torch.float8_e4m3fn"),
        (
            lambda: nn.utils.parametrize.register_parametrization(nn.LayerNorm(8), "weight", nn.Identity()),
            "its class was made by torch.nn.utils.parametrize",
        ),
        (lambda: patched(nn.LayerNorm(8)), "its forward has been replaced by another"),
        (lambda: nn.LocalResponseNorm(2), "its forward "),
        (lambda: Doubled(8), "its forward "),
    ],
)
def test_what_is_left_and_why(make, why):
    module = make()
    kind = type(module)
    report = gt.accelerate(nn.Sequential(module))
    assert not report.replaced
    assert report.left[0].name == "0"
    assert report.left[0].why.startswith(why)
    assert type(module) is kind


class Doubled(nn.LayerNorm):
    def __getattr__(self, name):
        found = super().__getattr__(name)
        return found * 2 if name == "weight" and found is not None else found


def patched(module):
    module.forward = lambda x: x
    return module


@pytest.mark.parametrize("make", [lambda: Named(8), lambda: GroupNorm32(2, 8), NormWith])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_subclasses_stay_what_they_are(make, copied):
    module, x = make(), sample(4, 8, 8)
    kind, text, expected = type(module), repr(module), module(x)
    assert len(served(module)) == 1
    assert isinstance(module, kind)
    assert repr(module) == text
    torch.testing.assert_close(module(x), expected)
    other = copied(module)
    assert type(other) is type(module)
    assert torch.equal(other(x), module(x))
    assert gt.restore(other) == 1
    assert type(other) is kind
    assert torch.equal(other(x), expected)


def model():
    return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Sequential(nn.BatchNorm1d(8), LlamaRMSNorm(8)))


def test_it_stays_the_model_that_it_is():
    net = model().train()
    net[1].eval()
    before, called = net[1], []
    hook = net[1].register_forward_hook(lambda module, *_: called.append(module))
    gt.accelerate(net)
    net(sample(4, 8))
    assert called == [before]
    assert [module.training for module in (net[0], net[1], net[2][0])] == [True, False, True]
    hook.remove()
    gt.restore(net)
    assert type(net[1]) is nn.LayerNorm


def test_a_layer_in_two_places_is_one():
    norm = nn.LayerNorm(8)
    net = nn.Sequential(norm, norm)
    assert len(gt.accelerate(net).replaced) == 1
    assert net[0] is net[1]
    assert gt.restore(net) == 1


def test_twice_is_once():
    net = model()
    first = gt.accelerate(net)
    classes = [type(module) for module in net.modules()]
    second = gt.accelerate(net)
    assert len(first.replaced) == 3
    assert not second.replaced
    assert {one.why for one in second.left} == {"it was replaced before"}
    assert [type(module) for module in net.modules()] == classes
    assert (gt.restore(net), gt.restore(net)) == (3, 0)


def test_layers_made_as_ours_stay_ours():
    net = nn.Sequential(gt.LayerNorm(8), gt.NormalizationLayer(-1, "Same", input_shape=(..., 8)))
    report = gt.accelerate(net)
    assert (report.replaced, report.left) == ((), ())
    assert str(report) == "no normalization layers"
    assert gt.restore(net) == 0
    assert type(net[0]) is layers.LayerNorm


def test_epsilon_may_be_assigned():
    theirs, ours = LlamaRMSNorm(8), LlamaRMSNorm(8)
    gt.accelerate(ours)
    x = 1e-2 * sample(3, 8)
    for epsilon in (1e-6, 1e-2):
        theirs.variance_epsilon = ours.variance_epsilon = epsilon
        torch.testing.assert_close(ours(x), theirs(x))


def test_state_and_optimizer_go_on():
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    gt.accelerate(net)
    (net(sample(4, 8)) * sample(4, 8, seed=1)).sum().backward()
    optimizer.step()
    assert not torch.equal(net[1].weight, state["1.weight"])
    assert list(net.state_dict()) == list(state)
    net.load_state_dict(state)
    gt.restore(net)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_the_probe_leaves_no_trace():
    net = NormWith()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    called = []
    net.register_forward_hook(lambda *_: called.append(1))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    gt.accelerate(net)
    assert torch.equal(torch.rand(3), expected)
    assert not called
    assert net.weight.grad is None
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_report():
    net = nn.ModuleDict({"a": nn.LayerNorm(8), "b": nn.LayerNorm(8), "c": nn.BatchNorm2d(4), "d": nn.SyncBatchNorm(8)})
    assert str(gt.accelerate(net)).splitlines() == [
        "replaced by",
        "  2 LayerNorm    a … b  NormalizationLayer(-1, 'Same', epsilon=1e-05, input_shape=(..., 8))",
        "  1 BatchNorm2d  c      NormalizationLayer('{0, 2;;All}', 1, epsilon=1e-05, input_shape=(4, ...), "
        "batched=True, "
        "statistics='moving', momentum=0.9)",
        "left because",
        "  1 SyncBatchNorm  d  it has its own forward and running statistics",
    ]


def test_threads_are_torch_s(monkeypatch):
    seen, gather = [], sharing.Executor.request
    monkeypatch.setattr(
        sharing.Executor, "request", lambda team, threads, parts: seen.append(threads) or gather(team, threads, parts)
    )
    net, x = nn.Sequential(nn.LayerNorm(1024)), sample(1024, 1024)
    gt.accelerate(net)
    before = torch.get_num_threads()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            with torch.no_grad():
                net(x)
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {2}


# ---------------------------------------------------------------------- what users do with a model afterwards


def workflow_model():
    """A drop-in class, a class that is proved, one with zero-centred scaling and one with running statistics."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), LlamaRMSNorm(8), GemmaRMSNorm(8), nn.BatchNorm1d(8))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return net


def pruned(net, x, path):
    prune = importlib.import_module("torch.nn.utils.prune")
    for layer in (net[1], net[2], net[3]):
        prune.l1_unstructured(layer, "weight", amount=0.5)
    before = net(x)
    net(x).sum().backward()
    assert net[2].weight_orig.grad is not None
    for layer in (net[1], net[2], net[3]):
        prune.remove(layer, "weight")
    torch.testing.assert_close(net(x), before)
    return before


def averaged(net, x, path):
    average = torch.optim.swa_utils.AveragedModel(net)
    with torch.no_grad():
        net[2].weight.add_(1.0)
    average.update_parameters(net)
    average.update_parameters(net)
    return average.eval()(x)


def saved(net, x, path):
    torch.save(net, path / "model.pt")
    return torch.load(path / "model.pt", weights_only=False)(x)


def saved_state(net, x, path):
    torch.save(net.state_dict(), path / "state.pt")
    other = workflow_model()
    gt.accelerate(other)
    other.load_state_dict(torch.load(path / "state.pt"), assign=True)
    return other.train(net.training)(x)


def copied(net, x, path):
    return copy.deepcopy(net)(x)


def exported(net, x, path):
    return torch.export.export(net.eval(), (x,), strict=False).module()(x)


def exported_strictly(net, x, path):
    return torch.export.export(net.eval(), (x,), strict=True).module()(x)


def symbolically_traced(net, x, path):
    return torch.fx.symbolic_trace(net)(x)


def traced(net, x, path):
    return torch.jit.trace(net.eval(), (x,))(x)


def scripted(net, x, path):
    one = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.BatchNorm1d(8))
    gt.accelerate(one)
    first, other = torch.jit.script(one.eval()), copy.deepcopy(one)
    torch.testing.assert_close(first(x), other(x))
    torch.testing.assert_close(torch.jit.script(gt.LayerNorm(8))(x), gt.LayerNorm(8)(x))
    return net(x)


def to_onnx(net, x, path):
    onnx = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.onnx.export(net.eval(), (x,), str(path / "model.onnx"), dynamo=True)
    session = onnx.InferenceSession(str(path / "model.onnx"))
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def replicated(net, x, path):
    for at, layer in list(net.named_children())[1:4]:
        replica = layer._replicate_for_data_parallel()
        for name, parameter in layer.named_parameters():
            setattr(replica, name, parameter.detach())
        net[int(at)] = replica
    return net(x)


def called_functionally(net, x, path):
    return torch.func.functional_call(net, {name: value + 1 for name, value in net.named_parameters()}, (x,))


def parametrized(net, x, path):
    for layer in (net[1], net[2]):
        torch.nn.utils.parametrize.register_parametrization(layer, "weight", nn.Tanh())
    y = net(x)
    for layer in (net[1], net[2]):
        torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")
    return y


def compiled(net, x, path):
    return torch.compile(net, backend="aot_eager", fullgraph=True)(x)


WORKFLOWS = [
    *(pruned, averaged, saved, saved_state, copied, exported, exported_strictly, symbolically_traced, traced, scripted),
    *(to_onnx, replicated, called_functionally, parametrized, compiled),
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch itself
@pytest.mark.parametrize("use", WORKFLOWS)
def test_an_accelerated_model_is_used_like_any_other(use, tmp_path):
    theirs, x = workflow_model(), sample(4, 8)
    ours = copy.deepcopy(theirs)
    assert len(gt.accelerate(ours).replaced) == 4
    with torch.random.fork_rng():
        expected, found = (use(one, x, tmp_path) for one in (theirs, ours))
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


def test_save_pretrained(tmp_path):
    config = transformers.LlamaConfig(
        vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    model = transformers.LlamaModel(config).eval()
    ids = torch.tensor([[1, 2, 3]])
    expected = model(ids).last_hidden_state
    gt.accelerate(model)
    model.save_pretrained(tmp_path)
    loaded = transformers.LlamaModel.from_pretrained(tmp_path)
    assert type(loaded.norm) is LlamaRMSNorm
    torch.testing.assert_close(loaded(ids).last_hidden_state, expected)


def test_what_cannot_be_replaced_does_not_stop_the_rest():
    net = nn.Sequential(
        nn.LayerNorm(8), nn.BatchNorm1d(8, momentum=1.5), nn.LayerNorm(8, eps=-1.0), nn.GroupNorm(2, 8), Broken()
    )
    kinds = [type(one) for one in net]
    report = gt.accelerate(net)
    assert [one.name for one in report.replaced] == ["0", "3"]
    assert [one.name for one in report.left] == ["1", "2", "4"]
    assert [type(net[i]) for i in (1, 2, 4)] == [kinds[i] for i in (1, 2, 4)]


class Broken(nn.Module):
    """Named a NormBroken, and raises for every input."""

    def forward(self, x):
        raise KeyError(x)


Broken.__name__ = "BrokenNorm"
