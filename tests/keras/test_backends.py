"""The checks of `checks.py`, and Keras' own tests with our classes in the place of theirs, on every backend of Keras.

A process of Keras has one backend. So the tests start a process for each backend, which runs all checks of it.
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

# Tests that are skipped, by the start of their name, and why.
SKIPPED = {
    "NormalizationTest.test_adapt_grain_dataset": "grain is not a dependency of the tests",
    "NormalizationTest.test_call_on_meta_device_after_built": "only torch has meta tensors",
    "BatchNormalizationTest.test_bachnorm_ignore_masked_values": "the backend numpy does not train",
    "test_adapt_takes_a_tf_data_set": "TensorFlow is not installed",
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
    assert done.returncode == 0, done.stdout  # that of pytest: no test failed, and none was cut off
    return done.stdout


def assert_passed(output):
    """Every test that the lines name has passed, or is skipped for a reason that is known."""
    found = {outcome: set() for outcome in ("PASSED", "FAILED", "SKIPPED")}
    for line in output.splitlines():
        outcome, _, name = line.partition(" ")
        if outcome in found:
            found[outcome].add(name)
    assert len(found["PASSED"]) > 50, output
    assert not found["FAILED"], output  # no test of Keras needs an exception
    assert all(name.startswith(tuple(SKIPPED)) for name in found["SKIPPED"]), output


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_checks(backend):
    assert_passed(run(backend, str(HERE / "in_process.py"), str(HERE / "checks.py")))


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_tests_of_keras(backend):
    files = [*ORIGINAL, *(WITH_TENSORFLOW if importlib.util.find_spec("tensorflow") else [])]
    assert_passed(run(backend, str(HERE / "in_process.py"), "--replace", *files))
