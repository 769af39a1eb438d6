"""The benchmarks' own machinery, on times that are given: what is a missed goal, and what is kept of a run."""

import dataclasses
import datetime as dt
import importlib.util
import json
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the benchmarks compare with torch")

from tests.benchmarks import __main__ as command
from tests.benchmarks.cases import backward, cases, forward, forward_out, layer_norm, one_thread, rms_norm, same
from tests.benchmarks.startup import Waited
from tests.benchmarks.timing import Measured, best, pooled

FAST = Measured("fast", {"gennorm": 1e-6, "torch": 2e-6, "np.copyto": 5e-7}, {"torch": 2.0})
SLOW = Measured("slow", {"gennorm": 1e-3, "torch": 2e-3}, {"torch": 2.1})
WAITS = [
    Waited("import gennorm, with NumPy", 0.1, 0.2, 0.25),
    Waited("first call, layer norm, nothing cached", 2.0, 2.5, 2),
    Waited("first call, layer norm, cached", 0.5, 0.7, 0.6),
]


def test_missed_goals():
    assert FAST.missed == []
    assert SLOW.missed == ["torch"]
    assert [wait.missed for wait in WAITS] == [False, True, False]
    assert "torch 2.00× (goal 2×)  np.copyto 0.50×" in command.case_line(FAST)
    assert "(goal 2.1×: MISSED)" in command.case_line(SLOW)
    assert "(goal 2 s: MISSED)" in command.wait_line(WAITS[1])


def test_names_are_unique():
    names = [case.name for case in cases()]
    assert len(set(names)) == len(names)


def test_record_is_what_the_tables_read(tmp_path):
    spec = importlib.util.spec_from_file_location(
        "docs_tables", Path(__file__).resolve().parents[1] / "docs" / "tables.py"
    )
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    result = command.record([FAST, SLOW], WAITS, dt.date(2026, 1, 2))
    path = command.write(result, tmp_path)
    assert path.name == "2026-01-02.json"
    assert tables.newest(tmp_path) == json.loads(json.dumps(result))
    table = tables.benchmark_table(result)
    assert "| fast | 1.00 | 2.00 (2.0×) | 0.50 (0.5×) |" in table
    assert "busy" not in table
    assert "kept the machine busy (load 999.0 on" in command.note(WAITS, 999)
    assert "the first call in a new process 0.50 to 0.50 s, or 2.0 to 2.0 s" in table


def test_best_takes_turns_and_the_least():
    calls = []
    found = best({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, seconds=0, least=2)
    assert set(found) == {"a", "b"}
    assert all(0 < seconds < 1e-3 for seconds in found.values())
    assert set(calls) == {"a", "b"}


def test_work_in_other_threads_is_refused():
    def spin():
        end = time.thread_time() + 0.02
        while time.thread_time() < end:
            pass

    def elsewhere():
        thread = threading.Thread(target=spin)
        thread.start()
        thread.join()

    with pytest.raises(AssertionError, match="elsewhere worked for"):
        best({"elsewhere": elsewhere}, seconds=0, least=1)


@pytest.mark.parametrize("run", [forward, forward_out, backward])
@pytest.mark.parametrize("norm", [layer_norm(3, 40), rms_norm(3, 40)], ids=["layer", "rms"])
def test_values_are_compared_before_anything_is_timed(run, norm):
    with one_thread():
        assert run(norm, 0)["gennorm"] > 0
    wrong = dataclasses.replace(norm, peer=lambda *tensors: 1.001 * norm.peer(*tensors))
    with pytest.raises(AssertionError, match="the output differs by"):
        run(wrong, 0)


def test_same():
    same([1.0, 2.0], [1.0, 2.0001], "what")
    with pytest.raises(AssertionError, match="what differs by"):
        same([1.0, 2.0], [1.0, 2.001], "what")


def test_passes_are_pooled_by_competitor():
    other = Measured("slow", {"gennorm": 2e-3, "torch": 1e-3}, {"torch": 2.1})
    found = pooled([SLOW, other])
    assert found.seconds == {"gennorm": 1e-3, "torch": 1e-3}
    assert found.goals == SLOW.goals
    assert found.spread == {"torch": (0.5, 2.0)}
    assert "torch 1.00× [0.50 to 2.00] (goal 2.1×: MISSED)" in command.case_line(found)
