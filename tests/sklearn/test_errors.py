"""Every error text of the front in full, once."""

from pathlib import Path

import numpy as np
import pytest

from tests.error_tables import ErrorTable

sklearn = pytest.importorskip("sklearn")

from scipy import sparse as scipy_sparse  # noqa: E402

from gennorm.sklearn import LevelScaler, scaler, sparse  # noqa: E402

OF_THE_CORE = {"C001", "L101", "P121"}  # reached through the front
NAMES = {
    "LevelScaler": LevelScaler,
    "np": np,
    "csr": scipy_sparse.csr_array,
    "data": np.array([[1.0, 5.0, 0.0, 2.0], [2.0, 0.0, 0.0, 9.0], [4.0, 1.0, 3.0, 0.0]]),
}
TABLE = ErrorTable(Path(__file__).parent / "errors.txt", NAMES, [scaler, sparse])


@TABLE.each_entry
def test_text(entry):
    TABLE.check_text(entry)


def test_the_table_has_every_code_and_no_other():
    assert TABLE.codes == TABLE.raised_codes() | OF_THE_CORE


@TABLE.each_module
def test_the_table_reaches_every_place_that_raises(module):
    TABLE.check_places(module)
