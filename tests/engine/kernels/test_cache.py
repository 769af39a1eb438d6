"""The names of compiled kernels on disk: the same in every process that has the same code, however it is installed."""

import compileall
import json
import os
import shutil
import subprocess
import sys
import zipapp
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gennorm.engine.compiler import Signature, jit
from gennorm.engine.kernels import rows

PACKAGE = Path(__file__).resolve().parents[3] / "gennorm"
PROGRAM = """
import json
import numpy as np
import gennorm as gn
from gennorm.engine.compiler import jit
gn.set_num_threads(1)
y = gn.rms_norm(4)(np.arange(12, dtype=np.float32).reshape(3, 4))
assert abs((y ** 2).mean() - 1) < 1e-3
print(json.dumps([gn.__file__, [one.compiled for one in jit.built]]))
"""


def directory(folder, change=None):
    """A copy of the package, in which one file may be changed."""
    shutil.copytree(PACKAGE, folder / "tree/gennorm", ignore=shutil.ignore_patterns("__pycache__"))
    if change is not None:
        name, old, new = change
        path = folder / "tree/gennorm/engine" / name
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")
    return folder / "tree"


def sourceless(folder, change=None):
    """Compiled modules alone."""
    directory(folder, change)
    compileall.compile_dir(folder / "tree", quiet=1, legacy=True)
    for path in (folder / "tree").rglob("*.py"):
        path.unlink()
    return folder / "tree"


def archive(folder, change=None):
    """An archive that Python runs."""
    tree = directory(folder, change)
    (tree / "__main__.py").write_text("")
    zipapp.create_archive(tree, folder / "app.pyz", compressed=True)
    return folder / "app.pyz"


def sourceless_archive(folder, change=None):
    """Compiled modules in an archive."""
    tree = sourceless(folder, change)
    with zipfile.ZipFile(folder / "app.zip", "w") as file:
        for path in tree.rglob("*.pyc"):
            file.write(path, path.relative_to(tree))
    return folder / "app.zip"


def run(installed, cache, seed):
    environment = {
        **os.environ,
        "PYTHONPATH": str(installed),
        "GENNORM_CACHE_DIR": str(cache),
        "PYTHONHASHSEED": str(seed),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-W", "error", "-c", PROGRAM]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240, env=environment, cwd=cache)
    assert done.returncode == 0, done.stderr
    file, compiled = json.loads(done.stdout)
    assert file.startswith(str(installed))
    return compiled, sorted(path.name for path in cache.rglob("*.kernel"))


@pytest.mark.parametrize("install", [directory, sourceless, archive, sourceless_archive], ids=lambda way: way.__name__)
def test_the_second_process_loads_what_the_first_compiled(install, tmp_path):
    installed, cache = install(tmp_path), tmp_path / "cache"
    cache.mkdir()
    compiled, names = run(installed, cache, seed=1)
    assert compiled == [True]
    assert len(names) == 1
    assert run(installed, cache, seed=2) == ([False], names)


# A line of code in a file, and what it is changed to: a constant, a name, a number inside a nested function.
CHANGES = {
    "unchanged, in another place": ("kernels/steps.py", "", ""),
    "a step": ("kernels/steps.py", "= 0, 1, 2, 3", "= 0, 1, 3, 2"),
    "a kernel": ("kernels/rows.py", "math.sqrt(", "math.cbrt("),
    "the compiler layer": ("compiler/lowering.py", "ir.Constant(DOUBLE, 1.0)", "ir.Constant(DOUBLE, 2.0)"),
}


@pytest.mark.parametrize("install", [directory, sourceless, archive], ids=lambda way: way.__name__)
def test_other_code_has_another_name(install, tmp_path):
    digests = [digest_of(install, tmp_path / "original", *CHANGES["unchanged, in another place"])]
    digests += [digest_of(install, tmp_path / f"{number}", *change) for number, change in enumerate(CHANGES.values())]
    assert digests[0] == digests[1]
    assert len(set(digests)) == len(CHANGES)


def digest_of(install, folder, name, old, new):
    """Install the package after a change, and return the digest that the names of its kernels depend on."""
    installed = install(folder, (name, old, new))
    program = (
        "from gennorm.engine.compiler import jit; print(jit._digest_of_package('gennorm.engine.kernels.rows').hex())"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=240, env=environment, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def double(a, lo, hi, request):
    for task in range(lo, hi):
        a[task] *= 2


def test_a_kernel_whose_code_cannot_be_read_is_not_stored(tmp_path, monkeypatch):
    monkeypatch.setenv("GENNORM_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(jit.importlib.util, "find_spec", lambda _: None)
    jit._digest_of_package.cache_clear()
    signature = Signature(("int64",), (), 3, shared=True)
    try:
        assert jit._digest_of_package(rows.__name__) is None
        kernel = jit.build(double, {}, ("int64",) * 3, signature)
    finally:
        jit._digest_of_package.cache_clear()
    a = np.arange(3)
    kernel(a, 0, 3, 0)
    assert a.tolist() == [0, 2, 4]
    assert list(tmp_path.rglob("*")) == []
    monkeypatch.undo()
    assert jit._digest_of_package(rows.__name__) is not None
