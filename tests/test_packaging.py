"""What is shipped: a wheel of the package alone, typed, with its licence and its command."""

import subprocess
import sys
import tomllib
import zipfile
from itertools import pairwise
from pathlib import Path

import pytest

import gennorm as gn

ROOT = Path(__file__).resolve().parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_wheel_contains_only_the_package(wheel):
    names = wheel.namelist()
    (information,) = {name.split("/")[0] for name in names if not name.startswith("gennorm/")}
    assert information == f"gennorm-{VERSION}.dist-info"
    assert "gennorm/py.typed" in names
    assert f"{information}/licenses/LICENSE" in names
    assert not [name for name in names if "__pycache__" in name or "tests" in name.split("/")]


def test_the_wheel_contains_every_module(wheel):
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "gennorm").rglob("*.py")}
    assert modules == {name for name in wheel.namelist() if name.endswith(".py")}


def test_wheel_has_the_command(wheel):
    (entry,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert "gennorm = gennorm.cli:main" in wheel.read(entry).decode()


def test_version_of_the_package_is_that_of_the_project():
    assert gn.__version__ == VERSION


def test_readme_has_two_commands():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    commands = [following for line, following in pairwise(lines) if line == "```sh"]
    assert [command.rpartition(" && ")[2] for command in commands] == [
        ".venv/bin/gennorm demo",
        ".venv/bin/python -m pytest -n auto",
    ]
