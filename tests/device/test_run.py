"""The script for accelerators, on a CPU and on meta tensors: a few cases of each part."""

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("array_api_compat")

from tests.device import checks, record, run, vectors  # noqa: E402

# torch warns of what it will not do in later versions, and of what it cannot fuse.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


def ran(tmp_path, *arguments):
    out = tmp_path / "out.json"
    status = run.main([str(out), *arguments])
    return status, json.loads(out.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--device", "cpu", "--definition"),
        ("--device", "cpu"),
        ("--device", "meta"),
    ],
    ids=" ".join,
)
def test_a_record_of_a_few_cases(tmp_path, capsys, arguments):
    status, found = ran(tmp_path, *arguments, "--parts", "checks,conformance", "--only", "groups: 2 groups")
    assert (status, found["failed"], found["skipped"], found["complete"]) == (0, 0, 0, True)
    groups = [one for one in found["groups"] if one["group"] == "conformance"]
    assert len(groups) == 12  # four dtypes, three layouts
    assert all(one["cases"] == 1 for one in groups)
    assert all((one["worst"] > 0) == ("meta" not in arguments) for one in groups)
    assert (found["format"], found["version"], found["device"]["type"]) == ("gennorm/device", 1, arguments[1])
    assert "12 cases" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("text", ["errors: ", "models: ", "transforms: jvp", "drop-in classes: GroupNorm", "autocast"])
def test_other_parts(tmp_path, text):
    status, found = ran(tmp_path, "--device", "cpu", "--definition", "--parts", "checks", "--only", text)
    assert found["failures"] == []
    assert status == 0
    assert found["cases"] > 2


def test_a_case_that_fails_is_recorded_and_the_others_run(tmp_path, monkeypatch, capsys):
    def broken(found, stored, tolerance, what, *, least=0.0):
        raise AssertionError(what)

    monkeypatch.setattr(vectors, "compared", broken)
    options = "--device", "cpu", "--parts", "checks,conformance", "--only", "groups: 2 groups"
    status, found = ran(tmp_path, *options)
    assert status == 1
    assert found["failed"] == 12
    assert found["failures"][0]["error"] == "AssertionError"
    assert "broken" in found["failures"][0]["text"]
    assert "FAILED conformance" in capsys.readouterr().out


def test_wrong_values_are_seen():
    right = torch.tensor([1.0, -2.0])
    assert checks.near(right + 1e-7, right, 1e-6, "values") < 1
    with pytest.raises(AssertionError, match="the largest error is"):
        checks.near(right + 1e-3, right, 1e-6, "values")
    stored = {"shape": [2], "values": ["0x1p+0", "-0x1p+1"]}
    assert vectors.compared(right, stored, 1e-6, "values") == 0
    with pytest.raises(AssertionError):
        vectors.compared(right + 1e-3, stored, 1e-6, "values")


def test_the_time_limit_stops_the_run(tmp_path):
    status, found = ran(tmp_path, "--device", "cpu", "--parts", "conformance", "--only", "groups", "--seconds", "0")
    assert status == 0
    assert not found["complete"]
    assert found["skipped"] > 100


def test_a_case_has_a_time_limit():
    def endless():
        while True:
            pass

    recorder = record.Recorder(60.0, most=0.05)
    recorder.case("slow", "slow", "slow", endless)
    assert [one["error"] for one in recorder.failures] == ["OutOfTimeError"]


def test_without_an_accelerator(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "accelerator", lambda _: None)
    status, found = ran(tmp_path)
    assert (status, found["cases"]) == (2, 0)
    assert "torch has no accelerator" in capsys.readouterr().out


@pytest.mark.slow
def test_compiled_blocks_and_times(tmp_path):
    text = "torch.compile: fullgraph=True, convolution, batch"
    options = "--device", "cpu", "--definition", "--parts", "compile", "--only", text
    status, found = ran(tmp_path, *options)
    assert found["failures"] == []
    assert status == 0
