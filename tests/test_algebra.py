"""The algebra of moments, the same for arrays of NumPy, torch and JAX: pooled over slices, and mixed with others.

What pooled moments have to equal are the moments of another layer on the same input: of a batch norm, a layer norm and
a group norm, from those of an instance norm.
"""

from types import SimpleNamespace

import numpy as np
import pytest

import gennorm as gn
from gennorm.errors import ParameterError
from gennorm.spec.axes import Pooling

RNG = np.random.default_rng(0)
X = RNG.normal(3, 2, (4, 6, 5))
X[:, 2] += 1e6  # a channel whose mean is half a million deviations away
MASK = RNG.random(X.shape) < 0.7
MASK[1, 3] = MASK[:, 4] = False  # one slice, and one channel, in which nothing counts


def core():
    return SimpleNamespace(of=lambda moments: moments, kind=gn.Moments, array=np.asarray, rtol=1e-14)


def torch_moments():
    torch = pytest.importorskip("torch")
    import gennorm.torch as gt

    return SimpleNamespace(of=gt.Moments.from_core, kind=gt.Moments, array=torch.as_tensor, rtol=1e-13)


def jax_moments():
    jax = pytest.importorskip("jax")
    import gennorm.jax as gj

    return SimpleNamespace(of=gj.Moments.from_core, kind=gj.Moments, array=jax.numpy.asarray, rtol=1e-13)


KINDS = {"core": core, "torch": torch_moments, "jax": jax_moments}


@pytest.fixture(params=KINDS)
def kind(request):
    if request.param != "jax":
        yield KINDS[request.param]()
        return
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True):
        yield KINDS["jax"]()


def core_of(found):
    """Moments as the core's."""
    return found if isinstance(found, gn.Moments) else found.to_core()


def agree(found, expected, rtol):
    found = core_of(found)
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found.count, expected.count)
    assert (found.mean is None) == (expected.mean is None)
    if expected.mean is not None:
        np.testing.assert_allclose(found.mean, expected.mean, rtol=rtol)
    np.testing.assert_allclose(found.m2, expected.m2, rtol=max(rtol, 1e-9 if expected.mean is not None else rtol))


# ------------------------------------------------------------------------------------------------------------- pooling

# Axes and groups, and the layer whose slices the pooled ones are.
POOLED = {
    "batch": ((0,), {"aggregation_levels": "{0, 2}"}),
    "layer": ((1,), {"aggregation_levels": "{1, 2}"}),
    "from the end": ((-1,), {"aggregation_levels": "{1, 2}"}),
    "group": ((1, 3), {"aggregation_levels": "{1, 2}", "group_number": {1: 3}}),
    "batch and layer": (((1, 0),), {"aggregation_levels": "{0, 1, 2}"}),
    "ghost batch": ((0, 2), {"aggregation_levels": "{0, 2}", "group_number": {0: 2}}),
    "groups of both": (((0, 1), (2, 3)), {"aggregation_levels": "{0, 1, 2}", "group_number": {0: 2, 1: 3}}),
    "groups of one": (((0, 1), (1, 2)), {"aggregation_levels": "{0, 1, 2}", "group_number": {1: 2}}),
    "all": ((None,), {"aggregation_levels": "{0, 1, 2}"}),
    "none": (((),), {"aggregation_levels": 2}),
}


def measured(method="Standardize", mask=None, **settings):
    return gn.NormalizationLayer(**{"aggregation_levels": 2, "batched": True, "method": method, **settings}).measure(
        X, mask
    )


@pytest.mark.parametrize("name", POOLED)
@pytest.mark.parametrize("method", ["Standardize", "RMS"])
@pytest.mark.parametrize("masked", [False, True])
def test_pooled_moments_are_those_of_another_layer(name, method, masked, kind):
    (axes, *groups), settings = POOLED[name]
    mask = MASK if masked else None
    keywords = {"groups": groups[0]} if groups else {}
    expected = measured(method, mask, **settings)
    instances = kind.of(measured(method, mask))
    found = instances.pooled(axes, **keywords)
    assert type(found) is kind.kind
    agree(found, expected, kind.rtol)
    spread = instances.pooled(axes, spread=True, **keywords)
    way = Pooling.of(axes, *(groups or [None]), (4, 6))
    ones = [1 if axis in way.axes else size for axis, size in enumerate(way.split)]
    members = (expected.count, expected.mean, expected.m2)
    whole = (None if one is None else np.broadcast_to(one.reshape(ones), way.split).reshape(4, 6) for one in members)
    agree(spread, gn.Moments(*whole), kind.rtol)


def test_pooled_pieces_are_as_exact_as_the_whole():
    """The rounding errors that moments of the core keep are pooled along any axis."""
    x = RNG.normal(1e8, 1, (3, 500, 2))
    found = gn.Moments.of(x[..., None], axes=3).pooled(1)
    exact = gn.Moments.of(x, axes=1)
    np.testing.assert_array_equal(found.mean, exact.mean)
    np.testing.assert_allclose(found.m2, exact.m2, rtol=32 * 2.0**-53)
    again = gn.Moments.of(x[..., None], axes=3).pooled(1, spread=True).pooled(1)
    np.testing.assert_array_equal(again.mean, exact.mean)


def test_an_axis_without_slices(kind):
    empty = kind.of(gn.Moments(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 3))))
    found = core_of(empty.pooled())
    assert [one.tolist() for one in (found.count, found.mean, found.m2)] == [[0.0] * 3] * 3


def test_equal_means_have_no_deviation(kind):
    """Their mean is exact, so that a constant slice has the variance 0."""
    found = core_of(kind.of(gn.Moments([1.0, 1.0, 1.0], [0.1, 0.1, 0.1], 0.0)).pooled())
    assert (float(found.mean), float(found.m2)) == (0.1, 0.0)


def test_what_is_not_finite_stays_in_its_slice(kind):
    found = core_of(kind.of(gn.Moments([[1, 1], [1, 1]], [[np.inf, 1], [2, 3]], 0)).pooled())
    assert found.mean.tolist() == [np.inf, 2.0]
    assert np.isnan(found.m2[0])
    np.testing.assert_allclose(found.m2[1], 2.0, rtol=1e-15)


# -------------------------------------------------------------------------------------------------------------- mixing


def pair(method="Standardize"):
    """Moments of (4, 6) and of (6,) slices; the second channel of the last has a count of 0."""
    counts = np.array([7.0, 0, 3, 1, 2, 9])
    means = None if method == "RMS" else RNG.normal(2, 3, 6) * (counts > 0)
    return measured(method), gn.Moments(counts, means, RNG.random(6) * counts)


SHARES = {
    "one": 0.3,
    "channels": np.array([0.0, 0.2, 1.0, 0.5, 0.7, 1.0]),
    "examples": np.array([[0.1], [0], [1], [0.6]]),
}


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("method", ["Standardize", "RMS"])
@pytest.mark.parametrize("between", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_mixed(share, method, between, reverse, kind):
    one, other = pair(method)[:: -1 if reverse else 1]
    s = np.where(other.count == 0, 0.0, np.where(one.count == 0, 1.0, SHARES[share] + np.zeros((4, 6))))
    v1, v2 = (each.mean_square() if each.mean is None else each.variance() for each in (one, other))
    variance, mean = (1 - s) * v1 + s * v2, None
    if method == "Standardize":
        mean = (1 - s) * one.mean + s * other.mean
        variance = variance + between * s * (1 - s) * (one.mean - other.mean) ** 2
    given = SHARES[share] if share == "one" else kind.array(SHARES[share])
    found = kind.of(one).mixed(kind.of(other), given, between=between)
    assert type(found) is kind.kind
    expected = gn.Moments.from_variance(mean, variance, (1 - s) * one.count + s * other.count)
    np.testing.assert_allclose(core_of(found).count, expected.count, rtol=1e-14)
    np.testing.assert_allclose(core_of(found).m2, expected.m2, rtol=1e-12)
    if mean is not None:
        np.testing.assert_allclose(core_of(found).mean, mean, rtol=1e-13)


def test_a_mixture_is_a_merge_by_shares(kind):
    """With the variance between them, mixed moments are merged ones that count as much as their shares."""
    one, other = (gn.Moments.from_variance(mean, variance) for mean, variance in ((1.0, 4.0), (7.0, 0.5)))
    found = core_of(kind.of(one).mixed(kind.of(other), 0.25, between=True))
    merged = gn.Moments.from_variance(1.0, 4.0, 0.75) + gn.Moments.from_variance(7.0, 0.5, 0.25)
    np.testing.assert_allclose([found.mean, found.variance()], [merged.mean, merged.variance()], rtol=1e-15)
    np.testing.assert_allclose(core_of(kind.of(one) + kind.of(other)).variance(), (one + other).variance(), rtol=1e-15)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_of_nothing_leaves_no_trace(share, kind):
    """The ends are exact, and a NaN or an infinity with the share 0 changes nothing."""
    good, bad = gn.Moments(3, [0.1, 0.1], [0.7, 0.7]), gn.Moments(5, [np.inf, np.nan], [np.nan, np.nan])
    one, other = (good, bad) if share == 0 else (bad, good)
    for between in (False, True):
        found = core_of(kind.of(one).mixed(kind.of(other), share, between=between))
        assert found.mean.tolist() == [0.1, 0.1]
        np.testing.assert_allclose(found.m2, 0.7, rtol=1e-15)


def test_mean_square(kind):
    one, _ = pair()
    np.testing.assert_allclose(np.asarray(kind.of(one).mean_square()), one.mean_square(), rtol=1e-14)


# -------------------------------------------------------------------------------------------------------------- errors

PLAIN, SQUARES = gn.Moments([1, 1], [0, 0], [1, 1]), gn.Moments([1, 1], None, [1, 1])
LONGER = gn.Moments([1, 1, 1], [0, 0, 0], [1, 1, 1])
# The texts are in the table of errors.
ERRORS = {
    "P105": lambda of: of(PLAIN).pooled(2),
    "P117": lambda of: of(PLAIN).pooled(0, groups=(2, 2)),
    "P116": lambda of: of(PLAIN).pooled(groups=3),
    "P104": lambda of: of(PLAIN).mixed((0, 1), 0.5),
    "P119": lambda of: of(PLAIN).mixed(of(SQUARES), 0.5),
    "P118": lambda of: of(PLAIN).mixed(of(LONGER), 0.5),
}


@pytest.mark.parametrize("code", ERRORS)
def test_errors(code, kind):
    """The same for every kind of arrays."""
    with pytest.raises(ParameterError) as caught:
        ERRORS[code](kind.of)
    assert caught.value.code == code


@pytest.mark.parametrize("share", [-0.1, [0.5, 1.5], np.nan])
def test_a_share_is_from_0_to_1(share):
    with pytest.raises(ParameterError, match=r"a share is .* from 0 to 1"):
        PLAIN.mixed(PLAIN, share)


def test_other_arrays_are_refused():
    torch = pytest.importorskip("torch")
    import gennorm.torch as gt

    with pytest.raises(ParameterError, match=r"not with gennorm.moments.Moments"):
        gt.Moments.from_core(PLAIN).mixed(PLAIN, torch.tensor(0.5))
