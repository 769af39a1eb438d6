"""What `gennorm bench` is to show, beside torch and JAX: run by name only, for minutes."""

import json
import math
import re
import subprocess
import sys

import pytest

from gennorm.cli.bench import running
from gennorm.cli.bench.cases import Size, Work, matrix

# The least geometric mean, by work, peer and number of threads.
MEANS = {
    ("forward", "torch"): {1: 5, 2: 4},
    ("backward", "torch"): {1: 4, 2: 3.5},
    ("forward", "JAX"): {1: 3, 2: 2.5},
    ("backward", "JAX"): {1: 3, 2: 2.5},
    ("inference", "torch"): {1: 1.5, 2: 1.2},
    ("module", "torch"): {1: 3, 2: 3},
}
LEAST = {1: 1.2, 2: 1.0}  # of any forward or backward case against either
HALVES = 2.0  # of float16 and bfloat16 against torch, in the mean
# Into `out=` against np.copyto: slices that fit the cache of a core, and larger ones.
COPIES = {1: (1.0, 0.66), 2: (1.3, 0.9)}
TINY = {"layer norm 1×768": 1.5, "RMS norm 1×768": 3.0}
# Modules beside torch's own: any of them; RMS norm, and instance norm with its channels last, in the mean; a call.
MODULE, MODULES, CALL = 1.0, {"RMS norm": 4.0, "instance norm.*channels last": 8.0}, ("layer norm 1×768", 1.0)
# Seconds of a new process: the import, the first call with kernels in the cache, and without.
IMPORT, WARM, COLD = 0.25, 0.4, 1.5


@pytest.fixture(scope="module", params=[1, 2], ids=["1 thread", "2 threads"])
def run(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "run.json"
    command = [sys.executable, "-m", "gennorm", "bench", "--threads", str(request.param), "--peers", "torch,jax"]
    measure = ["--measure", "speed,startup", "--json", str(path)]
    subprocess.run([*command, *measure], check=True)
    return json.loads(path.read_text(encoding="utf-8"))


def ratio(case, peer):
    return case["seconds"][peer] / case["seconds"]["gennorm"]


def mean(ratios):
    return math.exp(math.fsum(map(math.log, ratios)) / len(ratios))


def case_of(found):
    """The case as the matrix has it."""
    return next(case for case in matrix() if (case.name, case.work) == (found["name"], found["work"]))


def test_values(run):
    assert [case["name"] for case in run["cases"] if case["wrong"]] == []


@pytest.mark.parametrize(("work", "peer"), MEANS)
def test_geometric_means(run, work, peer):
    ratios = [ratio(case, peer) for case in run["cases"] if case["work"] == work and peer in case["seconds"]]
    assert mean(ratios) >= MEANS[work, peer][run["threads"]]


def test_no_case_is_behind(run):
    behind = {
        f"{case['name']}, {case['work']}, {peer}": round(ratio(case, peer), 2)
        for case in run["cases"]
        if case["work"] in {Work.FORWARD, Work.BACKWARD}
        for peer in ("torch", "JAX")
        if ratio(case, peer) < LEAST[run["threads"]]
    }
    assert behind == {}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("work", ["forward", "backward"])
def test_halves(run, dtype, work):
    found = [case for case in run["cases"] if case["dtype"] == dtype and case["work"] == work]
    assert mean([ratio(case, "torch") for case in found]) >= HALVES


@pytest.mark.parametrize("fits", [True, False], ids=["slices that fit the cache", "larger slices"])
def test_into_an_array_that_is_there(run, fits):
    goal = COPIES[run["threads"]][0 if fits else 1]
    behind = {
        case["name"]: round(ratio(case, "np.copyto"), 2)
        for case in run["cases"]
        if case["work"] == Work.OUT and (case_of(case).span <= running.cache()) is fits
        if ratio(case, "np.copyto") < goal
    }
    assert behind == {}


@pytest.mark.parametrize("name", TINY)
def test_tiny(run, name):
    (found,) = (case for case in run["cases"] if (case["name"], case["work"]) == (name, Work.FORWARD))
    assert found["size"] == Size.TINY
    assert ratio(found, "torch") >= TINY[name]


def test_no_module_is_behind(run):
    behind = {
        case["name"]: round(ratio(case, "torch"), 2)
        for case in run["cases"]
        if case["work"] == Work.MODULE and ratio(case, "torch") < MODULE
    }
    assert behind == {}


@pytest.mark.parametrize("pattern", MODULES)
def test_modules(run, pattern):
    found = [case for case in run["cases"] if case["work"] == Work.MODULE and re.match(pattern, case["name"])]
    assert mean([ratio(case, "torch") for case in found]) >= MODULES[pattern]


def test_a_call_of_a_module(run):
    name, goal = CALL
    (found,) = (case for case in run["cases"] if (case["name"], case["work"]) == (name, Work.EVALUATION))
    assert ratio(found, "torch") >= goal


def test_startup(run):
    imported, *first = run["startup"]
    assert imported["seconds"] < IMPORT
    slow = {wait["name"]: wait for wait in first if wait["seconds"] >= WARM or wait["compiling"] >= COLD}
    assert slow == {}
