"""The layer against the vectors of the specification; the vectors against their schema and their source."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import gennorm as gn
from gennorm.spec.config import LayerConfig, resolve_config
from spec import generate, reference

Case = dict[str, Any]

SCHEMA = json.loads((generate.FOLDER.parent.parent / "vectors.schema.json").read_text(encoding="utf-8"))
FILES = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(generate.FOLDER.glob("*.json"))}
CASES = {f"{name}: {case['name']}": case for name, file in FILES.items() for case in file["cases"]}

# Of the largest magnitude in the case: spec/README.md.
TOLERANCE = {"float64": 1e-12, "float32": 2e-6, "float16": 4e-3, "bfloat16": 3e-2}
# What this version of the layer does not do yet. A line that is no longer true fails the session: take it out.
PENDING: set[str] = set()
WIDTH = {"bfloat16": 0, "float16": 0, "float32": 1, "float64": 2}


def number(dtype: str) -> Any:
    return np.dtype(dtype) if dtype != "bfloat16" else np.dtype(pytest.importorskip("ml_dtypes").bfloat16)


def array(stored: Any, dtype: str = "float64") -> NDArray[Any]:
    values = [float.fromhex(value) for value in stored["values"]]
    return np.array(values, dtype=np.float64).reshape(stored["shape"]).astype(number(dtype))


def array_or_none(stored: Any, dtype: str = "float64") -> NDArray[Any] | None:
    return None if stored is None else array(stored, dtype)


def arguments(config: Case) -> Case:
    """The constructor's arguments from their JSON."""
    found = dict(config)
    if isinstance(found["group_number"], dict):
        found["group_number"] = {int(level): groups for level, groups in found["group_number"].items()}
    if "input_shape" in found:
        found["input_shape"] = tuple(... if size == "..." else size for size in found["input_shape"])
    return found


def prepared(case: Case, layer: Any) -> Any:
    """The layer with the moments it holds before the call."""
    if "given" in case:
        layer.moments = gn.Moments.from_variance(array_or_none(case["given"]["mean"]), array(case["given"]["variance"]))
    return layer


def held(case: Case, dtype: str) -> Case:
    return {key: array_or_none(value, dtype) for key, value in case["parameters"].items()}


def layer_of(case: Case, dtype: str = "float64") -> Any:
    return prepared(case, gn.NormalizationLayer(**arguments(case["config"]), **held(case, dtype), dtype=dtype))


def options(case: Case, dtype: str = "float64") -> Case:
    """Arguments of the call."""
    found: Case = {}
    for key, value in case.get("call", {}).items():
        if key == "mask":
            found[key] = np.array(value["values"], dtype=bool).reshape(value["shape"])
        else:
            found[key] = value if key == "training" else array(value, dtype)
    return found


def agree(actual: Any, stored: Any, tolerance: float, what: str) -> None:
    """Equal shapes; numbers equal beside the largest finite one; NaN and infinities in the same places."""
    expected = array(stored)
    assert actual.shape == expected.shape, what
    finite = np.abs(expected[np.isfinite(expected)])
    scale = max(1.0, finite.max(initial=0.0)) if what == "output" else finite.max(initial=0.0)
    np.testing.assert_allclose(actual.astype(np.float64), expected, rtol=0, atol=tolerance * scale, err_msg=what)


def parameters(name: str, case: Case, *values: Any, needs: set[str], slow: bool = False) -> Any:
    missing = sorted(PENDING & needs)
    marks = [pytest.mark.xfail(reason=f"not there yet: {', '.join(missing)}")] if missing else []
    marks += [pytest.mark.slow] if slow else []
    return pytest.param(case, *values, id=name, marks=marks)


def needs(case: Case) -> set[str]:
    """What a layer must know for the call."""
    return set(case.get("call", {})) | {"given"} & case.keys()


def chosen(select: Callable[[Case], object], *also: str) -> list[Any]:
    return [parameters(name, case, needs=needs(case) | {*also}) for name, case in CASES.items() if select(case)]


def with_dtypes() -> list[Any]:
    """Every case in float64 and float32, and the cases within the range of 16-bit floats also in these.

    Each dtype compiles other kernels. Therefore all but the exactest dtype that a case has are slow.
    """
    found = []
    for name, case in CASES.items():
        for dtype, width in WIDTH.items():
            narrow = name.startswith(("methods", "groups", "given")) and "never varied" not in name
            if width >= WIDTH[case["exact_in"]] and (width or narrow):
                found.append(parameters(f"{name}, {dtype}", case, dtype, needs=needs(case), slow=dtype != "float64"))
    return found


# The layer -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "dtype"), with_dtypes())
def test_output(case: Case, dtype: str) -> None:
    layer, x = layer_of(case, dtype), array(case["input"], dtype)
    before = x.copy()
    y = layer(x, **options(case, dtype))
    assert y.dtype == x.dtype
    agree(y, case["output"], TOLERANCE[dtype] * far(case), "output")
    np.testing.assert_array_equal(x, before, strict=True)


def far(case: Case) -> float:
    """How much larger the numbers are than their deviations: a rounded mean is that much further off."""
    if case.get("moments", {}).get("mean") is None:
        return 1.0
    count, mean, m2 = (array(case["moments"][key]) for key in ("count", "mean", "m2"))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.abs(mean) / np.sqrt(m2 / count)
    return float(max(1.0, ratio[np.isfinite(ratio)].max(initial=1.0)))


def measured() -> list[Any]:
    cases = ((name, case) for name, case in CASES.items() if "moments" in case)
    return [parameters(name, case, needs=needs(case) & {"mask"}) for name, case in cases]


@pytest.mark.parametrize("case", measured())
def test_moments(case: Case) -> None:
    dtype = "float32" if case["exact_in"] == "float32" else "float64"
    masked = {key: value for key, value in options(case).items() if key == "mask"}
    moments = layer_of(case, dtype).measure(array(case["input"], dtype), **masked)
    np.testing.assert_array_equal(moments.count, array(case["moments"]["count"]), strict=True)
    assert (moments.mean is None) == (case["moments"]["mean"] is None)
    for key in ("mean", "m2"):
        stored = case["moments"][key]
        if stored is not None:
            # Which of NaN and the infinities a sum over one of them gives depends on its order.
            found, values = getattr(moments, key), array(stored)
            np.testing.assert_array_equal(np.isfinite(found), np.isfinite(values), err_msg=key)
            agree(np.where(np.isfinite(values), found, values), stored, TOLERANCE[dtype], key)


@pytest.mark.parametrize("case", chosen(lambda case: "moving" in case))
def test_moving_moments(case: Case) -> None:
    layer = layer_of(case)
    layer(array(case["input"]), **options(case))
    moments = layer.moments
    if case["moving"]["mean"] is None:
        agree(moments.mean_square(), case["moving"]["variance"], 1e-12, "mean square")
    else:
        agree(moments.mean, case["moving"]["mean"], 1e-12, "mean")
        agree(moments.variance(), case["moving"]["variance"], 1e-12, "variance")


def invertible(case: Case) -> bool:
    """What was multiplied by 0 does not come back."""
    if "given" not in case or "moving" in case:
        return False
    scaling = case["parameters"]["scaling"]
    varied = case["config"]["epsilon"] > 0 or array(case["given"]["variance"]).all()
    return bool(varied and (scaling is None or array(scaling).all()))


@pytest.mark.parametrize("case", chosen(invertible, "inverse"))
def test_inverse(case: Case) -> None:
    x = layer_of(case).inverse(array(case["output"]))
    agree(x, case["input"], 1e-11, "input")


@pytest.mark.parametrize("case", chosen(lambda case: "derivative" in case, "derivative"))
def test_derivative(case: Case) -> None:
    x, stored = array(case["input"]), case["derivative"]
    y, pullback = layer_of(case).vjp(x, **options(case))
    agree(y, case["output"], TOLERANCE["float64"], "output")
    found = pullback(array(stored["output"]))
    for key in ("input", "scaling", "biases"):
        cotangent = getattr(found, key)
        assert (cotangent is None) == (stored[key] is None), key
        if cotangent is not None:
            agree(cotangent, stored[key], 1e-11, key)


@pytest.mark.parametrize("case", chosen(lambda case: "preset" in case))
def test_preset(case: Case) -> None:
    preset = case["preset"]
    positional = [tuple(value) if isinstance(value, list) else value for value in preset["arguments"]]
    layer = getattr(gn, preset["function"])(
        *positional, **(preset["keywords"] | held(case, "float64")), dtype="float64"
    )
    y = prepared(case, layer)(array(case["input"]), **options(case))
    agree(y, case["output"], TOLERANCE["float64"], "output")


def of_examples(case: Case) -> bool:
    alone = case["config"]["batched"] and not {"given", "call", "preset"} & case.keys()
    return alone and "0" not in str(case["config"]["aggregation_levels"])


@pytest.mark.parametrize("case", chosen(of_examples))
def test_an_example_does_not_depend_on_its_batch(case: Case) -> None:
    config = arguments(case["config"]) | {"batched": False}
    layer = gn.NormalizationLayer(**config, **held(case, "float64"), dtype="float64")
    whole = array(case["output"])
    for i, example in enumerate(array(case["input"])):
        np.testing.assert_allclose(layer(example), whole[i], rtol=0, atol=1e-12 * max(1.0, np.abs(whole[i]).max()))


# Levels, groups and shapes: no arrays ---------------------------------------------------------------------------------

ENDS = st.sampled_from(["", "All"]) | st.integers(-4, 4).map(str)
ITEMS = st.integers(-4, 5).map(str) | st.builds("{};;{}".format, ENDS, ENDS) | st.just("All")
SPECS = ITEMS | st.lists(ITEMS, min_size=1, max_size=3).map(lambda items: "{" + ", ".join(items) + "}")
NUMBERS = st.sampled_from([1, 1, 2, 3])
GROUPS = (
    st.none()
    | NUMBERS
    | st.lists(NUMBERS, min_size=1, max_size=3)
    | st.dictionaries(st.integers(-3, 3), NUMBERS, max_size=2)
)


@settings(max_examples=500)
@given(
    shape=st.lists(st.sampled_from([2, 4, 6]), max_size=5).map(tuple),
    aggregation=SPECS,
    scaling=SPECS | st.sampled_from(["Same", "Complement", "{}"]),
    groups=GROUPS,
    batched=st.booleans(),
)
def test_the_reference_and_the_package_resolve_alike(
    shape: tuple[int, ...], aggregation: str, scaling: str, groups: Any, batched: bool
) -> None:
    if batched and not shape:
        return
    try:
        where = reference.geometry(shape, aggregation, scaling, groups, batched)
        expected = (where.kept, tuple(shape[axis] for axis in where.scaling), where.size, where.scaling)
    except ValueError:
        expected = None
    try:
        resolved = resolve_config(LayerConfig.make(aggregation, scaling, groups, batched=batched), shape)
        found = (resolved.moments_shape, resolved.parameter_shape, resolved.count, resolved.scaling)
    except gn.GennormError:
        found = None
    assert found == expected


# The vectors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_schema(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.Draft202012Validator(SCHEMA).validate(FILES[name])
    for case in FILES[name]["cases"]:
        for stored in (case["input"], case["output"]):
            assert len(stored["values"]) == np.prod(stored["shape"])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.pop("version"),
        lambda file: file["cases"][0].update(note="x"),
        lambda file: file["cases"][0].pop("output"),
        lambda file: file["cases"][0]["output"]["values"].append("0.5"),
        lambda file: file["cases"][0]["output"]["values"].append(0.5),
        lambda file: file["cases"][0]["config"].update(method="rms"),
        lambda file: file["cases"][0]["config"].update(group_number=0),
    ],
)
def test_the_schema_refuses(spoil: Callable[[Case], object]) -> None:
    file = copy.deepcopy(FILES["methods"])
    spoil(file)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMA).validate(file)


def test_the_files_are_those_of_the_reference() -> None:
    assert generate.summary() == []
    assert generate.main(["--check"]) == 0


def test_the_check_sees_every_kind_of_difference(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    for name, text in generate.texts().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert generate.summary(tmp_path) == []

    (tmp_path / "levels.json").unlink()
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "masks.json").write_text("{")
    groups = copy.deepcopy(FILES["groups"])
    groups["cases"][0]["output"]["values"][3] = "0x1p-3"
    groups["cases"][1]["moments"]["m2"]["values"].pop()
    del groups["cases"][2]["moments"]
    (tmp_path / "groups.json").write_text(json.dumps(groups), encoding="utf-8")
    other = copy.deepcopy(FILES["given"])
    values = other["cases"][0]["output"]["values"]
    values[0] = np.nextafter(float.fromhex(values[0]), 9.0).hex()  # a machine that adds in another order
    (tmp_path / "given.json").write_text(json.dumps(other), encoding="utf-8")

    lines = generate.summary(tmp_path)
    assert lines[0] == "other.json: not made by spec/generate.py"
    assert lines[1] == "levels.json: missing"
    assert lines[2].startswith("groups.cases[1 groups].output.values[3]: '0x1p-3' in the file, '")
    assert lines[3].startswith("groups.cases[group norm, 1 groups].moments.m2.values: [")
    assert lines[4] == "groups.cases[channels last, 1 groups].moments: only in the reference"
    assert lines[5].startswith("masks.json: not JSON: ")
    assert len(lines) == 6

    monkeypatch.setattr(generate, "summary", lambda: lines)
    assert generate.main(["--check"]) == 1
    assert capsys.readouterr().out.startswith("other.json: not made by spec/generate.py\nlevels.json: missing\n")


def test_every_combination_is_there() -> None:
    settings = [case["config"] for case in FILES["methods"]["cases"]]
    seen = {
        (
            config["method"], config["epsilon_placement"], config["unbiased"], str(config["scaling_levels"]),
            config["group_number"] is None, config["batched"],
        )
        for config in settings
    }  # fmt: skip
    # Absent parameters are the fifth kind of scaling and share the word of the first; rank 1 has no list of two levels.
    assert len(FILES["methods"]["cases"]) == 9 * 5 * 2 * 2
    assert len(seen) >= 9 * 3 * 2 * 2
    for batched in (False, True):
        ranks = {
            len(case["input"]["shape"]) - batched
            for file in FILES.values()
            for case in file["cases"]
            if case["config"]["batched"] == batched
        }
        assert ranks >= {1, 2, 3, 4, 5, 6}
    presets = {case["preset"]["function"] for case in FILES["presets"]["cases"]}
    assert presets == {"batch_norm", "layer_norm", "rms_norm", "instance_norm", "group_norm"}
