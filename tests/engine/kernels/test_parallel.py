"""Slices that threads share: the same bits for any number of threads, and for any number of other slices."""

import numpy as np
import pytest

import gennorm as gn
from gennorm.engine import call as engine_call
from gennorm.engine import sharing, threads
from tests.derivatives import judge, judge_tangent
from tests.engine.kernels.test_forms import made
from tests.strategies import sample

CHANNELS = {"aggregation_levels": "{0, 2;;All}", "scaling_levels": 1}
# Few slices, or tiles of slices, of so many elements that they are cut.
LAYOUTS = {
    "one row": ((1, 100_003), {"aggregation_levels": -1, "scaling_levels": ()}),
    "one row, a parameter for each element": ((1, 70_000), {"aggregation_levels": -1, "scaling_levels": "Same"}),
    "three rows": ((3, 40_000), {"aggregation_levels": -1, "scaling_levels": ()}),
    "rows of channels": ((1, 2, 200, 180), {"aggregation_levels": "2;;All", "scaling_levels": 1}),
    "rows of one group": ((1, 8, 90, 100), {"aggregation_levels": "All", "scaling_levels": 1}),
    "rows of every example": ((40, 3, 1000), CHANNELS),
    "short rows": ((1, 3000, 40), {"aggregation_levels": "All", "scaling_levels": 2}),
    "columns": ((1024, 100), {"aggregation_levels": 0, "scaling_levels": 1}),
    "columns of two tiles": ((520, 1100), {"aggregation_levels": 0, "scaling_levels": 1}),
    "columns, a parameter for each line": ((1, 800, 96), {"aggregation_levels": 1, "scaling_levels": "Same"}),
    "columns with the channels last": ((2, 30, 30, 64), {"aggregation_levels": "{1, 2}", "scaling_levels": 3}),
    "folded columns": ((1, 900, 96), {"aggregation_levels": "All", "scaling_levels": 2, "group_number": {2: 8}}),
}
SETTINGS = {"Standardize": {}, "RMS": {"method": "RMS"}}
NUMBERS = (1, 2, 7, 64)


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.setattr(threads, "_threads", None)


def results(layer, x, dy, mask):
    """What every entry point returns, as bytes."""
    y, pullback = layer.vjp(x)
    moments = layer.measure(x)
    found = [layer(x), y, layer(x, out=np.empty_like(x)), layer.jvp(x, dy)[1], moments.m2, moments.count]
    found += [layer.apply(x, moments), layer.inverse(x, moments), layer(x, mask=mask), layer.measure(x, mask=mask).m2]
    for gradients in (pullback(dy), layer.vjp(x, mask=mask)[1](dy)):
        found += [gradients.input, gradients.scaling, gradients.biases]
    return [np.asarray(array).tobytes() for array in found]


TABLE = [*((name, "Standardize") for name in LAYOUTS), ("one row", "RMS"), ("columns", "RMS")]


@pytest.mark.parametrize(("name", "method"), TABLE)
def test_the_number_of_threads_makes_no_difference(name, method):
    shape, settings = LAYOUTS[name]
    settings = {**settings, **SETTINGS[method], "batched": True}
    x, dy = sample(shape) + np.float32(3), sample(shape, seed=1)
    mask = np.random.default_rng(2).random(shape) < 0.8
    found = []
    for number in NUMBERS:
        gn.set_num_threads(number)
        layer = made(settings, shape)
        assert layer.plan(x).cut.units > 1
        found.append(results(layer, x, dy, mask))
    assert all(bits == found[0] for bits in found)
    judge(layer.vjp(x)[1](dy), x, dy, settings, layer.scaling, layer.biases)
    judge_tangent(layer.jvp(x, dy)[1], x, dy, settings, layer.scaling)


@pytest.mark.parametrize("name", [name for name in LAYOUTS if LAYOUTS[name][0][0] in (1, 2, 3)])
def test_an_example_does_not_depend_on_its_batch(name):
    """The cut of a slice does not depend on how many others there are."""
    shape, settings = LAYOUTS[name]
    batch = sample((5, *shape[1:]))
    layer = made({**settings, "batched": True}, batch.shape)
    gn.set_num_threads(2)
    whole = layer(batch)
    for number in NUMBERS[:2]:
        gn.set_num_threads(number)
        for i in range(5):
            assert layer(batch[i : i + 1]).tobytes() == whole[i : i + 1].tobytes()


def test_a_slice_is_shared_where_there_are_few(monkeypatch):
    """And where there are many slices each thread has its own, in one pass."""
    calls = []
    run = sharing.run

    def counted(work, tasks, elements, **others):
        calls.append(tasks)
        run(work, tasks, elements, **others)

    monkeypatch.setattr(engine_call, "run", counted)
    gn.set_num_threads(2)
    layer = gn.NormalizationLayer(-1, scaling=None, biases=None, batched=True)
    units = layer.plan((1, 1 << 20)).cut.units
    assert units == 64
    out = np.empty((1, 1 << 20), np.float32)
    layer(sample(out.shape), out=out)
    assert calls == [units, units]
    calls.clear()
    out = np.empty((8, 1 << 16), np.float32)
    layer(sample(out.shape), out=out)
    assert calls == [8]


@pytest.mark.parametrize(
    ("shape", "levels", "text"),
    [
        ((1, 1_000_000), -1, "64 tasks: 1 slice in 64 units each"),
        ((4096, 256), 0, "32 tasks: 1 tile in 32 units each"),
        ((3, 32_768), -1, "12 tasks: 3 slices in 4 units each"),
        ((3, 32_767), -1, "3 tasks"),
    ],
)
def test_the_plan_shows_the_units(shape, levels, text):
    layer = gn.NormalizationLayer(levels, (), batched=True)
    assert str(layer.plan(shape)).splitlines()[-1] == f"parallel   {text}"
    assert layer.plan(shape).reads == 1


@pytest.mark.parametrize("spoil", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("name", ["one row", "columns", "folded columns", "rows of every example"])
def test_the_mean_of_a_slice_with_an_infinity_is_infinite(name, spoil):
    """As NumPy's, in every unit, and in a slice of one unit."""
    shape, settings = LAYOUTS[name]
    settings = {**settings, "batched": True}
    for dtype in ("float32", "float64"):
        for place in (0, -1):
            x = sample(shape, dtype)
            x.reshape(-1)[place] = spoil
            found = []
            for number in (1, 2):
                gn.set_num_threads(number)
                moments = made(settings, shape).measure(x)
                found.append([moments.m2.tobytes(), moments.mean.tobytes()])
                assert np.array_equal(moments.mean.reshape(-1)[place], spoil, equal_nan=True)
            assert found[0] == found[1]
