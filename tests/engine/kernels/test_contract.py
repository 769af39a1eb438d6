"""The contract with Numba's private parts, and what is said where kernels cannot be compiled."""

import ast
import functools
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numba
import numpy as np
import pytest

from gennorm.engine import compiler
from gennorm.engine.compiler import CompilationError, Signature, jit, private

ROOT = Path(__file__).resolve().parents[3]
LAYER = sorted((ROOT / "gennorm/engine/compiler").glob("*.py"))
PARTS = {part.path: part for part in private._parts}
INT64 = ("int64",) * 3


def owner_of(path):
    module, _, name = path.partition(":")
    *outer, last = name.split(".")
    return functools.reduce(getattr, outer, importlib.import_module(module)), last


def test_the_contract_holds():
    assert private.missing() == ()
    assert len(PARTS) > 50


@pytest.mark.parametrize("path", PARTS)
def test_a_part_that_is_missing_or_different_is_named(path, monkeypatch):
    owner, name = owner_of(path)
    part, full = PARTS[path], path.replace(":", ".")
    if part.parameters is None:
        monkeypatch.delattr(owner, name)
        expected = f"{full} is missing: {part.purpose}"
    else:
        monkeypatch.setattr(owner, name, lambda _: None)
        expected = f"{full} takes (_) instead of ({part.parameters}): {part.purpose}"
    assert expected in private.missing()


@pytest.mark.parametrize("path", [path for path, part in PARTS.items() if part.members and not part.parameters])
def test_members_that_are_missing_are_named(path, monkeypatch):
    owner, name = owner_of(path)
    monkeypatch.setattr(owner, name, object())
    part = PARTS[path]
    assert f"{path.replace(':', '.')} lacks {', '.join(part.members.split())}: {part.purpose}" in private.missing()


@pytest.mark.parametrize("path", [path for path, part in PARTS.items() if part.assigns])
def test_attributes_that_are_not_assigned_are_named(path, monkeypatch):
    owner, name = owner_of(path)
    part = PARTS[path]
    monkeypatch.setattr(owner, name, eval(f"lambda {part.parameters.replace(' ', ', ')}: None"))
    assert f"{path.replace(':', '.')} does not assign {part.assigns}: {part.purpose}" in private.missing()


def test_a_callable_without_a_signature_is_named(monkeypatch):
    monkeypatch.setattr("numba.core.serialize.dumps", None)
    assert "numba.core.serialize.dumps takes (?) instead of (obj): pickles a compiled function" in private.missing()


# ------------------------------------------------------------------------------------------------------------- one file


def uses_of_private_parts(source):
    """The imports of undocumented modules of Numba and llvmlite, and the private attributes, in a file."""
    documented = {"numba", "numba.types", "numba.extending", "llvmlite", "llvmlite.ir"}
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names if node.module == "numba")]
        found += [name for name in names if re.match(r"(numba|llvmlite)\b", name) and name not in documented]
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            found.append(node.attr)
    return found


def test_uses_of_private_parts_are_found():
    assert uses_of_private_parts("from numba.core import cgutils") == ["numba.core"]
    assert uses_of_private_parts("import llvmlite.binding") == ["llvmlite.binding"]
    assert uses_of_private_parts("from numba import core") == ["numba.core"]
    assert uses_of_private_parts("result._reduce()") == ["_reduce"]
    assert uses_of_private_parts("from numba import types\nfrom numba.extending import intrinsic") == []


@pytest.mark.parametrize("path", LAYER, ids=lambda path: path.name)
def test_private_parts_are_used_in_one_file(path):
    found = uses_of_private_parts(path.read_text(encoding="utf-8"))
    assert bool(found) == (path.name == "private.py"), found


# ------------------------------------------------------------------------------------------------- without the compiler


def test_the_bounds_are_those_of_the_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = ">={}.{},<{}.{}".format(*compiler.LOWEST, *compiler.BELOW)
    assert f"numba{bounds}" in project["dependencies"]
    assert f"pip install 'numba{bounds}'" == compiler.INSTALL


# What stands in the way, as Python that runs before the package is imported, and what is said.
OBSTACLES = {
    "no Numba": ("sys.modules['numba'] = None", "Numba is not installed"),
    "older": ("write('__version__ = \"0.66.0\"')", "gennorm has not been tested with Numba 0.66.0"),
    "newer": ("write('__version__ = \"0.69.0rc1\"')", "gennorm has not been tested with Numba 0.69.0rc1"),
    "NumPy too new": (
        "write('raise ImportError(\"Numba needs NumPy 2.3 or less.\\\\nGot NumPy 2.4.\")')",
        "Numba cannot be imported (ImportError, Numba needs NumPy 2.3 or less. Got NumPy 2.4.)",
    ),
    "not even an exception's text": ("write('raise OSError')", "Numba cannot be imported (OSError, no reason given)"),
    "no llvmlite": (
        "sys.modules['llvmlite'] = None",
        "Numba cannot be imported (ModuleNotFoundError, No module named 'llvmlite.binding'; 'llvmlite' is not a "
        "package)",
    ),
    "a private part is gone": (
        "import numba.core.serialize; del numba.core.serialize.dumps",
        f"Numba {numba.__version__} differs from what was tested (numba.core.serialize.dumps is missing: pickles a "
        "compiled function)",
    ),
    "a class to derive from is gone": (
        "import numba.core.codegen as c; del c.JITCodeLibrary",
        f"Numba {numba.__version__} differs from what was tested (numba.core.codegen.JITCodeLibrary is missing: base "
        "class of a function's machine code)",
    ),
    "an import deeper inside": (
        "import numba.extending as e; del e.register_model",
        "Numba cannot be imported (ImportError, cannot import name 'register_model' from 'numba.extending' "
        f"({importlib.import_module('numba.extending').__file__}))",
    ),
}
PRELUDE = """
import sys
from pathlib import Path

def write(text):
    folder = Path(sys.argv[1], "numba")
    folder.mkdir()
    (folder / "__init__.py").write_text(text)
    sys.path.insert(0, sys.argv[1])

{obstacle}
before = set(sys.modules)
import gennorm as gn
from gennorm.engine import compiler
assert not [name for name in set(sys.modules) - before if name.startswith(("numba", "llvmlite"))]
assert compiler.available() == compiler.available()
print(compiler.available())
"""


@pytest.mark.parametrize("name", OBSTACLES)
def test_the_obstacle_is_reported(name, tmp_path):
    obstacle, expected = OBSTACLES[name]
    program = PRELUDE.format(obstacle=obstacle)
    command = [sys.executable, "-W", "error", "-c", program, str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{expected}: {compiler.INSTALL}\n"


def test_nothing_stands_in_the_way():
    assert compiler.available() is None


def unknown_function(a, lo, hi, request):
    a[lo] = hi.nothing  # integers have no such attribute


def test_a_kernel_that_cannot_be_compiled():
    with pytest.raises(CompilationError) as caught:
        jit.build(unknown_function, {}, INT64, Signature(("int64",), (), 3, shared=True))
    text = f"test_contract.unknown_function could not be compiled by Numba {numba.__version__}"
    assert str(caught.value) == text
    assert isinstance(caught.value.__cause__, numba.core.errors.TypingError)


def number_of_first_task(a, lo, hi, request):
    a[0] = lo


@pytest.mark.parametrize("error", [RuntimeError("LLVM failed"), AttributeError("_engine"), AssertionError()])
def test_whatever_fails_in_the_compiler_is_the_cause(error, monkeypatch):
    def fail(*_):
        raise error

    described = {type(error).__name__.upper(): 1}, INT64, Signature(("int64",), (), 3, shared=True)
    monkeypatch.setattr(private, "compile_kernel", fail)
    with pytest.raises(CompilationError) as caught:
        jit.build(number_of_first_task, *described)
    assert caught.value.__cause__ is error
    monkeypatch.undo()
    found = np.zeros(1, np.int64)  # the next attempt is not affected
    jit.build(number_of_first_task, *described)(found, 7, 8, 0)
    assert found == 7


def test_a_lack_of_memory_is_not_a_failure_of_the_compiler(monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(private, "compile_kernel", fail)
    with pytest.raises(MemoryError):
        jit.build(number_of_first_task, {"UNUSED": 1}, INT64, Signature(("int64",), (), 3, shared=True))
