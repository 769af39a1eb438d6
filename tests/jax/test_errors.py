"""Every error text of the front in full, once; each is raised under `jit` too."""

from pathlib import Path

import numpy as np
import pytest

import gennorm as gn
from tests.error_tables import ErrorTable

jax = pytest.importorskip("jax")
nnx = pytest.importorskip("flax.nnx")

import jax.numpy as jnp  # noqa: E402

import gennorm.jax as gj  # noqa: E402
import gennorm.jax.nnx as gnx  # noqa: E402
from gennorm.jax import arrays, computation, layer, merging  # noqa: E402

MODULES = [arrays, computation, layer, merging, gnx]
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


TABLE = ErrorTable(Path(__file__).parent / "errors.txt", NAMES, MODULES)


@TABLE.each_entry
def test_text(entry):
    TABLE.check_text(entry)
    TABLE.check_two_lines(entry)


def test_the_table_has_every_code_and_no_other():
    assert TABLE.codes == TABLE.raised_codes() | OF_THE_CORE


@TABLE.each_module
def test_the_table_reaches_every_place_that_raises(module):
    TABLE.check_places(module)
