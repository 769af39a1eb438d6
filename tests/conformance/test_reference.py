"""The reference against independent judges: PyTorch, Keras, hand-computed numbers, and finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from spec import reference
from tests.frameworks import torch

Array = NDArray[np.float64]


def sample(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(loc=0.5, scale=1.5, size=shape)


def close(actual: Any, expected: Any, *, rtol: float = 1e-12, atol: float = 1e-12) -> None:
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=rtol, atol=atol, strict=True)


def close_to_keras(actual: Any, expected: Any) -> None:
    """Keras rounds part of its work to float32, whatever the dtype of the layer."""
    close(actual, expected.detach().numpy(), rtol=2e-6, atol=2e-6)


def in_torch(x: Array) -> Any:
    return torch.from_numpy(np.ascontiguousarray(x))


# The statements of the Wolfram page, by number -----------------------------------------------------------------------


def test_w9_unbiased_divides_by_the_length_minus_one() -> None:
    x = np.array([[1.0, 2.0, 3.0, 6.0]])  # mean 3, squares 4 + 1 + 0 + 9 = 14
    close(reference.normalize(x, epsilon=0.0), (x - 3) / np.sqrt(14 / 4))
    close(reference.normalize(x, unbiased=True, epsilon=0.0), (x - 3) / np.sqrt(14 / 3))


def test_w10_standardize_subtracts_the_mean_and_rms_does_not() -> None:
    x = np.array([[1.0, 7.0]])  # mean 4, variance 9, mean square 25
    close(reference.normalize(x, epsilon=0.0), [[-1.0, 1.0]])
    close(reference.normalize(x, method="RMS", epsilon=0.0), [[0.2, 1.4]])


def test_w11_rms_divides_by_the_root_of_the_mean_square() -> None:
    x = np.array([[3.0, 4.0, 0.0, 0.0]])
    close(reference.normalize(x, method="RMS", epsilon=0.75), x / np.sqrt(25 / 4 + 0.75))


def test_w12_each_level_is_split_into_its_groups() -> None:
    x = sample(4, 6)
    y = reference.normalize(x, "1;;2", "Complement", [2, 3])
    for row in (slice(0, 2), slice(2, 4)):
        for column in (slice(0, 2), slice(2, 4), slice(4, 6)):
            part = x[row, column]
            close(y[row, column], (part - part.mean()) / np.sqrt(part.var() + 1e-3))


def test_w13_a_level_that_does_not_split_is_an_error() -> None:
    with pytest.raises(ValueError, match="level 2 of size 5 does not split into 2 groups"):
        reference.normalize(sample(3, 5), 2, group_number=2)


def test_w22_the_default_is_instance_normalization_with_the_channel_first() -> None:
    x, weight, bias = sample(2, 3, 4, 5), sample(3, seed=1), sample(3, seed=2)
    expected = torch.nn.functional.instance_norm(in_torch(x), weight=in_torch(weight), bias=in_torch(bias), eps=1e-3)
    close(reference.normalize(x, scaling=weight, biases=bias, batched=True), expected)
    close(reference.normalize(x[1], scaling=weight, biases=bias), expected[1])


def test_w23_rms_recreates_root_mean_square_layer_normalization() -> None:
    x, weight = sample(2, 7, 5), sample(5, seed=1)
    expected = torch.nn.functional.rms_norm(in_torch(x), (5,), in_torch(weight), eps=1e-3)
    close(reference.normalize(x, -1, "Same", method="RMS", scaling=weight, batched=True), expected)


@pytest.mark.parametrize("length", [1, 4, 9])
def test_w24_layer_normalization_with_time_first(length: int) -> None:
    x, weight, bias = sample(length, 6), sample(6, seed=1), sample(6, seed=2)
    expected = torch.nn.functional.layer_norm(in_torch(x), (6,), in_torch(weight), in_torch(bias), eps=1e-3)
    close(reference.normalize(x, "2;;All", "Same", scaling=weight, biases=bias), expected)


def test_w25_group_normalization() -> None:
    x, weight, bias = sample(2, 6, 4, 3), sample(6, seed=1), sample(6, seed=2)
    expected = torch.nn.functional.group_norm(in_torch(x), 3, in_torch(weight), in_torch(bias), eps=1e-3)
    close(reference.normalize(x, "All", 1, [3, 1, 1], scaling=weight, biases=bias, batched=True), expected)


def test_e10_statistics_of_the_whole_level() -> None:
    x = np.array([[0.0, 2.0, 10.0, 12.0]])  # mean 6, squares 36 + 16 + 16 + 36 = 104
    close(reference.normalize(x, 2, epsilon=0.0), (x - 6) / np.sqrt(26.0))


def test_e11_two_groups_equal_a_reshape_and_one_level_deeper() -> None:
    x = np.array([[0.0, 2.0, 10.0, 12.0]])
    grouped = reference.normalize(x, 2, group_number=2, epsilon=0.0)
    close(grouped, [[-1.0, 1.0, -1.0, 1.0]])
    close(grouped, reference.normalize(x.reshape(1, 2, 2), 3, epsilon=0.0).reshape(1, 4))


def test_e14_the_default_variance_is_biased() -> None:
    x = sample(3, 8)
    close(reference.normalize(x), (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-3))


def test_e15_unbiased_is_the_sample_variance() -> None:
    x = sample(3, 8)
    expected = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, ddof=1, keepdims=True) + 1e-3)
    close(reference.normalize(x, unbiased=True), expected)


def test_e16_e17_without_regularization_the_layer_is_standardize() -> None:
    x = sample(1, 5)
    standardized = (x - x.mean()) / x.std(ddof=1)  # Wolfram's Standardize
    plain = np.abs(reference.normalize(x) - standardized).max()
    closer = np.abs(reference.normalize(x, unbiased=True, epsilon=1e-7) - standardized).max()
    assert plain > 1e-2 > 1e-6 > closer > 0
    close(reference.normalize(x, unbiased=True, epsilon=0.0), standardized)


# The statements of the Keras page, by number -------------------------------------------------------------------------


def test_l1_keras_layer_normalization_defaults() -> None:
    keras = pytest.importorskip("keras")
    x = sample(4, 5)
    expected = keras.layers.LayerNormalization(dtype="float64")(in_torch(x))
    close_to_keras(reference.normalize(x, -1, "Same", epsilon=1e-3, batched=True), expected)


@pytest.mark.parametrize("axis", [(1,), (1, 2), (2, 3), (1, 3), (3, 1)])
def test_l2_keras_layer_normalization_over_a_list_of_axes(axis: tuple[int, ...]) -> None:
    keras = pytest.importorskip("keras")
    x, kept = sample(2, 3, 4, 5), tuple(sorted(axis))
    sizes = [x.shape[a] for a in kept]
    scaling, biases = sample(*sizes, seed=1), sample(*sizes, seed=2)
    # On the torch backend Keras hands neighbouring axes to F.layer_norm even where they are not the last ones, which
    # raises or takes the wrong axes: show it such axes last.
    last = tuple(range(4 - len(axis), 4)) if axis in ((1,), (1, 2)) else axis
    shown = np.moveaxis(x, axis, last)
    layer = keras.layers.LayerNormalization(axis=list(last), dtype="float64")
    layer.build(shown.shape)
    layer.set_weights([scaling, biases])
    expected = torch.moveaxis(layer(in_torch(shown)), last, axis)
    close_to_keras(reference.normalize(x, kept, "Same", scaling=scaling, biases=biases, batched=True), expected)


def test_l3_the_shape_is_kept() -> None:
    for shape in [(3, 2), (1, 4), (2, 3, 4, 5, 2, 3)]:
        assert reference.normalize(sample(*shape)).shape == shape


def test_l4_statistics_are_of_each_example() -> None:
    x = sample(5, 4, 3)
    whole = reference.normalize(x, "All", "Same", batched=True)
    for example, alone in zip(x, whole, strict=True):
        close(reference.normalize(example, "All", "Same"), alone)
        assert abs(alone.mean()) < 1e-12


# Other judges --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 3), (4, 3, 5), (2, 3, 4, 5), (2, 3, 2, 3, 2)])
def test_batch_normalization_and_its_moving_moments(shape: tuple[int, ...]) -> None:
    x, weight, bias = sample(*shape), sample(3, seed=1), sample(3, seed=2)
    mean, variance = sample(3, seed=3), np.abs(sample(3, seed=4))
    aggregation = (0, *range(2, len(shape)))
    arguments = (in_torch(weight), in_torch(bias))
    trained = torch.nn.functional.batch_norm(in_torch(x), None, None, *arguments, training=True, eps=1e-3)
    settings: dict[str, Any] = {"scaling": weight, "biases": bias, "batched": True}
    close(reference.normalize(x, aggregation, 1, **settings), trained)
    used = torch.nn.functional.batch_norm(in_torch(x), in_torch(mean), in_torch(variance), *arguments, eps=1e-3)
    close(reference.normalize(x, aggregation, 1, mean=mean, variance=variance, **settings), used)
    moved_mean, moved_variance = reference.moving(mean, variance, x, aggregation, 1, momentum=0.9)
    axes = tuple(aggregation)
    close(moved_mean, 0.9 * mean + 0.1 * x.mean(axes))
    close(moved_variance, 0.9 * variance + 0.1 * x.var(axes))


def test_moving_moments_agree_with_keras() -> None:
    keras = pytest.importorskip("keras")
    x = sample(6, 4, 3)
    layer = keras.layers.BatchNormalization(dtype="float64")
    expected = layer(in_torch(x), training=True)
    close_to_keras(reference.normalize(x, "0;;1", 2, batched=True), expected)
    mean, variance = reference.moving(np.zeros(3), np.ones(3), x, "0;;1", 2)
    close_to_keras(mean, layer.moving_mean.value)
    close_to_keras(variance, layer.moving_variance.value)


def test_moving_moments_average_the_slices_of_a_batch_that_is_kept() -> None:
    x = sample(4, 3, 5)
    mean, variance = reference.moving(np.zeros(3), np.ones(3), x, 2, 1, momentum=0.0)
    close(mean, x.mean(2).mean(0))
    close(variance, x.var(2).mean(0))
    ghosts = x.reshape(2, 2, 3, 5)
    mean, variance = reference.moving(np.zeros(3), np.ones(3), x, "{0, 2}", 1, {0: 2}, momentum=0.0)
    close(mean, ghosts.mean((1, 3)).mean(0))
    close(variance, ghosts.var((1, 3)).mean(0))


def test_epsilon_as_a_floor_is_the_keras_normalization_layer() -> None:
    keras = pytest.importorskip("keras")
    x, mean, variance = sample(4, 3), np.array([0.0, 1.0, 2.0]), np.array([4.0, 0.0, 1e-20])
    expected = keras.layers.Normalization(mean=mean, variance=variance, dtype="float64")(in_torch(x))
    settings: dict[str, Any] = {"epsilon": 1e-7, "epsilon_placement": "floor", "batched": True}
    close_to_keras(reference.normalize(x, 0, (), mean=mean, variance=variance, **settings), expected)


def test_epsilon_outside_the_root() -> None:
    x = np.array([[1.0, 7.0]])
    close(reference.normalize(x, epsilon=2.0, epsilon_placement="outside"), [[-0.6, 0.6]])
    close(reference.normalize(x, epsilon=5.0, epsilon_placement="floor"), [[-0.6, 0.6]])
    close(reference.normalize(x, epsilon=16.0), [[-0.6, 0.6]])


@pytest.mark.parametrize(
    ("spec", "rank", "expected"),
    [
        (2, 3, [2]),
        (-1, 3, [3]),
        ("2", 3, [2]),
        ("All", 3, [1, 2, 3]),
        ("0;;All", 3, [0, 1, 2, 3]),
        ("2;;", 4, [2, 3, 4]),
        (";;-2", 4, [1, 2, 3]),
        ("-3;;-2", 4, [2, 3]),
        ("1;;All;;2", 5, [1, 3, 5]),
        ("{1, 3;;4}", 4, [1, 3, 4]),
        ((4, "1;;2"), 4, [4, 1, 2]),
        ((), 4, []),
        ("All;;2", 3, [1, 2]),
        (";;", 3, [1, 2, 3]),
        (";;;;2", 5, [1, 3, 5]),
        ("{0, 2;;All}", 1, [0]),
        ("{0, ;;-2}", 1, [0]),
        ("{0, All}", 0, [0]),
    ],
)
def test_level_specs(spec: Any, rank: int, expected: list[int]) -> None:
    assert reference.levels(spec, rank) == expected


@pytest.mark.parametrize("spec", ["3;;2", "{1, 3;;2}", "{2;;All}", "{0, 3;;All}", 2, -2, "-2;;1", "0;;2", "1;;All;;0"])
def test_values_that_are_not_level_specs_of_rank_1(spec: Any) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        reference.levels(spec, 1)


@pytest.mark.parametrize(
    ("x", "settings"),
    [
        (sample(3), {}),  # "2;;All" of rank 1
        (sample(3, 4), {"aggregation_levels": ()}),
        (sample(3, 4), {"aggregation_levels": 3}),
        (sample(3, 4), {"aggregation_levels": (2, -1)}),
        (sample(3, 4), {"aggregation_levels": 0}),
        (sample(3, 4), {"aggregation_levels": 0, "scaling_levels": "Same", "batched": True}),
        (sample(3, 4), {"scaling": np.ones(4)}),
        (sample(3, 4), {"scaling": np.ones((3, 3))}),
        (sample(3, 4), {"group_number": (2, 2)}),
        (sample(3, 4), {"group_number": {1: 3}}),
        (sample(3, 4), {"group_number": {2: 2, -1: 2}}),
        (sample(3, 4), {"group_number": 0}),
        (sample(3, 1), {"unbiased": True}),
        (sample(3, 4), {"unbiased": True, "method": "RMS"}),
        (sample(3, 4), {"method": "rms"}),
        (sample(3, 4), {"epsilon_placement": "Inside"}),
    ],
)
def test_values_that_are_not_layers_are_refused(x: Array, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        reference.normalize(x, **settings)


def test_same_is_the_aggregated_levels_upwards() -> None:
    x, scaling = sample(2, 3, 4), sample(3, 4, seed=1)
    close(reference.normalize(x, (3, 2), "Same", scaling=scaling), reference.normalize(x, (2, 3)) * scaling)


def test_a_mask_equals_the_removal_of_elements() -> None:
    x, keep = sample(2, 6), np.array([True, True, False, True, False, True])
    y = reference.normalize(x, mask=keep)
    close(y[:, keep], reference.normalize(x[:, keep]))
    kept = x[:, keep]
    close(y[:, 2], (x[:, 2] - kept.mean(1)) / np.sqrt(kept.var(1) + 1e-3))
    count, mean, m2 = reference.moments(x, mask=keep)
    assert mean is not None
    close(count, [4.0, 4.0])
    close(mean, kept.mean(1))
    close(m2, kept.var(1) * 4)


def test_the_order_of_scaling_levels_is_the_order_of_the_parameter_axes() -> None:
    x, scaling = sample(2, 3, 4), sample(4, 2, seed=1)
    expected = reference.normalize(x, 2) * scaling.T[:, None, :]
    close(reference.normalize(x, 2, (3, 1), scaling=scaling), expected)
    each = sample(5, 4, 2, seed=2)
    batch = sample(5, 2, 3, 4)
    expected = reference.normalize(batch, 2, batched=True) * each.transpose(0, 2, 1)[:, :, None, :]
    close(reference.normalize(batch, 2, (3, 1), scaling=each, batched=True), expected)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e-310, -7.3, 1e150])
@pytest.mark.parametrize("size", [1, 3, 7, 49, 100])
def test_a_constant_slice_has_no_variance(value: float, size: int) -> None:
    x = np.full((2, size), value)
    _, mean, m2 = reference.moments(x)
    assert mean is not None
    assert (mean == value).all()
    assert (m2 == 0).all()
    for placement in ("inside", "floor", "outside"):
        y = reference.normalize(x, epsilon=0.0, epsilon_placement=placement, biases=np.array([2.0, 3.0]))
        assert (y == np.array([[2.0], [3.0]])).all()


def test_nothing_counted() -> None:
    x = sample(2, 3)
    count, mean, m2 = reference.moments(x, mask=np.array([[True], [False]]))
    assert mean is not None
    assert (count[1], mean[1], m2[1]) == (0, 0, 0)
    close(reference.normalize(x, mask=np.array([[True], [False]]))[1], x[1] / np.sqrt(1e-3))
    close(reference.normalize(x, mask=np.array(False), epsilon=0.0, scaling=np.ones(2)), np.zeros((2, 3)))
    assert reference.normalize(np.zeros((3, 0))).shape == (3, 0)


def test_one_counted_element_of_an_unbiased_slice_has_no_variance() -> None:
    x = np.array([[1.0, 5.0, 9.0]])
    mask = np.array([False, True, False])
    close(reference.normalize(x, unbiased=True, mask=mask), (x - 5) / np.sqrt(1e-3))


def test_non_finite_numbers_stay_in_their_slice() -> None:
    x = sample(4, 3)
    x[0, 1], x[1, 1], x[2, 0] = np.nan, np.inf, -np.inf
    for method in ("Standardize", "RMS"):
        y = reference.normalize(x, method=method)
        close(y[3:], reference.normalize(x[3:], method=method))
    assert np.isnan(reference.normalize(x)[:3]).all()
    close(reference.normalize(x, method="RMS")[1], [0.0, np.nan, 0.0])


# Derivatives ---------------------------------------------------------------------------------------------------------

DERIVATIVES: dict[str, dict[str, Any]] = {
    "default": {},
    "rms": {"method": "RMS"},
    "unbiased": {"unbiased": True},
    "floor below": {"epsilon_placement": "floor", "epsilon": 1e-3},
    "floor above": {"epsilon_placement": "floor", "epsilon": 10.0},
    "outside": {"epsilon_placement": "outside", "epsilon": 0.3},
    "rms outside": {"epsilon_placement": "outside", "epsilon": 0.3, "method": "RMS"},
    "groups": {"aggregation_levels": "{3, 1}", "scaling_levels": "All", "group_number": [2, 1]},
    "batch": {"aggregation_levels": "{0, 2;;3}", "scaling_levels": 1},
    "ghost": {"aggregation_levels": "{0, 3}", "scaling_levels": (2, 1), "group_number": {0: 2}},
    "scalar": {"scaling_levels": ()},
    "mask": {"mask": sample(4, 2, 3, 4, seed=9) > 0},
    "mask unbiased": {"mask": sample(4, 2, 3, 4, seed=9) > 0, "unbiased": True, "aggregation_levels": "All"},
    "mask rms": {"mask": sample(4, 1, 3, 4, seed=9) > 0, "method": "RMS", "aggregation_levels": "2;;3"},
    "given": {"mean": sample(2, seed=7), "variance": np.abs(sample(2, seed=8))},
}


@pytest.mark.parametrize("each_example", [False, True])
@pytest.mark.parametrize("name", DERIVATIVES)
def test_vjp_is_the_transposed_derivative(name: str, each_example: bool) -> None:
    x, dy, settings = sample(4, 2, 3, 4), sample(4, 2, 3, 4, seed=1), {"batched": True} | DERIVATIVES[name]
    where = reference.geometry(
        x.shape,
        settings.get("aggregation_levels", "2;;All"),
        settings.get("scaling_levels", "Complement"),
        settings.get("group_number"),
        True,
    )
    sizes = (4,) * each_example + tuple(x.shape[axis] for axis in where.scaling)
    inputs: dict[str, Any] = {"x": x, "scaling": sample(*sizes, seed=2), "biases": sample(*sizes, seed=3)}
    found = reference.vjp(dy=dy, **inputs, **settings)
    step = 1e-3
    for key, cotangent in zip(inputs, found, strict=True):
        assert cotangent is not None
        numeric = np.zeros_like(inputs[key])
        for index in np.ndindex(*numeric.shape):
            for h, weight in ((1, 8), (-1, -8), (2, -1), (-2, 1)):  # central, of the fourth order
                moved = inputs[key].copy()
                moved[index] += h * step
                numeric[index] += weight * (reference.normalize(**(inputs | {key: moved}), **settings) * dy).sum()
        close(cotangent, numeric / (12 * step), rtol=1e-7, atol=1e-7)


def test_vjp_agrees_with_torch() -> None:
    x, dy, weight = sample(2, 3, 4, 5), sample(2, 3, 4, 5, seed=1), sample(5, seed=2)
    leaf, parameter = in_torch(x).requires_grad_(), in_torch(weight).requires_grad_()
    torch.nn.functional.layer_norm(leaf, (5,), parameter, eps=1e-3).backward(in_torch(dy))
    dx, dscaling, dbiases = reference.vjp(x, dy, -1, "Same", scaling=weight, batched=True)
    close(dx, leaf.grad)
    close(dscaling, parameter.grad)
    assert dbiases is None


def test_vjp_of_a_constant_slice_is_zero_where_the_factor_is() -> None:
    x, dy = np.full((2, 3), 0.1), sample(2, 3)
    for placement in ("inside", "floor", "outside"):
        dx, _, dbiases = reference.vjp(
            x, dy, epsilon=0.0, epsilon_placement=placement, scaling=np.ones(2), biases=np.ones(2)
        )
        close(dx, np.zeros((2, 3)))
        close(dbiases, dy.sum(1))


@pytest.mark.parametrize("name", DERIVATIVES)
def test_inverse_undoes_normalize(name: str) -> None:
    settings: dict[str, Any] = {"batched": True, "method": "Standardize"} | DERIVATIVES[name]
    x = sample(4, 2, 3, 4)
    spread = {
        key: settings[key]
        for key in ("aggregation_levels", "scaling_levels", "group_number", "method", "batched")
        if key in settings
    }
    mask, unbiased = settings.pop("mask", None), settings.pop("unbiased", False)
    count, mean, m2 = reference.moments(x, **spread, mask=mask)
    given = {"mean": settings.pop("mean", mean), "variance": settings.pop("variance", m2 / (count - unbiased))}
    where = reference.geometry(
        x.shape,
        spread.get("aggregation_levels", "2;;All"),
        spread.get("scaling_levels", "Complement"),
        spread.get("group_number"),
        True,
    )
    sizes = [x.shape[axis] for axis in where.scaling]
    settings |= {"scaling": sample(*sizes, seed=2), "biases": sample(*sizes, seed=3)}
    y = reference.normalize(x, **given, **settings)
    close(reference.inverse(y, **given, **settings), x, rtol=1e-9, atol=1e-9)


def test_inverse_of_a_constant_slice_is_its_mean() -> None:
    settings: dict[str, Any] = {"epsilon": 0.0, "biases": np.array([1.0, 2.0])}
    for y in (reference.normalize(np.full((2, 3), 0.1), **settings), sample(2, 3)):
        close(reference.inverse(y, np.full(2, 0.1), np.zeros(2), **settings), np.full((2, 3), 0.1))
