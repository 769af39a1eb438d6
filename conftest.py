"""Settings of the test session: examples of Hypothesis, required frameworks, and tests that passed before."""

import importlib
import importlib.util
import os
import re
import signal
import sys
from pathlib import Path

import hypothesis
import pytest

# Keras reads its backend when it is imported; its default, TensorFlow, is not a dependency of the tests.
os.environ.setdefault("KERAS_BACKEND", "torch")

# Every session draws the same examples, so that a change fails only by its own fault. `--hypothesis-profile=new` draws
# new ones, `--hypothesis-profile=thorough` draws the same ones but four times as many.
same = {"deadline": None, "derandomize": True, "print_blob": True}
hypothesis.settings.register_profile("same", max_examples=50, **same)
hypothesis.settings.register_profile("thorough", max_examples=200, **same)
hypothesis.settings.register_profile("new", max_examples=50, deadline=None, print_blob=True)
hypothesis.settings.load_profile("same")

FRAMEWORKS = (
    *("dask", "distributed", "flax", "griffe", "jax", "keras", "onnx", "onnxruntime", "pandas", "polars", "selenium"),
    *("sklearn", "tensorflow", "torch", "transformers", "xarray"),
)
# An import at the top of a module, or in an example of a page or a docstring.
IMPORT = re.compile(rf"^(?:>>> )?(?:import|from) ({'|'.join(FRAMEWORKS)})\b", re.MULTILINE)


def pytest_addoption(parser):
    parser.addoption("--fuzz-seconds", type=float, default=0.0, help="time for new examples in each file of fuzzing")
    parser.addoption("--except-passed", metavar="FILE", help="leave out core tests that FILE records as passed")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """With `-n`, each process gets neighbouring tests, so that two processes seldom compile the same kernel."""
    chosen = any(str(argument).startswith("--dist") for argument in config.invocation_params.args)
    if getattr(config.option, "numprocesses", None) and not chosen:
        config.option.dist = "worksteal"


# --------------------------------------------------------------------------------------------- frameworks and skips


def missing_frameworks(names: str) -> list[str]:
    """The modules of the comma-separated `names` that cannot be imported, each with the reason."""
    missing = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        try:
            importlib.import_module(name)
        except ImportError as error:
            missing.append(f"{name} ({error})")
    return missing


def required() -> str:
    """The frameworks that must be installed. Where there are any, a skipped test fails the session."""
    return os.environ.get("GENNORM_REQUIRE", "")


def pytest_configure(config):
    missing = missing_frameworks(required())
    if missing:
        msg = f"GENNORM_REQUIRE names modules that cannot be imported: {'; '.join(missing)}"
        raise pytest.UsageError(msg)


class Skipped(pytest.File):
    """A file whose examples need a framework that is not installed."""

    missing: str

    def collect(self):
        where = self.path.relative_to(self.config.rootpath).as_posix()
        pytest.skip(f"the examples of {where} need {self.missing}, which is not installed", allow_module_level=True)


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(file_path, parent):
    """Skip the examples of a page or a module that imports a missing framework; test modules skip themselves."""
    found = yield
    if found and not file_path.name.startswith("test_") and file_path.suffix in {".py", ".md"}:
        front = file_path.parent.name  # the package of a front imports its framework
        names = [front] if front in FRAMEWORKS else []
        for name in dict.fromkeys(names + IMPORT.findall(file_path.read_text(encoding="utf-8"))):
            if importlib.util.find_spec(name) is None:
                skipped = Skipped.from_parent(parent, path=file_path)
                skipped.missing = name
                return [skipped]
    return found


def skip_lines(reports) -> list[str]:
    """One line per skipped test or file: where, and the reason."""
    lines = []
    for report in reports:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        lines.append(f"{report.nodeid}: {reason.removeprefix('Skipped: ')}")
    return sorted(lines)


def skipped(config) -> list[str]:
    """The skipped tests of this session, from the reports of the terminal."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    return skip_lines(terminal.stats.get("skipped", [])) if terminal else []


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    lines = skipped(config)
    if required() and lines:
        terminalreporter.section("skipped, which fails this session because GENNORM_REQUIRE is set", red=True)
        for line in lines:
            terminalreporter.write_line(line)


def pytest_sessionfinish(session, exitstatus):
    if required() and session.exitstatus == pytest.ExitCode.OK and skipped(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


# ----------------------------------------------------------------------------------------------- tests that passed
# before

# Tests that do not depend on what is installed besides the core. A session writes those that passed to the file that
# GENNORM_RECORD names; `--except-passed` leaves them out of a session with the same versions of the core's packages.
CORE = ("tests/conformance/", "tests/engine/kernels/", "tests/layer/", "tests/spec/")
CORE += tuple(f"tests/test_{name}.py::" for name in ("definition", "numerics", "properties", "moments", "oracles"))


def pytest_collection_modifyitems(config, items):
    path = config.getoption("--except-passed")
    if path:
        passed = {*Path(path).read_text(encoding="utf-8").splitlines()}
        left_out = [item for item in items if item.nodeid in passed and item.nodeid.startswith(CORE)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in {*left_out}]


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    terminal, path = config.pluginmanager.get_plugin("terminalreporter"), os.environ.get("GENNORM_RECORD")
    if path and terminal and "PYTEST_XDIST_WORKER" not in os.environ:  # neither a worker, nor a session in a test
        passed = {report.nodeid for report in terminal.stats.get("passed", [])}
        failed = {report.nodeid for kind in ("failed", "error") for report in terminal.stats.get(kind, [])}
        Path(path).write_text("".join(f"{name}\n" for name in sorted(passed - failed)), encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------- fixtures


@pytest.fixture(autouse=True)
def _jax_with_32_bits():
    """Each test finds JAX with its default, whatever a test before it has switched on."""
    jax = sys.modules.get("jax")
    if jax is not None and hasattr(jax, "config") and jax.config.read("jax_enable_x64"):
        jax.config.update("jax_enable_x64", False)


@pytest.fixture
def interruptible():
    """SIGINT raises KeyboardInterrupt, also where the session ignores it, as behind nohup."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def threads():
    """A function that sets the number of threads; the test ends with the number before."""
    import gennorm as gn

    before = gn.get_num_threads()
    yield gn.set_num_threads
    gn.set_num_threads(before)
