"""The rules of the test session in `conftest.py`: frameworks, skips, passed tests, examples, timeouts."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

SUITE = """
import pytest

def test_runs():
    pass

@pytest.mark.skip(reason="no such machine")
def test_skips():
    pass
"""


def session(folder, suite=SUITE, arguments=(), ini="[pytest]\n", name="test_suite.py", **environment):
    """Run a pytest session with our `conftest.py` on one test file."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(suite, encoding="utf-8")
    (folder / "pytest.ini").write_text(ini, encoding="utf-8")
    inherited = {key: value for key, value in os.environ.items() if key not in {"CI", "GENNORM_REQUIRE"}}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", *arguments, "."],
        cwd=folder,
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


# ------------------------------------------------------------------------------------------------ frameworks and skips


@pytest.mark.parametrize("environment", [{}, {"CI": "true"}])
def test_a_skip_passes_where_no_framework_is_required(environment, tmp_path):
    assert session(tmp_path, **environment).returncode == pytest.ExitCode.OK


def test_a_skip_fails_where_frameworks_are_required(tmp_path):
    answer = session(tmp_path, GENNORM_REQUIRE="numpy")
    assert answer.returncode == pytest.ExitCode.TESTS_FAILED
    assert "test_suite.py::test_skips: no such machine" in answer.stdout


def test_a_session_without_skips_passes_where_frameworks_are_required(tmp_path):
    answer = session(tmp_path, arguments=["-k", "runs"], GENNORM_REQUIRE="numpy,hypothesis")
    assert answer.returncode == pytest.ExitCode.OK


def test_a_missing_framework_fails_where_it_is_required(tmp_path):
    answer = session(tmp_path, GENNORM_REQUIRE="numpy, no_such_framework")
    assert answer.returncode == pytest.ExitCode.USAGE_ERROR
    assert "GENNORM_REQUIRE names modules that cannot be imported: no_such_framework" in answer.stderr
    assert "numpy" not in answer.stderr


@pytest.mark.parametrize("name", ["page.md", "module.py"])
def test_examples_that_need_a_missing_framework_are_skipped_by_name(name, tmp_path):
    """A page and a module whose examples import torch, where torch is not installed."""
    text = ">>> import torch\n>>> torch.ones(3)\n'wrong'\n"
    (tmp_path / name).write_text(text if name.endswith(".md") else f'"""\n{text}"""\n', encoding="utf-8")
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as util, sys\n"
        "found = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'torch' else found(name, *rest)\n",
        encoding="utf-8",
    )
    arguments = ["--doctest-modules", "--doctest-glob=*.md", "-rs", name]
    answer = session(tmp_path, arguments=arguments, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert f"the examples of {name} need torch, which is not installed" in answer.stdout
    assert answer.returncode == pytest.ExitCode.OK


# --------------------------------------------------------------------------------------------- tests that passed before

OUTCOMES = """
import os
import pytest

@pytest.fixture
def broken_afterwards():
    yield
    raise RuntimeError

@pytest.mark.parametrize("name", ["a", "b"])
def test_passes(name):
    print("runs", name)

def test_fails():
    assert "MENDED" in os.environ

@pytest.mark.skip
def test_skips():
    pass

def test_fails_afterwards(broken_afterwards):
    pass
"""


def test_core_tests_that_passed_are_left_out(tmp_path, monkeypatch):
    """But no tests that failed or were skipped, and no tests of other folders."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    record, other = tmp_path / "passed", tmp_path / "tests/cli/test_other.py"
    other.parent.mkdir(parents=True)
    other.write_text("def test_passes():\n    pass\n", encoding="utf-8")
    core = "tests/spec/test_suite.py"
    recorded = session(tmp_path, OUTCOMES, name=core, GENNORM_RECORD=str(record))
    assert "1 failed, 4 passed, 1 skipped, 1 error" in outcome(recorded)
    passed = [f"{core}::test_passes[a]", f"{core}::test_passes[b]"]
    assert record.read_text(encoding="utf-8").splitlines() == ["tests/cli/test_other.py::test_passes", *passed]
    again = session(tmp_path, OUTCOMES, ["-v", "-n", "1", "--except-passed", str(record)], name=core, MENDED="1")
    assert "WorkStealScheduling" in again.stdout
    assert "3 passed, 1 skipped, 1 error" in outcome(again), again.stdout


def outcome(answer):
    return answer.stdout.strip().splitlines()[-1]


# ------------------------------------------------------------------------------------------------------------ examples

DRAWING = """
from hypothesis import given, strategies as st

@given(st.integers())
def test_draws(number):
    print(number, file=open("drawn.txt", "a"))
"""


def drawn(folder, *arguments):
    """The numbers that a session draws."""
    (folder / "drawn.txt").unlink(missing_ok=True)
    answer = session(folder, DRAWING, arguments)
    assert answer.returncode == pytest.ExitCode.OK, answer.stdout
    return (folder / "drawn.txt").read_text(encoding="utf-8").split()


def test_every_session_draws_the_same_examples_but_where_new_ones_are_wanted(tmp_path):
    first = drawn(tmp_path)
    assert len(first) == 50
    assert drawn(tmp_path) == first
    assert drawn(tmp_path, "--hypothesis-profile=new") != first
    assert len(drawn(tmp_path, "--hypothesis-profile=thorough")) == 200


# --------------------------------------------------------------------------------------------------------------- waits

HANGING = """
import threading

def test_hangs():
    threading.Event().wait()
"""


def test_a_test_that_hangs_ends_the_session_with_a_failure(tmp_path):
    """With the settings of `pyproject.toml`, except that one second is enough here."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    found = {name: value for name, value in options.items() if name.startswith("faulthandler")}
    assert 0 < found["faulthandler_timeout"] <= 900
    lines = [f"{name} = {1 if name == 'faulthandler_timeout' else value}" for name, value in found.items()]
    answer = session(tmp_path, HANGING, ini="\n".join(["[pytest]", *lines, ""]))
    assert answer.returncode == 1
    assert "in test_hangs" in answer.stderr


# Calls that wait for another process, and which of their arguments ends the wait.
WAITS = {"run": "timeout", "check_output": "timeout", "check_call": "timeout", "call": "timeout"}


def endless_waits(source):
    """The lines of `source` that wait for another process without a timeout."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner, name = ast.unparse(node.func.value), node.func.attr
        keywords = {keyword.arg for keyword in node.keywords}
        if owner == "subprocess" and name in WAITS:
            endless = WAITS[name] not in keywords
        elif name in {"communicate", "wait"} and owner.endswith(("process", "child", "popen")):
            endless = not node.args and "timeout" not in keywords
        else:
            continue
        if endless:
            lines.append(node.lineno)
    return lines


def test_endless_waits_are_found():
    source = "subprocess.run(a)\nsubprocess.run(a, timeout=3)\nprocess.communicate()\nchild.wait(3)\nchild.wait()\n"
    assert endless_waits(source) == [1, 3, 5]


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: path.name)
def test_every_wait_for_a_process_has_an_end(path):
    assert endless_waits(path.read_text(encoding="utf-8")) == []
