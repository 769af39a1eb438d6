"""Every error text of the front for xarray in full, once."""

import sys
from pathlib import Path

import numpy as np
import pytest

import gennorm as gn
from tests.error_tables import ErrorTable

xr = pytest.importorskip("xarray")
pytest.importorskip("dask")

import gennorm.xarray as gx  # noqa: E402
from gennorm.xarray import blocks, naming, normalizing  # noqa: E402

MODULES = [gx, blocks, naming, normalizing]
OF_THE_CORE = {"L004", "L031", "L101", "C003"}  # reached through the front

x = xr.DataArray(
    np.arange(24.0).reshape(4, 2, 3),
    dims=("time", "lat", "lon"),
    coords={"lat": [10, 20], "half": ("time", list("aabb"))},
)


def without_xarray():
    """Run the module of the front again while xarray cannot be imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "xarray", None)
        source = Path(gx.__file__).read_text(encoding="utf-8")
        exec(compile(source, gx.__file__, "exec"), {"__name__": "gennorm.xarray"})


NAMES = {"gx": gx, "gn": gn, "xr": xr, "np": np, "x": x, "data": xr.Dataset({"x": x}), "without_xarray": without_xarray}
TABLE = ErrorTable(Path(__file__).parent / "errors.txt", NAMES, MODULES)


@TABLE.each_entry
def test_text(entry):
    TABLE.check_text(entry)
    lines = entry.text.split("\n")
    assert len(lines) in {2, 4}
    assert all(len(line) <= 120 and not line.endswith(".") for line in lines)


def test_the_table_has_every_code_and_no_other():
    assert TABLE.codes == TABLE.raised_codes() | OF_THE_CORE


@TABLE.each_module
def test_the_table_reaches_every_place_that_raises(module):
    TABLE.check_places(module)
