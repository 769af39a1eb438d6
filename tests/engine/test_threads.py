"""The number of threads, locks in forks, uninterrupted work, limits of containers; `adapt` with several threads."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import gennorm as gn
from gennorm.engine import forks, limits, threads
from gennorm.layer import adapting
from tests.engines import cut_small
from tests.strategies import sample

FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
SOON = 60  # seconds after which a wait fails


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.setattr(threads, "_threads", None)
    yield
    threads._quota.cache_clear()


def test_uninterrupted_work_runs_in_another_thread_and_returns_its_result():
    main = threading.current_thread()
    assert forks.run_uninterrupted(threading.current_thread) is not main
    with pytest.raises(ZeroDivisionError):
        forks.run_uninterrupted(lambda: 1 // 0)
    with ThreadPoolExecutor(1) as pool:  # where no interrupt arrives it stays in its thread

        def both():
            return threading.current_thread(), forks.run_uninterrupted(threading.current_thread)

        same = pool.submit(both).result(SOON)
    assert same[0] is same[1]


# --------------------------------------------------------------------------------------------------------------- forks


def test_a_fork_acquires_and_releases_every_lock(monkeypatch):
    locks = [threading.RLock(), threading.RLock()]
    monkeypatch.setattr(forks, "_locks", locks)
    for _ in ("earlier hook", "later hook"):  # both run in a fork, and one of them acquires
        forks._acquire()
    assert forks._acquired == locks
    assert all(lock._is_owned() for lock in locks)
    for _ in ("earlier hook", "later hook"):
        forks._release()
    assert not any(lock._is_owned() for lock in locks)


def outcome(code, seconds=SOON):
    """What a program in a process of its own prints; it fails where it takes too long."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"it hangs: {error.stdout!r} {error.stderr!r}")
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


# Another thread holds a lock that a fork waits for and, once the fork has begun, wants one of another module.
ORDER = """
import os, threading
import gennorm as gn
import concurrent.futures.thread, logging  # these register hooks
{imported}
from gennorm.engine import forks
ours, forking = {ours}, threading.Event()
held = threading.Event()

def work():
    with ours:
        held.set()
        forking.wait(30)
        threading.Event().wait(0.2)  # the hooks of the fork are running
        {wants}

thread = threading.Thread(target=work, daemon=True)
thread.start()
held.wait(30)
os.register_at_fork(before=forking.set)
pid = os.fork()
if pid == 0:
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
thread.join(30)
print(thread.is_alive())
"""
OURS = {
    "changing": ("", "forks.changing"),
    "importing": ("from gennorm import engine", "engine._importing"),
    "compiling": (
        "import gennorm.engine.call",
        "__import__('numba.core.compiler_lock').core.compiler_lock.global_compiler_lock",
    ),
}
WANTED = {
    "logging": "import logging; logging.addLevelName(5, 'FIVE')",
    "executor": "from concurrent.futures import ThreadPoolExecutor as P; P(1).submit(int).result(30)",
}


@FORKS
@pytest.mark.parametrize("wants", WANTED)
@pytest.mark.parametrize("ours", OURS)
def test_a_fork_waits_for_these_locks_before_those_of_other_modules(ours, wants):
    imported, lock = OURS[ours]
    assert outcome(ORDER.format(imported=imported, ours=lock, wants=WANTED[wants])) == ["False"]


MANY = """
import os, threading
import gennorm.engine.call
from gennorm.engine import forks

def work():
    for _ in range(30):
        pid = os.fork()
        if pid == 0:
            os._exit(0 if all(lock.acquire(blocking=False) for lock in forks._locks[:2]) else 5)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

codes = []
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(50)
print(len(codes), *set(codes))
"""


@FORKS
def test_several_threads_fork_at_once():
    assert outcome(MANY) == ["120", "0"]


# ------------------------------------------------------------------------------------------------- limits of the system


def tree(root, files):
    """A folder with the files in which the kernel of Linux shows limits."""
    for name, text in files.items():
        path = Path(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Path(root)


V2, V1 = {"proc/self/cgroup": "0::/a/b\n"}, {"proc/self/cgroup": "9:cpu,cpuacct:/a\n4:memory:/docker/1f\n0::/\n"}
MEMORY = {
    "no files": ({}, None),
    "no limit": ({**V2, "sys/fs/cgroup/a/b/memory.max": "max\n"}, None),
    "its group": ({**V2, "sys/fs/cgroup/a/b/memory.max": "65536\n"}, 65536),
    "a group above": ({**V2, "sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/memory.max": "4096\n"}, 4096),
    "the least": ({**V2, "sys/fs/cgroup/a/b/memory.max": "8192\n", "sys/fs/cgroup/memory.max": "4096\n"}, 4096),
    "throttled": ({**V2, "sys/fs/cgroup/a/b/memory.max": "8192\n", "sys/fs/cgroup/a/b/memory.high": "4096\n"}, 4096),
    "unified": ({**V2, "sys/fs/cgroup/unified/a/b/memory.max": "4096\n"}, 4096),
    "spoilt": ({**V2, "sys/fs/cgroup/a/b/memory.max": "many\n", "sys/fs/cgroup/a/memory.max": ""}, None),
    "version 1": ({**V1, "sys/fs/cgroup/memory/docker/1f/memory.limit_in_bytes": "4096\n"}, 4096),
    "version 1 in a container": ({**V1, "sys/fs/cgroup/memory/memory.limit_in_bytes": "4096\n"}, 4096),
    "version 1, no limit": ({**V1, "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
    "not a list of groups": ({"proc/self/cgroup": "::\n\x00:\n\n:"}, None),
}
PROCESSORS = {
    "no files": ({}, None),
    "no quota": ({**V2, "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, None),
    "two": ({**V2, "sys/fs/cgroup/a/b/cpu.max": "200000 100000\n"}, 2),
    "one and a half": ({**V2, "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n"}, 1),
    "a half": ({**V2, "sys/fs/cgroup/a/b/cpu.max": "50000 100000\n"}, 1),
    "a group above": (
        {**V2, "sys/fs/cgroup/a/b/cpu.max": "300000 100000\n", "sys/fs/cgroup/a/cpu.max": "200000 100000\n"},
        2,
    ),
    "spoilt": ({**V2, "sys/fs/cgroup/a/b/cpu.max": "200000\n", "sys/fs/cgroup/a/cpu.max": "1 0\n"}, None),
    "version 1": (
        {
            **V1,
            "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "300000\n",
            "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
        },
        3,
    ),
    "version 1, no quota": (
        {**V1, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"},
        None,
    ),
}


@pytest.mark.parametrize("name", MEMORY)
def test_limits_of_memory(name, tmp_path, monkeypatch):
    files, expected = MEMORY[name]
    tree(tmp_path, files)
    for own in (None, 1 << 40, 100):  # of the machine
        monkeypatch.setattr(limits, "_physical", lambda own=own: own)
        monkeypatch.setattr(limits, "_address_space", lambda: None)
        known = [limit for limit in (own, expected) if limit is not None]
        assert limits.memory(tmp_path) == min(known, default=None)


@pytest.mark.parametrize("name", PROCESSORS)
def test_quotas_of_processors(name, tmp_path):
    files, expected = PROCESSORS[name]
    assert limits.processors(tree(tmp_path, files)) == expected


def test_a_quota_limits_the_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    for quota, wanted, expected in ((None, "", 16), (3, "", 3), (3, "2", 2), (3, "8", 3), (32, "", 16)):
        monkeypatch.setattr(limits, "processors", lambda quota=quota: quota)
        monkeypatch.setenv("OMP_NUM_THREADS", wanted)
        threads._quota.cache_clear()
        assert gn.get_num_threads() == expected
    gn.set_num_threads(40)  # an explicit number comes first
    assert gn.get_num_threads() == 40


def test_a_limit_of_the_address_space_counts():
    resource = pytest.importorskip("resource")
    if not hasattr(resource, "RLIMIT_AS") or sys.platform == "darwin":
        pytest.skip("the system has no limit of the address space")
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_AS, ({4 << 30}, {4 << 30}))
import gennorm as gn
print(gn.get_reserve())
"""
    (found,) = outcome(code)
    assert int(found) <= 1 << 29


@pytest.mark.parametrize("missing", ["sysconf", "sched_getaffinity"])
def test_a_system_with_less_information(missing, monkeypatch):
    monkeypatch.delattr(os, missing, raising=False)
    monkeypatch.setitem(sys.modules, "resource", None)  # importing it fails, as on Windows
    assert limits._address_space() is None
    assert limits.memory(Path("/nowhere")) is None or missing != "sysconf"
    assert gn.get_num_threads() >= 1


# ------------------------------------------------------------------------------------------------- the same to the bit

DATA = {
    "rows": ((96, 8192), {"aggregation_levels": "{0, 1}"}),
    "channels": ((64, 6, 2048), {"aggregation_levels": "{0, 2}"}),
    "columns": ((3000, 300), {"aggregation_levels": 0}),
    "channels last": ((8, 600, 192), {"aggregation_levels": "0;;1"}),
    "groups": ((8, 600, 192), {"aggregation_levels": "{0, 1, 2}", "group_number": {2: 48}}),
}


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("name", DATA)
def test_adapting_is_the_same_for_any_number_of_threads(name, cut, monkeypatch):
    shape, levels = DATA[name]
    monkeypatch.setattr(adapting, "CHUNK", 1 << 20)  # several chunks
    if cut:
        cut_small(monkeypatch, CUT=1 << 10, UNIT=1 << 12, BLOCK=1 << 9)
    x, weights = sample(shape), np.random.default_rng(0).uniform(size=shape[-1:])
    answers = []
    for number in (1, 2, 7):
        gn.set_num_threads(number)
        layer = gn.NormalizationLayer(**levels, scaling=None, biases=None, batched=True, statistics="dataset")
        found = [layer.adapt(x, weights=w).moments for w in (None, weights)]
        answers.append(
            [array.tobytes() for one in found for array in (one.count, one.mean, one.m2)] + [layer(x).tobytes()]
        )
    assert answers[0] == answers[1] == answers[2]
