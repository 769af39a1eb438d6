"""The public face of the layer, and the statements of its sources one by one: Wolfram's page and Keras' pages.

A test is named after its statement: ``w`` for a checklist item of Wolfram's page, ``e`` for one of its examples, ``l``
for one of Keras' `LayerNormalization`.
"""

import copy
import inspect
import json
import pickle
import subprocess
import sys
from pathlib import Path

import jsonschema
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given

import gennorm as gn
from gennorm import errors
from gennorm.plan import make_plan
from gennorm.spec.config import LayerConfig
from tests import strategies
from tests.accuracy import judge
from tests.strategies import dtype_of, sample

SCHEMA = json.loads((Path(__file__).parents[2] / "spec" / "layer.schema.json").read_text(encoding="utf-8"))


def standardized(x, axes, epsilon=1e-3, correction=0):
    """What the formula says, in NumPy and float64."""
    x = np.asarray(x, np.float64)
    variance = x.var(axes, keepdims=True, ddof=correction)
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(variance + epsilon)


def close(y, exact):
    np.testing.assert_allclose(y, exact, rtol=0, atol=3e-6 * max(1, np.abs(exact).max(initial=0)), strict=False)


# ----------------------------------------------------------------------------------------------- Wolfram: the checklist


def test_w1_default_aggregates_all_but_the_first_level_and_scales_the_first():
    x = sample((3, 5, 7))
    layer = gn.NormalizationLayer().initialize(x)
    assert layer.scaling.shape == layer.biases.shape == (3,)
    assert layer.measure(x).mean.shape == (3,)
    layer.scaling[:] = [1, 2, 3]
    layer.biases[:] = [0, 1, 2]
    close(layer(x), standardized(x, (1, 2)) * np.array([[[1]], [[2]], [[3]]]) + np.array([[[0]], [[1]], [[2]]]))


def test_w2_one_argument_scales_the_complement():
    x = sample((3, 5, 7))
    for levels, shape in ((1, (5, 7)), (2, (3, 7)), ([1, 3], (5,)), ("All", ())):
        assert gn.NormalizationLayer(levels).initialize(x).scaling.shape == shape


def test_w3_two_arguments_scale_exactly_the_second():
    x = sample((3, 5, 7))
    for scaling, shape in ((2, (5,)), ("2;;3", (5, 7)), ([3, 1], (7, 3)), ("All", (3, 5, 7)), ((), ())):
        layer = gn.NormalizationLayer(2, scaling).initialize(x)
        assert layer.scaling.shape == layer.biases.shape == shape


def test_w4_an_integer_is_that_level_only():
    x = sample((3, 5, 7))
    assert gn.NormalizationLayer(2).measure(x).mean.shape == (3, 7)
    close(gn.normalize(x, 2), standardized(x, 1))


def test_w5_a_span_is_inclusive_and_all_is_the_last_level():
    x = sample((3, 5, 7, 2))
    close(gn.normalize(x, "2;;3"), standardized(x, (1, 2)))
    close(gn.normalize(x, "3;;All"), standardized(x, (2, 3)))
    close(gn.normalize(x, "All"), standardized(x, None))
    close(gn.normalize(x, ";;-2"), standardized(x, (0, 1, 2)))


def test_w6_a_list_of_levels():
    x = sample((3, 5, 7, 2))
    for levels in ([1, 3], [3, 1], "{1, 3}", (-2, 1), ["1", 3]):
        close(gn.normalize(x, levels), standardized(x, (0, 2)))
    close(gn.normalize(x, [1, "3;;4"]), standardized(x, (0, 2, 3)))


def test_w7_complement_and_same():
    x = sample((3, 5, 7))
    assert gn.NormalizationLayer([3, 2], "Same").initialize(x).scaling.shape == (5, 7)
    assert gn.NormalizationLayer([3, 2], "Complement").initialize(x).scaling.shape == (3,)


def test_w8_defaults():
    layer = gn.NormalizationLayer()
    assert layer.epsilon == 0.001
    for name, value in {"group_number": None, "unbiased": False, "method": "Standardize"}.items():
        assert layer.information(name) == value


def test_w9_unbiased_divides_by_the_number_minus_one():
    x = sample((3, 5))
    close(gn.normalize(x, 2, unbiased=True, epsilon=0), standardized(x, 1, 0, correction=1))


def test_w10_standardize_subtracts_the_mean_and_rms_does_not():
    x = np.array([[1.0, 7.0]])  # mean 4, variance 9, mean square 25
    close(gn.normalize(x, 2, epsilon=0), [[-1, 1]])
    close(gn.normalize(x, 2, method="RMS", epsilon=0), [[0.2, 1.4]])


def test_w11_rms_divides_by_the_root_of_the_mean_square():
    x = np.array([[3.0, 4.0, 0.0, 0.0]])
    close(gn.normalize(x, 2, method="RMS", epsilon=0.75), x / np.sqrt(25 / 4 + 0.75))


def test_w12_group_number_splits_each_level():
    x = sample((4, 6))
    y = gn.normalize(x, "1;;2", group_number=[2, 3])
    for row in (slice(0, 2), slice(2, 4)):
        for column in (slice(0, 2), slice(2, 4), slice(4, 6)):
            close(y[row, column], standardized(x[row, column], None))


def test_w13_a_group_number_divides_the_size():
    with pytest.raises(errors.GroupError, match=r"level 2 .* of size 5 cannot be split into 2 groups"):
        gn.normalize(sample((3, 5)), 2, group_number=2)
    with pytest.raises(errors.GroupError):
        gn.NormalizationLayer(2, group_number=2, input_shape=(3, 5))


def test_w14_parameters_are_automatic_none_or_an_array():
    x = sample((3, 5))
    z = standardized(x, 1)
    automatic = gn.NormalizationLayer(input_shape=(3, 5))
    np.testing.assert_array_equal(automatic.scaling, np.ones(3, np.float32), strict=True)
    np.testing.assert_array_equal(automatic.biases, np.zeros(3, np.float32), strict=True)
    close(automatic(x), z)
    s, b = np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0])
    close(gn.NormalizationLayer(scaling=s, biases=None)(x), z * s[:, None])
    close(gn.NormalizationLayer(scaling=None, biases=b)(x), z + b[:, None])
    close(gn.NormalizationLayer(scaling=s, biases=b)(x), z * s[:, None] + b[:, None])
    with pytest.raises(errors.ParameterError):
        gn.NormalizationLayer(scaling=s, input_shape=(4, 5))
    with pytest.raises(errors.ParameterError):
        gn.NormalizationLayer(biases=b)(sample((4, 5)))


def test_w15_a_layer_is_evaluated_when_it_is_initialized_or_has_no_parameters():
    x = sample((3, 5))
    layer = gn.NormalizationLayer()
    assert not layer.initialized
    with pytest.raises(errors.InitializationError):
        layer(x)
    for ready in (
        gn.NormalizationLayer(scaling=None, biases=None),
        gn.NormalizationLayer(scaling=[1, 2, 3]),  # says the size of the biases too
        gn.NormalizationLayer(input_shape=(3, None)),
        layer.initialize(x),
    ):
        assert ready.initialized
        close(ready(x) / (1 if ready.scaling is None else ready.scaling[:, None]), standardized(x, 1))


def test_w16_a_list_is_answered_by_a_list():
    layer = gn.instance_norm(3, batched=False)
    arrays = [sample((3, 5)), sample((3, 2, 4), "float64"), sample((3, 7), "int8")]
    for given_ in (arrays, tuple(arrays)):
        answers = layer(given_)
        assert type(answers) is list
        for x, y in zip(arrays, answers, strict=True):
            np.testing.assert_array_equal(y, layer(x), strict=True)


def test_w17_input_shape_fixes_the_sizes():
    layer = gn.NormalizationLayer(input_shape=(3, 5))
    assert layer(sample((3, 5))).shape == (3, 5)
    for shape in ((3, 4), (4, 5), (3,), (2, 3, 5, 1)):
        with pytest.raises(errors.ShapeError):
            layer(sample(shape))


def test_w18_parameters_and_epsilon_are_taken_out():
    layer = gn.NormalizationLayer(scaling=[1, 2], biases=[3, 4], epsilon=0.5)
    assert layer.scaling.tolist() == [1, 2]
    assert layer.biases.tolist() == [3, 4]
    assert layer.epsilon == 0.5
    assert (layer.scaling.dtype, layer.scaling.flags.writeable) == (np.float32, True)
    assert gn.NormalizationLayer(scaling=None).scaling is None
    assert gn.NormalizationLayer().scaling == "Automatic"


def test_w19_an_example_has_at_least_the_levels_that_are_named():
    with pytest.raises(errors.LevelRangeError):
        gn.normalize(sample((5,)))  # "2;;All"
    with pytest.raises(errors.LevelRangeError):
        gn.normalize(np.array(5.0), 1)
    close(gn.normalize(sample((5,)), 1), standardized(sample((5,)), 0))  # rank 1 is fine where level 1 is named


def test_w20_parameters_have_the_sizes_of_the_scaling_levels():
    layer = gn.NormalizationLayer(2, [3, 1], input_shape=(3, 5, 7))
    assert layer.scaling.shape == (7, 3)
    assert layer.information("parameter_shape") == (7, 3)
    assert layer.information("parameter_count") == 42


def test_w21_the_output_has_the_shape_of_the_input():
    for shape in ((3, 5), (3, 5, 1, 2), (1, 1), (3, 0)):
        assert gn.normalize(sample(shape)).shape == shape


def test_w22_the_default_is_instance_normalization():
    x = sample((3, 5, 7))
    np.testing.assert_array_equal(gn.NormalizationLayer().initialize(x)(x), gn.instance_norm(3)(x[None])[0])


def test_w23_rms_recreates_root_mean_square_normalization():
    x = sample((4, 7))
    layer = gn.NormalizationLayer("2;;All", "Same", method="RMS", biases=None, epsilon=1e-6).initialize(x)
    np.testing.assert_array_equal(layer(x), gn.rms_norm(7)(x))


def test_w24_layer_normalization_with_time_first_and_of_any_length():
    layer = gn.NormalizationLayer("2;;All", "Same", input_shape=(None, 7))
    for length in (1, 4, 9):
        x = sample((length, 7))
        np.testing.assert_array_equal(layer(x), gn.layer_norm(7)(x))


def test_w25_group_normalization():
    x = sample((6, 4, 5))
    layer = gn.NormalizationLayer("All", 1, [3, 1, 1], input_shape=(6, 4, 5))
    np.testing.assert_array_equal(layer(x), gn.group_norm(3, 6, batched=False)(x))
    close(layer(x), np.concatenate([standardized(part, None) for part in np.split(x, 3)]))


def test_w26_the_signature_lists_the_defaults():
    signature = inspect.signature(gn.NormalizationLayer)
    assert str(signature.replace(return_annotation=inspect.Signature.empty)).split(", *, ")[0] == (
        "(aggregation_levels: 'Any' = '2;;All', scaling_levels: 'Any' = 'Complement', group_number: 'Any' = None, "
        "method: 'str' = 'Standardize', unbiased: 'bool' = False, epsilon: 'float' = 0.001"
    )
    by_keyword = {name: p.default for name, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert by_keyword == {
        "scaling": "Automatic",
        "biases": "Automatic",
        "input_shape": None,
        "input_levels": None,
        "batched": None,
        "dtype": "float32",
        "statistics": "input",
        "momentum": 0.99,
        "trainable": True,
        "epsilon_placement": "inside",
        "constant": "floor",
        "learning_rate_multipliers": None,
    }


INFORMATION = """\
aggregation_levels         All
scaling_levels             -1
group_number               {-1: 2}
method                     Standardize
unbiased                   False
epsilon                    0.001
scaling                    [1. 2. 3. 4.]
biases                     None
input_shape                (..., 4)
input_levels               None
batched                    True
dtype                      float32
statistics                 input
momentum                   0.99
trainable                  True
epsilon_placement          inside
constant                   floor
learning_rate_multipliers  0.5
"""


def test_w27_information():
    layer = gn.group_norm(2, 4, channel_level=-1, scaling=[1, 2, 3, 4], biases=None, learning_rate_multipliers=0.5)
    report = layer.information()
    assert str(report).startswith(INFORMATION)
    assert report["initialized"] is True
    assert report["parameter_shape"] == (4,)
    assert report["parameter_count"] == 4
    for name, value in report.items():
        assert np.array_equal(layer.information(name), value)
    with pytest.raises(errors.ConfigError, match='did you mean "scaling"'):
        layer.information("scalin")
    with pytest.raises(errors.ConfigError):
        layer.information(3)


def test_w28_learning_rate_multipliers():
    for value in (None, 0.0, 2.5, {"scaling": 0.5}, {"biases": 0.0, "scaling": 1.0}):
        layer = gn.NormalizationLayer(learning_rate_multipliers=value)
        assert layer.information("learning_rate_multipliers") == value
        assert layer.to_config()["learning_rate_multipliers"] == value
    with pytest.raises(errors.ConfigError):
        gn.NormalizationLayer(learning_rate_multipliers=-1)


def test_w29_a_level_may_vary_where_it_carries_no_parameters():
    layer = gn.NormalizationLayer(2, 2, input_shape=(None, 4))
    for length in (1, 3, 8):
        assert layer(sample((length, 4))).shape == (length, 4)
    varying = gn.NormalizationLayer(2, 1, input_shape=(None, 4))
    assert not varying.initialized
    with pytest.raises(errors.InitializationError, match="level 1, a scaling level"):
        varying(sample((3, 4)))


# ------------------------------------------------------------------------------------------------ Wolfram: the examples


def test_e1_create():
    assert repr(gn.NormalizationLayer()) == "NormalizationLayer()"


def test_e2_an_initialized_layer_of_rank_three():
    layer = gn.NormalizationLayer(input_shape=(3, 5, 7))
    assert layer.initialized
    close(layer(sample((3, 5, 7))), standardized(sample((3, 5, 7)), (1, 2)))


def test_e3_a_picture_is_normalized_channel_by_channel():
    x = np.random.default_rng(0).integers(0, 256, (3, 20, 30)).astype(np.uint8)
    layer = gn.NormalizationLayer("2;;All", 1, input_shape=(3, None, None))
    y = layer(x)
    assert y.dtype == np.float32
    close(y, standardized(x, (1, 2)))


def test_e4_a_layer_threads_over_a_batch():
    layer = gn.NormalizationLayer(input_shape=(3, 5))
    x = sample((4, 3, 5))
    for example, y in zip(x, layer(x), strict=True):
        np.testing.assert_array_equal(layer(example), y)


def test_e5_sinusoids_of_different_scale_and_shift():
    time = np.linspace(0, 20, 500)
    x = np.stack([np.sin(time), 2 * np.cos(time) + 5], 1)  # a sequence of vectors of two
    layer = gn.NormalizationLayer(1, 2, input_shape=(None, 2), dtype="float64", epsilon=0)
    before, after = layer.measure(x), layer.measure(layer(x))
    np.testing.assert_allclose(before.mean, [x[:, 0].mean(), x[:, 1].mean()])
    assert before.variance()[1] > 3 * before.variance()[0]
    np.testing.assert_allclose(after.mean, [0, 0], atol=1e-12)
    np.testing.assert_allclose(after.variance(), [1, 1])


def test_e6_rank_six_over_all_levels():
    x = sample((2, 3, 2, 3, 2, 3))
    layer = gn.NormalizationLayer("All", "All", input_shape=x.shape)
    assert layer.scaling.shape == x.shape
    close(layer(x), standardized(x, None))


def test_e7_explicit_biases():
    x = sample((2, 5))
    close(gn.NormalizationLayer(biases=[1, -1])(x), standardized(x, 1) + np.array([[1], [-1]]))


def test_e8_no_biases():
    layer = gn.NormalizationLayer(biases=None, input_shape=(2, 5))
    assert layer.biases is None
    assert layer.scaling.shape == (2,)
    close(layer(sample((2, 5))), standardized(sample((2, 5)), 1))


def test_e9_explicit_epsilon():
    x = sample((2, 5))
    for epsilon in (0, 1e-6, 10.0):
        layer = gn.NormalizationLayer(epsilon=epsilon, input_shape=(2, 5))
        assert layer.epsilon == epsilon
        close(layer(x), standardized(x, 1, epsilon))


def test_e10_statistics_of_the_whole_level():
    x = np.array([[0.0, 2.0, 10.0, 12.0]])  # mean 6, squares 36 + 16 + 16 + 36 = 104
    close(gn.normalize(x, 2, epsilon=0), (x - 6) / np.sqrt(26))


def test_e11_two_groups_are_a_reshape_and_one_level_deeper():
    x = np.array([[0.0, 2.0, 10.0, 12.0]])
    y = gn.normalize(x, 2, group_number=2, epsilon=0)
    np.testing.assert_array_equal(y, [[-1, 1, -1, 1]])
    np.testing.assert_array_equal(y, gn.normalize(x.reshape(1, 2, 2), 3, epsilon=0).reshape(1, 4))


def test_e12_explicit_scaling_and_its_extraction():
    layer = gn.NormalizationLayer(scaling=[2, 3])
    assert layer.scaling.tolist() == [2, 3]
    close(layer(sample((2, 5))), standardized(sample((2, 5)), 1) * np.array([[2], [3]]))


def test_e13_no_scaling():
    layer = gn.NormalizationLayer(scaling=None, biases=[5, 6])
    assert layer.scaling is None
    close(layer(sample((2, 5))), standardized(sample((2, 5)), 1) + np.array([[5], [6]]))


def test_e14_the_default_variance_is_biased():
    x = sample((3, 8))
    np.testing.assert_allclose(gn.NormalizationLayer().measure(x).variance(), x.astype(np.float64).var(1))
    close(gn.normalize(x), standardized(x, 1))


def test_e15_unbiased_is_the_sample_variance():
    x = sample((3, 8))
    moments = gn.NormalizationLayer(unbiased=True).measure(x)
    np.testing.assert_allclose(moments.variance(unbiased=True), x.astype(np.float64).var(1, ddof=1))
    close(gn.normalize(x, unbiased=True), standardized(x, 1, correction=1))


def test_e16_e17_standardize_is_the_layer_without_epsilon_and_unbiased():
    x = sample((1, 5), "float64")
    standardize = (x - x.mean()) / x.std(ddof=1)  # Wolfram's Standardize
    plain = np.abs(gn.normalize(x) - standardize).max()
    closer = np.abs(gn.normalize(x, unbiased=True, epsilon=1e-7) - standardize).max()
    assert plain > 1e-2 > 1e-6 > closer > 0
    np.testing.assert_allclose(gn.normalize(x, unbiased=True, epsilon=0), standardize, rtol=1e-14)


def test_e18_a_layer_is_not_initialized_before_its_sizes_are_known():
    with pytest.raises(errors.InitializationError) as caught:
        gn.NormalizationLayer()(sample((2, 5)))
    assert caught.value.message == (
        "the size of level 1, a scaling level, is not known\n"
        "declare input_shape, call initialize(...) with a shape or an array, or pass arrays as scaling and biases"
    )


# ------------------------------------------------------------------------------------------- Keras: layer normalization


def test_l1_the_last_level_epsilon_and_the_switches():
    x = sample((4, 5))
    layer = gn.layer_norm(5)
    assert layer.epsilon == 1e-3
    close(layer(x), standardized(x, 1))
    assert gn.layer_norm(5, scaling=None).scaling is None
    assert gn.layer_norm(5, biases=None).biases is None


def test_l2_a_list_of_levels():
    x = sample((3, 4, 5, 6))
    layer = gn.NormalizationLayer([1, 3], "Same", input_shape=(4, 5, 6))
    assert layer.scaling.shape == (4, 6)
    close(layer(x), standardized(x, (1, 3)))


def test_l3_l4_the_same_shape_and_statistics_of_one_example():
    x = sample((3, 4, 5))
    layer = gn.layer_norm(5)
    assert layer(x).shape == x.shape
    changed = x.copy()
    changed[1] += 100
    np.testing.assert_array_equal(layer(changed)[[0, 2]], layer(x)[[0, 2]])


# ------------------------------------------------------------------------------------------------------- the parameters


def test_parameters_are_set_by_value():
    layer = gn.NormalizationLayer(input_shape=(3, None))
    mine = np.array([1.0, 2.0, 3.0])
    layer.scaling = mine
    mine[:] = 0
    assert layer.scaling.tolist() == [1, 2, 3]
    assert layer.scaling.dtype == np.float32
    layer.scaling = [4, 5, 6]
    assert layer.scaling.tolist() == [4, 5, 6]
    layer.biases = (1, 1, 1)
    close(layer(sample((3, 5))), standardized(sample((3, 5)), 1) * np.array([[4], [5], [6]]) + 1)


def test_parameters_are_taken_away_and_given_back():
    x = sample((3, 5))
    layer = gn.NormalizationLayer(input_shape=(3, None), scaling=[2, 2, 2])
    first = layer(x)
    layer.scaling = None
    assert layer.scaling is None
    close(layer(x), standardized(x, 1))
    layer.scaling = "Automatic"
    assert layer.scaling.tolist() == [1, 1, 1]
    layer.scaling = [2, 2, 2]
    np.testing.assert_array_equal(layer(x), first)


def test_setting_parameters_keeps_their_shape():
    layer = gn.NormalizationLayer(input_shape=(3, None))
    for wrong in ([1, 2], 5, np.ones((3, 1)), np.ones((1, 3))):
        with pytest.raises(errors.ParameterError):
            layer.scaling = wrong
        with pytest.raises(errors.ParameterError):
            layer.biases = wrong
    assert layer.scaling.tolist() == [1, 1, 1]
    with pytest.raises(errors.ConfigError):
        layer.scaling = "automatic"


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("levels", [(2, 1), (2, 2), (1, 2), ([1, 3], [3, 1]), ("All", ())])
def test_writing_into_parameters_counts_in_the_next_call(dtype, levels):
    """Whatever the engine remembers of a call, it is not the values of the parameters."""
    x = sample((3, 4, 5))
    layer = gn.NormalizationLayer(*levels, input_shape=x.shape, dtype=dtype)
    settings = {"aggregation_levels": levels[0], "scaling_levels": levels[1]}
    for step in range(3):
        layer.scaling[...] += step
        layer.biases -= 0.5 * step
        judge(layer(x), x, settings, layer.scaling, layer.biases)
        assert layer.scaling.dtype == layer.biases.dtype == dtype_of(dtype)
    assert float(layer.scaling.reshape(-1)[0]) == 4


def test_parameters_of_one_layer_are_its_own():
    shared = np.ones(3, np.float32)
    one, two = gn.NormalizationLayer(scaling=shared), gn.NormalizationLayer(scaling=shared)
    one.scaling[:] = 5
    assert two.scaling.tolist() == shared.tolist() == [1, 1, 1]


def test_initialize_does_not_change_existing_parameters():
    layer = gn.NormalizationLayer(scaling=[1, 2, 3], biases=None)
    assert layer.initialize((3, 8)) is layer
    assert layer.scaling.tolist() == [1, 2, 3]
    assert layer.biases is None
    with pytest.raises(errors.ParameterError):
        layer.initialize((4, 8))
    again = gn.NormalizationLayer().initialize((3, 8))
    again.scaling[:] = 7
    assert again.initialize(np.zeros((3, 9))).scaling.tolist() == [7, 7, 7]


def test_initialize_from_an_array_or_any_shape():
    for given_ in (np.zeros((3, 5)), (3, 5), [3, 5], np.empty((3, 5), "int8"), np.zeros((3, 5)).shape):
        assert gn.NormalizationLayer().initialize(given_).scaling.shape == (3,)
    assert gn.NormalizationLayer(batched=True).initialize((9, 3, 5)).scaling.shape == (3,)


@pytest.mark.parametrize("name", ["scaling", "biases"])
def test_parameters_of_a_call(name):
    """Instead of the layer's own for one call: of their shape, or one for each example of a batch."""
    x = sample((4, 3, 5))
    layer = gn.NormalizationLayer(input_shape=(3, 5), scaling=[1, 2, 3], biases=[1, 0, -1])
    z, own = standardized(x, 2), {"scaling": layer.scaling[:, None], "biases": layer.biases[:, None]}
    for value in (np.array([3.0, 5.0, 7.0]), sample((4, 3), seed=1)):
        used = {**own, name: value[..., None]}
        close(layer(x, **{name: value}), z * used["scaling"] + used["biases"])
    assert layer.scaling.tolist() == [1, 2, 3]
    close(layer(x), z * own["scaling"] + own["biases"])
    with pytest.raises(errors.ParameterError):
        layer(x, **{name: np.ones(4)})
    with pytest.raises(errors.DtypeError):
        layer(x, **{name: [[1], [1, 2]]})


# ----------------------------------------------------------------------------------------------------- copies and texts


def twins(layer):
    """The same layer by every way there is."""
    yield eval(repr(layer), {"NormalizationLayer": gn.NormalizationLayer, "np": np})
    yield gn.NormalizationLayer.from_config(layer.to_config(), **arrays(layer, "explicit"))
    yield gn.NormalizationLayer.from_config(json.loads(json.dumps(layer.to_config())), **arrays(layer, "explicit"))
    yield copy.copy(layer)
    yield copy.deepcopy(layer)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        yield pickle.loads(pickle.dumps(layer, protocol))


def arrays(layer, mode=None):
    """The parameters that are arrays; with a mode those that the config says to be given so."""
    found = {name: getattr(layer, name) for name in ("scaling", "biases")}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, np.ndarray) and mode in {None, layer.to_config()[name]}
    }


def assert_equal(one, two):
    assert one.to_config() == two.to_config()
    assert repr(one) == repr(two)
    assert arrays(one).keys() == arrays(two).keys()
    for name, value in arrays(one).items():
        assert value.dtype == arrays(two)[name].dtype
        assert value.shape == arrays(two)[name].shape
        assert value.tobytes() == arrays(two)[name].tobytes()


LAYERS = [
    gn.NormalizationLayer(),
    gn.NormalizationLayer(2),
    gn.NormalizationLayer([3, 1], "Same"),
    gn.NormalizationLayer("{1, 3;;All;;2}", (), [2, 1, 1], "RMS", False, 0.25, batched=True, dtype="float64"),
    gn.NormalizationLayer("2;;All", "Complement", None, "Standardize", True),
    gn.NormalizationLayer(input_shape=(3, ...), scaling=None, momentum=0.5, trainable=False),
    gn.NormalizationLayer(input_shape=(3, None, 4), batched=False, learning_rate_multipliers={"scaling": 2.0}),
    gn.NormalizationLayer(input_shape=(5,), aggregation_levels=1),
    gn.NormalizationLayer(1, scaling=[0.1, 0.2, 1e-30], biases=[1, 1, 1]),
    gn.NormalizationLayer(1, 2, scaling=[1 / 3], dtype="float64", epsilon_placement="outside"),
    gn.NormalizationLayer(1, (), scaling=2.5, biases=-1, dtype="float16"),
    gn.NormalizationLayer(1, [2, 3], scaling=np.arange(6).reshape(2, 3) / 7),
    gn.NormalizationLayer(1, "Same", scaling=[1, 2], dtype="bfloat16"),
    gn.NormalizationLayer(1, scaling=[0.0, -0.0], biases=[np.nan, np.inf]),
    gn.NormalizationLayer(1, [2, 3], scaling=np.ones((0, 3)), biases=None),
    gn.feature_norm(constant="one"),
    gn.batch_norm(6),
    gn.instance_norm(6, channel_level=-1),
    gn.group_norm(3, 6),
    gn.group_norm(3, 6, channel_level=-1),
    gn.layer_norm((4, 5)),
    gn.rms_norm(7),
    gn.feature_norm(),
]


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_a_layer_is_copied_exactly(layer):
    for twin in twins(layer):
        assert type(twin) is gn.NormalizationLayer
        assert_equal(twin, layer)


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_a_config_fits_its_schema(layer):
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(json.dumps(layer.to_config(), allow_nan=False)))


@given(strategies.cases())
def test_any_layer_is_copied_exactly(case):
    layer = gn.NormalizationLayer(**case.settings).initialize(case.shape)
    x = sample(case.shape)
    y = layer(x)
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(json.dumps(layer.to_config())))
    for twin in twins(layer):
        if twin.initialized:
            assert_equal(twin, layer)
        assert twin.initialize(case.shape)(x).tobytes() == y.tobytes()


def test_moving_moments_are_printed():
    layer = gn.layer_norm(3)
    layer.scaling[1] = 0.1
    layer.biases -= 1
    assert repr(layer) == (
        "NormalizationLayer(-1, 'Same', scaling=np.array([1.0, 0.10000000149011612, 1.0], dtype='float32'), "
        "biases=np.full((3,), -1.0, dtype='float32'), input_shape=(..., 3))"
    )
    twin = eval(repr(layer), {"NormalizationLayer": gn.NormalizationLayer, "np": np})
    assert arrays(twin)["scaling"].tobytes() == layer.scaling.tobytes()
    x = sample((4, 3))
    assert twin(x).tobytes() == layer(x).tobytes()


def test_a_copy_does_not_share_its_parameters():
    layer = gn.layer_norm(3)
    for twin in (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        twin.scaling[:] = 5
        twin.biases = None
        assert layer.scaling.tolist() == [1, 1, 1]
        assert layer.biases.tolist() == [0, 0, 0]


def test_a_layer_that_was_called_is_copied_too():
    layer, x = gn.batch_norm(3), sample((4, 3, 5))
    layer(x, training=True)
    for twin in (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin(x).tobytes() == layer(x).tobytes()
        twin(x, training=True)
    np.testing.assert_allclose(layer.moments.mean, 0.01 * x.mean((0, 2)), rtol=1e-5)


# ------------------------------------------------------------------------------------------------------------ the input


def test_an_example_and_a_batch():
    layer = gn.NormalizationLayer(input_shape=(3, 5))
    x = sample((4, 3, 5))
    np.testing.assert_array_equal(layer(x)[2], layer(x[2]))
    with pytest.raises(errors.ShapeError):
        gn.NormalizationLayer(input_shape=(3, 5), batched=True)(x[0])
    with pytest.raises(errors.ShapeError):
        gn.NormalizationLayer(input_shape=(3, 5), batched=False)(x)


@pytest.mark.parametrize("dtype", strategies.DTYPES)
def test_the_dtype_of_the_output(dtype):
    y = gn.layer_norm(5)(sample((3, 5), dtype))
    assert y.dtype == dtype_of(strategies.RESULTS[dtype])
    assert y.dtype.isnative


def test_subclasses_of_arrays_give_arrays(tmp_path):
    values = sample((3, 5))
    mapped = np.memmap(tmp_path / "x.bin", np.float32, "w+", shape=(3, 5))
    mapped[:] = values

    class Mine(np.ndarray):
        pass

    for x in (mapped, values.view(Mine)):
        y = gn.normalize(x, 2)
        assert type(y) is np.ndarray
        np.testing.assert_array_equal(y, gn.normalize(values, 2))
    read_only = np.memmap(tmp_path / "x.bin", np.float32, "r", shape=(3, 5))
    np.testing.assert_array_equal(gn.normalize(read_only, 2), gn.normalize(values, 2))
    answer = gn.normalize(mapped, 2, out=mapped)
    assert answer is mapped
    mapped.flush()
    np.testing.assert_array_equal(np.fromfile(tmp_path / "x.bin", np.float32).reshape(3, 5), gn.normalize(values, 2))


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (3, 0, 5), (0, 0), (2, 3, 0, 4), (1, 0, 1, 2, 3, 4)])
@pytest.mark.parametrize("batched", [False, True])
def test_arrays_without_elements(shape, batched):
    rank = len(shape) - batched
    for first in range(0 if batched else 1, rank + 1):
        for last in range(max(first, 1), rank + 1):
            for dtype in ("float32", "float16", "int8"):
                x = np.empty(shape, dtype)
                layer = gn.NormalizationLayer(f"{first};;{last}", batched=batched).initialize(shape)
                y = layer(x)
                assert y.shape == shape
                assert y.dtype == strategies.RESULTS[dtype]
                assert "0 reads" in str(layer.plan(x))
                moments = layer.measure(x)
                kept = tuple(size for axis, size in enumerate(shape) if not first <= axis + (not batched) <= last)
                assert moments.mean.shape == moments.m2.shape == kept
                assert not moments.mean.any()
                assert not moments.m2.any()
                assert layer.apply(x, moments).shape == shape
                out = np.empty(shape, y.dtype)
                assert layer(x, out=out) is out


def test_groups_of_a_level_without_elements():
    layer = gn.NormalizationLayer("All", group_number=[2, 1], scaling=None, biases=None)
    assert layer(np.empty((0, 3))).shape == (0, 3)
    assert layer(np.empty((4, 0))).shape == (4, 0)
    assert layer.measure(np.empty((0, 3))).mean.shape == (2,)


def test_rank_one():
    x = sample((7,))
    close(gn.normalize(x, 1), standardized(x, 0))
    close(gn.normalize(x, -1), standardized(x, 0))
    assert gn.NormalizationLayer(1, (), input_shape=(7,)).scaling.shape == ()
    close(gn.NormalizationLayer(1, 1, scaling=np.arange(7))(x), standardized(x, 0) * np.arange(7))
    assert gn.normalize(x[:, None], 1, batched=True).tolist() == [[0.0]] * 7


def test_sixty_four_levels():
    x = sample((2, 3)).reshape(2, *[1] * 62, 3)
    close(gn.normalize(x, 64), standardized(x, 63))
    close(gn.normalize(x, "All"), standardized(x, None))


# ------------------------------------------------------------------------------------------------------- calls with out


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_infinities_and_the_largest_number_are_parameters(dtype):
    kind = dtype_of(dtype)
    largest = np.nextafter(np.array(np.inf, kind), np.array(0, kind))
    layer = gn.layer_norm(4, dtype=dtype, scaling=[np.inf, -np.inf, np.nan, float(largest)])
    assert layer.scaling.tobytes() == np.array([np.inf, -np.inf, np.nan, largest], kind).tobytes()


def test_a_plan_knows_bfloat16_before_anything_else_does():
    text = "import gennorm, sys; assert 'ml_dtypes' not in sys.modules; "
    text += "print(gennorm.layer_norm(3).plan((2, 3), 'bfloat16'))"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.startswith("array      bfloat16 (2, 3)")


def test_out_takes_the_output_and_is_returned():
    x = sample((3, 5))
    layer = gn.NormalizationLayer().initialize(x)
    out = np.full((3, 5), np.nan, np.float32)
    assert layer(x, out=out) is out
    np.testing.assert_array_equal(out, layer(x))
    moments = layer.measure(x)
    assert layer.apply(x, moments, out=out[::-1]).base is out
    np.testing.assert_array_equal(out[::-1], layer(x))
    assert gn.normalize(x, 2, out=out) is out


def test_out_and_input_in_one_buffer():
    """Views of one buffer that do not overlap are apart."""
    buffer = np.zeros((2, 3, 5), np.float32)
    buffer[0] = sample((3, 5))
    y = gn.normalize(buffer[0].copy(), 2)
    np.testing.assert_array_equal(gn.normalize(buffer[0], 2, out=buffer[1]), y)
    interleaved = np.zeros((3, 10), np.float32)
    interleaved[:, ::2] = sample((3, 5))
    np.testing.assert_array_equal(gn.normalize(interleaved[:, ::2], 2, out=interleaved[:, 1::2]), y)


def test_results_do_not_share_memory():
    """Whatever is reused, nothing that somebody still holds is."""
    layer, x = gn.layer_norm(5), sample((3, 5))
    first = layer(x)
    kept = first.copy()
    others = [layer(x + i) for i in range(20)]
    np.testing.assert_array_equal(first, kept)
    assert not any(np.shares_memory(first, other) for other in others)
    view = layer(x)[1:]
    for _ in range(20):
        layer(x + 1)
    np.testing.assert_array_equal(view, kept[1:])


# -------------------------------------------------------------------------------------------------------------- measure


def test_measure_counts_groups_and_the_batch():
    x = sample((2, 6, 4, 5))
    for layer, shape, count in [
        (gn.batch_norm(6), (6,), 40),
        (gn.instance_norm(6), (2, 6), 20),
        (gn.group_norm(3, 6), (2, 3), 40),
        (gn.layer_norm(5), (2, 6, 4), 5),
        (gn.NormalizationLayer([1, 3], group_number=[2, 5], batched=True), (2, 2, 4, 5), 3),
        (gn.NormalizationLayer("0;;All", group_number={0: 2}, batched=True), (2,), 120),
    ]:
        moments = layer.measure(x)
        assert moments.mean.shape == moments.m2.shape == moments.count.shape == shape
        assert set(moments.count.reshape(-1).tolist()) == {count}
    np.testing.assert_allclose(gn.batch_norm(6).measure(x).mean, x.mean((0, 2, 3), dtype=np.float64))
    np.testing.assert_allclose(gn.group_norm(3, 6).measure(x).mean, x.reshape(2, 3, -1).mean(2, dtype=np.float64))


def test_measure_needs_no_parameters():
    assert gn.NormalizationLayer().measure(sample((3, 5))).mean.shape == (3,)


def test_apply_broadcasts_moments():
    x = sample((4, 3, 5), "float64")
    layer = gn.NormalizationLayer(2, (), epsilon=0, batched=True, dtype="float64")
    one = layer.apply(x, gn.Moments.from_variance(1.0, 4.0))
    np.testing.assert_allclose(one, (x - 1) / 2)
    by_level = layer.apply(x, gn.Moments.from_variance([1.0, 2.0, 3.0], [1.0, 4.0, 9.0]))
    np.testing.assert_allclose(by_level, (x - np.array([[1], [2], [3]])) / np.array([[1], [2], [3]]))
    rms = gn.NormalizationLayer(2, (), method="RMS", epsilon=0, batched=True, dtype="float64")
    np.testing.assert_allclose(rms.apply(x, gn.Moments.from_variance(None, 4.0)), x / 2)


# ---------------------------------------------------------------------------------------------------------------- plans

FIRST, LAST = (32, 256, 14, 14), (32, 14, 14, 256)
PLANS = {
    "batch norm": (
        gn.batch_norm(256),
        FIRST,
        """\
array      float32 (32, 256, 14, 14), a batch of 32 examples of shape (256, 14, 14)
aggregates levels 0, 2, 3 (axes 0, 2, 3): 256 slices of 6,272 elements
groups     none
scales     level 1 (axis 1): scaling (256,), biases (256,)
moments    (256,), float64: the moving ones, in training the input's
runs       32 aggregated x 256 kept x 196 aggregated
kernel     rows, float32 arithmetic
memory     1 read, 1 write: 6.42 MB read, 6.42 MB written
parallel   256 tasks""",
    ),
    "batch norm, channels last": (
        gn.batch_norm(256, channel_level=-1),
        LAST,
        """\
array      float32 (32, 14, 14, 256), a batch of 32 examples of shape (14, 14, 256)
aggregates levels 0, 1, 2 (axes 0, 1, 2): 256 slices of 6,272 elements
groups     none
scales     level 3 (axis 3): scaling (256,), biases (256,)
moments    (256,), float64: the moving ones, in training the input's
runs       6272 aggregated x 256 kept
kernel     columns, float32 arithmetic
memory     2 reads (1 in inference), 1 write: 12.8 MB read, 6.42 MB written
parallel   49 tasks: 1 tile in 49 units each""",
    ),
    "instance norm": (
        gn.instance_norm(256),
        FIRST,
        """\
array      float32 (32, 256, 14, 14), a batch of 32 examples of shape (256, 14, 14)
aggregates levels 2, 3 (axes 2, 3): 8,192 slices of 196 elements
groups     none
scales     level 1 (axis 1): scaling (256,), biases (256,)
moments    (32, 256), float64
runs       32 kept x 256 kept x 196 aggregated
kernel     rows, float32 arithmetic
memory     1 read, 1 write: 6.42 MB read, 6.42 MB written
parallel   8,192 tasks""",
    ),
    "instance norm, channels last": (
        gn.instance_norm(256, channel_level=-1),
        LAST,
        """\
array      float32 (32, 14, 14, 256), a batch of 32 examples of shape (14, 14, 256)
aggregates levels 1, 2 (axes 1, 2): 8,192 slices of 196 elements
groups     none
scales     level 3 (axis 3): scaling (256,), biases (256,)
moments    (32, 256), float64
runs       32 kept x 196 aggregated x 256 kept
kernel     columns, float32 arithmetic
memory     1 read, 1 write: 6.42 MB read, 6.42 MB written
parallel   32 tasks""",
    ),
    "group norm": (
        gn.group_norm(32, 256),
        FIRST,
        """\
array      float32 (32, 256, 14, 14), a batch of 32 examples of shape (256, 14, 14)
aggregates levels 1, 2, 3 (axes 1, 2, 3): 1,024 slices of 1,568 elements
groups     level 1 (axis 1) in 32 of 8
scales     level 1 (axis 1): scaling (256,), biases (256,)
moments    (32, 32), float64
runs       32 kept x 32 kept x 8 aggregated x 196 aggregated
kernel     rows, float32 arithmetic
memory     1 read, 1 write: 6.42 MB read, 6.42 MB written
parallel   1,024 tasks""",
    ),
    "group norm, channels last": (
        gn.group_norm(32, 256, channel_level=-1),
        LAST,
        """\
array      float32 (32, 14, 14, 256), a batch of 32 examples of shape (14, 14, 256)
aggregates levels 1, 2, 3 (axes 1, 2, 3): 1,024 slices of 1,568 elements
groups     level 3 (axis 3) in 32 of 8
scales     level 3 (axis 3): scaling (256,), biases (256,)
moments    (32, 32), float64
runs       32 kept x 196 aggregated x 32 kept x 8 aggregated
kernel     columns, float32 arithmetic
memory     1 read, 1 write: 6.42 MB read, 6.42 MB written
parallel   32 tasks""",
    ),
    "group norm, channels last in memory alone": (
        gn.group_norm(32, 256),
        np.broadcast_to(np.float32(0), LAST).copy().transpose(0, 3, 1, 2),
        """\
array      float32 (32, 256, 14, 14), a batch of 32 examples of shape (256, 14, 14)
aggregates levels 1, 2, 3 (axes 1, 2, 3): 1,024 slices of 1,568 elements
groups     level 1 (axis 1) in 32 of 8
scales     level 1 (axis 1): scaling (256,), biases (256,)
moments    (32, 32), float64
runs       32 kept x 196 aggregated x 32 kept x 8 aggregated
kernel     columns, float32 arithmetic
memory     1 read, 1 write: 6.42 MB read, 6.42 MB written
parallel   32 tasks""",
    ),
    "layer norm of the channels, first": (
        gn.NormalizationLayer(1, "Same", input_shape=(256, None, None)),
        FIRST,
        """\
array      float32 (32, 256, 14, 14), a batch of 32 examples of shape (256, 14, 14)
aggregates level 1 (axis 1): 6,272 slices of 256 elements
groups     none
scales     level 1 (axis 1): scaling (256,), biases (256,)
moments    (32, 14, 14), float64
runs       32 kept x 256 aggregated x 196 kept
kernel     columns, float32 arithmetic
memory     1 read, 1 write: 6.42 MB read, 6.42 MB written
parallel   64 tasks: 32 tiles in 2 units each""",
    ),
    "layer norm of the channels, last": (
        gn.layer_norm(256, batched=True),
        LAST,
        """\
array      float32 (32, 14, 14, 256), a batch of 32 examples of shape (14, 14, 256)
aggregates level 3 (axis 3): 6,272 slices of 256 elements
groups     none
scales     level 3 (axis 3): scaling (256,), biases (256,)
moments    (32, 14, 14), float64
runs       6272 kept x 256 aggregated
kernel     rows, float32 arithmetic
memory     1 read, 1 write: 6.42 MB read, 6.42 MB written
parallel   6,272 tasks""",
    ),
    "layer norm of an example": (
        gn.layer_norm((256, 14, 14)),
        FIRST,
        """\
array      float32 (32, 256, 14, 14), one example
aggregates levels 2, 3, 4 (axes 1, 2, 3): 32 slices of 50,176 elements
groups     none
scales     levels 2, 3, 4 (axes 1, 2, 3): scaling (256, 14, 14), biases (256, 14, 14)
moments    (32,), float64
runs       32 kept x 50176 aggregated
kernel     rows, float32 arithmetic
memory     1 read, 1 write: 6.42 MB read, 6.42 MB written
parallel   224 tasks: 32 slices in 7 units each""",
    ),
    "rms norm, channels last": (
        gn.rms_norm(256),
        LAST,
        """\
array      float32 (32, 14, 14, 256), one example
aggregates level 4 (axis 3): 6,272 slices of 256 elements
groups     none
scales     level 4 (axis 3): scaling (256,)
moments    (32, 14, 14), float64
runs       6272 kept x 256 aggregated
kernel     rows, float32 arithmetic
memory     1 read, 1 write: 6.42 MB read, 6.42 MB written
parallel   6,272 tasks""",
    ),
    "groups of two levels": (
        gn.NormalizationLayer("All", (), {1: 8, 2: 2}, batched=True),
        FIRST,
        """\
array      float32 (32, 256, 14, 14), a batch of 32 examples of shape (256, 14, 14)
aggregates levels 1, 2, 3 (axes 1, 2, 3): 512 slices of 3,136 elements
groups     level 1 (axis 1) in 8 of 32; level 2 (axis 2) in 2 of 7
scales     no level: scaling (), biases ()
moments    (32, 8, 2), float64
runs       256 kept x 32 aggregated x 2 kept x 98 aggregated
kernel     rows, float32 arithmetic
memory     1 read, 1 write: 6.42 MB read, 6.42 MB written
parallel   512 tasks""",
    ),
    "a gapped input": (
        gn.layer_norm(256),
        np.broadcast_to(np.float32(0), (32, 14, 14, 512)).copy()[..., ::2],
        """\
array      float32 (32, 14, 14, 256), one example
aggregates level 4 (axis 3): 6,272 slices of 256 elements
groups     none
scales     level 4 (axis 3): scaling (256,), biases (256,)
moments    (32, 14, 14), float64
runs       6272 kept x 256 aggregated
kernel     rows, float32 arithmetic after a copy of the input
memory     1 read, 1 write, 1 copy: 12.8 MB read, 12.8 MB written
parallel   6,272 tasks""",
    ),
    "float16": (
        gn.layer_norm(256),
        np.zeros(LAST, np.float16),
        """\
array      float16 (32, 14, 14, 256), one example
aggregates level 4 (axis 3): 6,272 slices of 256 elements
groups     none
scales     level 4 (axis 3): scaling (256,), biases (256,)
moments    (32, 14, 14), float64
runs       6272 kept x 256 aggregated
kernel     rows, float32 arithmetic
memory     1 read, 1 write: 3.21 MB read, 3.21 MB written
parallel   6,272 tasks""",
    ),
    "bytes": (
        gn.layer_norm(256),
        np.zeros(LAST, np.int8),
        """\
array      int8 (32, 14, 14, 256), one example
aggregates level 4 (axis 3): 6,272 slices of 256 elements
groups     none
scales     level 4 (axis 3): scaling (256,), biases (256,)
moments    (32, 14, 14), float64
runs       6272 kept x 256 aggregated
kernel     rows, float32 arithmetic
memory     1 read, 1 write: 1.61 MB read, 6.42 MB written
parallel   6,272 tasks""",
    ),
    "one slice larger than the cache": (
        gn.NormalizationLayer(1, scaling=None, biases=None),
        (1 << 24,),
        """\
array      float32 (16777216,), one example
aggregates level 1 (axis 0): 1 slice of 16,777,216 elements
groups     none
scales     no level: no parameters
moments    (), float64
runs       16777216 aggregated
kernel     rows, float32 arithmetic
memory     2 reads, 1 write: 134 MB read, 67.1 MB written
parallel   64 tasks: 1 slice in 64 units each""",
    ),
    "every other element": (
        gn.layer_norm(256, batched=True),
        np.zeros((32, 512), np.float16)[:, ::2],
        """\
array      float16 (32, 256), a batch of 32 examples of shape (256,)
aggregates level 1 (axis 1): 32 slices of 256 elements
groups     none
scales     level 1 (axis 1): scaling (256,), biases (256,)
moments    (32,), float64
runs       32 kept x 256 aggregated
kernel     rows, float32 arithmetic after a copy of the input
memory     1 read, 1 write, 1 copy: 32.8 kB read, 32.8 kB written
parallel   32 tasks""",
    ),
    "batch norm of two large slices": (
        gn.batch_norm(2),
        (2, 2, 1 << 22),
        """\
array      float32 (2, 2, 4194304), a batch of 2 examples of shape (2, 4194304)
aggregates levels 0, 2 (axes 0, 2): 2 slices of 8,388,608 elements
groups     none
scales     level 1 (axis 1): scaling (2,), biases (2,)
moments    (2,), float64: the moving ones, in training the input's
runs       2 aggregated x 2 kept x 4194304 aggregated
kernel     rows, float32 arithmetic
memory     2 reads (1 in inference), 1 write: 134 MB read, 67.1 MB written
parallel   128 tasks: 2 slices in 64 units each""",
    ),
    "feature norm": (
        gn.feature_norm(input_shape=(256,)),
        (1 << 22, 256),
        """\
array      float32 (4194304, 256), a batch of 4,194,304 examples of shape (256,)
aggregates level 0 (axis 0): 256 slices of 4,194,304 elements
groups     none
scales     level 1 (axis 1): no parameters
moments    (256,), float64: those of the data set
runs       4194304 aggregated x 256 kept
kernel     columns, float32 arithmetic
memory     1 read, 1 write: 4.29 GB read, 4.29 GB written
parallel   512 tasks: 1 tile in 512 units each""",
    ),
    "no elements": (
        gn.layer_norm(256),
        (0, 256),
        """\
array      float32 (0, 256), one example
aggregates level 2 (axis 1): 0 slices of 256 elements
groups     none
scales     level 2 (axis 1): scaling (256,), biases (256,)
moments    (0,), float64
runs       0 kept x 256 aggregated
kernel     rows, float32 arithmetic
memory     0 reads, 0 writes: 0 B read, 0 B written
parallel   0 tasks""",
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_plan(name):
    layer, given_, text = PLANS[name]
    assert str(layer.plan(given_)) == text


def test_a_plan_of_a_shape_is_that_of_such_an_array():
    layer = gn.layer_norm(8)
    for dtype in ("float32", "float16", "int64", np.float64, np.dtype("uint8"), "bfloat16", ml_dtypes.bfloat16):
        x = np.zeros((3, 8), dtype_of(dtype) if dtype == "bfloat16" else dtype)
        assert layer.plan((3, 8), dtype) == layer.plan(x)
    assert layer.plan((3, 8)) == layer.plan([3, 8]) == layer.plan(np.zeros((3, 8), np.float32))
    with pytest.raises(errors.ShapeError):
        layer.plan((3, 7))


def test_copies_of_both_are_read_and_written_too():
    config = LayerConfig.make(-1, (), batched=True)
    plan = make_plan(config, (8, 4), "int8", (8, 2), (32, 8))
    assert (plan.copies, plan.traffic) == ("both", (32 + 32 + 128, 128 + 32 + 128))
    assert "1 read, 1 write, 2 copies: 192 B read, 288 B written" in str(plan)


def test_a_plan_needs_no_parameters_and_allocates_nothing():
    text = str(gn.NormalizationLayer().plan((1 << 20, 1 << 20, 1 << 20)))
    assert "1048576 kept x 1099511627776 aggregated" in text
    assert "9.22e+06 TB read" in text


# -------------------------------------------------------------------------------------------------------------- threads


def test_threads_are_set_and_read():
    before = gn.get_num_threads()
    try:
        for number in (1, 3):
            gn.set_num_threads(number)
            assert gn.get_num_threads() == number
    finally:
        gn.set_num_threads(before)


def test_a_number_of_threads_may_be_numpys():
    before = gn.get_num_threads()
    try:
        gn.set_num_threads(np.int64(3))
        assert type(gn.get_num_threads()) is int
        assert gn.get_num_threads() == 3
    finally:
        gn.set_num_threads(before)


@pytest.mark.parametrize("wrong", [0, -1, True, np.True_, 1.0, np.float64(2), "2", None])
def test_a_number_of_threads_is_an_integer(wrong):
    before = gn.get_num_threads()
    with pytest.raises(errors.ConfigError):
        gn.set_num_threads(wrong)
    assert gn.get_num_threads() == before
