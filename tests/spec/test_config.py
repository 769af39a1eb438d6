"""The settings of a layer: how they are read, written, and what they mean for an array."""

import copy
import dataclasses
import inspect
import json
import math
import pickle
from pathlib import Path

import jsonschema
import ml_dtypes
import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from gennorm.errors import (
    ConfigError,
    GennormError,
    GroupError,
    InitializationError,
    LevelRangeError,
    ShapeError,
)
from gennorm.spec import config as settings
from gennorm.spec.config import GroupMapping, LayerConfig, Resolved, parameter_shape, require_unbiased, resolve_config
from gennorm.spec.levels import Level, Listing, Span, Word

make = LayerConfig.make
SCHEMA = json.loads((Path(__file__).parents[2] / "spec" / "layer.schema.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def raised(call) -> GennormError | None:
    """The error of gennorm that a call raises, if any. Any other exception passes through."""
    try:
        call()
    except GennormError as error:
        return error
    return None


# ------------------------------------------------------------------------------------------------- reading and writing


def test_defaults():
    assert make() == LayerConfig(
        aggregation_levels=Span(2, None),
        scaling_levels=Word.COMPLEMENT,
        group_number=None,
        method="Standardize",
        unbiased=False,
        epsilon=1e-3,
        scaling="Automatic",
        biases="Automatic",
        input_shape=None,
        input_levels=None,
        batched=None,
        dtype="float32",
        statistics="input",
        momentum=0.99,
        trainable=True,
        epsilon_placement="inside",
        constant="floor",
        learning_rate_multipliers=None,
    )


def test_values_become_python_s_own():
    config = make(
        np.int64(1),
        [np.uint8(2)],
        {np.int32(1): np.int64(4)},
        unbiased=np.bool_(True),
        epsilon=np.float32(0.5),
        input_shape=[np.int64(8), None, ...],
        momentum=1,
        dtype=np.dtype("float16"),
        learning_rate_multipliers={"biases": 2, "scaling": np.float64(0)},
    )
    assert config.aggregation_levels == Level(1)
    assert config.scaling_levels == Listing((Level(2),))
    assert config.group_number == GroupMapping(((1, 4),))
    assert config.input_shape == (8, None, ...)
    assert config.learning_rate_multipliers == (("scaling", 0.0), ("biases", 2.0))
    kinds = {field.name: type(getattr(config, field.name)) for field in dataclasses.fields(config)}
    assert kinds["unbiased"] is bool
    assert kinds["epsilon"] is kinds["momentum"] is float
    assert hash(config) == hash(make(**config.arguments()))
    json.dumps(config.to_dict(), allow_nan=False)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtype_by_name_type_or_object(dtype):
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else getattr(np, dtype)
    assert make(dtype=dtype).dtype == make(dtype=kind).dtype == make(dtype=np.dtype(kind)).dtype == dtype


def test_negative_zero_is_zero():
    assert math.copysign(1, make(epsilon=-0.0).epsilon) == 1


def test_frozen_and_slotted():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().epsilon = 1.0
    assert not hasattr(make(), "__dict__")
    config = make("{1, 3}", (), {-1: 2}, input_shape=(2, ..., 4))
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config


NUMBERS = st.floats(0, 1e6)
LEVEL_TEXTS = st.sampled_from([1, -1, "2;;All", "All", ";;-2", "{1, 3;;4}", [2, "3;;"], "1;;All;;2"])
NAMED_TEXTS = st.sampled_from(["c", "w", "c;;w", "{w, c}", ["c", 2], "{1, w;;-2}", "c;;All;;2"])
CONFIGS = st.fixed_dictionaries(
    {
        "aggregation_levels": LEVEL_TEXTS | NAMED_TEXTS | st.sampled_from([0, "0;;All", "{0, 2;;All}", "b"]),
        "scaling_levels": LEVEL_TEXTS | NAMED_TEXTS | st.sampled_from(["Same", "Complement", (), "{}"]),
        "group_number": st.none()
        | st.integers(1, 3)
        | st.lists(st.integers(1, 3), min_size=1, max_size=3)
        | st.dictionaries(st.integers(-2, 3) | st.sampled_from("bcw"), st.integers(1, 3), max_size=2),
        "method": st.sampled_from(["Standardize", "RMS"]),
        "unbiased": st.booleans(),
        "epsilon": NUMBERS,
        "scaling": st.sampled_from(["Automatic", "explicit", None]),
        "biases": st.sampled_from(["Automatic", "explicit", None]),
        "input_shape": st.none() | st.lists(st.none() | st.just(...) | st.integers(0, 6), max_size=4),
        "input_levels": st.none() | st.sampled_from(["c w", "c h w", "b c h w", "c ... w", "b c ...", "... w", "w c"]),
        "batched": st.none() | st.booleans(),
        "dtype": st.sampled_from(["float16", "bfloat16", "float32", "float64"]),
        "statistics": st.sampled_from(["input", "moving", "dataset"]),
        "momentum": st.floats(0, 1),
        "trainable": st.booleans(),
        "epsilon_placement": st.sampled_from(["inside", "floor", "outside"]),
        "constant": st.sampled_from(["floor", "floor", "one", "raise"]),
        "learning_rate_multipliers": st.none()
        | NUMBERS
        | st.dictionaries(st.sampled_from(["scaling", "biases"]), NUMBERS),
    }
)


@given(CONFIGS)
def test_round_trip(arguments):
    if (error := raised(lambda: make(**arguments))) is not None:
        event(error.code)
        return
    event("made")
    config = make(**arguments)
    assert make(**config.arguments()) == config
    assert [*config.arguments()] == [*inspect.signature(make).parameters]
    written = json.loads(json.dumps(config.to_dict(), allow_nan=False))
    assert written == config.to_dict()
    VALIDATOR.validate(written)
    assert LayerConfig.from_dict(written) == config


WRONG = {
    "format": ["gennorm", None],
    "version": [0, "1", True, None],
    "aggregation_levels": ["Same", "Complement", "{}", "", "1;2", "01", 10**9, None, True, 1.5, {}],
    "scaling_levels": ["same", "{{1}}", "{1,}", 10**9, None, True],
    "group_number": [0, -1, 1.5, True, "2", [0], [[1]], {"1": 0}, {"a": 1}, {"1": "2"}],
    "method": ["rms", "", None],
    "unbiased": [0, None, "False"],
    "epsilon": [-1e-9, None, "1", True],
    "scaling": ["automatic", False, 1, [1.0]],
    "biases": ["None"],
    "input_shape": [3, "3", [-1], [1.5], [True], ["..", 1], ["...", "..."], {}],
    "input_levels": ["", " ", 3, "All", "b all", "2d", "a-b", "a, b", "... a ...", "a."],
    "batched": [0, "True"],
    "dtype": ["float", "int32", None],
    "statistics": ["batch", None],
    "momentum": [-0.1, 1.1, None],
    "trainable": [1, None],
    "epsilon_placement": ["in", None],
    "constant": ["1", None],
    "learning_rate_multipliers": [-1, "1", True, {"scale": 1}, {"scaling": -1}],
    "extra": [1],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_schema_and_reader_refuse_the_same(key, value):
    written = make().to_dict() | {key: value}
    # Draft 2020-12 calls 1.0 and True different from 1; so does Python's JSON reader for the second.
    assert not VALIDATOR.is_valid(written)
    assert raised(lambda: LayerConfig.from_dict(written)) is not None


@pytest.mark.parametrize(
    "change",
    [
        {"aggregation_levels": "channel"},
        {"aggregation_levels": "{1, width}"},
        {"scaling_levels": "channel;;All"},
        {"scaling_levels": "{All, width}"},
        {"group_number": {"width": 2}},
    ],
)
def test_schema_has_names_only_where_they_are_declared(change):
    declared = {"aggregation_levels": "All", "input_levels": "channel width"}
    named = make().to_dict() | declared | change
    VALIDATOR.validate(named)
    without = named | {"input_levels": None}
    assert not VALIDATOR.is_valid(without)
    assert raised(lambda: LayerConfig.from_dict(without)) is not None
    assert VALIDATOR.is_valid(make("All", "Complement", {-1: 2}).to_dict())


@pytest.mark.parametrize("key", make().to_dict())
def test_every_key_is_needed(key):
    written = make().to_dict()
    del written[key]
    assert not VALIDATOR.is_valid(written)
    with pytest.raises(ConfigError, match=f'lacks "{key}"'):
        LayerConfig.from_dict(written)


def test_configs_of_version_1_are_read():
    written = make("2;;All", 1, epsilon=0.5).to_dict() | {"version": 1}
    del written["constant"], written["input_levels"]
    assert LayerConfig.from_dict(written) == make("2;;All", 1, epsilon=0.5)
    with pytest.raises(ConfigError, match='unknown key "constant"'):
        LayerConfig.from_dict(written | {"constant": "floor"})


def test_schema():
    VALIDATOR.check_schema(SCHEMA)
    assert SCHEMA["required"] == [*make().to_dict()] == [*SCHEMA["properties"]]
    for key, words in {
        "method": settings.METHODS,
        "dtype": settings.DTYPES,
        "statistics": settings.STATISTICS,
        "epsilon_placement": settings.PLACEMENTS,
        "constant": settings.CONSTANT,
    }.items():
        assert SCHEMA["properties"][key]["enum"] == [*words]


@pytest.mark.parametrize(
    "spec", ["All", ";;2", "-2;;All", "1;;5;;2", ";;All;;2", "{0}", "{1, -2;;All;;3, 3}", 3, "0;;0", "{All}"]
)
def test_schema_knows_every_canonical_text(spec):
    VALIDATOR.validate(make(spec, batched=True).to_dict())


# --------------------------------------------------------------------------------------------------------- one array


@pytest.mark.parametrize(
    ("arguments", "shape", "expected"),
    [
        (
            {},
            (3, 8, 8),
            Resolved(3, False, (3, 8, 8), (1, 2), (0,), (1, 1, 1), (3,), (3,)),
        ),
        (
            {"batched": True},
            (2, 3, 8, 8),
            Resolved(3, True, (2, 3, 8, 8), (2, 3), (1,), (1, 1, 1, 1), (3,), (2, 3)),
        ),
        (
            {"aggregation_levels": "2;;All", "scaling_levels": "Same", "input_shape": (None, 5)},
            (7, 5),
            Resolved(2, False, (7, 5), (1,), (1,), (1, 1), (5,), (7,)),
        ),
        (
            {
                "aggregation_levels": "All",
                "scaling_levels": 1,
                "group_number": {1: 4},
                "input_shape": (8, ...),
                "batched": True,
            },
            (2, 8, 5),
            Resolved(2, True, (2, 8, 5), (1, 2), (1,), (1, 4, 1), (8,), (2, 4)),
        ),
        (
            {"aggregation_levels": "{0, 2;;All}", "batched": True},
            (6, 3),
            Resolved(1, True, (6, 3), (0,), (1,), (1, 1), (3,), (3,)),
        ),
        (
            {"aggregation_levels": "{0, 2;;All}", "group_number": (3, 1), "batched": True},
            (6, 5, 4),
            Resolved(2, True, (6, 5, 4), (0, 2), (1,), (3, 1, 1), (5,), (3, 5)),
        ),
        (
            {"aggregation_levels": "{3, 1}", "scaling_levels": "{3, 1}", "group_number": (2, 3)},
            (6, 5, 4),
            Resolved(3, False, (6, 5, 4), (2, 0), (2, 0), (3, 1, 2), (4, 6), (3, 5, 2)),
        ),
        (
            {"aggregation_levels": 0, "scaling_levels": (), "input_shape": ()},
            (6,),
            Resolved(0, True, (6,), (0,), (), (1,), (), ()),
        ),
        (
            {"aggregation_levels": 1, "group_number": {-2: 2}},
            (0, 4),
            Resolved(2, False, (0, 4), (0,), (1,), (2, 1), (4,), (2, 4)),
        ),
    ],
)
def test_resolve_config(arguments, shape, expected):
    assert resolve_config(make(**arguments), shape) == expected


def test_count_of_a_slice():
    resolved = resolve_config(make("All", 1, {1: 4}), (8, 5))
    assert resolved.count == 10
    assert [resolved.level(axis) for axis in range(2)] == [1, 2]
    assert resolve_config(make("0;;All", batched=True), (2, 8, 5)).level(2) == 2
    assert resolve_config(make("All"), (0, 5)).count == 0


@st.composite
def settings_and_shape(draw) -> tuple[LayerConfig, tuple[int, ...]]:
    """A config, and the shape of an array it takes."""
    rank, batched = draw(st.integers(1, 4)), draw(st.booleans())
    example = draw(st.lists(st.sampled_from([0, 1, 2, 4, 6]), min_size=rank, max_size=rank))
    chosen = draw(st.sets(st.integers(0 if batched else 1, rank), min_size=1))
    levels = [
        level - rank - 1 if level and draw(st.booleans()) else level for level in draw(st.permutations([*chosen]))
    ]
    spec = draw(st.sampled_from([levels, "All", "1;;All;;2"]))
    named = levels if spec == levels else range(1, rank + 1, 1 if spec == "All" else 2)
    sizes = [6 if batched else 1, *example]
    groups = {level: draw(st.sampled_from([n for n in (1, 2, 3) if sizes[level] % n == 0])) for level in named}
    declared = [draw(st.sampled_from([size, size, None])) for size in example]
    if draw(st.booleans()):
        start = draw(st.integers(0, rank))
        declared[start : draw(st.integers(start, rank))] = [...]
    words = ["Complement", *(["Same"] if 0 not in named else [])]
    config = make(
        spec,
        draw(st.sampled_from([1, -1, "All", (), *words])),
        {level: number for level, number in groups.items() if draw(st.booleans())},
        input_shape=draw(st.sampled_from([declared, declared, declared, None])),
        batched=batched,
    )
    return config, ((6, *example) if batched else tuple(example))


@given(settings_and_shape())
def test_whatever_is_resolved_fits(case):
    config, shape = case
    if (error := raised(lambda: resolve_config(config, shape))) is not None:
        event(error.code)
        return
    event("resolved")
    found = resolve_config(config, shape)
    assert found.rank + found.batched == len(shape) == len(found.groups)
    assert found.parameter_shape == tuple(shape[axis] for axis in found.scaling)
    assert all(size % groups == 0 for size, groups in zip(shape, found.groups, strict=True))
    kept = math.prod(size for axis, size in enumerate(shape) if axis not in found.aggregation)
    assert math.prod(found.moments_shape) == kept * math.prod(found.groups)
    assert math.prod(shape) == math.prod(found.moments_shape) * found.count
    assert all(groups == 1 for axis, groups in enumerate(found.groups) if axis not in found.aggregation)


@given(settings_and_shape())
def test_parameters_known_beforehand_are_those_of_every_array(case):
    config, shape = case
    for call in (lambda: resolve_config(config, shape), lambda: parameter_shape(config)):
        if (error := raised(call)) is not None:
            event(error.code)
            return
    event("resolved")
    assert parameter_shape(config) == resolve_config(config, shape).parameter_shape


@given(settings_and_shape())
def test_one_group_equals_no_groups(case):
    config, shape = case
    arguments = config.arguments() | {"group_number": None}
    plain = make(**arguments)
    expected = resolve_config(plain, shape)
    ones = (1,) * len(expected.aggregation)
    spellings = [ones, {expected.level(axis): 1 for axis in expected.aggregation}, *([1] if len(ones) == 1 else [])]
    for group_number in spellings:
        split = make(**arguments | {"group_number": group_number})
        assert split != plain
        assert resolve_config(split, shape) == expected


# ----------------------------------------------------------------------------------------------- one example or a batch


@pytest.mark.parametrize(
    ("input_shape", "batched", "rank", "expected"),
    [
        # Declared rank: the array says it.
        ((3, None), None, 2, False),
        ((3, None), None, 3, True),
        ((3, None), None, 1, ShapeError),
        ((3, None), None, 4, ShapeError),
        ((3, None), True, 3, True),
        ((3, None), True, 2, ShapeError),
        ((3, None), False, 2, False),
        ((3, None), False, 3, ShapeError),
        # Open rank: batched says it, and nothing means one example.
        (None, None, 3, False),
        (None, True, 3, True),
        (None, False, 3, False),
        ((3, ...), None, 2, False),
        ((3, ...), False, 4, False),
        ((3, ..., 3), True, 2, ShapeError),
        ((3, ..., 3), True, 3, True),
        ((3, ..., 3), None, 1, ShapeError),
    ],
)
def test_batched(input_shape, batched, rank, expected):
    config = make(-1, input_shape=input_shape, batched=batched)
    shape = (3,) * rank
    if expected is ShapeError:
        with pytest.raises(ShapeError) as caught:
            resolve_config(config, shape)
        assert caught.value.code in {"S001", "S002", "S003"}
    else:
        assert resolve_config(config, shape).batched is expected


@pytest.mark.parametrize("input_shape", [None, (3, ...), (3, 4)])
def test_level_0_needs_a_batch(input_shape):
    config = make("{0, 2;;All}", input_shape=input_shape)
    with pytest.raises(LevelRangeError) as caught:
        resolve_config(config, (3, 4))
    assert caught.value.code == "L103"
    assert resolve_config(make("{0, 2;;All}", input_shape=input_shape, batched=True), (2, 3, 4)).aggregation == (0, 2)


@pytest.mark.parametrize(
    ("declared", "shape", "level"),
    [
        ((3, None), (4, 5), 1),
        ((None, 3), (2, 5, 4), 2),
        ((3, ...), (4, 5, 6), 1),
        ((3, ..., 5), (3, 9, 9, 6), 4),
        ((3, ..., 4, 5), (3, 3, 5), 2),
        ((0,), (1,), 1),
    ],
)
def test_sizes_are_those_declared(declared, shape, level):
    config = make(1, input_shape=declared)
    with pytest.raises(ShapeError, match=rf"^level {level} \(axis \d\) has size") as caught:
        resolve_config(config, shape)
    assert caught.value.code == "S010"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"input_shape": (3, None, None)}, (3,)),
        ({"input_shape": (256, ...)}, (256,)),
        ({"aggregation_levels": "{0, 2;;All}", "input_shape": (256, ...)}, (256,)),
        ({"aggregation_levels": "{0, ;;-2}", "input_shape": (..., 256)}, (256,)),
        ({"aggregation_levels": "{0, ;;-2}", "scaling_levels": -1, "input_shape": (..., 256)}, (256,)),
        ({"aggregation_levels": -1, "scaling_levels": "Same", "input_shape": (..., 768)}, (768,)),
        ({"aggregation_levels": "-2;;All", "scaling_levels": "Same", "input_shape": (..., 12, 64)}, (12, 64)),
        ({"aggregation_levels": 1, "scaling_levels": "{3, 1}", "input_shape": (2, 3, 4)}, (4, 2)),
        ({"scaling_levels": ()}, ()),
        ({"input_shape": (0, 5)}, (0,)),
        ({}, InitializationError),
        ({"input_shape": (None, 5)}, InitializationError),
        ({"aggregation_levels": -1, "input_shape": (..., 768)}, InitializationError),
        ({"aggregation_levels": 1, "scaling_levels": 2, "input_shape": (3, ..., 5)}, InitializationError),
        ({"aggregation_levels": 1, "scaling_levels": 2, "input_shape": (3, ..., 5, 6, 7)}, InitializationError),
        ({"aggregation_levels": "1;;All;;2", "scaling_levels": "Same", "input_shape": (3, ...)}, InitializationError),
        ({"aggregation_levels": 40, "scaling_levels": 40, "input_shape": (3, ...)}, InitializationError),
        ({"aggregation_levels": 999_999_999, "input_shape": (3, ...)}, LevelRangeError),
    ],
)
def test_parameter_shape(arguments, expected):
    config = make(**arguments)
    if isinstance(expected, tuple):
        assert parameter_shape(config) == expected
    else:
        with pytest.raises(expected):
            parameter_shape(config)


# --------------------------------------------------------------------------------------------------- names of levels

CHW = "channel height width"


@pytest.mark.parametrize(
    ("named", "numbered"),
    [
        ({"aggregation_levels": "height;;width", "input_levels": CHW}, {"aggregation_levels": "2;;3"}),
        ({"aggregation_levels": ["channel", 3], "input_levels": CHW}, {"aggregation_levels": "{1, 3}"}),
        (
            {"aggregation_levels": "All", "scaling_levels": "channel", "group_number": {"channel": 2}},
            {"aggregation_levels": "All", "scaling_levels": 1, "group_number": {1: 2}},
        ),
        (
            {"aggregation_levels": 3, "scaling_levels": ["width", "channel"], "group_number": {-1: 5}},
            {"aggregation_levels": 3, "scaling_levels": "{3, 1}", "group_number": 5},
        ),
        (
            {"aggregation_levels": "{batch, height;;}", "scaling_levels": 1, "input_levels": f"batch {CHW}"},
            {"aggregation_levels": "{0, 2;;All}", "scaling_levels": 1, "batched": True},
        ),
        (
            {"aggregation_levels": "b", "group_number": {"b": 2}, "input_levels": f"b {CHW}"},
            {"aggregation_levels": 0, "group_number": {0: 2}, "batched": True},
        ),
        ({"aggregation_levels": "2;;width", "input_levels": "channel ... width"}, {"aggregation_levels": "2;;-1"}),
        ({"aggregation_levels": "w", "input_levels": [..., "w"]}, {"aggregation_levels": -1}),
        (
            {"aggregation_levels": "width", "input_levels": CHW, "input_shape": (..., 5)},
            {"aggregation_levels": 3, "input_shape": (None, None, 5)},
        ),
        (
            {"aggregation_levels": "channel", "input_levels": "channel ...", "input_shape": (4, None, None)},
            {"aggregation_levels": 1, "input_shape": (4, None, None)},
        ),
    ],
)
def test_names_are_numbers(named, numbered):
    """A config with names means what the one with numbers means, and is written with its names."""
    config = make(**{"input_levels": CHW, **named})
    plain = make(**{"input_shape": config.input_shape, **numbered})
    shape = (6, 4, 5, 5) if config.batched else (4, 5, 5)
    found, expected = resolve_config(config, shape), resolve_config(plain, shape)
    assert dataclasses.replace(found, names=None) == expected
    assert parameter_shape(dataclasses.replace(config, input_shape=(4, 5, 5))) == expected.parameter_shape
    assert make(**config.arguments()) == LayerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    written = config.arguments()
    words = f"{written['aggregation_levels']} {written['scaling_levels']} {written['group_number']}"
    assert any(name in words for name in config.input_levels.all())


@pytest.mark.parametrize(
    ("names", "declared", "shape"),
    [
        (CHW, None, (None, None, None)),
        (CHW, (3, ...), (3, None, None)),
        (CHW, (..., 3), (None, None, 3)),
        (CHW, (..., 1, 2, 3), (1, 2, 3)),
        (CHW, (1, 2, 3), (1, 2, 3)),
        (f"b {CHW}", (1, 2, 3), (1, 2, 3)),
        (CHW, (3, 4), None),
        (CHW, (1, ..., 2, 3, 4), None),
        (CHW, (1, 2, 3, 4), None),
        (f"b {CHW}", (8, 1, 2, 3), None),
        ("channel ...", None, (None, ...)),
        ("channel ... width", None, (None, ..., None)),
        ("channel ...", (..., 3), (..., 3)),
        ("channel ... width", (1, 2, 3), (1, 2, 3)),
        ("channel ... height width", (1, 2), None),
        ("b ...", (), ()),
    ],
)
def test_names_against_the_input_shape(names, declared, shape):
    if shape is None:
        with pytest.raises(ConfigError) as caught:
            make(1, input_levels=names, input_shape=declared)
        assert caught.value.code == "C025"
    else:
        assert make(0, (), input_levels=f"batch {names.removeprefix('b ')}", input_shape=declared).input_shape == shape


def test_a_named_batch_is_a_batch():
    assert make(1, input_levels="b c").batched is True
    assert make(1, input_levels="c b").batched is None
    assert make(1, input_levels="c", batched=True).batched is True
    with pytest.raises(ConfigError, match="batched=False"):
        make(1, input_levels="b c", batched=False)


# --------------------------------------------------------------------------------------------------- groups, unbiased


def test_groups_of_the_declared_sizes_are_checked_at_once():
    make("All", 1, {1: 2, 2: 7}, input_shape=(4, None))
    with pytest.raises(GroupError):
        make("All", 1, {1: 3}, input_shape=(4, None))


def test_groups_are_aligned_with_the_levels_as_written():
    with pytest.raises(GroupError):
        make("1;;3", group_number=(1, 2))
    with pytest.raises(GroupError):
        make("{1, 2;;3, -1}", group_number=(1, 2, 3))
    open_rank = make("2;;All", group_number=(1, 2))
    assert resolve_config(open_rank, (3, 4, 6)).groups == (1, 1, 2)
    with pytest.raises(GroupError):
        resolve_config(open_rank, (3, 4, 6, 8))


def test_negative_levels_of_a_mapping_stop_before_the_batch():
    config = make("0;;All", 1, {-3: 2}, batched=True)
    with pytest.raises(GroupError, match="splits level -3"):
        resolve_config(config, (4, 4, 4))
    assert resolve_config(config, (4, 4, 4, 4)).groups == (1, 2, 1, 1)


def test_a_divisor_is_named_without_a_search():
    prime = 2_147_483_647
    with pytest.raises(GroupError, match=f"divide {prime}, as 1 does"):
        make(1, group_number=prime - 1, input_shape=(prime,))


def test_unbiased_over_one_element():
    for statistics, refused in (("input", True), ("moving", False), ("dataset", False)):
        config = make("{1, 2}", unbiased=True, group_number={2: 4}, statistics=statistics)
        assert (raised(lambda config=config: resolve_config(config, (1, 4))) is not None) is refused
        assert resolve_config(config, (1, 8)).count == 2
        resolve_config(config, (0, 4))
    require_unbiased(resolve_config(make(2), (1, 2)))
    with pytest.raises(ConfigError):
        require_unbiased(resolve_config(make(2), (2, 1)))
