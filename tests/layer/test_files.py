"""A layer in a file: every bit is read back, every damage is an error, and no write leaves a part of a file."""

import io
import json
import os
import pickle
import re
import signal
import stat
import subprocess
import sys
import threading
import tracemalloc
import zipfile
from pathlib import Path

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
def test_files_are_exact_to_the_bit(path, dtype):
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
def test_every_kind_of_layer_survives_a_file(path, layer):
    layer.save(str(path))
    same(layer, gn.load(os.fspath(path)))


def test_moving_moments_survive_a_file(path):
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
    with pytest.raises(gn.errors.FileError, match=r"cannot be read as a layer|is not the file of a layer"):
        gn.load(path)


@pytest.mark.parametrize("flip", [0x01, 0x20, 0xFF])
def test_every_byte_that_is_flipped_is_an_error(path, flip):
    layer = gn.feature_norm(mean=1, variance=2)
    layer.save(path)
    whole = path.read_bytes()
    files._from_npz(path, whole) if path.suffix == ".npz" else files._from_safetensors(path, whole)
    unseen = []
    for place in range(len(whole)):
        spoiled = bytearray(whole)
        spoiled[place] ^= flip
        try:
            gn.load(NamedBytes(path.name, bytes(spoiled)))
        except gn.errors.FileError:
            continue
        unseen.append(place)
    assert unseen == []


class NamedBytes(io.BytesIO):
    """A file object in memory, with a name."""

    def __init__(self, name, data=b""):
        super().__init__(data)
        self.name = name


@pytest.mark.parametrize("keep", range(0, 400, 13))
def test_every_byte_that_is_missing_or_surplus_is_an_error(path, keep):
    gn.feature_norm(mean=1, variance=2).save(path)
    whole = path.read_bytes()
    for data in (whole[:-keep] if keep else whole + b"0", whole[keep + 1 :], whole + b"x" * (keep + 1)):
        path.write_bytes(data)
        with pytest.raises(gn.errors.FileError):
            gn.load(path)


def test_files_of_version_1_are_read(path):
    """They have no checksum. The fixtures were written by the last version that wrote them."""
    layer = gn.load(Path(__file__).parents[1] / "data" / f"version-1{path.suffix}")
    expected = gn.batch_norm(2, dtype="bfloat16", scaling=np.array([1.5, -0.25], np.float32))
    expected.moments = gn.Moments.from_variance([0.5, -2.0], [1.25, 3.0], 7)
    same(expected, layer)
    layer.save(path)
    same(expected, gn.load(path))


def test_a_checksum_cannot_be_left_out(path):
    gn.feature_norm(mean=1, variance=2).save(path)
    whole = path.read_bytes()
    if path.suffix == ".npz":
        assert whole[-79:-64] == b"gennorm-sha256="
        without = whole.replace(b"gennorm-sha256=", b"another-sha256=")
    else:
        without = whole.replace(b"sha256", b"sha255")
    path.write_bytes(without)
    with pytest.raises(gn.errors.FileError, match="cannot be read as a layer"):
        gn.load(path)


def test_foreign(tmp_path):
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    np.savez(tmp_path / "objects.npz", gennorm=np.array([{}], dtype=object))
    np.savez(tmp_path / "numbers.npz", gennorm=np.ones(3))
    (tmp_path / "text.npz").write_text("hello")
    for name in ("other", "objects", "numbers", "text"):
        with pytest.raises(gn.errors.FileError, match=r"is not the file of a layer|cannot be read as a layer"):
            gn.load(tmp_path / f"{name}.npz")
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file({"x": np.ones(3)}, tmp_path / "other.safetensors")
    with pytest.raises(gn.errors.FileError, match="is not the file of a layer"):
        gn.load(tmp_path / "other.safetensors")


def three():
    """Moments of three slices."""
    return {f"moments.{name}": np.ones(3) for name in ("count", "mean", "m2")}


def rewritten(path, change):
    """The file of a layer with its header or its arrays changed."""
    gn.batch_norm(2).save(path)
    stored = (files._from_npz if path.suffix == ".npz" else files._from_safetensors)(path, path.read_bytes())
    header, arrays = json.loads(stored[0]), stored[1]
    change(header, arrays)
    if path.suffix == ".npz":
        path.write_bytes(files._to_npz(json.dumps(header), arrays))
    else:
        header.pop("sha256")
        path.write_bytes(files._to_safetensors(path, json.dumps(header), arrays))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda header, _: header.update(version=3), "is of version 3, and this gennorm reads versions up to 2"),
        *((lambda header, _, v=v: header.update(version=v), "is not the file") for v in (0, -5, True, 1.0, "1", None)),
        (lambda header, _: header.update(format="x"), "is not the file of a layer"),
        (lambda header, _: header.pop("config"), "is not the file of a layer"),
        (lambda header, _: header.update(arrays=5), "is not the file of a layer"),
        (lambda header, _: header["config"].update(version=3), "invalid settings: a config of format"),
        (lambda header, _: header["config"].pop("epsilon"), 'invalid settings: .* lacks "epsilon"'),
        (lambda header, _: header["config"].update(epsilon=-1), "invalid settings: epsilon cannot be"),
        (lambda _, arrays: arrays.pop("scaling"), "lacks the array scaling"),
        (lambda _, arrays: arrays.pop("moments.m2"), "lacks the array moments.m2"),
        (lambda _, arrays: arrays.update(x=np.ones(2)), "has an entry 'x.npy' that layers do not have"),
        (lambda _, arrays: arrays.update(scaling=np.ones(2)), "an array scaling that does not fit"),
        (lambda _, arrays: arrays.update(scaling=np.ones(3, np.float32)), "that does not fit"),
        (
            lambda _, arrays: arrays.update({"moments.count": -np.ones(2)}),
            "moments that its layer cannot have: a count is -1.0",
        ),
        (lambda _, arrays: arrays.update({"moments.count": np.ones(3)}), "moments that its layer cannot have"),
        (lambda header, _: header["config"].update(statistics="input"), 'statistics="input" stores none'),
        (lambda header, _: header["config"].update(method="RMS"), "they have a mean, and method RMS"),
        (lambda header, _: header["config"].update(dtype="float64"), "scaling that does not fit.*float32"),
        (lambda header, _: header["config"].update(dtype="float16"), "scaling that does not fit.*float32"),
        (lambda header, _: header["config"].update(input_shape=[3, "..."]), "that does not fit its layer"),
        (lambda header, _: header["config"].update(input_shape=[None, 3, "..."], scaling_levels=2), "does not fit"),
        (lambda _, arrays: arrays.update(three()), r"they have the shape \(3,\), and the layer has \(2,\)"),
        (lambda _, arrays: arrays.update(scaling=np.ones(2, np.uint16)), "scaling that does not fit"),
        (lambda header, _: header["config"].update(biases=None), "biases that does not fit"),
    ],
)
def test_a_file_that_does_not_add_up(path, change, text):
    if path.suffix == ".safetensors":
        text = text.replace("an entry 'x.npy'", "an array x")
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
    with pytest.raises(gn.errors.FileError, match="cannot be read as a layer"):
        gn.load(tmp_path / "trap.npz")


# Looking before unpacking --------------------------------------------------------------------------------


def bomb(path, name, size):
    """An archive of a thousandth of what it unpacks to."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("gennorm.npy", "w") as member:
            np.lib.format.write_array(member, np.array("{}"))
        with archive.open(f"{name}.npy", "w") as member:
            np.lib.format.write_array(member, np.zeros(size // 8))
    assert path.stat().st_size < size / 500


@pytest.mark.parametrize("name", ["x", "scaling", "gennorm", "moments.m2"])
def test_an_archive_is_not_unpacked_before_it_is_known(tmp_path, name):
    path = tmp_path / "layer.npz"
    if name == "gennorm":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("gennorm.npy", "w") as member:
            np.lib.format.write_array(member, np.array("x" * (5 << 20)))
    else:
        bomb(path, name, 64 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(gn.errors.FileError):
            gn.load(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_large_foreign_file_is_not_read(tmp_path, suffix):
    path = tmp_path / f"data{suffix}"
    if suffix == ".npz":
        np.savez(path, x=np.zeros(4 << 20))
    else:
        pytest.importorskip("safetensors.numpy").save_file({"x": np.zeros(4 << 20)}, path)
    tracemalloc.start()
    try:
        with pytest.raises(gn.errors.FileError, match="is not the file of a layer"):
            gn.load(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shape", ["(1000000000000,)", "(-1,)", "(3, 3, 3)", "()"])
def test_an_array_header_with_a_wrong_size_is_refused(tmp_path, shape):
    path = tmp_path / "layer.npz"
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("gennorm.npy", "w") as member:
            np.lib.format.write_array(member, np.array("{}"))
        archive.writestr("scaling.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64))
    with pytest.raises(gn.errors.FileError, match="cannot be read as a layer"):
        gn.load(path)


def test_an_archive_of_the_other_byte_order_is_read(tmp_path):
    path = tmp_path / "layer.npz"
    rewritten(path, lambda _, arrays: arrays.update({name: swapped(array) for name, array in arrays.items()}))
    layer = gn.load(path)
    assert layer.scaling.dtype.isnative
    assert layer.scaling.tolist() == [1, 1]
    assert layer.moments.m2.dtype.isnative


def swapped(array):
    return array.astype(array.dtype.newbyteorder(">"))


# File objects --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "layer.npz", "layer.safetensors", 3])
def test_file_objects(name, tmp_path):
    if str(name).endswith(".safetensors"):
        pytest.importorskip("safetensors")
    layer = gn.feature_norm(mean=1, variance=2)
    stream = NamedBytes(name)
    layer.save(stream)
    data = stream.getvalue()
    assert (data[:2] == b"PK") == (not str(name).endswith(".safetensors"))
    same(layer, gn.load(io.BytesIO(data)))
    path = tmp_path / ("layer.npz" if data[:2] == b"PK" else "layer.safetensors")
    with path.open("wb") as file:
        layer.save(file)
    assert path.read_bytes() == data
    with path.open("rb") as file:
        same(layer, gn.load(file))


@pytest.mark.parametrize("data", [b"", b"P", b"PK", b"PK\x03\x04", bytes(8), bytes(100), b"\xff" * 20])
def test_file_objects_that_are_not_layers(data):
    with pytest.raises(gn.errors.FileError):
        gn.load(io.BytesIO(data))


def test_file_objects_of_text(tmp_path):
    layer = gn.layer_norm(3)
    with (tmp_path / "layer.npz").open("w") as file, pytest.raises(gn.errors.FileError, match='open\\(path, "wb"\\)'):
        layer.save(file)
    layer.save(tmp_path / "layer.npz")
    match = 'open\\(path, "rb"\\)'
    with (tmp_path / "layer.npz").open(encoding="utf-8") as file, pytest.raises(gn.errors.FileError, match=match):
        gn.load(file)


# Special files, permissions ------------------------------------------------------------------------------


def special(kind, path):
    """A path that is no regular file."""
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "loop":
            path.symlink_to(path.name)
        case "device":
            path.symlink_to("/dev/null")
        case "long":
            return path.with_name("x" * 260 + path.suffix)
        case "NUL":
            return path.with_name("\0" + path.suffix)
        case "surrogate":
            return path.with_name("\udcff\ud800" + path.suffix)
    return path


@pytest.mark.parametrize("kind", ["pipe", "loop", "device", "long", "NUL"])
def test_special_files(kind, path, tmp_path):
    path = special(kind, path)
    before = sorted(tmp_path.iterdir())
    for call in (gn.layer_norm(3).save, gn.load):
        with pytest.raises(gn.errors.FileError):
            call(path)
    assert sorted(tmp_path.iterdir()) == before
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    if kind == "pipe":
        assert stat.S_ISFIFO(path.stat().st_mode)
    if kind in {"loop", "device"}:
        assert path.is_symlink()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o400, 0o644, 0o755])
def test_a_file_is_private_until_it_has_the_permissions_of_the_old_one(path, mode, monkeypatch):
    gn.layer_norm(3).save(path)
    path.chmod(mode)
    seen = []
    write = Path.write_bytes

    def watched(self, data):
        count = write(self, data)
        seen.append(stat.S_IMODE(self.stat().st_mode))
        return count

    monkeypatch.setattr(Path, "write_bytes", watched)
    gn.layer_norm(4).save(path)
    assert seen == [0o600]
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_new_file_has_the_permissions_of_any_new_file(path):
    for mask in (0o022, 0o077, 0o027):
        before = os.umask(mask)
        try:
            gn.layer_norm(3).save(path)
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
        path.unlink()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
def test_a_replaced_file_keeps_its_owner_and_group(path):
    gn.layer_norm(3).save(path)
    os.chown(path, 12345, 54321)
    path.chmod(0o640)
    gn.layer_norm(4).save(path)
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (12345, 54321, 0o640)


def test_a_group_that_cannot_be_set_loses_its_permissions(path, monkeypatch):
    gn.layer_norm(3).save(path)
    path.chmod(0o664)
    found = list(path.stat())
    found[5] += 1  # the group

    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refused)
    monkeypatch.setattr(files, "_replaced", lambda *_: os.stat_result(found))
    gn.layer_norm(4).save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


# Interrupts, and what a killed process leaves --------------------------------------------------------------


def test_an_interrupt_at_any_line_is_an_interrupt(path, tmp_path, interruptible):
    """At each of some hundred lines that run during a save, in this package and in zipfile: nothing else is raised."""
    layer, after = gn.layer_norm(3), gn.batch_norm(3)
    after.save(path)
    after_bytes = path.read_bytes()
    layer.save(path)
    before_bytes = path.read_bytes()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def interrupted(at):
        """Whether the save was interrupted at this line, and how many lines it ran."""
        lines = 0

        def trace(frame, event, _):
            nonlocal lines
            if event == "line":
                lines += 1
                if lines == at:
                    sys.settrace(None)
                    signal.raise_signal(signal.SIGINT)
            return trace

        sys.settrace(trace)
        try:
            after.save(path)
        finally:
            sys.settrace(None)
        return lines

    total = interrupted(0)
    assert total > 300
    for at in range(1, total - 2, max(total // 400, 1)):
        path.write_bytes(before_bytes)
        with pytest.raises(KeyboardInterrupt):
            interrupted(at)
        assert [*tmp_path.iterdir()] == [path]
        assert path.read_bytes() in {before_bytes, after_bytes}
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_program_is_called_after_the_write(path, tmp_path, monkeypatch):
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, _: seen.append((number, [*tmp_path.iterdir()])))
    write = Path.write_bytes

    def signalled(self, data):
        signal.raise_signal(signal.SIGTERM)
        assert seen == []
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", signalled)
    try:
        gn.layer_norm(3).save(path)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [(signal.SIGTERM, [path])]


def test_threads_save_without_signals(path):
    worker = threading.Thread(target=gn.layer_norm(3).save, args=(path,))
    worker.start()
    worker.join()
    assert gn.load(path).initialized


WRITER = """
import sys, time
from pathlib import Path
from gennorm.layer import files
with files.replacing(Path(sys.argv[1])) as part:
    part.write_bytes(b"a part")
    print(part.name, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(files.fcntl is None, reason="Windows removes no open file")
def test_the_next_write_removes_files_of_killed_processes(path, tmp_path):
    def begun():
        command = [sys.executable, "-c", WRITER, str(tmp_path / "other.npz")]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        return child, child.stdout.readline().strip()

    (killed, first), (alive, second) = begun(), begun()
    with killed, alive:
        assert re.fullmatch(r"\.gennorm-[0-9a-f]{16}\.part", first)
        killed.kill()
        killed.wait()
        foreign = [".gennorm-notes.part", ".gennorm-0123456789abcdef.part.bak", "x.part"]
        for name in foreign:
            (tmp_path / name).write_text("not ours")
        (tmp_path / ".gennorm-0123456789abcdef.part").symlink_to("x.part")
        (tmp_path / ".gennorm-1123456789abcdef.part").mkdir()
        assert (tmp_path / first).exists()
        gn.layer_norm(3).save(path)
        left = {entry.name for entry in tmp_path.iterdir()}
        kept = {".gennorm-0123456789abcdef.part", ".gennorm-1123456789abcdef.part", second, path.name, *foreign}
        assert left == kept  # a process that lives keeps its part
        alive.kill()
        alive.wait()
        gn.load(path).save(path)
        assert not (tmp_path / second).exists()
