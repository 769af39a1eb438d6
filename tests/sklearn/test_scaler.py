"""The estimator: what scikit-learn asks of one, equality with `StandardScaler`, and what `StandardScaler` refuses."""

import copy
import pickle
from unittest import SkipTest

import numpy as np
import pytest

from gennorm.errors import GennormError

pytest.importorskip("sklearn")

import sklearn
from scipy import sparse as scipy_sparse
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from gennorm.sklearn import LevelScaler

RNG = np.random.default_rng(0)
X = RNG.normal([5, -3, 0.1, 1e6], [2, 0.5, 1e-3, 1], (60, 4))
WEIGHT = RNG.integers(0, 4, 60).astype(float)
Y = X @ [1.0, -2.0, 3.0, 0.0]
HOLES = np.where(RNG.random(X.shape) < 0.2, np.nan, X)
CONSTANT = np.column_stack([X, np.full(60, 0.1), np.zeros(60), 1e9 + 1e-7 * (np.arange(60) % 2)])
PICTURES = RNG.normal(size=(6, 4, 3, 5))


@parametrize_with_checks(
    [
        LevelScaler(),
        LevelScaler(with_mean=False),
        LevelScaler(method="RMS"),
        LevelScaler("0;;All", unbiased=True, epsilon=1e-3),
    ]
)
def test_checks_of_scikit_learn(estimator, check):
    try:
        check(estimator)
    except SkipTest as skip:  # of arrays of other libraries, which SciPy takes if a variable of the environment says so
        assert "SCIPY_ARRAY_API is not set" in str(skip)  # noqa: PT017


# ------------------------------------------------------------------------------------------- equal to StandardScaler

DATA = {
    "float64": X,
    "float32": X.astype(np.float32),
    "integers": np.arange(40).reshape(10, 4) ** 2,
    "holes": HOLES,
    "constant": CONSTANT,
    "one sample": X[:1],
    "nothing in a column": np.where([False, True, False, False], np.nan, X),
    "Fortran": np.asfortranarray(X),
    "steps": X[::2, ::-1],
    "many": RNG.normal(3, 2, (3000, 5)),
}


@pytest.mark.parametrize("parameters", [{}, {"with_mean": False}, {"with_std": False}], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", DATA)
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # theirs, where a column has no value
def test_equals_standard_scaler_to_the_last_bits(name, weighted, parameters):
    data = DATA[name]
    weights = np.arange(len(data)) % 3 + 1.0 if weighted else None
    ours, theirs = LevelScaler(**parameters), StandardScaler(**parameters)
    for one in (ours, theirs):
        one.fit(data, sample_weight=weights)
    last = max(4, len(data) ** 0.5) * np.finfo(np.float64).eps  # their sums over the samples round in every step
    for attribute in ("mean_", "var_", "scale_"):
        mine, other = getattr(ours, attribute), getattr(theirs, attribute)
        if other is None:
            assert mine is None
            continue
        # Their variance of a weighted feature that is far from 0 has the rounding of its mean.
        exact = last if attribute == "mean_" or not weighted else 1e-9
        np.testing.assert_allclose(mine, other, rtol=exact, atol=1e-15 if attribute == "var_" else 0)
    assert np.array_equal(ours.n_samples_seen_, theirs.n_samples_seen_)
    assert type(ours.n_samples_seen_ + 0) is not np.ndarray or name in {"holes", "nothing in a column"}
    found, other = ours.transform(data), theirs.transform(data)
    assert found.dtype == other.dtype
    # Theirs rounds the mean to the dtype of the data, which costs most where the mean is large: 1e6 in float32.
    scale = 1.0 if theirs.scale_ is None else np.nan_to_num(theirs.scale_, nan=1.0)
    away = np.abs(np.nan_to_num(theirs.mean_)) / scale if theirs.with_mean else 0.0
    bound = max(4 * np.finfo(found.dtype).eps, last) * (1 + np.abs(np.nan_to_num(other)) + away)
    assert (np.abs(np.nan_to_num(found) - np.nan_to_num(other)) <= bound).all()
    assert np.array_equal(np.isnan(found), np.isnan(other))
    exact = 1e-5 if data.dtype == np.float32 else 1e-13
    np.testing.assert_allclose(
        ours.inverse_transform(found), np.where(np.isnan(found), np.nan, data), rtol=exact, atol=exact
    )


def test_constant_features_are_those_of_standard_scaler():
    ours, theirs = LevelScaler().fit(CONSTANT), StandardScaler().fit(CONSTANT)
    assert np.array_equal(ours.scale_ == 1, theirs.scale_ == 1)
    assert np.array_equal(ours.scale_[-3:], [1, 1, 1])
    assert np.array_equal(LevelScaler(constant="floor").fit(CONSTANT).scale_[-3:] == 1, [False, False, False])


@pytest.mark.parametrize("form", [scipy_sparse.csr_array, scipy_sparse.csc_array, scipy_sparse.csr_matrix])
@pytest.mark.parametrize("data", [X * (RNG.random(X.shape) < 0.3), HOLES * (RNG.random(X.shape) < 0.5)])
@pytest.mark.parametrize(
    "parameters",
    [{}, {"aggregation_levels": "0;;All"}, {"aggregation_levels": "0;;1", "group_number": {1: 2}}, {"method": "RMS"}],
    ids=str,
)
@pytest.mark.parametrize("weighted", [False, True])
def test_sparse_matrices_equal_dense_ones(form, data, parameters, weighted):
    weights = WEIGHT if weighted else None
    dense = LevelScaler(with_mean=False, **parameters).fit(data, sample_weight=weights)
    ours = LevelScaler(with_mean=False, **parameters).fit(form(data), sample_weight=weights)
    for name in ("mean_", "var_", "scale_", "n_samples_seen_"):
        expected = getattr(dense, name)
        assert (getattr(ours, name) is None) == (expected is None)
        if expected is not None:
            np.testing.assert_allclose(getattr(ours, name), expected, rtol=1e-11, atol=1e-15)
    before = form(data)
    found = ours.transform(before)
    assert np.array_equal(before.toarray(), form(data).toarray(), equal_nan=True)
    assert found.format == before.format
    np.testing.assert_allclose(found.toarray(), dense.transform(data), rtol=1e-11, atol=1e-15)
    np.testing.assert_allclose(ours.inverse_transform(found).toarray(), data, rtol=1e-14)
    in_place = before.copy()
    assert ours.transform(in_place, copy=False) is in_place


def test_duplicates_of_a_sparse_matrix_are_summed():
    both = scipy_sparse.csr_array((np.array([1.0, 2.0, 4.0]), np.array([0, 0, 1]), np.array([0, 2, 3])), shape=(2, 2))
    assert LevelScaler(with_mean=False).fit(both).mean_.tolist() == [1.5, 2.0]
    assert len(both.data) == 3


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_copy_false_writes_into_the_input(dtype):
    data = X[:, :3].astype(dtype)
    expected = LevelScaler().fit_transform(data)
    fitted = LevelScaler(copy=False).fit(data)
    assert np.array_equal(data, X[:, :3].astype(dtype))
    assert fitted.transform(data) is data
    assert np.array_equal(data, expected)
    assert fitted.inverse_transform(data, copy=True) is not data
    assert fitted.inverse_transform(data) is data
    data.setflags(write=False)
    assert np.array_equal(fitted.transform(data), LevelScaler().fit(X[:, :3].astype(dtype)).transform(data))


# --------------------------------------------------------------------------------------- what StandardScaler refuses

KINDS = {
    "channels first": ({"aggregation_levels": "{0, 2;;All}"}, (0, 2, 3)),
    "elements": ({"aggregation_levels": 0}, (0,)),
    "everything": ({"aggregation_levels": "0;;All"}, (0, 1, 2, 3)),
    "without the batch": ({"aggregation_levels": "2;;All"}, (0, 2, 3)),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("unbiased", [False, True])
def test_any_rank(name, unbiased):
    parameters, axes = KINDS[name]
    ours = LevelScaler(**parameters, unbiased=unbiased).fit(PICTURES)
    mean, deviation = PICTURES.mean(axes, keepdims=True), PICTURES.std(axes, keepdims=True, ddof=int(unbiased))
    np.testing.assert_allclose(ours.mean_, mean.reshape(ours.mean_.shape), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(ours.scale_, deviation.reshape(ours.scale_.shape), rtol=1e-14)
    y = ours.transform(PICTURES)
    np.testing.assert_allclose(y, (PICTURES - mean) / deviation, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(ours.inverse_transform(y), PICTURES, rtol=1e-13, atol=1e-14)
    parts = [LevelScaler(**parameters, unbiased=unbiased).fit(part) for part in (PICTURES[:1], PICTURES[1:])]
    np.testing.assert_allclose(sum(parts).transform(PICTURES), y, rtol=1e-13, atol=1e-15)


def test_groups():
    data = RNG.normal([0, 0, 5, 5], 1, (30, 4))
    ours = LevelScaler("0;;1", group_number={1: 2}).fit(data)
    assert ours.mean_.shape == (2,)
    np.testing.assert_allclose(ours.mean_, data.reshape(30, 2, 2).mean((0, 2)), rtol=1e-14)
    assert ours.n_samples_seen_ == 60
    ghost = LevelScaler(0, group_number=7).fit(data)  # groups of the samples are for the statistics of an input
    assert np.array_equal(ghost.mean_, LevelScaler(0).fit(data).mean_)


@pytest.mark.parametrize("weighted", [False, True])
def test_parts_are_as_exact_as_the_whole(weighted):
    data, weights = X + 1e9, WEIGHT if weighted else None
    whole = LevelScaler().fit(data, sample_weight=weights)
    cuts = [slice(0, 1), slice(1, 7), slice(7, 7 + 30), slice(37, 60)]
    each = [None if weights is None else weights[cut] for cut in cuts]
    step = LevelScaler()
    for cut, weight in zip(cuts, each, strict=True):
        step.partial_fit(data[cut], sample_weight=weight)
    merged = sum(LevelScaler().fit(data[cut], sample_weight=weight) for cut, weight in zip(cuts, each, strict=True))
    for other in (step, merged):
        np.testing.assert_allclose(other.mean_, whole.mean_, rtol=2e-16)
        np.testing.assert_allclose(other.var_, whole.var_, rtol=1e-14)
        assert other.n_samples_seen_ == whole.n_samples_seen_
        assert type(other.n_samples_seen_) is type(whole.n_samples_seen_)
    assert step.fit(data[:5]).n_samples_seen_ == 5


def test_merging_keeps_names_and_changes_neither():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=list("abcd"))
    first, second = LevelScaler().fit(frame[:20]), LevelScaler().fit(frame[20:])
    before = pickle.dumps(first)
    merged = first + second
    assert merged.get_feature_names_out().tolist() == list("abcd")
    assert pickle.dumps(first) == before
    np.testing.assert_allclose(
        merged.transform(frame), LevelScaler().fit(frame).transform(frame), rtol=1e-12, atol=1e-14
    )
    with pytest.raises(NotFittedError):
        first + LevelScaler()
    with pytest.raises(TypeError):
        first + 1


# ------------------------------------------------------------------------------------------------ in scikit-learn


def test_pipelines_searches_and_columns():
    pipeline = Pipeline([("scale", LevelScaler()), ("model", Ridge())])
    grid = {"scale__aggregation_levels": ["{0, 1;;-2}", "0;;All"], "scale__with_mean": [True, False]}
    search = GridSearchCV(pipeline, grid, cv=3, error_score="raise").fit(X, Y)
    assert search.best_params_["scale__aggregation_levels"] == "{0, 1;;-2}"
    theirs = cross_val_score(make_pipeline(StandardScaler(), Ridge()), X, Y, cv=3)
    np.testing.assert_allclose(cross_val_score(make_pipeline(LevelScaler(), Ridge()), X, Y, cv=3), theirs, rtol=1e-9)
    columns = ColumnTransformer([("a", LevelScaler(), [0, 1]), ("b", LevelScaler("0;;All"), [2, 3])]).fit(X)
    np.testing.assert_allclose(
        columns.transform(X)[:, :2], StandardScaler().fit_transform(X[:, :2]), rtol=1e-13, atol=1e-14
    )


def test_clone_and_pickle():
    fitted = LevelScaler("0;;1", group_number={1: 2}, unbiased=True).fit(X)
    unfitted = clone(fitted)
    assert unfitted.get_params() == fitted.get_params()
    assert not hasattr(unfitted, "moments_")
    for twin in (pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted), copy.copy(fitted)):
        assert np.array_equal(twin.transform(X), fitted.transform(X))
        assert np.array_equal(twin.partial_fit(X[:3]).mean_, clone(fitted).fit(X).partial_fit(X[:3]).mean_)
    assert fitted.n_samples_seen_ == 120


def test_sample_weights_are_routed():
    with sklearn.config_context(enable_metadata_routing=True):
        routed = make_pipeline(
            LevelScaler().set_fit_request(sample_weight=True), Ridge().set_fit_request(sample_weight=True)
        )
        routed.fit(X, Y, sample_weight=WEIGHT)
        assert np.array_equal(routed[0].mean_, LevelScaler().fit(X, sample_weight=WEIGHT).mean_)
        plain = make_pipeline(
            LevelScaler().set_fit_request(sample_weight=False), Ridge().set_fit_request(sample_weight=True)
        )
        assert np.array_equal(plain.fit(X, Y, sample_weight=WEIGHT)[0].mean_, LevelScaler().fit(X).mean_)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames_in_and_out(library):
    frames = pytest.importorskip(library)
    frame = frames.DataFrame({name: column.tolist() for name, column in zip("abcd", HOLES.T, strict=True)})
    fitted = LevelScaler().set_output(transform=library).fit(frame)
    found = fitted.transform(frame)
    assert type(found) is type(frame)
    assert list(found.columns) == list("abcd")
    expected = LevelScaler().fit(HOLES).transform(HOLES)
    np.testing.assert_allclose(found.to_numpy().astype(float), expected, rtol=1e-15)
    assert fitted.feature_names_in_.tolist() == list("abcd")
    if library == "pandas":
        assert found.index.equals(frame.index)
        with pytest.raises(ValueError, match="feature names should match"):
            fitted.transform(frame[["b", "a", "c", "d"]])


# --------------------------------------------------------------------------------------------------------- errors


def test_a_fit_that_fails_changes_nothing():
    fitted = LevelScaler(constant="raise").fit(X)
    before = fitted.moments_, fitted.layer_
    for data, weights in ((np.ones((3, 4)), None), (X, -WEIGHT), (X[:, 0], None)):
        with pytest.raises(ValueError, match=r"."):
            clone(fitted).fit(data, sample_weight=weights)
    with pytest.raises(GennormError, match="slices are constant"):
        LevelScaler(constant="raise").fit(np.ones((3, 4)))
    with pytest.raises(ValueError, match="features"):
        fitted.partial_fit(X[:, :2])
    assert (fitted.moments_, fitted.layer_) == before
