"""The tables of the README and the pages: written by a command, and a difference is seen."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def tables():
    spec = importlib.util.spec_from_file_location("docs_tables", ROOT / "docs" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MACHINE = {"processor": "Some kind", "processors": 2, "system": "Linux", "python": "3.11.7", "load": 0.1}


def case(name, work, own, floor, **others):
    wrong = others.pop("wrong", {})
    return {
        "name": name,
        "size": name,
        "work": work,
        "seconds": {"gennorm": own, **others},
        "floor": floor,
        "wrong": wrong,
    }


def row(work, peer, cases, mean, least):
    return {"work": work, "peer": peer, "cases": cases, "geometric_mean": mean, "least": least, "least_in": "small"}


RUN = {
    "date": "2026-01-02",
    "threads": 1,
    "machine": MACHINE,
    "peers": {"torch": "2.13.0", "JAX": "0.10"},
    "cases": [
        case("small", "forward", 7e-7, 3.5e-7, torch=2.8e-6, wrong={"torch": 3.0}),
        case("large", "forward", 7.89e-3, 7.89e-3, torch=0.12624, JAX=1.578e-2),
        case("large", "out", 6e-3, 7e-3, **{"np.copyto": 7e-3}),
    ],
    "summary": [
        row("forward", "torch", 2, 8.0, 4.0),
        row("forward", "JAX", 1, 2.0, 2.0),
        row("out", "np.copyto", 1, 1.1667, 1.1667),
    ],
    "startup": [{"name": "import", "seconds": 0.123, "compiling": None}],
    "accuracy": [],
    "growth": [],
}
ERROR = {"dtype": "float32", "layout": "rows", "length": 8, "offset": 0.0, "scale": 1.0, "bound": 10.0}
EXACT = {
    **RUN,
    "cases": [],
    "summary": [],
    "accuracy": [
        {**ERROR, "ulps": {"gennorm": 1.28, "torch": 152.8}},
        {**ERROR, "ulps": {"gennorm": 0.5, "torch": 26900.0}, "offset": 100.0},
        {**ERROR, "ulps": {"gennorm": 2.0, "torch": None}, "scale": 1e30, "bound": 11.0},
    ],
    "growth": [
        {"name": "rows", "bytes": 1 << 20, "nanoseconds": 0.22},
        {"name": "rows", "bytes": 1 << 22, "nanoseconds": 0.1437},
    ],
}

TOGETHER = """\
| speed-up over | threads | cases | torch | JAX | np.copyto |
| --- | ---: | ---: | ---: | ---: | ---: |
| forward | 1 | 2 | **8.00×** (4.00×) | **2.00×** (2.00×) |  |
| forward into `out=` | 1 | 1 |  |  | **1.17×** (1.17×) |

The geometric mean of the speed-ups, and in brackets the least one. Some kind, Python 3.11.7, torch 2.13.0, JAX \
0.10; 2026-01-02."""

CASES = """\
### 1 thread

| forward | gennorm, µs | over the floor | torch | JAX |
| --- | ---: | ---: | ---: | ---: |
| small | 0.70 | 2.00× | ≠ 4.00× |  |
| large | 7,890 | 1.00× | 16.0× | 2.00× |

| forward into `out=` | gennorm, µs | over the floor | np.copyto |
| --- | ---: | ---: | ---: |
| large | 6,000 | 0.86× | 1.17× |

| a new process | seconds | empty cache |
| --- | ---: | ---: |
| import | 0.12 |  |

Some kind, Python 3.11.7, torch 2.13.0, JAX 0.10; 2026-01-02."""


def test_benchmark_tables(tables):
    assert tables.benchmark_table([RUN]) == TOGETHER
    assert tables.case_tables([EXACT, RUN]) == CASES
    assert tables.benchmark_table([EXACT]) == tables.case_tables([]) == "_Nothing has been recorded yet._"


def test_floor_table(tables):
    header, _, forward, out = tables.floor_table([RUN]).splitlines()
    assert header == "| middle and large | threads | cases | torch | JAX | np.copyto |"
    assert forward == "| forward | 1 | 1 | **16.0×** of 16.0× | **2.00×** of 2.00× |  |"
    assert out == "| forward into `out=` | 1 | 1 |  |  | **1.17×** of 1.00× |"
    assert tables.floor_table([EXACT]) == "_Nothing has been recorded yet._"


def test_accuracy_tables(tables):
    by_length, by_mean, by_deviation, note = tables.accuracy_tables([RUN, EXACT]).split("\n\n")
    assert by_length.splitlines()[0] == "| slices | elements of a slice, mean 0 | gennorm | torch | bound |"
    assert by_length.splitlines()[2:] == ["| float32, rows | 8 | 1.3 | 153 | 10.0 |"]
    assert by_mean.splitlines()[2:] == [
        "| float32, rows | 0 | 1.3 | 153 | 10.0 |",
        "| float32, rows | 100 | 0.5 | 3·10⁴ | 10.0 |",
    ]
    assert by_deviation.splitlines()[3:] == ["| float32, rows | 1e+30 | 2.0 | NaN | 11.0 |"]
    assert note == "Some kind, Python 3.11.7, torch 2.13.0, JAX 0.10; 2026-01-02."


def test_growth_table(tables):
    header, _, line = tables.growth_table([EXACT]).splitlines()
    assert header == "| nanoseconds per element | threads | 1 MB | 4 MB |"
    assert line == "| rows | 1 | 0.220 | 0.144 |"


DEVICE = {
    "date": "2026-01-02",
    "device": {"type": "cuda", "name": "Some GPU"},
    "versions": {"python": "3.12.3", "torch": "2.11.0"},
    "groups": [
        {"group": "conformance", "table": "methods", "cases": 3, "failed": 1, "skipped": 0},
        {"group": "conformance", "table": "groups", "cases": 4, "failed": 0, "skipped": 2},
        {"group": "benchmark", "table": "forward", "cases": 1, "failed": 0, "skipped": 0},
    ],
    "benchmark": [
        {"name": "layer norm", "work": "forward", "seconds": {"torch": 1.2e-4, "gennorm, compiled": 1e-4}, "copy": 9e-5}
    ],
}
ON_DEVICES = """\
Some GPU, python 3.12.3, torch 2.11.0; 2026-01-02.

| checked | cases | failed | skipped |
| --- | ---: | ---: | ---: |
| conformance | 7 | 1 | 2 |

| µs | work | torch | gennorm, compiled | copy |
| --- | --- | ---: | ---: | ---: |
| layer norm | forward | 120 | 100 | 90.0 |"""


def test_device_tables(tables, tmp_path):
    assert tables.device_tables(tables.device_records(tmp_path)) == "_Nothing has been recorded yet._"
    (tmp_path / "device-gpu.json").write_text(json.dumps(DEVICE), encoding="utf-8")
    assert tables.recorded(tmp_path) == []
    assert tables.device_tables(tables.device_records(tmp_path)) == ON_DEVICES


def test_between_table(tables):
    times = {"torch": 4e-5, "gennorm": 2e-5, "whole_torch": 9e-5, "whole_gennorm": 6e-5}
    slow = {**times, "torch": 1.6e-4}
    run = {**RUN, "between": [{"name": "a", "work": "training", **times}, {"name": "b", "work": "training", **slow}]}
    assert tables.between_table([RUN]) == "_Nothing has been recorded yet._"
    header, _, one, other, mean, _, note = tables.between_table([RUN, run]).splitlines()
    assert header == "| norm between operators of torch |  | threads | torch, µs | gennorm, µs | norm | sequence |"
    assert one == "| a | training | 1 | 40.0 | 20.0 | 2.00× | 1.50× |"
    assert other == "| b | training | 1 | 160 | 20.0 | 8.00× | 1.50× |"
    assert mean == "| geometric mean | training | 1 |  |  | **4.00×** | **1.50×** |"
    assert note == "Some kind, Python 3.11.7, torch 2.13.0, JAX 0.10; 2026-01-02."


def test_a_busy_machine_is_said(tables):
    busy = {**RUN, "machine": {**MACHINE, "load": 4.96}}
    assert tables.note(busy).endswith("; 2026-01-02, on a busy machine (load 5.0 on 2 processors).")
    assert "busy" not in tables.note(RUN)


def test_runs_on_record_are_by_their_threads(tables, tmp_path):
    assert tables.recorded(tmp_path) == []
    for name, threads in (("a", 2), ("b", 1)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"threads": threads, "cases": []}), encoding="utf-8")
    assert [run["threads"] for run in tables.recorded(tmp_path)] == [1, 2]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.7, "0.70"), (1.234, "1.23"), (63.04, "63.0"), (117.4, "117"), (56600.0, "56,600"), (0.0123, "0.01")],
)
def test_microseconds(tables, value, text):
    assert tables.microseconds(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.4567, "0.46×"), (9.994, "9.99×"), (45.67, "45.7×"), (123.4, "123×")])
def test_times(tables, value, text):
    assert tables.times(value) == text


def test_pages_are_up_to_date(tables):
    assert tables.main(["--check"]) == 0


def test_check_sees_a_difference(tables, tmp_path, monkeypatch, capsys):
    written = {path: bodies for path, bodies in tables.written().items() if path.name == "README.md"}
    stale = tmp_path / "README.md"
    shutil.copy(next(iter(written)), stale)
    stale.write_text(stale.read_text(encoding="utf-8").replace("gn.group_norm(32, 256)", "gn.group_norm(1)"), "utf-8")
    monkeypatch.setattr(tables, "written", lambda: {stale: next(iter(written.values()))})
    assert tables.main(["--check"]) == 1
    assert "README.md is out of date: python docs/tables.py --write" in capsys.readouterr().err
    assert tables.main(["--write"]) == 0
    assert tables.main(["--check"]) == 0


def test_markers_are_needed(tables):
    with pytest.raises(SystemExit, match=r"page\.md lacks the markers <!-- presets: begin"):
        tables.filled("nothing", "presets", "body", "page.md")
