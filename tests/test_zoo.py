"""Each published normalization against its formula, written in NumPy from the paper and nothing else."""

import math

import numpy as np
import pytest

import gennorm as gn

RNG = np.random.default_rng(11)


def sample(*shape):
    return RNG.normal(0.7, 1.5, shape)


def positive(*shape):
    return RNG.uniform(0.2, 3.0, shape)


def mean(x, *axes):
    return x.mean(axes, keepdims=True)


def variance(x, *axes):
    return ((x - mean(x, *axes)) ** 2).mean(axes, keepdims=True)


def z(x, axes, epsilon):
    return (x - mean(x, *axes)) / np.sqrt(variance(x, *axes) + epsilon)


def rms(x, axes, epsilon):
    return x / np.sqrt((x**2).mean(axes, keepdims=True) + epsilon)


def length(x):
    return np.sqrt((x**2).sum(-1, keepdims=True))


def channel(values):
    """A parameter of the channels, which are on axis 1 of (N, C, H, W)."""
    return values.reshape(-1, 1, 1)


def sublayer(x):
    return np.tanh(x) * 0.5 + x[..., ::-1]


def moved(layer):
    """A layer that holds the moments of some training."""
    layer.moments = gn.Moments.from_variance(sample(4), positive(4))
    return layer.moments.mean, layer.moments.variance()


def expanded(values):
    return values[:, :, None, None]


PICTURES = (3, 4, 5, 6)
SPACE = (2, 3)
BATCH = (0, 2, 3)


# name: arguments, shape of x, what `needs` asks for, the formula of x, γ, β and that.
def unit(x, g, b):
    return x / np.maximum(length(x), 1e-12)


def extended(x, g, b):
    total = ((x - x.mean()) ** 2).sum() / x.size
    return channel(g) * (x - mean(x, *BATCH)) / np.sqrt(total + 1e-5) + channel(b)


def graph(x, g, b, alpha):
    centred = x - alpha * x.mean(0)
    return g * centred / np.sqrt((centred**2).mean(0) + 1e-5) + b


def pairs(x, g, b):
    centred = x - x.mean(0)
    return 2.5 * centred / np.sqrt((centred**2).sum(1).mean() + 1e-6)


def virtual(x, g, b, reference):
    found = []
    for example in x:
        together = [np.concatenate([reference[:, c].ravel(), example[c].ravel()]) for c in range(4)]
        m, v = (np.array([f(one) for one in together]).reshape(4, 1, 1) for f in (np.mean, np.var))
        found.append(channel(g) * (example - m) / np.sqrt(v + 1e-5) + channel(b))
    return np.stack(found)


def switched(x, g, b, w, v):
    means = [mean(x, *axes) for axes in (SPACE, (1, 2, 3), BATCH)]
    variances = [variance(x, *axes) for axes in (SPACE, (1, 2, 3), BATCH)]
    m = w[0] * means[0] + w[1] * means[1] + w[2] * means[2]
    s = v[0] * variances[0] + v[1] * variances[1] + v[2] * variances[2]
    return channel(g) * (x - m) / np.sqrt(s + 1e-5) + channel(b)


def ghosts(x, g, b, size):
    parts = [z(x[start : start + size], BATCH, 1e-5) for start in range(0, len(x), size)]
    return channel(g) * np.concatenate(parts) + channel(b)


def mixed(x, g, b, order, share):
    m, s = mean(x, *SPACE), np.sqrt(variance(x, *SPACE) + 1e-6)
    lam = share[:, :, None, None]
    return (lam * s + (1 - lam) * s[order]) * (x - m) / s + lam * m + (1 - lam) * m[order]


def groups_of(x, number):
    return x.reshape(*x.shape[:-1], number, -1)


def parted(x, g, b):
    parts = x.reshape(3, 2, 4, 5)
    return ((parts - mean(parts, 2)) / (np.sqrt(variance(parts, 2)) + 1e-5)).reshape(x.shape)


def weighted(x, g, b, latitude):
    w = np.broadcast_to(np.cos(latitude)[:, None], x.shape)
    m = (w * x).sum((0, 2, 3), keepdims=True) / w.sum((0, 2, 3), keepdims=True)
    v = (w * (x - m) ** 2).sum((0, 2, 3), keepdims=True) / w.sum((0, 2, 3), keepdims=True)
    return (x - m) / np.sqrt(v)


def masked_z(x, g, b, frames):
    found = np.empty_like(x)
    for i, example in enumerate(x):
        counted = example[frames[i]]
        found[i] = (example - counted.mean(0)) / counted.std(0)
    return found


FRAMES = np.arange(6) < np.array([[6], [4], [5]])
VOXELS = RNG.random(PICTURES) < 0.7
FOREGROUND = sample(500)
DATA = {
    "unit_norm": ("5", (3, 5), {}, unit),
    "cosine_attention": ("5", (3, 5), {"k": sample(4, 5)}, lambda x, g, b, k: (x / length(x)) @ (k / length(k)).T),
    "ngpt": (
        "5",
        (3, 5),
        {"f": sublayer, "alpha": positive(5)},
        lambda x, g, b, f, alpha: (h := x + alpha * (f(x) / length(f(x)) - x)) / length(h),
    ),
    "scale_norm": ("5", (3, 5), {}, lambda x, g, b: math.sqrt(5) * x / length(x)),
    "qk_norm": ("5, heads=2", (3, 2, 5), {}, lambda x, g, b: g * rms(x, -1, 1e-6)),
    "p_rms_norm": (
        "16",
        (3, 16),
        {"p": 0.3},
        lambda x, g, b, p: g * x / np.sqrt((x[:, : math.ceil(0.3 * 16)] ** 2).mean(-1, keepdims=True) + 1e-8),
    ),
    "crms_norm": (
        "5",
        (3, 5),
        {},
        # RMS norm of the vector with its last element, which is minus the sum of the others
        lambda x, g, b: rms(np.concatenate([x, -x.sum(-1, keepdims=True)], -1), -1, 1e-6)[:, :-1],
    ),
    "gated_rms_norm": (
        "6, groups=2",
        (3, 6),
        {"gate": sample(3, 6)},
        lambda x, g, b, gate: g * rms(groups_of(x * gate / (1 + np.exp(-gate)), 2), -1, 1e-5).reshape(3, 6),
    ),
    "pixel_norm": ("", PICTURES, {}, lambda x, g, b: rms(x, 1, 1e-8)),
    "filter_response_norm": (
        "4",
        PICTURES,
        {"tau": sample(4, 1, 1)},
        lambda x, g, b, tau: np.maximum(channel(g) * rms(x, SPACE, 1e-6) + channel(b), tau),
    ),
    "simple_norm": ("5", (3, 5), {}, lambda x, g, b: z(x, (-1,), 1e-5)),
    "layer_norm_scaling": ("5, 7", (3, 5), {}, lambda x, g, b: z(x, (-1,), 1e-5) / math.sqrt(7)),
    "ada_ln_zero": (
        "5",
        (3, 4, 5),
        {"scale": sample(3, 5), "shift": sample(3, 5)},
        lambda x, g, b, scale, shift: (1 + scale[:, None]) * z(x, (-1,), 1e-6) + shift[:, None],
    ),
    "global_layer_norm": ("4", (3, 4, 7), {}, lambda x, g, b: g[:, None] * z(x, (1, 2), 1e-8) + b[:, None]),
    "channel_layer_norm": ("4", PICTURES, {}, lambda x, g, b: channel(g) * z(x, (1,), 1e-6) + channel(b)),
    "positional_norm": ("", PICTURES, {}, lambda x, g, b: z(x, (1,), 1e-5)),
    "retention_norm": ("2, 6", (3, 4, 6), {}, lambda x, g, b: z(groups_of(x, 2), (-1,), 1e-5).reshape(3, 4, 6)),
    "peri_ln": (
        "5",
        (3, 5),
        {"f": sublayer, "after": gn.rms_norm(5, scaling=[1, 2, 3, 4, 5], dtype="float64")},
        lambda x, g, b, f, after: x + np.arange(1, 6) * rms(f(g * rms(x, -1, 1e-6)), -1, 1e-6),
    ),
    "sandwich_norm": (
        "5",
        (3, 5),
        {"f": sublayer, "after": gn.layer_norm(5, epsilon=1e-5, dtype="float64")},
        lambda x, g, b, f, after: x + z(f(g * z(x, (-1,), 1e-5) + b), (-1,), 1e-5),
    ),
    "deep_norm": (
        "5",
        (3, 5),
        {"f": sublayer, "alpha": 24**0.25},
        lambda x, g, b, f, alpha: g * z(x * (2 * 12) ** 0.25 + f(x), (-1,), 1e-5) + b,
    ),
    "sub_ln": (
        "5",
        (3, 5),
        {"w1": sublayer, "w2": np.sin, "inner": gn.layer_norm(5, epsilon=1e-5, dtype="float64")},
        lambda x, g, b, w1, w2, inner: x + np.sin(z(sublayer(g * z(x, (-1,), 1e-5) + b), (-1,), 1e-5)),
    ),
    "mix_ln": (
        "5",
        (3, 5),
        {"f": sublayer, "index": 3, "depth": 12, "fraction": 0.25},
        lambda x, g, b, f, index, depth, fraction: x + f(g * z(x, (-1,), 1e-5) + b),
    ),
    "hybrid_norm": (
        "5",
        (3, 5),
        {"f": sublayer},
        lambda x, g, b, f: g * rms(x, -1, 1e-6) + f(g * rms(x, -1, 1e-6)),
    ),
    "batch_group_norm": (
        "2, 4",
        PICTURES,
        {},
        lambda x, g, b: channel(g) * z(x.reshape(3, 2, 2, 5, 6), (0, 2, 3, 4), 1e-5).reshape(x.shape) + channel(b),
    ),
    "ada_in": (
        "4",
        PICTURES,
        {"style": sample(3, 4, 2, 2)},
        lambda x, g, b, style: np.sqrt(variance(style, *SPACE) + 1e-5) * z(x, SPACE, 1e-5) + mean(style, *SPACE),
    ),
    "conditional_batch_norm": (
        "4",
        PICTURES,
        {"gamma": sample(3, 4), "beta": sample(3, 4)},
        lambda x, g, b, gamma, beta: expanded(gamma) * z(x, BATCH, 1e-5) + expanded(beta),
    ),
    "mix_style": ("4", PICTURES, {"order": [2, 0, 1], "share": positive(3, 1) / 3}, mixed),
    "cross_norm": (
        "4",
        PICTURES,
        {"order": [1, 2, 0]},
        lambda x, g, b, order: np.sqrt(variance(x, *SPACE) + 1e-5)[order] * z(x, SPACE, 1e-5) + mean(x, *SPACE)[order],
    ),
    "weight_standardization": ("", (4, 3, 2, 2), {}, lambda x, g, b: z(x, (1, 2, 3), 1e-5)),
    "weight_norm": (
        "(4, 3, 2, 2), length=[1, 2, 3, 4]",
        (4, 3, 2, 2),
        {},
        lambda x, g, b: np.arange(1, 5).reshape(4, 1, 1, 1) * x / np.sqrt((x**2).sum((1, 2, 3), keepdims=True)),
    ),
    "demodulation": (
        "(4, 3, 2, 2)",
        (4, 3, 2, 2),
        {},
        lambda x, g, b: x / np.sqrt((x**2).sum((1, 2, 3), keepdims=True) + 1e-8),
    ),
    "virtual_batch_norm": ("4", PICTURES, {"reference": sample(5, 4, 5, 6)}, virtual),
    "alpha_batch_norm": (
        "4",
        PICTURES,
        {"alpha": 0.9, "held": moved},
        lambda x, g, b, alpha, held: (
            channel(g)
            * (x - channel(0.9 * held[0]) - 0.1 * mean(x, *BATCH))
            / np.sqrt(channel(0.9 * held[1]) + 0.1 * variance(x, *BATCH) + 1e-5)
            + channel(b)
        ),
    ),
    "ttn": (
        "4",
        PICTURES,
        {"alpha": np.array([0.1, 0.4, 0.9, 1.0]), "held": moved},
        lambda x, g, b, alpha, held: (
            channel(g)
            * (x - channel(alpha) * mean(x, *BATCH) - channel((1 - alpha) * held[0]))
            / np.sqrt(
                channel(alpha) * variance(x, *BATCH)
                + channel((1 - alpha) * held[1])
                + channel(alpha * (1 - alpha)) * (mean(x, *BATCH) - channel(held[0])) ** 2
                + 1e-5
            )
            + channel(b)
        ),
    ),
    "ada_bn": (
        "4",
        PICTURES,
        {"target": (target := sample(9, 4, 5, 6))},
        lambda x, g, b, target: (
            channel(g) * (x - mean(target, *BATCH)) / np.sqrt(variance(target, *BATCH) + 1e-5) + channel(b)
        ),
    ),
    **dict.fromkeys(
        ("prediction_time_batch_norm", "tent", "fed_bn"),
        ("4", PICTURES, {}, lambda x, g, b: channel(g) * z(x, BATCH, 1e-5) + channel(b)),
    ),
    "fix_bn": ("4", PICTURES, {}, lambda x, g, b: channel(g) * z(x, BATCH, 1e-5) + channel(b)),
    "rs_norm": ("5", (30, 5), {}, lambda x, g, b: z(x, (0,), 1e-5)),
    "rev_in": ("5", (3, 8, 5), {}, lambda x, g, b: g * z(x, (1,), 1e-5) + b),
    "series_stationarization": ("5", (3, 8, 5), {}, lambda x, g, b: z(x, (1,), 1e-5)),
    "slice_adaptive_norm": ("8, 4, 5", (3, 8, 5), {}, parted),
    "cmvn": ("5", (3, 6, 5), {"frames": FRAMES}, masked_z),
    "nnunet_z_score": (
        "",
        PICTURES[1:],
        {},
        lambda x, g, b: (x - mean(x, 1, 2)) / np.maximum(np.sqrt(variance(x, 1, 2)), 1e-8),
    ),
    "torchio_z_normalization": (
        "",
        PICTURES,
        {"voxels": VOXELS},
        lambda x, g, b, voxels: (x - x[voxels].mean()) / x[voxels].std(ddof=1),
    ),
    "latitude_weighted_z_score": ("", (6, 3, 4, 5), {"latitude": np.linspace(-1.2, 1.2, 4)}, weighted),
    "tendency_scaling": (
        "",
        (6, 3, 4, 5),
        {},
        lambda x, g, b: (x[1:] - x[:-1]) / np.sqrt(variance(x[1:] - x[:-1], 0, 2, 3)),
    ),
    "ghost_batch_norm": ("4", (7, 4, 5, 6), {"size": 3}, ghosts),
    "spade": (
        "4",
        PICTURES,
        {"gamma": sample(*PICTURES), "beta": sample(*PICTURES)},
        lambda x, g, b, gamma, beta: gamma * z(x, BATCH, 1e-5) + beta,
    ),
    "moment_shortcut": (
        "",
        PICTURES,
        {"f": sublayer},
        lambda x, g, b, f: f(z(x, (1,), 1e-5)) * np.sqrt(variance(x, 1) + 1e-5) + mean(x, 1),
    ),
    "zero_centered_rms_norm": ("5", (3, 5), {"w": sample(5)}, lambda x, g, b, w: (1 + w) * rms(x, -1, 1e-6)),
    "see_d_norm": (
        "5",
        (3, 4, 5),
        {"alpha": sample(5), "beta": sample(5), "gamma": sample(5)},
        lambda x, g, b, alpha, beta, gamma: (
            (np.tanh((x * beta).sum(-1, keepdims=True)) * alpha + gamma) * rms(x, -1, 1e-6)
        ),
    ),
    "poly_norm": (
        "5",
        (3, 5),
        {"weights": [0.5, 0.2, 0.3], "bias": 0.1},
        lambda x, g, b, weights, bias: (
            0.5 * rms(x, -1, 1e-6) + 0.2 * rms(x**2, -1, 1e-6) + 0.3 * rms(x**3, -1, 1e-6) + 0.1
        ),
    ),
    "rep_bn": ("5", (3, 8, 5), {"eta": 0.3}, lambda x, g, b, eta: g * z(x, (0, 1), 1e-5) + b + 0.3 * x),
    "ibn": (
        "2",
        PICTURES,
        {"half": 2, "batch": gn.batch_norm(2, epsilon=1e-5, dtype="float64")},
        lambda x, g, b, half, batch: np.concatenate(
            [channel(g) * z(x[:, :2], SPACE, 1e-5) + channel(b), z(x[:, 2:], BATCH, 1e-5)], 1
        ),
    ),
    "message_norm": (
        "5",
        (3, 5),
        {"messages": (messages := sample(3, 5)), "s": 0.7},
        lambda x, g, b, messages, s: x + 0.7 * length(x) * messages / length(messages),
    ),
    "vec_normalize": ("5", (300, 5), {}, lambda x, g, b: np.clip(z(x, (0,), 1e-8), -10, 10)),
    "scanpy_scale": (
        "5",
        (300, 5),
        {},
        lambda x, g, b: np.minimum((x - x.mean(0)) / x.std(0, ddof=1), 10),
    ),
    "nnunet_ct": (
        "",
        PICTURES,
        {"foreground": FOREGROUND},
        lambda x, g, b, foreground: (
            (np.clip(x, np.percentile(foreground, 0.5), np.percentile(foreground, 99.5)) - foreground.mean())
            / foreground.std()
        ),
    ),
    "chronos_2": ("", (3, 20), {}, lambda x, g, b: np.arcsinh(z(x, (-1,), 0))),
    "switch_norm": ("4", PICTURES, {"w": [0.2, 0.3, 0.5], "v": [0.6, 0.1, 0.3]}, switched),
    "mean_only_batch_norm": ("4", PICTURES, {}, lambda x, g, b: x - mean(x, *BATCH) + channel(b)),
    "extended_batch_norm": ("4", PICTURES, {}, extended),
    "pair_norm": ("5, scale=2.5", (9, 5), {}, pairs),
    "graph_norm": ("5", (9, 5), {"alpha": positive(5)}, graph),
    "centered_log_ratio": ("", (3, 5), {}, lambda x, g, b: np.log(x / np.exp(np.log(x).mean(-1, keepdims=True)))),
}


@pytest.mark.parametrize("name", gn.zoo.names())
def test_the_paper_s_formula(name):
    arguments, shape, needs, formula = DATA[name]
    layer = eval(f"gn.zoo.{name}({arguments}{', ' if arguments else ''}dtype='float64')", {"gn": gn})
    x = positive(*shape) if name == "centered_log_ratio" else sample(*shape)
    if name in {"vec_normalize", "scanpy_scale"}:
        x[7, 2] = 500.0  # is clipped
    if not layer.initialized:
        layer.initialize(shape)
    config = layer.to_config()
    g, b = None, None
    if config["scaling"] == "Automatic":
        g = layer.scaling = sample(*layer.scaling.shape)
    if config["biases"] == "Automatic" and name != "layer_norm_scaling":
        b = layer.biases = sample(*layer.biases.shape)
    needs = {key: value(layer) if value is moved else value for key, value in needs.items()}
    made = {"np": np, "gn": gn, "layer": layer, "x": x, **needs}
    exec(gn.zoo.describe(name).call, made)
    expected = formula(x, g, b, **needs)
    np.testing.assert_allclose(made["y"], expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
    if "back" in made:
        np.testing.assert_allclose(made["back"], x, rtol=1e-9, atol=1e-9)


def test_the_norms_that_change_with_the_calls():
    layer = gn.zoo.rs_norm(3)
    parts = [sample(4, 3), sample(1, 3), sample(9, 3)]
    for part in parts:
        y = layer.adapt(part, reset=False)(part)
    seen = np.concatenate(parts)
    np.testing.assert_allclose(y, (parts[-1] - seen.mean(0)) / np.sqrt(seen.var(0) + 1e-5))

    layer = gn.zoo.fix_bn(4, dtype="float64")
    made = {"layer": layer, "x": sample(*PICTURES)}
    exec(gn.zoo.describe("fix_bn").call, made)
    m, v = (channel(one) for one in (layer.moments.mean, layer.moments.variance()))
    np.testing.assert_allclose(made["z"], (made["x"] - m) / np.sqrt(v + 1e-5))

    layer = gn.zoo.ghost_batch_norm(4)
    x = sample(5, 4, 3, 3)
    exec(gn.zoo.describe("ghost_batch_norm").call, {"layer": layer, "x": x, "np": np, "size": 2})
    m = np.zeros(4)
    for part in (x[:2], x[2:4], x[4:]):
        m = 0.9 * m + 0.1 * part.mean(BATCH)
    np.testing.assert_allclose(layer.moments.mean, m)

    layer = gn.zoo.mix_ln(5)
    made = {"layer": layer, "f": sublayer, "x": (x := sample(2, 5)), "index": 2, "depth": 12, "fraction": 0.25}
    exec(gn.zoo.describe("mix_ln").call, made)
    np.testing.assert_allclose(made["y"], z(x + sublayer(x), (-1,), 1e-5), rtol=1e-6)


@pytest.mark.parametrize("name", gn.zoo.names())
def test_descriptions(name):
    found = gn.zoo.describe(name)
    assert found.name == name
    assert found.title.endswith(".")
    assert "\n" not in found.title
    for part in (found.formula, found.layer, found.call, found.reference):
        assert part
        assert part.split("\n")[0] in str(found)
    assert repr(eval(found.example, {"gn": gn})) == found.layer
    assert found.reference in getattr(gn.zoo, name).__doc__
    assert bool(found.needs) == ("needs" in str(found))
    needed = DATA[name][2].keys() - {"held"}
    assert needed <= set(compile(found.call, name, "exec").co_names)
    assert all(word in found.needs for word in needed)


def test_names():
    assert {*gn.zoo.names()} == {*DATA}
    assert len(gn.zoo.names()) >= 60
    assert not {*gn.zoo.names()} & {*gn.zoo.missing()}
    assert all(reason and "\n" not in reason for reason in gn.zoo.missing().values())
    with pytest.raises(TypeError):
        gn.zoo.missing()["x"] = "y"


def test_arguments_of_the_layer_are_taken():
    assert gn.zoo.scale_norm(4, epsilon=0, trainable=False).trainable is False
    assert gn.zoo.rev_in(4, scaling=None).scaling is None
    with pytest.raises(gn.errors.ConfigError, match="scale_norm takes no method"):
        gn.zoo.scale_norm(4, method="RMS")
