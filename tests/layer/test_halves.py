"""The two halves of a normalization in NumPy: gradients by given moments, and those of moments that were measured."""

import numpy as np
import pytest

import gennorm as gn
from gennorm import engine
from gennorm.errors import DtypeError, ParameterError
from gennorm.layer import MomentGradients, derivatives
from tests.derivatives import Slices
from tests.engine.kernels.test_forms import FORMS, ONE_EACH, made
from tests.engines import cut_small, in_plain_python
from tests.strategies import sample, some

RNG = np.random.default_rng(0)
SMALL = [name for name in FORMS if "three tiles" not in name]
SETTINGS = {
    "Standardize": {},
    "RMS": {"method": "RMS"},
    "unbiased": {"unbiased": True},
    "floor": {"epsilon_placement": "floor", "epsilon": 2.0},  # some slices are below the floor
    "outside": {"epsilon_placement": "outside"},
}
# Forms, an engine and a dtype; kernels in plain Python are those that Numba compiles.
CASES = [
    *((name, by, "float64") for name in SMALL for by in ("plain", "definition")),
    *((name, "cut", "float64") for name in SMALL if name != "one element"),
    *((name, "kernels", "float32") for name in ONE_EACH[:2]),
]
cases = pytest.mark.parametrize(("name", "by", "dtype"), CASES)


@pytest.fixture(autouse=True)
def chosen(request, monkeypatch):
    """Compute by the engine of a case."""
    by = getattr(request.node, "callspec", None)
    by = by.params.get("by", "plain") if by else "plain"
    derivatives._prepared.cache_clear()
    if by == "definition":
        monkeypatch.setattr(engine, "_chosen", True)
        monkeypatch.setattr(engine, "_reason", "a test")
    elif by != "kernels":
        in_plain_python(monkeypatch)
        if by == "cut":
            cut_small(monkeypatch)


def given(layer, x):
    """Moments that are not those of the input, and with them mean and variance that the layer uses."""
    moments = layer.measure(x * 1.5 + 0.25)
    if moments.mean is None:
        return None, moments.mean_square()
    return moments.mean, moments.variance(layer.unbiased) + 0.1


def tolerance(dtype):
    return 1e-11 if dtype == "float64" else 2e-5


def close(found, expected, dtype):
    assert found.shape == expected.shape
    assert found.dtype == np.float64
    scale = np.abs(expected).max(initial=1e-30)
    np.testing.assert_allclose(found, expected, rtol=tolerance(dtype), atol=tolerance(dtype) * scale)


# ---------------------------------------------------------------------------------------------------- by given moments


def expected_gradients(layer, x, dy, settings, mean, variance):
    """The chain rule through the factor and the mean of the reference, with the sums in float64."""
    wide, shape = x.astype(np.float64), np.shape(variance)
    at = Slices.of(wide, settings, layer.scaling, mean=0.0 if mean is None else mean, variance=variance)
    g = dy.astype(np.float64) * at.scaling
    where = at.s.where
    factor, slope = (where.total(one) / where.size for one in (at.s.factor, at.s.slope))
    of_mean, of_variance = -factor * where.total(g), slope * where.total(g * at.z)
    return None if mean is None else of_mean.reshape(shape), of_variance.reshape(shape)


@cases
def test_gradients_by_given_moments(name, by, dtype):
    form = FORMS[name]
    layer, x = made(form.settings, form.shape, dtype=dtype), sample(form.shape, dtype)
    dy = RNG.normal(size=form.shape).astype(dtype)
    mean, variance = given(layer, x)
    y, pullback = layer.vjp(x, moments=(mean, variance))
    found = pullback(dy)
    np.testing.assert_array_equal(y, layer(x, moments=(mean, variance)))
    assert type(found.moments) is MomentGradients
    for one, other in zip(found.moments, expected_gradients(layer, x, dy, form.settings, mean, variance), strict=True):
        close(one, other, dtype)
    # The other gradients are those of a call whose moments are constants.
    constant = layer.vjp(x, moments=gn.Moments.from_variance(mean, variance))[1]
    constant._residuals = constant._residuals._replace(shapes=None)
    others = constant(dy)
    assert others.moments is None
    for key in ("input", "scaling", "biases"):
        np.testing.assert_allclose(getattr(found, key), getattr(others, key), rtol=tolerance(dtype), atol=1e-12)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("by", ["plain", "definition"])
@pytest.mark.parametrize("name", ["columns with the channels last", "a row an example"])
def test_gradients_by_finite_differences(name, setting, by):
    """Both halves, and both together, along random directions."""
    form = FORMS[name]
    layer = made({**form.settings, **SETTINGS[setting]}, form.shape, dtype="float64")
    x, dy, dx = (RNG.normal(size=form.shape) for _ in range(3))
    mean, variance = given(layer, x)
    directions = None if mean is None else RNG.normal(size=mean.shape), RNG.normal(size=variance.shape) / 4
    step = 1e-6

    def moved(sign):
        return tuple(
            None if one is None else one + sign * step * way
            for one, way in zip((mean, variance), directions, strict=True)
        )

    found = layer.vjp(x, moments=(mean, variance))[1](dy).moments
    numeric = ((layer(x, moments=moved(1)) - layer(x, moments=moved(-1))) * dy).sum() / (2 * step)
    exact = sum((one * way).sum() for one, way in zip(found, directions, strict=True) if one is not None)
    np.testing.assert_allclose(exact, numeric, rtol=1e-6)

    def loss(x):
        moments = layer.measure(x)
        used = moments.mean_square() if mean is None else moments.variance(layer.unbiased)
        value = (used * directions[1]).sum()
        return value if mean is None else value + (moments.mean * directions[0]).sum()

    moments, pullback = layer.measure_vjp(x)
    assert moments == layer.measure(x)
    numeric = (loss(x + step * dx) - loss(x - step * dx)) / (2 * step)
    np.testing.assert_allclose((pullback(directions) * dx).sum(), numeric, rtol=1e-6)
    _, apply_back = layer.vjp(x, moments=moments)
    gradients = apply_back(dy)
    whole = layer.vjp(x)[1](dy)
    np.testing.assert_allclose(gradients.input + pullback(gradients.moments), whole.input, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("by", ["plain", "definition"])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (4, 1), (1, 3), (4, 3), "pair"])
def test_gradients_have_the_shapes_of_the_moments(shape, by):
    """They are summed over the slices that share a mean, or a variance."""
    layer, x = gn.instance_norm(3, dtype="float64"), RNG.normal(size=(4, 3, 5))
    dy = RNG.normal(size=x.shape)
    shapes = ((3,), (4, 1)) if shape == "pair" else (shape, shape)
    mean, variance = RNG.normal(size=shapes[0]), RNG.random(shapes[1]) + 0.5
    found = layer.vjp(x, moments=(mean, variance))[1](dy).moments
    whole = layer.vjp(x, moments=(np.broadcast_to(mean, (4, 3)), np.broadcast_to(variance, (4, 3))))[1](dy).moments
    for one, given, all_ in zip(found, (mean, variance), whole, strict=True):
        assert one.shape == given.shape
        slope = all_[(None,) * (one.ndim - 2)]
        whole_shape = (1,) * (2 - one.ndim) + one.shape
        over = tuple(i for i in range(2) if whole_shape[i] != slope.shape[i])
        np.testing.assert_allclose(one, slope.sum(over).reshape(one.shape), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("by", ["plain", "definition"])
@pytest.mark.parametrize("form", ["Moments", "mask", "parameters", "held", "shared", "one example"])
def test_what_calls_return_gradients_by_moments(form, by):
    """Those with given moments, with a mask and other parameters too; held and shared ones have none."""
    x, dy = RNG.normal(size=(2, 4, 3, 5))
    layer = gn.batch_norm(3, dtype="float64")
    mean, variance = RNG.normal(size=3), RNG.random(3) + 0.5
    found = layer.vjp(x, moments=(mean, variance))[1](dy).moments
    if form == "Moments":
        same = layer.vjp(x, moments=gn.Moments.from_variance(mean, variance, 7))[1](dy).moments
    elif form == "mask":  # it has no part in a call with given moments
        same = layer.vjp(x, moments=(mean, variance), mask=RNG.random(x.shape) < 0.5)[1](dy).moments
    elif form == "parameters":
        scaling = RNG.random((4, 3)) + 0.5
        found = layer.vjp(x, moments=(mean, variance))[1](dy * scaling[..., None]).moments
        same = layer.vjp(x, moments=(mean, variance), scaling=scaling)[1](dy).moments
    elif form == "one example":
        layer = gn.NormalizationLayer("{0, 1;;-2}", statistics="dataset", scaling=None, biases=None, batched=True)
        moments = gn.Moments.from_variance(mean, variance)
        same = layer.vjp(x[0, :, 0], moments=gn.Moments.from_variance(0.0, 1.0))[1](dy[0, :, 0]).moments
        assert same.mean.shape == ()
        np.testing.assert_allclose(same.mean, -dy[0, :, 0].sum() / np.sqrt(1 + layer.epsilon))
        layer.moments = moments
        assert layer.vjp(np.ones(3))[1](np.ones(3)).moments is None
        return
    else:
        moments = gn.Moments.from_variance(mean, variance)
        layer.moments = moments
        pullback = layer.vjp(x)[1] if form == "held" else layer.vjp(x, moments=moments, shared=True)[1]
        assert pullback(dy, **({} if form == "held" else {"merge": lambda sums: sums})).moments is None
        return
    for one, other in zip(found, same, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


def test_sums_of_other_arrays_are_merged():
    """The gradient by moments that several arrays were normalized by, and one meaning of the sums for all engines."""
    layer, parts = gn.batch_norm(3, dtype="float64"), RNG.normal(size=(2, 4, 3, 5))
    dy, moments = RNG.normal(size=parts.shape), (RNG.normal(size=3), RNG.random(3) + 0.5)
    whole = layer.vjp(np.concatenate(parts), moments=moments)[1](np.concatenate(dy)).moments
    kept = []
    layer.vjp(parts[1], moments=moments)[1](dy[1], merge=lambda sums: kept.append(sums.copy()) or sums)
    merged = layer.vjp(parts[0], moments=moments)[1](dy[0], merge=lambda sums: sums + kept[0]).moments
    for one, other in zip(merged, whole, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    deviations = parts[1] - moments[0][:, None]
    np.testing.assert_allclose(kept[0], [dy[1].sum((0, 2)), (dy[1] * deviations).sum((0, 2))], rtol=1e-12, atol=1e-12)


def test_engines_have_one_meaning_of_sums(monkeypatch):
    """An array that is normalized by the definition shares moments with one that a kernel normalizes."""
    x, dy, moments = RNG.normal(3, 2, (4, 3, 5)), RNG.normal(size=(4, 3, 5)), gn.Moments.from_variance([1, 2, 3], 4)
    found = []
    for reason in (None, "a test"):
        monkeypatch.setattr(engine, "_chosen", True)
        if reason:
            monkeypatch.setattr(engine, "_reason", reason)
        layer = gn.batch_norm(3, dtype="float64")
        layer.vjp(x, moments=moments, shared=True)[1](dy, merge=lambda sums: found.append(sums.copy()) or sums)
    np.testing.assert_allclose(*found, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("by", ["plain", "definition"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_slice(value, by):
    """And the gradient of the input is that of a call whose moments are constants."""
    layer, x = gn.batch_norm(3, dtype="float64"), RNG.normal(size=(4, 3, 5))
    x[1, 1, 2] = value
    pullback = layer.vjp(x, moments=(np.zeros(3), np.ones(3)))[1]
    found = pullback(np.ones_like(x))
    pullback._residuals = pullback._residuals._replace(shapes=None)
    np.testing.assert_array_equal(found.input, pullback(np.ones_like(x)).input)
    assert np.isfinite(found.input[:, [0, 2]]).all()
    assert np.isfinite(found.moments.variance).tolist() == [True, False, True]
    assert np.isfinite(found.moments.mean).all()


# ---------------------------------------------------------------------------------------------------- of measured ones


@cases
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_measured_moments(name, by, dtype, masked):
    form = FORMS[name]
    layer, x = made(form.settings, form.shape, dtype=dtype), sample(form.shape, dtype)
    mask = some(form.shape) if masked else None
    moments, pullback = layer.measure_vjp(x, mask)
    assert moments == layer.measure(x, mask)
    of_mean, of_variance = RNG.normal(size=(2, *moments.shape))
    found = pullback(MomentGradients(of_mean, of_variance))
    at = Slices.of(x.astype(np.float64), form.settings, mask=mask)
    over = at.s.where.over_slices
    expected = (over(of_mean) + 2 * at.z * over(of_variance)) / at.count * at.s.counted
    assert (found.dtype, found.shape) == (x.dtype, x.shape)
    np.testing.assert_allclose(found, expected, rtol=tolerance(dtype), atol=tolerance(dtype))
    for one, other in (((of_mean, None), over(of_mean)), ((None, of_variance), 2 * at.z * over(of_variance))):
        np.testing.assert_allclose(pullback(one), other / at.count * at.s.counted, rtol=1e-4, atol=tolerance(dtype))


def test_a_gradient_of_moments_broadcasts():
    layer, x = gn.instance_norm(3, dtype="float64"), RNG.normal(size=(4, 3, 5))
    _, pullback = layer.measure_vjp(x)
    np.testing.assert_allclose(pullback((5.0, 0)), 1.0)
    np.testing.assert_allclose(pullback(([5.0, 10, 15], None))[:, :, 0], [[1.0, 2, 3]] * 4)


def test_an_element_that_does_not_count_has_no_gradient():
    """Whatever it is; and a slice in which nothing counts has none."""
    x, mask = RNG.normal(size=(2, 4)), np.array([[True, False, True, True], [False] * 4])
    x[0, 1] = np.nan
    found = gn.NormalizationLayer(-1).measure_vjp(x, mask)[1]((1.0, 1.0))
    assert np.isfinite(found).all()
    assert found[~mask].tolist() == [0.0] * 5


def test_the_mask_is_kept():
    layer, x, mask = gn.NormalizationLayer(-1), RNG.normal(size=(2, 4)), np.array([True, False, True, True])
    _, pullback = layer.measure_vjp(x, mask)
    before = pullback((1.0, 1.0))
    mask[:] = True
    np.testing.assert_array_equal(pullback((1.0, 1.0)), before)


def test_one_example_of_a_layer_with_moments_of_batches():
    layer = gn.NormalizationLayer("{0, 1;;-2}", statistics="dataset", scaling=None, biases=None, batched=True)
    moments, pullback = layer.measure_vjp(np.array([1.0, 4.0]))
    assert moments == layer.measure(np.array([1.0, 4.0]))
    np.testing.assert_allclose(pullback(([3.0, 5.0], None)), [3.0, 5.0])


@pytest.mark.parametrize(
    ("gradients", "kind", "code"),
    [
        ([0, 0], ParameterError, "P026"),
        ((0,), ParameterError, "P026"),
        ((np.ones(4), None), ParameterError, "P027"),
        ((None, np.ones((5, 4, 3))), ParameterError, "P027"),
        ((1j, None), DtypeError, "D101"),
    ],
)
def test_gradients_that_are_refused(gradients, kind, code):
    with pytest.raises(kind) as caught:
        gn.instance_norm(3).measure_vjp(np.ones((4, 3, 5)))[1](gradients)
    assert caught.value.code == code


def test_a_whole_chain_is_the_layer():
    """Instance moments pooled to those of a batch: their gradient goes back through the algebra by hand."""
    x, dy = RNG.normal(2, 3, (2, 4, 3, 5))
    batch, instance = gn.batch_norm(3, dtype="float64"), gn.instance_norm(3, dtype="float64")
    moments, to_input = instance.measure_vjp(x)
    pooled = moments.pooled()
    _, pullback = batch.vjp(x, moments=pooled)
    gradients = pullback(dy)
    # The derivatives of the pooled variance are 2 (mean - pooled mean) / N by a mean, and 1/N by a variance.
    of_variance = np.broadcast_to(gradients.moments.variance / 4, (4, 3))
    of_mean = gradients.moments.mean / 4 + 2 * (moments.mean - pooled.mean) * of_variance
    found = gradients.input + to_input((of_mean, of_variance))
    np.testing.assert_allclose(found, batch.vjp(x, training=True)[1](dy).input, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("by", ["plain", "definition"])
@pytest.mark.parametrize("masked", [False, True])
def test_slices_of_one_element(by, masked):
    """Their mean follows the element, and their variance does not."""
    x = RNG.normal(size=(4, 1))
    mask = np.array([[True], [False], [True], [True]]) if masked else None
    moments, pullback = gn.NormalizationLayer(-1).measure_vjp(x, mask)
    assert moments.count.tolist() == [1.0, 0.0 if masked else 1.0, 1.0, 1.0]
    np.testing.assert_array_equal(pullback((2.0, 3.0)), 2.0 * moments.count[:, None])


@pytest.mark.parametrize("by", ["plain", "definition"])
def test_a_slice_of_which_one_element_counts(by):
    x, mask = RNG.normal(size=(2, 3)), np.array([[True, False, False], [True, True, True]])
    for unbiased in (False, True):
        layer = gn.NormalizationLayer(-1, unbiased=unbiased)
        _, pullback = layer.measure_vjp(x, mask)
        np.testing.assert_allclose(pullback((3.0, 0.0)), [[3, 0, 0], [1, 1, 1]])
        assert not pullback((0.0, 1.0))[0].any()
