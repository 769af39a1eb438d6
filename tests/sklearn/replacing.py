"""A plugin of pytest that runs scikit-learn's own tests of `StandardScaler` with our estimator in its place.

`python -m pytest -p tests.sklearn.replacing --pyargs sklearn.preprocessing.tests.test_data`. Tests that do not use
`StandardScaler` are left out, and so are those of `LEFT_OUT`. A line at the end has the number of each.
"""

import inspect

import pytest
import sklearn.preprocessing
import sklearn.preprocessing._data as data

import gennorm.sklearn

# Tests that are left out, and why.
OTHER_ARRAYS = "the estimator takes arrays of NumPy; those of torch and JAX have fronts of their libraries"
LEFT_OUT = {
    "test_standard_scaler_callback_support": "callbacks are an experimental interface of scikit-learn's own estimators",
    "test_standard_scaler_sample_weight_array_api": OTHER_ARRAYS,
    "test_standard_scaler_array_api_compliance": OTHER_ARRAYS,
}


def pytest_configure():
    """Replace the class before the tests are imported; an import of this module alone, for its examples, does not."""
    data.StandardScaler = sklearn.preprocessing.StandardScaler = gennorm.sklearn.LevelScaler


def name_of(item):
    return item.originalname or item.name


def uses_the_scaler(item):
    """Whether a test names `StandardScaler`, or has it as a parameter."""
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    ours = any(gennorm.sklearn.LevelScaler in {value, type(value)} for value in parameters if value.__hash__)
    return ours or "StandardScaler" in inspect.getsource(item.function)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    ours = [item for item in items if uses_the_scaler(item)]
    assert {name_of(item) for item in ours} >= {*LEFT_OUT}, "a test that is left out does not exist"
    config.left_out = [item for item in ours if name_of(item) in LEFT_OUT]
    chosen = [item for item in ours if name_of(item) not in LEFT_OUT]
    config.hook.pytest_deselected(items=[item for item in items if item not in {*chosen}])
    items[:] = chosen


def pytest_terminal_summary(terminalreporter, config):
    assert sklearn.preprocessing.StandardScaler is gennorm.sklearn.LevelScaler
    passed = len(terminalreporter.stats.get("passed", []))
    terminalreporter.write_line(f"with our estimator: {passed} passed, {len(config.left_out)} left out")
