"""Run gennorm.torch on an accelerator, and write what was found into one JSON file.

    PYTHONPATH=. python3 tests/device/run.py OUT.json [--seconds 240] [--device cuda] [--only TEXT]

Needs torch, and what `gennorm.torch` needs; no test runner. It takes the accelerator that torch has. Without one it
says so; `--device cpu` and `--device meta` try the script anywhere (on meta only shapes and dtypes are compared). The
exit status is 1 where a case failed, 2 where there is no accelerator; the file is written in every case.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import importlib
import importlib.metadata
import json
import os
import platform
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX and torch share the memory of the device

PARTS = ("conformance", "checks", "compile", "benchmark", "jax")
LIBRARIES = ("torch", "triton", "numpy", "numba", "jax", "ml_dtypes", "array_api_compat", "safetensors")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts, write the record, print a summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the JSON file that is written")
    parser.add_argument("--seconds", type=float, default=240.0, help="the time limit; no case is started after it")
    parser.add_argument("--device", help="cuda, mps, xpu, cpu, meta; by default the accelerator that torch has")
    parser.add_argument("--only", help="run only the cases with this text in their name")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--definition", action="store_true", help="on a CPU, compute without kernels")
    options = parser.parse_args(arguments)
    notes: dict[str, Any] = {}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        provide_array_api_compat(notes)
        import torch
    name = options.device or accelerator(torch)
    if name is None:
        print("torch has no accelerator here; --device cpu and --device meta run the script without one")
        write(options.out, {**head(torch, None), "cases": 0, "failed": 0, "failures": [], "benchmark": []})
        return 2
    device = torch.device(name)
    record = {**head(torch, device), **ran(options, torch, device, notes, warned)}
    write(options.out, record)
    from tests.device.record import summary

    print(summary(record))
    return 1 if record["failures"] else 0


def ran(
    options: argparse.Namespace, torch: Any, device: Any, notes: dict[str, Any], warned: list[Any]
) -> dict[str, Any]:
    """Run the parts that were chosen; return what they found."""
    from tests.device.record import Recorder

    recorder = Recorder(options.seconds)
    recorder.notes.update(notes)
    if "cannot import" not in (found := imported(recorder)):
        recorder.notes["kernels"] = found
    else:
        return recorder.record()
    from tests.device import checks, timing, vectors

    parts = options.parts.split(",")
    with without_kernels(torch) if options.definition else contextlib.nullcontext():
        if "checks" in parts:
            with recorder.part("checks", 0.30):
                checks.run(recorder, device, options.only)
        if "conformance" in parts:
            with recorder.part("conformance", 0.50):
                vectors.run(recorder, device, checks.dtypes_of(device), options.only)
        if device.type != "meta":
            if "jax" in parts and options.only is None:
                with recorder.part("JAX", 0.55):
                    checks.run_jax(recorder)
            if "compile" in parts:
                with recorder.part("torch.compile", 0.75):
                    checks.run_compiled(recorder, device, options.only)
            if "benchmark" in parts:
                with recorder.part("benchmark", 0.97):
                    timing.run(recorder, device, options.only)
    texts = sorted({f"{one.category.__name__}: {one.message}"[:300] for one in warned})
    recorder.notes["warnings of the import"] = [text for text in texts if "ennorm" in text]
    return recorder.record()


def imported(recorder: Any) -> str:
    """Import gennorm.torch; return why kernels are not used, or a text that begins with "cannot import"."""
    state = {"text": "cannot import gennorm.torch"}

    def load() -> None:
        importlib.import_module("gennorm.torch")
        from gennorm.engine import fallback_reason

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state["text"] = fallback_reason() or "compiled by Numba"

    recorder.case("import", "gennorm.torch", "gennorm.torch", load, always=True)
    return state["text"]


def provide_array_api_compat(notes: dict[str, Any]) -> None:
    """Where array-api-compat is not installed, take the copy that SciPy or scikit-learn contains."""
    try:
        importlib.import_module("array_api_compat.torch")
        return
    except ModuleNotFoundError:
        pass
    for name in ("scipy._lib.array_api_compat", "sklearn.externals.array_api_compat"):
        try:
            sys.modules["array_api_compat.torch"] = importlib.import_module(f"{name}.torch")
            sys.modules["array_api_compat"] = importlib.import_module(name)
        except ImportError:
            continue
        notes["array_api_compat"] = f"not installed, taken from {name}"
        return
    notes["array_api_compat"] = "not installed"


@contextlib.contextmanager
def without_kernels(torch: Any) -> Any:
    """Compute by the definition on a CPU too, as on a device without kernels: a mode of torch is active."""

    class Mode(torch.overrides.TorchFunctionMode):  # type: ignore[misc, name-defined]
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return function(*args, **(kwargs or {}))

    with Mode():
        yield


def accelerator(torch: Any) -> str | None:
    """The accelerator that torch has."""
    if torch.cuda.is_available():
        return "cuda"
    if getattr(torch, "xpu", None) is not None and torch.xpu.is_available():
        return "xpu"
    return "mps" if torch.backends.mps.is_available() else None


def head(torch: Any, device: Any) -> dict[str, Any]:
    """What ran, and where."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    kind = device.type if device is not None else None
    named = kind or "none"
    if kind in {"cuda", "xpu"}:
        named = getattr(torch, kind).get_device_name(device)
    return {
        "format": "gennorm/device",
        "version": 1,
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "device": {"type": kind, "name": named},
        "machine": {"system": platform.system(), "processors": os.cpu_count()},
        "versions": versions,
    }


def write(path: Path, record: dict[str, Any]) -> None:
    """Write a record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
