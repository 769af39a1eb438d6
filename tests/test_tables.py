"""The tables of the README: written by a command, and a difference is seen."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("docs_tables", ROOT / "docs" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RESULT = {
    "date": "2026-01-02",
    "note": "One core.",
    "peers": ["torch", "jax"],
    "cases": [
        {"name": "small", "microseconds": {"gennorm": 0.7, "torch": 2.8}},
        {"name": "large", "microseconds": {"gennorm": 7890.0, "torch": 126240.0, "jax": 15780.0}},
    ],
}

TABLE = """\
| µs, best of many | gennorm | torch | jax |
| --- | ---: | ---: | ---: |
| small | 0.70 | 2.80 (4.0×) |  |
| large | 7,890 | 126,000 (16.0×) | 15,800 (2.0×) |
| **geometric mean** |  | **8.0×** | **2.0×** |

One core."""


def test_benchmark_table(tables):
    assert tables.benchmark_table(RESULT) == TABLE
    assert tables.benchmark_table(None) == "_No benchmark has been recorded yet._"


def test_newest_benchmark_is_by_its_date(tables, tmp_path):
    assert tables.newest(tmp_path) is None
    (tmp_path / "b.json").write_text('{"date": "2026-01-02"}', encoding="utf-8")
    (tmp_path / "a.json").write_text('{"date": "2026-02-01"}', encoding="utf-8")
    assert tables.newest(tmp_path)["date"] == "2026-02-01"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.7, "0.70"), (1.234, "1.23"), (63.04, "63.0"), (117.4, "117"), (56600.0, "56,600"), (0.0123, "0.01")],
)
def test_microseconds(tables, value, text):
    assert tables.microseconds(value) == text


def test_readme_is_up_to_date(tables):
    assert tables.main(["--check"]) == 0


def test_check_sees_a_difference(tables, tmp_path, monkeypatch, capsys):
    stale = tmp_path / "README.md"
    stale.write_text(tables.README.read_text(encoding="utf-8").replace("gn.group_norm(32, 256)", "gn.group_norm(1)"))
    monkeypatch.setattr(tables, "README", stale)
    assert tables.main(["--check"]) == 1
    assert "README.md is out of date: python docs/tables.py --write" in capsys.readouterr().err
    assert tables.main(["--write"]) == 0
    assert tables.main(["--check"]) == 0


def test_markers_are_needed(tables):
    with pytest.raises(SystemExit, match=r"README\.md lacks the markers <!-- presets: begin"):
        tables.filled("nothing", "presets", "body")
