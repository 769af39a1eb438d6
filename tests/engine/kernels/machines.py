"""Compile kernels for the processor that the environment names, and print what their code contains and computes.

This runs in a separate process, because Numba reads NUMBA_CPU_NAME and NUMBA_CPU_FEATURES once:
``python -m tests.engine.kernels.machines`` with "run" or "compile", and with "layers" or the name of a dtype whose
conversions are tested. The output is one line of JSON.
"""

import hashlib
import json
import re
import sys

import numpy as np

import gennorm as gn
from gennorm.engine.compiler import jit
from gennorm.engine.kernels.vector import LANES, WIDE, load, load_wide, store
from tests import derivatives
from tests.accuracy import judge
from tests.strategies import dtype_of, sample

ROWS = ({"aggregation_levels": -1, "scaling_levels": "Same"}, (5, 83))
COLUMNS = ({"aggregation_levels": 0, "scaling_levels": 1, "batched": True}, (33, 45))
FAMILIES = {"rows": (ROWS, "float16"), "columns": (COLUMNS, "bfloat16")}


def layers():
    """Run the kernels of both families, forward and backward; check the outputs, and return their digests."""
    found = {}
    for family, ((settings, shape), narrow) in FAMILIES.items():
        layer = gn.NormalizationLayer(**settings).initialize(shape)
        layer.scaling[...] = sample(layer.scaling.shape, seed=1)
        x, dy = sample(shape), sample(shape, seed=2)
        y, pullback = layer.vjp(x)
        gradients = pullback(dy)
        given = {"float32": x, narrow: sample(shape, narrow), f"{narrow} of every kind": uneven(family, shape, narrow)}
        for kind, values in given.items():
            output = y if values is x else layer(values)
            if RUN:
                judge(output, values, settings, layer.scaling, layer.biases)
            found[f"{family} of {kind}"] = hashlib.sha256(output.tobytes()).hexdigest()
        if RUN:
            derivatives.judge(gradients, x, dy, settings, layer.scaling, layer.biases)
    return found


def uneven(family, shape, dtype):
    """Return slices of both kinds: sums in float32 are enough, or squares of some elements underflow in float32."""
    slices = sample(shape, dtype) if family == "rows" else sample(shape, dtype).T.copy()
    number = len(slices)
    slices[1 % number] += 40
    slices[2 % number] *= dtype_of(dtype).type(1e-4 if dtype == "float16" else 1e-25)
    slices[3 % number] = 7
    slices[4 % number, ::2] *= dtype_of(dtype).type(1e-4 if dtype == "float16" else 1e-21)
    if dtype == "bfloat16":
        slices[5] *= dtype_of(dtype).type(1e25)
        slices[6, 3] = 1e30
        slices[7] = slices[4] * dtype_of(dtype).type(1e-6)
    return slices if family == "rows" else slices.T.copy()


def widened(x, y, size):
    """Copy an array by vectors, and to the second half of the output by wide vectors."""
    for start in range(0, size, LANES):
        store(y, start, load(x, start))
    for start in range(0, size, WIDE):
        store(y, size + start, load_wide(x, start))


def edges(dtype):
    """Return numbers that a dtype rounds, and the float32 neighbours of every number where the result changes."""
    every = np.arange(1 << 15, dtype=np.uint16).view(dtype)
    halves = every[: 1 + int(np.argmax(np.isinf(every)))].astype(np.float64)
    halves[-1] = 2 * halves[-2] - halves[-3]  # where the next number would be
    ties = np.minimum((halves[:-1] + halves[1:]) / 2, np.finfo(np.float32).max)
    halves = np.minimum(halves, np.finfo(np.float32).max).astype(np.float32)
    near = np.concatenate([halves, ties.astype(np.float32)])
    bits = near.view(np.uint32)[:, None] + np.arange(-2, 3).astype(np.uint32)
    anything = np.random.default_rng(0).integers(0, 1 << 32, 1 << 18, np.uint32)
    nans = anything | 0x7F800000
    # First without subnormal numbers: vectors that contain one may be rounded by other instructions.
    found = np.concatenate([bits.ravel(), bits.ravel() | 0x80000000, anything, nans])
    normal = found[found & 0x7F800000 > 0]
    normal, mixed = (np.concatenate([part, np.zeros(-len(part) % WIDE, np.uint32)]) for part in (normal, found))
    return np.concatenate([normal, mixed]).astype(np.uint32)


def halves(name):
    """Convert halves to float32 and back; return digests, and how many results differ from NumPy's."""
    dtype, every = dtype_of(name), np.arange(1 << 16, dtype=np.uint16)
    to, back = (
        jit.build(widened, {}, (storage, result, "float32"), jit.Signature((storage, result), integers=1))
        for storage, result in ((name, "float32"), ("float32", name))
    )
    wide, bits = np.empty(2 * len(every), np.float32), edges(dtype)
    narrow = np.empty(2 * len(bits), np.uint16)
    to(every, wide, len(every))
    back(bits.view(np.float32), narrow, len(bits))
    with np.errstate(all="ignore"):
        expected = every.view(dtype).astype(np.float32)
        rounded = bits.view(np.float32).astype(dtype)
    off = [
        int(np.sum((found.view(f"u{found.itemsize}") != exact.view(f"u{exact.itemsize}")) & ~both))
        for found, exact in ((wide, np.tile(expected, 2)), (narrow.view(dtype), np.tile(rounded, 2)))
        for both in [np.isnan(found) & np.isnan(exact)]
    ]
    return {
        "wrong": off,
        "wide": hashlib.sha256(wide.tobytes()).hexdigest(),
        "narrow": hashlib.sha256(narrow.tobytes()).hexdigest(),
    }


def code():
    """Return which registers and instructions the machine code contains."""
    text = "\n".join(result.library.get_asm_str() for result in jit._results.values())
    return {name: bool(re.search(pattern, text)) for name, pattern in PATTERNS.items()}


PATTERNS = {
    "xmm": r"%xmm",
    "ymm": r"%ymm",
    "zmm": r"%zmm",
    "AVX": r"\bv(add|mul|sub|mov)[a-z]*p[sd]\b",
    "FMA": r"\bvfm(add|sub)",
    "float16": r"\bvcvtp(h2psx?|s2phx?)\b",  # F16C, or AVX-512 for float16
    "bfloat16": r"\bvcvtneps2bf16\b",
}


def compile_only(build):
    """Compile kernels but do not run them: this processor may not have their instructions."""

    def built(*described):
        build(*described)
        return lambda *_: None

    return built


if __name__ == "__main__":
    RUN = sys.argv[1] == "run"
    if not RUN:
        jit.build = compile_only(jit.build)
        np.empty = np.zeros  # outputs are read although no kernel writes them
    found = layers() if sys.argv[2] == "layers" else halves(sys.argv[2])
    sys.stdout.write(json.dumps({"found": found, "code": code(), "built": len(jit.built)}))
