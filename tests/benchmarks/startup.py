"""What a new process waits for: the import, and the first call with and without kernels in the cache."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[2]

# The first use of each preset, from its construction to the values.
FIRST = {
    "batch norm": "gn.batch_norm(64)(images, training=True)",
    "layer norm": "gn.layer_norm(768)(rows)",
    "RMS norm": "gn.rms_norm(768)(rows)",
    "instance norm": "gn.instance_norm(64)(images)",
    "group norm": "gn.group_norm(32, 64)(images)",
    "feature norm": "gn.feature_norm(mean=0, variance=1)(rows)",
    "feature norm, adapted": "gn.feature_norm().adapt(rows)(rows)",
}

IMPORT = """
import time
begin = time.process_time(), time.perf_counter()
import gennorm
print(time.process_time() - begin[0], time.perf_counter() - begin[1])
"""

CALL = """
import sys, time
import numpy as np
import gennorm as gn
assert "numba" not in sys.modules
generator = np.random.default_rng(0)
rows = generator.standard_normal((512, 768), np.float32)
images = generator.standard_normal((8, 64, 32, 32), np.float32)
begin = time.process_time(), time.perf_counter()
y = {first}
print(time.process_time() - begin[0], time.perf_counter() - begin[1])
assert y.dtype == np.float32 and np.isfinite(y).all()
"""


@dataclass(frozen=True, slots=True)
class Waited:
    """Seconds of the least of a few processes, and what they are to stay below.

    The processor's seconds, which are those on the clock where nobody else wants it.
    """

    name: str
    seconds: float
    clock: float
    goal: float

    @property
    def missed(self) -> bool:
        """Whether it took too long."""
        return self.seconds >= self.goal


def seconds(program: str, cache: str) -> tuple[float, float]:
    """What one new process prints, with this folder for its kernels: seconds of the processor and on the clock."""
    environment = {**os.environ, "GENNORM_CACHE_DIR": cache}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )
    used, passed = map(float, done.stdout.split())
    return used, passed


def least(name: str, found: Sequence[tuple[float, float]], goal: float) -> Waited:
    """The least of either."""
    used, passed = (min(times) for times in zip(*found, strict=True))
    return Waited(name, used, passed, goal)


def imported(times: int) -> Waited:
    """`import gennorm`, NumPy included."""
    with TemporaryDirectory() as cache:
        return least("import gennorm, with NumPy", [seconds(IMPORT, cache) for _ in range(times)], 0.25)


def first_calls(name: str, times: int) -> tuple[Waited, Waited]:
    """The first call of a preset without and with its kernels in the cache; each imports Numba."""
    program = CALL.format(first=FIRST[name])
    cold, warm = [], []
    for _ in range(times):
        with TemporaryDirectory() as cache:
            cold.append(seconds(program, cache))
            warm.append(seconds(program, cache))
    return least(f"first call, {name}, nothing cached", cold, 2), least(f"first call, {name}, cached", warm, 0.6)
