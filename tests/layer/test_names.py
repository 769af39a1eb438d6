"""Layers whose levels have names: every way to make one, and every text that it is printed in."""

import copy
import json
import pickle

import numpy as np
import pytest

import gennorm as gn

CHW = "channel height width"
X = np.random.default_rng(0).normal(3, 2, (6, 4, 5, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("named", "numbered"),
    [
        (
            lambda: gn.NormalizationLayer("height;;width", "channel", input_levels=f"b {CHW}"),
            lambda: gn.NormalizationLayer("2;;3", 1, input_shape=(None, None, None), batched=True),
        ),
        (
            lambda: gn.NormalizationLayer(["channel", 2], "width", {"channel": 2}, input_levels=CHW),
            lambda: gn.NormalizationLayer("{1, 2}", 3, {1: 2}, input_shape=(None, None, None)),
        ),
        (
            lambda: gn.batch_norm(4, channel_level="channel", input_levels=CHW),
            lambda: gn.batch_norm(4, channel_level=1, spatial_levels=2),
        ),
        (
            lambda: gn.batch_norm(3, channel_level="channel", input_levels="height width channel"),
            lambda: gn.batch_norm(3, channel_level=-1, spatial_levels=2),
        ),
        (
            lambda: gn.instance_norm(5, channel_level="c", input_levels="h c w"),
            lambda: gn.instance_norm(5, channel_level=2, spatial_levels=2),
        ),
        (
            lambda: gn.group_norm(2, 4, channel_level="channel", input_levels="channel ..."),
            lambda: gn.group_norm(2, 4),
        ),
        (lambda: gn.layer_norm((5, 3), input_levels="channel ..."), lambda: gn.layer_norm((5, 3))),
        (lambda: gn.rms_norm(3, input_levels="b c h w"), lambda: gn.rms_norm(3, batched=True)),
        (
            lambda: gn.feature_norm("channel", input_levels=CHW).adapt(X),
            lambda: gn.feature_norm(1).adapt(X),
        ),
        (
            lambda: gn.feature_norm(["height", 3], input_levels="b channel height width").adapt(X),
            lambda: gn.feature_norm((2, 3)).adapt(X),
        ),
        (
            lambda: gn.feature_norm(["h", "w", "c"], input_levels="c h w").adapt(X),
            lambda: gn.feature_norm((1, 2, 3)).adapt(X),
        ),
    ],
)
def test_a_name_is_a_number(named, numbered):
    layer, plain = named(), numbered()
    for one in (layer, plain):
        if not one.initialized:
            one.initialize(X)
    expected = plain(X)
    written = json.loads(json.dumps(layer.to_config()))
    made_again = gn.NormalizationLayer.from_config(written)
    evaluated = eval(repr(layer), {"NormalizationLayer": gn.NormalizationLayer})
    if layer.moments is not None:
        made_again.moments = evaluated.moments = layer.moments
    for one in (layer, made_again.initialize(X), evaluated.initialize(X), copy.deepcopy(layer)):
        np.testing.assert_array_equal(one(X), expected)
        assert one.input_levels == layer.input_levels
        assert repr(one) == repr(layer)
    assert pickle.loads(pickle.dumps(layer)).to_config() == layer.to_config() == written


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_names_are_saved(tmp_path, suffix):
    layer = gn.feature_norm("channel", input_levels=CHW).adapt(X)
    layer.save(tmp_path / f"layer{suffix}")
    loaded = gn.load(tmp_path / f"layer{suffix}")
    assert repr(loaded) == repr(layer)
    np.testing.assert_array_equal(loaded(X), layer(X))


def test_names_are_printed():
    layer = gn.NormalizationLayer("{b, height;;-1}", "channel", {"width": 3}, input_levels=f"b {CHW}")
    assert repr(layer) == (
        "NormalizationLayer('{b, height;;width}', 'channel', {'width': 3}, input_levels='b channel height width')"
    )
    plan = str(layer.plan(X))
    assert "aggregates levels 0 b, 2 height, 3 width (axes 0, 2, 3)" in plan
    assert "groups     level 3 width (axis 3) in 3 of 1" in plan
    assert "scales     level 1 channel (axis 1)" in plan
    assert layer.information("input_levels") == "b channel height width"
    assert "group_number               {'width': 3}" in str(layer.information())
    layer.epsilon = 0.5
    assert layer.to_config()["input_levels"] == "b channel height width"


def test_normalize_by_name():
    np.testing.assert_array_equal(
        gn.normalize(X, "height;;width", input_levels=f"b {CHW}"), gn.normalize(X, "2;;3", batched=True)
    )


def test_a_config_of_version_1_has_no_names():
    """Files that were written before levels had names are read."""
    config = gn.layer_norm(3).to_config()
    assert config["input_levels"] is None
    old = {key: value for key, value in config.items() if key not in ("input_levels", "constant")} | {"version": 1}
    assert gn.NormalizationLayer.from_config(old).input_levels is None
