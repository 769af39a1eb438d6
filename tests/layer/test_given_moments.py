"""Moments that are passed to a call: every form has the same answer, or the same error, at every call.

The first call prepares what later ones find, and moments that were passed once are remembered: neither may change what
is accepted.
"""

import numpy as np
import pytest

import gennorm as gn
from tests.engines import in_plain_python

X = np.random.default_rng(0).normal(1, 2, (4, 3, 5))
DY = np.random.default_rng(1).normal(size=X.shape)
MEAN, VARIANCE = np.array([0.5, -1.0, 2.0]), np.array([4.0, 1.0, 0.25])

LAYERS = {
    "input": lambda: gn.instance_norm(3, dtype="float64"),
    "moving": lambda: gn.batch_norm(3, dtype="float64"),
    "dataset": lambda: gn.feature_norm(1, mean=MEAN + 1, variance=VARIANCE * 2, dtype="float64"),
    "RMS": lambda: gn.instance_norm(3, method="RMS", dtype="float64"),
}
# What stands for the same mean and variance.
SAME = {
    "arrays": lambda: (MEAN, VARIANCE),
    "lists": lambda: (MEAN.tolist(), VARIANCE.tolist()),
    "tuples": lambda: (tuple(MEAN), tuple(VARIANCE)),
    "float32": lambda: (MEAN.astype(np.float32), VARIANCE.astype(np.float32)),
    "big-endian": lambda: (MEAN.astype(">f8"), VARIANCE.astype(">f8")),
    "strided": lambda: (np.repeat(MEAN, 2)[::2], VARIANCE[::-1].copy()[::-1]),
    "read-only": lambda: (np.broadcast_to(MEAN, (4, 3))[0], np.broadcast_to(VARIANCE, (4, 3))[0]),
    "Moments": lambda: gn.Moments.from_variance(MEAN, VARIANCE),
    "Moments of a count": lambda: gn.Moments(np.full(3, 7.0), MEAN, 7 * VARIANCE),
}
FLOATS = {
    "floats": lambda: (0.5, 4.0),
    "integers": lambda: (np.int8(0), 4),
    "0-d": lambda: (np.array(0.5), np.array(4.0)),
}
WRONG = {
    "a number": lambda: 3.0,
    "a text": lambda: "mean",
    "an array": lambda: MEAN,
    "a list of two": lambda: [MEAN, VARIANCE],
    "an empty tuple": lambda: (),
    "one": lambda: (MEAN,),
    "three": lambda: (np.ones(3), MEAN, VARIANCE),
    "no variance": lambda: (MEAN, None),
    "complex mean": lambda: (MEAN + 1j, VARIANCE),
    "complex variance": lambda: (MEAN, VARIANCE.astype(complex)),
    "texts": lambda: ("a", "b"),
    "negative variance": lambda: (MEAN, -VARIANCE),
    "one negative variance": lambda: (MEAN, np.array([1.0, -1e-30, 1.0])),
    "another size": lambda: (MEAN[:2], VARIANCE[:2]),
    "more axes": lambda: (MEAN[None, None, None], VARIANCE[None, None, None]),
    "Moments of another size": lambda: gn.Moments.from_variance(MEAN[:2], VARIANCE[:2]),
    "ragged": lambda: ([[1.0], [1.0, 2.0]], VARIANCE),
    "masked": lambda: (np.ma.masked_array(MEAN, [True, False, False]), VARIANCE),
}
CALLS = {
    "call": lambda layer, moments: [layer(X, moments=moments)],
    "training": lambda layer, moments: [layer(X, training=True, moments=moments)],
    "out": lambda layer, moments: [layer(X, moments=moments, out=np.empty_like(X))],
    "mask": lambda layer, moments: [layer(X, moments=moments, mask=X > 0)],
    "vjp": lambda layer, moments: list(pulled(layer, moments)),
    "jvp": lambda layer, moments: list(layer.jvp(X, DY, moments=moments)),
    "apply": lambda layer, moments: [layer.apply(X, moments)],
    "inverse": lambda layer, moments: [layer.inverse(X, moments)],
}


def pulled(layer, moments):
    y, pullback = layer.vjp(X, moments=moments)
    found = pullback(DY)
    return y, found.input


def definition(kind, mean, variance):
    """The output by the formula."""
    layer = LAYERS[kind]()
    epsilon = layer.epsilon
    mean, variance = (np.broadcast_to(value, 3)[:, None] for value in (mean, variance))
    if kind == "dataset":
        return (X - mean) / np.maximum(np.sqrt(variance), epsilon)
    return (X - mean * (kind != "RMS")) / np.sqrt(variance + epsilon)


@pytest.mark.parametrize("engine", ["kernels", "plain Python"])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("form", [*SAME, *FLOATS])
def test_every_form_is_used_as_it_is(form, kind, engine, monkeypatch):
    if engine == "plain Python":
        in_plain_python(monkeypatch)
    layer, held = LAYERS[kind](), LAYERS[kind]().moments
    of_float = form in FLOATS
    mean, variance = FLOATS[form]() if of_float else (MEAN, VARIANCE)
    if kind == "RMS" and form.startswith("Moments"):
        variance = variance + mean**2  # the mean square
    expected = definition(kind, mean, variance)
    for call, compute in CALLS.items():
        if call == "inverse" or (call == "apply" and not form.startswith("Moments")):
            continue
        for _ in range(3):
            given = (FLOATS if of_float else SAME)[form]()
            found = compute(layer, given)
            np.testing.assert_allclose(found[0], expected, rtol=1e-6 if form == "float32" else 1e-13, atol=1e-13)
            again = compute(layer, given)  # the same object, which may be remembered
            for one, other in zip(found, again, strict=True):
                np.testing.assert_array_equal(one, other)
    assert layer.moments == held  # given moments are not learned


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("form", WRONG)
def test_what_is_wrong_is_wrong_at_every_call(form, kind):
    """The same error for all entry points, before and after a call that was right."""
    for call, compute in CALLS.items():
        layer, errors = LAYERS[kind](), []
        for attempt in range(3):
            try:
                found = compute(layer, WRONG[form]())
            except gn.GennormError as error:
                errors.append((error.code, str(error)))
            else:
                # With method RMS, the mean is not used.
                assert kind == "RMS", (call, form)
                assert all(array.shape == X.shape for array in found)
                errors.append(None)
            if attempt == 1:
                compute(layer, gn.Moments.from_variance(MEAN, VARIANCE))
        assert len({*errors}) == 1, errors


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("change", ["mean", "variance", "both"])
def test_arrays_that_are_written_to_between_calls_are_read_again(kind, change):
    """Moments never change and are remembered; a pair of arrays may change."""
    layer, mean, variance = LAYERS[kind](), MEAN.copy(), VARIANCE.copy()
    pair = (mean, variance)
    layer(X, moments=pair)
    if change in ("mean", "both"):
        mean += 1
    if change in ("variance", "both"):
        variance *= 2
    np.testing.assert_allclose(layer(X, moments=pair), definition(kind, mean, variance), rtol=1e-13, atol=1e-13)
