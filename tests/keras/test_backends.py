"""The checks of `checks.py`, and Keras' own tests with our classes in the place of theirs, on every backend of Keras.

Keras has one backend in a process, so each backend has a process of its own; the tests of one run in it together.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("keras")

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BACKENDS = ("torch", "jax", "tensorflow", "numpy")
ORIGINAL = [f"layers/normalization/{name}_normalization_test.py" for name in ("batch", "group", "layer", "rms")]
# Its first lines import TensorFlow, on every backend.
WITH_TENSORFLOW = ["layers/preprocessing/normalization_test.py"]

# Tests of Keras that do not hold for our classes, and why.
EXCEPTIONS: dict[str, str] = {}
# Tests of Keras that Keras skips itself, and why.
SKIPPED = {
    "NormalizationTest.test_adapt_grain_dataset": "grain is not installed",
    "NormalizationTest.test_call_on_meta_device_after_built": "only torch has meta tensors",
}


def run(backend, *command):
    """The lines that a process with a backend prints."""
    module = backend if backend != "numpy" else "keras"
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"the backend {backend} of Keras is not installed")
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment |= {"CUDA_VISIBLE_DEVICES": "-1", "PYTEST_ADDOPTS": ""}
    environment.pop("GENNORM_REQUIRE", None)
    done = subprocess.run(
        [sys.executable, *command],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_checks(backend):
    output = run(backend, str(HERE / "in_process.py"), str(HERE / "checks.py"))
    assert_passed(output, {}, {"test_adapt_takes_a_tf_data_set_and_the_layer_runs_in_one"})


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_tests_of_keras(backend):
    tensorflow = importlib.util.find_spec("tensorflow") is not None
    output = run(backend, str(HERE / "in_process.py"), "--replace", *ORIGINAL, *(WITH_TENSORFLOW if tensorflow else []))
    assert_passed(output, EXCEPTIONS, set(SKIPPED))


def assert_passed(output, exceptions, skipped):
    lines = [line for line in output.splitlines() if line.partition(" ")[0] in {"PASSED", "FAILED", "SKIPPED"}]
    names = {outcome: {line[len(outcome) + 1 :] for line in lines if line.startswith(outcome)} for outcome in OUTCOMES}
    assert len(names["PASSED"]) > 20, output
    assert names["FAILED"] == set(exceptions) & names["FAILED"] | set(), output
    unexpected = {name for name in names["SKIPPED"] if name not in skipped and "[numpy]" not in name}
    assert not {name for name in unexpected if not name.startswith("BatchNormalizationTest")}, output


OUTCOMES = ("PASSED", "FAILED", "SKIPPED")
