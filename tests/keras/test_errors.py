"""Every error text of the front in full."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gennorm.errors import GennormError
from tests.test_errors import constants, entries, lines_run, makers

keras = pytest.importorskip("keras")
pytest.importorskip(keras.backend.backend())

import gennorm.keras as gk  # noqa: E402
from gennorm.keras import computation, converting, data, layers, normalization  # noqa: E402

TABLE = Path(__file__).parent / "errors.txt"
MODULES = [computation, converting, data, layers, normalization]
ENTRIES = entries(TABLE.read_text(encoding="utf-8"))
OF_THE_CORE = {"I001"}  # reached through a layer


def model():
    return keras.Sequential([keras.Input((4,)), keras.layers.LayerNormalization()])


def built(layer, shape):
    layer.build(shape)
    return layer


NAMES = {"SimpleNamespace": SimpleNamespace, "gk": gk, "keras": keras, "np": np, "model": model, "built": built}


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
    seen = lines_run([lambda entry=entry: run(entry) for entry in ENTRIES], {module.__file__})
    source = Path(module.__file__).read_text(encoding="utf-8")
    missed = sorted(line for line in makers(source) if (module.__file__, line) not in seen)
    assert not missed, f"lines of {module.__name__} that raise and that no entry of {TABLE.name} reaches: {missed}"
