"""Real models from configs with random weights: the same logits and gradients after `accelerate`, and they learn."""

import copy

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import gennorm.torch as gt  # noqa: E402

nn = torch.nn


class Block(nn.Module):
    """A residual block of a diffusion model: the time step shifts and scales what group norm leaves."""

    def __init__(self, channels, out):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, channels), nn.Conv2d(channels, out, 3, padding=1)
        self.time = nn.Linear(16, 2 * out)
        self.norm2, self.conv2 = nn.GroupNorm(4, out), nn.Conv2d(out, out, 3, padding=1)
        self.skip = nn.Conv2d(channels, out, 1)

    def forward(self, x, t):
        h = self.conv1(nn.functional.silu(self.norm1(x)))
        scale, shift = self.time(t)[:, :, None, None].chunk(2, 1)
        return self.skip(x) + self.conv2(nn.functional.silu(self.norm2(h) * (1 + scale) + shift))


class UNet(nn.Module):
    """Down, across with attention, up with a skip connection, as in denoising diffusion."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.down, self.across, self.up = Block(8, 16), Block(16, 16), Block(24, 8)
        self.norm, self.attention = nn.GroupNorm(4, 16), nn.MultiheadAttention(16, 2, batch_first=True)
        self.last_norm, self.last = nn.GroupNorm(4, 8), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x, t):
        t = torch.cat([(t[:, None] * 2.0 ** torch.arange(8)).sin(), (t[:, None] * 2.0 ** torch.arange(8)).cos()], 1)
        first = self.first(x)
        h = self.down(nn.functional.avg_pool2d(first, 2), t)
        tokens = self.norm(h).flatten(2).transpose(1, 2)
        h = h + self.attention(tokens, tokens, tokens)[0].transpose(1, 2).reshape(h.shape)
        h = nn.functional.interpolate(self.across(h, t), scale_factor=2.0)
        h = self.up(torch.cat([h, first], 1), t)
        return self.last(nn.functional.silu(self.last_norm(h)))


def words(vocabulary=64):
    generator = torch.Generator().manual_seed(1)
    return {"input_ids": torch.randint(vocabulary, (2, 12), generator=generator)}


def pictures(size):
    return {"pixel_values": torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))}


def steps():
    return {"x": pictures(16)["pixel_values"], "t": torch.tensor([0.1, 0.7])}


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def gpt2():
    made = transformers.GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=4)
    return transformers.GPT2LMHeadModel(made), words()


def llama():
    made = transformers.LlamaConfig(vocab_size=64, num_key_value_heads=2, max_position_embeddings=16, **SMALL)
    return transformers.LlamaForCausalLM(made), words()


def bert():
    made = transformers.BertConfig(vocab_size=64, max_position_embeddings=16, **SMALL)
    return transformers.BertForMaskedLM(made), words()


def vit():
    made = transformers.ViTConfig(image_size=16, patch_size=4, **SMALL)
    return transformers.ViTForImageClassification(made), pictures(16)


def convnext():
    made = transformers.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1])
    return transformers.ConvNextForImageClassification(made), pictures(32)


def resnet():
    made = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2], layer_type="basic")
    return transformers.ResNetForImageClassification(made), pictures(32)


def unet():
    return UNet(), steps()


# How many layers of which class, and what computes them.
MODELS = {
    gpt2: {("LayerNorm", "NormalizationLayer(-1, 'Same', epsilon=1e-05, input_shape=(..., 32))"): 5},
    llama: {("LlamaRMSNorm", "NormalizationLayer(-1, 'Same', method='RMS', epsilon=1e-06, input_shape=(..., 32))"): 5},
    bert: {("LayerNorm", "NormalizationLayer(-1, 'Same', epsilon=1e-12, input_shape=(..., 32))"): 6},
    vit: {("LayerNorm", "NormalizationLayer(-1, 'Same', epsilon=1e-12, input_shape=(..., 32))"): 5},
    convnext: {"ConvNextLayerNorm": 9, "LayerNorm": 1},
    resnet: {"BatchNorm2d": 9},
    unet: {"GroupNorm": 8},
}


@pytest.fixture(params=MODELS, ids=lambda make: make.__name__)
def made(request):
    """A model whose parameters and statistics differ from place to place, what it is called with, and what it has."""
    torch.manual_seed(0)
    model, given = request.param()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name.lower() or ".ln_" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval(), given, MODELS[request.param]


def output(model, given):
    found = model(**given)
    return found if isinstance(found, torch.Tensor) else found.logits


def learned(model, given):
    """The output and the gradient of every parameter, of a loss that every output counts in."""
    model.zero_grad()
    y = output(model, given)
    y.square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return y.detach(), {name: gradient.clone() for name, gradient in gradients.items() if gradient is not None}


def exactly(model, given):
    """The same in float64."""
    double = copy.deepcopy(model).double()
    doubles = {name: value.double() if value.is_floating_point() else value for name, value in given.items()}
    return learned(double, doubles)


def apart(one, other):
    """The largest difference, relative to the largest value."""
    return ((one.double() - other.double()).abs().max() / other.abs().max().double().clamp_min(1e-30)).item()


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_the_same_logits_and_gradients(made, training):
    """Both are as near to the model in float64 as float32 goes: no farther than four times torch's own rounding."""
    model, given, _ = made
    for module in model.modules():
        module.training = training and not isinstance(module, nn.Dropout)
    exact, exact_gradients = exactly(model, given)
    state = copy.deepcopy(model.state_dict())
    before, gradients_before = learned(model, given)
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.load_state_dict(state)
    gt.accelerate(model)
    after, gradients_after = learned(model, given)
    floor = 16 * torch.finfo(torch.float32).eps
    assert apart(after, exact) <= 4 * apart(before, exact) + floor
    assert gradients_after.keys() == gradients_before.keys()
    largest = max(gradient.abs().max() for gradient in exact_gradients.values())
    for name, gradient in exact_gradients.items():
        # Some gradients are zero but for rounding, such as those of biases before batch norm.
        scale = max(gradient.abs().max().item(), 1e-4 * largest.item())
        theirs, ours = (
            (found[name].double() - gradient).abs().max().item() / scale
            for found in (gradients_before, gradients_after)
        )
        assert ours <= 4 * theirs + floor, name
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, statistics[name])


def test_every_layer_is_replaced_and_given_back(made):
    model, given, expected = made
    classes = {name: type(module) for name, module in model.named_modules()}
    tensors = {name: id(one) for name, one in [*model.named_parameters(), *model.named_buffers()]}
    held = {name: set(vars(module)) for name, module in model.named_modules()}
    with torch.no_grad():
        before = output(model, given)
    report = gt.accelerate(model)
    counted = {}
    for one in report.replaced:
        for key in (one.kind, (one.kind, one.by)):
            counted[key] = counted.get(key, 0) + 1
    assert {key: counted[key] for key in expected} == expected
    assert not report.left
    assert {name: id(one) for name, one in [*model.named_parameters(), *model.named_buffers()]} == tensors
    assert gt.restore(model) == len(report.replaced)
    assert {name: type(module) for name, module in model.named_modules()} == classes
    assert {name: set(vars(module)) for name, module in model.named_modules()} == held
    with torch.no_grad():
        assert torch.equal(output(model, given), before)


def test_it_learns(made):
    model, given, _ = made
    gt.accelerate(model.train())
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        torch.manual_seed(0)  # the same dropout at each step
        optimizer.zero_grad()
        y = output(model, given)
        rows = y.flatten(0, -2)
        target = given["input_ids"].flatten() if "input_ids" in given else torch.arange(len(rows)) % rows.shape[-1]
        loss = nn.functional.cross_entropy(rows, target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert losses[1] < losses[0]
