"""Calls that run on the threads of torch's OpenMP runtime, and where the thread pool is used instead."""

import ctypes
import os
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import pytest

import gennorm as gn
from gennorm.engine import openmp, sharing
from gennorm.engine import threads as threads_
from gennorm.engine.compiler import jit
from tests.engine.kernels.test_sharing import Tasks, assert_each_thread_has_its_part
from tests.strategies import sample

torch = pytest.importorskip("torch")

SOON = 120  # seconds after which a program hangs
USABLE = openmp.runtime() is not None and jit.JIT
FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")


def test_torch_has_a_runtime():
    """The tests below are not skipped where torch is built with OpenMP."""
    linked = sys.platform == "linux" and torch.backends.openmp.is_available()
    assert (openmp.runtime() is not None) == linked or sys.platform == "darwin"


@pytest.fixture
def openmp_only(monkeypatch):
    """Fail where the thread pool is used."""
    if not USABLE:
        pytest.skip("torch has no OpenMP runtime that can be used")
    monkeypatch.setattr(threads_, "_threads", None)
    monkeypatch.setattr(sharing, "_pools", [])
    yield
    assert not sharing._pools


@pytest.mark.parametrize("number", [2, 3, 7])
@pytest.mark.usefixtures("openmp_only")
def test_every_task_is_done_once(number):
    gn.set_num_threads(number)
    for tasks in (1, 2, 5, 15, 16, 64, 1000):
        for _ in range(20):
            done = Tasks(tasks).run()
            assert done.right()
            assert (done.requests == [0]) is (tasks == 1)


@pytest.mark.parametrize("number", [2, 5])
@pytest.mark.usefixtures("openmp_only")
def test_every_thread_has_its_part_of_the_scratch(number):
    assert_each_thread_has_its_part(number)
    assert Tasks(apart=False).run().parts == [1]


@pytest.mark.usefixtures("openmp_only")
def test_threads_of_python_call_at_once():
    gn.set_num_threads(3)
    with ThreadPoolExecutor(4) as executor:
        for tasks in list(executor.map(lambda _: Tasks(turns=1000).run(), range(100))):
            assert tasks.right()


@pytest.mark.usefixtures("openmp_only")
def test_a_very_large_call_is_several():
    gn.set_num_threads(3)
    tasks = Tasks(64).run(elements=4 * sharing.STEP)
    assert tasks.right()
    assert len(tasks.parts) == 4


@pytest.mark.usefixtures("openmp_only")
def test_a_call_inside_a_parallel_region_is_done_by_its_caller():
    gn.set_num_threads(3)
    Tasks().run()
    runtime, found = openmp.runtime(), []
    number = ctypes.CFUNCTYPE(ctypes.c_int)(runtime.thread_number)
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

    @kind
    def region(_):
        if number() == 1:
            found.append(Tasks(turns=1000).run())

    parallel = ctypes.CFUNCTYPE(None, kind, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)(runtime.parallel)
    parallel(region, None, 2, 0)
    (tasks,) = found
    assert tasks.right()
    assert tasks.each[0] == 64  # and not the number that the thread has in the region
    assert tasks.requests != [0]


@pytest.mark.usefixtures("openmp_only")
def test_results_are_the_same_for_any_number_of_threads():
    layers = [gn.layer_norm(768), gn.batch_norm(64), gn.group_norm(8, 64), gn.batch_norm(64, channel_level=-1)]
    for layer, shape in zip(layers, [(300, 768), (8, 64, 20, 20), (8, 64, 20, 20), (8, 20, 20, 64)], strict=True):
        x, dy, found = sample(shape), sample(shape, seed=1), []
        for number in (1, 2, 7):
            gn.set_num_threads(number)
            y, pullback = layer.vjp(x)
            gradients = pullback(dy)
            arrays = [y, layer(x), gradients.input, gradients.scaling, gradients.biases]
            found.append([array.tobytes() for array in arrays])
        assert found[0] == found[1] == found[2]


# ---------------------------------------------------------------------------------- programs in another process


def outcome(code, **environment):
    """What a program prints; it fails where it takes too long."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=SOON,
            check=False,
            env={**os.environ, **environment},
        )
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"it hangs: {error.stdout!r} {error.stderr!r}")
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


BEGIN = """
import os, sys
import numpy as np
import gennorm as gn
from gennorm.engine import openmp, sharing
gn.set_num_threads({number})
layer, x = gn.layer_norm(1024), np.random.default_rng(0).normal(size=(512, 1024)).astype(np.float32)

def used():
    "Make a large call; say what shares it, and compare it with that of one thread."
    y = layer(x)
    gn.set_num_threads(1)
    assert np.array_equal(layer(x), y)
    gn.set_num_threads({number})
    return "pool" if openmp.runtime() is None else "openmp"

def in_child(work):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        print(work(), flush=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""
CHILDREN = {
    "of a process with torch": ("import torch; print(used())", "lambda: used()", ["openmp", "pool", "openmp"]),
    "of a child": (
        "import torch; print(used())",
        "lambda: in_child(used) or used()",
        ["openmp", *["pool"] * 2, "openmp"],
    ),
    "that imports torch": ("", "lambda: __import__('torch') and used()", ["openmp", "pool"]),
}


@FORKS
@pytest.mark.skipif(not USABLE, reason="torch has no OpenMP runtime that can be used")
@pytest.mark.parametrize("name", CHILDREN)
def test_children(name):
    """A child has none of the threads of its parent, and a parallel region would wait for them."""
    first, work, expected = CHILDREN[name]
    assert outcome(BEGIN.format(number=2) + f"{first}\nin_child({work})\nprint(used())") == expected


@pytest.mark.skipif(not USABLE, reason="torch has no OpenMP runtime that can be used")
def test_the_runtime_has_fewer_threads():
    code = BEGIN.format(number=6) + "import torch; print(used())"
    assert outcome(code, OMP_THREAD_LIMIT="2") == ["openmp"]


def test_a_process_without_torch():
    assert outcome(BEGIN.format(number=2) + "print(used(), 'torch' in sys.modules)") == ["pool", "False"]


# ------------------------------------------------------------------------------------------- what cannot be used


@pytest.fixture
def unknown(monkeypatch):
    """The state of a process that has not looked for a runtime yet."""
    monkeypatch.setattr(openmp, "_found", None)
    monkeypatch.setattr(openmp, "_absent", False)


@pytest.mark.usefixtures("unknown")
def test_a_torch_without_a_runtime(monkeypatch, tmp_path):
    fake = types.ModuleType("torch")
    fake.__file__ = str(tmp_path / "__init__.py")
    monkeypatch.setitem(sys.modules, "torch", fake)
    assert openmp.runtime() is None
    assert not openmp._absent  # it is still being imported
    fake.get_num_threads = lambda: 2
    assert openmp.runtime() is None
    assert openmp._absent
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert openmp.runtime() is None  # it is not looked up at every call
    monkeypatch.setattr(openmp, "_absent", False)
    assert (openmp.runtime() is not None) is USABLE


@pytest.mark.usefixtures("unknown")
@pytest.mark.parametrize("lacking", ["RTLD_NOLOAD", "library"])
def test_a_system_without_such_libraries(lacking, monkeypatch):
    if lacking == "library":
        monkeypatch.setattr(openmp, "LIBRARIES", ("libc.so.6",))
    else:
        monkeypatch.delattr(os, lacking, raising=False)
    assert openmp.runtime() is None


def test_a_fork_without_hooks_is_noticed(monkeypatch):
    if not USABLE:
        pytest.skip("torch has no OpenMP runtime that can be used")
    assert openmp.runtime() is not None
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert openmp.runtime() is None
