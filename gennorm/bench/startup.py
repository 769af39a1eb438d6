"""Times in a new process: the import, and the first call with and without kernels in the cache."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import gennorm as gn

__all__ = ["FIRST", "Startup", "startup"]

# The first use of each preset, from its construction to its output; the last one is a whole training step.
FIRST = {
    "batch norm": "gn.batch_norm(64)(images, training=True)",
    "layer norm": "gn.layer_norm(768)(rows)",
    "RMS norm": "gn.rms_norm(768)(rows)",
    "instance norm": "gn.instance_norm(64)(images)",
    "group norm": "gn.group_norm(32, 64)(images)",
    "feature norm": "gn.feature_norm(mean=0, variance=1)(rows)",
    "feature norm, adapted": "gn.feature_norm().adapt(rows)(rows)",
    "group norm, forward and backward": "gn.group_norm(32, 64).vjp(images)[1](images).input",
}

IMPORT = """
import time
begin = time.perf_counter()
import gennorm
print(time.perf_counter() - begin)
"""

CALL = """
import sys, time
import numpy as np
import gennorm as gn
assert "numba" not in sys.modules
generator = np.random.default_rng(0)
rows = generator.standard_normal((512, 768), np.float32)
images = generator.standard_normal((8, 64, 32, 32), np.float32)
begin = time.perf_counter()
y = {first}
print(time.perf_counter() - begin)
assert y.dtype == np.float32 and np.isfinite(y).all()
"""


@dataclass(frozen=True, slots=True)
class Startup:
    """The best time of several new processes.

    Attributes
    ----------
    name : str
    seconds : float
        With kernels in the cache, or without any kernel.
    compiling : float or None
        With an empty cache.
    """

    name: str
    seconds: float
    compiling: float | None = None


def startup(processes: int, report: Callable[..., None]) -> list[Startup]:
    """Take the times of so many new processes for the import and for each first call."""
    found = []
    for done, name in enumerate(["import gennorm, with NumPy", *FIRST]):
        report(done, len(FIRST) + 1, name)
        program = CALL.format(first=FIRST[name]) if name in FIRST else IMPORT
        cold, warm = [], []
        for _ in range(processes):
            with TemporaryDirectory(prefix="gennorm-bench-") as cache:
                cold.append(_seconds(program, cache))
                warm.append(_seconds(program, cache))
        found.append(
            Startup(f"first call, {name}", min(warm), min(cold)) if name in FIRST else Startup(name, min(cold + warm))
        )
    return found


def _seconds(program: str, cache: str) -> float:
    """The time that one new process prints. Its kernels are in `cache`, and it imports this package."""
    here = str(Path(gn.__file__).parents[1])
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "GENNORM_CACHE_DIR": cache, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
    return float(done.stdout)
