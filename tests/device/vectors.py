"""The vectors of the specification as cases for modules on a device: outputs, gradients and moving moments."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import gennorm.torch as gt

FOLDER = Path(__file__).resolve().parents[2] / "spec" / "vectors" / "layers"

DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Of the largest magnitude in the case: spec/README.md.
TOLERANCE = {"float64": 1e-12, "float32": 2e-6, "float16": 4e-3, "bfloat16": 3e-2}
# Gradients are differences of sums, and their tolerance is that many times larger; for float64 as in tests/conformance.
OF_GRADIENTS = {"float64": 10.0, "float32": 8.0, "float16": 2.0, "bfloat16": 2.0}
WIDTH = {"bfloat16": 0, "float16": 0, "float32": 1, "float64": 2}

Case = dict[str, Any]


def reversed_axes(x: Tensor) -> Tensor:
    """The same elements with the memory order of the axes reversed."""
    order = tuple(reversed(range(x.dim())))
    return x.permute(order).contiguous().permute(order)


def sliced(x: Tensor) -> Tensor:
    """The same elements in a part of a larger tensor, with gaps between them."""
    if x.dim() == 0:
        return x
    larger = x.new_full((*x.shape[:-1], 2 * x.shape[-1] + 1), 7.0)
    larger[..., 1::2] = x
    return larger[..., 1::2]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "reversed": reversed_axes,
    "sliced": sliced,
}


def array(stored: Any) -> Any:
    """The numbers of a stored array, as float64."""
    values = [float.fromhex(value) for value in stored["values"]]
    return np.array(values, dtype=np.float64).reshape(stored["shape"])


def loaded() -> Iterator[tuple[str, str, Case]]:
    """Every case with the name of its file and its own."""
    for path in sorted(FOLDER.glob("*.json")):
        for case in json.loads(path.read_text(encoding="utf-8"))["cases"]:
            yield path.stem, case["name"], case


def fits(file: str, name: str, case: Case, dtype: str) -> bool:
    """Whether the numbers of a case are exact in a dtype, and its results in the dtype's range."""
    width = WIDTH[dtype]
    narrow = file in {"methods", "groups", "given"} and "never varied" not in name
    return width >= WIDTH[case["exact_in"]] and (width > 0 or narrow)


def distance(case: Case) -> float:
    """How much larger the numbers are than their deviations: a rounded mean is that much further off."""
    if case.get("moments", {}).get("mean") is None:
        return 1.0
    count, mean, m2 = (array(case["moments"][key]) for key in ("count", "mean", "m2"))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.abs(mean) / np.sqrt(m2 / count)
    return float(max(1.0, ratio[np.isfinite(ratio)].max(initial=1.0)))


class Vector:
    """One case in one dtype on a device."""

    def __init__(self, case: Case, dtype: str, device: torch.device) -> None:
        self.case, self.dtype, self.device = case, dtype, device
        config = dict(case["config"])
        if isinstance(config["group_number"], dict):
            config["group_number"] = {int(level): groups for level, groups in config["group_number"].items()}
        shape = tuple(case["input"]["shape"])
        # A module has to know the sizes of its parameters and moments.
        config["input_shape"] = shape[1:] if config["batched"] else shape
        parameters = {key: None if one is None else array(one) for key, one in case["parameters"].items()}
        self.module = gt.NormalizationLayer(**config, **parameters, dtype=dtype).to(device)
        if "given" in case:
            kind = torch.float64 if dtype == "float64" else torch.float32
            for name in ("mean", "variance"):
                stored = case["given"][name]
                if stored is not None and not (name == "mean" and config["method"] == "RMS"):
                    setattr(self.module, name, torch.tensor(array(stored), dtype=kind, device=device))
        call = dict(case.get("call", {}))
        self.module.train(call.pop("training", False))
        self.options: Case = {}
        for key, value in call.items():
            if key == "mask":
                mask = np.array(value["values"], dtype=bool).reshape(value["shape"])
                self.options["mask"] = torch.tensor(mask, device=device)
            else:
                self.options[key] = self.tensor(value).requires_grad_()

    def tensor(self, stored: Any) -> Tensor:
        """A stored array as a tensor."""
        return torch.tensor(array(stored), dtype=DTYPES[self.dtype], device=self.device)

    def check(self, layout: Callable[[Tensor], Tensor]) -> float:
        """Compare output, gradients and moving moments with the expected values; return the worst error."""
        case, module = self.case, self.module
        x = layout(self.tensor(case["input"])).requires_grad_("derivative" in case)
        y = module(x, **self.options)
        assert y.dtype == x.dtype
        assert y.device == x.device
        tolerance = TOLERANCE[self.dtype] * distance(case)
        errors = [compared(y, case["output"], tolerance, "output", least=1.0)]
        if "moving" in case:
            within = 1e-12 if self.dtype == "float64" else 1e-6 if WIDTH[self.dtype] else 1e-3
            for name in ("mean", "variance"):
                if case["moving"][name] is not None and getattr(module, name) is not None:
                    errors.append(compared(getattr(module, name), case["moving"][name], within, f"moving {name}"))
        if "derivative" in case:
            errors += self.gradients(x, y, tolerance * OF_GRADIENTS[self.dtype])
        return max(errors)

    def gradients(self, x: Tensor, y: Tensor, tolerance: float) -> Iterator[float]:
        """Compare the gradients."""
        stored = self.case["derivative"]
        scaling = self.options.get("scaling", self.module.weight)
        biases = self.options.get("biases", self.module.bias)
        wanted = {"input": x, "scaling": scaling, "biases": biases}
        wanted = {key: one for key, one in wanted.items() if one is not None and stored[key] is not None}
        found = torch.autograd.grad(y, list(wanted.values()), self.tensor(stored["output"]))
        for (key, one), gradient in zip(wanted.items(), found, strict=True):
            assert gradient.dtype == one.dtype
            # A gradient that is small is the difference of large numbers.
            least = 0.0 if self.dtype == "float64" else 0.1
            yield compared(gradient, stored[key], tolerance, f"gradient of {key}", least=least)


def compared(found: Tensor, stored: Any, tolerance: float, what: str, *, least: float = 0.0) -> float:
    """Return the largest error as a part of the tolerance; raise if it is larger than that."""
    expected = array(stored)
    assert tuple(found.shape) == expected.shape, f"{what}: shape {tuple(found.shape)}, expected {expected.shape}"
    if found.device.type == "meta":
        return 0.0
    numbers = found.detach().to("cpu").to(torch.float64).numpy()
    finite = np.abs(expected[np.isfinite(expected)])
    scale = max(least, finite.max(initial=0.0))
    np.testing.assert_allclose(numbers, expected, rtol=0, atol=tolerance * scale, err_msg=what)
    both = np.isfinite(numbers) & np.isfinite(expected)
    if not both.any() or scale == 0:
        return 0.0
    return float(np.abs(numbers[both] - expected[both]).max() / (tolerance * scale))


def run(recorder: Any, device: torch.device, dtypes: list[str], only: str | None = None) -> None:
    """Run every case in every dtype and layout."""
    cases = [one for one in loaded() if only is None or only in f"{one[0]}: {one[1]}"]
    for dtype in dtypes:
        for file, name, case in cases:
            if not fits(file, name, case, dtype):
                continue
            for layout, changed in LAYOUTS.items():
                table = f"{file}, {dtype}, {layout}"
                recorder.case(
                    "conformance", table, name, lambda c=case, d=dtype, f=changed: Vector(c, d, device).check(f)
                )
