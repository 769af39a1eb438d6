"""Events in processes that use the library: threads, forks, signals, full disks. Each scene runs in a new process."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import gennorm as gn

pytestmark = pytest.mark.survival
FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
TIMERS = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the system has no timers that send signals")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the scene uses what only Linux has")

ROOT = Path(__file__).resolve().parents[2]
CACHES = ("GENNORM_CACHE_DIR", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME")
NOWHERE = "/dev/null/nowhere"  # a folder that no user can make, the superuser included
LONG = 400  # seconds after which a scene hangs, on a machine that does other work as well


def begin(name, *arguments, before=(), **environment):
    """Start a scene."""
    command = [*before, sys.executable, "-m", "tests.survival.scenes", name, *arguments]
    given = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, env=given)


def end(process, timeout=LONG):
    """Return the number of arrays that a scene compared and its other output; fail if it raised, warned or hung."""
    try:
        out, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        out, errors = process.communicate(timeout=60)
        pytest.fail(f"it hangs: {out[-500:]}{errors[-1500:]}")
    assert process.returncode == 0, errors[-3000:]
    assert not errors.strip(), errors[-3000:]
    *said, judged = out.splitlines()
    assert judged.startswith("judged "), out
    return int(judged.removeprefix("judged ")), said


def play(name, *arguments, **environment):
    """Run a scene to its end."""
    return end(begin(name, *arguments, **environment))


@pytest.fixture(params=["idle", "busy"])
def machine(request):
    """The machine as it is, or with other work on all of its processors.

    A busy machine changes the order in which threads run. Scenes in which that does not matter run on one of the two.
    """
    number = (os.cpu_count() or 1) if request.param == "busy" else 0
    code = f"import time\nend = time.monotonic() + {2 * LONG}\nwhile time.monotonic() < end: pass"
    others = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(number)]
    yield request.param
    assert [other.poll() for other in others] == [None] * number  # it was busy to the end
    for other in others:
        other.kill()
    for other in others:
        other.wait(60)


# ------------------------------------------------------------------------------------------------------------- threads


def test_thirty_two_threads_cold_and_warm(machine, tmp_path):
    for cold in (True, False):
        judged, (compiled,) = play("many_threads", GENNORM_CACHE_DIR=str(tmp_path))
        assert judged == 32 * 3 + 4 * 3 * 2 + 4 * 3
        assert (int(compiled) > 6) is cold
        assert cold or compiled == "0"


def test_from_the_threads_of_an_executor(machine):
    assert play("executor")[0] == 12 + 2 * 4


def test_the_input_is_written_by_another_thread(machine):
    assert play("input_is_written_during_calls")[0] == 1


@pytest.mark.parametrize("first", ["", "first"])
def test_at_exit(first, machine):
    assert play("at_exit", first)[0] == (2 if first else 3) + 1


@pytest.mark.parametrize("first", ["", "first"])
def test_a_thread_that_outlives_main(first, machine):
    assert play("outlives_main", first)[0] == (1 if first else 2) + 2


# --------------------------------------------------------------------------------------------------------------- forks


@FORKS
def test_fork_after_use(machine):
    assert play("fork_after_use")[0] == 2


@FORKS
@pytest.mark.parametrize("what", ["importing", "compiling", "computing", "changing"])
def test_fork_while_another_thread_is(what, machine, tmp_path):
    cold = {"GENNORM_CACHE_DIR": str(tmp_path)} if what in {"importing", "compiling"} else {}
    assert play("fork_during", what, **cold)[0] > 1


@FORKS
@pytest.mark.parametrize(("method", "machine"), [("fork", "busy"), ("spawn", "idle")], indirect=["machine"])
def test_multiprocessing(method, machine):
    assert play("multiprocess", method)[0] == 5


@FORKS
def test_torch_data_loader():
    pytest.importorskip("torch")
    assert play("data_loader")[0] == 2 * (4 + 1)


# -------------------------------------------------------------------------------------------------------- interruptions


@TIMERS
def test_a_long_call_is_interrupted():
    assert play("interrupt_a_call")[0] > 5


@TIMERS
@pytest.mark.parametrize(
    ("after", "machine"),
    [(0.05, "idle"), (0.15, "idle"), (0.4, "idle"), (0.8, "idle"), (0.4, "busy"), (1.2, "busy")],
    indirect=["machine"],
)
def test_the_first_call_is_interrupted(after, machine, tmp_path):
    judged, (how,) = play("interrupt_the_first", str(after), GENNORM_CACHE_DIR=str(tmp_path))
    assert judged == (2 if how == "stopped" else 3)
    assert how == "stopped" or after > 0.1  # to import Numba alone takes longer


# ------------------------------------------------------------------------------------------------- missing resources


@LINUX
def test_no_memory():
    assert play("no_memory")[0] == 1


def test_a_read_only_install_and_nowhere_to_write(tmp_path):
    """Nothing is written next to the package, nor anywhere else."""
    shutil.copytree(Path(gn.__file__).parent, tmp_path / "gennorm")
    installed = tmp_path / "gennorm"
    before = {path: path.stat().st_mtime_ns for path in installed.rglob("*")}
    for path in (installed, *before):
        path.chmod(path.stat().st_mode & ~0o222)
    shutil.copytree(ROOT / "tests", tmp_path / "tests")
    shutil.copytree(ROOT / "spec", tmp_path / "spec")
    command = [sys.executable, "-B", "-m", "tests.survival.scenes", "no_cache"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "HOME": NOWHERE}
    environment = {name: value for name, value in environment.items() if name not in CACHES}
    answer = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=LONG
    )
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "judged 1\n", "")
    assert {path: path.stat().st_mtime_ns for path in installed.rglob("*")} == before


@LINUX
def test_no_home():
    assert play("no_home")[0] == 1


def test_numba_switched_off():
    assert play("without_numba", NUMBA_DISABLE_JIT="1")[0] == 4 * 3 + 1


def test_the_environment_sets_one_thread():
    assert play("one_core", "environment", OMP_NUM_THREADS="1")[0] == 2
    assert play("one_core", "environment", OMP_NUM_THREADS="1,4")[0] == 2


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system does not bind processes to cores")
def test_one_available_core():
    environment = {} if "OMP_NUM_THREADS" not in os.environ else {"OMP_NUM_THREADS": ""}
    assert play("one_core", "affinity", **environment)[0] == 2


# ----------------------------------------------------------------------------------------------------------- the cache


def kernels_in(folder):
    return sorted((folder / "gennorm").glob("*.kernel"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A folder with the kernels of one forward and one backward in it."""
    folder = tmp_path_factory.mktemp("cache")
    read(folder, compiled=3)
    assert len(kernels_in(folder)) == 3
    return folder


def read(folder, compiled):
    judged, (counts,) = play("from_cache", GENNORM_CACHE_DIR=str(folder))
    assert (judged, json.loads(counts)) == (3, [compiled, 3])


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def folder_instead(path):
    path.unlink()
    path.mkdir()


def another(path):
    """Another kernel's file, whole."""
    path.write_bytes(next(other for other in kernels_in(path.parent.parent) if other != path).read_bytes())


SPOILT = {
    "cut short": cut,
    "empty": empty,
    "a bit of the checksum": lambda path: flip(path, 3),
    "a bit of the code": lambda path: flip(path, path.stat().st_size // 2),
    "another kernel's": another,
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_cache(how, cache, tmp_path):
    """A spoilt file costs a compilation and is replaced; the next process reads the new one."""
    shutil.copytree(cache, tmp_path, dirs_exist_ok=True)
    SPOILT[how](kernels_in(tmp_path)[0])
    read(tmp_path, compiled=1)
    read(tmp_path, compiled=0)
    assert len(list((tmp_path / "gennorm").iterdir())) == 3


def test_a_cache_that_cannot_be_repaired(cache, tmp_path):
    shutil.copytree(cache, tmp_path, dirs_exist_ok=True)
    folder_instead(kernels_in(tmp_path)[0])
    read(tmp_path, compiled=1)
    read(tmp_path, compiled=1)
    assert len(list((tmp_path / "gennorm").iterdir())) == 3


@LINUX
def test_files_may_not_grow(tmp_path):
    assert play("small_files", GENNORM_CACHE_DIR=str(tmp_path))[0] == 1
    assert list((tmp_path / "gennorm").iterdir()) == []


@LINUX
def test_a_full_disk(tmp_path):
    """A file system of 16 kB."""
    script = f"mount -t tmpfs -o size=16k none {tmp_path} && exec "
    command = ["unshare", "-Urm", "sh", "-c", f"{script} true"]
    if (
        shutil.which("unshare") is None
        or subprocess.run(command, check=False, capture_output=True, timeout=60).returncode
    ):
        pytest.skip("this user may not mount a file system: unshare -Urm is refused")
    inside = ["unshare", "-Urm", "sh", "-c", f'{script} "$@"', "sh"]
    process = begin("no_cache", before=inside, GENNORM_CACHE_DIR=str(tmp_path))
    assert end(process)[0] == 1


@FORKS
def test_eight_processes_at_once_many_times(tmp_path):
    """Sixteen rounds: two with each kind of damage to the cache."""
    assert end(begin("race", "16", str(tmp_path)), 3 * LONG)[0] == 8 * 16


def test_eight_interpreters_at_once(tmp_path):
    dtypes = ("float32", "float64", "float16", "bfloat16") * 2
    processes = [begin("compete", dtype, GENNORM_CACHE_DIR=str(tmp_path)) for dtype in dtypes]
    assert [end(process)[0] for process in processes] == [1] * 8
    assert len(list((tmp_path / "gennorm").iterdir())) == 4
