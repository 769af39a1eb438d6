"""Scenes of processes that use the library. Each function is a program: ``python -m tests.survival.scenes NAME``.

A scene compares every result with the reference and prints how many arrays it has compared. The test that runs it
fails if it raises, prints to standard error, or does not end. A scene imports Numba only where it says so.
"""

import atexit
import ctypes
import hashlib
import json
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import gennorm as gn
from spec import reference
from tests import derivatives
from tests.accuracy import assert_within, judge
from tests.strategies import RESULTS, sample

# Settings that the reference understands too, and a shape: both families of kernels, and every way of slicing.
KINDS = {
    "layer": ({"aggregation_levels": -1, "scaling_levels": "Same"}, (5, 96)),
    "RMS": ({"aggregation_levels": -1, "scaling_levels": "Same", "method": "RMS"}, (7, 70)),
    "group": ({"aggregation_levels": "All", "scaling_levels": 1, "group_number": {1: 2}, "batched": True}, (2, 4, 40)),
    "columns": ({"aggregation_levels": 0, "scaling_levels": 1, "batched": True}, (30, 33)),
}
DTYPES = ("float32", "float64", "float16", "bfloat16", "int8", "int16", "int64", "bool")
LARGE = ({"aggregation_levels": -1, "scaling_levels": "Same"}, (640, 1024))  # large enough to wake up the thread pool

SOON = 120  # seconds after which a wait fails

judged = []  # one item for each array that was compared with the definition


def join(*threads):
    """Wait for threads, but not for ever."""
    deadline = time.monotonic() + SOON
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))
        assert not thread.is_alive(), thread


def wait_until(true, pause=0.0005):
    """Wait until a condition holds, but not for ever."""
    deadline = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < deadline
        time.sleep(pause)


def layer_of(settings, shape):
    layer = gn.NormalizationLayer(**settings).initialize(shape)
    for seed, name in enumerate(("scaling", "biases")):
        getattr(layer, name)[...] = np.random.default_rng(seed).normal(1, 0.5, getattr(layer, name).shape)
    return layer


def right(y, x, settings, layer):
    judge(y, x, settings, layer.scaling, layer.biases)
    judged.append("numbers")


def call(kind="layer", dtype="float32", seed=0, layer=None):
    """Make a layer, call it and judge the output."""
    settings, shape = LARGE if kind == "large" else KINDS[kind]
    layer = layer or layer_of(settings, shape)
    x = sample(shape, dtype, seed)
    right(layer(x), x, settings, layer)
    return layer


def differentiate(kind="layer"):
    """Judge an output and its gradients."""
    settings, shape = KINDS[kind]
    layer, x, dy = layer_of(settings, shape), sample(shape), sample(shape, seed=1)
    y, pullback = layer.vjp(x)
    right(y, x, settings, layer)
    derivatives.judge(pullback(dy), x, dy, settings, layer.scaling, layer.biases)
    judged.append("numbers")


def train(times=1):
    """Calls in training; the moving moments are those after this many updates."""
    layer, x = gn.batch_norm(3, momentum=0.5), sample((8, 3))
    for _ in range(times):
        layer(x, training=True)
    mean = x.astype(np.float64).mean(0) * (1 - 0.5**times)
    assert np.allclose(layer.moments.mean, mean, rtol=1e-12, atol=0), layer.moments
    judged.append("numbers")


def compiled():
    """Return the kernels that this process has compiled, not loaded."""
    from gennorm.engine.compiler import jit

    return [one for one in jit.built if one.compiled]


def child(life, seconds=SOON):
    """Fork, call ``life`` in the child, and fail unless the child compares something and ends without an error."""
    before = len(judged)
    pid = os.fork()
    if pid == 0:
        done = 1
        try:
            signal.alarm(seconds)  # a child that hangs ends
            life()
            done = 0 if len(judged) > before else 3
        except BaseException:  # noqa: BLE001  a child never goes on as its parent
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(done)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 0, f"the child ended with {code}"


# ------------------------------------------------------------------------------------------------------------- threads


def pool():
    """The thread pool of this process, in a list, or an empty list."""
    from gennorm.engine import sharing

    return sharing._pools


def many_threads():
    """32 threads at once, with 32 layers and 9 kernels, none of which is compiled twice."""
    start, errors = threading.Barrier(32), []
    kinds = [("layer", dtype) for dtype in DTYPES[:4]] + [("columns", "float32"), ("large", "float32")]

    def live(number):
        try:
            start.wait(SOON)
            for turn in range(3):
                call(*kinds[number % len(kinds)], seed=turn)
                if number % 8 == 1:
                    differentiate("group")
                if number % 8 == 2:
                    train(turn + 1)
        except BaseException as error:  # noqa: BLE001  raised where the threads are waited for
            errors.append(error)

    threads = [threading.Thread(target=live, args=(number,), daemon=True) for number in range(32)]
    for thread in threads:
        thread.start()
    join(*threads)
    if errors:
        raise errors[0]
    from gennorm.engine.compiler import jit

    names = [(one.name, one.settings, one.dtypes) for one in jit.built]
    assert len(set(names)) == len(names), names
    say(len(compiled()))


def executor():
    """Calls from the threads of an executor, large enough to be shared by the thread pool."""
    gn.set_num_threads(3)
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(call, "large", seed=number) for number in range(12)]:
            done.result(SOON)
        for done in [pool.submit(differentiate, kind) for kind in KINDS]:
            done.result(SOON)


def input_is_written_during_calls():
    """Another thread writes into the input: only the shape of the output is guaranteed."""
    settings, shape = LARGE
    layer, x = layer_of(settings, shape), sample(shape)
    end, written = threading.Event(), []

    def write():
        generator = np.random.default_rng(0)
        while not end.is_set():
            written.append(True)
            x[generator.integers(len(x))] = generator.choice([np.nan, np.inf, 1e38, 0.0, -3.0])

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    wait_until(lambda: written)
    before = len(written)
    with np.errstate(all="ignore"):
        for _ in range(20):
            y, pullback = layer.vjp(x)
            assert layer(x).shape == y.shape == pullback(x).input.shape == shape
    assert len(written) > before
    end.set()
    join(writer)
    x[...] = sample(shape)
    right(layer(x), x, settings, layer)


def at_exit(first):
    """Calls from `atexit`; with ``first``, they are the first calls of the process."""
    if not first:
        call("large")
    atexit.register(tell)
    atexit.register(differentiate)
    atexit.register(call, "large")


def outlives_main(first):
    """A thread that runs after the end of the main thread."""
    if not first:
        call("large")

    def live():
        join(threading.main_thread())
        time.sleep(0.2)
        call("large")
        differentiate()
        tell()

    threading.Thread(target=live).start()


# --------------------------------------------------------------------------------------------------------------- forks


def fork_after_use():
    """A child and a grandchild of a process that has used its thread pool, also with the layer of their parent."""
    layer = call("large")
    assert pool()

    def live():
        assert not pool()
        call("large", layer=layer)
        assert pool()
        call("columns", "float64")  # read from the cache, or compiled
        differentiate()
        train(3)

    child(live)
    child(lambda: (call(), child(live)))
    call("large", layer=layer)


def fork_during(what):
    """Children of a process in which another thread imports Numba, compiles, computes or trains."""
    gn.set_num_threads(2)
    if what in {"computing", "changing"}:
        call("large")
        train()
    end, layer, x = threading.Event(), gn.batch_norm(3), sample((8, 3))
    large, rows = layer_of(*LARGE), sample(LARGE[1])
    work = {
        "importing": lambda: call("layer"),
        "compiling": lambda: [call("columns", dtype) for dtype in DTYPES[:2]],
        "computing": lambda: large(rows),
        "changing": lambda: layer(x, training=True),
    }[what]

    def live():
        work()
        while what in {"computing", "changing"} and not end.is_set():
            work()

    thread = threading.Thread(target=live, daemon=True)
    thread.start()
    if what == "importing":
        wait_until(lambda: "numba" in sys.modules)
        assert "gennorm.engine.call" not in sys.modules or not hasattr(sys.modules["gennorm.engine.call"], "prepare")
    elif what == "compiling":
        wait_until(lambda: "gennorm.engine.call" in sys.modules)
        from numba.core.compiler_lock import global_compiler_lock

        def compiling():
            if global_compiler_lock._lock.acquire(blocking=False):
                global_compiler_lock._lock.release()
                return False
            return True

        wait_until(compiling)
        time.sleep(0.1)  # it takes most of a second
    assert thread.is_alive()

    def shared():
        assert pool()

    lives = {
        "importing": lambda: call("layer"),
        "compiling": lambda: call("layer", "float64"),
        "computing": lambda: (call("large"), shared()),
        "changing": lambda: (layer(x, training=True), train()),
    }
    for _ in range({"computing": 8, "changing": 40}.get(what, 4)):
        child(lives[what])
    end.set()
    join(thread)
    lives[what]()


def pooled(number):
    before = len(judged)
    call("layer", seed=number)
    call("large", seed=number)
    return len(judged) - before


def applied(layer, seed):
    """The output of a layer that came with the task, and which process it is of."""
    return layer(sample(LARGE[1], seed=seed)), os.getpid()


def multiprocess(method):
    """Pools of processes, with layers that are made in them and layers that are sent to them."""
    layer = call("large")
    with multiprocessing.get_context(method).Pool(2) as processes:
        assert processes.map_async(pooled, range(4), chunksize=1).get(SOON) == [2] * 4
        answers = processes.starmap_async(applied, [(layer, seed) for seed in range(4)], chunksize=1).get(SOON)
    assert os.getpid() not in {process for _, process in answers}
    for seed, (y, _) in enumerate(answers):
        right(y, sample(LARGE[1], seed=seed), LARGE[0], layer)


def data_loader():
    """The layer in the data set of torch's loader, with two workers, before and after the parent has used it."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    settings, shape = LARGE

    class Normalized(Dataset):
        def __init__(self):
            self.layer = layer_of(settings, shape)

        def __len__(self):
            return 4

        def __getitem__(self, index):
            return torch.from_numpy(self.layer(sample(shape, seed=index))), os.getpid()

    data = Normalized()
    for _ in range(2):
        for index, (batch, process) in enumerate(DataLoader(data, num_workers=2, batch_size=None, timeout=SOON)):
            assert process != os.getpid()
            right(batch.numpy(), sample(shape, seed=index), settings, data.layer)
        call("large", layer=data.layer)


# -------------------------------------------------------------------------------------------------------- interruptions


def interrupted(work, after):
    """Do some work, raise KeyboardInterrupt after so many seconds, and return whether it came before the end."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, after)
        work()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        return True
    return False


def interrupt_a_call():
    """Long calls that are interrupted leave the layer as it was, and the next one is right."""
    shape = (256, 64, 40, 40)
    x = np.broadcast_to(sample((64, 1, 1)), shape).copy()
    learning, adapted = gn.batch_norm(64, statistics="moving"), gn.feature_norm(1)
    learning(x[:2], training=True)
    adapted.adapt(x[:2])

    def chunks():
        for _ in range(50):
            yield x

    for threads in (1, 3):
        gn.set_num_threads(threads)
        for work, layer in ((lambda: learning(x, training=True), learning), (lambda: adapted.adapt(chunks()), adapted)):
            before = layer.moments
            took = 0.05
            for _ in range(4 if layer is learning else 0):  # the first has to have its memory from the system
                layer.moments = before
                begin = time.perf_counter()
                work()
                took = min(time.perf_counter() - begin, took)
            after, layer.moments = layer.moments, before
            stopped = 0
            for part in (0.1, 0.3, 0.6):
                if interrupted(work, took * part):
                    stopped += 1
                    # What came after the moments had been changed came after the call.
                    assert layer.moments is before or np.array_equal(layer.moments.mean, after.mean)
                layer.moments = before
            assert stopped
        call("large")
        differentiate()
        train(2)
    learning.reset_moments()
    learning(x, training=True)
    assert np.allclose(learning.moments.mean, 0.01 * x[0, :, 0, 0].astype(np.float64), rtol=1e-6)


def interrupt_the_first(after):
    """The first call of a process is interrupted while it imports or compiles; the next ones are right."""
    stopped = interrupted(lambda: call("columns"), float(after))
    say("stopped" if stopped else "finished")
    call("columns")
    call("layer", "float64")


# ------------------------------------------------------------------------------------------------- missing resources


def no_memory():
    """A large array that cannot be allocated is a MemoryError and leaves the layer unchanged."""
    import resource

    layer, rows = gn.batch_norm(64), gn.layer_norm(64)
    x = np.ones((1 << 19, 64), np.float32)  # 134 MB
    x[::2] = 3
    layer(x[:64], training=True)
    _, pullback = rows.vjp(x)
    used = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmSize" in line)
    before, held, unlimited = layer.scaling.copy(), layer.moments, resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used * 1024 + (32 << 20), unlimited[1]))
    for refused in (
        lambda: layer(x, training=True),
        lambda: layer(x),
        lambda: layer.vjp(x, training=True),
        lambda: pullback(x),
        lambda: rows(x),
        lambda: rows.jvp(x, x),
        lambda: layer(x.astype(np.float64)),
        lambda: rows(x, mask=np.ones(64, bool)),
        lambda: gn.feature_norm(mean=1, variance=2).inverse(x),
    ):
        with pytest.raises(MemoryError, match="MiB"):
            refused()
    assert layer.moments is held
    assert np.array_equal(layer.scaling, before)
    x_small = sample((9, 64))
    judge(rows(x_small), x_small, {"aggregation_levels": -1, "scaling_levels": "Same"})
    resource.setrlimit(resource.RLIMIT_AS, unlimited)
    assert np.abs(layer(x, training=True)).max() < 1.01
    assert np.abs(rows(x)).max() == 0
    call("large")


def no_cache():
    """No writable directory: kernels are compiled, in this process and the next."""
    call()
    assert len(compiled()) == 1


def no_home():
    """No home directory can be found at all."""
    import pwd

    def unknown(user):
        raise KeyError(user)

    pwd.getpwuid = unknown
    for name in ("HOME", "GENNORM_CACHE_DIR", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        os.environ.pop(name, None)
    no_cache()


def small_files():
    """No file of this process may grow beyond a few bytes, as on a full disk."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    no_cache()


def from_cache():
    """Print how many kernels were compiled and how many were compiled or read."""
    call()
    differentiate()
    from gennorm.engine.compiler import jit

    say(json.dumps([sum(one.compiled for one in jit.built), len(jit.built)]))


def without_numba():
    """NUMBA_DISABLE_JIT=1: the kernels as they stand."""
    for kind in KINDS:
        call(kind)
        differentiate(kind)
    train(3)
    from gennorm.engine.compiler import jit

    assert not jit.JIT
    assert not jit.built


def one_core(how):
    """With one thread in the environment, or one core, no worker is started."""
    if how == "affinity":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    assert gn.get_num_threads() == 1
    names = []
    start = threading.Thread.start

    def noted(thread):
        names.append(thread.name)
        start(thread)

    def shared(names):
        return "gennorm-worker" in names  # and not only one that compiles, alone

    threading.Thread.start = noted
    call("large")
    assert not shared(names), names
    gn.set_num_threads(2)  # what the program itself says comes first
    call("large")
    assert shared(names), names


# -------------------------------------------------------------------------------------------------------------- a cache


RACERS = ("float32", "float64", "float16", "int8", "int32", "uint16", "int64", "uint8")
RACED = (6, 24)


def outcome(dtype):
    """The output of the layer whose kernel is compiled soonest, as bytes."""
    layer = gn.NormalizationLayer(-1, scaling=None, biases=None)
    return layer.apply(sample(RACED, dtype), gn.Moments.from_variance(0.5, 2.0)).tobytes()


def expected_outcomes():
    found = {}
    settings = {"aggregation_levels": -1, "mean": 0.5, "variance": 2.0}
    for dtype in dict.fromkeys(RACERS):
        data, x = outcome(dtype), sample(RACED, dtype)
        y = np.frombuffer(data, RESULTS[dtype]).reshape(RACED)
        exact = reference.normalize(x.astype(np.float64), **settings)
        assert_within(y, exact, 16 * np.spacing(np.abs(exact).astype(y.dtype)).astype(np.float64))
        found[dtype] = hashlib.sha256(data).hexdigest()
    return found


def race(rounds, folder):
    """Eight processes at once on one cache, with eight dtypes; every second time one of its files is missing or spoilt.

    They are forks of a process that has imported Numba and compiled nothing: 400 interpreters take minutes to start.
    """
    from numba.core.registry import cpu_target

    import gennorm.engine.call  # noqa: F401

    cpu_target.typing_context.refresh()  # what every compilation begins with
    cpu_target.target_context.refresh()
    reading, writing = os.pipe()
    expectations = os.fork()
    if expectations == 0:
        signal.alarm(SOON)
        os.environ["GENNORM_CACHE_DIR"] = "/dev/null/nowhere"
        os.write(writing, pickle.dumps(expected_outcomes()))
        os._exit(0)
    os.waitpid(expectations, 0)
    expected = pickle.loads(os.read(reading, 1 << 16))
    os.environ["GENNORM_CACHE_DIR"] = folder
    generator = np.random.default_rng(0)
    for turn in range(int(rounds)):
        files = sorted(Path(folder, "gennorm").glob("*.kernel"))
        assert len(files) == (len(RACERS) if turn else 0), files
        if turn % 2:
            spoilt, other = generator.permutation(np.array(files, object))[:2]
            data = bytearray(spoilt.read_bytes())
            match turn // 2 % 4:
                case 0:
                    spoilt.unlink()
                case 1:
                    spoilt.write_bytes(data[: int(generator.integers(len(data)))])
                case 2:
                    data[generator.integers(len(data))] ^= 1 << int(generator.integers(8))
                    spoilt.write_bytes(data)
                case 3:
                    spoilt.write_bytes(other.read_bytes())  # whole, and another kernel's
        go_reading, go_writing = os.pipe()
        racers = []
        for dtype in RACERS:
            pid = os.fork()
            if pid == 0:
                signal.alarm(120)
                os.close(go_writing)
                os.read(go_reading, 1)  # returns for all at once, when the parent closes its end
                os._exit(0 if hashlib.sha256(outcome(dtype)).hexdigest() == expected[dtype] else 5)
            racers.append(pid)
        os.close(go_reading)
        os.close(go_writing)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in racers]
        assert codes == [0] * len(RACERS), (turn, codes)
        judged.extend(RACERS)
    assert len([*Path(folder, "gennorm").iterdir()]) == len(RACERS)  # and nothing half-written beside them


def compete(dtype):
    """One of several interpreters that start at once."""
    call("layer", dtype)


def say(line):
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def tell():
    """Print how many arrays were compared."""
    say(f"judged {len(judged)}")


if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # ends this process when its parent ends
    # What is sent to other processes has to be found there under its own name.
    import tests.survival.scenes as itself

    name, *arguments = sys.argv[1:]
    getattr(itself, name)(*arguments)
    if name not in {"at_exit", "outlives_main"}:
        itself.tell()
