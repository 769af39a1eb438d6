"""Moments: one value for the statistics of slices, and their exact sum."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import operator
import pickle
import time
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gennorm import errors
from gennorm.moments import Moments

Array = NDArray[np.float64]

finite = st.floats(-1e6, 1e6, allow_subnormal=False)
parts_of_one_slice = st.lists(st.lists(finite, max_size=7), min_size=1, max_size=6)


def close(a: Moments, b: Moments, *, scale: float = 1.0, rtol: float = 1e-12) -> None:
    """Equal counts, and means and deviations equal up to rounding beside numbers of the size of `scale`."""
    np.testing.assert_array_equal(a.count, b.count, strict=True)
    assert (a.mean is None) == (b.mean is None)
    if a.mean is not None and b.mean is not None:
        np.testing.assert_allclose(a.mean, b.mean, rtol=rtol, atol=1e-15 * scale, strict=True)
    np.testing.assert_allclose(a.m2, b.m2, rtol=rtol, atol=1e-14 * scale**2, strict=True)


def size_of(values: list[float]) -> float:
    return max((abs(value) for value in values), default=1.0)


def exactly(values: list[float]) -> tuple[Fraction, Fraction]:
    """Mean and second moment in rational arithmetic."""
    fractions = [Fraction(value) for value in values]
    mean = sum(fractions, Fraction(0)) / len(fractions)
    return mean, sum(((value - mean) ** 2 for value in fractions), Fraction(0))


# The sum -------------------------------------------------------------------------------------------------------------


@given(parts_of_one_slice)
def test_merged_parts_equal_one_pass(parts: list[list[float]]) -> None:
    everything = [value for part in parts for value in part]
    for method in ("Standardize", "RMS"):
        merged = functools.reduce(operator.add, [Moments.of(np.array(part, float), method=method) for part in parts])
        close(merged, Moments.of(np.array(everything, float), method=method), scale=size_of(everything))


@given(parts_of_one_slice)
def test_merged_parts_are_right_in_rational_arithmetic(parts: list[list[float]]) -> None:
    everything = [value for part in parts for value in part]
    merged = functools.reduce(operator.add, [Moments.of(np.array(part, float)) for part in parts])
    if everything:
        mean, m2 = exactly(everything)
        close(merged, Moments(len(everything), float(mean), float(m2)), scale=size_of(everything))
    else:
        assert merged == Moments(0, 0, 0)


@given(st.tuples(*[st.lists(finite, max_size=5)] * 3))
def test_the_sum_is_associative_and_commutative(parts: tuple[list[float], ...]) -> None:
    a, b, c = (Moments.of(np.array(part, float)) for part in parts)
    scale = size_of([value for part in parts for value in part])
    close((a + b) + c, a + (b + c), scale=scale)
    close(a + b, b + a, scale=scale)


@given(st.lists(finite | st.sampled_from([np.inf, 1e300]), max_size=7), st.sampled_from([0.0, np.nan, np.inf]))
def test_empty_moments_are_neutral_to_the_bit(values: list[float], garbage: float) -> None:
    moments, nothing = Moments.of(np.array(values, float)), Moments(0, garbage, abs(garbage))
    assert nothing == Moments(0, 0.0, 0.0)
    assert moments + nothing == moments
    assert nothing + moments == moments
    assert nothing + nothing == nothing


def test_emptiness_is_decided_slice_by_slice() -> None:
    a, b = Moments([2, 0, 0], [1.0, 0, 0], [4.0, 0, 0]), Moments([0, 3, 0], [0, 5.0, 0], [0, 6.0, 0])
    assert a + b == Moments([2, 3, 0], [1.0, 5.0, 0], [4.0, 6.0, 0])


def test_a_mean_of_1e8_with_a_deviation_of_1() -> None:
    x = np.random.default_rng(0).normal(1e8, 1.0, size=10_000)
    mean, m2 = exactly(x.tolist())
    naive = (x * x).mean() - x.mean() ** 2
    assert abs(naive - float(m2) / 10_000) > 0.1  # what E[x²] − E[x]² makes of it
    merged = sum((Moments.of(part) for part in np.array_split(x, 37)), Moments(0, 0, 0))
    # Each merge rounds a mean of 1e8 to float64, an error of 1e-8 beside differences of 0.1.
    for moments, rtol in ((Moments.of(x), 1e-14), (merged, 1e-10)):
        assert moments.mean is not None
        np.testing.assert_allclose(moments.mean, float(mean), rtol=1e-15)
        np.testing.assert_allclose(moments.m2, float(m2), rtol=rtol)
        np.testing.assert_allclose(moments.variance(unbiased=True), float(m2) / 9_999, rtol=rtol)


def test_a_million_small_parts_lose_nothing() -> None:
    x = np.random.default_rng(1).normal(1e4, 1.0, size=(20_000, 1))
    merged = functools.reduce(operator.add, (Moments.of(row) for row in x))
    np.testing.assert_allclose(merged.variance(), x.var(), rtol=1e-10)


def test_unequal_parts_are_pooled_and_not_averaged() -> None:
    a, b = Moments.of(np.zeros(1000)), Moments.of(np.full(2, 50.0))
    pooled = np.concatenate([np.zeros(1000), np.full(2, 50.0)])
    close(a + b, Moments(1002, pooled.mean(), pooled.var() * 1002))


def test_sum_starts_from_zero() -> None:
    parts = [Moments.of(np.array([1.0, 2.0])), Moments.of(np.array([6.0]))]
    assert sum(parts) == Moments(3, 3.0, 14.0)
    with pytest.raises(TypeError):
        sum(parts, start=1)
    with pytest.raises(TypeError):
        parts[0] + 1.0


def test_only_moments_of_the_same_slices_merge() -> None:
    with pytest.raises(errors.ParameterError) as caught:
        Moments([1, 1], 0, 0) + Moments(1, 0, 0)
    assert caught.value.code == "P102"
    assert caught.value.message == (
        "moments of shape (2,) and () are not of the same slices\nmoments are merged slice by slice and never broadcast"
    )


def test_moments_of_different_methods_do_not_merge() -> None:
    with pytest.raises(errors.ParameterError) as caught:
        Moments(1, 0, 0) + Moments(1, None, 0)
    assert caught.value.code == "P103"
    assert caught.value.message == (
        "moments with a mean and moments of the RMS method, which have none, cannot be merged"
    )


# Moments of an array -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [None, (), 0, -1, (0, 2), (2, 0), (-1, 1), (0, 1, 2)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int8, np.uint64, np.bool])
def test_moments_of_an_array(axes: Any, dtype: Any) -> None:
    x = (np.random.default_rng(2).normal(3, 4, size=(3, 4, 5)) % 100).astype(dtype)
    x.setflags(write=False)
    exact = x.astype(np.float64)
    size = exact.size // np.mean(exact, axis=axes).size
    moments = Moments.of(x, axes=axes)
    close(moments, Moments(size, exact.mean(axis=axes), exact.var(axis=axes) * size))
    np.testing.assert_allclose(moments.mean_square(), (exact**2).mean(axis=axes), rtol=1e-12)
    of_squares = Moments.of(x, axes=axes, method="RMS")
    assert of_squares.mean is None
    close(of_squares, Moments(size, None, (exact**2).sum(axis=axes)))
    np.testing.assert_allclose(of_squares.mean_square(), moments.mean_square(), rtol=1e-12)


def test_bfloat16_is_a_number() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    close(Moments.of(np.array([1, 2, 6], dtype=ml_dtypes.bfloat16)), Moments(3, 3, 14))


@given(st.lists(st.tuples(finite, st.integers(0, 4)), min_size=1, max_size=8), st.sampled_from(["Standardize", "RMS"]))
def test_weights_are_repetition(pairs: list[tuple[float, int]], method: Any) -> None:
    values, weights = np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])
    weighted = Moments.of(values, weights=weights, method=method)
    close(weighted, Moments.of(np.repeat(values, weights), method=method), scale=size_of(values.tolist()))


@given(
    st.lists(st.tuples(finite, st.booleans()), min_size=1, max_size=8),
    st.sampled_from([0.0, np.nan, np.inf, 1e300]),
    st.sampled_from(["Standardize", "RMS"]),
)
def test_a_mask_is_removal(pairs: list[tuple[float, bool]], garbage: float, method: Any) -> None:
    keep = np.array([pair[1] for pair in pairs])
    values = np.array([value if kept else garbage for value, kept in pairs])
    removed = Moments.of(values[keep], method=method)
    close(Moments.of(values, mask=keep, method=method), removed, scale=size_of(values[keep].tolist()))
    close(Moments.of(values, weights=keep * 1, method=method), removed, scale=size_of(values[keep].tolist()))


def test_mask_and_weights_broadcast_and_multiply() -> None:
    x = np.arange(12.0).reshape(3, 4)
    mask, weights = np.array([[True], [False], [True]]), np.array([0.5, 1, 1, 2])
    expected = Moments.of(x[[0, 2]], weights=weights, axes=0)
    close(Moments.of(x, mask=mask, weights=weights, axes=0), expected)


@pytest.mark.parametrize("value", [0.1, -7.3, 1e-300, 1e150, 1e300])
def test_a_constant_slice_has_no_variance(value: float) -> None:
    for size in (1, 3, 7, 49, 1000):
        assert Moments.of(np.full(size, value)) == Moments(size, value, 0.0)
        assert Moments.of(np.full(size, value), weights=np.full(size, 0.3)).m2 == 0


def test_of_nothing() -> None:
    nothing = Moments([0, 0], [0, 0], [0, 0])
    assert Moments.of(np.ones((2, 0)), axes=1) == nothing
    assert Moments.of(np.full((2, 3), np.nan), axes=1, mask=np.array(False)) == nothing
    assert Moments.of(np.ones((0, 3)), axes=1).shape == (0,)
    assert Moments.of(np.array(3.0)) == Moments(1, 3, 0)
    assert not nothing.variance().any()
    assert not nothing.variance(unbiased=True).any()
    assert not nothing.mean_square().any()


def test_non_finite_numbers_stay_in_their_slice() -> None:
    x = np.array([[1.0, 3.0], [np.nan, 1.0], [np.inf, 1.0], [np.inf, -np.inf]])
    moments = Moments.of(x, axes=1)
    assert moments == Moments([2, 2, 2, 2], [2, np.nan, np.inf, np.nan], [2, np.nan, np.nan, np.nan])
    merged = moments + moments
    assert merged.mean is not None
    assert (merged.mean[0], merged.m2[0]) == (2, 4)


def test_the_input_may_be_read_only_and_is_left_alone() -> None:
    x = np.arange(6.0)
    before = x.copy()
    x.setflags(write=False)
    Moments.of(x, mask=x > 2, weights=x)
    np.testing.assert_array_equal(x, before)


# Asking them ---------------------------------------------------------------------------------------------------------


def test_variance_divides_by_the_count_or_one_less() -> None:
    moments = Moments([4, 1, 0.5, 0], [1.0, 2.0, 3.0, 4.0], [8.0, 2.0, 1.0, 0.0])
    np.testing.assert_array_equal(moments.variance(), [2, 2, 2, 0])
    np.testing.assert_array_equal(moments.variance(unbiased=True), [8 / 3, 0, 0, 0])
    np.testing.assert_array_equal(moments.mean_square(), [3, 6, 11, 0])


def test_moments_of_rms_have_no_variance() -> None:
    with pytest.raises(errors.ParameterError) as caught:
        Moments(2, None, 4).variance()
    assert caught.value.code == "P103"
    assert caught.value.message == (
        "moments of the RMS method have no variance: they have no mean, and m2 is the sum of squares\n"
        "write mean_square(), the mean of the squares"
    )


def test_from_variance() -> None:
    moments = Moments.from_variance([1.0, 2.0], 3.0, count=[2, 10])
    assert moments == Moments([2, 10], [1, 2], [6, 30])
    np.testing.assert_array_equal(moments.variance(), [3, 3])
    np.testing.assert_array_equal(Moments.from_variance(None, 9.0, count=4).mean_square(), 9.0)
    assert Moments.from_variance(0.0, 1.0) == Moments(1, 0, 1)
    # A count of 0 forgets the variance, as it must: nothing was counted.
    assert Moments.from_variance(5.0, 1.0, count=0) == Moments(0, 0, 0)


# The value -----------------------------------------------------------------------------------------------------------


def test_moments_are_frozen_and_own_their_arrays() -> None:
    mean = np.array([1.0, 2.0])
    moments = Moments(3, mean, 0.0)
    mean[0] = 99
    assert moments == Moments([3, 3], [1, 2], [0, 0])
    for again in (moments, pickle.loads(pickle.dumps(moments)), copy.deepcopy(moments), moments + moments):
        for array in (again.count, again.mean, again.m2):
            assert array is not None
            assert array.dtype == np.float64
            assert array.shape == again.shape == (2,)
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1


def test_attributes_cannot_be_assigned() -> None:
    moments = Moments(3, 1.0, 0.0)
    unknown = "they have count, mean and m2, which cannot be assigned; make new ones: Moments(count, mean, m2)"
    for change, text in (
        (
            lambda: setattr(moments, "mean", 2.0),
            "mean of moments cannot be assigned: moments do not change\nmake new ones: Moments(count, mean, m2)",
        ),
        (
            lambda: setattr(moments, "meen", 1),
            f'moments have no attribute "meen"; did you mean "mean"?\n{unknown}',
        ),
        (lambda: setattr(moments, "foo", 1), f'moments have no attribute "foo"\n{unknown}'),
        (
            lambda: delattr(moments, "m2"),
            "m2 of moments cannot be assigned: moments do not change\nmake new ones: Moments(count, mean, m2)",
        ),
    ):
        with pytest.raises(errors.FrozenError) as caught:
            change()
        assert caught.value.message == text
        assert caught.value.code == "P111"
    assert moments == Moments(3, 1.0, 0.0)


# How exact -----------------------------------------------------------------------------------------------------------


def in_order(parts: list[Moments]) -> Moments:
    return functools.reduce(operator.add, parts)


def backwards(parts: list[Moments]) -> Moments:
    return functools.reduce(lambda a, b: b + a, reversed(parts))


def in_a_tree(parts: list[Moments]) -> Moments:
    while len(parts) > 1:
        parts = [in_order(parts[i : i + 2]) for i in range(0, len(parts), 2)]
    return parts[0]


def pickled(parts: list[Moments]) -> Moments:
    return functools.reduce(lambda a, b: pickle.loads(pickle.dumps(a)) + pickle.loads(pickle.dumps(b)), parts)


def pooled(parts: list[Moments]) -> Moments:
    lost = [[np.broadcast_to(getattr(part, name), ()) for part in parts] for name in ("_lost_mean", "_lost_m2")]
    public = [np.array([getattr(part, name) for part in parts]) for name in ("count", "mean", "m2")]
    return Moments.trusted(*public, *map(np.array, lost)).pooled()


@pytest.mark.parametrize("merge", [in_order, backwards, in_a_tree, pickled, pooled])
@pytest.mark.parametrize("size", [1, 10, 999])
@pytest.mark.parametrize("center", [0.0, 1.0, 1e6, 1e12, -1e15])
@pytest.mark.parametrize("deviation", [1e-140, 1.0, 1e140])
def test_merged_parts_are_as_exact_as_numpy_for_the_whole_array(
    merge: Any, size: int, center: float, deviation: float
) -> None:
    rng = np.random.default_rng(size)
    x = (center + rng.choice([-1.0, 1.0, 0.5], 3000)) * deviation
    mean, m2 = exactly(x.tolist())
    merged = merge([Moments.of(part) for part in np.split(x, range(size, len(x), size))])
    assert merged.count == len(x)
    assert merged.mean is not None
    unit = 2.0**-53
    assert abs(Fraction(float(merged.mean)) - mean) <= np.spacing(abs(float(mean))) + 8 * unit * deviation
    numpy = abs(float(Fraction(float(x.var() * len(x))) / m2 - 1))
    assert abs(float(Fraction(float(merged.m2)) / m2 - 1)) <= max(numpy, 32 * unit)


def powers(low: int, high: int) -> st.SearchStrategy[float]:
    return st.builds(lambda digits, power: digits * 10.0**power, st.floats(-9, 9), st.integers(low, high))


extreme = (
    powers(-300, 307)
    | st.sampled_from([1.7e308, -1.7e308, 1e-308, 5e-324, 0.0])
    | powers(-161, -158)
    | powers(152, 156)
)


def near(found: Any, exact: Fraction, scale: Fraction) -> bool:
    """The exact number, to some units of the last place of the scale; or infinite, where float64 cannot hold it."""
    if np.isinf(found):
        return abs(exact) > Fraction(1.79e308)
    return abs(Fraction(float(found)) - exact) <= scale * Fraction(1, 2**46) + Fraction(1, 2**1060)


@given(st.lists(st.tuples(extreme, st.sampled_from([1e-150, 1e-20, 1.0, 3.0, 1e20, 1e150])), min_size=1, max_size=5))
def test_extreme_values_are_right_or_infinite(pairs: list[tuple[float, float]]) -> None:
    x, weights = (np.array(column) for column in zip(*pairs, strict=True))
    total = sum(map(Fraction, weights.tolist()), Fraction(0))
    mean = sum((Fraction(w) * Fraction(v) for v, w in pairs), Fraction(0)) / total
    m2 = sum((Fraction(w) * (Fraction(v) - mean) ** 2 for v, w in pairs), Fraction(0))
    with np.errstate(all="raise"):
        whole = Moments.of(x, weights=weights)
        merged = in_order([Moments.of(np.array([v]), weights=np.array([w])) for v, w in pairs])
    for moments in (whole, merged):
        assert moments.mean is not None
        largest = max(abs(Fraction(v)) for v, _ in pairs)
        assert near(moments.mean, mean, largest), (moments, float(mean))
        assert near(moments.m2, m2, m2 + total * largest**2 / 2**50), moments


@pytest.mark.parametrize("error", ["ignore", "raise"])
def test_non_finite_numbers_merge_as_in_numpy(error: Any) -> None:
    numbers = [1.0, np.inf, -np.inf, np.nan, 1.7e308, -1.7e308, 0.0]
    for pair in itertools.product(numbers, repeat=2):
        x = np.array(pair)
        with np.errstate(all="ignore"):
            mean, spread = (x / 2).mean() * 2, (x / 2).var() * 4  # NumPy's sum of two large numbers overflows
        with np.errstate(all=error):
            for moments in (
                Moments.of(x),
                Moments.of(x[:1]) + Moments.of(x[1:]),
                Moments.of(x[:, None], axes=1).pooled(),
            ):
                np.testing.assert_array_equal(moments.mean, mean)
                np.testing.assert_allclose(moments.variance(), spread, rtol=1e-15)
                moments.mean_square(), moments.variance(unbiased=True)


def test_arrays_of_moments_are_read_only() -> None:
    rows = np.array([[2.0], [1.0], [0.5]])
    for moments in (
        Moments(2, 1, 3),
        Moments.of(np.ones(3)),
        Moments.of(np.ones(3)) + Moments.of(np.ones(2)),
        Moments.of(np.ones((2, 3)), axes=1).pooled(),
        Moments.from_variance(0.0, 1.0),
        Moments.trusted(np.float64(1), np.float64(0), np.float64(0)),  # type: ignore[arg-type]
        Moments.trusted(*rows),
        Moments.trusted(*np.frombuffer(bytes(24)).reshape(3, 1)),
        pickle.loads(pickle.dumps(Moments.of(np.ones(3)))),
        Moments.of_rows(Moments.of(np.arange(3.0)).rows()),
        Moments.from_dict(Moments(2, 1, 3).to_dict()),
    ):
        assert moments is not None
        for array in (moments.count, moments.mean, moments.m2, moments.variance(), moments.mean_square()):
            assert type(array) is np.ndarray
            assert array.dtype == np.float64
        for array in (moments.count, moments.mean, moments.m2):
            assert array is not None
            assert not array.flags.writeable
            assert array.base is None or not array.base.flags.writeable


def test_merging_small_moments_is_fast() -> None:
    """Small moments are merged at every step of a stream; checks took twice as long as this once."""
    a, b = Moments.of(np.ones((8, 17)), axes=0), Moments.of(np.arange(51.0).reshape(3, 17), axes=0)
    x = np.arange(17.0)
    best = dict.fromkeys(("merge", "add"), np.inf)
    for _ in range(50):
        for name, one, two in (("merge", a, b), ("add", x, x)):
            start = time.perf_counter()
            for _ in range(20):
                one + two
            best[name] = min(best[name], time.perf_counter() - start)
    assert best["merge"] < 80 * best["add"]


# Equality and text ---------------------------------------------------------------------------------------------------


def test_equality_is_by_value() -> None:
    base = Moments([1, 2], [0.5, np.nan], [1, 2])
    assert base == Moments([1.0, 2.0], [0.5, np.nan], [1.0, 2.0])
    assert base == pickle.loads(pickle.dumps(base)) == copy.copy(base)
    for other in (
        Moments([1, 3], [0.5, np.nan], [1, 2]),
        Moments([1, 2], [0.6, np.nan], [1, 2]),
        Moments([1, 2], [0.5, np.nan], [1, 3]),
        Moments([1, 2], None, [1, 2]),
        Moments([[1, 2]], [0.5, np.nan], [1, 2]),
    ):
        assert base != other
    assert base != "moments"
    with pytest.raises(TypeError, match="unhashable"):
        hash(base)


def test_repr() -> None:
    assert repr(Moments([2, 2], [0.5, 1], 3)) == "Moments(count=[2., 2.], mean=[0.5, 1. ], m2=[3., 3.])"
    assert repr(Moments(2, None, 3)) == "Moments(count=2., mean=None, m2=3.)"
    assert len(repr(Moments.of(np.ones((100, 3)), axes=1))) < 200


@given(
    st.lists(
        st.tuples(st.floats(0, 1e300), st.floats(allow_subnormal=True), st.floats(min_value=0) | st.just(np.nan)),
        max_size=6,
    ),
    st.booleans(),
)
def test_a_dictionary_survives_json_without_loss(rows: list[tuple[float, float, float]], rms: bool) -> None:
    count, mean, m2 = np.array(rows, dtype=float).reshape(-1, 3).T
    moments = Moments(count.reshape(1, -1), None if rms else mean, m2)
    text = json.dumps(moments.to_dict(), allow_nan=False)
    assert Moments.from_dict(json.loads(text)) == moments


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format": "gennorm/layer"}, "moments of format 'gennorm/layer', version 1"),
        ({"version": 2}, "moments of format 'gennorm/moments', version 2"),
        ({"extra": 1}, "moments with missing keys [] and unknown keys ['extra']"),
        ({"shape": [3]}, "moments whose values do not fill their shape with numbers"),
        ({"shape": [2.5]}, "moments whose values do not fill their shape with numbers"),
        ({"mean": ["x", 0.0]}, "moments whose values do not fill their shape with numbers"),
        ({"mean": 0.0}, "moments whose values do not fill their shape with numbers"),
        ({"m2": None}, "moments without a count or without m2"),
    ],
)
def test_a_dictionary_that_is_not_moments(change: dict[str, Any], text: str) -> None:
    data = Moments([1, 2], [0, 0], [1, 2]).to_dict() | change
    with pytest.raises(errors.ParameterError) as caught:
        Moments.from_dict(data)
    assert caught.value.code == "P109"
    assert caught.value.message == (
        f'{text}\nMoments.to_dict() writes what from_dict reads: format "gennorm/moments", version 1'
    )


def test_a_dictionary_with_a_missing_key() -> None:
    with pytest.raises(errors.ParameterError, match=r"missing keys \['m2'\] and unknown keys \[\]"):
        Moments.from_dict({key: value for key, value in Moments(1, 0, 0).to_dict().items() if key != "m2"})
    with pytest.raises(errors.ParameterError, match="from a mapping, not from list"):
        Moments.from_dict([1])  # type: ignore[arg-type]


# Errors --------------------------------------------------------------------------------------------------------------

X = np.ones((2, 3))


@pytest.mark.parametrize(
    ("make", "error", "code", "text"),
    [
        (
            lambda: Moments([1, 2], [1, 2, 3], 0),
            errors.ParameterError,
            "P101",
            (
                "the arrays of these moments do not broadcast: count (2,), m2 (), mean (3,)\n"
                "give arrays of one shape, one value per slice"
            ),
        ),
        (
            lambda: Moments.from_variance(0, [1, 2], [1, 2, 3]),
            errors.ParameterError,
            "P101",
            "a variance of shape (2,) and a count of shape (3,) do not broadcast",
        ),
        (
            lambda: Moments([1, -2], 0, 0),
            errors.ParameterError,
            "P106",
            "a count is -2.0 at (1,); it is finite and at least 0",
        ),
        (lambda: Moments(np.nan, 0, 0), errors.ParameterError, "P106", "a count is nan; it is finite and at least 0"),
        (lambda: Moments(np.inf, 0, 0), errors.ParameterError, "P106", "a count is inf; it is finite and at least 0"),
        (lambda: Moments(1, 0, -1e-9), errors.ParameterError, "P106", "a second moment is -1e-09; it is at least 0"),
        (
            lambda: Moments.from_variance(0, -1.0, 0),
            errors.ParameterError,
            "P106",
            "a variance is -1.0; it is at least 0",
        ),
        (
            lambda: Moments(1, 0, [[1, 2], [3]]),
            errors.ParameterError,
            "P107",
            "m2 is a nested sequence of unequal lengths",
        ),
        (
            lambda: Moments(1, 1j, 0),
            errors.DtypeError,
            "D101",
            "mean has dtype complex128; moments are those of real numbers: floats, integers or booleans",
        ),
        (
            lambda: Moments.of(np.array(["a"])),
            errors.DtypeError,
            "D101",
            "array has dtype <U1; moments are those of real numbers: floats, integers or booleans",
        ),
        (
            lambda: Moments(None, 0, 0),  # type: ignore[arg-type]
            errors.DtypeError,
            "D101",
            "count has dtype object; moments are those of real numbers: floats, integers or booleans",
        ),
        (
            lambda: Moments.of([1.0]),  # type: ignore[arg-type]
            errors.InputError,
            "A101",
            (
                "moments are computed of a NumPy array, not of list\n"
                "write np.asarray(...) around it if its values are in memory"
            ),
        ),
        (
            lambda: Moments.of(np.ma.masked_array([1.0], [True])),
            errors.InputError,
            "A102",
            "array is a masked array\ngive its data and, to Moments.of, mask=~array.mask",
        ),
        (
            lambda: Moments.of(X, mask=np.ones((2, 3))),  # type: ignore[arg-type]
            errors.DtypeError,
            "D002",
            "mask has the dtype float64\npass an array of booleans, such as mask != 0; True counts",
        ),
        (
            lambda: Moments.of(X, mask=[True]),  # type: ignore[arg-type]
            errors.InputError,
            "A003",
            "mask is of type list\npass an array of booleans; True counts",
        ),
        (
            lambda: Moments.of(X, mask=np.ones((2, 2), bool)),
            errors.ShapeError,
            "S021",
            (
                "mask of shape (2, 2) does not broadcast to an array of shape (2, 3)\n"
                "its axes are the last of the input's, each of the same size or 1"
            ),
        ),
        (
            lambda: Moments.of(X, weights=np.ones((4, 2, 3))),
            errors.ShapeError,
            "S021",
            (
                "weights of shape (4, 2, 3) do not broadcast to an array of shape (2, 3)\n"
                "their axes are the last of the input's, each of the same size or 1"
            ),
        ),
        (
            lambda: Moments.of(X, weights=[1, -1, 1]),
            errors.ParameterError,
            "P106",
            "a weight is -1.0 at (1,); it is finite and at least 0",
        ),
        (
            lambda: Moments.of(X, axes=2),
            errors.ParameterError,
            "P105",
            "axis 2 does not exist in an array of rank 2\naxes run from 0 to 1, or -2 to -1",
        ),
        (
            lambda: Moments.of(np.array(1.0), axes=0),
            errors.ParameterError,
            "P105",
            "axis 0 does not exist in an array of rank 0\ngive axes=()",
        ),
        (
            lambda: Moments.of(X, axes=(1, -1)),
            errors.ParameterError,
            "P105",
            "axes=(1, -1) names an axis twice in an array of rank 2\nname every axis once",
        ),
        (
            lambda: Moments.of(X, axes="All"),  # type: ignore[arg-type]
            errors.ParameterError,
            "P105",
            "axes='All' are no axes of an array\nan axis is an integer, several are a tuple of integers",
        ),
        (
            lambda: Moments.of(X, method="rms"),  # type: ignore[arg-type]
            errors.ParameterError,
            "P108",
            'method is "Standardize" or "RMS", not \'rms\'',
        ),
    ],
)
def test_errors(make: Any, error: type[errors.GennormError], code: str, text: str) -> None:
    with pytest.raises(error) as caught:
        make()
    assert caught.value.code == code
    assert caught.value.message == text
