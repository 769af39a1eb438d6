"""What a library has to live through in processes that are not its own, each in a process of its own: `scenes`."""

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

ROOT = Path(__file__).resolve().parents[2]
CACHES = ("GENNORM_CACHE_DIR", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME")
NOWHERE = "/dev/null/nowhere"  # a folder that nobody can make, the superuser included


def begin(name, *arguments, before=(), **environment):
    """Start a scene."""
    command = [*before, sys.executable, "-m", "tests.survival.scenes", name, *arguments]
    given = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, env=given)


def end(process, timeout=240):
    """What a scene printed, once it has ended well and said how many arrays it has judged."""
    try:
        out, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        out, errors = process.communicate(timeout=30)
        pytest.fail(f"it hangs: {out[-500:]}{errors[-1500:]}")
    assert process.returncode == 0, errors[-3000:]
    assert not errors.strip(), errors[-3000:]
    *said, judged = out.splitlines()
    assert judged.startswith("judged "), out
    return int(judged.removeprefix("judged ")), said


def play(name, *arguments, **environment):
    """Play a scene to its end."""
    return end(begin(name, *arguments, **environment))


# ------------------------------------------------------------------------------------------------------------- threads


def test_thirty_two_threads_cold_and_warm(tmp_path):
    for _ in ("cold", "warm"):
        judged, _ = play("many_threads", GENNORM_CACHE_DIR=str(tmp_path))
        assert judged == 32 * 3 + 4 * 3 * 2 + 4 * 3


def test_from_the_threads_of_an_executor():
    assert play("executor")[0] == 24 + 2 * 4


def test_the_input_is_written_by_another_thread():
    assert play("input_is_written_meanwhile")[0] == 1


@pytest.mark.parametrize("first", ["", "first"])
def test_at_exit(first):
    assert play("at_exit", first)[0] == (2 if first else 3) + 1


@pytest.mark.parametrize("first", ["", "first"])
def test_a_thread_that_outlives_main(first):
    assert play("outlives_main", first)[0] == (1 if first else 2) + 2


# --------------------------------------------------------------------------------------------------------------- forks


def test_fork_after_use():
    assert play("fork_after_use")[0] == 2


@pytest.mark.parametrize("what", ["importing", "compiling", "computing", "changing"])
def test_fork_while_another_thread_is(what, tmp_path):
    cold = {"GENNORM_CACHE_DIR": str(tmp_path)} if what in {"importing", "compiling"} else {}
    assert play("fork_during", what, **cold)[0] > 1


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(method):
    assert play("multiprocess", method)[0] == 7


def test_torch_data_loader():
    assert play("data_loader")[0] == 2 * (4 + 1)


# -------------------------------------------------------------------------------------------------------- interruptions


def test_a_long_call_is_interrupted():
    assert play("interrupt_a_call")[0] > 5


@pytest.mark.parametrize("after", [0.05, 0.15, 0.4, 0.8])
def test_the_first_call_is_interrupted(after, tmp_path):
    assert play("interrupt_the_first", str(after), GENNORM_CACHE_DIR=str(tmp_path))[0] >= 2


# -------------------------------------------------------------------------------------------------- what there is not


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
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "judged 1\n", "")
    assert {path: path.stat().st_mtime_ns for path in installed.rglob("*")} == before


def test_no_home():
    assert play("no_home")[0] == 1


def test_numba_switched_off():
    assert play("without_numba", NUMBA_DISABLE_JIT="1")[0] == 4 * 3 + 1


def test_one_thread_is_asked_for():
    assert play("one_core", "environment", OMP_NUM_THREADS="1")[0] == 2
    assert play("one_core", "environment", OMP_NUM_THREADS="1,4")[0] == 2


def test_one_core_is_all_there_is():
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
    """Spoilt files cost a compilation, are written anew, and are read again by the next process."""
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


def test_files_that_may_not_grow(tmp_path):
    """Files that may not grow (RLIMIT_FSIZE)."""
    assert play("small_files", GENNORM_CACHE_DIR=str(tmp_path))[0] == 1
    assert list((tmp_path / "gennorm").iterdir()) == []


def test_a_full_file_system(tmp_path):
    """A file system of 16 kB, in a mount namespace of the process."""
    script = f"mount -t tmpfs -o size=16k none {tmp_path} && exec "
    attempt = ["unshare", "-Urm", "sh", "-c", f"{script} true"]
    if not shutil.which("unshare") or subprocess.run(attempt, check=False, capture_output=True, timeout=60).returncode:
        pytest.skip("this system does not let a user mount a file system (unshare -Urm)")
    inside = ["unshare", "-Urm", "sh", "-c", f'{script} "$@"', "sh"]
    process = begin("no_cache", before=inside, GENNORM_CACHE_DIR=str(tmp_path))
    assert end(process)[0] == 1


def test_eight_processes_at_once_fifty_times(tmp_path):
    assert play("race", "50", str(tmp_path))[0] == 8 * 50


def test_eight_interpreters_at_once(tmp_path):
    dtypes = ("float32", "float64", "float16", "bfloat16") * 2
    processes = [begin("compete", dtype, GENNORM_CACHE_DIR=str(tmp_path)) for dtype in dtypes]
    assert [end(process)[0] for process in processes] == [1] * 8
    assert len(list((tmp_path / "gennorm").iterdir())) == 4
