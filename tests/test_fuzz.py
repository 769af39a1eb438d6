"""Random level specs, configs, files and arrays: each gives a right result or a `GennormError`.

Every session draws the same examples. ``pytest tests/test_fuzz.py --fuzz-seconds 600`` continues with new ones, and a
failure names the seed that repeats it.
"""

import copy
import hashlib
import io
import json
import secrets
import string
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, seed, settings
from hypothesis import strategies as st

import gennorm as gn
from gennorm.layer import files
from tests import derivatives, strategies
from tests.accuracy import judge
from tests.engines import in_plain_python
from tests.spec.test_levels import PIECES, check_against_grammar
from tests.strategies import DTYPES, sample

# ---------------------------------------------------------------------------------------------------------- level specs

TEXTS = st.text(max_size=40) | st.text("0123456789-;,{} AlSameCompnt\t\n", max_size=40)
TEXTS |= st.lists(st.sampled_from(PIECES) | st.text(max_size=2), max_size=30).map("".join)


def level_spec(text):
    """The parser accepts exactly the texts of the grammar, and an error names the place in the text."""
    check_against_grammar(text)


# -------------------------------------------------------------------------------------------------------------- configs

WORDS = [
    "2;;All",
    "{1, 3;;4}",
    "Same",
    "Complement",
    "Automatic",
    "explicit",
    "RMS",
    "moving",
    "floor",
    "...",
    "bfloat16",
]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(WORDS)
    | st.integers(-3, 3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("-0123a", max_size=2), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def configs(draw):
    """The config of a layer with up to three random changes."""
    settings_of = draw(strategies.cases()).settings
    config = gn.NormalizationLayer(**settings_of).to_config()
    for _ in range(draw(st.integers(0, 3))):
        key = draw(st.sampled_from([*config]) | st.text(string.ascii_lowercase, max_size=4))
        match draw(st.sampled_from(["value", "value", "value", "drop", "inside"])):
            case "drop":
                config.pop(key, None)
            case "inside" if isinstance(config.get(key), list) and config[key]:
                config[key] = copy.copy(config[key])
                config[key][draw(st.integers(0, len(config[key]) - 1))] = draw(VALUES)
            case _:
                config[key] = draw(VALUES)
        if not config:
            break
    return config


def from_config(config):
    """A config makes a layer with that config, or raises a `GennormError`; the config itself is not changed."""
    before = copy.deepcopy(config)
    try:
        layer = gn.NormalizationLayer.from_config(config)
    except gn.GennormError as error:
        event(error.code)
    else:
        event("layer")
        written = json.loads(json.dumps(layer.to_config(), allow_nan=False))
        assert gn.NormalizationLayer.from_config(written).to_config() == written
        assert repr(gn.NormalizationLayer.from_config(written)) == repr(layer)
    assert repr(config) == repr(before)  # repr, since NaN is not itself


# ---------------------------------------------------------------------------------------------------------------- files

LAYERS = {
    "plain": gn.layer_norm(3),
    "moving": gn.batch_norm(2, momentum=0.5),
    "dataset": gn.feature_norm(mean=[1.0, 2.0], variance=[3.0, 4.0]),
    "bfloat16": gn.group_norm(2, 4, dtype="bfloat16"),
}


def saved(layer, suffix):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"layer{suffix}")
        layer.save(path)
        return path.read_bytes()


SAVED = {(name, suffix): saved(layer, suffix) for name, layer in LAYERS.items() for suffix in files.SUFFIXES}


def with_header(data, suffix, change):
    """A file with a changed header that is otherwise intact."""
    if suffix == ".npz":
        archive = dict(np.load(io.BytesIO(data)))
        return files._to_npz(change(str(archive.pop(files.HEADER))), archive)
    length = int.from_bytes(data[:8], "little")
    outer = json.loads(data[8 : 8 + length])
    header = json.loads(change(outer["__metadata__"][files.HEADER]))
    zeros = "0" * files.DIGITS
    outer["__metadata__"][files.HEADER] = json.dumps({**header, files.KEY: zeros})
    text = json.dumps(outer).encode()
    changed = len(text).to_bytes(8, "little") + text + data[8 + length :]
    return changed.replace(zeros.encode(), hashlib.sha256(changed).hexdigest().encode(), 1)


@st.composite
def stored(draw):
    """The suffix and the bytes of a layer's file, with random changes in the header, the bytes or the length."""
    (name, suffix), data = draw(st.sampled_from(sorted(SAVED.items())))
    del name
    if draw(st.booleans()):
        key, value = draw(st.sampled_from(["config", "arrays", "version", "format"])), draw(VALUES)
        inside = draw(st.none() | st.sampled_from(["dtype", "scaling", "statistics", "method", "input_shape"]))

        def change(text):
            header = json.loads(text)
            if key == "config" and inside:
                header["config"][inside] = value
            else:
                header[key] = value
            return json.dumps(header)

        data = with_header(data, suffix, change)
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(start + draw(st.sampled_from([0, 1, 1, 2, 8, 1000])), len(data))
        data = data[:start] + draw(st.binary(max_size=8) | st.just(data[end - 16 : end])) + data[end:]
    if draw(st.integers(0, 3)) == 0:
        data = data[: draw(st.integers(0, len(data)))]
    return suffix, data


def load(file):
    """Loading any file gives a layer that can be saved again, or raises a `FileError`."""
    suffix, data = file
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"layer{suffix}")
        path.write_bytes(data)
        try:
            layer = gn.load(path)
        except gn.errors.FileError as error:
            event(error.code)
            return
        event("loaded")
        layer.save(path)
        assert repr(gn.load(path)) == repr(layer)


# --------------------------------------------------------------------------------------------------------------- layers


@st.composite
def calls(draw, *, dtypes=DTYPES, partly=True):
    """A layer, an array and a mask. With ``partly``, also layers without scaling or biases."""
    case = draw(strategies.cases(elements=500))
    dtype = draw(st.sampled_from(dtypes))
    x = draw(strategies.layouts(len(case.shape))).hold(sample(case.shape, dtype, draw(st.integers(0, 9))))
    shape = [draw(st.sampled_from([1, size])) for size in case.shape]
    mask = draw(st.none() | st.just(sample(shape, "bool", draw(st.integers(0, 9)))))
    absent = draw(st.sets(st.sampled_from(["scaling", "biases"]))) if partly else ()
    return case, x, mask, absent


def layer_and_gradients(call):
    """The output and the gradients of any layer for any array are those of the reference."""
    case, x, mask, absent = call
    layer = gn.NormalizationLayer(**case.settings, **dict.fromkeys(absent)).initialize(case.shape)
    for number, name in enumerate(("scaling", "biases")):
        value = getattr(layer, name)
        if value is not None:
            value[...] = np.random.default_rng(number).normal(1 - number, 0.5, value.shape)
    parameters = layer.scaling, layer.biases
    event(layer.plan(x).family)
    y, pullback = layer.vjp(x, mask=mask)
    if mask is None:
        judge(y, x, case.settings, *parameters)
        judge(layer(x), x, case.settings, *parameters)
    else:
        assert layer(x, mask=mask).tobytes() == y.tobytes()
    if case.settings["epsilon"]:  # with epsilon 0, the derivative of a constant slice has no bound
        dy = sample(x.shape, y.dtype.name, 11)
        derivatives.judge(pullback(dy), x, dy, case.settings, *parameters, mask=mask)


def in_python(call):
    """The kernels in plain Python, with every dtype."""
    with pytest.MonkeyPatch.context() as patch:
        in_plain_python(patch)
        layer_and_gradients(call)


# ---------------------------------------------------------------------------------------------------------- the checks

CHECKS = {
    "level specs": (level_spec, TEXTS),
    "configs": (from_config, configs()),
    "files": (load, stored()),
    "layers": (layer_and_gradients, calls(dtypes=("float32",), partly=False)),  # each kernel takes a second to compile
    "layers in plain Python": (in_python, calls()),
}
RELAXED = {"suppress_health_check": [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]}


@pytest.mark.parametrize("name", CHECKS)
def test_fuzz(name, request):
    check, examples = CHECKS[name]

    def once(drawn):
        check(drawn)

    number = settings.default.max_examples // (8 if name == "layers" else 1)  # half of its examples compile new kernels
    settings(max_examples=number, **RELAXED)(given(examples)(once))()
    end = time.monotonic() + request.config.getoption("--fuzz-seconds", 0) / len(CHECKS)
    while time.monotonic() < end:
        number = secrets.randbits(32)
        unseen = settings(max_examples=200, derandomize=False, database=None, **RELAXED)
        try:
            seed(number)(unseen(given(examples)(once)))()
        except BaseException as error:
            error.add_note(f"seed {number}")
            raise


def test_a_changed_header_is_read():
    """The premise of `stored`: a file with another header is intact, and the layer follows the header."""
    for (name, suffix), data in SAVED.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"layer{suffix}")
            path.write_bytes(with_header(data, suffix, lambda text: text))
            assert repr(gn.load(path)) == repr(LAYERS[name])
            path.write_bytes(with_header(data, suffix, lambda text: text.replace('"version": 2', '"version": 3', 1)))
            with pytest.raises(gn.errors.FileError, match="newer gennorm"):
                gn.load(path)
    assert zipfile.is_zipfile(io.BytesIO(SAVED["plain", ".npz"]))
