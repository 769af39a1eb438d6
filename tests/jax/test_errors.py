"""Every error text of the front in full, once; each is raised under `jit` too."""

from pathlib import Path

import numpy as np
import pytest

import gennorm as gn
from gennorm.errors import GennormError
from tests.test_errors import constants, entries, lines_run, makers

jax = pytest.importorskip("jax")
nnx = pytest.importorskip("flax.nnx")

import jax.numpy as jnp  # noqa: E402

import gennorm.jax as gj  # noqa: E402
import gennorm.jax.nnx as gnx  # noqa: E402
from gennorm.jax import arrays, computation, layer, merging  # noqa: E402

TABLE = Path(__file__).parent / "errors.txt"
MODULES = [arrays, computation, layer, merging, gnx]
ENTRIES = entries(TABLE.read_text(encoding="utf-8"))
OF_THE_CORE = {"D001", "I001", "I010", "P013", "P022", "S010", "S021", "S031"}  # reached through the front


def layer_norm(size):
    return gj.NormalizationLayer(-1, "Same", input_shape=(..., size))


NAMES = {
    "gj": gj,
    "gn": gn,
    "gnx": gnx,
    "jax": jax,
    "jnp": jnp,
    "np": np,
    "nnx": nnx,
    "layer_norm": layer_norm,
    "x": jnp.ones((2, 3)),
}


def run(entry):
    eval(entry.trigger, {**NAMES})


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.code} {entry.trigger}")
def test_text(entry):
    with pytest.raises(GennormError) as caught:
        run(entry)
    assert str(caught.value) == f"{entry.text} [{entry.code}]"
    assert caught.value.code == entry.code
    assert type(caught.value).__name__ == entry.kind
    lines = entry.text.split("\n")
    assert len(lines) == 2
    assert all(len(line) <= 120 and not line.endswith(".") for line in lines)


def test_the_table_has_every_code_and_no_other():
    raised = set().union(*(constants(Path(module.__file__).read_text(encoding="utf-8")) for module in MODULES))
    assert {entry.code for entry in ENTRIES} == raised | OF_THE_CORE


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_the_table_reaches_every_place_that_raises(module):
    calls = [lambda entry=entry: run(entry) for entry in ENTRIES]
    seen = lines_run(calls, {module.__file__})
    source = Path(module.__file__).read_text(encoding="utf-8")
    missed = sorted(line for line in makers(source) if (module.__file__, line) not in seen)
    assert not missed, f"lines of {module.__name__} that raise and that no entry of {TABLE.name} reaches: {missed}"
