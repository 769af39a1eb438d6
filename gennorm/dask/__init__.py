"""Layers for arrays of Dask: every chunk is measured and normalized where it is, and the moments of chunks are merged.

The methods of a layer take such arrays themselves, and this module is where they go:

>>> import dask.array as da
>>> import gennorm as gn
>>> x = da.random.default_rng(0).normal(7, 2, (1000, 4), chunks=(300, 3))
>>> layer = gn.feature_norm().adapt(x)
>>> layer.moments.count.tolist()
[1000.0, 1000.0, 1000.0, 1000.0]
>>> y = layer(x)
>>> y
dask.array<gennorm-normalize, shape=(1000, 4), dtype=float64, chunksize=(300, 3), chunktype=numpy.ndarray>
>>> bool(abs(y.mean().compute()) < 1e-12)
True

The modules, from the inside out: `parts` computes what belongs to one chunk, with NumPy; `graphs` builds the graphs;
`layers` has the functions that the layer's methods call.
"""

from gennorm.dask.layers import apply, call, inverse, measure, moments_of

__all__ = ["apply", "call", "inverse", "measure", "moments_of"]
