"""The exact derivatives by the definition, and bounds of their rounding errors.

Let u be half the distance of 1 to the next number of the arithmetic. The kernel takes ``x - c``, c being the rounded
mean, and multiplies, so a term of a sum is off by 4u of itself at the most, and so is each of the three summands of the
input's gradient; a factor of a slice is rounded once more, and the parameters' gradients may gather 32 terms in the
arithmetic before they are added up in float64. The moments of halves are off by 376u and 64u, as `accuracy` has it. So
the error is at most a few dozen u, or of halves 440 more, of the same expression taken in
absolute values, all summands positive, with |z| + deviation in place of z for what rounding the mean takes away.
"""

from typing import NamedTuple

import numpy as np

from spec import reference
from tests.strategies import RESULTS

U = {"float16": 2.0**-24, "bfloat16": 2.0**-24, "float32": 2.0**-24, "float64": 2.0**-53}
STORED = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
LEAST = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "float64": 2.0**-1074}
NAMES = ("aggregation_levels", "scaling_levels", "group_number", "method", "unbiased", "epsilon")
DEFAULTS = ("2;;All", "Complement", None, "Standardize", False, 1e-3)


class Slices(NamedTuple):
    """The statistics of an array by the reference, and its scaling and mask broadcast to its shape."""

    s: reference.Statistics
    z: np.ndarray
    scaling: np.ndarray
    count: np.ndarray

    @classmethod
    def of(cls, x, settings, scaling=None, mask=None, mean=None, variance=None):
        first = [settings.get(name, default) for name, default in zip(NAMES, DEFAULTS, strict=True)]
        batched = settings.get("batched", False)
        placement = settings.get("epsilon_placement", "inside")
        s = reference._statistics(x, *first, batched, placement, mask, mean, variance)
        count = s.where.over_slices(np.maximum(s.where.total(s.counted), 1.0))
        gain = 1.0 if scaling is None else s.where.over_levels(np.asarray(scaling, np.float64), batched)
        return cls(s, x - s.mean, np.broadcast_to(gain, x.shape), count)

    def total(self, values):
        return self.s.where.over_slices(self.s.where.total(values))


def tangent(x, t, settings, scaling=None, mask=None, **given):
    """The derivative of the output along a direction: the chain rule through mean and variance, forwards."""
    x, t = np.asarray(x, np.float64), np.asarray(t, np.float64)
    with np.errstate(all="ignore"):
        at = Slices.of(x, settings, scaling, mask, **given)
        s = at.s
        to_mean = to_variance = 0.0
        if s.degrees is not None:
            counted = np.where(s.counted == 1, t, 0.0)
            if settings.get("method", "Standardize") == "Standardize":
                to_mean = at.total(counted) / at.count
            to_variance = 2 * at.total(counted * np.where(s.counted == 1, at.z, 0.0)) / s.degrees
        return at.scaling * ((t - to_mean) * s.factor + at.z * s.slope * to_variance)


def bounds(x, dy, settings, scaling=None, biases=None, mask=None, result="float64", **given):
    """The largest errors of the gradients of input, scaling and biases, and of a derivative along `dy`."""
    u = U[result]
    x, dy = np.asarray(x, np.float64), np.abs(np.asarray(dy, np.float64))
    at = Slices.of(x, settings, scaling, mask, **given)
    s = at.s
    n = float(np.max(at.count, initial=1.0))
    steps = 32 + 2 * n * 2.0**-53 / u + 440 * (result in ("float16", "bfloat16"))
    far = np.sqrt(s.variance) + 4 * np.abs(s.mean) * 2.0**-53 / u
    z, factor, slope = np.abs(at.z) + far, np.abs(s.factor), np.abs(s.slope)
    g = dy * np.abs(at.scaling)
    of_input, of_tangent = g * factor, dy * factor
    if s.degrees is not None:
        of_input = of_input + at.total(g) * factor / at.count + at.total(g * z) * slope * 2 * z / s.degrees
        counted = dy * s.counted
        of_tangent = of_tangent + at.total(counted) * factor / at.count
        of_tangent = of_tangent + at.total(counted * z) * slope * 2 * z / s.degrees
    rounded = {}
    if scaling is not None:
        rounded["scaling"] = s.where.summed_like(dy * z * factor, np.asarray(scaling))
    if biases is not None:
        rounded["biases"] = s.where.summed_like(dy, np.asarray(biases))
    rounded["input"] = of_input
    rounded["tangent"] = of_tangent * np.abs(at.scaling)
    return {name: steps * u * value for name, value in rounded.items()}


def close(found, exact, bound, what):
    """Assert that a derivative is within its bound, once it has been rounded to its dtype.

    Rounding keeps the order of numbers, and what is too large for the dtype becomes infinite: a derivative within its
    bound lies between the rounded ends of the bound.
    """
    assert found.shape == exact.shape, what
    stored = found.dtype.name
    with np.errstate(all="ignore"):
        room = bound + 2 * STORED[stored] * np.abs(exact) + 2 * LEAST[stored]
        low, high = ((exact + side).astype(found.dtype).astype(np.float64) for side in (-room, room))
        found = found.astype(np.float64)
        right = ((low <= found) & (found <= high)) | (np.isnan(exact) & np.isnan(found)) | (exact == found)
    if not np.all(right):
        off = np.where(right, 0.0, np.nan_to_num(np.abs(found - exact) / room, nan=np.inf))
        worst = tuple(int(i) for i in np.unravel_index(np.argmax(off), off.shape))
        msg = f"{what}: {np.sum(~right)} of {right.size} are off; at {worst} {found[worst]!r} instead of "
        msg += f"{exact[worst]!r}, {off[worst]:.3g} times the bound"
        raise AssertionError(msg)


def judge(found, x, dy, settings, scaling=None, biases=None, mask=None, **given):
    """Assert that gradients are those of the reference, and None where the parameter is None."""
    result = RESULTS[x.dtype.newbyteorder("=").name]
    x, dy = x.astype(np.float64), np.asarray(dy).astype(np.float64)
    others = {"scaling": scaling, "biases": biases, "mask": mask, **given}
    exact = dict(zip(("input", "scaling", "biases"), reference.vjp(x, dy, **settings, **others), strict=True))
    room = bounds(x, dy, settings, result=result, **others)
    for name, value in exact.items():
        if value is None:
            assert getattr(found, name) is None, name
        else:
            close(getattr(found, name), value, room[name], name)


def judge_tangent(found, x, t, settings, scaling=None, mask=None, **given):
    """Assert that a derivative along a direction is that of the reference."""
    result = RESULTS[x.dtype.newbyteorder("=").name]
    x, t = x.astype(np.float64), np.asarray(t).astype(np.float64)
    room = bounds(x, t, settings, scaling, mask=mask, result=result, **given)["tangent"]
    close(found, tangent(x, t, settings, scaling, mask, **given), room, "derivative along a direction")
