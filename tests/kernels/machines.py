"""Kernels for the machine that the environment names: what is in their machine code, and what they give.

A process of its own, since Numba reads NUMBA_CPU_NAME and NUMBA_CPU_FEATURES once: ``python -m tests.kernels.machines``
with "run" or "compile", and what to do. Prints a line of JSON.
"""

import hashlib
import json
import re
import sys

import numpy as np

import gennorm as gn
from gennorm import kernels
from gennorm.kernels import _jit
from gennorm.kernels.vector import LANES, load, store
from tests import derivatives
from tests.accuracy import judge
from tests.strategies import sample

ROWS = ({"aggregation_levels": -1, "scaling_levels": "Same"}, (5, 83))
COLUMNS = ({"aggregation_levels": 0, "scaling_levels": 1, "batched": True}, (33, 45))
FAMILIES = {"rows": (ROWS, "float16"), "columns": (COLUMNS, "bfloat16")}


def layers():
    """What the kernels of both families, forward and backward, give: digests of the outputs, all of them judged."""
    found = {}
    for family, ((settings, shape), narrow) in FAMILIES.items():
        layer = gn.NormalizationLayer(**settings).initialize(shape)
        layer.scaling[...] = sample(layer.scaling.shape, seed=1)
        x, dy = sample(shape), sample(shape, seed=2)
        y, pullback = layer.vjp(x)
        gradients = pullback(dy)
        outputs = {"float32": (y, x), narrow: (layer(sample(shape, narrow)), sample(shape, narrow))}
        for dtype, (output, given) in outputs.items():
            if RUN:
                judge(output, given, settings, layer.scaling, layer.biases)
            found[f"{family} of {dtype}"] = hashlib.sha256(output.tobytes()).hexdigest()
        if RUN:
            derivatives.judge(gradients, x, dy, settings, layer.scaling, layer.biases)
    return found


def widened(x, y, size):
    for start in range(0, size, LANES):
        store(y, start, load(x, start))


def edges():
    """Numbers that float16 rounds, and those on both sides of every place where it changes its mind."""
    halves = np.arange(1 << 15, dtype=np.uint16).view(np.float16).astype(np.float32)[:0x7C01]
    ties = (halves[:-1].astype(np.float64) + np.minimum(halves[1:], 65536.0)) / 2
    near = np.concatenate([halves, ties.astype(np.float32)])
    bits = near.view(np.uint32)[:, None] + np.arange(-2, 3).astype(np.uint32)
    anything = np.random.default_rng(0).integers(0, 1 << 32, 1 << 18, np.uint32)
    nans = anything | 0x7F800000
    found = np.concatenate([bits.ravel(), bits.ravel() | 0x80000000, anything, nans])
    return np.concatenate([found, np.zeros(-len(found) % LANES, np.uint32)]).astype(np.uint32)


def halves():
    """Float16 to float32 and back: what each of them becomes, as digests, and how many are not what NumPy says."""
    every = np.arange(1 << 16, dtype=np.uint16)
    to, back = (
        _jit.build(widened, {}, (storage, result, "float32"), (storage, result), 1)
        for storage, result in (("float16", "float32"), ("float32", "float16"))
    )
    wide, bits = np.empty(len(every), np.float32), edges()
    narrow = np.empty(len(bits), np.uint16)
    to(every, wide, len(every))
    back(bits.view(np.float32), narrow, len(bits))
    with np.errstate(all="ignore"):
        expected = every.view(np.float16).astype(np.float32)
        rounded = bits.view(np.float32).astype(np.float16)
    off = [
        int(np.sum((found.view(f"u{found.itemsize}") != exact.view(f"u{exact.itemsize}")) & ~both))
        for found, exact in ((wide, expected), (narrow.view(np.float16), rounded))
        for both in [np.isnan(found) & np.isnan(exact)]
    ]
    return {
        "wrong": off,
        "wide": hashlib.sha256(wide.tobytes()).hexdigest(),
        "narrow": hashlib.sha256(narrow.tobytes()).hexdigest(),
    }


def code():
    """The registers that the machine code names, and whether an instruction is encoded for AVX."""
    text = "\n".join(kept.library.get_asm_str() for kept in _jit._kept.values())
    return {name: bool(re.search(pattern, text)) for name, pattern in PATTERNS.items()}


PATTERNS = {
    "xmm": r"%xmm",
    "ymm": r"%ymm",
    "zmm": r"%zmm",
    "AVX": r"\bv(add|mul|sub|mov)[a-z]*p[sd]\b",
    "FMA": r"\bvfm(add|sub)",
    "halves": r"\bvcvtp(h2psx?|s2phx?)\b",  # F16C, or AVX-512 for float16
}


def compile_only(build):
    """Compile as ever, and have nothing of it run: the processor may not understand it."""

    def built(*described):
        build(*described)
        return lambda *_: None

    return built


if __name__ == "__main__":
    RUN = sys.argv[1] == "run"
    if not RUN:
        kernels._jit.build = compile_only(_jit.build)
        np.empty = np.zeros  # what is not written is still looked at
    found = {"layers": layers, "halves": halves}[sys.argv[2]]()
    sys.stdout.write(json.dumps({"found": found, "code": code(), "built": len(_jit.built)}))
