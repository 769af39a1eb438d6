"""Kernels for three instruction sets: compiled on any x86-64, run where the processor can, with the same results."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import pytest

pytestmark = pytest.mark.slow  # each instruction set compiles all kernels in a process of its own

ROOT = Path(__file__).resolve().parents[3]

# LLVM's names of processors; what their machine code contains, and which features a processor needs to run it.
MACHINES = {
    "x86-64": ({"xmm": True, "ymm": False, "zmm": False, "AVX": False, "FMA": False, "float16": False}, ()),
    "haswell": ({"xmm": True, "ymm": True, "zmm": False, "AVX": True, "FMA": True}, ("avx2", "fma", "f16c", "bmi2")),
    "skylake-avx512": (
        {"xmm": True, "ymm": True, "zmm": True, "AVX": True, "FMA": True},
        ("avx512f", "avx512vl", "avx512bw", "avx512dq", "avx512cd"),
    ),
}
HOST = "host"
X86 = llvm.get_process_triple().startswith("x86_64")


def executable(machine):
    has = llvm.get_host_cpu_features()
    return machine == HOST or all(has.get(feature) for feature in MACHINES[machine][1])


def start(machine, way, what, **environment):
    # NUMBA_CPU_NAME alone would add the features of the host.
    named = {} if machine == HOST else {"NUMBA_CPU_NAME": machine, "NUMBA_CPU_FEATURES": ""}
    given = {**os.environ, "PYTHONPATH": str(ROOT), "GENNORM_CACHE_DIR": "/dev/null/nowhere", **named, **environment}
    command = [sys.executable, "-m", "tests.engine.kernels.machines", way, what]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=given)


def end(process):
    try:
        out, errors = process.communicate(timeout=400)
    finally:
        process.kill()
    assert process.returncode == 0, errors[-3000:]
    return json.loads(out)


@functools.cache
def of_layers():
    """Compile, and run where possible, for every machine; the processes run at the same time."""
    machines = [*(MACHINES if X86 else ()), HOST]
    started = {name: start(name, "run" if executable(name) else "compile", "layers") for name in machines}
    return {name: end(process) for name, process in started.items()}


@pytest.mark.parametrize("machine", MACHINES if X86 else ())
def test_kernels_are_compiled_for(machine, record_property):
    record_property("run", executable(machine))
    found = of_layers()[machine]
    shown, _ = MACHINES[machine]
    assert {name: found["code"][name] for name in shown} == shown
    assert not found["code"]["bfloat16"]
    assert found["built"] == 6


def test_outputs_are_the_same_to_the_bit():
    ran = {name: found["found"] for name, found in of_layers().items() if executable(name)}
    assert len(ran) >= 2 or not X86
    for name, found in ran.items():
        assert found == ran[HOST], name


def test_outputs_in_plain_python_are_the_same_to_the_bit():
    assert end(start(HOST, "run", "layers", NUMBA_DISABLE_JIT="1"))["found"] == of_layers()[HOST]["found"]


@pytest.mark.parametrize("machine", ["x86-64"] if X86 else [HOST])
@pytest.mark.parametrize(("dtype", "feature"), [("float16", "f16c"), ("bfloat16", "avx512bf16")])
def test_halves_without_instructions_for_them(dtype, feature, machine):
    """Every half, and the float32 numbers next to every rounding boundary: as NumPy and the processor convert them."""
    converted = end(start(machine, "run", dtype))
    assert converted["found"]["wrong"] == [0, 0]
    assert converted["code"][dtype] is False
    native = end(start(HOST, "run", dtype))
    assert native["found"]["wrong"] == [0, 0]
    assert native["code"][dtype] == bool(llvm.get_host_cpu_features().get(feature))
    assert converted["found"] == native["found"]
