"""How exact an output has to be: a bound that is derived, and the comparison with it.

Let u be half the distance of 1 to the next number of the arithmetic (2**-24, 2**-53), v = 2**-53, n the elements of a
slice, z the standardized element, s and b its scaling and bias, c the mean rounded to the arithmetic and r what that
rounding lost, over the divisor.

The kernel computes ``((x - c) * gain + shift)``, then times s and plus b where they vary inside the loop. No number is
nearer to the mean than c, hence |r| <= |z| and |x - c| / divisor <= 2 |z|. The difference, the gain and the product
are rounded, u each: 6u |sz|. The shift is rounded, u (|sr| + |b|), and so are the sum, the product with s and the sum
with b: at the most 3u |sz| + u |b|. Together **10u |sz| + 2u |b|**.

The moments are sums in float64, by blocks and blocks of blocks: of n elements, 2 sqrt(n) + 300 terms are added one
after another at the most, and no more than n. They are off by m = min(n + 8, 2 sqrt(n) + 300) v of the sum of
magnitudes. One pass is made for float32 where the mean square is at most 1024 variances, so that the mean is off by
32 m deviations and the variance by 1024 m of itself, and otherwise two, by m each. For float64 it is made where the
mean square about some pivot is at most two variances: the mean is then off by sqrt(2) m, the variance by
(2 + 2 sqrt(2)) m of itself. The mean is held in float64: v |mean|. Together **512m |sz| + |s| (33m + 2v |mean| /
divisor)**; for float64 **2.5m |sz| + |s| (1.5m + 2v |mean| / divisor)**.

Halves are summed in float32, 16 terms at the most one after another, where the mean square is at most 16 variances: a
sum is off by 16u of its magnitudes, the mean by 64u deviations, the mean square by 256u variances and the square of the
mean, at most 15 variances, by 496u; the variance by 752u of itself. Together **376u |sz| + 64u |s|** more.

The reference is float64, pairwise sums (25v) of blocks of 128: **v (8 |sz| + 2 |b|) + m |s| + 25v |s mean| / divisor**.
"""

import numpy as np

from spec import reference
from tests.strategies import RESULTS

UNIT = {"float16": 2.0**-24, "bfloat16": 2.0**-24, "float32": 2.0**-24, "float64": 2.0**-53}
LEAST = {"float16": 2.0**-149, "bfloat16": 2.0**-149, "float32": 2.0**-149, "float64": 2.0**-1074}
V = 2.0**-53


def error_bound(scaled, scaling, biases, far, count, result):
    """What an output may be off by; |sz|, |s|, |b| and |mean| / divisor for each element."""
    u, m = UNIT[result], min(count + 8, 2 * np.sqrt(min(count, 2.0**22)) + 300) * V
    of_deviation, of_mean = (2.5, 1.5) if result == "float64" else (512, 33)
    of_moments = of_deviation * m * scaled + scaling * (of_mean * m + 2 * V * far)
    if result in ("float16", "bfloat16"):
        of_moments = of_moments + u * (376 * scaled + 64 * scaling)
    return 10 * u * scaled + 2 * u * biases + of_moments + 4 * LEAST[result]


def expected(x, settings, scaling=None, biases=None):
    """What the reference makes of an array, and what an output may be off by."""
    result = RESULTS[x.dtype.newbyteorder("=").name]
    x = x.astype(np.float64)
    like = {key: settings[key] for key in settings if key in ("scaling_levels", "batched")}
    levels = {
        "aggregation_levels": settings["aggregation_levels"],
        "group_number": settings.get("group_number"),
        **like,
    }

    def over_levels(parameter):
        """A parameter, or 1, repeated to the shape of the array."""
        ones = np.ones(x.shape)
        if parameter is None:
            return ones
        return np.abs(reference.normalize(0 * ones, **levels, biases=np.asarray(parameter, np.float64)))

    with np.errstate(all="ignore"):
        exact = reference.normalize(x, **settings, scaling=scaling, biases=biases)
        scaled = np.abs(reference.normalize(x, **settings, scaling=scaling))
        method = settings.get("method", "Standardize")
        count, mean, m2 = reference.moments(x, **levels, method=method)
        degrees = np.maximum(count - settings.get("unbiased", False), 1)
        centre = 0.0 if mean is None else mean
        far = np.abs(reference.normalize(0 * x, **settings, mean=centre, variance=m2 / degrees))
        s, b = over_levels(scaling), 0.0 if biases is None else over_levels(biases)
        most = float(np.max(count, initial=0.0))
        error = error_bound(scaled, s, b, far, most, result)
        error = error + V * (8 * scaled + 2 * b + s * (most + 8 + 25 * far))
    return exact, error


def assert_within(y, exact, error):
    """Rounding keeps the order of numbers: an output in its bound lies between the rounded ends of it."""
    assert y.shape == exact.shape
    with np.errstate(all="ignore"):
        low, high = ((exact + side).astype(y.dtype).astype(np.float64) for side in (-error, error))
        rounded = exact.astype(y.dtype).astype(np.float64)
        y = y.astype(np.float64)
        right = ((low <= y) & (y <= high)) | (y == rounded) | (np.isnan(rounded) & np.isnan(y))
        if not np.all(right):
            off = np.where(right, 0.0, np.nan_to_num(np.abs(y - exact) / error, nan=np.inf, posinf=1e300))
            worst = np.unravel_index(np.argmax(off), off.shape)
            place = tuple(int(i) for i in worst)
            msg = f"{np.sum(~right)} of {right.size} are off; at {place} {y[worst]!r} instead of {exact[worst]!r}, "
            msg += f"{off[worst]:.3g} times the bound"
            raise AssertionError(msg)


def judge(y, x, settings, scaling=None, biases=None):
    """Assert that an output is what the reference says, within the bound."""
    assert_within(y, *expected(x, settings, scaling, biases))
