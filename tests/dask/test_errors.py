"""Every error text of the front in full, once."""

from pathlib import Path

import numpy as np
import pytest

import gennorm as gn
from tests.error_tables import ErrorTable

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")

from gennorm.dask import graphs, layers, parts  # noqa: E402

OF_THE_CORE = {"D001", "D002", "I010", "I011", "P112", "P114", "S010", "S021"}  # reached through the front
X = da.arange(24.0, chunks=12).reshape(4, 6)
NAMES = {
    "da": da,
    "gn": gn,
    "np": np,
    "x": X,
    "unknown": X[da.arange(4, chunks=2) > 1],
    "layer": gn.layer_norm(6),
}
TABLE = ErrorTable(Path(__file__).parent / "errors.txt", NAMES, [graphs, layers, parts])


@pytest.fixture(autouse=True)
def _in_this_thread():
    with dask.config.set(scheduler="sync"):
        yield


@TABLE.each_entry
def test_text(entry):
    TABLE.check_text(entry)
    TABLE.check_two_lines(entry)


def test_the_table_has_every_code_and_no_other():
    assert TABLE.codes == TABLE.raised_codes() | OF_THE_CORE


@TABLE.each_module
def test_the_table_reaches_every_place_that_raises(module):
    TABLE.check_places(module)
