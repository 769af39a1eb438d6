"""What holds for every test: frameworks that must be here, the profiles of Hypothesis, and skips that are counted."""

import importlib
import os

import hypothesis
import pytest

CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}

# Keras takes its backend at import; TensorFlow, its default, is no dependency of ours.
os.environ.setdefault("KERAS_BACKEND", "torch")

hypothesis.settings.register_profile("dev", max_examples=50, deadline=None)
hypothesis.settings.register_profile("ci", max_examples=200, deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if CI else "dev"))


def pytest_addoption(parser):
    parser.addoption(
        "--fuzz-seconds",
        type=float,
        default=0.0,
        help="how long test_fuzz.py and test_fuzz_cli.py go on with new examples",
    )


@pytest.fixture
def threads():
    """Sets their number: arrays of a quarter of a million elements are shared by seven."""
    import gennorm as gn

    before = gn.get_num_threads()
    yield gn.set_num_threads
    gn.set_num_threads(before)


def missing_frameworks(names: str) -> list[str]:
    """The comma-separated modules of `names` that cannot be imported, each with the reason."""
    missing = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        try:
            importlib.import_module(name)
        except ImportError as error:
            missing.append(f"{name} ({error})")
    return missing


def pytest_configure(config):
    # A test of a framework skips itself where the framework is missing. Where it was asked for, that is a failure.
    missing = missing_frameworks(os.environ.get("GENNORM_REQUIRE", ""))
    if missing:
        msg = f"GENNORM_REQUIRE names what cannot be imported: {'; '.join(missing)}"
        raise pytest.UsageError(msg)


def skip_lines(reports) -> list[str]:
    """One line per skipped test or module: where, and the reason given."""
    lines = []
    for report in reports:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        lines.append(f"{report.nodeid}: {reason.removeprefix('Skipped: ')}")
    return sorted(lines)


def skipped(config) -> list[str]:
    """The skipped tests of this session, from the reports the terminal keeps."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    return skip_lines(terminal.stats.get("skipped", [])) if terminal else []


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    lines = skipped(config)
    if CI and lines:
        terminalreporter.section("skipped, which fails the session in CI", red=True)
        for line in lines:
            terminalreporter.write_line(line)


def pytest_sessionfinish(session, exitstatus):
    if CI and session.exitstatus == pytest.ExitCode.OK and skipped(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
