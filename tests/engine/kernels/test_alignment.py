"""Unaligned arrays through every entry point, with output by non-temporal stores."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gennorm as gn
from gennorm import extend
from gennorm.engine import call as engine_call
from tests.engine.kernels.test_forms import made
from tests.strategies import buffer_of, layout, sample, slow

ROOT = Path(__file__).resolve().parents[3]
STREAMED = {"forward": 0, "kept": 0, "backward": 0}
FORMS = {
    "rows": ((5, 200), {"aggregation_levels": -1, "scaling_levels": "Same"}),
    "rows of channels": ((4, 6, 200), {"aggregation_levels": "All", "scaling_levels": 1, "group_number": {1: 2}}),
    "one long row": ((1, 70_000), {"aggregation_levels": -1}),
    "columns": ((70, 64), {"aggregation_levels": 0, "scaling_levels": 1}),
    "columns of part of a vector": ((70, 40), {"aggregation_levels": 0, "scaling_levels": 1}),
    "folded columns": ((2, 30, 64), {"aggregation_levels": "All", "scaling_levels": 2, "group_number": {2: 16}}),
}
# Bytes from an aligned place to the first element. An element of 8 bytes may be at a multiple of 4.
SHIFTS = {"float16": (1, 3), "bfloat16": (1, 33), "float32": (1, 2, 42), "float64": (1, 4, 20)}


def placed(array, shift):
    """A copy that begins so many bytes behind an aligned place."""
    copy = layout(array.ndim, shift=shift).hold(array)
    assert copy.flags.aligned == (shift % array.itemsize == 0)
    return copy


def call(layer, x, dy, mask, place):
    return [layer(x)]


def out(layer, x, dy, mask, place):
    y = place(np.zeros(x.shape, dy.dtype))
    assert layer(x, out=y) is y
    assert set(buffer_of(y).tobytes()[:64]) == {0xA5}
    return [y]


def vjp(layer, x, dy, mask, place):
    y, pullback = layer.vjp(x)
    return [y, *gradients(pullback(dy))]


def backward_of_what_was_kept(layer, x, dy, mask, place):
    computation = extend.Computation.of(layer)
    y, kept = computation.forward(x, layer.scaling, layer.biases)
    return [y, *gradients(computation.backward(x, dy, place(kept), layer.scaling, layer.biases))]


def jvp(layer, x, dy, mask, place):
    return list(layer.jvp(x, dy))


def measure(layer, x, dy, mask, place):
    moments = layer.measure(x)
    return [moments.mean, moments.m2]


def apply(layer, x, dy, mask, place):
    moments = layer.measure(x)
    unaligned = gn.Moments(moments.count, place(moments.mean), place(moments.m2))
    return [layer.apply(x, moments), layer.apply(x, unaligned)]


def inverse(layer, x, dy, mask, place):
    return [layer.inverse(x, layer.measure(x))]


def masked(layer, x, dy, mask, place):
    y, pullback = layer.vjp(x, mask=mask)
    return [y, *gradients(pullback(dy)), layer(x, mask=mask), layer.jvp(x, dy, mask=mask)[1]]


def parameters(layer, x, dy, mask, place):
    given = {name: place(getattr(layer, name)) for name in ("scaling", "biases")}
    y, pullback = layer.vjp(x, **given)
    return [layer(x, **given), y, *gradients(pullback(dy))]


def gradients(found):
    return [found.input, found.scaling, found.biases]


ENTRIES = (call, out, vjp, backward_of_what_was_kept, jvp, measure, apply, inverse, masked, parameters)


# A kernel takes seconds to compile: the other dtypes have two entry points, which run all kernels with non-temporal
# stores, and most forms are slow.
QUICK = ("rows", "columns")
OTHERS = [(entry, name, dtype) for dtype in SHIFTS if dtype != "float32" for entry in (out, vjp) for name in FORMS]
TABLE = [
    *((entry, name, "float32") for entry in ENTRIES for name in FORMS if entry in (out, vjp) or name in QUICK),
    *(
        slow(entry, name, "float32")
        for entry in ENTRIES
        for name in FORMS
        if not (entry in (out, vjp) or name in QUICK)
    ),
    *((entry, name, dtype) for entry, name, dtype in OTHERS if dtype == "float16" and name in QUICK),
    *(slow(*other) for other in OTHERS if other[2] != "float16" or other[1] not in QUICK),
]


@pytest.mark.parametrize(("entry", "name", "dtype"), TABLE, ids=lambda value: getattr(value, "__name__", value))
def test_unaligned_arrays_have_the_bits_of_aligned_ones(entry, name, dtype, monkeypatch):
    monkeypatch.setattr(engine_call, "STREAMED", STREAMED)
    shape, settings = FORMS[name]
    x, dy = sample(shape, dtype), sample(shape, dtype, seed=1)
    mask = np.random.default_rng(2).random(shape) < 0.8
    found = []
    for shift in (0, *SHIFTS[dtype]):
        layer = made({**settings, "batched": True}, shape)

        def place(array, shift=shift):
            return placed(array, shift)

        found.append([array.tobytes() for array in entry(layer, place(x), place(dy), mask, place)])
    assert all(bits == found[0] for bits in found)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("which", ["input", "output"])
def test_one_unaligned_array_among_aligned_ones(which, name, monkeypatch):
    monkeypatch.setattr(engine_call, "STREAMED", STREAMED)
    shape, settings = FORMS[name]
    x = sample(shape, "float32")
    layer = made({**settings, "batched": True}, shape)
    expected = layer(x)
    for shift in SHIFTS["float32"]:
        if which == "input":
            y = np.empty(shape, np.float32)
            layer(placed(x, shift), out=y)
        else:
            y = placed(np.zeros_like(x), shift)
            layer(x, out=y)
        assert y.tobytes() == expected.tobytes()


# Arrays that are large enough as they are, each in a process that a fault ends: 40 MB of output, or 16 of gradients.
LARGE = {
    "frombuffer": """
x = np.frombuffer(bytes(4 * size + 2), np.float32, size, offset=2).reshape(shape)
layer(x)
""",
    "memmap": """
with tempfile.TemporaryDirectory() as folder:
    path = folder + "/x"
    np.memmap(path, np.float32, "w+", 42, shape)[...] = 1
    layer(np.memmap(path, np.float32, "r", 42, shape))
""",
    "output": """
y = np.frombuffer(bytearray(4 * size + 2), np.float32, size, offset=2).reshape(shape)
layer(np.ones(shape, np.float32), out=y)
""",
    "float16 at an odd address": """
x = np.frombuffer(bytes(4 * size + 1), np.float16, 2 * size, offset=1).reshape(2 * shape[0], shape[1])
layer(x)
""",
    "float64 at a multiple of 4": """
x = np.frombuffer(bytes(4 * size + 4), np.float64, size // 2, offset=4).reshape(shape[0] // 2, shape[1])
layer(x)
""",
    "gradients": """
shape = shape[0] // 2, shape[1]
x = np.frombuffer(bytes(2 * size + 2), np.float32, size // 2, offset=2).reshape(shape)
y, pullback = layer.vjp(x)
pullback(x)
layer.jvp(x, x)
""",
    "apply and inverse": """
x = np.frombuffer(bytes(4 * size + 2), np.float32, size, offset=2).reshape(shape)
moments = layer.measure(x)
layer.inverse(layer.apply(x, moments), moments)
""",
}


@pytest.mark.parametrize("family", ["rows", "columns"])
@pytest.mark.parametrize("name", LARGE)
def test_large_unaligned_arrays(name, family):
    level = 2 if family == "rows" else 1
    program = f"""
import tempfile
import numpy as np
import gennorm as gn
shape = 20480, 512
size = shape[0] * shape[1]
layer = gn.NormalizationLayer({level}, "Complement", scaling=None, biases=None)
{LARGE[name]}
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, signal.Signals(-done.returncode) if done.returncode < 0 else done.stderr
