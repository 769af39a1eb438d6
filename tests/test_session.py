"""The rules of `conftest.py`, seen red: a skip fails a session in CI, and so does a framework that was asked for."""

import os
import subprocess
import sys
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


def session(folder, **environment):
    """A pytest session under our conftest, on `SUITE` alone."""
    (folder / "test_suite.py").write_text(SUITE, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    inherited = {key: value for key, value in os.environ.items() if key not in {"CI", "GENNORM_REQUIRE"}}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "."],
        cwd=folder,
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_skip_is_fine_at_home(tmp_path):
    assert session(tmp_path).returncode == pytest.ExitCode.OK


def test_skip_fails_in_ci(tmp_path):
    answer = session(tmp_path, CI="true")
    assert answer.returncode == pytest.ExitCode.TESTS_FAILED
    assert "test_suite.py::test_skips: no such machine" in answer.stdout
    assert answer.stdout.splitlines()[-1].startswith("=")


def test_session_without_skips_passes_in_ci(tmp_path):
    answer = session(tmp_path, CI="true", PYTEST_ADDOPTS="-k runs")
    assert answer.returncode == pytest.ExitCode.OK


def test_missing_framework_fails_where_it_is_required(tmp_path):
    answer = session(tmp_path, GENNORM_REQUIRE="numpy, no_such_framework")
    assert answer.returncode == pytest.ExitCode.USAGE_ERROR
    assert "GENNORM_REQUIRE names what cannot be imported: no_such_framework" in answer.stderr
    assert "numpy" not in answer.stderr


def test_present_framework_is_enough(tmp_path):
    assert session(tmp_path, GENNORM_REQUIRE="numpy,hypothesis").returncode == pytest.ExitCode.OK
