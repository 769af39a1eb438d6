"""Norms between operators of torch, as in a model: torch's module and gennorm's in the same sequence.

A norm in a model runs right after another operator. That operator has just written the input, so the input is in the
caches; and its threads still poll for work. So the norm takes longer or shorter than the norm alone in a loop.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

__all__ = ["PLACES", "Between", "Place", "available", "between", "measured"]

TOLERANCE = 1e-4  # between two float32 computations of a sequence, relative to the largest value
LEAST = 7  # rounds, for a median
WORKS = ("inference", "training")


@dataclass(frozen=True, slots=True)
class Place:
    """A norm between two operators.

    Attributes
    ----------
    norm : str
        "layer", "RMS", "group", "instance" or "batch".
    shape : tuple of int
        Of the input of the norm. With two axes the sequence is linear, norm, linear, otherwise convolution, norm, ReLU.
    last : bool
        Whether the tensors have torch's memory format `channels_last`.
    """

    norm: str
    shape: tuple[int, ...]
    last: bool = False

    @property
    def name(self) -> str:
        """The name in the tables."""
        sequence = "linear, {}, linear" if len(self.shape) == 2 else "conv, {}, relu"
        layout = ", channels last" if self.last else ""
        return f"{sequence.format(f'{self.norm} norm')} {'×'.join(map(str, self.shape))}{layout}"


# A convolution is one of 1×1, and linear maps to 256 features at the most: the norm is a visible part of the sequence.
PLACES = (
    Place("layer", (16, 768)),
    Place("RMS", (16, 768)),
    Place("layer", (128, 768)),
    Place("RMS", (128, 768)),
    Place("layer", (1024, 768)),
    Place("RMS", (1024, 768)),
    Place("batch", (1024, 768)),
    Place("batch", (2, 24, 8, 8)),
    Place("group", (2, 64, 28, 28)),
    Place("batch", (2, 64, 28, 28)),
    *(Place(norm, (8, 64, 56, 56), last) for last in (False, True) for norm in ("group", "instance", "batch")),
    Place("group", (8, 256, 28, 28)),
    Place("batch", (8, 256, 28, 28), last=True),
)


@dataclass(frozen=True, slots=True)
class Between:
    """The measurement of one place.

    Attributes
    ----------
    name, work : str
        The place; "inference", or "training": forward and backward.
    elements : int
        Of the input of the norm.
    torch, gennorm : float
        Median seconds of the norm in the sequence: from the end of the operator before it until it returns. In training
        those of its backward pass are added.
    whole_torch, whole_gennorm : float
        Median seconds of the whole sequence.
    wrong : float
        The difference of the outputs over the allowed difference.
    """

    name: str
    work: str
    elements: int
    torch: float
    gennorm: float
    whole_torch: float
    whole_gennorm: float
    wrong: float


def available() -> bool:
    """Whether torch is installed."""
    return find_spec("torch") is not None


def between(seconds: float, report: Callable[..., None]) -> Iterator[Between]:
    """Measure every place, in inference and in training."""
    for number, place in enumerate(PLACES):
        report(number, len(PLACES), place.name)
        for work in WORKS:
            yield measured(place, work, seconds)


def measured(place: Place, work: str, seconds: float) -> Between:
    """Measure one place. The two sequences take turns until each has run for so many seconds."""
    import torch

    import gennorm.torch

    sequences = {name: _Sequence(torch, nn, place, work) for name, nn in (("torch", torch.nn), ("", gennorm.torch))}
    theirs, own = sequences.values()
    expected, found = theirs.run(), own.run()
    wrong = ((found - expected).abs().max() / expected.abs().max()).item() / TOLERANCE
    collecting = gc.isenabled()
    gc.disable()
    try:
        while min(sum(one.whole) for one in sequences.values()) < seconds or len(own.whole) < LEAST:
            for one in sequences.values():
                for _ in range(2):  # the first one finds the caches and threads as the other sequence left them
                    one.run()
    finally:
        if collecting:
            gc.enable()
    elements = torch.Size(place.shape).numel()
    median = statistics.median
    return Between(
        place.name,
        work,
        elements,
        torch=median(theirs.norm),
        gennorm=median(own.norm),
        whole_torch=median(theirs.whole),
        whole_gennorm=median(own.whole),
        wrong=wrong,
    )


class _Sequence:
    """An operator, a norm and an operator; the times of all runs."""

    def __init__(self, torch: Any, nn: Any, place: Place, work: str) -> None:
        self._torch, self._training = torch, work == "training"
        torch.manual_seed(0)
        shape, features = place.shape, place.shape[1]
        if len(shape) == 2:
            width = min(256, features)
            self._before, self._after = torch.nn.Linear(width, features), torch.nn.Linear(features, width)
            x = torch.randn(shape[0], width)
        else:
            self._before, self._after = torch.nn.Conv2d(features, features, 1), torch.nn.ReLU()
            x = torch.randn(shape)
            if place.last:
                x = x.to(memory_format=torch.channels_last)
        self._norm = _module(nn, place)
        modules = torch.nn.ModuleList([self._before, self._norm, self._after]).train(self._training)
        self._x = x.requires_grad_(self._training)
        self._wanted = [self._x, *modules.parameters()]
        self.norm: list[float] = []
        self.whole: list[float] = []

    def run(self) -> Any:
        """Run the sequence, note the times and return its output."""
        with self._torch.set_grad_enabled(self._training):
            begin = time.perf_counter()
            x = self._before(self._x)
            start = time.perf_counter()
            y = self._norm(x)
            taken = time.perf_counter() - start
            z = self._after(y)
            if self._training:
                times: list[float] = []
                for tensor in (y, x):  # a hook runs before the backward pass of the operator that made the tensor
                    tensor.register_hook(lambda _: times.append(time.perf_counter()))
                self._torch.autograd.grad(z, self._wanted, self._torch.ones_like(z))
                taken += times[1] - times[0]
            end = time.perf_counter()
        self.norm.append(taken)
        self.whole.append(end - begin)
        return z.detach()


def _module(nn: Any, place: Place) -> Any:
    """Return the module of torch or of gennorm."""
    features = place.shape[1]
    if place.norm == "group":
        return nn.GroupNorm(32, features)
    if len(place.shape) == 2:
        return {"layer": nn.LayerNorm, "RMS": nn.RMSNorm, "batch": nn.BatchNorm1d}[place.norm](features)
    return {"instance": nn.InstanceNorm2d, "batch": nn.BatchNorm2d}[place.norm](features)
