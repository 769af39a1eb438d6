"""The cache of prepared calls: what a new size costs, how many sizes are remembered, and what each keeps."""

import gc
import sys
from types import FunctionType

import numpy as np
import pytest

import gennorm as gn
from gennorm import engine
from gennorm.layer import calls

MAKE = {
    "layer norm": (lambda: gn.layer_norm(64), lambda size: (size, 64)),
    "sequences": (lambda: gn.layer_norm(16), lambda size: (2, size, 16)),
    "group norm": (lambda: gn.group_norm(2, 8), lambda size: (2, 8, 4, size)),
    "instance norm, channels last": (lambda: gn.instance_norm(8, channel_level=-1), lambda size: (2, size, 4, 8)),
    "batch norm, inference": (lambda: gn.batch_norm(8), lambda size: (2, 8, 4, size)),
    "batch norm, channels last": (lambda: gn.batch_norm(8, channel_level=-1), lambda size: (2, 4, size, 8)),
}
# Function calls, of Python and of C, that a call on a new size may make: how many there are does not depend on the
# machine. The kinds above made 190 to 265 of them when a new size took 90 to 170 us.
MOST_CALLS = 240


def events(function, *arguments):
    """How many functions a call of a function calls."""
    number = 0

    def count(_, event, __):
        nonlocal number
        number += event in ("call", "c_call")

    before = sys.getprofile()
    gc.disable()  # callbacks of the collector would be counted too
    sys.setprofile(count)
    try:
        function(*arguments)
    finally:
        sys.setprofile(before)
        gc.enable()
    return number


@pytest.mark.parametrize("name", MAKE)
def test_a_new_size_of_a_known_kind_is_cheap(name):
    make, shape = MAKE[name]
    layer = make()
    for size in (20, 21):
        layer(np.ones(shape(size), np.float32))
    found = [events(layer, np.ones(shape(size), np.float32)) for size in range(22, 32)]
    assert max(found) < MOST_CALLS, found
    assert events(layer, np.ones(shape(25), np.float32)) < MOST_CALLS / 4  # a remembered one


@pytest.fixture
def prepared(monkeypatch):
    """The shapes for which a call is prepared."""
    shapes, prepare = [], engine.prepare

    def counting(config, shape, *rest, **keywords):
        shapes.append(shape)
        return prepare(config, shape, *rest, **keywords)

    monkeypatch.setattr(engine, "prepare", counting)
    return shapes


def test_a_thousand_sizes_in_turn_are_prepared_once(prepared):
    layer = gn.layer_norm(4)
    arrays = [np.ones((size, 4), np.float32) for size in range(1, 1001)]
    for _ in range(3):
        for x in arrays:
            layer(x)
    assert len(prepared) == 1000


def test_only_the_oldest_are_dropped(prepared):
    layer = gn.layer_norm(4)
    arrays = [np.ones((size, 4), np.float32) for size in range(1, 2 * calls.MOST)]
    for x in arrays:
        layer(x)
        assert len(layer._state.calls.found) <= calls.MOST
    assert len(prepared) == len(arrays)
    for x in arrays[-(calls.MOST - calls.DROPPED) :]:  # no more are dropped at a time
        layer(x)
    assert len(prepared) == len(arrays)


def kept_by(value, seen):
    """Bytes of the arrays that an object refers to, in its attributes, its items and the closures of its functions."""
    if id(value) in seen or isinstance(value, (str, bytes, int, float, type)) or value is None:
        return 0
    seen[id(value)] = value
    if isinstance(value, np.ndarray):
        return value.nbytes if value.base is None else kept_by(value.base, seen)
    if isinstance(value, dict):
        return sum(kept_by(item, seen) for item in value.values())
    if isinstance(value, (list, tuple)):
        return sum(kept_by(item, seen) for item in value)
    if isinstance(value, FunctionType):
        return sum(kept_by(cell.cell_contents, seen) for cell in value.__closure__ or ())
    return sum(kept_by(item, seen) for item in getattr(value, "__dict__", {}).values())


SLICES = 100_000
# Each leaves a remembered shape with this many slices, and may keep so many numbers for each of them.
KEPT = {
    "rows": (lambda: gn.layer_norm(8), (SLICES, 8), 0),
    "columns": (lambda: gn.batch_norm(SLICES, statistics="input"), (4, SLICES), 0),
    "units": (lambda: gn.batch_norm(8, statistics="input"), (SLICES, 8), 0),
    "held moments": (lambda: gn.batch_norm(SLICES), (4, SLICES), 2),  # mean and variance in the order of the kernel
}


@pytest.mark.parametrize("name", KEPT)
def test_a_remembered_shape_keeps_nothing_that_inference_does_not_use(name):
    make, shape, numbers = KEPT[name]
    layer, x = make(), np.ones(shape, np.float32)
    for _ in range(2):
        layer(x)
    for call in layer._state.calls.found.values():
        own = kept_by([layer.scaling, layer.biases], {})
        assert kept_by(vars(call), {}) < own + 8 * numbers * SLICES + 10_000


def test_what_is_kept_is_seen():
    """The check itself: an array in a closure is found."""
    array = np.ones(1000)
    assert kept_by({"step": lambda: array}, {}) == 8000
