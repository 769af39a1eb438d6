"""The right values: the definition in NumPy, and how far other values are from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gennorm.bench.cases import Array, Arrays, Case, Work

__all__ = ["TOLERANCE", "compute", "distance", "expected"]

# The allowed error, relative to the largest value. All libraries round to the dtype, and most also add up hundreds of
# thousands of elements in it.
TOLERANCE = {"float64": 1e-9, "float32": 2e-4, "float16": 1e-2, "bfloat16": 5e-2}
SUMS = ("gradient of scaling", "gradient of biases")
BLOCK = 1 << 18  # elements: NumPy's temporary arrays of this size stay in the cache


def compute(case: Case, arrays: Arrays, arithmetic: npt.DTypeLike) -> dict[str, Array]:
    """The output, and in training its gradients, in plain NumPy."""
    sizes, axes = case.split
    x = arrays.x.astype(arithmetic, copy=False).reshape(sizes)
    scaling, biases, mean, variance = (
        array.astype(arithmetic, copy=False).reshape(case.broadcast)
        for array in (arrays.scaling, arrays.biases, arrays.mean, arrays.variance)
    )
    if case.work is Work.ADAPT:
        return {"mean": x.mean(axes), "variance": x.var(axes)}
    if case.given:
        factor = 1 / np.sqrt(variance + case.epsilon)
        z = ((x - mean) * factor).reshape(case.shape)
        return {"output": z if case.norm == "feature" else z * scaling + biases}
    centred = x if case.norm == "RMS" else x - x.mean(axes, keepdims=True)
    factor = 1 / np.sqrt(np.mean(centred * centred, axes, keepdims=True) + case.epsilon)
    z = (centred * factor).reshape(case.shape)
    y = z * scaling + biases if case.biased else z * scaling
    if not case.derived:
        return {"output": y}
    dy = arrays.dy.astype(arithmetic, copy=False)
    others = tuple(axis for axis in range(len(case.shape)) if axis not in case.scaled)
    found = {"output": y, "gradient of scaling": (dy * z).sum(others)}
    if case.biased:
        found["gradient of biases"] = dy.sum(others)
    dz, z = (dy * scaling).reshape(sizes), z.reshape(sizes)
    along = z * np.mean(dz * z, axes, keepdims=True)
    if case.norm != "RMS":
        along += dz.mean(axes, keepdims=True)
    return {**found, "gradient of the input": (factor * (dz - along)).reshape(case.shape)}


def expected(case: Case, arrays: Arrays) -> dict[str, Array]:
    """The right values in float64, computed a few examples at a time where examples do not depend on each other."""
    step = len(arrays.x) if 0 in case.aggregated else max(1, BLOCK * len(arrays.x) // arrays.x.size)
    starts = range(0, len(arrays.x), step)
    parts = []
    for lo in starts:
        some = arrays.examples(lo, lo + step)
        parts.append(compute(replace(case, shape=some.x.shape), some, np.float64))
    joined = {name: [part[name] for part in parts] for name in parts[0]}
    return {name: np.sum(values, axis=0) if name in SUMS else np.concatenate(values) for name, values in joined.items()}


def distance(case: Case, found: Mapping[str, Any], right: Mapping[str, Array]) -> float:
    """The largest error over the allowed error; infinite where a value is missing or has another shape."""
    worst = 0.0
    for name, value in right.items():
        other = np.asarray(found.get(name))
        if other.shape != value.shape:
            return math.inf
        error = float(np.max(np.abs(other.astype(np.float64, copy=False) - value), initial=0.0))
        share = error / (TOLERANCE[case.dtype] * float(np.max(np.abs(value), initial=1e-300)))
        worst = max(worst, share if math.isfinite(share) else math.inf)
    return worst
