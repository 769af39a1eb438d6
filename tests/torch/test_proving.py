"""What is proved to be a norm, what is not and why, and when a proof ends."""

import copy

import pytest

torch = pytest.importorskip("torch")

import gennorm.torch as gt  # noqa: E402
from gennorm.torch.proving import NotProvedError, prove  # noqa: E402

nn, F = torch.nn, torch.nn.functional
SIZE = 8
CALLS = []  # a global that changes
LIMIT = 1e-6


class Layer(nn.Module):
    """A layer with the parameters that norms have; its forward is one of the functions below."""

    def __init__(self, **attributes):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, SIZE))
        self.bias = nn.Parameter(torch.linspace(-0.5, 0.5, SIZE))
        self.eps = 1e-5
        for name, value in attributes.items():
            setattr(self, name, value)


def rms(x, eps=1e-5):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


# ------------------------------------------------------------------------------------------------------- what is a norm


def layer_norm_by_mean(self, x):
    mean = x.mean(-1, keepdim=True)
    spread = (x - mean).pow(2).mean(-1, keepdim=True)
    return self.weight * (x - mean) / torch.sqrt(spread + self.eps) + self.bias


def layer_norm_by_var_mean(self, x):
    spread, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    return (x - mean) * (spread + self.eps) ** -0.5 * self.weight + self.bias


def layer_norm_by_squares(self, x):
    mean = x.mean(-1, keepdim=True)
    return torch.addcmul(
        self.bias, (x - mean) * torch.rsqrt((x * x).mean(-1, keepdim=True) - mean**2 + self.eps), self.weight
    )


def layer_norm_by_var_without_keepdim(self, x):
    return (x - x.mean(-1).unsqueeze(-1)) / (
        x.var(-1, unbiased=False)[..., None] + self.eps
    ).sqrt() * self.weight + self.bias


def layer_norm_of_torch(self, x):
    return F.layer_norm(x.float(), self.weight.shape, self.weight.float(), self.bias.float(), self.eps).to(x.dtype)


def root_mean_square(self, x):
    return self.weight * rms(x) + self.bias


def root_mean_square_by_a_sum(self, x):
    return x / ((x * x).sum(-1, keepdim=True) / x.shape[-1] + self.eps).sqrt() * self.weight + self.bias


def zero_centred(self, x):
    return (rms(x.float()) * (1.0 + self.weight.float())).type_as(x) + self.bias


def channels_first(self, x):
    mean = x.mean(1, keepdim=True)
    x = (x - mean) / ((x - mean).pow(2).mean(1, keepdim=True) + self.eps).sqrt()
    shape = (-1, *(1,) * (x.dim() - 2))
    return self.weight.view(shape) * x + self.bias.view(shape)


def channels_first_by_permute(self, x):
    if x.dim() != 4:
        raise ValueError
    return F.layer_norm(x.permute(0, 2, 3, 1), tuple(self.weight.shape), self.weight, self.bias, self.eps).permute(
        0, 3, 1, 2
    )


LAST = "NormalizationLayer(-1, 'Same', epsilon=1e-05, input_shape=(..., 8))"
RMS = "NormalizationLayer(-1, 'Same', method='RMS', epsilon=1e-05, input_shape=(..., 8))"
CHANNELS = "NormalizationLayer(1, 'Same', epsilon=1e-05, input_shape=(8, ...), batched=True)"
NORMS = {
    layer_norm_by_mean: LAST,
    layer_norm_by_var_mean: LAST,
    layer_norm_by_squares: LAST,
    layer_norm_by_var_without_keepdim: LAST,
    layer_norm_of_torch: LAST,
    root_mean_square: RMS,
    root_mean_square_by_a_sum: RMS,
    zero_centred: RMS + " of 1 + weight",
    channels_first: CHANNELS,
    channels_first_by_permute: CHANNELS,
}


def made(forward, **attributes):
    """A layer whose class has no "norm" in its name."""
    return type("Layer", (Layer,), {"forward": forward})(**attributes)


@pytest.mark.parametrize("forward", NORMS, ids=lambda forward: forward.__name__)
def test_a_norm_is_replaced(forward):
    theirs = made(forward)
    ours = copy.deepcopy(theirs)
    (replaced,) = gt.accelerate(ours).replaced
    assert replaced.by == NORMS[forward]
    shape = (2, SIZE, 3, 5) if NORMS[forward] is CHANNELS else (2, 3, 5, SIZE)
    x, dy = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    found = []
    for module in (theirs, ours):
        given = x.clone().requires_grad_()
        y = module(given)
        found.append((y, *torch.autograd.grad(y, [given, module.weight, module.bias], dy)))
        assert y.stride() == found[0][0].stride()
    assert "NormalizeBackward" in str(found[1][0].grad_fn)  # by gennorm
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=2e-5, atol=2e-5)


# ---------------------------------------------------------------------- what is not, and why


def clamps(self, x):
    return (self.weight * rms(x) + self.bias).clamp(-1e4, 1e4)


def fills_nan(self, x):
    return torch.nan_to_num(self.weight * rms(x) + self.bias)


def has_a_gain(self, x):
    return 2 * self.weight * rms(x) + self.bias


def has_a_tiny_term(self, x):
    return self.weight * rms(x) + self.bias + 1e-9 * x


def adds_noise(self, x):
    return self.weight * rms(x) + self.bias + 1e-9 * torch.rand_like(x)


def depends_on_values(self, x):
    y = self.weight * rms(x) + self.bias
    return 2 * y if x.abs().max() > 1e4 else y


def selects_by_values(self, x):
    return torch.where(x.abs() > 1e4, x, self.weight * rms(x) + self.bias)


def differs_for_long_batches(self, x):
    y = self.weight * rms(x) + self.bias
    return 2 * y if x.shape[0] > 1000 else y


def differs_for_one_example(self, x):
    y = self.weight * rms(x) + self.bias
    return 2 * y if len(x) == 1 else y


def counts_its_calls(self, x):
    self.calls += 1
    return self.weight * rms(x) + self.bias


def fills_a_global(self, x):
    CALLS.append(1)
    return self.weight * rms(x) + self.bias


def reads_a_global(self, x):
    return self.weight * rms(x, LIMIT) + self.bias


def reads_an_item(self, x):
    return self.weight * rms(x, self.table["eps"]) + self.bias


def differs_in_training(self, x):
    y = self.weight * rms(x) + self.bias
    return 2 * y if self.training else y


def asks_for_gradients(self, x):
    y = self.weight * rms(x) + self.bias
    return y if torch.is_grad_enabled() else 2 * y


def looks_for_an_attribute(self, x):
    y = self.weight * rms(x) + self.bias
    return 2 * y if hasattr(self, "scale") else y


def prints(self, x):
    print(x.shape)  # noqa: T201
    return self.weight * rms(x) + self.bias


def writes_into_its_input(self, x):
    y = self.weight * rms(x) + self.bias
    x.mul_(2)
    return y


def cuts_the_gradient(self, x):
    return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps).detach() + self.bias


def other_divisor(self, x):
    return self.weight * x / (x.pow(2).mean(-1, keepdim=True).sqrt() + self.eps) + self.bias


def unbiased(self, x):
    return self.weight * (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + self.eps).sqrt() + self.bias


def computes_in_16_bits(self, x):
    return self.weight * rms(x.half()).to(x.dtype) + self.bias


def is_linear(self, x):
    return x * self.weight + self.bias


NOT = {
    clamps: "its forward calls clamp",
    fills_nan: "its forward calls nan_to_num",
    has_a_gain: "its forward is not a norm",
    has_a_tiny_term: "its forward is not a norm",
    adds_noise: "its forward calls rand_like",
    depends_on_values: "its forward calls abs",
    selects_by_values: "its forward calls abs",
    differs_for_long_batches: "its forward branches on the sizes of its input",
    differs_for_one_example: "its forward computes something else for the shape (1, ",
    counts_its_calls: "its forward assigns to attributes",
    fills_a_global: "its forward reads the global name CALLS",
    reads_a_global: "its forward reads the global name LIMIT",
    reads_an_item: "its attribute table is of the mutable type dict",
    differs_in_training: "its forward computes something else in training",
    asks_for_gradients: "its forward reads is_grad_enabled",
    looks_for_an_attribute: "its forward uses hasattr",
    prints: "its forward uses print",
    writes_into_its_input: "its forward calls mul_",
    cuts_the_gradient: "its forward calls detach",
    other_divisor: "its forward is not a norm",
    unbiased: "its forward is not a norm",
    computes_in_16_bits: "its forward computes in torch.float16",
    is_linear: "its forward is not a norm",
}


@pytest.mark.parametrize("forward", NOT, ids=lambda forward: forward.__name__)
def test_what_is_not_a_norm_is_left(forward):
    module = (
        made(forward, calls=0, table={"eps": 1e-6}) if "table" in forward.__code__.co_names else made(forward, calls=0)
    )
    type(module).__name__ = "Norm"  # so that the report names it
    kind = type(module)
    report = gt.accelerate(nn.Sequential(module))
    assert not report.replaced
    assert report.left[0].why.startswith(NOT[forward])
    assert type(module) is kind
    assert module.calls == 0
    assert not CALLS


def test_layers_that_are_not_called_norms_are_left_in_silence():
    report = gt.accelerate(nn.Sequential(made(is_linear), nn.Linear(3, 3), nn.Embedding(3, 3), nn.PReLU()))
    assert report == type(report)()


@pytest.mark.parametrize(
    "value",
    [[1.0], {"a": 1}, {1}, torch.ones(3), lambda: 1, object(), (1, [2])],
    ids=lambda value: type(value).__name__,
)
def test_attributes_that_can_change_without_an_assignment(value):
    module = made(root_mean_square)
    vars(module)["extra"] = value
    with pytest.raises(NotProvedError, match="its attribute extra is of the mutable type"):
        prove(module, torch.float32, 2, {1: SIZE})


@pytest.mark.parametrize("value", [1, 1.0, True, "a", None, (1, "b"), torch.float16, torch.Size((1,))], ids=str)
def test_attributes_that_cannot(value):
    assert len(gt.accelerate(made(root_mean_square, extra=value)).replaced) == 1


# ---------------------------------------------------------------------------------------------------- when a proof ends


class Watched(Layer):
    """Counts what it computes itself, outside of its forward's code."""

    def forward(self, x):
        return self.weight * (self.gain * rms(x, self.eps)) + self.bias


def watched():
    module = Watched(gain=1)
    assert len(gt.accelerate(module).replaced) == 1
    return module


def by_gennorm(module, x):
    return "NormalizeBackward" in str(module(x).grad_fn)


@pytest.mark.parametrize("name", ["eps", "gain", "extra"])
def test_an_assignment_gives_a_layer_its_own_forward(name):
    module, x = watched(), torch.randn(3, SIZE)
    theirs = copy.deepcopy(module)
    gt.restore(theirs)
    assert by_gennorm(module, x)
    for one in (theirs, module):
        setattr(one, name, 2)
    assert not by_gennorm(module, x)
    assert torch.equal(module(x), theirs(x))
    assert not by_gennorm(copy.deepcopy(module), x)
    report = gt.accelerate(module)  # proves it again
    assert len(report.replaced) == (name != "gain")
    assert type(module).__mro__[0 if name == "gain" else 2] is Watched
    del module.gain
    with pytest.raises(AttributeError):
        module(x)


def test_training_mode_and_parameters_may_change():
    module, x = watched(), torch.randn(3, SIZE)
    module.eval()
    module.weight = nn.Parameter(torch.full((SIZE,), 2.0))
    module.requires_grad_(True).register_forward_hook(lambda *_: None)
    assert by_gennorm(module, x)
    torch.testing.assert_close(module(x), 2 * rms(x) + module.bias)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "weight", nn.Parameter(torch.ones(1))),
        lambda m: setattr(m, "weight", nn.Parameter(torch.ones(SIZE, dtype=torch.float64))),
        lambda m: m.double(),
    ],
)
def test_other_parameters_than_those_of_the_proof(change):
    module, x = watched(), torch.randn(3, SIZE)
    change(module)
    theirs = copy.deepcopy(module)
    gt.restore(theirs)
    assert not by_gennorm(module, x)
    assert torch.equal(module(x), theirs(x))


@pytest.mark.parametrize("shape", [(0, SIZE), (3, 1), (2, 2, 2, 2, 3, SIZE)], ids=str)
def test_other_inputs_than_those_of_the_proof(shape):
    module, x = watched(), torch.randn(shape)
    theirs = copy.deepcopy(module)
    gt.restore(theirs)
    assert not by_gennorm(module, x)
    assert torch.equal(module(x), theirs(x))


# -------------------------------------------------------------------------------------------------- names of attributes


class Crowded(Layer):
    """Has attributes with the names that a front could think of."""

    def __init__(self):
        super().__init__()
        for name in ("config", "layer", "plan", "moments", "mean", "variance", "computation"):
            setattr(self, name, 1.0)

    def _normalized(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps * self.config * self.layer * self.mean)

    def _settings(self):
        return self.plan

    def _parameter(self, name):
        return getattr(self, name)

    def forward(self, x):
        return self.weight * self._normalized(x) * self._settings() + self.bias


class CrowdedLayerNorm(nn.LayerNorm):
    config = layer = _settings = _begin = _parameter = _recorded = _normalized = 3


def test_every_name_of_ours_is_prefixed():
    ours = [gt.LayerNorm(2), gt.RMSNorm(2), gt.GroupNorm(1, 2), gt.BatchNorm2d(2), gt.InstanceNorm1d(2), watched()]
    kept = {"forward", "reset_parameters", "_apply_instance_norm", "training"}
    for module in ours:
        for kind in type(module).__mro__:
            if kind.__module__.startswith("gennorm") or kind.__dict__.get("_gennorm_original"):
                names = {name for name in vars(kind) if not (name.startswith("__") and name.endswith("__"))}
                assert {name for name in names - kept if not name.lstrip("_").startswith(("gennorm", "abc_"))} == set()
    theirs = set(vars(nn.LayerNorm(2)))
    assert all(name.startswith("_gennorm") for name in set(vars(gt.LayerNorm(2))) - theirs)


def test_attributes_with_common_names_stay():
    theirs = Crowded()
    ours = copy.deepcopy(theirs)
    assert len(gt.accelerate(ours).replaced) == 1
    for shape in ((3, SIZE), (2, 2, 2, 2, 3, SIZE)):  # by gennorm, and by its own forward
        x = torch.randn(shape)
        torch.testing.assert_close(ours(x), theirs(x))
    module = CrowdedLayerNorm(SIZE)
    assert len(gt.accelerate(module).replaced) == 1
    x = torch.randn(3, SIZE)
    torch.testing.assert_close(module(x), F.layer_norm(x, (SIZE,)))
    assert {getattr(module, name) for name in ("config", "layer", "_settings", "_begin", "_parameter")} == {3}
