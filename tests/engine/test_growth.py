"""What growing costs: memory that is input, output and moments; plans that do not look at every element."""

import json
import subprocess
import sys
import time

import pytest

import gennorm as gn

MEMORY = """
import json
import numpy as np
import gennorm as gn

def peak():
    # Not getrusage: what that tells of a new process begins with the memory of the one it came from.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))

layer = {layer}
def call(x):
    {call}

def array(rows):
    x = np.empty((rows, *{shape}[1:]), {dtype!r})
    x.reshape(-1, 1024)[:] = np.arange(1024)
    return x{view}

call(array({shape}[0]))  # compiles
gn.clear_reserve()
x = array({shape}[0])
with open("/proc/self/clear_refs", "w") as refs:
    refs.write("5")  # the peak begins anew
before = peak()
held = call(x)
print(json.dumps([x.nbytes, peak() - before]))
"""
OUTPUT, GRADIENTS = "return layer(x)", "y, pullback = layer.vjp(x); return y, pullback(x)"
HELD = 12 << 20  # bytes for moments, threads, and what the allocator rounds up


def grown(layer, shape, dtype="float32", call=OUTPUT, view=""):
    """Bytes of the input, and how much memory a call needs beyond it at the most."""
    program = MEMORY.format(layer=layer, shape=shape, dtype=dtype, call=call, view=view)
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=600)
    return json.loads(done.stdout)


ROWS, IMAGES = (1 << 16, 1024), (1 << 8, 64, 64, 64)
FORMS = {
    "rows": ("gn.NormalizationLayer(2, ())", ROWS),
    "rows and parameters": ("gn.layer_norm(1024)", ROWS),
    "columns": ("gn.NormalizationLayer(1, ())", (1 << 20, 64)),
    "groups": ("gn.group_norm(8, 64)", IMAGES),
    "batch norm": ("gn.batch_norm(64, statistics='input')", IMAGES),
    "folded columns": ("gn.group_norm(8, 64, channel_level=-1)", IMAGES),
    "one slice": ("gn.NormalizationLayer(1, ())", (1 << 26,)),
}


@pytest.mark.parametrize("name", FORMS)
def test_peak_memory_is_input_and_output(name):
    size, more = grown(*FORMS[name])
    assert size == 1 << 28
    assert 0.9 * size < more < size + HELD


def test_peak_memory_of_halves():
    size, more = grown(*FORMS["rows"], dtype="float16")
    assert size == 1 << 27
    assert 0.9 * size < more < size + HELD


@pytest.mark.parametrize("name", ["rows", "columns", "groups", "batch norm"])
def test_peak_memory_of_gradients(name):
    """The output and the gradient of the input; nothing else is as large."""
    size, more = grown(*FORMS[name], call=GRADIENTS)
    assert 1.9 * size < more < 2 * size + HELD


def test_a_copy_is_seen():
    """The check itself: rows that run backwards are copied, there and back, as their plan says."""
    assert gn.NormalizationLayer(2, ()).plan(ROWS).copies == "nothing"
    size, more = grown(*FORMS["rows"], view="[:, ::-1]")
    assert more > 1.5 * size


def seconds(make, *shape):
    """The least that a new layer takes to plan for a shape."""
    least = 1.0
    for _ in range(50):
        layer = make()
        begin = time.perf_counter()
        layer.plan(shape)
        least = min(least, time.perf_counter() - begin)
    return least


def test_plans_of_many_ranks():
    """Every other axis is aggregated, so that no two merge; quadratic would be sixteen times as long."""
    few, many = (seconds(lambda: gn.NormalizationLayer("1;;All;;2", ()), *(2,) * rank) for rank in (8, 32))
    assert many < 8 * few


def test_plans_of_many_groups():
    few, many = (
        seconds(lambda groups=groups: gn.NormalizationLayer("All", (), {1: groups}), 2 * groups, 4)
        for groups in (4, 1 << 20)
    )
    assert many < 3 * few


def test_plans_of_many_slices():
    few, many = (seconds(lambda: gn.NormalizationLayer(2, ()), slices, 8) for slices in (4, 10**9))
    assert many < 3 * few


@pytest.mark.parametrize("shape", [(10**9,), (10**7, 8), (1, 10**9)])
@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
def test_large_work_is_shared(shape, dtype):
    """`gennorm bench --measure growth --gigabytes 4` computes them."""
    assert gn.NormalizationLayer(len(shape), ()).plan(shape, dtype).tasks >= 64
