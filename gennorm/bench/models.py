"""Whole models before and after `gennorm.torch.accelerate`: the time of the model and of its norms."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from gennorm.bench.timing import best_times

__all__ = ["MODELS", "Accelerated", "accelerated", "available", "models"]

TOLERANCE = 1e-3  # between two float32 computations of a whole model, relative to the largest value


@dataclass(frozen=True, slots=True)
class Accelerated:
    """The measurement of one model.

    Attributes
    ----------
    name, work : str
        The model; "inference", or "training": forward and backward.
    layers : int
        The number of replaced layers.
    before, after : float
        Seconds of the whole model.
    norms_before, norms_after : float
        Seconds of the replaced layers, each called alone with an input like that in the model.
    wrong : float
        The difference of the outputs over the allowed difference.
    """

    name: str
    work: str
    layers: int
    before: float
    after: float
    norms_before: float
    norms_after: float
    wrong: float


def _words(torch: Any) -> dict[str, Any]:
    return {"input_ids": torch.arange(128).reshape(1, 128)}


def _pictures(size: int) -> Callable[[Any], dict[str, Any]]:
    return lambda torch: {"pixel_values": torch.linspace(-2, 2, 3 * size * size).reshape(1, 3, size, size)}


_TEXT = {"vocab_size": 1000, "hidden_size": 768, "num_hidden_layers": 4, "num_attention_heads": 12}

# The class, the config and the inputs: the widths of the published models, with fewer layers.
MODELS: dict[str, tuple[str, str, dict[str, Any], Callable[[Any], dict[str, Any]]]] = {
    "GPT-2": ("GPT2LMHeadModel", "GPT2Config", {"vocab_size": 1000, "n_layer": 4}, _words),
    "Llama": ("LlamaForCausalLM", "LlamaConfig", {**_TEXT, "intermediate_size": 2048}, _words),
    "BERT": ("BertForMaskedLM", "BertConfig", _TEXT, _words),
    "ViT": ("ViTForImageClassification", "ViTConfig", {"num_hidden_layers": 4}, _pictures(224)),
    "ConvNeXt": ("ConvNextForImageClassification", "ConvNextConfig", {"depths": [1, 1, 3, 1]}, _pictures(224)),
    "ResNet": (
        "ResNetForImageClassification",
        "ResNetConfig",
        {"hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"},
        _pictures(224),
    ),
}


def available() -> bool:
    """Whether the packages that models need are installed."""
    return all(find_spec(name) is not None for name in ("torch", "transformers"))


def models(seconds: float, report: Callable[..., None]) -> Iterator[Accelerated]:
    """Measure every model, in inference and in training."""
    for place, name in enumerate(MODELS):
        report(place, len(MODELS), name)
        yield from accelerated(name, seconds)


def accelerated(name: str, seconds: float) -> Iterator[Accelerated]:
    """Measure one model; the calls before and after take turns."""
    import torch
    import transformers

    import gennorm.torch

    kind, config, settings, inputs = MODELS[name]
    torch.manual_seed(0)
    before = getattr(transformers, kind)(getattr(transformers, config)(**settings)).eval()
    after = copy.deepcopy(before)
    replaced = [one.name for one in gennorm.torch.accelerate(after).replaced]
    pair, given = {"before": before, "after": after}, inputs(torch)
    with torch.no_grad():
        expected, found = (model(**given).logits for model in pair.values())
    wrong = ((found - expected).abs().max() / expected.abs().max()).item() / TOLERANCE
    for work in ("inference", "training"):
        for model in pair.values():
            model.train(work == "training")
        call = _inferring if work == "inference" else _training
        whole = best_times({side: call(torch, model, **given) for side, model in pair.items()}, seconds)
        norms = dict.fromkeys(pair, 0.0)
        for layer, shape, strides in _called_layers(torch, before, replaced, given):
            x = torch.empty_strided(shape, strides).normal_()
            calls = {side: call(torch, model.get_submodule(layer), x) for side, model in pair.items()}
            for side, taken in best_times(calls, seconds / len(replaced)).items():
                norms[side] += taken
        yield Accelerated(
            name, work, len(replaced), whole["before"], whole["after"], norms["before"], norms["after"], wrong
        )


def _called_layers(torch: Any, model: Any, names: list[str], given: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """The names of the layers in the order of their calls, with the shape and the strides of their inputs."""
    seen: list[tuple[str, Any, Any]] = []
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: seen.append((name, args[0].shape, args[0].stride()))
        )
        for name in names
    ]
    with torch.no_grad():
        model(**given)
    for hook in hooks:
        hook.remove()
    return seen


def _inferring(torch: Any, module: Any, *args: Any, **named: Any) -> Callable[[], object]:
    def infer() -> object:
        with torch.no_grad():
            return module(*args, **named)

    return infer


def _training(torch: Any, module: Any, *args: Any, **named: Any) -> Callable[[], object]:
    """Forward and backward: the gradients of the parameters, and of a positional input as that of an inner layer."""
    inputs = [arg.requires_grad_() for arg in args]
    wanted = [*inputs, *(parameter for parameter in module.parameters() if parameter.requires_grad)]

    def train() -> object:
        y = module(*args, **named)
        y = getattr(y, "logits", y)
        return torch.autograd.grad(y, wanted, torch.ones_like(y), allow_unused=True)

    return train
