"""The buffer pool: no buffer is used again while an array refers to it; outputs begin as inputs do; limits hold."""

import gc
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import gennorm as gn
from gennorm.engine import memory

SHAPE = (64, 1024)  # 256 KiB: large enough to be kept


@pytest.fixture(autouse=True)
def own_reserve():
    before = gn.get_reserve()
    gn.clear_reserve()
    yield
    gn.set_reserve(before)
    gn.clear_reserve()


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def example(seed: int = 0, shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def at(offset: int, shape=SHAPE) -> np.ndarray:
    """An array that begins so many bytes into a cache line."""
    size = int(np.prod(shape)) * 4
    raw = np.empty(size + 128, np.uint8)
    begin = (offset - address(raw)) % 64
    array = raw[begin : begin + size].view(np.float32).reshape(shape)
    array[...] = example(shape=shape)
    return array


def test_memory_without_references_is_reused():
    layer, x = gn.layer_norm(1024), example()
    where = address(layer(x))
    assert address(layer(x)) == where
    assert address(layer.vjp(x)[0]) == where


def test_an_output_and_a_gradient_have_the_memory_of_those_before():
    layer, x = gn.layer_norm(1024), example()

    def addresses():
        y, pullback = layer.vjp(x)
        return address(y), address(pullback(x).input)

    addresses()  # which makes the memory
    first = addresses()
    assert first[0] != first[1]
    assert [addresses() for _ in range(3)] == [first] * 3


@pytest.mark.parametrize(
    "hold",
    [
        lambda y: y,
        lambda y: y[3:],
        lambda y: y.T,
        lambda y: y.view(np.int32),
        lambda y: y.ravel()[5:6],
        memoryview,
        lambda y: np.asarray(memoryview(y)),
        lambda y: {"deep": [y.reshape(-1)[::2]]},
        lambda y: np.lib.stride_tricks.sliding_window_view(y, 3, axis=1),
        lambda y: y.__array_interface__ and y.data,
    ],
)
def test_memory_with_references_is_not_reused(hold):
    layer, x = gn.layer_norm(1024), example()
    y = layer(x)
    expected, where, held = y.copy(), address(y), hold(y)
    del y
    others = [layer(example(seed)) for seed in range(1, 20)]
    assert where not in {address(other) for other in others}
    del held, others
    again = [layer(x) for _ in range(20)]
    assert where in {address(y) for y in again}
    np.testing.assert_array_equal(again[-1], expected)


def test_memory_held_by_torch_is_not():
    torch = pytest.importorskip("torch")
    layer, x = gn.layer_norm(1024), example()
    y = layer(x)
    where, tensor = address(y), torch.from_numpy(y)[1:]
    expected = tensor.clone()
    del y
    assert all(address(layer(example(seed))) != where for seed in range(1, 5))
    assert torch.equal(tensor, expected)


@pytest.mark.parametrize("offset", [0, 16, 32, 48, 4])
def test_an_output_begins_where_its_input_does_in_a_cache_line(offset):
    x = at(offset)
    assert address(gn.layer_norm(1024)(x)) % 64 == offset


@pytest.mark.parametrize("order", ["C", "F", "channels last", "reversed"])
def test_an_output_has_the_layout_of_its_input(order):
    x = example(shape=(8, 16, 32, 32))
    x = {
        "C": x,
        "F": np.asfortranarray(x),
        "channels last": np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
        "reversed": x[:, ::-1],
    }[order]
    layer = gn.group_norm(4, 16)
    for _ in range(2):
        y = layer(x)
        assert y.strides == np.empty_like(x).strides
        np.testing.assert_array_equal(y, layer(np.ascontiguousarray(x)))


def test_parameters_begin_where_large_arrays_do():
    layer = gn.NormalizationLayer(-1, "Same", input_shape=(..., 7), scaling=np.arange(7.0))
    assert {address(array) % 64 for array in (layer.scaling, layer.biases)} == {16}


def test_the_pool_stays_below_its_limit():
    layer = gn.layer_norm(1024)
    gn.set_reserve(1 << 20)  # three outputs and what they leave over
    held = [layer(example(seed)) for seed in range(8)]
    assert memory._pooled <= 1 << 20
    expected = [layer(example(seed)) for seed in range(8)]
    for y, z in zip(held, expected, strict=True):
        np.testing.assert_array_equal(y, z)


def test_other_sizes_make_room():
    gn.set_reserve(1 << 20)
    for columns in range(1024, 1024 + 64 * 12, 64):
        gn.layer_norm(columns)(example(shape=(64, columns)))
        assert memory._pooled <= 1 << 20
    layer, x = gn.layer_norm(4000), example(shape=(32, 4000))
    where = address(layer(x))
    assert address(layer(x)) == where


def test_a_limit_of_zero_disables_the_pool():
    gn.set_reserve(0)
    layer = gn.layer_norm(1024)
    held = [layer(example(seed)) for seed in range(3)]
    assert (memory._pooled, sum(map(len, memory._pool.values()))) == (0, 0)
    del held


def test_idle_buffers_are_released():
    layer = gn.layer_norm(1024)
    held = layer(example())
    layer(example())
    assert memory._pooled > 0
    gn.clear_reserve()
    kept = memory._pooled
    assert 0 < kept < 2 * held.nbytes  # what is in use
    del held
    gn.clear_reserve()
    assert memory._pooled == 0


def test_threads_never_share_memory():
    layer = gn.layer_norm(1024)
    wrong = []

    def work(seed: int) -> None:
        x = example(seed, (64 + seed % 2, 1024))
        expected = layer(x).copy()
        for _ in range(200):
            y, z = layer(x), layer(x)
            if address(y) == address(z) or not (np.array_equal(y, expected) and np.array_equal(z, expected)):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(8)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    finally:
        sys.setswitchinterval(before)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_a_child_has_memory_of_its_own():
    code = """
import os, numpy as np, gennorm as gn
layer, x = gn.layer_norm(1024), np.random.default_rng(0).standard_normal((64, 1024)).astype("f4")
y = layer(x); expected = y.copy(); layer(x)
child = os.fork()
z = [layer(x + 1) for _ in range(4)]
assert np.array_equal(y, expected)
if child == 0:
    os._exit(0 if np.array_equal(layer(x), expected) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_garbage_collector_releases_outputs_in_cycles():
    layer, x = gn.layer_norm(1024), example()
    cycle = [layer(x)]
    cycle.append(cycle)
    where = address(cycle[0])
    del cycle
    gc.collect()
    assert address(layer(x)) == where


# ------------------------------------------------------------------------------------------ what the pool holds at most


def step(layers, rows):
    """Training on a batch: outputs are held until the gradients of later layers are known."""
    x, pullbacks = np.ones((rows, 1024), np.float32), []
    for layer in layers:
        x, pullback = layer.vjp(x)
        pullbacks.append(pullback)
    for pullback in reversed(pullbacks):
        x = pullback(x).input


@pytest.mark.parametrize("depth", [1, 5, 12, 40])
def test_steps_that_repeat_make_no_buffers(depth):
    layers = [gn.layer_norm(1024) for _ in range(depth)]
    for _ in range(3):
        step(layers, 64)
    made = memory._made
    for _ in range(10):
        step(layers, 64)
    assert memory._made == made


def test_a_few_sizes_that_alternate_make_no_buffers():
    layers = [gn.layer_norm(1024)]
    for _ in range(3):
        for rows in (64, 96, 130, 200):
            step(layers, rows)
    made = memory._made
    for _ in range(10):
        for rows in (64, 96, 130, 200):
            step(layers, rows)
    assert memory._made == made


def test_many_lengths_leave_little_behind():
    layers, lent = [gn.layer_norm(1024)], 2 * 2048 * 1024 * 4  # an output and a gradient of the longest
    for rows in np.random.default_rng(0).integers(40, 2048, 200):
        step(layers, int(rows))
        assert memory._pooled <= 1.5 * lent * 9 / 8 + memory.SLACK
    gn.clear_reserve()
    assert memory._pooled == 0


def test_sizes_that_do_not_come_back_are_released_and_those_in_use_are_not():
    large, small = gn.layer_norm(1024), [gn.layer_norm(1024)]
    held = large(example(shape=(12288, 1024)))  # 48 MiB
    expected = held[::1000].copy()
    for rows in range(64, 4000, 250):
        step(small, rows)
    assert memory._pooled >= held.nbytes
    np.testing.assert_array_equal(held[::1000], expected)
    del held
    for rows in [64 + turn * 150 % 2000 for turn in range(200)]:
        step(small, rows)
    assert memory._pooled < 48 << 20


def test_an_interrupt_that_loses_buffers_does_not_shrink_the_pool_for_ever():
    layer = gn.layer_norm(1024)
    layer(example())
    memory._pooled += gn.get_reserve()  # as if all the rest had been lost
    where = [address(layer(example(shape=(rows, 1024)))) for rows in (300, 300)]
    assert where[0] == where[1]


NO_MEMORY = """
import resource
import numpy as np
import gennorm as gn
from gennorm.engine import memory
layer = gn.layer_norm(1024)
x, wide = np.ones((1 << 14, 1024), np.float32), np.ones((25600, 1024), np.float32)  # 64 and 100 MiB
layer(wide)  # plans for the shape
gn.clear_reserve()
idle = [layer(x) for _ in range(4)]
del idle
before = memory._pooled
assert before >= 4 * x.nbytes
with open("/proc/self/status") as status:
    used = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (used + (20 << 20), resource.RLIM_INFINITY))
y = {call}
assert y.size >= wide.size
assert memory._pooled < before
try:
    memory.allocate(np.empty, 1 << 40, np.uint8)
except MemoryError:
    print("done")
"""
CALLS = {
    "an output": "layer(wide)",
    "parameters": "memory.copied(wide, wide.dtype)",
    "another array": "memory.allocate(np.empty, wide.shape, np.float32)",
}


@pytest.mark.skipif(sys.platform != "linux", reason="the system has no limit of the address space")
@pytest.mark.parametrize("name", CALLS)
def test_idle_buffers_are_released_before_a_memory_error(name):
    code = NO_MEMORY.format(call=CALLS[name])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr) == ("done\n", "")


RESIDENT = """
import numpy as np
import gennorm as gn

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmRSS"))

layer = gn.layer_norm(1024)
def step(rows):
    x = np.ones((rows, 1024), np.float32)
    y, pullback = layer.vjp(x)
    pullback(y)

step(64), step(2048)
gn.clear_reserve()
before = resident()
for rows in np.random.default_rng(0).integers(40, 2048, 200):
    step(int(rows))
after = resident()
gn.clear_reserve()
print(after - before, resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the resident memory is read from /proc")
def test_resident_memory_after_many_lengths():
    done = subprocess.run([sys.executable, "-c", RESIDENT], capture_output=True, text=True, timeout=240, check=True)
    after, cleared = (int(word) for word in done.stdout.split())
    assert after < 96 << 20  # 16 MiB are lent at one time, and the pool may hold 32 more
    assert cleared < after - (16 << 20)
