"""Every spelling that docs/coming-from.md promises exists and is accepted."""

import re
from pathlib import Path

import numpy as np
import pytest

import gennorm as gn

PAGE = Path(__file__).resolve().parents[1] / "docs" / "coming-from.md"
SIZES = {"C": 6, "D": 5, "G": 3, "H": 4, "W": 5}


def spellings() -> list[str]:
    """The code of the right-hand columns that calls gennorm."""
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return sorted({code for row in rows for code in re.findall(r"`(gn\.[^`]+)`", row.rpartition(" | ")[2])})


def test_page_is_read():
    assert len(spellings()) > 30
    assert "gn.group_norm(G, C, epsilon=1e-5)" in spellings()


@pytest.mark.parametrize("code", spellings())
def test_spelling(code):
    x = np.linspace(0, 1, 2 * 6 * 4 * 5).reshape(2, 6, 4, 5)
    made = eval(code, {"gn": gn, "np": np, "x": x, "m": np.zeros(5), "v": np.ones(5), **SIZES})
    assert isinstance(made, np.ndarray if code.startswith("gn.normalize") else gn.NormalizationLayer)
