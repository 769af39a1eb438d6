"""Runs test files on the backend of KERAS_BACKEND, in a process that a test starts.

`python tests/keras/in_process.py [--replace] FILE...` prints `PASSED`, `FAILED` or `SKIPPED` and a name in a line for
each test. A relative file is one of Keras' wheel, such as `layers/normalization/x_test.py`. With `--replace`, Keras'
modules have the classes of gennorm in the place of Keras' own.
"""

import sys
from pathlib import Path

import keras
import pytest

import gennorm.keras

PACKAGE = Path(keras.__file__).parent / "src"


class Report:
    """Prints the outcome of each test."""

    def pytest_runtest_setup(self, item):
        if item.get_closest_marker("requires_trainable_backend") and keras.backend.backend() == "numpy":
            pytest.skip("the backend numpy does not train")

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.partition("::")[2].replace("::", ".")
        if report.when == "call" or not report.passed:
            sys.stdout.write(f"{report.outcome.upper()} {name}\n")
            if report.failed:
                sys.stdout.writelines(f"| {line}\n" for line in str(report.longrepr).splitlines()[-40:])

    def pytest_collectreport(self, report):
        if report.failed:
            sys.stdout.write(f"FAILED {report.nodeid}\n| {report.longrepr}\n")


def main(files):
    if files[0] == "--replace":
        files = files[1:]
        for name in gennorm.keras.layers.__all__:
            for module in (keras.layers, keras.src.layers):
                setattr(module, name, getattr(gennorm.keras, name))
    options = ["-p", "no:cacheprovider", "-p", "no:terminal", "-c", "/dev/null"]
    paths = [str(PACKAGE / file) for file in files]
    return pytest.main([*options, "--rootdir", str(Path(paths[0]).parent), *paths], plugins=[Report()])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
