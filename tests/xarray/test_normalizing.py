"""The front for xarray: dimensions, weights, labels, data sets, Dask, and the attributes and encodings of results."""

import warnings

import numpy as np
import pytest

xr = pytest.importorskip("xarray")
pytest.importorskip("dask")

import dask  # noqa: E402

import gennorm as gn  # noqa: E402
import gennorm.xarray as gx  # noqa: E402

pd = pytest.importorskip("pandas")

DAYS = 40


def field(dtype="float64", dims=("time", "lat", "lon"), *, holes=False):
    """Temperatures of some days on a small grid, with the metadata of a real file."""
    rng = np.random.default_rng(5)
    values = rng.normal(280, 5, (DAYS, 4, 3)) + np.linspace(-20, 20, 4)[:, None]
    if holes:
        values[rng.random(values.shape) < 0.2] = np.nan
        values[:, 1, 1] = np.nan
    x = xr.DataArray(
        values.astype(dtype),
        dims=("time", "lat", "lon"),
        coords={
            "time": pd.date_range("2001-01-15", periods=DAYS, freq="9D"),
            "lat": ("lat", np.array([-60.0, -20.0, 20.0, 60.0]), {"units": "degrees_north"}),
            "lon": [0.0, 120.0, 240.0],
            "area": (("lat", "lon"), np.ones((4, 3)), {"units": "m2"}),
        },
        name="t2m",
        attrs={"units": "K", "long_name": "2 metre temperature"},
    )
    x.encoding = {"dtype": "int16", "scale_factor": 0.01, "zlib": True, "_FillValue": -32768, "source": "t2m.nc"}
    x.time.encoding = {"units": "days since 1900-01-01", "calendar": "standard"}
    return x.transpose(*dims)


def expected_moments(x, over, weights=None, omit=False):
    """Count, mean and variance in float64, by their formulas."""
    values = x.astype("float64")
    w = xr.ones_like(values) if weights is None else weights.broadcast_like(values).transpose(*x.dims).astype("float64")
    if omit:
        w = w.where(values.notnull(), 0.0)
        values = values.fillna(0.0)
    count = w.sum(over)
    mean = (w * values).sum(over) / count
    return count, mean, (w * (values - mean) ** 2).sum(over) / count


def check(found, expected, atol=1e-10):
    for moment, values in zip(("count", "mean", "variance"), expected, strict=True):
        one = found.sel(moment=moment)
        np.testing.assert_allclose(one.transpose(*values.dims), values, rtol=1e-10, atol=atol)


WEIGHTS = {
    "none": lambda _: None,
    "cos(lat)": lambda x: np.cos(np.deg2rad(x.lat)),
    "lon and lat": lambda x: (x.area * x.lat**2).transpose("lon", "lat"),
    "time": lambda x: xr.DataArray(np.arange(1.0, DAYS + 1), dims="time", coords={"time": x.time}),
    "all": lambda x: xr.ones_like(x).astype("float64") * (1 + np.arange(3)),
}


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("over", [["time"], ["lat", "lon"], ["lon", "time"], ["time", "lat", "lon"]])
def test_moments(over, weights):
    omit = len(over) != 2
    x = field(holes=omit)
    w = WEIGHTS[weights](x)
    found = gx.measure(x, over, weights=w, nan="omit" if omit else "propagate")
    assert found.dims == (*(dim for dim in x.dims if dim not in over), "moment")
    check(found, expected_moments(x, over, w, omit))


@pytest.mark.parametrize(
    ("dtype", "dims", "spec"),
    [
        ("float64", ("time", "lat", "lon"), "time"),
        ("float32", ("lon", "lat", "time"), "time"),
        ("float16", ("lat", "time", "lon"), "time"),
        ("float32", ("time", "lat", "lon"), ["lat", "lon"]),
        ("int16", ("lat", "time", "lon"), ["lat", "lon"]),
        ("int64", ("lon", "lat", "time"), ["time", "lat", "lon"]),
    ],
)
def test_normalize_and_back(dtype, dims, spec):
    x = field(dtype, dims)
    over = [spec] if isinstance(spec, str) else spec
    moments = gx.measure(x, spec)
    check(moments, expected_moments(x, over))
    y = gx.normalize(x, spec)
    _, mean, variance = expected_moments(x, over)
    assert y.dtype == gn.normalize(x.values, 1).dtype
    assert y.dims == x.dims
    assert y.values.strides == np.empty_like(x.values, y.dtype).strides
    tolerance = {"float64": 1e-10, "float32": 1e-5, "float16": 1e-2, "int16": 1e-5, "int64": 1e-10}[dtype]
    np.testing.assert_allclose(y, ((x - mean) / np.sqrt(variance)).transpose(*x.dims), atol=tolerance, rtol=tolerance)
    np.testing.assert_allclose(gx.inverse(y, moments), x, rtol=2 * tolerance)


def test_the_kernels_of_the_core_compute_it():
    x = field("float32")
    layer = gn.NormalizationLayer(1, scaling=None, biases=None, epsilon=0, input_shape=(None, None, None))
    mean, variance = expected_moments(x, ["time"])[1:]
    expected = layer.apply(x.values, gn.Moments.from_variance(mean.values, variance.values, DAYS))
    np.testing.assert_array_equal(gx.normalize(x, "time"), expected)


@pytest.mark.parametrize(
    ("spec", "over"),
    [
        ("lat;;lon", ["lat", "lon"]),
        ("{time, 3}", ["time", "lon"]),
        (["time", -1], ["time", "lon"]),
        ("All", ["time", "lat", "lon"]),
        (("lon", "lat"), ["lon", "lat"]),
        (2, ["lat"]),
    ],
)
def test_level_specs(spec, over):
    check(gx.measure(field(), spec), expected_moments(field(), over))


def test_a_batch_is_level_0():
    x = field().rename(time="batch")
    check(gx.measure(x, "All"), expected_moments(x, ["lat", "lon"]))
    check(gx.measure(x, "{batch, lon}"), expected_moments(x, ["batch", "lon"]))


@pytest.mark.parametrize(
    ("by", "weights", "over"),
    [
        ("time.month", "none", ["time"]),
        ("time.month", "all", ["lat", "time"]),
        ("half", "time", ["time"]),
        ("half", "cos(lat)", ["lat", "time"]),
        ("array", "all", ["time"]),
        ("array", "none", ["time", "lat", "lon"]),
    ],
)
def test_labels(by, weights, over):
    x = field(holes=True).assign_coords(half=("time", np.where(np.arange(DAYS) % 3, "b", "a")))
    w = WEIGHTS[weights](x)
    given = x.half.drop_vars("half").rename("third") if by == "array" else by
    labels = x["time.month"] if by == "time.month" else x.half if by == "half" else given
    moments = gx.measure(x, over, by=given, weights=w, nan="omit")
    y = gx.normalize(x, over, by=given, weights=w, nan="omit")
    assert moments.dims == (*(dim for dim in x.dims if dim not in over), labels.name, "moment")
    assert moments[labels.name].values.tolist() == sorted({*labels.values.tolist()})
    assert y.dims == x.dims
    for label in moments[labels.name].values:
        part = x.isel(time=np.flatnonzero(labels == label))
        some = None if w is None else w.isel(time=np.flatnonzero(labels == label)) if "time" in w.dims else w
        expected = expected_moments(part, over, some, omit=True)
        check(moments.sel({labels.name: label}), expected)
        _, mean, variance = expected
        # Of one counted element the variance is 0, and the result 0.
        normalized = ((part - mean) / np.sqrt(variance.where(variance > 0, 1))).transpose(*x.dims)
        np.testing.assert_allclose(y.sel(time=part.time), normalized, atol=1e-9)
    back = gx.inverse(y, moments, by=given)
    np.testing.assert_allclose(back, x, rtol=1e-12)


def test_other_dates_by_the_same_labels():
    """The moments of one period normalize another, whose months are in another order."""
    x = field().assign_coords(half=("time", np.arange(DAYS) % 2))
    moments = gx.measure(x.isel(time=slice(0, 20)), "time", by="half")
    later = x.isel(time=[33, 20, 25, 38])
    y = gx.apply(later, moments, by="half")
    for place in range(4):
        one = later.isel(time=place)
        mean, variance = (moments.sel(half=one.half, moment=moment) for moment in ("mean", "variance"))
        np.testing.assert_allclose(y.isel(time=place), (one - mean) / np.sqrt(variance), atol=1e-10)


def test_what_is_never_counted_is_nan():
    x = field(holes=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        moments = gx.measure(x, "time", nan="omit")
        empty = gx.measure(x.where(False), "time", nan="omit")
        filled = gx.apply(x.fillna(280.0), moments)
    assert moments.isel(lat=1, lon=1).sel(moment="count") == 0
    assert np.isnan(moments.isel(lat=1, lon=1).sel(moment=["mean", "variance"])).all()
    assert np.isnan(filled.isel(lat=1, lon=1)).all()
    assert np.isfinite(filled.drop_isel(lat=1)).all()
    assert (empty.sel(moment="count") == 0).all()
    assert np.isnan(empty.sel(moment="mean")).all()


def test_nan_is_propagated_or_refused():
    x = field().copy()
    x[3, 0, 0] = np.nan
    with pytest.warns(RuntimeWarning, match="not finite"):
        moments = gx.measure(x, "time")
    assert np.isnan(moments.sel(moment="mean")).sum() == 1
    with pytest.raises(gn.GennormError, match="NaN"):
        gx.measure(x, "time", nan="raise")


def test_root_mean_square():
    x = field()
    moments = gx.measure(x, ["lat", "lon"], method="RMS", weights=np.cos(np.deg2rad(x.lat)))
    assert moments.moment.values.tolist() == ["count", "mean_square"]
    square = (x**2).weighted(np.cos(np.deg2rad(x.lat))).mean(["lat", "lon"])
    np.testing.assert_allclose(moments.sel(moment="mean_square"), square)
    y = gx.apply(x, moments)
    np.testing.assert_allclose(y, x / np.sqrt(square))
    np.testing.assert_allclose(gx.inverse(y, moments), x)


def test_settings():
    x = field()
    _, mean, variance = expected_moments(x, ["time"])
    unbiased = (x - mean) / np.sqrt(variance * DAYS / (DAYS - 1) + 0.5)
    np.testing.assert_allclose(gx.normalize(x, "time", unbiased=True, epsilon=0.5), unbiased, atol=1e-10)
    floor = (x - mean) / np.maximum(np.sqrt(variance), 6.0)
    np.testing.assert_allclose(gx.normalize(x, "time", epsilon=6.0, epsilon_placement="floor"), floor, atol=1e-10)


@pytest.mark.parametrize("by", [None, "time.month"])
def test_what_is_kept_of_an_array(by):
    x = field("float32")
    for y in (gx.normalize(x, "time", by=by), gx.inverse(x, gx.measure(x, "time", by=by), by=by)):
        assert y.name == "t2m"
        assert y.attrs == x.attrs
        xr.testing.assert_identical(y.coords.to_dataset(), x.coords.to_dataset())
        assert y.time.encoding == x.time.encoding
        assert y.lat.attrs == {"units": "degrees_north"}
        assert y.encoding == {"zlib": True, "source": "t2m.nc"}
    moments = gx.measure(x, "time", by=by)
    assert moments.attrs == x.attrs
    assert moments.name == "t2m"
    xr.testing.assert_identical(moments.area.variable, x.area.variable)
    assert x.encoding["scale_factor"] == 0.01  # the array itself is as it was


def test_a_data_set_goes_variable_by_variable():
    x = field("float32")
    data = xr.Dataset(
        {"t2m": x, "tp": abs(x - 280), "mask": (("lat", "lon"), np.ones((4, 3))), "model": ("time", ["x"] * DAYS)},
        attrs={"title": "test"},
    )
    moments = gx.measure(data, "time", by="time.month")
    assert [*moments.data_vars] == ["t2m", "tp"]
    y = gx.normalize(data, "time", by="time.month")
    assert y.attrs == moments.attrs == data.attrs
    for name in ("t2m", "tp"):
        xr.testing.assert_identical(y[name], gx.normalize(data[name], "time", by="time.month"))
        xr.testing.assert_identical(moments[name], gx.measure(data[name], "time", by="time.month"))
    for name in ("mask", "model"):
        xr.testing.assert_identical(y[name], data[name])
    xr.testing.assert_allclose(gx.inverse(y, moments, by="time.month"), data, rtol=1e-4)
    assert [*gx.measure(data, ["lat", "lon"])] == ["t2m", "tp", "mask"]


def test_moments_are_saved_by_xarray(tmp_path):
    moments = gx.measure(field(), "time", by="time.month")
    stored = xr.Dataset.from_dict(moments.to_dataset(name="t2m").to_dict()).t2m
    xr.testing.assert_identical(gx.apply(field(), stored, by="time.month"), gx.apply(field(), moments, by="time.month"))


def never(*_):
    pytest.fail("computed")


@pytest.mark.parametrize(("by", "weights"), [(None, "cos(lat)"), (None, "all"), ("half", "none"), ("half", "all")])
def test_dask_arrays_stay_lazy(by, weights):
    x = field("float32", holes=True).assign_coords(half=("time", np.arange(DAYS) % 2))
    w = WEIGHTS[weights](x)
    lazy = x.chunk({"time": -1, "lat": 3, "lon": 2}).assign_coords(half=x.half)  # labels are needed at once
    with dask.config.set(scheduler=never):
        moments = gx.measure(lazy, "time", by=by, weights=w, nan="omit")
        y = gx.apply(lazy, moments, by=by)
        back = gx.inverse(y, moments, by=by)
    assert y.chunksizes == lazy.chunksizes
    with dask.config.set(scheduler="synchronous"):
        known = gx.measure(x, "time", by=by, weights=w, nan="omit")
        xr.testing.assert_allclose(moments.compute(), known, rtol=1e-13)
        xr.testing.assert_allclose(y.compute(), gx.apply(x, known, by=by), rtol=1e-6, atol=1e-6)
        assert y.attrs == x.attrs
        np.testing.assert_allclose(back, x, rtol=1e-6)
        if by is None:
            np.testing.assert_array_equal(gx.apply(x.chunk(time=7), known), gx.apply(x, known))


def test_moments_of_every_element():
    x = field()
    own = gx.measure(x, "time").sel(moment=["count", "mean", "variance"]).expand_dims(time=x.time)
    np.testing.assert_allclose(gx.apply(x, own), gx.normalize(x, "time"), atol=1e-12)
