"""`gennorm bench`: the cases, the values of all libraries, the times, and what is printed, written and drawn."""

import dataclasses
import itertools
import json
import math
import os
import re
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

import gennorm as gn
from gennorm.bench import between, cases, charts, growth, measuring, models, peers, report, startup, timing, values
from gennorm.bench.cases import Case, Size, Work
from gennorm.bench.measuring import Result
from gennorm.cli import bench as command
from gennorm.cli.app import app

MATRIX = cases.matrix()


def bench(*arguments, status=0):
    result = CliRunner().invoke(app, ["bench", *map(str, arguments)], prog_name="gennorm", env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, result.output
    return result.stdout


def misuse(*arguments):
    result = CliRunner().invoke(app, ["bench", *map(str, arguments)], prog_name="gennorm", env={"COLUMNS": "200"})
    assert result.exit_code == 2, result.output
    return " ".join(re.findall(r"│ (.*?) *│", result.stderr))


# ----------------------------------------------------------------------------------------------------------- the matrix


def test_names_of_cases_are_unique():
    assert len({(case.name, case.work) for case in MATRIX}) == len(MATRIX)


@pytest.mark.parametrize("work", [Work.FORWARD, Work.BACKWARD])
def test_cases_cover_every_norm_size_and_dtype(work):
    """Every norm in every size, channels first and last, odd sizes, every dtype, padded rows, two grouped levels."""
    found = [case for case in MATRIX if case.work is work]
    norms = ("layer", "RMS", "group", "instance", "batch", "channel-wise layer")
    assert {case.norm for case in found} == {*norms}
    for size in Size:
        here = [case for case in found if case.size is size]
        assert {case.norm for case in here} == {*norms}
        images = {case.norm for case in here if len(case.shape) == 4 and case.channel == -1}
        assert images == {"group", "instance", "batch"}
        assert any(case.trailing == 3 for case in here)
        assert all(case.bytes >= 100e6 for case in here if size is Size.LARGE)
        # Middle arrays of 16-bit floats have half the bytes.
        assert all(4e6 <= case.bytes <= 26e6 for case in here if size is Size.MIDDLE)
    assert {(1, 768), (128, 768), (4099, 1023)} <= {case.shape for case in found}
    assert {case.dtype for case in found} == {"float32", "float64", "float16", "bfloat16"}
    assert [case.norm for case in found if case.padding] == ["layer"]
    assert [dict(case.groups) for case in found if len(case.groups) > 1] == [{1: 8, 2: 4}]


def test_large_forwards_are_also_measured_into_out():
    into = {case.name for case in MATRIX if case.work is Work.OUT}
    assert into == {case.name for case in MATRIX if case.work is Work.FORWARD and case.size is Size.LARGE}


@pytest.mark.parametrize(
    ("patterns", "name"),
    [
        (["RMS norm 1x768"], "RMS norm 1×768"),
        (["rms*1×768"], "RMS norm 1×768"),
        (["8 × 4 groups"], "group norm 16×64×56×56, 8 × 4 groups"),
        (["rows 64 apart"], "layer norm 4096×768, rows 64 apart"),
    ],
)
def test_patterns(patterns, name):
    assert [case.name for case in cases.matching(MATRIX, patterns, works=["forward"])] == [name]


def test_cases_are_chosen_by_size_and_work():
    chosen = cases.matching(MATRIX, ["layer", "batch"], ["tiny"], ["backward"])
    assert {case.norm for case in chosen} == {"layer", "channel-wise layer", "batch"}
    assert {(case.size, case.work) for case in chosen} == {(Size.TINY, Work.BACKWARD)}


@pytest.mark.parametrize("work", [Work.MODULE, Work.EVALUATION])
def test_cases_cover_every_module_of_torch(work):
    """Every class of torch, channels first and last, 16-bit floats; large arrays in training only."""
    found = [case for case in MATRIX if case.work is work]
    for size in (Size.TINY, Size.SMALL, Size.MIDDLE):
        here = [case for case in found if case.size is size]
        assert {case.norm for case in here} == {"layer", "RMS", "group", "instance", "batch"}
        assert {case.norm for case in here if case.channel == -1} == {"group", "instance", "batch"}
    assert {case.dtype for case in found} == {"float32", "float16", "bfloat16"}
    assert any(case.size is Size.LARGE for case in found) is (work is Work.MODULE)


CACHE = 1 << 20


@pytest.mark.parametrize(
    ("case", "span", "arrays"),
    [
        # Rows that fit into the cache are read and written. A row of three cache lines and a rest is four lines.
        (Case("layer", (100, 50), Size.SMALL), 256, 2),
        (Case("layer", (100, 50), Size.SMALL, Work.BACKWARD), 256, 5),
        # A column of float32 has each of its elements in another cache line.
        (Case("batch", (1000, 64), Size.SMALL), 64_000, 2),
        (Case("batch", (100_000, 64), Size.SMALL), 6_400_000, 3),
        (Case("batch", (100_000, 64), Size.SMALL, Work.BACKWARD), 6_400_000, 8),
        (Case("batch", (100_000, 64), Size.SMALL, Work.INFERENCE), 6_400_000, 2),
        (Case("feature", (100_000, 64), Size.SMALL, Work.ADAPT, channel=-1), 6_400_000, 1),
        (Case("batch", (100_000, 64), Size.SMALL, Work.MODULE), 6_400_000, 8),
        (Case("batch", (100_000, 64), Size.SMALL, Work.EVALUATION), 6_400_000, 2),
        # Channels last: 8 channels of float32 are half a cache line.
        (Case("group", (2, 100, 64), Size.SMALL, channel=-1, groups=((2, 8),)), 6_400, 2),
        (Case("instance", (2, 64, 100), Size.SMALL), 448, 2),
        (Case("group", (2, 64, 100), Size.SMALL, groups=((1, 8),)), 3_200, 2),
    ],
    ids=str,
)
def test_bytes_that_must_move(case, span, arrays):
    assert case.span == span
    assert case.moved(CACHE) == arrays * case.bytes


def test_cache_size_of_a_core():
    assert 1 << 15 <= measuring.cache_bytes() <= 1 << 27


# ----------------------------------------------------------------------------------------------------------- the values


def shrunk(case):
    """The same case of a few elements: 3 examples, 64 channels, and groups of them."""
    sizes = (3, 5, 6, 64) if case.channel == -1 else (3, 64, 6, 5)
    shape = sizes if len(case.shape) == 4 else (3, 64)
    return dataclasses.replace(case, shape=shape, groups=tuple((axis, 2) for axis, _ in case.groups))


KINDS = list({(case.name, case.work): case for case in map(shrunk, MATRIX)}.values())
EAGER = [peer for name, peer in peers.PEERS.items() if name != "torch.compile"]
# Whether a library has no function for a case.
WITHOUT_FUNCTION = {
    peers.Torch: lambda case: case.work is Work.OUT,
    peers.Jax: lambda case: case.work in {Work.OUT, *peers.MODULES},
    peers.Numpy: lambda case: case.work in {Work.OUT, *peers.MODULES},
    peers.Sklearn: lambda case: case.work is not Work.ADAPT,
    peers.OnnxRuntime: lambda case: (
        case.work in {Work.BACKWARD, Work.OUT, Work.ADAPT, *peers.MODULES}
        or (case.norm == "batch" and case.work is Work.FORWARD)
        or case.norm == "channel-wise layer"
        or case.dtype == "bfloat16"
        or case.padding
        or len(case.groups) > 1
        or (case.channel == -1 and len(case.shape) > 2)
    ),
}


def error_of(library, case):
    """The error of a library over the allowed one; None where it has no function for the case."""
    arrays, here = case.arrays(), library(1)
    competitor = here.competitor(case, arrays)
    if competitor is None:
        return None
    with here.context(case):
        found = competitor.values(competitor.call())
    return values.distance(case, found, values.expected(case, arrays)) / library.slack


@pytest.mark.parametrize("case", KINDS, ids=lambda case: f"{case.name}, {case.work}")
def test_gennorm_computes_the_definition(case):
    if case.work in peers.MODULES:
        pytest.importorskip("torch")
    assert error_of(peers.Gennorm, case) <= 1


@pytest.mark.parametrize("library", EAGER, ids=lambda library: library.name)
@pytest.mark.parametrize("work", Work)
def test_other_libraries_compute_the_definition(work, library):
    if reason := library.absence():
        pytest.skip(reason)
    for case in KINDS:
        if case.work is work:
            error = error_of(library, case)
            assert (error is None) == bool(WITHOUT_FUNCTION[library](case)), case.name
            assert error is None or error <= 1, case.name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own code
@pytest.mark.parametrize("work", ["forward", "backward"])
def test_compiled_torch_computes_the_definition(work):
    if reason := peers.Compiled.absence():
        pytest.skip(reason)
    assert error_of(peers.Compiled, Case("group", (2, 8, 5), Size.TINY, Work(work), groups=((1, 2),))) <= 1


def test_forward_into_out_returns_the_same_array():
    case = Case("layer", (5, 40), Size.TINY, Work.OUT)
    arrays = case.arrays()
    call = peers.Gennorm(1).competitor(case, arrays).call
    assert call() is call()


def test_values_of_blocks_of_examples_are_joined(monkeypatch):
    """Blocks of examples, the last of them smaller, give the same values as all examples at once."""
    case = Case("group", (7, 8, 10), Size.SMALL, Work.BACKWARD, groups=((1, 2),))
    arrays = case.arrays()
    whole = values.compute(case, arrays, np.float64)
    monkeypatch.setattr(values, "BLOCK", 3 * 80)
    for name, found in values.expected(case, arrays).items():
        np.testing.assert_allclose(found, whole[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spoil", [lambda y: 1.01 * y, lambda y: y[:-1], lambda y: np.where(y > 1, np.nan, y)])
def test_a_wrong_value_is_found(spoil):
    case = Case("layer", (5, 40), Size.TINY)
    right = values.expected(case, case.arrays())
    assert values.distance(case, right, right) == 0
    assert values.distance(case, {"output": spoil(right["output"])}, right) > 1
    assert values.distance(case, {}, right) == math.inf


# --------------------------------------------------------------------------------------------------------------- timing


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the returned function advances."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def sleep(seconds):
        now[0] += seconds

    return sleep


def test_calls_take_turns_and_the_best_time_counts(clock):
    turns, slow = [], itertools.cycle([4e-3, 3e-3, 2e-3, 7e-3])

    def call(name, seconds):
        turns.append(name)
        clock(seconds)

    found = timing.best_times(
        {"slow": lambda: call("slow", next(slow)), "fast": lambda: call("fast", 1e-3)}, seconds=0.02
    )
    assert found == {"slow": pytest.approx(2e-3), "fast": pytest.approx(1e-3)}
    rounds = [(name, len(list(some))) for name, some in itertools.groupby(turns[4:])]  # after two calls of each
    assert rounds[:3] == [("slow", 3), ("fast", 6), ("slow", 3)]  # the order is reversed each round


def test_short_calls_are_timed_together(clock):
    found = timing.best_times({"short": lambda: clock(1e-6)}, seconds=0)
    assert found["short"] == pytest.approx(1e-6)
    assert timing._calls_per_sample(lambda: clock(1e-6)) == 200


def test_each_call_gets_the_same_time(clock):
    spent = {"slow": 0, "fast": 0}

    def call(name, seconds):
        spent[name] += 1
        clock(seconds)

    timing.best_times({"slow": lambda: call("slow", 0.5), "fast": lambda: call("fast", 0.01)}, seconds=0.29)
    assert spent == {"slow": 2 + 3, "fast": 2 + 30}


def test_a_limit_of_threads_is_a_limit_of_processors():
    before = gn.get_num_threads(), os.sched_getaffinity(0)
    with measuring.limited_to(1):
        assert gn.get_num_threads() == len(os.sched_getaffinity(0)) == 1
    assert (gn.get_num_threads(), os.sched_getaffinity(0)) == before


# ---------------------------------------------------------------------------------------------------------- the command

QUICK = ("--seconds", 0.001, "--threads", 1)


def test_a_run_prints_writes_and_draws(tmp_path):
    for module in ("torch", "jax", "onnxruntime", "onnx"):
        pytest.importorskip(module)
    data, picture = tmp_path / "speed.json", tmp_path / "speed.svg"
    arguments = ("group norm 1x64x8x8", "--work", "forward,backward", "--peers", "torch,JAX,onnxruntime,numpy")
    text = bench(*arguments, *QUICK, "--json", data, "--chart", picture)
    lines = text.splitlines()
    assert lines[1].startswith(f"gennorm {gn.__version__}, torch ")
    at = next(i for i, line in enumerate(lines) if line.startswith("Forward, with the allocation of the output"))
    assert re.fullmatch(r" +gennorm +over the floor +torch +JAX +ONNX Runtime +NumPy *", lines[at + 1])
    assert re.fullmatch(r"group norm 1×64×8×8, 32 groups +[\d.]+ µs( +[\d.]+×){5} *", lines[at + 2])
    assert re.search(r"Forward and backward.* +torch +1( +[\d.]+×){2} +group norm 1×64×8×8, 32 groups", text)
    run = json.loads(data.read_text(encoding="utf-8"))
    assert run["format"] == "gennorm/bench"
    assert run["threads"] == 1
    assert list(run["peers"]) == ["torch", "JAX", "ONNX Runtime", "NumPy"]
    forward, backward = run["cases"]
    assert list(forward["seconds"]) == ["gennorm", "torch", "JAX", "ONNX Runtime", "NumPy"]
    assert list(backward["seconds"]) == ["gennorm", "torch", "JAX", "NumPy"]
    assert forward["wrong"] == backward["wrong"] == {}
    means = {(row["work"], row["peer"]): row["geometric_mean"] for row in run["summary"]}
    ratio = forward["seconds"]["torch"] / forward["seconds"]["gennorm"]
    assert means["forward", "torch"] == pytest.approx(ratio, rel=2e-3)
    svg = picture.read_text(encoding="utf-8")
    assert svg.startswith("<?xml")
    assert len(svg) > 10_000


def test_an_interrupted_run_prints_the_results_that_it_has(monkeypatch):
    honest, done = command.measure, []

    def interrupted(case, *rest):
        if done:
            raise KeyboardInterrupt
        done.append(case)
        return honest(case, *rest)

    monkeypatch.setattr(command, "measure", interrupted)
    text = bench("1x768", "--work", "forward", "--peers", "numpy", *QUICK, status=130)
    assert re.search(r"layer norm 1×768 +[\d.]+ µs", text)
    assert "RMS norm 1×768" not in text


def test_a_library_with_wrong_values_is_marked_and_the_status_is_1(monkeypatch):
    honest = peers.Numpy.competitor

    def liar(self, case, arrays):
        told = honest(self, case, arrays)
        return dataclasses.replace(told, values=lambda found: {name: 1.1 * y for name, y in found.items()})

    monkeypatch.setattr(peers.Numpy, "competitor", liar)
    text = bench("layer norm 1x768", "--work", "forward", "--peers", "numpy", *QUICK, status=1)
    assert re.search(r"layer norm 1×768 .* ≠ [\d.]+×", text)
    assert re.search(r"≠ layer norm 1×768, forward: the error of NumPy is [\d.]+ times the allowed one", text)


def test_a_missing_library_is_named(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(peers, "find_spec", lambda name: None if name == "jax" else object())
    monkeypatch.setattr(peers.shutil, "which", lambda _: None)
    monkeypatch.setenv("CXX", "no-such-compiler")
    text = bench("layer norm 1x768", "--work", "forward", "--peers", "jax,torch.compile,numpy", *QUICK)
    assert "without JAX: jax is not installed" in text
    assert "without torch.compile: there is no C++ compiler (no-such-compiler)" in text


def test_without_torch_no_module_is_measured(monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: None if name == "torch" else object())
    text = bench("layer norm 1x768", "--work", "forward,module,evaluation", "--peers", "numpy", *QUICK)
    assert "Forward, with the allocation of the output" in text
    assert "Modules" not in text


def test_modules_are_compared_with_those_of_torch():
    pytest.importorskip("torch")
    text = bench("layer norm 1x768", "--work", "module,evaluation", "--peers", "torch,torch.compile", *QUICK)
    for title in ("Modules of torch, forward and backward", "Modules of torch in evaluation"):
        assert re.search(rf"{title} *\n +gennorm +over the floor +torch *\n", text)
        assert re.search(rf"{title} +torch +1( +[\d.]+×){{2}} +layer norm 1×768", text)


def test_an_incomplete_installation_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    monkeypatch.setattr(peers, "find_spec", lambda _: object())
    assert peers.Jax.absence().startswith("jax cannot be imported: ")


def test_list_option():
    lines = bench("bfloat16", "--list", "--work", "backward").splitlines()
    assert "backward   large   layer norm 65536×1024, bfloat16" in lines
    assert len(bench("--list").splitlines()) == len(MATRIX)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["no such case"], "Invalid value for 'PATTERN': there is no such case; gennorm bench --list lists them all"),
        (["--size", "huge"], "Invalid value for '--size': \"huge\" is none of tiny, small, middle, large"),
        (
            ["--work", "forwards"],
            '"forwards" is none of forward, backward, out, inference, adapt, module, evaluation; did you mean "for',
        ),
        (["--peers", "jaxx"], '"jaxx" is none of torch, torch.compile, jax, onnxruntime, numpy, scikit-learn, sklearn'),
        (
            ["--measure", "sped"],
            '"sped" is none of speed, startup, accuracy, growth, models, between; did you mean "speed"?',
        ),
        (["--threads", 4096], "Invalid value for '--threads': 4096 are more than the"),
        (
            ["--chart", "a.gif"],
            "Invalid value for '--chart': \"a.gif\" is not a picture; write a name that ends with .svg",
        ),
        (["--json", "no/a.json"], "Invalid value for '--json': there is no folder \"no\""),
    ],
)
def test_errors_of_the_command_line(arguments, text):
    assert text in misuse(*arguments)


# --------------------------------------------------------------------------------------------------- other measurements


def test_measuring_growth(tmp_path):
    data = tmp_path / "growth.json"
    text = bench("--measure", "growth", "--gigabytes", 2**-8, *QUICK, "--json", data)
    assert re.search(r"Nanoseconds per element *\n +1 MB +4 MB *\n", text)
    grown = json.loads(data.read_text(encoding="utf-8"))["growth"]
    assert {one["name"] for one in grown} == {series.name for series in growth.SERIES}
    assert {one["bytes"] for one in grown} == {1 << 20, 1 << 22}
    assert all(one["wrong"] < 1 for one in grown)


def test_a_wrong_end_of_a_large_array_is_found(monkeypatch):
    honest = gn.NormalizationLayer.__call__

    def liar(self, x, **keywords):
        y = honest(self, x, **keywords)
        y[-1] += 0.1
        return y

    monkeypatch.setattr(gn.NormalizationLayer, "__call__", liar)
    text = bench("--measure", "growth", "--gigabytes", 2**-10, *QUICK, status=1)
    assert "≠ one slice, 1,048,576 bytes" in text


def test_measuring_models(tmp_path, monkeypatch):
    """A small model: the columns of the table, and the record."""
    pytest.importorskip("transformers")
    kind, config, _, _ = models.MODELS["ResNet"]
    settings = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"}
    monkeypatch.setattr(models, "MODELS", {"small": (kind, config, settings, models._pictures(32))})
    data = tmp_path / "models.json"
    text = bench("--measure", "models", *QUICK, "--json", data)
    assert "Models, before and after gennorm.torch.accelerate" in text
    assert re.search(r"small +inference +\d +[\d.]+ .s +\d+% +[\d.]+ .s +\d+% +[\d.]+×", text)
    found = json.loads(data.read_text(encoding="utf-8"))["models"]
    assert [one["work"] for one in found] == ["inference", "training"]
    assert all(one["norms_before"] > 0 and one["layers"] > 3 and one["wrong"] < 1 for one in found)


def test_a_model_with_another_output_is_found(monkeypatch):
    pytest.importorskip("transformers")
    crossover = pytest.importorskip("gennorm.torch.crossover")
    monkeypatch.setattr(crossover, "_batch_invariant", True)  # torch's own operators give the same bits
    monkeypatch.setattr(models, "TOLERANCE", 1e-12)
    monkeypatch.setattr(
        models,
        "MODELS",
        {"BERT": (*models.MODELS["BERT"][:2], {"num_hidden_layers": 1, "vocab_size": 200}, models._words)},
    )
    assert "≠ BERT: the error is " in bench("--measure", "models", *QUICK, status=1)


SMALL = (
    between.Place("layer", (6, 32)),
    between.Place("group", (2, 32, 4, 4)),
    between.Place("batch", (2, 8, 4, 4), last=True),
)


def test_measuring_norms_between_operators(tmp_path, monkeypatch):
    """Two measurements of each place: the columns of the table, the means, and the record."""
    pytest.importorskip("torch")
    monkeypatch.setattr(between, "PLACES", SMALL)
    data = tmp_path / "between.json"
    text = bench("--measure", "between", *QUICK, "--json", data)
    for name in ("linear, layer norm, linear 6×32", "conv, batch norm, relu 2×8×4×4, channels last"):
        assert re.search(rf"{name} +training +[\d.]+ .s +[\d.]+ .s +[\d.]+× +[\d.]+×", text)
    assert re.search(r"geometric mean +inference +[\d.]+× +[\d.]+×", text)
    found = json.loads(data.read_text(encoding="utf-8"))["between"]
    assert [one["work"] for one in found] == ["inference", "training"] * 3
    assert all(0 < one["torch"] < one["whole_torch"] and 0 < one["gennorm"] < one["whole_gennorm"] for one in found)
    assert found[0]["elements"] == 192


def test_a_norm_with_another_output_is_found(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(between, "PLACES", SMALL[:1])
    monkeypatch.setattr(between, "TOLERANCE", 1e-12)
    monkeypatch.setattr(between, "_module", wrong_for_gennorm(between._module))
    assert "≠ linear, layer norm, linear 6×32: the error is " in bench("--measure", "between", *QUICK, status=1)


def wrong_for_gennorm(module):
    """Make modules with another epsilon for gennorm than for torch."""

    def made(nn, place):
        norm = module(nn, place)
        norm.eps = 0.1 if nn.__name__ == "gennorm.torch" else norm.eps
        return norm

    return made


def test_places_have_sizes_on_both_sides_of_65536():
    sizes = {math.prod(place.shape) >= 1 << 16 for place in between.PLACES}
    assert sizes == {False, True}
    assert len({place.name for place in between.PLACES}) == len(between.PLACES)


def test_measuring_startup(monkeypatch):
    monkeypatch.setattr(startup, "FIRST", {"layer norm": startup.FIRST["layer norm"]})
    monkeypatch.setattr(command, "PROCESSES", 1)
    text = bench("--measure", "startup", *QUICK)
    assert re.search(r"import gennorm, with NumPy +[\d.]+ m?s", text)
    cached, compiled = re.search(r"first call, layer norm +([\d.]+) m?s +([\d.]+) (?:m?s)", text).groups()
    assert float(cached) > 0 < float(compiled)


def test_the_chart_has_a_dot_for_every_speedup(tmp_path):
    """Two libraries and two cases: four dots, and a bar for each mean."""
    some = [Case("layer", (size, 768), Size.TINY) for size in (1, 2)]
    results = [Result(case, {"gennorm": 1.0, "torch": 2.0 + i, "JAX": 0.5}, 0.5, {}) for i, case in enumerate(some)]
    charts.draw(results, ["torch", "JAX"], "title", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    charts.draw(results, ["torch", "JAX"], "title", tmp_path / "a.svg")
    svg = (tmp_path / "a.svg").read_text(encoding="utf-8")
    for peer in ("torch", "JAX"):
        assert svg.lower().count(f"fill: {charts.COLOURS[peer].lower()}; fill-opacity") >= 2


def test_summary_of_speedups():
    some = [Case("layer", (size, 768), Size.TINY) for size in (1, 2)]
    results = [
        Result(some[0], {"gennorm": 1.0, "torch": 2.0}, 1, {}),
        Result(some[1], {"gennorm": 1.0, "torch": 8.0}, 1, {}),
    ]
    (row,) = report.summarized(results, ["torch", "JAX"])
    assert row == {
        "work": "forward",
        "peer": "torch",
        "cases": 2,
        "geometric_mean": pytest.approx(4),
        "least": 2.0,
        "least_in": "layer norm 1×768",
    }
