"""Every goal of the benchmarks. Not collected unless named: `pytest tests/benchmarks`."""

import pytest

from .cases import Case, cases
from .startup import FIRST, first_calls, imported

CASES = cases(gigabytes=1)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_speed(case: Case) -> None:
    measured = case.measure(seconds=2)
    assert {peer: measured.ratio(peer) for peer in measured.missed} == {}


def test_import() -> None:
    assert not (found := imported(times=5)).missed, found


@pytest.mark.parametrize("name", FIRST)
def test_first_call(name: str) -> None:
    for found in first_calls(name, times=2):
        assert not found.missed, found
