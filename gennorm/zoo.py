"""Published normalizations by name, each as the layer that it is, with the paper's defaults.

>>> import gennorm as gn
>>> gn.zoo.scale_norm(512)
NormalizationLayer(-1, (), method='RMS', ...)
>>> print(gn.zoo.describe("scale_norm").formula)
y = g x / max(|x|, ε), g = √n at first

`names` lists them, `describe` says what each is and how it is called, and `missing` which others cannot be written, and
why. Every function takes the other arguments of `gennorm.NormalizationLayer` too.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from gennorm import presets
from gennorm.errors import ConfigError, GroupError, ParameterError, shown, suggest
from gennorm.layer.hints import checked_arguments
from gennorm.layer.layer import NormalizationLayer
from gennorm.presets import _made
from gennorm.spec.config import integer

Function = TypeVar("Function", bound=Callable[..., NormalizationLayer])


@dataclass(frozen=True, slots=True)
class Method:
    """A published normalization.

    Attributes
    ----------
    name : str
        Of the function in `gennorm.zoo`.
    title : str
        What it is, in a line.
    formula : str
        As in the paper: μ, σ² and ‖·‖ over the slice that is normalized, n its number of elements.
    reference : str
        Where it was published.
    example : str
        A call of the function.
    layer : str
        The layer that this call makes, as it is printed.
    call : str
        Lines of Python that compute `y` from `x` by the layer. Moments that they pass to it are constants to
        derivatives.
    needs : str
        What these lines use besides the layer and its input; empty if nothing.
    """

    name: str
    title: str
    formula: str
    reference: str
    example: str
    layer: str
    call: str
    needs: str

    def __str__(self) -> str:
        needs = f"\n{'needs':<11}{self.needs}" if self.needs else ""
        call = self.call.replace("\n", f"\n{'':<11}")
        rows = {"formula": self.formula, "layer": self.layer, "call": call}
        table = "\n".join(f"{name:<11}{value}" for name, value in rows.items())
        return f"{self.title}\n{table}{needs}\n{'reference':<11}{self.reference}"


@dataclass(frozen=True, slots=True)
class _Entry:
    function: Callable[..., NormalizationLayer]
    formula: str
    reference: str
    example: str
    call: str
    needs: str


_ENTRIES: dict[str, _Entry] = {}


def _method(
    formula: str, reference: str, example: str, call: str = "y = layer(x)", needs: str = ""
) -> Callable[[Function], Function]:
    """Add a function to the zoo, and its formula and its reference to its docstring."""

    def added(function: Function) -> Function:
        name = function.__name__
        lines = call.replace("\n", "\n    ")
        parts = [
            inspect.cleandoc(function.__doc__ or ""),
            f"``{formula}``",
            "It takes the other arguments of `gennorm.NormalizationLayer` too.",
            f"References\n----------\n{reference}",
            f"Notes\n-----\nThe layer is called so::\n\n    {lines}",
        ]
        function.__doc__ = "\n\n".join(parts)
        checked = checked_arguments(name)(function)
        _ENTRIES[name] = _Entry(checked, formula, reference, f"gn.zoo.{name}({example})", call, needs)
        return checked

    return added


def names() -> tuple[str, ...]:
    """Return the names of the normalizations that can be written, in alphabetical order.

    Examples
    --------
    >>> "rev_in" in names()
    True
    """
    return tuple(sorted(_ENTRIES))


def describe(name: str) -> Method:
    """Return the formula, the reference and the layer of a published normalization.

    Parameters
    ----------
    name : str
        One of `names`.

    Returns
    -------
    Method

    Raises
    ------
    ConfigError
        The name is not one of them; for one of `missing`, the message says why.

    Examples
    --------
    >>> print(describe("pixel_norm"))
    Pixel normalization: each position by the root mean square over its channels.
    formula    y = x / √(mean(x²) + ε)
    layer      NormalizationLayer(1, (), method='RMS', epsilon=1e-08, scaling=None, biases=None, batched=True)
    call       y = layer(x)
    reference  T. Karras et al., "Progressive Growing of GANs", 2017, arXiv:1710.10196
    """
    entry = _ENTRIES.get(name) if isinstance(name, str) else None
    if entry is None:
        reason = MISSING.get(name) if isinstance(name, str) else None
        if reason is not None:
            msg = f"{name} cannot be written as a layer\n{reason}"
        else:
            msg = f"the zoo has no {shown(name)}{suggest(name, [*_ENTRIES, *MISSING])}\n"
            msg += "gn.zoo.names() lists what it has, gn.zoo.missing() what cannot be written"
        raise ConfigError(msg, code="C090")
    layer = eval(entry.example.removeprefix("gn.zoo."), dict(globals()))
    title = (entry.function.__doc__ or "").split("\n\n")[0].replace("\n", " ")
    return Method(name, title, entry.formula, entry.reference, entry.example, repr(layer), entry.call, entry.needs)


def missing() -> Mapping[str, str]:
    """Return the published normalizations that cannot be written, each with the reason.

    Examples
    --------
    >>> missing()["local_response_norm"]
    'statistics over a window'
    """
    return MISSING


def _positive(function: Callable[..., Any], argument: str, value: Any) -> int:
    """Return a number of elements, which a formula divides by."""
    number = integer(value)
    if number is None or number < 1:
        msg = f"{argument} of {function.__name__} cannot be {shown(value)}\nwrite an integer, 1 or more"
        raise ConfigError(msg, code="C091")
    return number


# --------------------------------------------------------------------------------------------------- by a length or RMS


def _euclidean(
    function: Callable[..., Any], size: int, epsilon: float, keywords: Mapping[str, Any], radius: float | None = 1.0
) -> NormalizationLayer:
    """Return the layer that divides by the Euclidean length, √n times the root mean square; the radius may be √n."""
    root = math.sqrt(_positive(function, "size", size))
    fixed = {"aggregation_levels": -1, "scaling_levels": (), "method": "RMS", "input_shape": (..., size)}
    settings = {
        "scaling": np.float64(1.0 if radius is None else radius / root),
        "biases": None,
        "epsilon": epsilon / root,
        "epsilon_placement": "floor",
        "dtype": "float64",
    }
    return _made(function, fixed, settings, keywords)


@_method(
    "y = x / max(|x|, ε)",
    'PyTorch, "torch.nn.functional.normalize"; Keras, "UnitNormalization layer"',
    "768",
)
def unit_norm(size: int, *, epsilon: float = 1e-12, **keywords: Any) -> NormalizationLayer:
    """Unit normalization: each vector divided by its Euclidean length."""
    return _euclidean(unit_norm, size, epsilon, keywords)


@_method(
    "cos(q, k) = q / |q| · k / |k|",
    'Z. Liu et al., "Swin Transformer V2", 2021, arXiv:2111.09883',
    "64",
    "y = layer(x) @ layer(k).T",
    "k: the keys, beside the queries x; a learned temperature multiplies y",
)
def cosine_attention(size: int, *, epsilon: float = 1e-12, **keywords: Any) -> NormalizationLayer:
    """Cosine attention: queries and keys divided by their lengths."""
    return _euclidean(cosine_attention, size, epsilon, keywords)


@_method(
    "h ← Norm(h + α (Norm(f(h)) − h)), Norm(x) = x / |x|",
    'I. Loshchilov et al., "nGPT: Normalized Transformer with Representation Learning on the Hypersphere", 2024, '
    "arXiv:2410.01131",
    "768",
    "y = layer(x + alpha * (layer(f(x)) - x))",
    "f: the sublayer; alpha: the learned step of each element",
)
def ngpt(size: int, *, epsilon: float = 1e-12, **keywords: Any) -> NormalizationLayer:
    """NGPT: hidden states on the unit sphere."""
    return _euclidean(ngpt, size, epsilon, keywords)


@_method(
    "y = g x / max(|x|, ε), g = √n at first",
    'T. Q. Nguyen, J. Salazar, "Transformers without Tears", 2019, arXiv:1910.05895',
    "512",
)
def scale_norm(size: int, *, epsilon: float = 1e-5, **keywords: Any) -> NormalizationLayer:
    """Scale normalization: each vector on a sphere whose radius, g, is learned."""
    return _euclidean(scale_norm, size, epsilon, keywords, radius=None)


@_method(
    "q̂ = γ q / √(mean(q²) + ε)",
    'A. Henry et al., "Query-Key Normalization for Transformers", 2020, arXiv:2010.04245, with RMS and γ as in Qwen3',
    "128",
)
def qk_norm(size: int, *, heads: int | None = None, epsilon: float = 1e-6, **keywords: Any) -> NormalizationLayer:
    """Query-key normalization: RMS over each head, with one γ for all heads or, with `heads`, for each."""
    shape = (..., size) if heads is None else (..., heads, size)
    fixed = {
        "aggregation_levels": -1,
        "scaling_levels": "Same" if heads is None else "-2;;-1",
        "method": "RMS",
        "input_shape": shape,
    }
    return _made(qk_norm, fixed, {"epsilon": epsilon, "biases": None}, keywords)


@_method(
    "y = γ x / √(mean(x₁² … x_k²) + ε), k = ⌈p n⌉",
    'B. Zhang, R. Sennrich, "Root Mean Square Layer Normalization", 2019, arXiv:1910.07467',
    "512",
    "y = layer(x, mask=np.arange(x.shape[-1]) < np.ceil(p * x.shape[-1]))",
    "p: the share of elements that count, 0.0625 in the paper",
)
def p_rms_norm(size: int, *, epsilon: float = 1e-8, **keywords: Any) -> NormalizationLayer:
    """Partial RMS norm: the root mean square of the first elements divides all."""
    return presets.rms_norm(size, epsilon=epsilon, **keywords)


@_method(
    "y = x / √((Σ x² + (Σ x)²) / (n + 1) + ε)",
    'Z. Jiang et al., "Pre-RMSNorm and Pre-CRMSNorm Transformers", 2023, arXiv:2305.14858',
    "511",
    "m = gn.NormalizationLayer(-1).measure(x)\n"
    "total = m.count * m.mean\n"
    "y = layer(x, moments=(None, (m.m2 + m.mean * total + total**2) / (m.count + 1)))",
)
def crms_norm(size: int, *, epsilon: float = 1e-6, **keywords: Any) -> NormalizationLayer:
    """Compressed RMS norm: of vectors with mean 0 whose last element, the negative sum of the others, is left out."""
    return presets.rms_norm(size, **{"epsilon": epsilon, "scaling": None, **keywords})


@_method(
    "y = γ z / √(mean(z²) + ε), z = x ⊙ silu(g)",
    'T. Dao, A. Gu, "Transformers are SSMs" (Mamba-2), 2024, arXiv:2405.21060',
    "2048, groups=8",
    "y = layer(x * gate / (1 + np.exp(-gate)))",
    "gate: an array of the shape of x",
)
def gated_rms_norm(size: int, *, groups: int = 1, epsilon: float = 1e-5, **keywords: Any) -> NormalizationLayer:
    """Gated RMS norm: the input is multiplied by a gate, then normalized in groups."""
    fixed = {
        "aggregation_levels": -1,
        "scaling_levels": "Same",
        "group_number": groups,
        "method": "RMS",
        "input_shape": (..., size),
    }
    return _made(gated_rms_norm, fixed, {"epsilon": epsilon, "biases": None}, keywords)


@_method(
    "y = x / √(mean(x²) + ε)",
    'T. Karras et al., "Progressive Growing of GANs", 2017, arXiv:1710.10196',
    "",
)
def pixel_norm(*, channel_level: int = 1, epsilon: float = 1e-8, **keywords: Any) -> NormalizationLayer:
    """Pixel normalization: each position by the root mean square over its channels."""
    fixed = {"aggregation_levels": channel_level, "scaling_levels": (), "method": "RMS"}
    settings = {"epsilon": epsilon, "scaling": None, "biases": None, "batched": True}
    return _made(pixel_norm, fixed, settings, keywords)


@_method(
    "y = max(γ x / √(mean(x²) + ε) + β, τ)",
    'S. Singh, S. Krishnan, "Filter Response Normalization Layer", 2019, arXiv:1911.09737',
    "64",
    "y = np.maximum(layer(x), tau)",
    "tau: the learned threshold of each channel, which broadcasts to the output",
)
def filter_response_norm(channels: int, *, epsilon: float = 1e-6, **keywords: Any) -> NormalizationLayer:
    """Filter response normalization: each channel by its root mean square over positions, then a threshold."""
    return presets.instance_norm(channels, **{"method": "RMS", "epsilon": epsilon, **keywords})


# --------------------------------------------------------------------------------------------------------- layer norms


@_method(
    "y = (x − μ) / √(σ² + ε)",
    'J. Xu et al., "Understanding and Improving Layer Normalization" (LayerNorm-simple), 2019, arXiv:1911.07013',
    "768",
)
def simple_norm(size: int, *, epsilon: float = 1e-5, **keywords: Any) -> NormalizationLayer:
    """Simple layer norm: without parameters."""
    return presets.layer_norm(size, **{"epsilon": epsilon, "scaling": None, "biases": None, **keywords})


@_method(
    "y = LayerNorm(x) / √ℓ",
    'W. Sun et al., "The Curse of Depth in Large Language Models" (LayerNorm Scaling), 2025, arXiv:2502.05795',
    "768, 4",
)
def layer_norm_scaling(size: int, index: int, *, epsilon: float = 1e-5, **keywords: Any) -> NormalizationLayer:
    """Layer norm scaling: the output of the block with this index, from 1 on, is divided by its root."""
    number = _positive(layer_norm_scaling, "index", index)
    scaling = np.full(_positive(layer_norm_scaling, "size", size), 1 / math.sqrt(number))
    return presets.layer_norm(size, **{"epsilon": epsilon, "scaling": scaling, **keywords})


@_method(
    "y = (1 + s) ⊙ (x − μ) / √(σ² + ε) + b",
    'W. Peebles, S. Xie, "Scalable Diffusion Models with Transformers" (adaLN-Zero), 2022, arXiv:2212.09748',
    "1152",
    "y = layer(x, scaling=1 + scale, biases=shift)",
    "scale and shift: of shape (N, size), from the condition; a gate multiplies the output of the sublayer",
)
def ada_ln_zero(size: int, *, epsilon: float = 1e-6, **keywords: Any) -> NormalizationLayer:
    """Adaptive layer norm: scaling and biases of each example come from a condition."""
    settings = {"epsilon": epsilon, "scaling": None, "biases": None, "batched": True}
    return presets.layer_norm(size, **{**settings, **keywords})


@_method(
    "y = γ (x − μ) / √(σ² + ε) + β, over channels and time",
    'Y. Luo, N. Mesgarani, "Conv-TasNet" (gLN), 2018, arXiv:1809.07454',
    "512",
)
def global_layer_norm(channels: int, *, epsilon: float = 1e-8, **keywords: Any) -> NormalizationLayer:
    """Global layer norm: over channels and time, with parameters for each channel."""
    fixed = {"aggregation_levels": "All", "scaling_levels": 1, "input_shape": (channels, ...)}
    return _made(global_layer_norm, fixed, {"epsilon": epsilon, "batched": True}, keywords)


@_method(
    "y = γ (x − μ) / √(σ² + ε) + β, over channels",
    'Z. Liu et al., "A ConvNet for the 2020s" (LayerNorm of ConvNeXt, channels first), 2022, arXiv:2201.03545',
    "96",
)
def channel_layer_norm(channels: int, *, epsilon: float = 1e-6, **keywords: Any) -> NormalizationLayer:
    """Channel layer norm: each position over its channels, which are on level 1."""
    fixed = {"aggregation_levels": 1, "scaling_levels": "Same", "input_shape": (channels, ...)}
    return _made(channel_layer_norm, fixed, {"epsilon": epsilon, "batched": True}, keywords)


@_method(
    "y = (x − μ) / √(σ² + ε), over channels",
    'B. Li et al., "Positional Normalization", 2019, arXiv:1907.04312',
    "",
)
def positional_norm(*, channel_level: int = 1, epsilon: float = 1e-5, **keywords: Any) -> NormalizationLayer:
    """Positional normalization: each position over its channels, without parameters."""
    fixed = {"aggregation_levels": channel_level, "scaling_levels": ()}
    settings = {"epsilon": epsilon, "scaling": None, "biases": None, "batched": True}
    return _made(positional_norm, fixed, settings, keywords)


@_method(
    "y = (x − μ) / √(σ² + ε), for each head",
    'Y. Sun et al., "Retentive Network", 2023, arXiv:2307.08621',
    "8, 512",
)
def retention_norm(heads: int, size: int, *, epsilon: float = 1e-5, **keywords: Any) -> NormalizationLayer:
    """Retention norm: group norm of the heads of each token, which stand side by side in one level."""
    fixed = {
        "aggregation_levels": -1,
        "scaling_levels": "Same",
        "group_number": heads,
        "input_shape": (..., size),
    }
    return _made(retention_norm, fixed, {"epsilon": epsilon, "scaling": None, "biases": None}, keywords)


# ------------------------------------------------------------------------------------------- where a block normalizes


@_method(
    "y = x + Norm₂(f(Norm₁(x)))",
    'J. Kim et al., "Peri-LN", 2025, arXiv:2502.02732',
    "768",
    "y = x + after(f(layer(x)))",
    "f: the sublayer; after: another such layer",
)
def peri_ln(size: int, *, epsilon: float = 1e-6, **keywords: Any) -> NormalizationLayer:
    """Peri-LN: RMS norm before and after each sublayer."""
    return presets.rms_norm(size, epsilon=epsilon, **keywords)


@_method(
    "y = x + LN₂(f(LN₁(x)))",
    'M. Ding et al., "CogView" (Sandwich-LN), 2021, arXiv:2105.13290',
    "768",
    "y = x + after(f(layer(x)))",
    "f: the sublayer; after: another such layer",
)
def sandwich_norm(size: int, *, epsilon: float = 1e-5, **keywords: Any) -> NormalizationLayer:
    """Sandwich norm: layer norm before and after each sublayer."""
    return presets.layer_norm(size, epsilon=epsilon, **keywords)


@_method(
    "y = LN(α x + f(x)), α = (2 L)^¼",
    'H. Wang et al., "DeepNet: Scaling Transformers to 1,000 Layers", 2022, arXiv:2203.00555',
    "768",
    "y = layer(alpha * x + f(x))",
    "f: the sublayer; alpha: (2 * depth) ** 0.25 in an encoder-only or decoder-only model of this depth",
)
def deep_norm(size: int, *, epsilon: float = 1e-5, **keywords: Any) -> NormalizationLayer:
    """Deep norm: layer norm behind a residual connection that is scaled up."""
    return presets.layer_norm(size, epsilon=epsilon, **keywords)


@_method(
    "y = x + W₂ LN₂(φ(W₁ LN₁(x)))",
    'H. Wang et al., "Foundation Transformers" (Magneto, Sub-LN), 2022, arXiv:2210.06423',
    "768",
    "y = x + w2(inner(w1(layer(x))))",
    "w1 and w2: both halves of the sublayer; inner: another such layer",
)
def sub_ln(size: int, *, epsilon: float = 1e-5, **keywords: Any) -> NormalizationLayer:
    """Sub-LN: layer norm before each sublayer and inside it."""
    return presets.layer_norm(size, epsilon=epsilon, **keywords)


@_method(
    "y = LN(x + f(x)) in the first blocks, x + f(LN(x)) in the others",
    'P. Li et al., "Mix-LN", 2024, arXiv:2412.13795',
    "768",
    "y = layer(x + f(x)) if index < fraction * depth else x + f(layer(x))",
    "f: the sublayer; index and depth: its place in the model; fraction: 0.25 in the paper",
)
def mix_ln(size: int, *, epsilon: float = 1e-5, **keywords: Any) -> NormalizationLayer:
    """Mix-LN: layer norm behind the sublayers of the first blocks, and before those of the others."""
    return presets.layer_norm(size, epsilon=epsilon, **keywords)


@_method(
    "z = Norm(x), y = z + f(z)",
    'Z. Zhuo et al., "HybridNorm", 2025, arXiv:2503.04598',
    "768",
    "z = layer(x)\ny = z + f(z)",
    "f: the feed-forward sublayer; queries, keys and values of the attention are normalized by qk_norm",
)
def hybrid_norm(size: int, *, epsilon: float = 1e-6, **keywords: Any) -> NormalizationLayer:
    """HybridNorm: RMS norm behind the residual connection of the attention, and of its queries, keys and values."""
    return presets.rms_norm(size, epsilon=epsilon, **keywords)


# ------------------------------------------------------------------------------------------------- pictures and styles


@_method(
    "y = γ (x − μ) / √(σ² + ε) + β, over the batch and groups of channels",
    'X.-Y. Zhou et al., "Batch Group Normalization", 2020, arXiv:2012.02782',
    "16, 64",
    "y = layer(x, training=True)",
)
def batch_group_norm(groups: int, channels: int, *, epsilon: float = 1e-5, **keywords: Any) -> NormalizationLayer:
    """Batch group normalization: over the batch, positions and groups of channels; `groups` divides `channels`."""
    fixed = {
        "aggregation_levels": "0;;All",
        "scaling_levels": 1,
        "group_number": {1: groups},
        "input_shape": (channels, ...),
    }
    settings = {"epsilon": epsilon, "batched": True, "statistics": "moving", "momentum": 0.9}
    return _made(batch_group_norm, fixed, settings, keywords)


@_method(
    "y = σ(s) (x − μ(x)) / σ(x) + μ(s)",
    'X. Huang, S. Belongie, "Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization", 2017, '
    "arXiv:1703.06868",
    "512",
    "m = layer.measure(style)\ny = layer(x, scaling=np.sqrt(m.variance() + layer.epsilon), biases=m.mean)",
    "style: features of a batch of styles",
)
def ada_in(channels: int, *, epsilon: float = 1e-5, **keywords: Any) -> NormalizationLayer:
    """Adaptive instance norm: each channel gets the mean and the deviation that it has in a style."""
    return presets.instance_norm(channels, **{"epsilon": epsilon, "scaling": None, "biases": None, **keywords})


@_method(
    "y = (γ + Δγ) (x − μ) / √(σ² + ε) + β + Δβ",
    'H. de Vries et al., "Modulating early visual processing by language", 2017, arXiv:1707.00683; E. Perez et al., '
    '"FiLM", 2017, arXiv:1709.07871',
    "64",
    "y = layer(x, training=True, scaling=gamma, biases=beta)",
    "gamma and beta: of shape (N, channels), from the condition",
)
def conditional_batch_norm(channels: int, *, epsilon: float = 1e-5, **keywords: Any) -> NormalizationLayer:
    """Conditional batch norm, FiLM: scaling and biases of each example come from a condition."""
    settings = {"epsilon": epsilon, "momentum": 0.9, "scaling": None, "biases": None}
    return presets.batch_norm(channels, **{**settings, **keywords})


@_method(
    "y = γ (x − μ) / σ + β, γ = λ σ + (1 − λ) σ′, β = λ μ + (1 − λ) μ′",
    'K. Zhou et al., "Domain Generalization with MixStyle", 2021, arXiv:2104.02008',
    "64",
    "m = layer.measure(x)\n"
    "deviation = np.sqrt(m.variance() + layer.epsilon)\n"
    "scale = share * deviation + (1 - share) * deviation[order]\n"
    "y = layer(x, scaling=scale, biases=share * m.mean + (1 - share) * m.mean[order])",
    "order: a permutation of the batch; share: λ of each example, of shape (N, 1), from a beta distribution",
)
def mix_style(channels: int, *, epsilon: float = 1e-6, **keywords: Any) -> NormalizationLayer:
    """MixStyle: each example gets its mean and deviation mixed with those of another example."""
    return presets.instance_norm(channels, **{"epsilon": epsilon, "scaling": None, "biases": None, **keywords})


@_method(
    "y = σ′ (x − μ) / σ + μ′",
    'Z. Tang et al., "CrossNorm and SelfNorm for Generalization under Distribution Shifts", 2021, arXiv:2102.02811',
    "64",
    "m = layer.measure(x)\ny = layer(x, scaling=np.sqrt(m.variance() + layer.epsilon)[order], biases=m.mean[order])",
    "order: a permutation of the batch",
)
def cross_norm(channels: int, *, epsilon: float = 1e-5, **keywords: Any) -> NormalizationLayer:
    """CrossNorm: examples exchange the means and deviations of their channels."""
    return presets.instance_norm(channels, **{"epsilon": epsilon, "scaling": None, "biases": None, **keywords})


# -------------------------------------------------------------------------------------------------------------- weights


@_method(
    "ŵ = (w − μ) / √(σ² + ε), for each output channel",
    'S. Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization", 2019, '
    "arXiv:1903.10520",
    "",
)
def weight_standardization(*, epsilon: float = 1e-5, **keywords: Any) -> NormalizationLayer:
    """Weight standardization: the weights of each output channel, which is the first axis of the array."""
    fixed = {"aggregation_levels": "2;;All", "scaling_levels": "Complement"}
    return _made(weight_standardization, fixed, {"epsilon": epsilon, "scaling": None, "biases": None}, keywords)


def _sizes(function: Callable[..., Any], shape: Any) -> tuple[int, ...]:
    """Return the shape of weights, which have an axis for the output channels and another one at least."""
    if isinstance(shape, str) or not isinstance(shape, Sequence) or len(shape) < 2:
        msg = f"shape of {function.__name__} cannot be {shown(shape)}\n"
        msg += "write the shape of the weights, output channels first: (64, 32, 3, 3)"
        raise ConfigError(msg, code="C092")
    return tuple(_positive(function, "a size in shape", size) for size in shape)


def _weights(
    function: Callable[..., Any], shape: tuple[int, ...], settings: Mapping[str, Any], keywords: Mapping[str, Any]
) -> NormalizationLayer:
    fixed = {"aggregation_levels": "2;;All", "method": "RMS", "input_shape": tuple(shape)}
    return _made(function, fixed, {"biases": None, "dtype": "float64", **settings}, keywords)


@_method(
    "w = g v / |v|, for each output channel",
    'T. Salimans, D. P. Kingma, "Weight Normalization", 2016, arXiv:1602.07868',
    "(64, 32, 3, 3)",
)
def weight_norm(shape: tuple[int, ...], *, length: Any = 1.0, **keywords: Any) -> NormalizationLayer:
    """Weight normalization: the weights of each output channel, the first axis, get the learned `length` g."""
    sizes = _sizes(weight_norm, shape)
    if np.shape(length) not in {(), sizes[:1]}:
        msg = f"length of weight_norm has the shape {np.shape(length)}, and there are {sizes[0]} output channels\n"
        msg += f"write one number, or an array of shape {sizes[:1]}"
        raise ParameterError(msg, code="P050")
    scaling = np.broadcast_to(length, sizes[:1]) / math.sqrt(math.prod(sizes[1:]))
    return _weights(weight_norm, sizes, {"epsilon": 0.0, "scaling": scaling}, keywords)


@_method(
    "w″ = w′ / √(Σ w′² + ε), for each output channel",
    'T. Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (demodulation), 2019, arXiv:1912.04958',
    "(64, 32, 3, 3)",
)
def demodulation(shape: tuple[int, ...], *, epsilon: float = 1e-8, **keywords: Any) -> NormalizationLayer:
    """Demodulation: the modulated weights of each output channel, the first axis, get length 1."""
    sizes = _sizes(demodulation, shape)
    number = math.prod(sizes[1:])
    scaling = np.full(sizes[:1], 1 / math.sqrt(number))
    return _weights(demodulation, sizes, {"epsilon": epsilon / number, "scaling": scaling}, keywords)


# ------------------------------------------------------------------------------ batch norm, by other moments than usual


@_method(
    "μ, σ² of a reference batch and of the example together",
    'T. Salimans et al., "Improved Techniques for Training GANs" (virtual batch normalization), 2016, arXiv:1606.03498',
    "64",
    'whole = gn.NormalizationLayer("{0, 2;;All}", 1, batched=True).measure(reference)\n'
    "own = layer.measure(x)\n"
    "parts = [np.broadcast_to(part, own.shape) for part in (whole.count, whole.mean, whole.m2)]\n"
    "y = layer(x, moments=own + gn.Moments(*parts))",
    "reference: a batch that is chosen once",
)
def virtual_batch_norm(channels: int, *, epsilon: float = 1e-5, **keywords: Any) -> NormalizationLayer:
    """Virtual batch norm: each example by its own moments pooled with those of a fixed batch."""
    return presets.instance_norm(channels, **{"epsilon": epsilon, **keywords})


@_method(
    "μ = α μₛ + (1 − α) μₜ, σ² = α σₛ² + (1 − α) σₜ²",
    'F. You et al., "Test-time Batch Statistics Calibration for Covariate Shift" (α-BN), 2021, arXiv:2110.04065',
    "64",
    'own = gn.NormalizationLayer("{0, 2;;All}", 1, batched=True).measure(x)\n'
    "mean = alpha * layer.moments.mean + (1 - alpha) * own.mean\n"
    "y = layer(x, moments=(mean, alpha * layer.moments.variance() + (1 - alpha) * own.variance()))",
    "alpha: the weight of the moments of training, 0.9 in the paper",
)
def alpha_batch_norm(channels: int, *, epsilon: float = 1e-5, **keywords: Any) -> NormalizationLayer:
    """α-BN: batch norm by a mixture of the moments of training with those of the test batch."""
    return presets.batch_norm(channels, **{"epsilon": epsilon, "momentum": 0.9, **keywords})


@_method(
    "μ = α μₜ + (1 − α) μₛ, σ² = α σₜ² + (1 − α) σₛ² + α (1 − α) (μₜ − μₛ)²",
    'H. Lim et al., "TTN: A Domain-Shift Aware Batch Normalization in Test-Time Adaptation", 2023, arXiv:2302.05155',
    "64",
    'own = gn.NormalizationLayer("{0, 2;;All}", 1, batched=True).measure(x)\n'
    "held = layer.moments\n"
    "mean = alpha * own.mean + (1 - alpha) * held.mean\n"
    "between = alpha * (1 - alpha) * (own.mean - held.mean) ** 2\n"
    "y = layer(x, moments=(mean, alpha * own.variance() + (1 - alpha) * held.variance() + between))",
    "alpha: the weight of the test batch for each channel, which the paper learns before the test",
)
def ttn(channels: int, *, epsilon: float = 1e-5, **keywords: Any) -> NormalizationLayer:
    """TTN: batch norm by the moments of a mixture of training and test batch, with a share for each channel."""
    return presets.batch_norm(channels, **{"epsilon": epsilon, "momentum": 0.9, **keywords})


@_method(
    "μ, σ² of the target domain",
    'Y. Li et al., "Revisiting Batch Normalization For Practical Domain Adaptation" (AdaBN), 2016, arXiv:1603.04779',
    "64",
    "y = layer.adapt(target)(x)",
    "target: the data of the target domain",
)
def ada_bn(channels: int, *, epsilon: float = 1e-5, **keywords: Any) -> NormalizationLayer:
    """AdaBN: batch norm by the moments of the whole target domain."""
    return presets.batch_norm(channels, **{"epsilon": epsilon, "statistics": "dataset", **keywords})


@_method(
    "μ, σ² of the test batch",
    'Z. Nado et al., "Evaluating Prediction-Time Batch Normalization", 2020, arXiv:2006.10963',
    "64",
)
def prediction_time_batch_norm(channels: int, *, epsilon: float = 1e-5, **keywords: Any) -> NormalizationLayer:
    """Prediction-time batch norm: by the moments of the batch in inference too."""
    return presets.batch_norm(channels, **{"epsilon": epsilon, "statistics": "input", **keywords})


@_method(
    "μ, σ² of the test batch; γ and β minimize the entropy of the predictions",
    'D. Wang et al., "Tent: Fully Test-Time Adaptation by Entropy Minimization", 2020, arXiv:2006.10726',
    "64",
)
def tent(channels: int, *, epsilon: float = 1e-5, **keywords: Any) -> NormalizationLayer:
    """Tent: batch norm by the moments of the test batch, with parameters that are trained in the test."""
    return presets.batch_norm(channels, **{"epsilon": epsilon, "statistics": "input", **keywords})


@_method(
    "batch norm whose moments and parameters are not averaged over clients",
    'X. Li et al., "FedBN", 2021, arXiv:2102.07623',
    "64",
    "y = layer(x, training=True)",
    "a layer for each client, which is not shared",
)
def fed_bn(channels: int, *, epsilon: float = 1e-5, **keywords: Any) -> NormalizationLayer:
    """FedBN: each client of federated learning keeps its batch norm."""
    return presets.batch_norm(channels, **{"epsilon": epsilon, "momentum": 0.9, **keywords})


@_method(
    "batch norm whose moments are frozen after the first rounds",
    'J. Zhong et al., "Making Batch Normalization Great in Federated Deep Learning" (FixBN), 2023, arXiv:2303.06530',
    "64",
    "y = layer(x, training=True)\nlayer.trainable = False\nz = layer(x, training=True)",
    "",
)
def fix_bn(channels: int, *, epsilon: float = 1e-5, **keywords: Any) -> NormalizationLayer:
    """FixBN: batch norm that is frozen after the first rounds, in training too."""
    return presets.batch_norm(channels, **{"epsilon": epsilon, "momentum": 0.9, **keywords})


# ------------------------------------------------------------------------------------------------------ data and series


@_method(
    "y = (x − μₜ) / √(σₜ² + ε), over all observations until now",
    'H. Lee et al., "SimBa: Simplicity Bias for Scaling Up Parameters in Deep RL" (RSNorm), 2024, arXiv:2410.09754',
    "17",
    "y = layer.adapt(x, reset=False)(x)",
)
def rs_norm(size: int, *, epsilon: float = 1e-5, **keywords: Any) -> NormalizationLayer:
    """Running statistics normalization: each observed feature by its mean and variance until now."""
    settings = {"epsilon": epsilon, "epsilon_placement": "inside", "input_shape": (..., size)}
    return presets.feature_norm(-1, **{**settings, **keywords})


@_method(
    "y = γ (x − μ) / √(σ² + ε) + β, over time",
    'T. Kim et al., "Reversible Instance Normalization for Accurate Time-Series Forecasting", ICLR 2022',
    "7",
    "y = layer(x)\nback = layer.inverse(y, layer.measure(x))",
)
def rev_in(variables: int, *, epsilon: float = 1e-5, **keywords: Any) -> NormalizationLayer:
    """RevIN: each variable of a series of shape (time, variables) over time, and back again."""
    return presets.instance_norm(
        variables, **{"channel_level": -1, "spatial_levels": 1, "epsilon": epsilon, **keywords}
    )


@_method(
    "y = (x − μ) / √(σ² + ε), over time",
    'Y. Liu et al., "Non-stationary Transformers", 2022, arXiv:2205.14415',
    "7",
    "y = layer(x)\nback = layer.inverse(y, layer.measure(x))",
)
def series_stationarization(variables: int, *, epsilon: float = 1e-5, **keywords: Any) -> NormalizationLayer:
    """Series stationarization: each variable of a series of shape (time, variables) over time, and back again."""
    settings = {"channel_level": -1, "spatial_levels": 1, "epsilon": epsilon, "scaling": None, "biases": None}
    return presets.instance_norm(variables, **{**settings, **keywords})


@_method(
    "y = (x − μ) / (σ + ε), over each part of the time",
    'Z. Liu et al., "Adaptive Normalization for Non-stationary Time Series Forecasting" (SAN), NeurIPS 2023',
    "96, 12, 7",
)
def slice_adaptive_norm(
    length: int, part: int, variables: int, *, epsilon: float = 1e-5, **keywords: Any
) -> NormalizationLayer:
    """Slice-level adaptive normalization: each variable over parts of the time, `part` steps long."""
    steps, size = _positive(slice_adaptive_norm, "length", length), _positive(slice_adaptive_norm, "part", part)
    if steps % size:
        msg = f"slice_adaptive_norm cannot cut {steps} steps into parts of {size}\n"
        msg += f"write a part that divides the length, {steps}"
        raise GroupError(msg, code="G031")
    fixed = {
        "aggregation_levels": 1,
        "scaling_levels": (),
        "group_number": steps // size,
        "input_shape": (length, variables),
    }
    settings = {"epsilon": epsilon, "epsilon_placement": "outside", "scaling": None, "biases": None}
    return _made(slice_adaptive_norm, fixed, settings, keywords)


@_method(
    "y = (x − μ) / σ, over the frames of an utterance",
    'O. Viikki, K. Laurila, "Cepstral domain segmental feature vector normalization for noise robust speech '
    'recognition", 1998',
    "80",
    "y = layer(x, mask=frames[:, :, None])",
    "frames: of shape (N, time), true for the frames that are not padding",
)
def cmvn(features: int, *, epsilon: float = 0.0, **keywords: Any) -> NormalizationLayer:
    """Cepstral mean and variance normalization: each feature over the frames of an utterance."""
    fixed = {"aggregation_levels": 1, "scaling_levels": (), "input_shape": (None, features)}
    return _made(cmvn, fixed, {"epsilon": epsilon, "scaling": None, "biases": None}, keywords)


@_method(
    "y = (x − μ) / max(σ, ε), for each channel",
    'F. Isensee et al., "nnU-Net", 2021, doi:10.1038/s41592-020-01008-z (ZScoreNormalization)',
    "",
)
def nnunet_z_score(*, epsilon: float = 1e-8, **keywords: Any) -> NormalizationLayer:
    """Z-score of nnU-Net: each channel of a volume over all its voxels."""
    fixed = {"aggregation_levels": "2;;All", "scaling_levels": ()}
    settings = {"epsilon": epsilon, "epsilon_placement": "floor", "scaling": None, "biases": None}
    return _made(nnunet_z_score, fixed, settings, keywords)


@_method(
    "y = (x − μ) / s, s² over n − 1, of the voxels in a mask",
    'F. Pérez-García et al., "TorchIO", 2021, arXiv:2003.04696 (ZNormalization)',
    "",
    "y = layer(x, mask=voxels)",
    "voxels: true where an element counts",
)
def torchio_z_normalization(**keywords: Any) -> NormalizationLayer:
    """Z-normalization of TorchIO: an image by the mean and the unbiased deviation of the voxels in a mask."""
    fixed = {"aggregation_levels": "All", "scaling_levels": (), "unbiased": True}
    return _made(torchio_z_normalization, fixed, {"epsilon": 0.0, "scaling": None, "biases": None}, keywords)


@_method(
    "μ = Σ w x / Σ w, σ² = Σ w (x − μ)² / Σ w, w = cos(latitude)",
    'S. Rasp et al., "WeatherBench 2", 2023, arXiv:2308.15560',
    "",
    "y = layer.adapt(x, weights=np.cos(latitude)[:, None])(x)",
    "latitude: in radians, of level 2 of fields of shape (variables, latitude, longitude)",
)
def latitude_weighted_z_score(*, epsilon: float = 1e-7, **keywords: Any) -> NormalizationLayer:
    """Latitude-weighted z-score: each variable of a data set, and every part of the globe counts by its area."""
    return presets.feature_norm(1, epsilon=epsilon, **keywords)


@_method(
    "y = Δx / σ(Δx), for each variable",
    'R. Lam et al., "GraphCast", 2022, arXiv:2212.12794',
    "",
    "steps = np.diff(x, axis=0)\n"
    "variance = layer.adapt(steps).moments.variance()\n"
    "layer.moments = gn.Moments.from_variance(np.zeros_like(variance), variance)\n"
    "y = layer(steps)",
)
def tendency_scaling(*, epsilon: float = 1e-7, **keywords: Any) -> NormalizationLayer:
    """Tendency scaling: differences in time by the deviation of such differences, without subtracting their mean."""
    return presets.feature_norm(1, epsilon=epsilon, **keywords)


# ----------------------------------------------------------------------------------------- something behind, or before


@_method(
    "y = γ (x − μ) / √(σ² + ε) + β, over ghost batches",
    'E. Hoffer et al., "Train longer, generalize better", 2017, arXiv:1705.08741',
    "64",
    "parts = np.split(x, range(size, len(x), size))\ny = np.concatenate(layer(parts, training=True))",
    "size: the number of examples of a ghost batch; the last one may be smaller",
)
def ghost_batch_norm(channels: int, *, epsilon: float = 1e-5, **keywords: Any) -> NormalizationLayer:
    """Ghost batch norm: batch norm over small parts of the batch, which update the moving moments one by one."""
    return presets.batch_norm(channels, **{"epsilon": epsilon, "momentum": 0.9, **keywords})


@_method(
    "y = γ ⊙ (x − μ) / √(σ² + ε) + β, γ and β of each position",
    'T. Park et al., "Semantic Image Synthesis with Spatially-Adaptive Normalization" (SPADE), 2019, arXiv:1903.07291',
    "64",
    "y = gamma * layer(x, training=True) + beta",
    "gamma and beta: of the shape of x, from a segmentation",
)
def spade(channels: int, *, epsilon: float = 1e-5, **keywords: Any) -> NormalizationLayer:
    """SPADE: batch norm without parameters, then scaling and biases for each position."""
    settings = {"epsilon": epsilon, "momentum": 0.9, "scaling": None, "biases": None}
    return presets.batch_norm(channels, **{**settings, **keywords})


@_method(
    "y = f((x − μ) / σ) σ + μ, μ and σ over the channels of each position",
    'B. Li et al., "Positional Normalization" (PONO-MS), 2019, arXiv:1907.04312',
    "",
    "m = layer.measure(x)\ny = f(layer(x)) * np.sqrt(m.variance() + layer.epsilon)[:, None] + m.mean[:, None]",
    "f: the layers between",
)
def moment_shortcut(*, epsilon: float = 1e-5, **keywords: Any) -> NormalizationLayer:
    """Moment shortcut: what positional normalization takes away is given back to a later layer."""
    return positional_norm(epsilon=epsilon, **keywords)


@_method(
    "y = (1 + w) ⊙ x / √(mean(x²) + ε)",
    'Gemma Team, "Gemma", 2024, arXiv:2403.08295, and NVIDIA Transformer Engine (zero-centered gamma)',
    "2048",
    "y = layer(x, scaling=1 + w)",
    "w: of shape (size,), zeros at first",
)
def zero_centered_rms_norm(size: int, *, epsilon: float = 1e-6, **keywords: Any) -> NormalizationLayer:
    """Zero-centred RMS norm: the scaling is 1 + w, so that weight decay draws it to 1."""
    return presets.rms_norm(size, **{"epsilon": epsilon, "scaling": None, **keywords})


@_method(
    "y = (tanh(x · β) α + γ) ⊙ x / √(mean(x²) + ε)",
    '"SeeDNorm: Self-Rescaled Dynamic Normalization", 2025, arXiv:2510.22777',
    "768",
    "y = (np.tanh(x @ beta)[..., None] * alpha + gamma) * layer(x)",
    "alpha, beta and gamma: learned, of shape (size,)",
)
def see_d_norm(size: int, *, epsilon: float = 1e-6, **keywords: Any) -> NormalizationLayer:
    """SeeDNorm: RMS norm whose scaling depends on the token."""
    return presets.rms_norm(size, **{"epsilon": epsilon, "scaling": None, **keywords})


@_method(
    "y = Σᵢ aᵢ xⁱ / √(mean(x²ⁱ) + ε) + b, i = 1, 2, 3",
    'Z. Zhuo et al., "Polynomial Composition Activations" (PolyNorm), 2024, arXiv:2411.03884',
    "768",
    "y = sum(a * layer(x**i) for i, a in enumerate(weights, 1)) + bias",
    "weights and bias: learned numbers, 1/3 each and 0 at first",
)
def poly_norm(size: int, *, epsilon: float = 1e-6, **keywords: Any) -> NormalizationLayer:
    """PolyNorm: a polynomial activation each of whose powers is normalized."""
    return presets.rms_norm(size, **{"epsilon": epsilon, "scaling": None, **keywords})


@_method(
    "y = BatchNorm(x) + η x",
    'J. Guo et al., "SLAB: Efficient Transformers with Simplified Linear Attention and Progressive Re-parameterized '
    'Batch Normalization" (RepBN), 2024, arXiv:2405.11582',
    "768",
    "y = layer(x, training=True) + eta * x",
    "eta: a learned number",
)
def rep_bn(size: int, *, epsilon: float = 1e-5, **keywords: Any) -> NormalizationLayer:
    """RepBN: batch norm of tokens, and a share of its input."""
    settings = {"channel_level": -1, "epsilon": epsilon, "momentum": 0.9}
    return presets.batch_norm(size, **{**settings, **keywords})


@_method(
    "y = [InstanceNorm(x₁), BatchNorm(x₂)], x₁ the first half of the channels",
    'X. Pan et al., "Two at Once: Enhancing Learning and Generalization Capacities via IBN-Net", 2018, '
    "arXiv:1807.09441",
    "32",
    "y = np.concatenate([layer(x[:, :half]), batch(x[:, half:], training=True)], axis=1)",
    "half: half of the channels; batch: gn.batch_norm(half, epsilon=1e-5, momentum=0.9)",
)
def ibn(half: int, *, epsilon: float = 1e-5, **keywords: Any) -> NormalizationLayer:
    """IBN: instance norm of one half of the channels and batch norm of the other."""
    return presets.instance_norm(half, **{"epsilon": epsilon, **keywords})


@_method(
    "y = x + s |x| m / |m|",
    'G. Li et al., "DeeperGCN" (MessageNorm), 2020, arXiv:2006.07739',
    "128",
    "y = x + s * np.linalg.norm(x, axis=-1, keepdims=True) * layer(messages)",
    "messages: aggregated for each node, of the shape of x; s: a learned number",
)
def message_norm(size: int, *, epsilon: float = 1e-12, **keywords: Any) -> NormalizationLayer:
    """MessageNorm: aggregated messages get the length of the features of their node, times s."""
    return _euclidean(message_norm, size, epsilon, keywords)


@_method(
    "y = clip((x − μₜ) / √(σₜ² + ε), −10, 10)",
    'A. Raffin et al., "Stable-Baselines3" (VecNormalize), 2021, JMLR 22(268)',
    "17",
    "y = np.clip(layer.adapt(x, reset=False)(x), -10, 10)",
)
def vec_normalize(size: int, *, epsilon: float = 1e-8, **keywords: Any) -> NormalizationLayer:
    """VecNormalize: observations by the mean and variance until now, then clipped."""
    settings = {"epsilon": epsilon, "epsilon_placement": "inside", "input_shape": (..., size)}
    return presets.feature_norm(-1, **{**settings, **keywords})


@_method(
    "y = min((x − μ) / s, 10), s² over n − 1",
    'F. A. Wolf et al., "SCANPY", 2018, doi:10.1186/s13059-017-1382-0 (pp.scale)',
    "2000",
    "y = np.minimum(layer(x), 10)",
)
def scanpy_scale(genes: int, **keywords: Any) -> NormalizationLayer:
    """Scale of scanpy: each gene of an array (cells, genes) by its mean and unbiased deviation, then clipped."""
    fixed = {"aggregation_levels": 1, "scaling_levels": (), "unbiased": True, "input_shape": (None, genes)}
    return _made(scanpy_scale, fixed, {"epsilon": 0.0, "scaling": None, "biases": None}, keywords)


@_method(
    "y = (clip(x, q₀.₅, q₉₉.₅) − μ) / max(σ, ε), all of the foreground of the data set",
    'F. Isensee et al., "nnU-Net", 2021, doi:10.1038/s41592-020-01008-z (CTNormalization)',
    "",
    "layer.adapt(foreground)\ny = layer(np.clip(x, *np.percentile(foreground, [0.5, 99.5])))",
    "foreground: the voxels of the data set inside the annotated classes",
)
def nnunet_ct(*, epsilon: float = 1e-8, **keywords: Any) -> NormalizationLayer:
    """CT normalization of nnU-Net: clipped to percentiles, then by the moments of the foreground of a data set."""
    return presets.feature_norm(None, epsilon=epsilon, **keywords)


@_method(
    "y = arcsinh((x − μ) / σ), over time",
    'A. F. Ansari et al., "Chronos-2", 2025, arXiv:2510.15821',
    "",
    "y = np.arcsinh(layer(x))",
)
def chronos_2(*, epsilon: float = 1e-5, **keywords: Any) -> NormalizationLayer:
    """Scaling of Chronos-2: each series over time, then compressed by arcsinh."""
    fixed = {"aggregation_levels": -1, "scaling_levels": ()}
    settings = {"epsilon": epsilon, "epsilon_placement": "floor", "scaling": None, "biases": None}
    return _made(chronos_2, fixed, settings, keywords)


# -------------------------------------------------------------------------------------------- by moments that are given


@_method(
    "y = γ (x − Σ w μₖ) / √(Σ v σₖ² + ε) + β, k of instance, layer and batch norm",
    'P. Luo et al., "Differentiable Learning-to-Normalize via Switchable Normalization", 2018, arXiv:1806.10779',
    "64",
    "m = layer.measure(x)\n"
    "squares = m.variance() + m.mean**2\n"
    "means = [m.mean, m.mean.mean(1, keepdims=True), m.mean.mean(0, keepdims=True)]\n"
    "squares = [squares, squares.mean(1, keepdims=True), squares.mean(0, keepdims=True)]\n"
    "mean = sum(one * mean for one, mean in zip(w, means))\n"
    "variance = sum(one * (two - mean**2) for one, two, mean in zip(v, squares, means))\n"
    "y = layer(x, moments=(mean, variance))",
    "w and v: learned weights of the three, each with sum 1",
)
def switch_norm(channels: int, *, epsilon: float = 1e-5, **keywords: Any) -> NormalizationLayer:
    """Switchable normalization: by a learned mixture of the moments of instance, layer and batch norm."""
    return presets.instance_norm(channels, **{"epsilon": epsilon, **keywords})


@_method(
    "y = x − μ + β, over the batch",
    'T. Salimans, D. P. Kingma, "Weight Normalization" (mean-only batch normalization), 2016, arXiv:1602.07868',
    "64",
    "m = layer.measure(x)\ny = layer(x, moments=(m.mean, np.ones_like(m.mean)))",
)
def mean_only_batch_norm(channels: int, **keywords: Any) -> NormalizationLayer:
    """Mean-only batch norm: channels are centred, and not scaled."""
    settings = {"statistics": "input", "epsilon": 0.0, "scaling": None}
    return presets.batch_norm(channels, **{**settings, **keywords})


@_method(
    "y = γ (x − μ_c) / √(σ² + ε) + β, μ_c of each channel, σ² of all",
    'C. Luo et al., "Extended Batch Normalization", 2020, arXiv:2003.05569',
    "64",
    "m = layer.measure(x)\ny = layer(x, moments=(m.mean, np.full_like(m.mean, m.pooled().variance())))",
)
def extended_batch_norm(channels: int, *, epsilon: float = 1e-5, **keywords: Any) -> NormalizationLayer:
    """Extended batch norm: the mean of each channel, and the variance of all of them."""
    return presets.batch_norm(channels, **{"statistics": "input", "epsilon": epsilon, **keywords})


@_method(
    "y = s x̃ / √(mean over nodes of |x̃|² + ε), x̃ = x − μ over the nodes",
    'L. Zhao, L. Akoglu, "PairNorm: Tackling Oversmoothing in GNNs", 2019, arXiv:1909.12223',
    "128",
    "m = layer.measure(x)\ny = layer(x, moments=(m.mean, np.full_like(m.mean, m.variance().sum())))",
)
def pair_norm(size: int, *, scale: float = 1.0, epsilon: float = 1e-6, **keywords: Any) -> NormalizationLayer:
    """PairNorm: the nodes of a graph, an array (nodes, features), are centred and get a constant mean square length."""
    fixed = {"aggregation_levels": 1, "scaling_levels": (), "input_shape": (None, size)}
    settings = {"epsilon": epsilon, "scaling": np.float64(scale), "biases": None, "dtype": "float64"}
    return _made(pair_norm, fixed, settings, keywords)


@_method(
    "y = γ x̃ / √(mean(x̃²) + ε) + β, x̃ = x − α μ over the nodes",
    'T. Cai et al., "GraphNorm", 2020, arXiv:2009.03294',
    "128",
    "m = layer.measure(x)\ny = layer(x, moments=(alpha * m.mean, m.variance() + ((1 - alpha) * m.mean) ** 2))",
    "alpha: the learned share of the mean for each feature",
)
def graph_norm(size: int, *, epsilon: float = 1e-5, **keywords: Any) -> NormalizationLayer:
    """GraphNorm: the nodes of one graph, an array (nodes, features), less a share of their mean."""
    fixed = {"aggregation_levels": 1, "scaling_levels": "Complement", "input_shape": (None, size)}
    return _made(graph_norm, fixed, {"epsilon": epsilon}, keywords)


@_method(
    "y = log x − mean(log x)",
    'J. Aitchison, "The Statistical Analysis of Compositional Data" (centred log-ratio), 1982',
    "",
    "m = layer.measure(np.log(x))\ny = layer(np.log(x), moments=(m.mean, np.ones_like(m.mean)))",
)
def centered_log_ratio(**keywords: Any) -> NormalizationLayer:
    """Centred log-ratio: the logarithms of the parts of a composition, less their mean."""
    fixed = {"aggregation_levels": -1, "scaling_levels": ()}
    return _made(centered_log_ratio, fixed, {"epsilon": 0.0, "scaling": None, "biases": None}, keywords)


# ---------------------------------------------------------------------------------------------- what cannot be written

_NOTHING = "it is a function of each element, and a layer aggregates at least one level"
_LABELS = "its slices are given by labels, not by levels"
_WINDOW = "statistics over a window"
_BACKWARD = "a state of several steps, or another backward pass"
_STATISTIC = "a statistic other than mean, variance and mean square"

MISSING: Mapping[str, str] = MappingProxyType(
    {
        "dynamic_tanh": _NOTHING,
        "dynamic_erf": _NOTHING,
        "bounded_hyperbolic_tanh": _NOTHING,
        "layer_scale": _NOTHING,
        "re_zero": _NOTHING,
        "local_response_norm": _WINDOW,
        "local_contrast_norm": _WINDOW,
        "local_context_norm": _WINDOW,
        "cumulative_layer_norm": _WINDOW,
        "sliding_cmvn": _WINDOW,
        "power_norm": _BACKWARD,
        "online_norm": _BACKWARD,
        "moving_average_batch_norm": _BACKWARD,
        "batch_renorm": _BACKWARD,
        "cross_q": _BACKWARD,
        "l1_batch_norm": _STATISTIC,
        "range_batch_norm": _STATISTIC,
        "robust_scaler": _STATISTIC,
        "min_max_scaler": _STATISTIC,
        "chronos": _STATISTIC,
        "normalize_total": _STATISTIC,
        "decorrelated_batch_norm": "it whitens: a covariance of channels",
        "iter_norm": "it whitens: a covariance of channels",
        "spectral_norm": "the largest singular value",
        "domain_specific_batch_norm": _LABELS,
        "context_norm": _LABELS,
        "monthly_anomaly": _LABELS,
        "combat": _LABELS,
        "differentiable_group_norm": "slices with soft members",
        "global_response_norm": "statistics of statistics",
        "evo_norm_s0": "its numerator is a gated input, with the divisor of another array",
        "evo_norm_b0": "the larger of two deviations",
        "un_mix_tns": "several banks of moments, chosen by likeness",
        "task_norm": "its share of two moments is learned through a gradient",
        "dish_ts": "its centre is predicted by a network",
        "sub_spectral_norm": "parameters for each group",
        "nonzero_z_score": "only what counts is changed",
    }
)

__all__ = ["MISSING", "Method", "describe", "missing", "names"]
__all__ += [*_ENTRIES]  # noqa: PLE0604
