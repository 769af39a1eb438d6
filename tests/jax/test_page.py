"""The table of docs/jax.md: both columns are made and give the same values."""

import re
from pathlib import Path

import numpy as np
import pytest

jax = pytest.importorskip("jax")
nnx = pytest.importorskip("flax.nnx")

import gennorm.jax as gj  # noqa: E402
import gennorm.jax.nnx as gnx  # noqa: E402

PAGE = Path(__file__).resolve().parents[2] / "docs" / "jax.md"
ROWS = re.findall(r"^\| `(nnx\.[^`]+)` \| `([^`]+)` \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def test_the_table_is_read():
    assert len(ROWS) == 8


@pytest.mark.parametrize(("theirs", "ours"), ROWS)
def test_row(theirs, ours):
    x = jax.random.normal(jax.random.key(0), (3, 5, 6)) + 1
    names = {"nnx": nnx, "gnx": gnx, "gj": gj, "rngs": nnx.Rngs(0), "C": 6, "G": 2}
    one, other = eval(theirs, names), eval(ours, names)
    np.testing.assert_allclose(one(x), other(x), rtol=1e-4, atol=1e-5)
    if isinstance(other, nnx.Module):
        state = nnx.state(one)
        assert nnx.to_pure_dict(nnx.state(other)).keys() == nnx.to_pure_dict(state).keys()
        one.eval()
        other.eval()
        np.testing.assert_allclose(one(x), other(x), rtol=1e-4, atol=1e-5)
