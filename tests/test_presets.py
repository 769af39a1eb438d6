"""What the presets take as their sizes and levels; what each computes is in test_oracles.py."""

import numpy as np
import pytest

import gennorm as gn


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
