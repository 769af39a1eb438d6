"""Moments of xarray's arrays, and normalization by them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import xarray as xr

from gennorm.errors import ConfigError, InputError, ParameterError, ShapeError, shown, suggest
from gennorm.layer.arrays import result_dtype
from gennorm.xarray.blocks import MOMENTS, inverted, measured, normalized
from gennorm.xarray.naming import dimensions, labels_of, quoted

__all__ = ["apply", "inverse", "measure", "normalize"]

Data = TypeVar("Data", xr.DataArray, xr.Dataset)

MOMENT = "moment"
PACKING = ("dtype", "scale_factor", "add_offset", "_FillValue", "missing_value")
SETTINGS = ("epsilon", "epsilon_placement", "unbiased")
NAN = ("propagate", "omit", "raise")


def measure(
    x: Data,
    aggregation_levels: Any,
    *,
    by: str | xr.DataArray | None = None,
    weights: xr.DataArray | None = None,
    nan: Literal["propagate", "omit", "raise"] = "propagate",
    method: Literal["Standardize", "RMS"] = "Standardize",
) -> Data:
    r"""Return the moments of the slices of an array, or of each variable of a data set.

    .. math:: \mu = \frac{\sum w x}{\sum w}, \qquad \sigma^2 = \frac{\sum w (x - \mu)^2}{\sum w}

    They are computed in float64, in one pass, by `gennorm.NormalizationLayer.adapt`.

    Parameters
    ----------
    x : DataArray or Dataset
        Real numbers. Dask arrays stay lazy; along an aggregated dimension they have one chunk.
    aggregation_levels : str or sequence of str
        The dimensions to aggregate: ``"time"``, ``["lat", "lon"]``, or any level spec with their names.
    by : str or DataArray, optional
        Labels of the positions along an aggregated dimension, such as ``"time.month"``: the moments are those of each
        label, and have a dimension for them.
    weights : DataArray, optional
        Weights with dimensions of `x`, finite and at least 0: ``np.cos(np.deg2rad(x.lat))``.
    nan : {"propagate", "omit", "raise"}
        Whether NaN make the moments of their slice NaN, are ignored, or are an error.
    method : {"Standardize", "RMS"}
        "RMS" measures the mean square.

    Returns
    -------
    DataArray or Dataset
        The kept dimensions, the labels, and a dimension "moment" with the coordinates "count", "mean" and "variance",
        or "count" and "mean_square". A slice without a counted element has count 0 and NaN. A data set has the
        variables that are numbers and have an aggregated dimension.

    Raises
    ------
    InputError
        `x` or `weights` are not of xarray, or a Dask array has more than one chunk along an aggregated dimension.
    ShapeError
        A dimension does not exist; weights or labels do not fit.
    GennormError
        As `gennorm.NormalizationLayer.adapt`.

    Examples
    --------
    >>> t = xr.DataArray([[1.0, 2.0], [3.0, 6.0], [5.0, np.nan]], dims=("time", "lat"), coords={"lat": [0, 60]})
    >>> measure(t, "time", nan="omit").sel(moment="mean").values
    array([3., 4.])
    >>> measure(t, "lat", weights=np.cos(np.deg2rad(t.lat)), nan="omit").sel(moment="mean").round(2).values
    array([1.33, 4.  , 5.  ])
    """
    if not isinstance(nan, str) or nan not in NAN:
        msg = f'nan cannot be {shown(nan)}{suggest(nan, NAN)}\nwrite "propagate", "omit" or "raise"'
        raise ConfigError(msg, code="X020")
    if not isinstance(method, str) or method not in MOMENTS:
        msg = f'method cannot be {shown(method)}{suggest(method, MOMENTS)}\nwrite "Standardize" or "RMS"'
        raise ConfigError(msg, code="X021")
    if weights is not None and not isinstance(weights, xr.DataArray):
        msg = f"weights cannot be {shown(weights)}\npass a DataArray, whose dimensions say what the weights belong to"
        raise InputError(msg, code="X022")

    def one(array: xr.DataArray, over: tuple[Hashable, ...]) -> xr.DataArray:
        return _measure(array, over, by, weights, {"nan": nan, "method": method})

    return _each(x, one, aggregation_levels, keep=False)


def _measure(
    x: xr.DataArray, over: tuple[Hashable, ...], by: Any, weights: xr.DataArray | None, how: dict[str, Any]
) -> xr.DataArray:
    codes = None
    coordinates: dict[Hashable, Any] = {MOMENT: [*MOMENTS[how["method"]]]}
    if by is not None:
        labels = labels_of(by, x)
        if labels.dim not in over:
            msg = f'the labels belong to "{labels.dim}", which is not aggregated\n'
            msg += f"the aggregated dimensions are {quoted(over)}: aggregate it too"
            raise ShapeError(msg, code="X014")
        over = (labels.dim, *(dim for dim in over if dim != labels.dim))
        index, codes = np.unique(labels.values, return_inverse=True)
        coordinates = {labels.name: index, **coordinates}
    _require_one_chunk(x, over)
    arrays, cores = [x], [[*over]]
    weighted: tuple[int, ...] = ()
    if weights is not None:
        unknown = [dim for dim in weights.dims if dim not in x.dims]
        if unknown:
            msg = f"the weights have the dimension {quoted(unknown[:1])}, and the array {quoted(x.dims)}\n"
            msg += "weights have dimensions of the array"
            raise ShapeError(msg, code="X023")
        _require_same_coordinates(x, weights, "the weights", over=())
        weighted = tuple(place for place, dim in enumerate(over) if dim in weights.dims)
        arrays.append(weights.drop_vars([*weights.coords]))
        cores.append([over[place] for place in weighted])
    found: xr.DataArray = xr.apply_ufunc(
        measured,
        *arrays,
        input_core_dims=cores,
        output_core_dims=[[*coordinates]],
        kwargs={"aggregated": len(over), "weighted": weighted, "codes": codes, **how},
        keep_attrs=True,
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {dim: len(values) for dim, values in coordinates.items()}},
    )
    return found.assign_coords(coordinates)


def apply(
    x: Data,
    moments: Data,
    *,
    by: str | xr.DataArray | None = None,
    epsilon: float = 0.0,
    **settings: Any,
) -> Data:
    r"""Normalize an array by moments, or each variable of a data set by its own.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}}

    Parameters
    ----------
    x : DataArray or Dataset
        Real numbers. Dask arrays stay lazy; with `by` they have one chunk along the dimension of the labels.
    moments : DataArray or Dataset
        What `measure` returned; they are broadcast by the names of their dimensions.
    by : str or DataArray, optional
        The labels of the positions, as for `measure`: every position is normalized by the moments of its label.
    epsilon : float, default 0
        Added to the variance. Where the divisor is 0, the result is 0.
    **settings
        `epsilon_placement` and `unbiased`, as for `gennorm.NormalizationLayer`.

    Returns
    -------
    DataArray or Dataset
        With the dimensions, coordinates and attributes of `x`, and its encoding but for the packing to integers. A
        variable without moments is as it was.

    Raises
    ------
    InputError, ShapeError
        As `measure`; or the moments have other coordinates than the array.
    ParameterError
        The moments are not those of `measure`; a label has no moments.

    Examples
    --------
    >>> t = xr.DataArray([1.0, 2.0, 3.0, 6.0], dims="time", coords={"half": ("time", [1, 1, 2, 2])})
    >>> apply(t, measure(t, "time")).round(2).values
    array([-1.07, -0.53,  0.  ,  1.6 ])
    >>> apply(t, measure(t, "time", by="half"), by="half").values
    array([-1.,  1., -1.,  1.])
    """
    return _by_moments(x, moments, by, normalized, {"epsilon": epsilon, **settings})


def inverse(
    y: Data,
    moments: Data,
    *,
    by: str | xr.DataArray | None = None,
    epsilon: float = 0.0,
    **settings: Any,
) -> Data:
    r"""Return the array that `apply` normalizes to this one.

    .. math:: x = y \sqrt{\sigma^2 + \epsilon} + \mu

    Parameters
    ----------
    y : DataArray or Dataset
    moments : DataArray or Dataset
    by : str or DataArray, optional
    epsilon : float, default 0
    **settings
        All as for `apply`.

    Returns
    -------
    DataArray or Dataset

    Raises
    ------
    GennormError
        As `apply`.

    Examples
    --------
    >>> t = xr.DataArray([1.0, 2.0, 3.0, 6.0], dims="time")
    >>> moments = measure(t, "time")
    >>> inverse(apply(t, moments), moments).values
    array([1., 2., 3., 6.])
    """
    return _by_moments(y, moments, by, inverted, {"epsilon": epsilon, **settings})


def normalize(
    x: Data,
    aggregation_levels: Any,
    *,
    by: str | xr.DataArray | None = None,
    weights: xr.DataArray | None = None,
    nan: Literal["propagate", "omit", "raise"] = "propagate",
    method: Literal["Standardize", "RMS"] = "Standardize",
    epsilon: float = 0.0,
    **settings: Any,
) -> Data:
    """Normalize an array by its own moments: `apply` by what `measure` returns.

    Parameters
    ----------
    x, aggregation_levels, by, weights, nan, method
        As for `measure`.
    epsilon, **settings
        As for `apply`.

    Returns
    -------
    DataArray or Dataset

    Raises
    ------
    GennormError
        As `measure` and `apply`.

    Examples
    --------
    >>> t = xr.DataArray([[1.0, 2.0, 3.0], [4.0, 4.0, 7.0]], dims=("time", "lat"))
    >>> normalize(t, "lat").round(2).values
    array([[-1.22,  0.  ,  1.22],
           [-0.71, -0.71,  1.41]])
    """
    moments = measure(x, aggregation_levels, by=by, weights=weights, nan=nan, method=method)
    return apply(x, moments, by=by, epsilon=epsilon, **settings)


def _by_moments(x: Data, moments: Data, by: Any, function: Callable[..., Any], settings: dict[str, Any]) -> Data:
    for setting in settings:
        if setting not in SETTINGS:
            msg = f"unknown argument {shown(setting)}{suggest(setting, SETTINGS)}\nthe settings are {quoted(SETTINGS)}"
            raise ConfigError(msg, code="X024")
    if isinstance(x, xr.Dataset) != isinstance(moments, xr.Dataset):
        kinds = type(x).__name__, type(moments).__name__
        msg = f"the array is a {kinds[0]}, and the moments are a {kinds[1]}\n"
        msg += "pass the moments that measure(...) returned for an array of the same kind"
        raise InputError(msg, code="X025")

    def one(array: xr.DataArray, _: Any) -> xr.DataArray:
        own = moments if isinstance(moments, xr.DataArray) else moments[array.name]
        return _apply(array, own, by, function, settings)

    return _each(x, one, None, keep=True, only=[*moments.data_vars] if isinstance(moments, xr.Dataset) else None)


def _apply(
    x: xr.DataArray, moments: xr.DataArray, by: Any, function: Callable[..., Any], settings: dict[str, Any]
) -> xr.DataArray:
    words = tuple(moments[MOMENT].values.tolist()) if MOMENT in moments.coords else ()
    if words not in MOMENTS.values():
        msg = f'the moments have no dimension "{MOMENT}" with count, mean and variance\n'
        msg += "pass what measure(...) returned, with all of its moments"
        raise ParameterError(msg, code="X026")
    codes = None
    cores: tuple[list[Hashable], list[Hashable]] = [], [MOMENT]
    if by is not None:
        labels = labels_of(by, x)
        if labels.name not in moments.dims:
            msg = f'the moments have no dimension "{labels.name}" for the labels\n'
            msg += f"their dimensions are {quoted(moments.dims)}: measure them with the same by"
            raise ParameterError(msg, code="X027")
        index = moments.get_index(labels.name)
        codes = index.get_indexer(labels.values)
        if (codes < 0).any():
            unseen = labels.values[np.flatnonzero(codes < 0)[0]]
            msg = f'there are no moments for the label {unseen} of "{labels.name}"\n'
            msg += (
                f"the labels of the moments are {', '.join(map(str, index[:12]))}{', ...' if len(index) > 12 else ''}"
            )
            raise ParameterError(msg, code="X028")
        cores = ([labels.dim], [labels.name, MOMENT])
        _require_one_chunk(x, (labels.dim,))
        moments = moments.chunk({labels.name: -1}) if moments.chunks else moments
    strange = [dim for dim in moments.dims if dim not in {*x.dims, *cores[1]}]
    if strange:
        msg = f"the moments have the dimension {quoted(strange[:1])}, and the array {quoted(x.dims)}\n"
        msg += 'pass the array that they belong to, or the labels, such as by="time.month"'
        raise ShapeError(msg, code="X029")
    _require_same_coordinates(x, moments, "the moments", over=cores[1])
    y: xr.DataArray = xr.apply_ufunc(
        function,
        x,
        moments.drop_vars([*moments.coords]),
        input_core_dims=[*cores],
        output_core_dims=[cores[0]],
        kwargs={"codes": codes, **settings},
        keep_attrs="override",
        dask="parallelized",
        output_dtypes=[result_dtype(x.dtype)],
    )
    y = y.transpose(*x.dims).assign_coords(x.coords)
    y.encoding = {key: value for key, value in x.encoding.items() if key not in PACKING}
    return y


def _each(
    x: Data, one: Callable[..., xr.DataArray], spec: Any, *, keep: bool, only: Sequence[Hashable] | None = None
) -> Data:
    """Call a function with an array, or with each variable of a data set that has numbers and an aggregated level."""
    if isinstance(x, xr.DataArray):
        return one(x, None if spec is None else dimensions(spec, x, x.dims))
    if not isinstance(x, xr.Dataset):
        msg = (
            f"x cannot be {shown(x)}\npass a DataArray or a Dataset; gennorm itself has the functions for NumPy arrays"
        )
        raise InputError(msg, code="X030")
    found = {}
    for name, array in x.data_vars.items():
        over = None if spec is None else dimensions(spec, array, [*x.dims])
        used = name in only if only is not None else bool(over)
        if used and array.dtype.kind in "fiub":
            found[name] = one(array, over)
        elif keep:
            found[name] = array
    return xr.Dataset(found, attrs=x.attrs) if not keep else x.assign(found)


def _require_one_chunk(x: xr.DataArray, dims: Sequence[Hashable]) -> None:
    for dim in dims:
        chunks = x.chunksizes.get(dim, ())
        if len(chunks) > 1:
            msg = f'the Dask array has {len(chunks)} chunks along "{dim}", which is aggregated or has labels\n'
            msg += f"write x.chunk({{{dim!r}: -1}}) for one chunk; other dimensions may be cut anywhere"
            raise InputError(msg, code="X031")


def _require_same_coordinates(x: xr.DataArray, other: xr.DataArray, what: str, over: Sequence[Hashable]) -> None:
    for dim in other.dims:
        if dim in over:
            continue
        if other.sizes[dim] != x.sizes[dim]:
            msg = f'{what} have the size {other.sizes[dim]} along "{dim}", and the array {x.sizes[dim]}\n'
            msg += "pass those that belong to the array"
            raise ShapeError(msg, code="X032")
        if dim in x.indexes and dim in other.indexes and not x.indexes[dim].equals(other.indexes[dim]):
            msg = f'{what} have other coordinates along "{dim}" than the array\n'
            msg += "select or interpolate them to those of the array"
            raise ShapeError(msg, code="X033")
