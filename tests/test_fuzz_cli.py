"""Random command lines and damaged files. A command ends with a known status and a message, and writes all or nothing.

The examples are the same in every run. ``pytest tests/test_fuzz_cli.py --fuzz-seconds 600`` goes on with new ones after
them, and a failure names the seed that repeats it: ``GENNORM_FUZZ_SEED=... pytest tests/test_fuzz_cli.py``.
"""

import contextlib
import io
import json
import os
import random
import re
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import gennorm as gn
from gennorm.cli.app import app
from gennorm.layer import files

STATUSES = {0, 1, 2}
MESSAGE = re.compile(r"gennorm: [^\n]+(\n[^\n]*){0,5}\n", re.DOTALL)
EXAMPLES = 120  # of each kind


def inputs(folder):
    """Files of every kind that the commands read."""
    values = np.random.default_rng(0).normal(3, 2, (6, 4, 5))
    for name, dtype in (("x", "f4"), ("d", "f8"), ("h", "f2"), ("i", "i2"), ("b", "?"), ("c", "c8"), ("s", "U3")):
        np.save(folder / f"{name}.npy", values.astype(dtype))
    np.save(folder / "f.npy", np.asfortranarray(values))
    np.save(folder / "one.npy", np.arange(7.0))
    np.save(folder / "none.npy", np.float64(3))
    np.save(folder / "empty.npy", np.zeros((0, 4, 5)))
    np.save(folder / "nan.npy", np.where(values > 3, np.nan, values))
    np.savez(folder / "z.npz", a=values, b=values[0])
    np.savez_compressed(folder / "zc.npz", a=values.astype("f4"))
    for mode, name in (("RGB", "p.png"), ("L", "g.png"), ("RGBA", "t.png"), ("RGB", "j.jpg"), ("P", "q.png")):
        Image.fromarray((values[:, :, :3] * 20).astype("u1")).convert(mode).save(folder / name)
    gn.feature_norm().adapt(values).save(folder / "l.npz")
    gn.batch_norm(4).save(folder / "m.npz")
    with contextlib.suppress(ModuleNotFoundError, gn.GennormError):
        gn.feature_norm().adapt(values).save(folder / "l.safetensors")
    (folder / "layer.json").write_text(json.dumps(gn.layer_norm(5).to_config()))
    (folder / "text.npy").write_text("no array")
    (folder / "folder.npy").mkdir()


# ------------------------------------------------------------------------------------------------------- command lines

NAMES = ["x", "d", "h", "i", "b", "c", "s", "f", "one", "none", "empty", "nan", "text", "folder", "missing", "y"]
FILES = [f"{name}.npy" for name in NAMES] + [
    "z.npz",
    "zc.npz",
    "l.npz",
    "m.npz",
    "y.npz",
    "l.safetensors",
    "out.safetensors",
]
FILES += ["p.png", "g.png", "t.png", "j.jpg", "q.png", "y.png", "y.jpg", "layer.json", "x", "y.txt"]
LEVELS = [
    "-1",
    "1",
    "0",
    "2;;All",
    "All",
    "{1, 2}",
    "1,2",
    "0;;All",
    "{}",
    "Same",
    "Complement",
    "9",
    "-9",
    ";;",
    "x",
    "c",
    "c;;h",
    "b [c h]",
    "(2 [c]) [h]",
    "",
]
OPTIONS = {
    "--preset": ["batch_norm", "layer_norm", "instance_norm", "group_norm", "rms_norm", "none"],
    "--aggregate": LEVELS,
    "--scale": LEVELS,
    "--level": ["-1", "1", "1,2", "c", "h,1", "none", "0", "9", "x"],
    "--groups": ["1", "2", "4", "1=2", "1=2,2=4", "c=2", "0", "-1", "x", "1=2=3", "99999999999999999999"],
    "--channel-level": ["1", "-1", "2", "0", "9", "-9"],
    "--trailing": ["1", "2", "3", "0", "99"],
    "--epsilon": ["0", "1e-3", "-1", "nan", "inf", "1e400"],
    "--placement": ["inside", "floor", "outside"],
    "--method": ["rms", "Standardize"],
    "--dtype": ["float32", "float16", "bfloat16", "float64", "int8", "uint64", "bool", "complex64", "x"],
    "--config": ["layer.json", "x.npy", "missing.json", "folder.npy"],
    "--layer": ["l.npz", "m.npz", "z.npz", "l.safetensors", "missing.npz", "folder.npy", "x.npy"],
    "--input-levels": ["c h", "b c h", "c ...", "h w c", "c h w d", "c c", "All", ""],
    "--shape": ["6,4,5", "(6, 4)", "1", "0,3", "99999999999,99999999999", "99999999999,3", "x", "4,,5", "-1"],
    "--unbiased": None,
    "--batched": None,
    "--example": None,
    "--inverse": None,
    "--json": None,
    "--labels": ["N,C,L", "C", "", ","],
    "--dark": None,
}
DRAWN = {"--labels", "--dark"}
TAKEN = {
    "apply": {*OPTIONS} - {"--shape", "--json", "--level"} - DRAWN,
    "adapt": {*OPTIONS} - {"--shape", "--json", "--inverse"} - DRAWN,
    "explain": {*OPTIONS} - {"--inverse", "--level"} - DRAWN,
    "draw": {*OPTIONS} - {"--inverse", "--level", "--dtype", "--json"},
}


def command_line(dice):
    command = dice.choice(["apply", "apply", "adapt", "explain", "draw"])
    names = {"apply": 2, "adapt": dice.choice([1, 2, 2, 3]), "explain": 0, "draw": 0}[command]
    words = [command, *(dice.choice(FILES) for _ in range(names))]
    options = sorted(TAKEN[command] if dice.random() < 0.95 else {*OPTIONS})
    chosen = dice.sample(options, dice.choice([0, 1, 1, 2, 2, 3, 4]))
    if command in {"explain", "draw"} and "--shape" not in chosen:
        chosen.append("--shape")
    for option in chosen:
        values = OPTIONS[option]
        words.append(option if values is None else f"{option}={dice.choice(values)}")
    return words


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def check(words, folder):
    """Run a command in a folder of inputs, and check how it ends."""
    before = contents(folder)
    result = CliRunner().invoke(app, words, prog_name="gennorm", env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), (words, result.exception)
    assert result.exit_code in STATUSES, (words, result.output)
    after = contents(folder)
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    assert not any(name.endswith(".part") for name in after), words
    if result.exit_code == 0:
        allowed = {"apply": words[2:3], "adapt": [word for word in words[1:] if word[0] != "-"][-1:]}
        assert changed <= {*allowed.get(words[0], [])}, words
        for name in changed:
            readable(folder / name, words[0])
    else:
        assert not changed, words
        assert "Traceback" not in result.stderr
        if result.exit_code == 1:
            assert MESSAGE.fullmatch(result.stderr), (words, result.stderr)
            assert re.search(r" \[[A-Z]\d{3}\]\n$", result.stderr), (words, result.stderr)
    return result.exit_code


def readable(path, command):
    """A file that was written can be read."""
    if command == "adapt":
        gn.load(path)
    elif path.suffix == ".npy":
        np.load(path)
    elif path.suffix == ".npz":
        with np.load(path) as archive:
            assert all(archive[name] is not None for name in archive.files)
    else:
        with Image.open(path) as image:
            image.load()


# ------------------------------------------------------------------------------------------------------- damaged files

READ = {
    "x.npy": [["apply", "{}", "y.npy", "--preset=layer_norm"], ["adapt", "{}", "y.npz"]],
    "f.npy": [["apply", "{}", "y.npy", "--preset=batch_norm"], ["adapt", "{}", "y.npz"]],
    "z.npz": [["apply", "{}", "y.npz", "--preset=layer_norm"], ["adapt", "{}", "out.npz"]],
    "zc.npz": [["apply", "{}", "y.npz", "--preset=layer_norm"], ["adapt", "{}", "out.npz"]],
    "p.png": [["apply", "{}", "y.png", "--preset=layer_norm"]],
    "t.png": [["apply", "{}", "y.png", "--preset=layer_norm"]],
    "q.png": [["apply", "{}", "y.png", "--preset=layer_norm"]],
    "j.jpg": [["apply", "{}", "y.png", "--preset=layer_norm"]],
    "l.npz": [["apply", "x.npy", "y.npy", "--layer={}"], ["adapt", "x.npy", "y.npz", "--layer={}"]],
    "l.safetensors": [["apply", "x.npy", "y.npy", "--layer={}"]],
    "layer.json": [["apply", "x.npy", "y.npy", "--config={}"], ["explain", "--shape=6,4,5", "--config={}"]],
}


def damaged(data, dice):
    """The bytes of a file with a few changes: bits, pieces dropped, doubled or overwritten, or an end cut off."""
    data = bytearray(data)
    for _ in range(dice.choice([1, 1, 1, 2, 4])):
        place = dice.randrange(len(data) + 1)
        match dice.choice(["flip", "flip", "byte", "drop", "double", "cut", "zeros", "number"]):
            case "flip" if place < len(data):
                data[place] ^= 1 << dice.randrange(8)
            case "byte" if place < len(data):
                data[place] = dice.choice([0, 1, 127, 128, 255, 10, 48, 57])
            case "drop":
                del data[place : place + dice.choice([1, 2, 8, 100])]
            case "double":
                data[place:place] = data[place : place + dice.choice([1, 8, 100])]
            case "cut":
                del data[place:]
            case "zeros":
                data[place : place + 16] = bytes(16)
            case "number":
                data[place : place + 4] = dice.choice([0, 2**31 - 1, 2**31, 2**32 - 1, 2**16]).to_bytes(4, "little")
    return bytes(data)


def check_damaged(dice, folder):
    """A command on a damaged file; and a layer that loads from one is the layer that was saved."""
    name = dice.choice([one for one in sorted(READ) if (folder / one).exists()])
    whole = (folder / name).read_bytes()
    data = damaged(whole, dice)
    target = folder / f"damaged{Path(name).suffix}"
    target.write_bytes(data)
    try:
        status = check([word.format(target.name) for word in dice.choice(READ[name])], folder)
        if name in {"l.npz", "l.safetensors"} and data != whole:
            with pytest.raises(gn.errors.FileError):
                gn.load(target)
            with pytest.raises(gn.errors.FileError):
                gn.load(io.BytesIO(data))
    finally:
        target.unlink()
    return status


# ---------------------------------------------------------------------------------------------------------- the running


@pytest.fixture
def folder(tmp_path, monkeypatch):
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    inputs(prepared)
    work = tmp_path / "work"
    monkeypatch.chdir(tmp_path)

    def renewed():
        os.chdir(tmp_path)
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(prepared, work)
        os.chdir(work)
        return work

    return renewed


def seeds(seconds):
    """The seeds of the examples of every run, and then new ones for so many seconds."""
    given = os.environ.get("GENNORM_FUZZ_SEED")
    if given is not None:
        yield int(given)
        return
    yield from range(EXAMPLES)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield random.SystemRandom().randrange(EXAMPLES, 10**12)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of NumPy and Pillow, for damaged headers
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["command lines", "damaged files"])
def test_fuzz(kind, folder, request):
    statuses = dict.fromkeys(STATUSES, 0)
    for number, seed in enumerate(seeds(request.config.getoption("--fuzz-seconds") / 2)):
        if number % 20 == 0:
            here = folder()
        dice = random.Random(seed)
        try:
            status = check(command_line(dice), here) if kind == "command lines" else check_damaged(dice, here)
        except BaseException as error:
            error.add_note(f"GENNORM_FUZZ_SEED={seed}")
            raise
        statuses[status] += 1
        for name in ("y.npy", "y.npz", "y.png", "y.jpg", "out.npz", "out.safetensors"):
            Path(name).unlink(missing_ok=True)
    assert sum(statuses.values()) == 1 or (statuses[0] and statuses[1]), statuses  # else it tries nothing


def test_every_byte_of_an_archive(folder):
    """Every byte of a small archive of arrays, flipped: an error that names it, or the arrays that were there."""
    folder()
    np.savez("small.npz", a=np.arange(6.0).reshape(2, 3))
    whole = Path("small.npz").read_bytes()
    for place in range(len(whole)):
        Path("bad.npz").write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        check(["apply", "bad.npz", "out.npz", "--preset=layer_norm"], Path.cwd())
        Path("out.npz").unlink(missing_ok=True)


def test_the_fuzz_finds_a_fault(folder, monkeypatch):
    """A command that raises, or that leaves a part of a file, is noticed."""
    here = folder()
    monkeypatch.setattr("gennorm.cli.apply.read_npy", lambda _: 1 / 0)
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        check(["apply", "x.npy", "y.npy"], here)
    monkeypatch.undo()
    os.chdir(here)
    monkeypatch.setattr(files, "_remove", lambda _: None)
    monkeypatch.setattr("gennorm.cli.apply.stream", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(AssertionError):
        check(["apply", "x.npy", "y.npy"], here)


def test_archives_of_the_fuzz_are_archives(folder):
    folder()
    for name in ("z.npz", "zc.npz", "l.npz"):
        with zipfile.ZipFile(name) as archive:
            assert archive.testzip() is None
