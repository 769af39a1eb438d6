"""A layer in a file: it comes back bit for bit, or the file says what is wrong with it, and nothing is half written."""

import contextlib
import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest

import gennorm as gn
from gennorm.layer import files

SUFFIXES = (".npz", ".safetensors")
DTYPES = ("float16", "bfloat16", "float32", "float64")


@pytest.fixture(params=SUFFIXES)
def path(request, tmp_path):
    if request.param == ".safetensors":
        pytest.importorskip("safetensors")
    return tmp_path / f"layer{request.param}"


def number(dtype):
    return pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype


def same(layer, other):
    assert repr(other) == repr(layer)
    assert other.to_config() == layer.to_config()
    for name in ("scaling", "biases"):
        a, b = getattr(layer, name), getattr(other, name)
        assert type(a) is type(b)
        if isinstance(a, np.ndarray):
            assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    assert (other.moments is None) == (layer.moments is None)
    if layer.moments is not None:
        for name in ("count", "mean", "m2"):
            a, b = getattr(layer.moments, name), getattr(other.moments, name)
            assert (a is None) == (b is None)
            assert a is None or (a.shape, a.tobytes()) == (b.shape, b.tobytes())


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_comes_back(path, dtype):
    scaling = np.array([np.nan, -0.0, 1 / 3, np.inf]).astype(number(dtype))
    layer = gn.batch_norm(4, scaling=scaling, dtype=dtype, learning_rate_multipliers={"scaling": 0.5}, epsilon=1 / 3)
    layer.moments = gn.Moments.from_variance([1 / 3, -0.0, np.inf, np.nan], [1 / 7, 0.0, np.inf, np.nan])
    layer.save(path)
    other = gn.load(path)
    same(layer, other)
    assert other.information("learning_rate_multipliers") == {"scaling": 0.5}
    same(layer, pickle.loads(pickle.dumps(layer)))


@pytest.mark.parametrize(
    "layer",
    [
        gn.NormalizationLayer(),
        gn.NormalizationLayer("{1, -1}", (), scaling=np.float32(2), biases=None),
        gn.group_norm(2, 4),
        gn.layer_norm((2, 3), biases=np.arange(6).reshape(3, 2).T, dtype="float16"),
        gn.rms_norm(3, statistics="moving"),
        gn.feature_norm(),
        gn.feature_norm(None, mean=3, variance=2),
        gn.feature_norm((1, -1)).adapt(np.arange(24.0).reshape(4, 3, 2)),
        gn.NormalizationLayer(0, 1, input_shape=(0,)),
    ],
    ids=repr,
)
def test_every_kind_comes_back(path, layer):
    layer.save(str(path))
    same(layer, gn.load(os.fspath(path)))


def test_what_was_learned_comes_back(path):
    x = np.random.default_rng(0).normal(3, 2, (8, 4, 5)).astype(np.float32)
    layer = gn.batch_norm(4)
    layer.scaling -= 0.5
    layer(x, training=True)
    layer.save(path)
    other = gn.load(path)
    same(layer, other)
    np.testing.assert_array_equal(other(x), layer(x))
    np.testing.assert_array_equal(other(x, training=True), layer(x, training=True))
    same(layer, other)


def test_the_same_layer_is_the_same_file(path, tmp_path):
    layer = gn.feature_norm(mean=1, variance=2)
    layer.save(path)
    first = path.read_bytes()
    layer.save(path)
    assert path.read_bytes() == first
    assert [*tmp_path.iterdir()] == [path]


def test_other_programs_can_read_it(tmp_path):
    layer = gn.layer_norm(3)
    layer.save(tmp_path / "layer.npz")
    with np.load(tmp_path / "layer.npz", allow_pickle=False) as archive:
        assert archive["scaling"].tolist() == [1, 1, 1]
        assert json.loads(str(archive["gennorm"]))["config"] == layer.to_config()
    safetensors = pytest.importorskip("safetensors.numpy")
    layer.save(tmp_path / "layer.safetensors")
    assert safetensors.load_file(tmp_path / "layer.safetensors")["biases"].tolist() == [0, 0, 0]


# Files that are no layers ------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 1, 7, 30, 0.5, 0.9, -1])
def test_truncated(path, keep):
    gn.batch_norm(64).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(gn.errors.FileError, match=r"is no \.\w+ file that can be read|something else than a layer"):
        gn.load(path)


def test_every_byte_that_is_flipped_is_an_error_or_harmless(path):
    layer = gn.feature_norm(mean=1, variance=2)
    layer.save(path)
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        spoiled = bytearray(whole)
        spoiled[place] ^= 0x55
        path.write_bytes(spoiled)
        with contextlib.suppress(gn.errors.FileError):
            gn.load(path)


def test_foreign(tmp_path):
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    np.savez(tmp_path / "objects.npz", gennorm=np.array([{}], dtype=object))
    np.savez(tmp_path / "numbers.npz", gennorm=np.ones(3))
    (tmp_path / "text.npz").write_text("hello")
    for name in ("other", "objects", "numbers", "text"):
        with pytest.raises(gn.errors.FileError, match=r"something else than a layer|that can be read"):
            gn.load(tmp_path / f"{name}.npz")
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file({"x": np.ones(3)}, tmp_path / "other.safetensors")
    with pytest.raises(gn.errors.FileError, match="something else than a layer"):
        gn.load(tmp_path / "other.safetensors")


def rewritten(path, change):
    """The file of a layer with its header or its arrays changed."""
    gn.batch_norm(2).save(path)
    stored = files._from_npz(path, path.read_bytes())
    header, arrays = json.loads(stored[0]), stored[1]
    change(header, arrays)
    stream = io.BytesIO(files._to_npz(json.dumps(header), arrays))
    path.write_bytes(stream.getvalue())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda header, _: header.update(version=2), "is of version 2, and this gennorm reads 1"),
        (lambda header, _: header.update(format="x"), "something else than a layer"),
        (lambda header, _: header.pop("config"), "something else than a layer"),
        (lambda header, _: header["config"].update(version=2), "settings that make no layer: a config of format"),
        (lambda header, _: header["config"].pop("epsilon"), 'settings that make no layer: .* lacks "epsilon"'),
        (lambda header, _: header["config"].update(epsilon=-1), "settings that make no layer: epsilon cannot be"),
        (lambda _, arrays: arrays.pop("scaling"), "lacks the array scaling"),
        (lambda _, arrays: arrays.pop("moments.m2"), "lacks the array moments.m2"),
        (lambda _, arrays: arrays.update(x=np.ones(2)), "has an array x that belongs to no layer"),
        (lambda _, arrays: arrays.update(scaling=np.ones(2)), "an array scaling that does not fit"),
        (lambda _, arrays: arrays.update(scaling=np.ones(3, np.float32)), "that does not fit"),
        (lambda _, arrays: arrays.update({"moments.count": -np.ones(2)}), "moments that are none: a count is -1.0"),
        (lambda _, arrays: arrays.update({"moments.count": np.ones(3)}), "moments that are none"),
    ],
)
def test_a_file_that_does_not_add_up(tmp_path, change, text):
    path = tmp_path / "layer.npz"
    rewritten(path, lambda *_: None)
    gn.load(path)
    rewritten(path, change)
    with pytest.raises(gn.errors.FileError, match=text):
        gn.load(path)


def test_paths(tmp_path, path):
    layer = gn.layer_norm(3)
    with pytest.raises(gn.errors.FileError, match="does not exist"):
        gn.load(path)
    with pytest.raises(gn.errors.FileError, match=r"has the suffix \.npy.*did you mean \"\.npz\""):
        layer.save(tmp_path / "layer.npy")
    with pytest.raises(gn.errors.FileError, match="has no suffix"):
        gn.load(tmp_path / "layer")
    with pytest.raises(gn.errors.FileError, match="cannot be written"):
        layer.save(tmp_path / "nowhere" / path.name)


def test_safetensors_is_an_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    (tmp_path / "layer.safetensors").write_bytes(b"")
    for call in (gn.layer_norm(3).save, gn.load):
        with pytest.raises(gn.errors.FileError, match="pip install 'gennorm"):
            call(tmp_path / "layer.safetensors")


@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("place", ["os.fsync", "pathlib.Path.replace", "pathlib.Path.write_bytes"])
def test_an_interruption_leaves_the_file_as_it_was(path, tmp_path, monkeypatch, kind, place):
    gn.layer_norm(3).save(path)
    before = path.read_bytes()

    def interrupted(*_):
        raise kind(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(place, interrupted)
        with pytest.raises(gn.errors.FileError if kind is OSError else kind):
            gn.batch_norm(7).save(path)
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    with zipfile.ZipFile(tmp_path / "trap.npz", "w") as archive, archive.open("gennorm.npy", "w") as member:
        np.lib.format.write_array(member, np.array(Trap(), dtype=object), allow_pickle=True)
    with pytest.raises(gn.errors.FileError, match="that can be read"):
        gn.load(tmp_path / "trap.npz")
