"""How exact the engine is: far from zero, very large and very small, constant, in half precision.

The bound is that of `accuracy`, with an exact mean in the place of the reference's. Every check in `CHECKS` fails
without the second pass of the kernels, and that is a test too.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gennorm as gn
from gennorm.bench import accuracy, peers
from tests import derivatives, engines
from tests.accuracy import V, assert_within, error_bound
from tests.strategies import RESULTS, dtype_of

ROOT = Path(__file__).resolve().parents[1]


def exactly(values):
    """Mean and standardized elements of one slice, to the bits of float64."""
    mean, z = accuracy.exactly(values)
    return mean, z.astype(np.float64)


def normal(shape, mean, deviation, dtype, seed=0):
    drawn = np.random.default_rng(seed).normal(size=shape)
    # To the dtype first, so that what is drawn is of its range, however small the deviation is.
    return ((drawn + mean / deviation) * deviation).astype(dtype_of(dtype))


# How slices lie in an array: the shape of one with n elements in each of its slices, the layer, and the slices.
FORMS = {
    "rows": (lambda n: (3, n), {"aggregation_levels": 2}, list),
    "rows of every example": (
        lambda n: (n // 8, 2, 8),
        {"aggregation_levels": "{1, 3}"},
        lambda x: list(x.transpose(1, 0, 2).reshape(2, -1)),
    ),
    "columns": (lambda n: (n, 5), {"aggregation_levels": 1}, lambda x: list(x.T)),
    "folded columns": (
        lambda n: (n // 4, 8),
        {"aggregation_levels": "All", "group_number": {2: 2}},
        lambda x: [x[:, :4].reshape(-1), x[:, 4:].reshape(-1)],
    ),
}


def assert_exact(form, x, result=None):
    """Normalize without epsilon; every slice is right to the bound. Returns the largest share of it that was used."""
    _, settings, slices = FORMS[form]
    layer = gn.NormalizationLayer(**settings, epsilon=0, scaling=None, biases=None)
    y = layer(x)
    result = RESULTS[x.dtype.name]
    for values, normalized in zip(slices(x), slices(y), strict=True):
        mean, z = exactly(values)
        with np.errstate(divide="ignore", invalid="ignore"):
            far = abs(mean) / values.astype(np.float64).std()
        bound = error_bound(np.abs(z), 1.0, 0.0, far, values.size, result) + 8 * V * np.abs(z)
        assert_within(normalized, z, bound)


# ----------------------------------------------------------------------------------------------------------- the checks


def far_from_zero(form, dtype, mean, deviation, n):
    assert_exact(form, normal(FORMS[form][0](n), mean, deviation, dtype))


def constant(form, dtype, value, n):
    """The output is the biases, to the bit; the mean is the element, the variance nothing."""
    shape, settings, _ = FORMS[form]
    x = np.full(shape(n), value).astype(dtype_of(dtype))
    for epsilon in (0, 1e-3):
        layer = gn.NormalizationLayer(**settings, scaling_levels=(), scaling=3.7, biases=-0.1, epsilon=epsilon)
        y = layer(x)
        assert set(y.reshape(-1).tolist()) == {np.float32(-0.1).astype(y.dtype).item()}
        moments = layer.measure(x)
        assert not moments.m2.any()
        assert set(moments.mean.reshape(-1).tolist()) == {x.flat[0].item()}


def constants(form, dtype):
    for value in (0.1, 1 / 3, 1e6 + 0.1):
        for n in (1000, 9000):
            constant(form, dtype, value, n)


CHECKS = {}
for _form in FORMS:
    for _n in (64, 768, 100_000):
        CHECKS[f"mean 1e6, deviation 1, {_n} elements, {_form}"] = (far_from_zero, _form, "float32", 1e6, 1.0, _n)
    CHECKS[f"mean 1e8, deviation 8, {_form}"] = (far_from_zero, _form, "float32", 1e8, 8.0, 768)
    CHECKS[f"mean 1e36, deviation 1e30, {_form}"] = (far_from_zero, _form, "float32", 1e36, 1e30, 768)
    CHECKS[f"mean 1e-24, deviation 1e-30, {_form}"] = (far_from_zero, _form, "float32", 1e-24, 1e-30, 768)
    CHECKS[f"float64, mean 1e6, deviation 1, {_form}"] = (far_from_zero, _form, "float64", 1e6, 1.0, 768)
    CHECKS[f"float64, mean 1e12, deviation 1, {_form}"] = (far_from_zero, _form, "float64", 1e12, 1.0, 768)
    # The sums of halves are exact: without the second pass they are constant all the same.
    for _dtype in ("float32", "float64"):
        CHECKS[f"constants, {_dtype}, {_form}"] = (constants, _form, _dtype)


@pytest.mark.parametrize("name", CHECKS)
def test_exact(name):
    check, *arguments = CHECKS[name]
    check(*arguments)


@pytest.mark.parametrize("name", CHECKS)
def test_exact_in_plain_python(name, monkeypatch):
    engines.in_plain_python(monkeypatch)
    check, *arguments = CHECKS[name]
    check(*arguments)


@pytest.mark.parametrize("name", CHECKS)
def test_not_exact_without_the_second_pass(name, monkeypatch):
    engines.in_one_pass(monkeypatch)
    check, *arguments = CHECKS[name]
    with pytest.raises(AssertionError):
        check(*arguments)


@pytest.mark.parametrize("name", [name for name in CHECKS if "100000" not in name])
def test_exact_in_units(name, monkeypatch):
    """Slices that are cut into units, measured one by one and merged."""
    engines.cut_small(monkeypatch, UNIT=128)
    check, *arguments = CHECKS[name]
    check(*arguments)


# ----------------------------------------------------------------------------------------------------- without one, too


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e-10, 1.0, 1e10, 1e30, 1e37])
@pytest.mark.parametrize("mean", [0.0, 1.0, 30.0])
def test_scales(form, scale, mean):
    """Squares of float32 do not leave the range of float64. Means of up to 32 deviations are the domain of one pass."""
    if scale * max(mean, 1.0) < 1e38:
        assert_exact(form, normal(FORMS[form][0](768), mean * scale, scale, "float32"))


@pytest.mark.parametrize("scale", [1e-100, 1e100])
def test_scales_of_float64(scale):
    assert_exact("rows", normal((3, 768), 0.0, scale, "float64"))
    assert_exact("columns", normal((768, 3), 10 * scale, scale, "float64"))


def test_two_numbers():
    """The output of two numbers that differ is -1 and 1 to the bit, wherever they are."""
    for low in (1.0, 1e6, 1e8, 1e30, -1e30, 1e-30):
        x = np.array([low, low], np.float32)
        x[1] = np.nextafter(x[1], np.float32(np.inf))
        assert gn.normalize(x, 1, epsilon=0).tolist() == [-1.0, 1.0]
        assert gn.normalize(x[:, None], 1, epsilon=0)[:, 0].tolist() == [-1.0, 1.0]


@pytest.mark.xfail(reason="one over a deviation below 2.9e-39 is no float32")
@pytest.mark.parametrize("form", FORMS)
def test_subnormal_deviations(form):
    assert_exact(form, normal(FORMS[form][0](768), 0.0, 1e-39, "float32"))


@pytest.mark.xfail(reason="the distance from the mean is no float32")
@pytest.mark.parametrize("form", FORMS)
def test_at_the_range_of_float32(form):
    x = np.full(FORMS[form][0](64), 3e38, np.float32)
    x.reshape(-1)[:3] = -3e38
    assert_exact(form, x)


@pytest.mark.xfail(reason="squares leave the range of float64")
@pytest.mark.parametrize("scale", [1e-160, 1e160])
def test_scales_beyond_the_root_of_float64(scale):
    assert_exact("rows", normal((3, 768), 0.0, scale, "float64"))


@pytest.mark.xfail(reason="squares leave the range of float64")
def test_constants_beyond_the_root_of_float64():
    for n in range(1, 40):
        constant("rows", "float64", 1e200, n)


LENGTHS = [*range(1, 40), 63, 64, 65, 127, 1000, 4097, 100_000, 1_000_000]
VALUES = {
    "float16": (0.1, 65504.0, 6e-8),
    "bfloat16": (0.1, 3e38, 1e-38),
    "float32": (0.1, 1 / 3, -7.3, 1e6 + 0.1, 1e30, 3.4e38, 1e-30, 1e-45, 0.0),
    "float64": (0.1, 1 / 3, -7.3, 1e6 + 0.1, 1e30, 1e150, 1e-300, 0.0),
    "int8": (-128, 7),
    "int64": (10**9 + 7,),
    "bool": (True,),
}


@pytest.mark.parametrize("form", ["rows", "columns"])
@pytest.mark.parametrize(("dtype", "value"), [(dtype, value) for dtype in VALUES for value in VALUES[dtype]])
def test_constant_slices(form, dtype, value):
    for n in LENGTHS[: -1 if value != 0.1 else None]:
        constant(form, dtype, value, n)


@pytest.mark.parametrize("n", [8, 64, 1000, 100_000])
@pytest.mark.parametrize("form", ["rows of every example", "folded columns"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_constant_slices_of_other_forms(form, dtype, n):
    for value in (0.1, 1 / 3, 1e30):
        constant(form, dtype, value, n)


@given(st.floats(1, 1e300), st.lists(st.booleans(), min_size=1, max_size=200), st.sampled_from(("float32", "float64")))
def test_a_mean_is_not_outside_its_slice(value, higher, dtype):
    with np.errstate(over="ignore"):
        low = np.minimum(np.array(value, dtype), np.finfo(dtype).max / 2)
    x = np.where(higher, np.nextafter(low, low * 2), low).astype(dtype)
    for array in (x, x[:, None]):
        mean = gn.NormalizationLayer(1).measure(array).mean
        assert np.all((x.min() <= mean) & (mean <= x.max()))


# ------------------------------------------------------------------------------------------------------ beside others

ACCURACY = [
    path for path in (ROOT / "docs" / "benchmarks").glob("*.json") if json.loads(path.read_text()).get("accuracy")
]


def nearer(error):
    """By how many units in the last place somebody else may be nearer to the exact values.

    NumPy divides, and the kernels multiply by a rounded inverse and add a shift: two roundings more. Where all hold a
    mean in one float64, each is off by up to half a unit of the mean itself, and who is nearer there is chance.
    """
    return 1.0 if error.dtype == "float32" else 1.6 + error.far


def beside(error):
    """What is wrong with the largest errors of one kind of data, in words."""
    own = error.ulps["gennorm"]
    what = f"{error.layout} of {error.length}, mean {error.offset:g}, deviation {error.scale:g}: {own}"
    if own is None or own > error.bound:
        return [f"{what} is beyond the bound {error.bound}"]
    others = {name: ulps for name, ulps in error.ulps.items() if ulps is not None}
    return [f"{what}, {name} {ulps}" for name, ulps in others.items() if own > ulps + nearer(error)]


@pytest.fixture(scope="module")
def others():
    found, absent = peers.found({name: peers.PEERS[name] for name in accuracy.FORMULAS}, 1)
    if absent:
        pytest.skip(", ".join(absent.values()))
    return found


@pytest.mark.parametrize("length", [1, 2, 8, 100, 1000])
@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_library_is_more_exact(dtype, layout, length, others):
    """The errors of `gennorm bench --measure accuracy`: within the bound, and not above those of anybody else."""
    measured = [e for e in accuracy.errors(others, lambda *_: None, [length], [dtype]) if e.layout == layout]
    assert len(measured) == len(accuracy.OFFSETS) + 2 * (len(accuracy.SCALES) - 1)
    assert [line for error in measured for line in beside(error)] == []


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_library_is_more_exact_on_record(dtype):
    """The tables of docs/explanation/numerics.md, up to ten million elements."""
    chosen = [error for error in on_record() if error.dtype == dtype]
    assert {error.length for error in chosen} == {*accuracy.LENGTHS}
    assert all(error.ulps.keys() == {"gennorm", *accuracy.FORMULAS} for error in chosen)
    assert [line for error in chosen for line in beside(error)] == []


def test_the_record_is_within_the_bound():
    assert [error for error in on_record() if not error.ulps["gennorm"] <= error.bound] == []


def on_record():
    """What the tables are made of."""
    (path,) = ACCURACY
    return [accuracy.Error(**error) for error in json.loads(path.read_text(encoding="utf-8"))["accuracy"]]


def test_a_shift_is_seen(others, monkeypatch):
    """The check itself: an output that is off by eleven units is beyond the bound."""
    honest = gn.normalize
    monkeypatch.setattr(
        accuracy.gn, "normalize", lambda x, *args, **given: honest(x, *args, **given) * (1 + 23 * 2**-24)
    )
    measured = list(accuracy.errors(others, lambda *_: None, [100], ["float32"]))
    assert any("is beyond the bound" in line for error in measured for line in beside(error))


# ---------------------------------------------------------------------------------------------- gradients of parameters

# Layouts in which a parameter has thousands of terms, in one task or in many: shape and settings.
MANY_TERMS = {
    "short rows of one group": ((2, 128, 64, 32), {"aggregation_levels": "All", "scaling_levels": 3}),
    "RMS over short rows": ((3, 2187, 32), {"aggregation_levels": "1;;2", "scaling_levels": 2, "method": "RMS"}),
    "rows, repeated inside a varying run": (
        (2, 3, 3000, 40),
        {"aggregation_levels": "All", "scaling_levels": [1, 3]},
    ),
    "rows, repeated inside a kept run": ((2, 3, 3000, 40), {"aggregation_levels": "2;;3", "scaling_levels": [1, 3]}),
    "rows, repeated twice": ((20, 3, 200, 40), {"aggregation_levels": "{2, 3}", "scaling_levels": 3}),
    "a row an example": ((9000, 40), {"aggregation_levels": 1, "scaling_levels": "Same"}),
    "one scaling for each row of channels": ((500, 4, 40), {"aggregation_levels": "{0, 2}", "scaling_levels": 1}),
    "one scaling for all": ((900, 40), {"aggregation_levels": 1, "scaling_levels": ()}),
    "columns": ((9000, 40), {"aggregation_levels": 0, "scaling_levels": 1}),
    "columns, one scaling for each line": ((2, 60, 5000), {"aggregation_levels": 1, "scaling_levels": 1}),
    "columns, a scaling for each element": ((3000, 3, 40), {"aggregation_levels": 1, "scaling_levels": "1;;2"}),
    "columns, one scaling for all": ((9000, 40), {"aggregation_levels": 0, "scaling_levels": ()}),
    "folded columns": ((2, 3000, 32), {"aggregation_levels": "All", "scaling_levels": 2, "group_number": {2: 8}}),
}


@pytest.mark.parametrize("threads_", [1, 2])
@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("name", MANY_TERMS)
def test_gradients_of_parameters_with_many_terms(name, pieces, threads_, threads, monkeypatch):
    """At most 32 terms are added up in float32: sums of a constant would lose more digits with each term."""
    if pieces:
        engines.in_pieces(monkeypatch)
    threads(threads_)
    shape, settings = MANY_TERMS[name]
    settings = {**settings, "batched": True}
    layer = gn.NormalizationLayer(**settings).initialize(shape)
    x = normal(shape, 0.5, 1.0, "float32")
    dy = np.full(shape, 0.1, np.float32)
    derivatives.judge(layer.vjp(x)[1](dy), x, dy, settings, layer.scaling, layer.biases)


# ------------------------------------------------------------------------------------------------------- half precision


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (100.0, 1.0), (0.0, 1e4), (0.0, 1e-3), (2e4, 1e4)])
def test_half_precision_is_rounded_once(form, dtype, mean, deviation):
    """The output is the exact one rounded once, or its neighbour where the bound of float32 reaches across a tie."""
    x = normal(FORMS[form][0](768), mean, deviation, dtype)
    assert_exact(form, x)
    # A tie is that near to one output in thousands.
    _, settings, slices = FORMS[form]
    y = gn.NormalizationLayer(**settings, epsilon=0, scaling=None, biases=None)(x)
    for values, normalized in zip(slices(x), slices(y), strict=True):
        rounded = exactly(values)[1].astype(dtype_of(dtype))
        assert np.count_nonzero(rounded != normalized) <= 4


# Slices for which sums in float32 are not enough.
FURTHER = {}
for _form in FORMS:
    FURTHER[f"float16, mean 100, deviation 1, {_form}"] = (far_from_zero, _form, "float16", 100.0, 1.0, 768)
    for _scale in (1e-36, 1e-30, 1e-20, 1e19, 1e25, 1e30, 1e37):
        for _mean in (0.0, 10.0):
            _name = f"bfloat16, mean {_mean * _scale}, deviation {_scale}, {_form}"
            FURTHER[_name] = (far_from_zero, _form, "bfloat16", _mean * _scale, _scale, 768)


@pytest.mark.parametrize("name", FURTHER)
def test_halves_exact(name):
    check, *arguments = FURTHER[name]
    check(*arguments)


@pytest.mark.parametrize("name", FURTHER)
def test_halves_exact_in_units(name, monkeypatch):
    engines.cut_small(monkeypatch, UNIT=128)
    check, *arguments = FURTHER[name]
    check(*arguments)


@pytest.mark.parametrize("name", FURTHER)
def test_halves_not_exact_in_float32(name, monkeypatch):
    engines.in_float32(monkeypatch)
    check, *arguments = FURTHER[name]
    with pytest.raises(AssertionError):
        check(*arguments)


@pytest.mark.parametrize("method", ["Standardize", "RMS"])
@pytest.mark.parametrize("far", [np.nan, np.inf, 1e30, 1e-30, 100.0])
@pytest.mark.parametrize("form", ["rows", "columns"])
def test_neighbours_of_halves(form, far, method):
    """Whether sums in float32 are enough for a slice does not depend on others."""
    shape, settings, slices = FORMS[form]
    layer = gn.NormalizationLayer(**settings, method=method, scaling=None, biases=None)
    x = normal(shape(768), 0.5, 1.0, "bfloat16")
    alone, before = layer(x), layer.measure(x).m2.reshape(-1)
    spoilt = slices(x)[1]
    spoilt[...] = spoilt * dtype_of("bfloat16").type(far) if far < 1 else spoilt + dtype_of("bfloat16").type(far)
    beside, after = layer(x), layer.measure(x).m2.reshape(-1)
    for index, (one, other) in enumerate(zip(slices(alone), slices(beside), strict=True)):
        assert (one.tobytes() == other.tobytes()) == (index != 1)
        assert (before[index] == after[index]) == (index != 1)  # to bits that no output shows


def test_squares_that_float32_loses(monkeypatch):
    """Fused or not, they are nothing beside others: here a tie of float64 waits for half of the last place of float32.

    The sums of the even lanes are 2**-96 less 2**-149 or nothing, as one element has its square rounded or not, and
    that of the odd ones is 1.125 * 2**-43 + 2**-95, an odd number of last places of 2**-95.
    """
    x = np.zeros((4, 16))
    x[[0, 2], 0] = 181 / 128 * 2.0**-75, 2.0**-75
    x[:, 2], x[:, 4] = (np.array([127, 15, 5, 2]) * 2.0**-power for power in (55, 62))
    x[:, 6], x[:, 8] = (np.array([63, 11, 2, 1]) * 2.0**-power for power in (68, 74))
    x[0, 1], x[:2, 3] = 1.5 * 2.0**-22, 2.0**-48
    rows = x.reshape(1, 64).astype(dtype_of("bfloat16"))
    assert np.array_equal(rows.astype(np.float64).reshape(4, 16), x)
    layer = gn.NormalizationLayer(2, method="RMS")
    compiled = layer.measure(rows).m2
    engines.in_plain_python(monkeypatch)
    plain = gn.NormalizationLayer(2, method="RMS").measure(rows).m2
    assert compiled.tobytes() == plain.tobytes()


def test_float16_out_of_range_is_infinite():
    x = np.array([[1.0, -1.0]], np.float16)
    y = gn.NormalizationLayer(2, (), scaling=7e4, biases=None, epsilon=0)(x)
    assert y.tolist() == [[math.inf, -math.inf]]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_are_read_and_written_exactly(dtype):
    """Every finite number of the dtype, -0.0 and the subnormal ones too, through the identity: a mean square of 1."""
    every = np.arange(1 << 16, dtype=np.uint16)
    every = every[every & 0x7FFF < {"float16": 0x7C00, "bfloat16": 0x7F80}[dtype]].view(dtype_of(dtype))
    layer = gn.NormalizationLayer(1, (), method="RMS", epsilon=0, biases=None)
    identity = gn.Moments.from_variance(None, 1.0)
    assert layer.apply(every, identity).tobytes() == every.tobytes()
    columns = np.ascontiguousarray(np.broadcast_to(every[:, None], (every.size, 3)))
    assert layer.apply(columns, identity).tobytes() == columns.tobytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_ties_go_to_even(dtype):
    """What lies between two numbers of the dtype is rounded as IEEE says, to the nearest and ties to even."""
    bits = 10 if dtype == "float16" else 7
    odd = 1 + np.arange(0, 2**bits, dtype=np.float32)[:, None] * 2.0**-bits
    between = odd + np.array([0.25, 0.5, 0.75], np.float32) * np.float32(2.0**-bits)
    x = np.ones(between.shape, dtype_of(dtype))
    layer = gn.NormalizationLayer(1, "1;;2", method="RMS", scaling=None, biases=between - 1, epsilon=0)
    y = layer.apply(x, gn.Moments.from_variance(None, 1.0))
    np.testing.assert_array_equal(y.view(np.uint16), between.astype(dtype_of(dtype)).view(np.uint16))
