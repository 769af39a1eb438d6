"""Every error text of the front in full."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.error_tables import ErrorTable

keras = pytest.importorskip("keras")
pytest.importorskip(keras.backend.backend())

import gennorm.keras as gk  # noqa: E402
from gennorm.keras import computation, converting, data, layers, normalization  # noqa: E402

MODULES = [computation, converting, data, layers, normalization]
OF_THE_CORE = {"I001"}  # reached through a layer


def model():
    return keras.Sequential([keras.Input((4,)), keras.layers.LayerNormalization()])


def built(layer, shape):
    layer.build(shape)
    return layer


NAMES = {"SimpleNamespace": SimpleNamespace, "gk": gk, "keras": keras, "np": np, "model": model, "built": built}


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
