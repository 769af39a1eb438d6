"""NumPy's error state: no call depends on `np.seterr`, changes it, or warns; results are the same to the bit."""

import io
import traceback
import warnings
from dataclasses import asdict, is_dataclass
from pathlib import Path

import numpy as np
import pytest

import gennorm as gn
from gennorm.spec.config import LayerConfig
from tests.engines import cut_small

ml_dtypes = pytest.importorskip("ml_dtypes")

DTYPES = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
SHAPES = {"small": (3, 4, 8), "cut": (2, 2, 3000)}  # a small call, and slices that are cut into units
STATES = ("raise", "warn")


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    cut_small(monkeypatch, CUT=1 << 10, UNIT=1 << 10, BLOCK=1 << 9)


def extremes(dtype):
    """Numbers near the ends of a dtype's range, by name."""
    info = ml_dtypes.finfo(dtype)
    largest, smallest = float(info.max), float(info.smallest_normal)
    return {
        "ordinary": 1.0,
        "tiny": max(1e-30, smallest),
        "smallest": smallest,
        "subnormal": float(info.smallest_subnormal),
        "huge": min(1e300, largest / 4),
        "largest": largest,
        "zero": 0.0,
        "infinite": np.inf,
        "none": np.nan,
    }


def example(value, dtype, shape, seed=0):
    """An array of a few multiples of a value; an infinity or NaN is one element among ordinary ones."""
    x = np.random.default_rng(seed).choice([-1.0, -0.5, 0.25, 1.0], shape)
    if np.isfinite(value):
        x *= value
    else:
        x[0, 0, 3] = x[1, 0, -1] = value
    return x.astype(dtype)


def mask_for(x):
    return np.arange(x.size).reshape(x.shape) % 3 > 0


def layer(x, **settings):
    return gn.NormalizationLayer(-1, "Same", dtype="float32", **settings).initialize(x.shape)


def channels(x, **settings):
    return gn.batch_norm(x.shape[1], **settings)


def out(x):
    y = np.zeros_like(x)
    return layer(x)(x, out=y), y


def given(x):
    one, size = layer(x), x.shape[-1]
    return one(x, scaling=np.full(size, 3, np.float32), biases=np.full(size, 1e30, np.float32))


def pulled(one, x, **arguments):
    y, pullback = one.vjp(x, **arguments)
    return y, pullback(example(0.5, y.dtype, y.shape, 1)), pullback(x)


def trained(x):
    one = channels(x)
    return one(x, training=True), one(x, training=True), one.moments, one(x)


def fitted(x, **arguments):
    one = gn.feature_norm(1).adapt(x, **arguments)
    return one.moments, one(x)


def applied(x):
    one = layer(x)
    moments = gn.Moments.of(x, axes=-1)
    y = one.apply(x, moments)
    return y, one.inverse(y, moments), one.inverse(x, moments)


def merged(x):
    one, other = gn.Moments.of(x, axes=0), gn.Moments.of(x[:1], axes=0, mask=mask_for(x[:1]))
    both = one + other
    return one, other, both, both.variance(), both.variance(unbiased=True), both.mean_square()


def stored(x):
    file, one = io.BytesIO(), channels(x)
    one(x, training=True)
    return gn.NormalizationLayer.from_config(one.to_config()).to_config(), one.moments.to_dict(), file.tell()


def saved(x, folder):
    one = channels(x)
    one(x, training=True)
    one.save(folder / "layer.npz")
    back = gn.load(folder / "layer.npz")
    return back.moments, back.scaling, back(x)


CALLS = {
    "call": lambda x: (layer(x)(x), layer(x, method="RMS")(x)),
    "call again": lambda x: (one := layer(x), one(x), one(x))[1:],
    "epsilon 0": lambda x: layer(x, epsilon=0)(x),
    "floor": lambda x: layer(x, epsilon_placement="floor")(x),
    "outside": lambda x: layer(x, epsilon_placement="outside", unbiased=True)(x),
    "columns": lambda x: gn.NormalizationLayer(1, -1, batched=True)(x),  # noqa: PLW0108  a new layer for each call
    "groups": lambda x: gn.group_norm(2, x.shape[1])(x),
    "normalize": lambda x: gn.normalize(x, -1),
    "out": out,
    "mask": lambda x: layer(x)(x, mask=mask_for(x)),
    "scaling and biases": given,
    "vjp": lambda x: pulled(layer(x), x),
    "vjp epsilon 0": lambda x: pulled(layer(x, epsilon=0), x),
    "vjp mask": lambda x: pulled(layer(x), x, mask=mask_for(x)),
    "vjp columns": lambda x: pulled(gn.NormalizationLayer(1, -1, batched=True), x),
    "vjp training": lambda x: pulled(channels(x), x, training=True),
    "jvp": lambda x: layer(x).jvp(x, example(0.5, x.dtype, x.shape, 1)),
    "measure": lambda x: layer(x).measure(x),
    "measure mask": lambda x: layer(x).measure(x, mask=mask_for(x)),
    "apply and inverse": applied,
    "adapt": fitted,
    "adapt mask": lambda x: fitted(x, mask=mask_for(x)),
    "adapt weights": lambda x: fitted(x, weights=np.linspace(0.1, 1, x.shape[-1])),
    "adapt batches": lambda x: gn.feature_norm(1).adapt(iter([x, x])).moments,
    "training": trained,
    "moments": merged,
    "config": stored,
}


def flat(value):
    """The bits of a result and of everything in it."""
    if isinstance(value, (tuple, list)):
        return [part for item in value for part in flat(item)]
    if isinstance(value, gn.Moments):
        return flat([value.count, value.mean, value.m2])
    if isinstance(value, (np.ndarray, np.generic)):
        return [(value.dtype.name, value.shape, value.tobytes())]
    if is_dataclass(value) and not isinstance(value, LayerConfig):
        return flat(list(asdict(value).values()))
    if hasattr(value, "input") and hasattr(value, "scaling"):  # gradients
        return flat([value.input, value.scaling, value.biases])
    return [repr(value)]


def found(call, x):
    """What a call returns or raises."""
    try:
        return flat(call(x))
    except gn.GennormError as error:
        return [type(error).__name__, str(error)]
    except (FloatingPointError, Warning) as error:
        frames = [
            frame for frame in traceback.extract_tb(error.__traceback__) if "gennorm" in Path(frame.filename).parts
        ]
        where = frames[-1] if frames else traceback.extract_tb(error.__traceback__)[-1]
        return [f"{type(error).__name__}: {error}, {where.filename}:{where.lineno}"]


def differences(call, dtype):
    wrong = []
    for size, shape in SHAPES.items():
        for name, value in extremes(dtype).items():
            x = example(value, dtype, shape)
            with np.errstate(all="ignore"):
                expected = found(call, x)
            for state in STATES:
                with np.errstate(all=state), warnings.catch_warnings():
                    warnings.simplefilter("error")
                    before = np.geterr()
                    got = found(call, x)
                    if np.geterr() != before:
                        wrong.append((size, name, state, "the error state is another"))
                if got != expected:
                    wrong.append((size, name, state, *(got[:1] if len(got) == 1 else ["other bits"])))
    return wrong


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("call", CALLS)
def test_calls_do_not_depend_on_the_error_state(call, dtype):
    assert differences(CALLS[call], DTYPES[dtype]) == []


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_files_do_not_depend_on_the_error_state(dtype, tmp_path):
    assert differences(lambda x: saved(x, tmp_path), DTYPES[dtype]) == []


def test_a_call_that_depends_on_it_is_seen():
    """The check itself."""
    assert {state for _, _, state, *_ in differences(lambda x: x * x, np.float64)} == set(STATES)
    assert {name for _, name, *_ in differences(lambda x: x / 0, np.float32)} >= {"zero", "ordinary"}
    assert differences(lambda x: np.seterr(over="ignore") and x, np.float32)
