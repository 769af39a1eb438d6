"""Every method of docs/moments.md, as the page defines it, against a formula written from its paper: values, gradients.

The formulas use torch's operations only. `Var` is over n, as the papers have it.
"""

import contextlib
import doctest
import io
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import gennorm.torch as gt  # noqa: E402

PAGE = Path(__file__).resolve().parents[2] / "docs" / "moments.md"
EPSILON = 1e-5


def sample(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def page():
    """The names of the page before its section on NumPy; the layers in float64, with parameters that differ."""
    text = PAGE.read_text(encoding="utf-8").partition("## NumPy")[0]
    names = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for example in doctest.DocTestParser().get_examples(text):
            exec(compile(example.source, "moments.md", "single"), names)
    for layer in names.values():
        if isinstance(layer, gt.NormalizationLayer):
            layer.double()
            for seed, parameter in enumerate(layer.parameters(), 5):
                parameter.data = sample(*parameter.shape, seed=seed) + 2
    return names


X = sample(8, 4, 6, 6) * 3 + 2
SOURCE = sample(4, seed=1), sample(4, seed=2) ** 2 + 0.5
COMPONENTS = sample(3, 4, seed=1) + 1, sample(3, 4, seed=2) ** 2 + 0.5
SHARES = torch.tensor([0.1, 0.4, 0.7, 0.95], dtype=torch.float64)
WEIGHTS = sample(3, seed=3), sample(3, seed=4)
ALL, EXAMPLE, SPATIAL = (0, 2, 3), (1, 2, 3), (2, 3)


def moments_of(x, over):
    return x.mean(over, keepdim=True), x.var(over, correction=0, keepdim=True)


def channels(values):
    return values[:, None, None]


def affine(z, layer):
    return z * channels(layer.weight) + channels(layer.bias)


def standardized(x, mean, variance):
    return (x - mean) / (variance + EPSILON).sqrt()


def of_alpha_batch_norm(page, x, mean, variance, share):
    """Alpha times the source statistics, plus 1 - alpha times those of the test batch."""
    own, spread = moments_of(x, ALL)
    alpha = channels(share)
    mixed = alpha * channels(mean) + (1 - alpha) * own
    return affine(standardized(x, mixed, alpha * channels(variance) + (1 - alpha) * spread), page["batch"])


def of_ttn(page, x, mean, variance, share):
    """Equation 2: alpha s_t + (1 - alpha) s_s + alpha (1 - alpha) (m_t - m_s)^2."""
    own, spread = moments_of(x, ALL)
    alpha, source = channels(share), channels(mean)
    mixed = alpha * own + (1 - alpha) * source
    total = alpha * spread + (1 - alpha) * channels(variance) + alpha * (1 - alpha) * (own - source) ** 2
    return affine(standardized(x, mixed, total), page["batch"])


def of_batch_renorm(page, x, mean, variance):
    """Algorithm 1, whose r and d are constants for the gradient."""
    own, spread = moments_of(x, ALL)
    deviation, held = (spread + EPSILON).sqrt(), (channels(variance) + EPSILON).sqrt()
    r = (deviation.detach() / held.detach()).clamp(1 / 3, 3)
    d = ((own - channels(mean)) / held).detach().clamp(-5, 5)
    return affine((x - own) / deviation * r + d, page["batch"])


def of_virtual_batch_norm(page, x, reference):
    """Every example beside the whole reference batch, element by element."""
    found = []
    for example in x:
        together = torch.cat([example.flatten(1), reference.transpose(0, 1).flatten(1)], 1)
        mean, variance = together.mean(1), together.var(1, correction=0)
        found.append(standardized(example, channels(mean), channels(variance)))
    return affine(torch.stack(found), page["instance"])


def of_switch_norm(page, x, of_mean, of_variance):
    """Equation 3: weights of the instance, layer and batch statistics of the elements themselves."""
    statistics = [moments_of(x, over) for over in (SPATIAL, EXAMPLE, ALL)]
    w, v = of_mean.exp() / of_mean.exp().sum(), of_variance.exp() / of_variance.exp().sum()
    mean = sum(w[i] * statistics[i][0] for i in range(3))
    return affine(standardized(x, mean, sum(v[i] * statistics[i][1] for i in range(3))), page["instance"])


def of_ibn(page, x):
    """The first half of the channels by instance norm, the other by batch norm."""
    parts = [standardized(x[:, :2], *moments_of(x[:, :2], SPATIAL)), standardized(x[:, 2:], *moments_of(x[:, 2:], ALL))]
    return affine(torch.cat(parts, 1), page["instance"])


ORDER = torch.tensor([3, 0, 1, 2, 7, 6, 5, 4])
LAMBDA = torch.linspace(0.1, 0.9, 8, dtype=torch.float64)[:, None]


def of_mix_style(page, x):
    """Algorithm 1: mu and sigma are detached."""
    mean, variance = (one.detach() for one in moments_of(x, SPATIAL))
    deviation = (variance + EPSILON).sqrt()
    share = LAMBDA[..., None, None]
    gamma = share * deviation + (1 - share) * deviation[ORDER]
    beta = share * mean + (1 - share) * mean[ORDER]
    return (x - mean) / deviation * gamma + beta


def of_unmix(page, x, means, variances):
    """Section 3: means and variances are mixed, and the variance over the components is added."""
    own, spread = (one.flatten(1) for one in moments_of(x, SPATIAL))
    direction = own / own.norm(dim=1, keepdim=True)
    p = ((direction @ (means / means.norm(dim=1, keepdim=True)).T) / 0.1).softmax(1)[..., None]
    mean = (1 - p) * means + p * own[:, None]
    variance = (1 - p) * variances + p * spread[:, None]
    total = variance.mean(1) + (mean**2).mean(1) - mean.mean(1) ** 2
    return affine(standardized(x, mean.mean(1)[..., None, None], total[..., None, None]), page["instance"])


def of_extended_batch_norm(page, x):
    """The mean along (N, H, W), the standard deviation along (N, C, H, W)."""
    return affine(standardized(x, x.mean(ALL, keepdim=True), x.var(correction=0)), page["batch"])


def of_compressed_rms_norm(page, x):
    """Definition 1: the RMS of the vector with the element that is left out, minus the sum of the others."""
    root = (((x**2).sum(-1, keepdim=True) + x.sum(-1, keepdim=True) ** 2) / (x.shape[-1] + 1) + 1e-6).sqrt()
    return x / root * page["rms"].weight


# The formula, what goes in and has a gradient, and how the page's function takes it.
METHODS = {
    "alpha_batch_norm": (of_alpha_batch_norm, (X, *SOURCE, SHARES), lambda f, x, m, v, s: f(x, held(m, v), s)),
    "ttn": (of_ttn, (X, *SOURCE, SHARES), lambda f, x, m, v, s: f(x, held(m, v), s)),
    "batch_renorm": (of_batch_renorm, (X, *SOURCE), lambda f, x, m, v: f(x, held(m, v))),
    "virtual_batch_norm": (of_virtual_batch_norm, (X, sample(3, 4, 5, 5, seed=6)), lambda f, *given: f(*given)),
    "switch_norm": (of_switch_norm, (X, *WEIGHTS), lambda f, *given: f(*given)),
    "ibn": (of_ibn, (X,), lambda f, x: f(x)),
    "mix_style": (of_mix_style, (X,), lambda f, x: f(x, ORDER, LAMBDA)),
    "unmix": (of_unmix, (X, *COMPONENTS), lambda f, x, m, v: f(x, held(m, v))),
    "extended_batch_norm": (of_extended_batch_norm, (X,), lambda f, x: f(x)),
    "compressed_rms_norm": (of_compressed_rms_norm, (sample(5, 7),), lambda f, x: f(x)),
}


def held(mean, variance):
    return gt.Moments.from_variance(mean, variance)


@pytest.mark.parametrize("name", METHODS)
def test_method(name, page):
    formula, given, call = METHODS[name]
    inputs = [one.clone().requires_grad_() for one in given]
    found, expected = call(page[name], *inputs), formula(page, *inputs)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    parameters = [one for layer in ("batch", "instance", "rms") for one in page[layer].parameters()]
    dy = sample(*found.shape, seed=9)
    slopes = [torch.autograd.grad(one, [*inputs, *parameters], dy, allow_unused=True) for one in (found, expected)]
    for one, other in zip(*slopes, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)
    assert slopes[0][0].abs().sum() > 0


def test_the_clips_of_batch_renorm_are_reached(page):
    """Some r and d are limited in the test above, and others are not."""
    own, spread = (one.flatten() for one in moments_of(X, ALL))
    r = (spread + EPSILON).sqrt() / (SOURCE[1] + EPSILON).sqrt()
    d = (own - SOURCE[0]) / (SOURCE[1] + EPSILON).sqrt()
    assert 0 < ((r > 3) | (r < 1 / 3)).sum() < 4
    assert (d.abs() < 5).any()


def test_every_method_of_the_page_is_compared(page):
    defined = {name for name, value in page.items() if callable(value) and getattr(value, "__code__", None)}
    assert defined == METHODS.keys()
