"""Variants of the engine: in plain Python, with slices cut small, without the second pass."""

import functools

import numpy as np

from gennorm.engine import call as engine_call
from gennorm.engine.compiler import jit
from gennorm.engine.kernels import columns, rows
from gennorm.plan import planner as plan

# Slices in several units, whose tiles and rows are cut into several pieces.
SMALL = {"CACHED": 8, "CUT": 8, "UNIT": 4, "UNITS": 1 << 30, "LINES": 1, "BLOCK": 8}


def in_plain_python(patch):
    """Run kernels as plain Python, without Numba."""
    patch.setattr(jit, "JIT", False)
    patch.setattr(engine_call, "kernel_of", functools.cache(engine_call.kernel_of.__wrapped__))


def cut_small(patch, **sizes):
    """Cut slices and tiles of more than a few elements; `sizes` replace those of `SMALL`."""
    for name, value in {**SMALL, **sizes}.items():
        patch.setattr(plan, name, value)
    patch.setattr(engine_call, "NEAR", 300)


def in_pieces(patch):
    """Process rows with a parameter for each element piece by piece: a piece of every slice before the next."""
    patch.setattr(plan, "LONG", 1)
    patch.setattr(plan, "WINDOW", 20)


def never(squared, *others):
    """Report that one pass is enough for every lane."""
    return np.zeros_like(squared)


def in_one_pass(patch):
    """In plain Python, without the second pass, and with a first pass about 0 instead of the mean of a sample."""
    in_plain_python(patch)
    build = jit.build
    patch.setattr(jit, "build", lambda kernel, settings, *rest: build(kernel, {**settings, "EXACT": 1}, *rest))
    for module in (rows, columns):
        patch.setattr(module, "cancelled", never)


def in_float32(patch):
    """In plain Python, with all sums of float16 and bfloat16 in float32."""
    in_plain_python(patch)
    for module in (rows, columns):
        patch.setattr(module, "rounded", never)
