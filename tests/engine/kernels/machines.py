"""Kernels for the machine that the environment names: what is in their machine code, and what they give.

A process of its own, since Numba reads NUMBA_CPU_NAME and NUMBA_CPU_FEATURES once: ``python -m
tests.engine.kernels.machines`` with "run" or "compile", and what to do: layers, or conversions of a dtype. Prints a
line of JSON.
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
    """What the kernels of both families, forward and backward, give: digests of the outputs, all of them judged."""
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
    """Slices for which sums in float32 are enough and others, with elements whose squares float32 loses among them."""
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
    """Load and store by vectors, and behind that once more by wide ones."""
    for start in range(0, size, LANES):
        store(y, start, load(x, start))
    for start in range(0, size, WIDE):
        store(y, size + start, load_wide(x, start))


def edges(dtype):
    """Numbers that a dtype rounds, and those on both sides of every place where it changes its mind."""
    every = np.arange(1 << 15, dtype=np.uint16).view(dtype)
    halves = every[: 1 + int(np.argmax(np.isinf(every)))].astype(np.float64)
    halves[-1] = 2 * halves[-2] - halves[-3]  # the next number, if there were one
    ties = np.minimum((halves[:-1] + halves[1:]) / 2, np.finfo(np.float32).max)
    halves = np.minimum(halves, np.finfo(np.float32).max).astype(np.float32)
    near = np.concatenate([halves, ties.astype(np.float32)])
    bits = near.view(np.uint32)[:, None] + np.arange(-2, 3).astype(np.uint32)
    anything = np.random.default_rng(0).integers(0, 1 << 32, 1 << 18, np.uint32)
    nans = anything | 0x7F800000
    # By themselves first: where a vector holds nothing subnormal it may be rounded in another way than elsewhere.
    found = np.concatenate([bits.ravel(), bits.ravel() | 0x80000000, anything, nans])
    normal = found[found & 0x7F800000 > 0]
    normal, mixed = (np.concatenate([part, np.zeros(-len(part) % WIDE, np.uint32)]) for part in (normal, found))
    return np.concatenate([normal, mixed]).astype(np.uint32)


def halves(name):
    """Halves to float32 and back: what each of them becomes, as digests, and how many are not what NumPy says."""
    dtype, every = dtype_of(name), np.arange(1 << 16, dtype=np.uint16)
    to, back = (
        jit.build(widened, {}, (storage, result, "float32"), (storage, result), 1)
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
    """The registers that the machine code names, and whether an instruction is encoded for AVX."""
    text = "\n".join(kept.library.get_asm_str() for kept in jit._kept.values())
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
    """Compile as ever, and have nothing of it run: the processor may not understand it."""

    def built(*described):
        build(*described)
        return lambda *_: None

    return built


if __name__ == "__main__":
    RUN = sys.argv[1] == "run"
    if not RUN:
        jit.build = compile_only(jit.build)
        np.empty = np.zeros  # what is not written is still looked at
    found = layers() if sys.argv[2] == "layers" else halves(sys.argv[2])
    sys.stdout.write(json.dumps({"found": found, "code": code(), "built": len(jit.built)}))
