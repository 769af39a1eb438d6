"""Kernels that are there before the first call that needs them: for services, and for the images of containers."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from gennorm.engine import built, prepare_threads
from gennorm.layer import NormalizationLayer
from gennorm.layer.arrays import dtype_given, dtype_name, real, result_dtype, shape_of

__all__ = ["Precompiled", "precompile"]


@dataclass(frozen=True, slots=True)
class Precompiled:
    """What there was to do before the first call. Print it.

    Attributes
    ----------
    compiled : tuple of str
        The kernels that were compiled, each with its settings and dtypes.
    loaded : tuple of str
        Those that were found compiled, in the cache on disk.
    seconds : float
        How long all of it took, Numba's own import included.

    Examples
    --------
    >>> print(Precompiled(("rows.forward of float32 (apply, measure), 0.81 s",), (), 0.93))
    compiled rows.forward of float32 (apply, measure), 0.81 s
    0.93 s
    """

    compiled: tuple[str, ...]
    loaded: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        """Return a line for each kernel, and the time."""
        lines = [f"compiled {name}" for name in self.compiled] + [f"loaded   {name}" for name in self.loaded]
        return "\n".join([*lines, f"{self.seconds:.2f} s"])


def precompile(
    layer: NormalizationLayer,
    shape_or_array: Any,
    dtype: Any = None,
    *,
    training: bool = False,
    gradients: bool = False,
) -> Precompiled:
    """Have everything compiled that calls of a layer on such arrays will need, so that the first of them does not wait.

    The calls are made, on a copy of the layer: afterwards the layer is what it was, the kernels are in this process,
    and in the cache on disk, where the next process finds them. Kernels belong to a memory layout, a dtype and settings
    of a layer, and hardly to a shape: whatever has the same `NormalizationLayer.plan`, but for its sizes, is ready too.
    So is what the threads need that share large calls, if there is to be more than one.

    Parameters
    ----------
    layer : NormalizationLayer
        Where the layer knows no parameters yet, it is taken as if it was initialized for this shape.
    shape_or_array : tuple of int or ndarray
        A shape, taken in C order, or an array, whose layout and dtype count. As much memory is needed as for a call.
    dtype : dtype, optional
        For a shape; float32 if not given.
    training : bool, default False
        Whether the layer will learn too: by calls with ``training=True`` or, from a data set, by `adapt`.
    gradients : bool, default False
        Whether gradients will be asked for, by `NormalizationLayer.vjp` and its pullback.

    Returns
    -------
    Precompiled
        What was compiled and what was only loaded; nothing where all of it was there.

    Raises
    ------
    GennormError
        As a call of the layer on such an array.

    Examples
    --------
    >>> import gennorm as gn
    >>> layer = gn.layer_norm(768)
    >>> done = gn.precompile(layer, (1, 768), gradients=True)
    >>> again = gn.precompile(layer, (1, 768), gradients=True)
    >>> again.compiled, again.loaded
    ((), ())
    """
    begin, before = time.perf_counter(), len(built())
    if isinstance(shape_or_array, np.ndarray):
        x = real(shape_or_array, "the input")
    else:
        wanted = dtype_given("float32" if dtype is None else dtype)
        dtype_name(wanted)
        x = np.zeros(shape_of(shape_or_array), wanted)
    stand_in = copy.copy(layer)
    stand_in.initialize(x.shape)
    with np.errstate(all="ignore"):
        of_data = stand_in.information("statistics") == "dataset"
        if of_data and (training or stand_in.moments is None):
            stand_in.adapt(x, reset=False, progress=False)
        stand_in(x)
        if training and of_data:  # once more: now there are moments to which the data are added
            stand_in.adapt(x, reset=False, progress=False)
        elif training:
            stand_in(x, training=True)
        if gradients:
            y, pullback = stand_in.vjp(x, training=training)
            pullback(np.zeros_like(y, result_dtype(x.dtype)))
    prepare_threads()
    found = built()[before:]
    compiled, loaded = (tuple(str(one) for one in found if one.compiled is new) for new in (True, False))
    return Precompiled(compiled, loaded, time.perf_counter() - begin)
