"""Times on a device: torch's own layers and gennorm's, in eager mode and compiled, forward and with gradients."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import gennorm.torch as gt

SECONDS, SAMPLES = 0.004, 9  # of one sample, and how many samples the median is taken of


@dataclass(frozen=True, slots=True)
class Norm:
    """A case of the benchmark: how torch and gennorm make the layer, and the input."""

    name: str
    theirs: Callable[[], nn.Module]
    ours: Callable[[], nn.Module]
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    last: bool = False  # channels last


def general(*arguments: Any, **settings: Any) -> Callable[[], nn.Module]:
    """Make the general layer."""
    return lambda: gt.NormalizationLayer(*arguments, epsilon=1e-5, **settings)


def cases() -> list[Norm]:
    """The norms, the most telling ones first."""
    half = torch.bfloat16
    return [
        Norm("layer norm", lambda: nn.LayerNorm(1024), lambda: gt.LayerNorm(1024), (32768, 1024)),
        Norm("group norm", lambda: nn.GroupNorm(32, 256), lambda: gt.GroupNorm(32, 256), (32, 256, 56, 56)),
        Norm("RMS norm", lambda: nn.RMSNorm(4096, 1e-6), lambda: gt.RMSNorm(4096, 1e-6), (8192, 4096), half),
        Norm("batch norm", lambda: nn.BatchNorm2d(256), lambda: gt.BatchNorm2d(256), (32, 256, 56, 56)),
        Norm(
            "instance norm",
            lambda: nn.InstanceNorm2d(64, affine=True),
            lambda: gt.InstanceNorm2d(64, affine=True),
            (8, 64, 224, 224),
        ),
        Norm("layer norm", lambda: nn.LayerNorm(768), lambda: gt.LayerNorm(768), (512, 768)),
        Norm("group norm", lambda: nn.GroupNorm(32, 64), lambda: gt.GroupNorm(32, 64), (8, 64, 56, 56)),
        Norm("batch norm", lambda: nn.BatchNorm2d(64), lambda: gt.BatchNorm2d(64), (8, 64, 56, 56), last=True),
        Norm("RMS norm", lambda: nn.RMSNorm(1024, 1e-6), lambda: gt.RMSNorm(1024, 1e-6), (512, 1024), half),
        Norm("layer norm", lambda: nn.LayerNorm(4096), lambda: gt.LayerNorm(4096), (8192, 4096), half),
        Norm("group norm", lambda: nn.GroupNorm(32, 256), lambda: gt.GroupNorm(32, 256), (32, 256, 56, 56), half, True),
        Norm(
            "the general layer as layer norm",
            lambda: nn.LayerNorm(1024),
            general(-1, "Same", input_shape=(..., 1024)),
            (32768, 1024),
        ),
    ]


def synchronize(device: torch.device) -> None:
    """Wait until the device has done everything."""
    module = getattr(torch, device.type, None)
    if hasattr(module, "synchronize"):
        module.synchronize()


def seconds_of(function: Callable[[], Any], device: torch.device, samples: int = SAMPLES) -> float:
    """The median of the time of a call. A sample is so many calls that they take `SECONDS`, between two waits."""
    for _ in range(3):
        function()
    number = 1
    while True:
        elapsed = sampled(function, device, number)
        if elapsed >= SECONDS / 2 or number >= 4096:
            break
        number = min(4096, max(2 * number, math.ceil(number * SECONDS / max(elapsed, 1e-7))))
    return statistics.median(sampled(function, device, number) for _ in range(samples)) / number


def sampled(function: Callable[[], Any], device: torch.device, number: int) -> float:
    """The time of some calls."""
    synchronize(device)
    began = time.perf_counter()
    for _ in range(number):
        function()
    synchronize(device)
    return time.perf_counter() - began


def called(module: Callable[[Tensor], Tensor], x: Tensor, dy: Tensor, parameters: list[Tensor]) -> Callable[[], Any]:
    """A call of a layer: forward, or forward and backward where the input has a gradient."""
    if not x.requires_grad:

        def forward() -> Tensor:
            with torch.no_grad():
                return module(x)

        return forward
    return lambda: torch.autograd.grad(module(x), [x, *parameters], dy)


def measured(norm: Norm, work: str, device: torch.device, benchmark: list[dict[str, Any]]) -> float:
    """Take the times of one case, and append them to the benchmark; return the error as a part of the tolerance."""
    x = torch.randn(norm.shape, device=device, dtype=norm.dtype)
    if norm.last:
        x = x.contiguous(memory_format=torch.channels_last)
    dy = torch.randn_like(x)
    x.requires_grad_(work == "forward and backward")
    contenders: dict[str, tuple[Any, list[Tensor]]] = {}
    for name, make in (("torch", norm.theirs), ("gennorm", norm.ours)):
        for compiled in (False, True):
            module = make().to(device)
            module = module.to(norm.dtype) if "batch" not in norm.name else module
            parameters = list(module.parameters())
            fast: Any = torch.compile(module, fullgraph=True) if compiled else module
            contenders[f"{name}, compiled" if compiled else name] = fast, parameters
    torch._dynamo.reset()
    taken: dict[str, float] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outputs = {}
        for name, (module, parameters) in contenders.items():
            function = called(module, x, dy, parameters)
            with torch.set_grad_enabled(x.requires_grad):  # another mode would be compiled too
                outputs[name] = module(x).detach().float()
            taken[name] = seconds_of(function, device)
    floor = seconds_of(lambda: dy.copy_(x.detach()), device)
    apart = {name: (one - outputs["torch"]).abs().max().item() for name, one in outputs.items()}
    shape = "×".join(str(size) for size in norm.shape)
    name = f"{norm.name} {shape}, {str(norm.dtype)[6:]}{', channels last' if norm.last else ''}"
    benchmark.append(
        {
            "name": name,
            "work": work,
            "shape": list(norm.shape),
            "dtype": str(norm.dtype)[6:],
            "bytes": x.numel() * x.element_size(),
            "seconds": {key: float(f"{value:.4g}") for key, value in taken.items()},
            "copy": float(f"{floor:.4g}"),
            "difference": {key: float(f"{value:.2g}") for key, value in apart.items() if key != "torch"},
        }
    )
    allowed = 1e-3 if norm.dtype is torch.float32 else 0.1
    worst = max(apart.values())
    assert worst <= allowed, f"values differ from torch's by {worst:.3g}, allowed is {allowed:g}"
    return worst / allowed


def run(recorder: Any, device: torch.device, only: str | None = None) -> None:
    """Take the times of every case."""
    for norm in cases():
        for work in ("forward", "forward and backward"):
            name = f"{norm.name} {norm.shape}"
            if only is None or only in f"benchmark: {name}":
                recorder.case(
                    "benchmark", work, name, lambda n=norm, w=work: measured(n, w, device, recorder.benchmark)
                )
