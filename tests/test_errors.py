"""Every error text in full, once: tests/errors.txt is the table, and covers each place that raises.

An entry of the table is an expression behind `>>>`, evaluated with the names of `NAMES`; the line with the code and the
class of the error; and its complete text. A module whose errors are in the table is listed in `MODULES`.
"""

import ast
import contextlib
import copy
import errno
import io
import json
import os
import pickle
import re
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import gennorm as gn
from gennorm import definition, drawing, elsewhere, errors, extend, masks, presets, searching, zoo
from gennorm.drawing import cubes
from gennorm.engine import memory
from gennorm.engine import threads as threads_
from gennorm.errors import GennormError, point, suggest
from gennorm.layer import adapting, arrays, derivatives, files, hints, parameters, pictures, statistics
from gennorm.layer import layer as layers
from gennorm.spec import axes, brackets, config, levels, names
from tests.error_tables import ErrorTable, constants, makers

MODULES: list[ModuleType] = [
    definition,
    *(levels, axes, names, brackets, config, masks, statistics, adapting, files, hints, presets),
    *(layers, arrays, parameters, derivatives, memory, threads_, extend, elsewhere, searching, zoo),
    *(drawing, cubes, pictures),
]
# Modules whose texts are asserted in tests of their own.
ELSEWHERE = ["test_moments.py"]
PACKAGE = Path(gn.__file__).parent
DROP = object()


def moments_of(data, config, **arguments):
    layer = gn.NormalizationLayer.from_config({**config.to_dict(), "statistics": "dataset"})
    return adapting.moments_of(data, config, measure=layer._measure_all, **arguments)


def scaling(value):
    return levels.parse(value, argument="scaling_levels")


def at(spec, rank, batched=False):
    return levels.resolve(levels.parse(spec), rank, batched=batched)


def layer(shape, *args, **settings):
    return config.resolve_config(config.LayerConfig.make(*args, **settings), shape)


def named(*args, input_levels="channel height width", shape=(3, 4, 5), **settings):
    """A config with names of levels, resolved for an array of a shape, or for its parameters."""
    made = config.LayerConfig.make(*args, input_levels=input_levels, **settings)
    return config.parameter_shape(made) if shape is None else config.resolve_config(made, shape)


def stored(**changes):
    """The default layer from its stored config, with these keys changed or dropped."""
    written = config.LayerConfig.make().to_dict() | changes
    return config.LayerConfig.from_dict({key: value for key, value in written.items() if value is not DROP})


@contextlib.contextmanager
def empty_folder():
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def save(path, folder=None):
    """Save the default layer in an empty folder, or in one that has this folder in it."""
    with empty_folder():
        if folder is not None:
            Path(folder).mkdir()
        gn.NormalizationLayer().save(path)


def load(path, data=None, folder=None):
    """Load a layer from an empty folder, or from one with this file or folder in it."""
    with empty_folder():
        if folder is not None:
            Path(folder).mkdir()
        if data is not None:
            Path(path).write_bytes(data)
        gn.load(path)


def file(arrays=None, config=None, **header):
    """The file of a batch norm of two channels, with something changed in it."""
    with empty_folder():
        gn.batch_norm(2).save("layer.npz")
        text, stored = files._from_npz(Path("layer.npz"), Path("layer.npz").read_bytes())
    written = json.loads(text) | header
    written["config"] |= config or {}
    stored |= arrays or {}
    return files._to_npz(json.dumps(written), {name: value for name, value in stored.items() if value is not DROP})


def archive(*, compressed=False, **arrays):
    """An archive that layer.save did not write."""
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **arrays)
    return stream.getvalue()


def tensors(more=b"", **header):
    """The bytes of a .safetensors file whose header has these entries, None to leave one out, and more bytes."""
    from safetensors.numpy import save

    written = {"format": files.FORMAT, "version": files.VERSION, "config": {}, "arrays": []} | header
    text = json.dumps({key: value for key, value in written.items() if value is not None})
    return save({}, {files.HEADER: text}) + more


def failing_read(call, *args):
    """Call while no archive can be opened."""

    def failing(*_):
        raise OSError(errno.EIO, "Input/output error")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.zipfile, "ZipFile", failing)
        call(*args)


def special(path, call):
    """Call with a path that is a named pipe."""
    with empty_folder():
        os.mkfifo(path)
        call(path)


class FullDevice:
    """A file object whose device fails."""

    name = "the device"

    def write(self, _):
        raise OSError(errno.ENOSPC, "No space left on device")

    def read(self):
        raise OSError(errno.EIO, "Input/output error")


def full_disk(call, *args):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        call(*args)


def without(module, call, *args):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module, None)
        call(*args)


def overlapping():
    """An input and an output in one buffer, of which they share a part."""
    buffer = np.zeros(9)
    gn.layer_norm(3)(buffer[:6].reshape(2, 3), out=buffer[3:].reshape(2, 3))


def into_its_scaling():
    layer = gn.NormalizationLayer(1, "All", input_shape=(2, 3), dtype="float64")
    layer(np.zeros((2, 3)), out=layer.scaling)


NAMES = {
    **{name: getattr(module, name) for module in MODULES for name in module.__all__},
    "gn": gn,
    "extend": extend,
    "Moments": gn.Moments,
    "save": save,
    "load": load,
    "file": file,
    "full_disk": full_disk,
    "archive": archive,
    "tensors": tensors,
    "failing_read": failing_read,
    "special": special,
    "FullDevice": FullDevice,
    "io": io,
    "without": without,
    "overlapping": overlapping,
    "into_its_scaling": into_its_scaling,
    "np": np,
    "make": config.LayerConfig.make,
    "scaling": scaling,
    "at": at,
    "layer": layer,
    "levels": levels,
    "named": named,
    "names": names,
    "stored": stored,
    "moments_of": moments_of,
    "DROP": DROP,
}


TABLE = ErrorTable(Path(__file__).parent / "errors.txt", NAMES, MODULES)
ENTRIES = TABLE.entries


@TABLE.each_entry
def test_text(entry):
    TABLE.check_text(entry)


@TABLE.each_entry
def test_manner(entry):
    """What is wrong first; a text that is pointed into; what to write last, and no sentence ends with a full stop."""
    lines = entry.text.split("\n")
    assert 2 <= len(lines) <= 4
    assert all(len(line) <= 120 and line == line.rstrip() for line in lines)
    assert not any(line.endswith(".") for line in lines)
    assert len(lines) in {2, 4}
    if len(lines) == 4:
        assert re.fullmatch(r' {4}".*"', lines[1])
        assert re.fullmatch(r" {5,}\^+", lines[2])
        assert len(lines[2]) <= len(lines[1])


@TABLE.each_module
def test_table_has_every_code(module):
    missing = constants(Path(module.__file__).read_text(encoding="utf-8")) - TABLE.codes
    assert not missing, f"codes without an entry in {TABLE.path.name}: {sorted(missing)}"


@TABLE.each_module
def test_table_reaches_every_place_that_raises(module):
    TABLE.check_places(module)


def test_table_has_no_code_that_is_not_raised():
    assert TABLE.codes <= TABLE.raised_codes()


def test_every_code_of_the_package_is_in_a_table():
    texts = [(TABLE.path.parent / name).read_text(encoding="utf-8") for name in ELSEWHERE]
    tested = TABLE.codes.union(*map(constants, texts))
    sources = {path.relative_to(PACKAGE): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.glob("*.py"))}
    missing = {str(path): sorted(constants(source) - tested) for path, source in sources.items()}
    assert not any(missing.values()), {path: codes for path, codes in missing.items() if codes}


# The same text is raised at more than one place.
SHARED = {"C004", "P101", "P103", "S010"}


def places(source: str, where: str) -> set[tuple[str, str]]:
    """(code, function) for every error that a source makes with a constant code."""
    found = set()
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.keyword) and node.arg == "code" and isinstance(node.value, ast.Constant):
                    found.add((node.value.value, f"{where}: {function.name}"))
    return found


def test_one_code_for_one_text():
    """A code is raised by one function of one module, so that it has one meaning."""
    raised: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for code, place in places(path.read_text(encoding="utf-8"), path.relative_to(PACKAGE).as_posix()):
            raised.setdefault(code, set()).add(place)
    assert not {code: found for code, found in raised.items() if len(found) > 1 and code not in SHARED}


def test_codes_do_not_differ_by_module():
    """Nor is a code that is passed to a helper the code of another module."""
    modules: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for code in constants(path.read_text(encoding="utf-8")):
            modules.setdefault(code, set()).add(path.relative_to(PACKAGE).as_posix())
    known = SHARED | {"L103", "I011"}  # the command line adds a line to the first, the estimator recognizes the second
    assert not {code: found for code, found in modules.items() if len(found) > 1 and code not in known}


# What is wrong with a call that was given `out`; `x` is (2, 3) zeros of float64, like `out`.
REFUSED = """\
gn.NormalizationLayer()(x, out=out)
gn.NormalizationLayer(input_shape=(2, 4))(x, out=out)
gn.NormalizationLayer(scaling=[1, 2, 3])(x, out=out)
gn.NormalizationLayer(3, ())(x, out=out)
gn.NormalizationLayer(2, (), 2)(x, out=out)
gn.NormalizationLayer(2, (), unbiased=True)(x[:, :1], out=out[:, :1])
gn.layer_norm(3)([[1.0]], out=out)
gn.layer_norm(3)([x], out=out)
gn.layer_norm(3)(x + 0j, out=out)
gn.layer_norm(3)(x.astype(object), out=out)
gn.layer_norm(3)(x.astype("float32"), out=out)
gn.layer_norm(3)(x[:1], out=out)
gn.layer_norm(3)(x, mask=[True], out=out)
gn.layer_norm(3)(x, mask=x, out=out)
gn.layer_norm(3)(x, mask=x[:, :2] == 0, out=out)
gn.layer_norm(3)(x, scaling=[1, 2], out=out)
gn.layer_norm(3)(x, biases=np.ones((2, 3)), out=out)
gn.layer_norm(3)(x, biases=["a", "b", "c"], out=out)
gn.layer_norm(3)(out, out=out[::-1])
gn.layer_norm(3)(out[:, ::-1], out=out)
gn.layer_norm(3, dtype="float64")(x, scaling=out[0], out=out)
gn.normalize(x, 3, out=out)
gn.normalize(x, 2, unbiased=True, method="RMS", out=out)
gn.layer_norm(3).apply(x, 5, out=out)
gn.layer_norm(3).apply(x, gn.Moments(1, None, 1), out=out)
gn.layer_norm(3).apply(x, gn.Moments(np.ones(3), 0, 1), out=out)
gn.layer_norm(3).inverse(x, out=out)
gn.layer_norm(3, scaling=[1, 0, 1]).inverse(x, gn.Moments(1, 0, 1), out=out)
gn.layer_norm(3).inverse(x, gn.Moments(np.ones(3), 0, 1), out=out)
gn.feature_norm()(x, out=out)
gn.feature_norm(mean=[1, 2], variance=1)(x, out=out)
gn.batch_norm(2)(x, out=out)
gn.batch_norm(3, unbiased=True)(x[:1], training=True, out=out[:1])
"""


@pytest.mark.parametrize("call", REFUSED.strip().split("\n"))
def test_an_error_leaves_the_output_untouched(call):
    out = np.frombuffer(bytes(range(48)), np.float64).reshape(2, 3).copy()
    x = np.zeros((2, 3))
    with pytest.raises(GennormError):
        eval(call, {"gn": gn, "np": np, "x": x, "out": out})
    assert out.tobytes() == bytes(range(48))
    assert not x.any()


def test_no_entry_twice():
    assert len({entry.trigger for entry in ENTRIES}) == len(ENTRIES)


def test_codes_and_places_are_found():
    source = 'def f(x):\n    if x:\n        raise g("L123")\n    return ShapeError("text S1234", code="S001")\n'
    assert constants(source) == {"L123", "S001"}
    assert makers(source) == {3, 4}


# -------------------------------------------------------------------------------------------------------- the classes

CLASSES = [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_errors_travel(kind, protocol):
    """An error of a worker process reaches the parent as it is, notes included."""
    error = kind("a text\nof two lines", code="L101", position=(2, 5))
    error.add_note("in worker 3")
    for twin in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is kind
        assert str(twin) == "a text\nof two lines [L101]"
        assert twin.message == "a text\nof two lines"
        assert (twin.code, twin.position, twin.__notes__) == ("L101", (2, 5), ["in worker 3"])


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_is_a_builtin_too(kind):
    assert issubclass(kind, GennormError)
    builtins = {
        errors.DtypeError: TypeError,
        errors.InputError: TypeError,
        errors.TensorError: RuntimeError,
        errors.UnknownNameError: AttributeError,
    }
    assert kind is GennormError or issubclass(kind, builtins.get(kind, ValueError))
    with pytest.raises(TypeError, match="code"):
        kind("a text")


# ------------------------------------------------------------------------------------------------------------ pointing


@pytest.mark.parametrize(
    ("text", "start", "stop", "drawn"),
    [
        ("2;;5", 3, 4, '    "2;;5"\n        ^'),
        ("2;;5", 1, 3, '    "2;;5"\n      ^^'),
        ("2;;5", 1, None, '    "2;;5"\n      ^'),
        ("2;;5", 4, 4, '    "2;;5"\n         ^'),
        ("", 0, 0, '    ""\n     ^'),
        ("\t1", 1, 2, '    "\\t1"\n       ^'),
        ("1\n", 1, 2, '    "1\\n"\n      ^^'),
        ("日1", 1, 2, '    "\\u65e51"\n           ^'),
        ("e\u0301x", 2, 3, '    "e\\u0301x"\n            ^'),
        ("é−x", 2, 3, '    "é−x"\n       ^'),
    ],
)
def test_point(text, start, stop, drawn):
    assert point(text, start, stop) == drawn


def test_suggest():
    assert suggest("all", ["All", "Same"]) == '; did you mean "All"?'
    assert suggest("Complment", ["All", "Same", "Complement"]) == '; did you mean "Complement"?'
    assert suggest("x", ["All"]) == suggest("", ["All"]) == ""
