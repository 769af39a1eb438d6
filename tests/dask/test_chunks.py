"""Arrays of Dask: the same numbers as NumPy's for every chunking, and the same bits for the same chunking."""

import functools
import itertools
import pickle
import warnings

import numpy as np
import pytest

import gennorm as gn
from gennorm.errors import GennormError

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")

RNG = np.random.default_rng(0)
SHAPE = (4, 12, 6)
X = RNG.normal(3, 2, SHAPE)
# Chunks that cut examples, groups of every level and parameters anywhere; some have no element.
CHUNKS = {
    "one": SHAPE,
    "batch": (1, 12, 6),
    "cut groups": ((1, 3), (5, 1, 6), (4, 2)),
    "single elements along one level": ((2, 2), (1,) * 12, (6,)),
    "empty ones": ((0, 3, 1), (12, 0), (2, 0, 4)),
}
LAYERS = {
    "layer norm": {"aggregation_levels": "1;;All"},
    "RMS norm": {"aggregation_levels": 2, "method": "RMS", "scaling_levels": "Same"},
    "batch norm": {"aggregation_levels": "{0, 2}"},
    "group norm": {"aggregation_levels": "All", "scaling_levels": 1, "group_number": {1: 4}},
    "two groups": {"aggregation_levels": "All", "scaling_levels": "{2, 1}", "group_number": {1: 3, 2: 2}},
    "ghost batch norm": {"aggregation_levels": "{0, 2}", "group_number": [2, 1], "unbiased": True},
    "parameters along all": {"aggregation_levels": 1, "scaling_levels": "All", "epsilon_placement": "outside"},
    "everything": {"aggregation_levels": "0;;All", "scaling_levels": ()},
}


def made(name, **changes):
    """A layer with parameters that differ from each other."""
    settings = {"batched": True, "dtype": "float64", "epsilon": 1e-3, **LAYERS[name], **changes}
    layer = gn.NormalizationLayer(**settings).initialize(SHAPE)
    for parameter in ("scaling", "biases"):
        array = getattr(layer, parameter)
        setattr(layer, parameter, np.linspace(0.5, 2, array.size).reshape(array.shape))
    return layer


def lazy(array, chunks):
    return da.from_array(array, chunks=chunks)


def close(found, expected, exact=1e-13):
    np.testing.assert_allclose(found, expected, rtol=exact, atol=exact)


def same(a, b):
    """Whether moments have the same bits."""
    return all(np.array_equal(one, two, equal_nan=True) for one, two in zip(a.rows(), b.rows(), strict=True))


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("name", LAYERS)
def test_every_chunking_gives_numpy_s_output(name, chunks):
    layer, x = made(name), lazy(X, CHUNKS[chunks])
    y = layer(x)
    assert (y.chunks, y.dtype) == (x.chunks, X.dtype)
    close(y.compute(scheduler="sync"), layer(X))
    found, expected = layer.measure(x), layer.measure(X)
    assert np.array_equal(found.count, expected.count)
    assert (found.mean is None) == (expected.mean is None)
    close(found.m2, expected.m2)
    close(layer.inverse(layer(x), expected).compute(scheduler="sync"), X)
    close(layer.apply(x, expected).compute(scheduler="sync"), layer.apply(X, expected))


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("name", LAYERS)
def test_every_chunking_gives_numpy_s_moments_of_a_data_set(name, chunks):
    layer, x = made(name, statistics="dataset", unbiased=False), lazy(X, CHUNKS[chunks])
    other = made(name, statistics="dataset", unbiased=False).adapt(X)
    layer.adapt(x)
    assert np.array_equal(layer.moments.count, other.moments.count)
    close(layer.moments.variance() if layer.moments.mean is not None else layer.moments.mean_square(),
          other.moments.variance() if layer.moments.mean is not None else other.moments.mean_square())  # fmt: skip
    y = layer(x)
    close(y.compute(scheduler="sync"), other(X))
    close(layer.inverse(y).compute(scheduler="sync"), X)
    layer.adapt(x, reset=False)
    assert np.array_equal(layer.moments.count, 2 * other.moments.count)


@pytest.mark.parametrize("form", ["NumPy", "Dask", "fewer axes"])
@pytest.mark.parametrize("name", ["layer norm", "group norm", "batch norm"])
def test_masks_and_weights(name, form):
    chunks = CHUNKS["cut groups"]
    mask, weights = RNG.random(SHAPE) < 0.7, RNG.random(SHAPE)
    mask[0] = False  # a chunk in which nothing counts
    if form == "fewer axes":
        mask, weights = mask[1, :, :1], weights[1, :, :1]
    given = [lazy(one, chunks) if form == "Dask" else one for one in (mask, weights)]
    layer, x = made(name, unbiased=False), lazy(X, chunks)
    close(layer(x, mask=given[0]).compute(scheduler="sync"), layer(X, mask=mask))
    assert np.array_equal(layer.measure(x, given[0]).count, layer.measure(X, mask).count)
    data = [made(name, statistics="dataset") for _ in range(2)]
    found, expected = data[0].adapt(x, mask=given[0], weights=given[1]), data[1].adapt(X, mask=mask, weights=weights)
    close(found.moments.count, expected.moments.count)
    close(found.moments.m2, expected.moments.m2)


@pytest.mark.parametrize("statistics", ["moving", "dataset"])
def test_held_and_given_moments_and_one_example(statistics):
    layer = made("batch norm", statistics=statistics)
    layer.moments = gn.Moments.from_variance(np.arange(12.0), np.arange(1.0, 13.0))
    x = lazy(X, CHUNKS["cut groups"])
    close(layer(x).compute(scheduler="sync"), layer(X))
    close(layer.inverse(x).compute(scheduler="sync"), layer.inverse(X))
    pair = (np.zeros((12,)), np.full((), 4.0))
    close(layer(x, moments=pair).compute(scheduler="sync"), layer(X, moments=pair))
    if statistics == "dataset":
        one = gn.feature_norm().adapt(X)
        close(one(da.from_array(X[0, 0], chunks=4)).compute(scheduler="sync"), one(X[0, 0]))
        constant = gn.feature_norm(constant="one")
        with pytest.warns(UserWarning, match="6 of 6 slices are constant") as warned:
            constant.adapt(da.full((4, 6), 7.0, chunks=3))
        assert [one.filename for one in warned] == [__file__]
        assert np.array_equal(constant(da.full((4, 6), 9.0, chunks=3)).compute(), np.full((4, 6), 2.0))


@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_dtypes(dtype):
    x = X.astype(dtype)
    layer = gn.NormalizationLayer("{0, 2}", scaling=None, biases=None, batched=True)
    y = layer(lazy(x, CHUNKS["cut groups"]))
    found = y.compute(scheduler="sync")
    assert y.dtype == found.dtype == layer(x).dtype
    close(found, layer(x), 1e-6)


# ------------------------------------------------------------------------------------------------------------- bits


@pytest.mark.parametrize("number", [1, 2, 3, 5, 8, 13])
def test_the_same_chunks_give_the_same_bits(number):
    data = RNG.normal(1e6, 1, (13, 5, 3))
    cuts = np.linspace(0, 13, number + 1).astype(int)
    parts = [data[low:high] for low, high in itertools.pairwise(cuts)]
    expected = gn.feature_norm().adapt(parts).moments
    x = da.concatenate([da.from_array(part, chunks=-1) for part in parts])
    for scheduler in ("sync", "threads"):
        with dask.config.set(scheduler=scheduler):
            assert same(gn.feature_norm().adapt(x).moments, expected)


def test_a_mean_that_is_large_is_exact():
    data = RNG.normal([1e9, -1e6, 0], 1, (4000, 3))
    found = gn.feature_norm().adapt(lazy(data, (37, 2))).moments
    expected = gn.feature_norm().adapt(data).moments
    np.testing.assert_allclose(found.mean, expected.mean, rtol=3e-16)
    np.testing.assert_allclose(found.m2, expected.m2, rtol=32 * 2**-53 + 1e-15)


@pytest.mark.parametrize("scheduler", ["threads", pytest.param("processes", marks=pytest.mark.slow)])
def test_schedulers(scheduler):
    layer, x = made("two groups"), lazy(X, CHUNKS["cut groups"])
    expected = layer(x).compute(scheduler="sync")
    with dask.config.set(scheduler=scheduler, num_workers=2):
        assert np.array_equal(layer(x).compute(), expected)
        assert same(layer.measure(x), layer.measure(x))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_processes_of_distributed():
    distributed = pytest.importorskip("distributed")
    layer, x = made("two groups"), lazy(X, CHUNKS["cut groups"])
    expected, moments = layer(x).compute(scheduler="sync"), layer.measure(x)
    data = gn.feature_norm().adapt(x).moments
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster):
        assert np.array_equal(layer(x).compute(), expected)
        assert same(layer.measure(x), moments)
        assert same(gn.feature_norm().adapt(x).moments, data)


# ------------------------------------------------------------------------------------------------------------ graphs


def counted():
    """An array of eight chunks, and how often each was computed."""
    times = dict.fromkeys(range(8), 0)

    def chunk(block_info=None):
        times[block_info[None]["chunk-location"][0]] += 1
        return np.full((2, 3), block_info[None]["chunk-location"][0], float)

    return da.map_blocks(chunk, chunks=((2,) * 8, (3,)), dtype=float, meta=np.empty((0, 0))), times


def test_a_call_is_lazy_and_computes_a_chunk_once():
    x, times = counted()
    layer = gn.NormalizationLayer(0, scaling=None, biases=None, batched=True)
    y = layer(x)
    z = layer.inverse(y, gn.Moments.from_variance(0.0, 1.0))
    assert sum(times.values()) == 0
    y.compute(scheduler="sync")
    assert set(times.values()) == {1}
    z[:2].compute(scheduler="sync")
    assert set(times.values()) == {2}
    gn.feature_norm().adapt(x)
    assert set(times.values()) == {3}


def test_held_moments_need_no_other_chunk():
    x, times = counted()
    layer = gn.feature_norm(mean=0.0, variance=1.0)
    assert np.array_equal(layer(x)[6:8].compute(scheduler="sync"), np.full((2, 3), 3.0))
    assert [chunk for chunk, number in times.items() if number] == [3]
    rows = gn.NormalizationLayer(1, scaling=None, biases=None, batched=True)
    rows(x)[:2].compute(scheduler="sync")
    assert times[0] == 1
    assert sum(times.values()) == 2


@pytest.mark.parametrize("number", [1, 2, 7, 64])
def test_the_tree_is_flat(number):
    x = da.ones((number * 2, 3), chunks=(2, 3))
    layer = gn.NormalizationLayer(0, scaling=None, biases=None, batched=True)
    own = {name: graph for name, graph in layer(x).dask.layers.items() if name.startswith("gennorm-statistics")}
    ((_, tasks),) = own.items()
    merges = {key: tasks[key] for key in tasks if key[1] == "merge"}
    assert len(merges) == number - 1

    def depth(key):
        return 1 + max(depth(child) for child in merges[key][1:]) if key in merges else 0

    assert max(map(depth, merges), default=0) == (number - 1).bit_length()
    assert len(layer(x).dask.layers) == len(x.dask.layers) + 2
    assert len(pickle.dumps(layer(x).dask)) < 4000 + 1500 * number


def test_names_depend_on_everything():
    layer, x = made("batch norm"), lazy(X, (2, 12, 6))
    names = {layer(x).name, layer(x, mask=X > 3).name, layer(x, mask=X > 4).name, layer(x + 1).name}
    names |= {made("batch norm", epsilon=0.5)(x).name, layer(x, moments=(np.zeros(12), np.ones(12))).name}
    assert layer(x).name in names
    layer.scaling = layer.scaling + 1
    names.add(layer(x).name)
    assert len(names) == 7


def test_an_error_in_a_task_leaves_the_layer_as_it_is():
    layer = gn.feature_norm(mean=np.zeros(6), variance=np.ones(6))
    before, holes = layer.moments, X.copy()
    holes[3, 7, 5] = np.nan
    for keywords in ({"nan": "raise"}, {"weights": -np.ones(6)}):
        with pytest.raises(GennormError, match=r"NaN at \(3, 7, 5\)|at least 0"):
            layer.adapt(lazy(holes, CHUNKS["cut groups"]), **keywords)
        assert layer.moments is before
    assert layer.adapt(lazy(holes, CHUNKS["cut groups"]), nan="omit").moments.count.tolist() == [48] * 5 + [47]
    for keywords in ({"mask": ~np.isnan(holes)}, {"weights": lazy(1.0 - np.isnan(holes), CHUNKS["cut groups"])}):
        found = layer.adapt(lazy(holes, CHUNKS["cut groups"]), nan="raise", **keywords)
        assert found.moments.count.tolist() == [48] * 5 + [47]
    with pytest.warns(RuntimeWarning, match="1 of 6 variances are not finite"):
        layer.adapt(lazy(holes, CHUNKS["cut groups"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert functools.reduce(np.add, [layer.measure(lazy(holes, 3)).count.sum()]) == 24 * 12
