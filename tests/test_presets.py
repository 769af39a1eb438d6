"""The arguments of the presets, and what is said to names of other libraries; the values are in test_oracles.py."""

import copy
import functools
import inspect
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest

import gennorm as gn
from gennorm.layer import hints


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.array])
def test_integers_of_any_kind_are_sizes_and_levels(kind):
    assert repr(gn.layer_norm(kind(4))) == repr(gn.layer_norm(4)) == repr(gn.layer_norm((kind(4),)))
    assert repr(gn.rms_norm([kind(4), 5])) == repr(gn.rms_norm((4, 5)))
    assert repr(gn.batch_norm(kind(4), channel_level=kind(2))) == repr(gn.batch_norm(4, channel_level=2))
    assert repr(gn.instance_norm(kind(4), channel_level=kind(2))) == repr(gn.instance_norm(4, channel_level=2))
    assert repr(gn.group_norm(kind(2), kind(4))) == repr(gn.group_norm(2, 4))
    assert repr(gn.feature_norm(kind(2))) == repr(gn.feature_norm([kind(2)])) == repr(gn.feature_norm(2))


def test_an_array_of_sizes_is_a_shape():
    assert repr(gn.layer_norm(np.array([4, 5]))) == repr(gn.layer_norm((4, 5)))


@pytest.mark.parametrize("level", [1, 2, -1, -2])
def test_groups_that_divide_are_taken_at_any_level(level):
    assert gn.group_norm(2, 4, channel_level=level).epsilon == 1e-3
    assert gn.group_norm(2, None, channel_level=level).epsilon == 1e-3
    with pytest.raises(gn.errors.GroupError, match=f"^level {level} of size 4 cannot be split into 3 groups"):
        gn.group_norm(3, 4, channel_level=level)


# ----------------------------------------------------------------------------------------------------- foreign names

CONSTRUCTORS = {
    "NormalizationLayer": "1",
    "batch_norm": "3",
    "instance_norm": "3",
    "group_norm": "2, 4",
    "layer_norm": "3",
    "rms_norm": "3",
    "feature_norm": "",
}


@pytest.mark.parametrize("name", [*hints.ARGUMENTS])
@pytest.mark.parametrize("constructor", [*CONSTRUCTORS, "normalize"])
def test_arguments_of_other_libraries(constructor, name):
    """Every constructor says what to write for every argument in the table that it does not have itself."""
    function = getattr(gn, constructor)
    if name in inspect.signature(function).parameters:
        return
    arguments = eval(f"({CONSTRUCTORS.get(constructor, 'np.ones(3), 1')},)" if constructor != "feature_norm" else "()")
    for given in (arguments, ()):  # also where the required ones are missing
        if constructor == "normalize" and not given:
            continue
        with pytest.raises(gn.errors.ConfigError) as caught:
            function(*given, **{name: 1})
        assert caught.value.message == f'{constructor} has no argument "{name}"\n{hints.ARGUMENTS[name]}'


@pytest.mark.parametrize("name", inspect.signature(gn.NormalizationLayer).parameters)
def test_settings_are_attributes(name):
    layer = gn.batch_norm(3)
    found = layer.information(name)
    assert getattr(layer, name) is found or getattr(layer, name) == found


@pytest.mark.parametrize("name", hints.ATTRIBUTES)
def test_attributes_of_other_libraries(name):
    layer = gn.batch_norm(3)
    with pytest.raises(AttributeError) as caught:
        getattr(layer, name)
    assert caught.value.message == f'a layer has no attribute "{name}"\n{hints.ATTRIBUTES[name]}'
    assert not hasattr(layer, name)


@pytest.mark.parametrize("name", [*hints.PACKAGE])
def test_names_of_other_libraries(name):
    with pytest.raises(AttributeError) as caught:
        getattr(gn, name)
    assert caught.value.message == f'gennorm has no "{name}"\n{hints.PACKAGE[name]}'


def test_hints_can_be_followed():
    """Names and arguments in the hints exist."""
    layer = gn.feature_norm()
    for hint in {*hints.ARGUMENTS.values(), *hints.ATTRIBUTES.values(), *hints.PACKAGE.values()}:
        for owner, found in (("layer", layer), ("gn", gn)):
            for name in re.findall(rf"\b{owner}\.(\w+)", hint):
                assert hasattr(found, name), hint
    taken = {*inspect.signature(gn.NormalizationLayer).parameters, "channel_level", "mean", "variance", "training"}
    for hint in hints.ARGUMENTS.values():
        for name in re.findall(r"^write (\w+)(?:=|$|,|:)", hint):
            assert name in taken, hint


@pytest.mark.parametrize("constructor", CONSTRUCTORS)
@pytest.mark.parametrize("x", [np.ones((3, 4)), np.ones(3), np.ones((2, 3), int)], ids=["matrix", "vector", "integers"])
def test_data_is_not_a_setting(constructor, x):
    function = getattr(gn, constructor)
    for arguments in ((x,), (2, x)):
        if len(arguments) <= len([*inspect.signature(function).parameters]) - (constructor != "NormalizationLayer"):
            with pytest.raises(gn.errors.ConfigError, match="takes settings, and was given an array of shape"):
                function(*arguments)


def test_the_constructors_keep_their_signature_and_documentation():
    parameters = [*inspect.signature(gn.NormalizationLayer).parameters]
    assert parameters[:2] == ["aggregation_levels", "scaling_levels"]
    assert parameters[-1] == "learning_rate_multipliers"
    assert [*inspect.signature(gn.group_norm).parameters] == [
        *("groups", "channels", "channel_level", "spatial_levels", "keywords")
    ]
    assert gn.group_norm.__doc__.startswith("Group normalization")
    assert gn.group_norm.__name__ == "group_norm"


def test_protocols_find_no_foreign_names():
    layer = gn.layer_norm(3)
    for twin in (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert repr(twin) == repr(layer)
    for name in ("__array__", "__torch_function__", "_private", "__wrapped__"):
        assert not hasattr(layer, name)
        assert not hasattr(gn, name) or name == "__wrapped__"


def test_a_type_error_inside_a_constructor_is_not_replaced():
    class Broken:
        def __index__(self):
            msg = "from inside"
            raise TypeError(msg)

    with pytest.raises(gn.errors.ConfigError, match="cannot be of type Broken"):
        gn.layer_norm(Broken())


@pytest.mark.parametrize(
    ("settings", "known"),
    [
        ({"aggregation_levels": 1, "group_number": {2: 4}}, True),
        ({"aggregation_levels": "2;;All", "group_number": {1: 4}}, True),
        ({"aggregation_levels": "2;;All", "group_number": {-1: 4}}, False),
        ({"aggregation_levels": 1, "group_number": {-3: 4}}, False),  # level 1 of rank 3
        ({"aggregation_levels": 1, "group_number": {-3: 4}, "input_shape": (4, 4)}, True),
        ({"aggregation_levels": -1, "group_number": {9: 4}}, False),
        ({"aggregation_levels": "{0, 2}", "group_number": {1: 4}, "batched": True}, True),
        ({"aggregation_levels": "3;;All", "group_number": {2: 4}, "input_shape": (3, ...)}, True),
    ],
)
def test_groups_of_levels_that_are_not_aggregated(settings, known):
    """They are refused when the layer is made, where no array could have them."""
    if known:
        with pytest.raises(gn.errors.GroupError, match="which is not aggregated"):
            gn.NormalizationLayer(**settings)
    else:
        gn.NormalizationLayer(**settings)


def test_names_are_imported_when_they_are_used():
    script = "import sys, gennorm; print('numpy' in sys.modules); gennorm.layer_norm; print('numpy' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    assert result.stdout.split() == ["False", "True"]


# ------------------------------------------------------------------------------------------- one picture, or a batch


PICTURE = np.random.default_rng(0).normal(3, 2, (20, 30, 4))


@pytest.mark.parametrize(
    ("make", "level"),
    [
        (lambda **keywords: gn.instance_norm(4, **keywords), -1),
        (lambda **keywords: gn.group_norm(2, 4, **keywords), -1),
        (lambda **keywords: gn.instance_norm(4, **keywords), 1),
        (lambda **keywords: gn.group_norm(2, 4, **keywords), 1),
        (lambda **keywords: gn.instance_norm(4, **keywords), 2),
        (lambda **keywords: gn.instance_norm(4, **keywords), -2),
    ],
)
def test_a_preset_that_declares_its_rank_takes_one_picture_and_a_batch(make, level):
    x = np.moveaxis(PICTURE, -1, level - 1 if level > 0 else level)
    layer = make(channel_level=level, spatial_levels=2)
    by_batch = make(channel_level=level)(x[None])[0]
    np.testing.assert_array_equal(layer(x), by_batch)
    np.testing.assert_array_equal(layer(x[None])[0], by_batch)
    assert "one example" in str(layer.plan(x))
    for wrong in (x[0], x[None, None]):
        with pytest.raises(gn.errors.ShapeError, match="is neither an example nor a batch of examples"):
            layer(wrong)


def test_a_batch_norm_that_declares_its_rank_takes_batches_only():
    layer = gn.batch_norm(4, channel_level=-1, spatial_levels=2)
    layer(PICTURE[None], training=True)
    for wrong in (PICTURE, PICTURE[0]):
        with pytest.raises(gn.errors.ShapeError):
            layer(wrong, training=True)
    assert repr(gn.batch_norm(4, spatial_levels=0)).count("input_shape=(4,)") == 1


CALLS = {
    "call": lambda layer, x: layer(x),
    "vjp": lambda layer, x: layer.vjp(x),
    "jvp": lambda layer, x: layer.jvp(x, x),
    "measure": lambda layer, x: layer.measure(x),
    "list": lambda layer, x: layer([x]),
    "mask": lambda layer, x: layer(x, mask=np.ones(x.shape, bool)),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("make", [gn.instance_norm, functools.partial(gn.group_norm, 2)])
def test_a_picture_that_is_taken_for_a_batch_is_warned_of(make, call):
    layer = make(4, channel_level=-1)
    with pytest.warns(UserWarning, match="is taken for a batch") as caught:
        CALLS[call](layer, PICTURE)
    assert str(caught[0].message) == (
        "an array of shape (20, 30, 4) is taken for a batch of 20 sequences of shape (30, 4); for one picture pass "
        "x[None] or declare input_shape=(None, None, 4), for sequences (None, 4); the presets take spatial_levels=2 "
        "or 1"
    )
    assert len(caught) == 1
    assert caught[0].filename == __file__
    CALLS[call](layer, PICTURE)  # once for each layout: a warning would be an error
    assert "a batch of 20 examples of shape (30, 4)" in str(layer.plan(PICTURE))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (gn.instance_norm(4, channel_level=-1, spatial_levels=1), (20, 30, 4)),  # sequences, as declared
        (gn.instance_norm(4, channel_level=-1, spatial_levels=2), (20, 30, 4)),  # a picture, as declared
        (gn.instance_norm(4, channel_level=-1, batched=False), (20, 30, 4)),
        (gn.instance_norm(4, channel_level=-1), (2, 20, 30, 4)),
        (gn.instance_norm(4, channel_level=-1), (20, 30, 2, 4)),
        (gn.instance_norm(4, channel_level=-1), (8, 300, 4)),  # no picture has eight rows
        (gn.instance_norm(64, channel_level=-1), (20, 30, 64)),
        (gn.instance_norm(4), (20, 4, 30)),
        (gn.batch_norm(4, channel_level=-1), (20, 30, 4)),  # the moments are the same for one picture
        (gn.layer_norm(4, batched=True), (20, 30, 4)),
    ],
)
def test_nothing_is_said_of_other_arrays(layer, shape):
    layer(np.random.default_rng(0).normal(size=shape))
