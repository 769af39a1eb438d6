"""Second derivatives, and first ones along directions of parameters: against the definition, differences and torch."""

import itertools

import numpy as np
import pytest

import gennorm as gn
from gennorm.layer.derivatives import Gradients
from spec import reference
from tests.engine.kernels.test_forms import FORMS, ONE_EACH, made
from tests.frameworks import functional, torch
from tests.strategies import LAYOUTS, dtype_of, named_layouts, sample

SMALL = [name for name in FORMS if "three tiles" not in name]
ABOUT = {"float16": 4e-3, "bfloat16": 3e-2, "float32": 2e-5, "float64": 1e-11}


def direction(shape, seed, dtype="float64"):
    return np.random.default_rng(seed).normal(0.25, 1, shape).astype(dtype_of(dtype))


def some(shape, share=0.7):
    return np.random.default_rng(3).random(shape) < share


def along(x, layer, dtype="float64"):
    """A direction for each of the three gradients."""
    of_parameters = (
        None if value is None else direction(value.shape, 5 + i) for i, value in enumerate(parameters(layer))
    )
    return Gradients(direction(x.shape, 7, dtype), *of_parameters)


def parameters(layer):
    return layer.scaling, layer.biases


def near(found, exact, dtype, what):
    assert found.shape == exact.shape, what
    found, exact = found.astype(np.float64), np.asarray(exact, np.float64)
    far = ABOUT[dtype] * max(np.abs(exact).max(initial=0), 1e-3)
    worst = np.abs(found - exact).max(initial=0)
    assert worst <= far, f"{what}: off by {worst:.3g} where {far:.3g} is allowed"


def check(layer, x, settings, mask=None, moments=None, **held):
    """Every second derivative is that of the definition, and the derivative along all directions too."""
    dtype = x.dtype.name
    dy, ways = direction(x.shape, 6, dtype), along(x, layer, dtype)
    scaling, _ = parameters(layer)
    ddy, found = layer.second(x, dy, ways, mask=mask, moments=moments)
    wide = [
        None if value is None else np.asarray(value, np.float64) for value in (ways.input, ways.scaling, ways.biases)
    ]
    exact = reference.second(
        x.astype(np.float64), dy.astype(np.float64), wide, **settings, scaling=scaling, mask=mask, **held
    )
    near(ddy, exact[0], dtype, "by the gradient")
    near(found.input, exact[1], dtype, "by the input")
    assert found.biases is None
    assert (found.scaling is None) == (scaling is None)
    if scaling is not None:
        near(found.scaling, exact[2], "float32" if scaling.dtype != np.float64 else dtype, "by the scaling")
        assert found.scaling.dtype == scaling.dtype
    assert ddy.dtype == found.input.dtype == x.dtype.newbyteorder("=")
    _, pushed = layer.jvp(x, ways.input, mask=mask, dscaling=ways.scaling, dbiases=ways.biases, moments=moments)
    near(pushed, exact[0], dtype, "along the directions")


# ------------------------------------------------------------------------------------------------------- the definition

SETTINGS = [
    {"method": method, "epsilon_placement": placement, "epsilon": epsilon, "unbiased": unbiased}
    for method, unbiased in (("Standardize", False), ("Standardize", True), ("RMS", False))
    for placement, epsilon in (("inside", 0.3), ("floor", 0.7), ("floor", 1.4), ("outside", 0.5), ("outside", 0.0))
]
LEVELS = [
    ((-1,), "Same", None, (3, 5)),
    (("{0, 2}",), 1, None, (4, 3, 2)),
    (("{0, 2}",), 1, {0: 2}, (4, 3, 2)),
    (("All",), 1, {1: 2}, (3, 4, 3)),
    (("2;;All",), (2, 1), None, (3, 4, 3)),
]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_the_definition_is_what_differences_of_the_gradient_are(levels, settings, masked):
    (aggregation,), scaling_levels, groups, shape = levels
    every = {**settings, "aggregation_levels": aggregation, "scaling_levels": scaling_levels, "group_number": groups}
    every["batched"] = True
    where = reference.geometry(shape, aggregation, scaling_levels, groups, True)
    x, dy, t = (direction(shape, seed) for seed in range(3))
    sizes = tuple(shape[axis] for axis in where.scaling)
    s, b, p, q = (direction(sizes, 3 + seed) for seed in range(4))
    mask = some(shape) if masked else None

    def drawn(x, dy, s):
        dx, ds, db = reference.vjp(x, dy, **every, scaling=s, biases=b, mask=mask)
        return (dx * t).sum() + (ds * p).sum() + (db * q).sum()

    found = reference.second(x, dy, (t, p, q), **every, scaling=s, mask=mask)
    step = 1e-5
    for place, exact in zip((1, 0, 2), found, strict=True):
        point = [x, dy, s]
        for i in itertools.islice(np.ndindex(exact.shape), 12):
            ahead, behind = ([one.copy() for one in point] for _ in range(2))
            ahead[place][i] += step
            behind[place][i] -= step
            assert abs((drawn(*ahead) - drawn(*behind)) / (2 * step) - exact[i]) < 1e-6 * max(1, abs(exact[i]))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_every_setting(levels, settings, masked):
    (aggregation,), scaling_levels, groups, shape = levels
    every = {**settings, "aggregation_levels": aggregation, "scaling_levels": scaling_levels, "group_number": groups}
    every["batched"] = True
    layer = gn.NormalizationLayer(**every, dtype="float64").initialize(shape)
    layer.scaling, layer.biases = (direction(layer.scaling.shape, seed) for seed in (8, 9))
    check(layer, direction(shape, 1), every, some(shape) if masked else None)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_form(name, masked):
    form = FORMS[name]
    x = sample(form.shape, "float64")
    check(made(form.settings, form.shape, dtype="float64"), x, form.settings, some(form.shape) if masked else None)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ONE_EACH)
def test_dtype(name, dtype):
    form = FORMS[name]
    check(made(form.settings, form.shape), sample(form.shape, dtype), form.settings)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ONE_EACH)
def test_layout(name, layout):
    form = FORMS[name]
    x = named_layouts(len(form.shape))[layout].hold(sample(form.shape, "float64"))
    check(made(form.settings, form.shape, dtype="float64"), x, form.settings)


@pytest.mark.parametrize(("scaling", "biases"), [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("name", ONE_EACH)
def test_absent_parameters(name, scaling, biases):
    form = FORMS[name]
    layer = made(form.settings, form.shape, dtype="float64", scaling=scaling, biases=biases)
    check(layer, sample(form.shape, "float64"), form.settings)


def test_moments_that_are_given_are_constants():
    mean, variance = np.array([1.0, 2.0, 3.0]), np.array([1.0, 4.0, 0.25])
    every = {"aggregation_levels": "{0, 2}", "scaling_levels": 1, "batched": True, "epsilon": 1e-3}
    x, moments = direction((6, 3, 5), 1), gn.Moments.from_variance(mean, variance)
    layer = gn.batch_norm(3, dtype="float64", statistics="input", scaling=direction((3,), 8))
    check(layer, x, every, moments=moments, mean=mean, variance=variance)
    held = gn.batch_norm(3, dtype="float64", scaling=direction((3,), 8))
    held.moments = moments
    check(held, x, every, mean=mean, variance=variance)
    dy, ways = direction(x.shape, 6), along(x, held)
    learned = held.second(x, dy, ways, training=True)
    through = layer.second(x, dy, ways)
    assert np.array_equal(learned[1].input, through[1].input)
    assert held.moments == moments


def test_parameters_for_each_example():
    layer, x, dy = gn.instance_norm(3, dtype="float64"), direction((4, 3, 5), 1), direction((4, 3, 5), 2)
    s, p, q = (direction((4, 3), seed) for seed in (3, 4, 5))
    ways = Gradients(direction(x.shape, 6), p, q)
    ddy, found = layer.second(x, dy, ways, scaling=s, biases=s)
    _, pushed = layer.jvp(x, ways.input, scaling=s, biases=s, dscaling=p, dbiases=q)
    np.testing.assert_allclose(pushed, ddy, rtol=1e-12, atol=1e-12)
    for i in range(4):
        one = layer.second(x[i : i + 1], dy[i : i + 1], Gradients(ways.input[i : i + 1], p[i], q[i]), scaling=s[i])
        np.testing.assert_allclose(one[0][0], ddy[i], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(one[1].input[0], found.input[i], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(one[1].scaling, found.scaling[i], rtol=1e-12, atol=1e-12)


def test_directions_of_some():
    layer, x, dy = gn.layer_norm(4, dtype="float64"), direction((3, 4), 1), direction((3, 4), 2)
    p, q = direction((4,), 3), direction((4,), 4)
    t = direction(x.shape, 5)
    every = layer.second(x, dy, Gradients(t, p, q))
    parts = [
        layer.second(x, dy, ways)
        for ways in (Gradients(t, None, None), Gradients(None, p, None), Gradients(None, None, q))
    ]
    np.testing.assert_allclose(sum(part[0] for part in parts), every[0], rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(sum(part[1].input for part in parts), every[1].input, rtol=1e-13, atol=1e-13)
    pushed = [layer.jvp(x, t)[1], layer.jvp(x, None, dscaling=p)[1], layer.jvp(x, None, dbiases=q)[1]]
    for one, part in zip(pushed, parts, strict=True):
        np.testing.assert_allclose(one, part[0], rtol=1e-13, atol=1e-13)


# ----------------------------------------------------------------------------------------------------------- degenerate


@pytest.mark.parametrize("placement", ["inside", "floor", "outside"])
@pytest.mark.parametrize("method", ["Standardize", "RMS"])
def test_degenerate_slices(method, placement):
    """A constant slice, one of nothing that counts and one of zeros: no NaN where the gradient has none."""
    layer = gn.NormalizationLayer(2, (), None, method, epsilon=0, epsilon_placement=placement, dtype="float64")
    x = np.array([[2.0, 2.0, 2.0], [1.0, 2.0, 4.0], [0.0, 0.0, 0.0]])
    mask = np.array([[True] * 3, [False] * 3, [True] * 3])
    layer.initialize(x.shape)
    dy = direction(x.shape, 1)
    gradient = layer.vjp(x, mask=mask)[1](dy).input
    ddy, found = layer.second(x, dy, Gradients(direction(x.shape, 2), None, None), mask=mask)
    assert np.isfinite(gradient).all()
    assert np.isfinite(ddy).all()
    assert np.isfinite(found.input).all()


def test_what_is_not_finite_stays_in_its_slice():
    layer, x, dy = gn.layer_norm(4, dtype="float64"), direction((3, 4), 1), direction((3, 4), 2)
    ways = Gradients(direction((3, 4), 3), None, None)
    clean = layer.second(x, dy, ways)
    x[1, 2] = np.nan
    ddy, found = layer.second(x, dy, ways)
    for one, other in ((ddy, clean[0]), (found.input, clean[1].input)):
        assert np.isnan(one[1]).all()
        assert np.array_equal(one[[0, 2]], other[[0, 2]])


# ---------------------------------------------------------------------------------------------------------- and torch's


def torch_second(function, x, dy, t):
    x, dy = (torch.from_numpy(array).requires_grad_() for array in (x, dy))
    (dx,) = torch.autograd.grad(function(x), x, dy, create_graph=True)
    return [one.numpy() for one in torch.autograd.grad(dx, [dy, x], torch.from_numpy(t))]


PEERS = [
    (gn.layer_norm(5, epsilon=1e-5, dtype="float64"), lambda x: functional.layer_norm(x, (5,), eps=1e-5), (3, 5)),
    (gn.group_norm(2, 4, epsilon=1e-5, dtype="float64"), lambda x: functional.group_norm(x, 2, eps=1e-5), (3, 4, 6)),
    (gn.instance_norm(4, epsilon=1e-5, dtype="float64"), lambda x: functional.instance_norm(x, eps=1e-5), (3, 4, 6)),
    (
        gn.batch_norm(4, epsilon=1e-5, dtype="float64", statistics="input"),
        lambda x: functional.batch_norm(x, None, None, training=True, eps=1e-5),
        (3, 4, 6),
    ),
    (gn.rms_norm(5, epsilon=1e-5, dtype="float64"), lambda x: functional.rms_norm(x, (5,), eps=1e-5), (3, 5)),
]


@pytest.mark.parametrize(("layer", "peer", "shape"), PEERS, ids=["layer", "group", "instance", "batch", "RMS"])
def test_torch_s_second_derivative(layer, peer, shape):
    x, dy, t = (direction(shape, seed) for seed in range(3))
    ddy, found = layer.second(x, dy, Gradients(t, None, None))
    expected = torch_second(peer, x, dy, t)
    np.testing.assert_allclose(ddy, expected[0], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.input, expected[1], rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------------------------------- moments shared with others


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("parts", [[2, 5], [0, 3, 4], [1, 1, 5]], ids=str)
@pytest.mark.parametrize("method", ["Standardize", "RMS"])
def test_parts_of_a_batch(method, parts, masked):
    """Moments merged, sums added up: every part's derivatives are those of the whole."""
    shape = (7, 5, 3)
    layer = gn.NormalizationLayer(
        "{0, 2}", 1, None, method, input_shape=shape[1:], batched=True, dtype="float64", scaling=direction((5,), 8)
    )
    x, dy = direction(shape, 1), direction(shape, 2)
    mask = some(shape) if masked else None
    ways = along(x, layer)
    y, pullback = layer.vjp(x, mask=mask)
    expected = [pullback(dy), layer.jvp(x, ways.input, mask=mask)[1], layer.second(x, dy, ways, mask=mask)]
    ends = np.cumsum([0, *parts])
    pieces = [slice(start, stop) for start, stop in itertools.pairwise(ends)]
    masks = [None if mask is None else mask[piece] for piece in pieces]
    moments = sum(layer.measure(x[piece], m) for piece, m in zip(pieces, masks, strict=True))

    def together(call):
        """Call it for every part twice: once to hear its sums, once to tell it those of all."""
        heard = []
        for piece, m in zip(pieces, masks, strict=True):
            call(piece, m, lambda sums: heard.append(sums.copy()) or sums)
        assert len(heard) == len(pieces)
        return [call(piece, m, lambda _: sum(heard)) for piece, m in zip(pieces, masks, strict=True)]

    shared = {"moments": moments, "shared": True}
    kept = [layer.vjp(x[piece], mask=m, **shared) for piece, m in zip(pieces, masks, strict=True)]
    np.testing.assert_allclose(np.concatenate([part for part, _ in kept]), y, rtol=1e-13, atol=1e-13)
    assert all(pullback.moments == moments for _, pullback in kept)
    pulled = together(
        lambda piece, m, merge: layer.pullback(x[piece], kept[pieces.index(piece)][1].factors, mask=m)(
            dy[piece], merge=merge
        )
    )
    np.testing.assert_allclose(np.concatenate([one.input for one in pulled]), expected[0].input, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(sum(one.scaling for one in pulled), expected[0].scaling, rtol=1e-12, atol=1e-12)
    pushed = together(lambda piece, m, merge: layer.jvp(x[piece], ways.input[piece], mask=m, merge=merge, **shared)[1])
    np.testing.assert_allclose(np.concatenate(pushed), expected[1], rtol=1e-12, atol=1e-12)
    again = together(
        lambda piece, m, merge: layer.second(
            x[piece], dy[piece], Gradients(ways.input[piece], ways.scaling, ways.biases), mask=m, merge=merge, **shared
        )
    )
    np.testing.assert_allclose(np.concatenate([one[0] for one in again]), expected[2][0], rtol=1e-12, atol=1e-12)
    found = np.concatenate([one[1].input for one in again])
    np.testing.assert_allclose(found, expected[2][1].input, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(sum(one[1].scaling for one in again), expected[2][1].scaling, rtol=1e-12, atol=1e-12)
