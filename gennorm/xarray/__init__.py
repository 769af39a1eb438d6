"""Normalization of xarray's arrays and data sets: levels by dimension name, weights and labels by coordinate.

>>> import numpy as np
>>> import xarray as xr
>>> import gennorm.xarray as gx
>>> t = xr.DataArray([[1.0, 2.0], [3.0, 6.0]], dims=("time", "lat"), coords={"lat": [10, 20]})
>>> moments = gx.measure(t, "time")
>>> gx.apply(t, moments).values
array([[-1., -1.],
       [ 1.,  1.]])

`naming` finds the dimensions of level specs; `blocks` has the functions of NumPy arrays, which xarray calls with the
blocks of an array; `normalizing` has the public functions.
"""

from gennorm.errors import GennormError

try:
    import xarray as _  # noqa: F401
except ImportError:
    _msg = "gennorm.xarray needs xarray, which is not installed\npip install 'gennorm[xarray]'"
    raise GennormError(_msg, code="X001") from None

from gennorm.xarray.normalizing import apply, inverse, measure, normalize

__all__ = ["apply", "inverse", "measure", "normalize"]
