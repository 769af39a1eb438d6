"""The command line: what it prints, what it writes, with which status it ends, and what it leaves when it fails."""

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import gennorm as gn
from gennorm.cli import apply as applying
from gennorm.cli import demo, files, pictures
from gennorm.cli.app import EXAMPLES, app
from gennorm.cli.options import Preset
from gennorm.drawing.characters import in_characters
from gennorm.layer import pictures as layer_pictures
from gennorm.spec.config import LayerConfig

ROOT = Path(gn.__file__).resolve().parents[1]


def run(*arguments, status=0):
    """Run a command, and see how it ends."""
    result = CliRunner().invoke(app, list(map(str, arguments)), prog_name="gennorm", env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, result.output
    return result


def failure(*arguments):
    """The message of a command that ends with status 1, without the code at its end; it prints nothing else."""
    result = run(*arguments, status=1)
    assert result.stdout == ""
    return message(result.stderr)


def message(stderr):
    """The message on standard error, without the code at its end."""
    assert stderr.startswith("gennorm: ")
    found = re.fullmatch(r"gennorm: (.*) \[[A-Z]\d{3}\]\n", stderr, re.DOTALL)
    assert found, stderr
    return found[1]


def misuse(*arguments):
    """What a command line that is wrong in itself is told, without the frame around it."""
    result = run(*arguments, status=2)
    assert result.stdout == ""
    return " ".join(re.findall(r"│ (.*?) *│", result.stderr))


def process(*arguments, before="", **keywords):
    """Run the command line in a process of its own, after some Python."""
    script = f"import sys\n{before}\nfrom gennorm.cli import main\nmain()"
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
        **keywords,
    )


def random(shape, dtype="float32", order="C"):
    values = np.random.default_rng(0).normal(3, 2, shape)
    return np.asarray(values if np.dtype(dtype).kind == "f" else values * 10, order=order).astype(dtype, order=order)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def chunks(monkeypatch):
    """Small chunks, and the list of those that are read and written."""
    seen = []
    rows = files.NpyFile.rows

    def counted(self, lo, hi, mode="r"):
        seen.append((mode, lo, hi))
        return rows(self, lo, hi, mode)

    monkeypatch.setattr(applying, "CHUNK", 1 << 12)
    monkeypatch.setattr(files.NpyFile, "rows", counted)
    return seen


# ------------------------------------------------------------------------------------------------------------ the door


@pytest.mark.parametrize(
    ("module", "arguments"),
    [("typer", []), ("rich", ["presets"]), ("PIL", ["demo"]), ("matplotlib", ["demo"])],
)
def test_without_the_extra(module, arguments, tmp_path):
    # find_spec raises on a module that is None, and a path without it is what an installation without it has.
    before = f"""
import importlib.abc
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == {module!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""
    result = process(*arguments, before=before, cwd=tmp_path)
    line = f"gennorm: this command needs {module}, which is not installed: pip install 'gennorm[cli]'\n"
    assert (result.returncode, result.stdout, result.stderr) == (1, "", line)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_extra_is_not_a_missing_one():
    result = process(before="sys.modules['gennorm.cli.options'] = None")
    assert result.returncode == 1
    assert "ModuleNotFoundError: import of gennorm.cli.options halted" in result.stderr
    assert "pip install" not in result.stderr


def test_importing_the_package_is_light():
    script = (
        "import sys, gennorm.cli; print(*[name for name in ('typer', 'rich', 'PIL', 'numba') if name in sys.modules])"
    )
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=300)
    assert result.stdout == "\n"


def test_version_and_module():
    assert run("--version").stdout == f"gennorm {gn.__version__}\n"
    command = [sys.executable, "-m", "gennorm", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=300)
    assert result.stdout == f"gennorm {gn.__version__}\n"


@pytest.mark.parametrize("command", [[], ["demo"], ["apply"], ["explain"], ["draw"], ["presets"]])
def test_help_teaches(command):
    text = run(*command, "--help").stdout
    usage, _, rest = text.strip().partition("\n")
    assert usage.startswith("Usage: gennorm")
    assert f" gennorm {' '.join(command or ['demo'])}" in rest


def test_no_command_is_help():
    assert "explain" in run(status=2).output


@pytest.mark.parametrize("command", ["apply", "draw", "explain"])
def test_examples_of_the_help_run(command, folder):
    """The examples are commands: they run on files of their names."""
    np.save("x.npy", random((4, 64, 8, 8)))
    for name in ("a", "b", "more", "pictures", "z"):
        np.save(f"{name}.npy", random((4, 64, 8, 8)))
    for name in ("all", "c"):
        np.savez(f"{name}.npz", a=random((2, 8)))
    gn.feature_norm().adapt(random((3, 8))).save("layer.npz")
    Image.fromarray(random((20, 16, 3), "uint8")).save("a.jpg")
    Path("layer.json").write_text(json.dumps(gn.NormalizationLayer(-1, "Same").to_config()))
    (found,) = [info for info in app.registered_commands if (info.name or info.callback.__name__) == command]
    lines = re.findall(r"\[cyan\]gennorm (.*?)\[/cyan\]", found.help)
    assert len(lines) >= 3
    for line in lines:
        run(*[part.strip('"') for part in re.findall(r'"[^"]*"|\S+', line)])


# ------------------------------------------------------------------------------------------------------------- explain

BATCH_LAST, BATCH_LAST_4 = (gn.batch_norm(size, channel_level=-1, statistics="input") for size in (64, 4))
LAYERS = [
    (["--preset", "batch_norm"], (8, 64, 6), gn.batch_norm(64, statistics="input")),
    (["--preset", "batch_norm", "--channel-level", "-1"], (8, 6, 64), BATCH_LAST),
    (["--preset", "instance_norm", "--channel-level", "2"], (8, 6, 64), gn.instance_norm(64, channel_level=2)),
    (["--preset", "instance_norm", "--example"], (64, 6, 6), gn.instance_norm(64, batched=False)),
    (["--preset", "instance_norm", "--channel-level", "2", "--example"], (6, 64, 6), None),
    (["--preset", "group_norm", "--groups", "32"], (8, 64, 6, 6), gn.group_norm(32, 64)),
    (["--preset", "layer_norm"], (8, 768), gn.layer_norm(768)),
    (["--preset", "layer_norm", "--trailing", "2", "--batched"], (8, 4, 6), gn.layer_norm((4, 6), batched=True)),
    (["--preset", "rms_norm", "--epsilon", "0.5", "--placement", "outside"], (8, 768), None),
    ([], (3, 8, 8), gn.NormalizationLayer()),
    (["--aggregate", "{0, 2}", "--scale", "1", "--batched"], (4, 6, 8), None),
    (["--aggregate", "-1", "--scale", "{}", "--unbiased"], (4, 6, 8), None),
    (["--aggregate", "2;;All", "--groups", "2=4,3=2", "--method", "rms"], (3, 8, 8), None),
    (["--aggregate", "2", "--groups", "4"], (3, 8, 8), gn.NormalizationLayer(2, group_number=4)),
    (["--aggregate", "2;;All", "--groups", "4, 2"], (3, 8, 8), gn.NormalizationLayer(group_number=(4, 2))),
    (
        ["--aggregate", "h,w", "--scale", "c", "--groups", "h=2, 3=4", "--input-levels", "b c h w"],
        (2, 3, 8, 8),
        gn.NormalizationLayer("{h, w}", "c", {"h": 2, "w": 4}, input_levels="b c h w"),
    ),
    (
        ["--preset", "layer_norm", "--input-levels", "token feature"],
        (3, 8),
        gn.layer_norm(8, input_levels="token feature"),
    ),
    (
        ["--preset", "instance_norm", "--channel-level", "-1", "--input-levels", "h w c"],
        (2, 5, 6, 3),
        gn.instance_norm(3, channel_level="c", input_levels="h w c"),
    ),
]
WRITTEN = {
    4: gn.instance_norm(64, channel_level=2, batched=False),
    8: gn.rms_norm(768, epsilon=0.5, epsilon_placement="outside"),
    10: gn.NormalizationLayer("{0, 2}", 1, batched=True),
    11: gn.NormalizationLayer(-1, (), unbiased=True),
    12: gn.NormalizationLayer(group_number={2: 4, 3: 2}, method="RMS"),
}
LAYERS = [(options, shape, layer or WRITTEN[i]) for i, (options, shape, layer) in enumerate(LAYERS)]


@pytest.mark.parametrize(("options", "shape", "layer"), LAYERS)
def test_explain(options, shape, layer):
    text = run("explain", "--shape", ",".join(map(str, shape)), *options).stdout
    plan = layer.plan(shape)
    cubes = layer_pictures.described(LayerConfig.from_dict(layer.to_config()), plan.resolved.shape)
    assert text == f"{layer!r}\n\n{plan}\n\n{in_characters(cubes)}\n"


def test_explain_what_cannot_be_drawn():
    for shape in ("2,2,2,2,2,2,2,2,2", "3,0"):
        text = run("explain", "--shape", shape, "--aggregate", "-1").stdout
        layer = gn.NormalizationLayer(-1)
        assert text == f"{layer!r}\n\n{layer.plan(tuple(map(int, shape.split(','))))}\n"


def test_explain_dtype_and_shapes():
    layer = gn.NormalizationLayer(-1, "Same")
    for dtype in ("float16", "bfloat16", "uint8", "float64"):
        text = run("explain", "--aggregate", "-1", "--scale", "Same", "--dtype", dtype, "--shape", "(4, 8)").stdout
        assert f"array      {dtype} (4, 8), one example" in text
    assert str(layer.plan((4, 8), np.float64)) in text


def test_explain_config(folder):
    layer = gn.group_norm(2, 8, epsilon=0.25)
    Path("layer.json").write_text(json.dumps(layer.to_config()), encoding="utf-8")
    text = run("explain", "--config", "layer.json", "--shape", "3,8,5").stdout
    assert text.startswith(f"{layer!r}\n\n{layer.plan((3, 8, 5))}\n\nslices     3 x 4 x 5 elements")


def test_explain_json():
    text = run("explain", "--shape", "8,6,4", "--dtype", "float16", "--preset", "group_norm", "--groups", "2", "--json")
    found = json.loads(text.stdout)
    layer = gn.group_norm(2, 6)
    plan = layer.plan((8, 6, 4), np.float16)
    assert found.pop("layer") == layer.to_config()
    assert found.pop("text") == str(plan)
    assert found.pop("runs") == [
        {"size": run.size, "role": "aggregated" if run.aggregated else "kept", "axes": list(run.axes)}
        for run in plan.runs
    ]
    assert found.pop("tasks") == plan.tasks
    assert found == {
        "format": "gennorm/plan",
        "version": 1,
        "repr": "NormalizationLayer('All', 1, {1: 2}, input_shape=(6, ...), batched=True)",
        "shape": [8, 6, 4],
        "dtype": "float16",
        "result": "float16",
        "compute": "float32",
        "batched": True,
        "aggregation": [
            {"level": 1, "axis": 1, "name": "level 1 (axis 1)", "size": 6, "groups": 2},
            {"level": 2, "axis": 2, "name": "level 2 (axis 2)", "size": 4, "groups": 1},
        ],
        "scaling": [{"level": 1, "axis": 1, "name": "level 1 (axis 1)", "size": 6}],
        "slices": 16,
        "slice_size": 12,
        "parameter_shape": [6],
        "moments_shape": [8, 2],
        "kernel": plan.family,
        "copies": "nothing",
        "reads": 1,
        "bytes_read": 384,
        "bytes_written": 384,
    }


def test_errors_of_the_layer_are_shown_whole():
    assert failure("explain", "--shape", "3,4", "--aggregate", "2;;al") == (
        'unknown word "al" in aggregation_levels; did you mean "All"?\n'
        '    "2;;al"\n'
        "        ^^\n"
        'a level spec is a level (2), a span ("2;;All"), a list ("{1, 3;;4}") or "All"'
    )
    assert failure("explain", "--shape", "3,4", "--aggregate", "{1, 0}") == (
        "aggregation_levels has level 0, the batch, and the first axis of an array of shape (3, 4) is not declared as "
        "the batch\n"
        '    "{1, 0}"\n'
        "         ^\n"
        "pass batched=True, or declare the input_shape of one example\n"
        "on the command line, batched=True is --batched"
    )
    assert failure("explain", "--shape", "8,64,7", "--preset", "group_norm", "--groups", "5") == (
        "level 1 of size 64 cannot be split into 5 groups of equal size\ngroup_number has to divide 64, as 4 does"
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--preset", "group_norm"], "'--groups': group_norm takes one group number: --groups 32"),
        (["--preset", "group_norm", "--groups", "1=2"], "'--groups': group_norm takes one group number: --groups 32"),
        (["--groups", "many"], """'--groups': "many" is not a group number; write 32, or 8,8, or 1=8,2=8"""),
        (["--groups", "1=2=3"], """'--groups': "1=2=3" is not a group number; write 32, or 8,8, or 1=8,2=8"""),
        (["--groups", "c=2"], """'--groups': "c=2" is not a group number; write 32, or 8,8, or 1=8,2=8"""),
        (["--groups", "1=2,1=3"], """'--groups': "1=2,1=3" has a level twice"""),
        (["--trailing", "2"], "'--trailing': it is for a --preset only, and none is given"),
        (
            ["--preset", "layer_norm", "--aggregate", "1"],
            "'--aggregate': it cannot be combined with --preset layer_norm, which does not take it",
        ),
        (
            ["--preset", "layer_norm", "--channel-level", "1"],
            "'--channel-level': it cannot be combined with --preset layer_norm, which does not take it",
        ),
        (
            ["--preset", "batch_norm", "--trailing", "1"],
            "'--trailing': it cannot be combined with --preset batch_norm, which does not take it",
        ),
        (
            ["--preset", "batch_norm", "--groups", "1"],
            "'--groups': it cannot be combined with --preset batch_norm, which does not take it",
        ),
        (
            ["--config", "layer.json", "--example"],
            "'--batched/--example': it cannot be combined with --config, which has every setting",
        ),
        (
            ["--preset", "rms_norm", "--trailing", "3"],
            "'--trailing': 3 levels, and the array of shape (3, 4) has 2 axes",
        ),
        (
            ["--preset", "batch_norm", "--channel-level", "0"],
            "'--channel-level': level 0 is the batch; channels are on 1 to the last level, or -1 and below",
        ),
        (["--dtype", "flot32"], """'--dtype': "flot32" is not a supported dtype; did you mean "float32"?"""),
    ],
)
def test_misuse(arguments, text):
    assert misuse("explain", "--shape", "3,4", *arguments) == f"Invalid value for {text}"


@pytest.mark.parametrize("shape", ["", "3x4", "3,,4", "-1", "3,4.0", "²"])
def test_misuse_of_shape(shape):
    expected = f"Invalid value for '--shape': \"{shape}\" is not a shape; "
    expected += "write the sizes with commas between them: 32,256,14,14"
    assert misuse("explain", f"--shape={shape}") == expected


def test_misuse_names_the_choices():
    assert "'batch_norm', 'layer_norm'" in misuse("explain", "--shape", "3", "--preset", "batchnorm")


def test_presets():
    text = run("presets").stdout
    for preset, sizes in EXAMPLES.items():
        layer = getattr(gn, preset)(*map(int, sizes.split(", ")))
        assert f"gn.{preset}({sizes}) " in text
        assert repr(layer) in text
    for name in gn.zoo.names():
        assert f"{gn.zoo.describe(name).example} " in text
    commands = re.findall(r"gennorm (explain --preset .*?) *\n", text)
    assert len(commands) == len(EXAMPLES) == len(Preset)
    for command in commands:
        run(*command.split())


# ---------------------------------------------------------------------------------------------------------------- draw


def test_draw_writes_the_picture_of_the_layer(folder):
    text = run("draw", "2;;All", "--shape", "3,4,4", "-o", "norm.svg").stdout
    assert text == "norm.svg: NormalizationLayer()\n"
    gn.NormalizationLayer().draw((3, 4, 4), "same.svg")
    assert Path("norm.svg").read_bytes() == Path("same.svg").read_bytes()
    options = ["--preset", "group_norm", "--groups", "2", "--shape", "3,4,4", "--labels", "N, C, L", "--dark"]
    run("draw", *options, "-o", "norm.png")
    gn.group_norm(2, 4).draw((3, 4, 4), "same.png", labels=["N", "C", "L"], dark=True)
    assert Path("norm.png").read_bytes() == Path("same.png").read_bytes()
    text = failure("draw", "1", "--shape", "3,4", "-o", "norm.jpg")
    assert text.startswith("norm.jpg cannot be the file of a picture")
    text = failure("draw", "1", "--shape", "3,4", "--labels", "C")
    assert text.startswith("labels has 1 name, and an array of shape")


def test_draw_in_characters_is_what_the_page_shows():
    page = (ROOT / "docs" / "drawing.md").read_text(encoding="utf-8")
    shown = re.findall(r"```text\n\$ gennorm (draw .*?)\n(.*?)```", page, re.DOTALL)
    assert len(shown) == 1
    for command, text in shown:
        assert run(*command.split()).stdout == text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["1", "--aggregate", "2"], "'LEVELS': it cannot be combined with --aggregate, which is the same"),
        (["--dark"], "'--dark': it is for a picture: give -o FILE"),
        (
            ["1", "--preset", "layer_norm"],
            "'--aggregate': it cannot be combined with --preset layer_norm, which does not take it",
        ),
    ],
)
def test_misuse_of_draw(arguments, text):
    assert misuse("draw", *arguments, "--shape", "3,4") == f"Invalid value for {text}"


# ----------------------------------------------------------------------------------------------------- apply: one array


@pytest.mark.parametrize(
    ("options", "shape", "layer"),
    [
        (["--preset", "layer_norm"], (300, 50), gn.layer_norm(50)),
        (["--preset", "layer_norm", "--trailing", "2"], (60, 7, 30), gn.layer_norm((7, 30))),
        (["--preset", "rms_norm", "--batched"], (60, 7, 30), gn.rms_norm(30, batched=True)),
        (["--preset", "instance_norm"], (50, 3, 9, 9), gn.instance_norm(3)),
        (["--preset", "instance_norm", "--channel-level", "-1"], (50, 9, 9, 3), gn.instance_norm(3, channel_level=-1)),
        (["--preset", "group_norm", "--groups", "2"], (50, 4, 9, 9), gn.group_norm(2, 4)),
        (["--aggregate", "2", "--batched"], (50, 8, 9, 4), gn.NormalizationLayer(2, batched=True)),
        (["--aggregate", "3"], (50, 8, 9, 4), None),
        (["--aggregate", "3", "--scale", "{}"], (50, 8, 9, 4), gn.NormalizationLayer(3, ())),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "uint8", ">f4"])
def test_apply_streams_with_the_bits_of_the_whole(options, shape, layer, dtype, folder, chunks):
    x = random(shape, dtype)
    np.save("x.npy", x)
    layer = gn.NormalizationLayer(3).initialize(shape) if layer is None else layer.initialize(shape)
    y = layer(x)
    result = run("apply", "x.npy", "y.npy", *options)
    assert result.stdout == f"y.npy: {y.dtype.name} {shape}\n"
    np.testing.assert_array_equal(np.load("y.npy"), y, strict=True)
    np.testing.assert_array_equal(np.load("x.npy"), x, strict=True)
    assert sorted(path.name for path in folder.iterdir()) == ["x.npy", "y.npy"]
    read = [(lo, hi) for mode, lo, hi in chunks if mode == "r"]
    written = [(lo, hi) for mode, lo, hi in chunks if mode == "r+"]
    assert read == written
    if options[:2] == ["--aggregate", "3"] and "--scale" not in options:
        assert read == [(0, 50)]  # axis 0 is level 1, and has parameters
    else:
        assert len(read) > 3
        assert all((hi - lo) * x[0].nbytes <= 1 << 12 or hi - lo == 1 for lo, hi in read)
        assert [lo for lo, _ in read] == [0, *[hi for _, hi in read[:-1]]]


AGGREGATED = [
    (["--preset", "batch_norm"], (60, 4, 30), gn.batch_norm(4, statistics="input")),
    (["--preset", "batch_norm", "--channel-level", "-1"], (60, 30, 4), BATCH_LAST_4),
    (["--aggregate", "0;;All", "--batched"], (60, 4, 30), gn.NormalizationLayer("0;;All", batched=True)),
    (["--aggregate", "0", "--scale", "{}", "--unbiased", "--batched"], (61, 1200), None),
    (
        ["--aggregate", "{0, 2}", "--groups", "0=3,2=2", "--batched"],
        (60, 4, 30),
        gn.NormalizationLayer("{0, 2}", group_number={0: 3, 2: 2}, batched=True),
    ),
    (
        ["--aggregate", "{2, 0}", "--groups", "2,3", "--method", "RMS", "--batched"],
        (60, 4, 30),
        gn.NormalizationLayer("{2, 0}", group_number=(2, 3), method="RMS", batched=True),
    ),
    (
        ["--aggregate", "0", "--groups", "4", "--batched", "--epsilon", "0.1", "--placement", "floor"],
        (60, 4, 30),
        gn.NormalizationLayer(0, group_number=4, batched=True, epsilon=0.1, epsilon_placement="floor"),
    ),
]
AGGREGATED = [
    (options, shape, layer or gn.NormalizationLayer(0, (), unbiased=True, batched=True))
    for options, shape, layer in AGGREGATED
]


@pytest.mark.parametrize(("options", "shape", "layer"), AGGREGATED)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_apply_adds_moments_where_the_batch_is_aggregated(options, shape, layer, dtype, folder, chunks):
    x = random(shape, dtype)
    np.save("x.npy", x)
    y = layer.initialize(shape)(x)
    run("apply", "x.npy", "y.npy", *options)
    # The moments are float64, and what they are added from differs by the rounding of a few of their last bits.
    np.testing.assert_allclose(np.load("y.npy"), y, rtol=1e-6 if dtype == "float32" else 1e-12, atol=1e-12, strict=True)
    groups = layer.plan(shape).resolved.groups[0]
    read = [(lo, hi) for mode, lo, hi in chunks if mode == "r"]
    written = [(lo, hi) for mode, lo, hi in chunks if mode == "r+"]
    assert len(written) > groups
    assert sorted(read) == sorted(2 * written)
    assert len({*written}) == len(written)


def test_apply_has_the_bits_of_the_whole_where_it_fits(folder):
    x = random((60, 4, 30))
    np.save("x.npy", x)
    run("apply", "x.npy", "y.npy", "--preset", "batch_norm")
    np.testing.assert_array_equal(np.load("y.npy"), gn.batch_norm(4, statistics="input")(x), strict=True)


@pytest.mark.parametrize("dtype", ["float32", "float64", ">f8"])
@pytest.mark.parametrize("preset", ["instance_norm", "batch_norm"])
def test_apply_fortran_order(dtype, preset, folder, chunks):
    x = random((40, 3, 50), dtype, "F")
    np.save("x.npy", x)
    run("apply", "x.npy", "y.npy", "--preset", preset)
    y = np.load("y.npy")
    layer = getattr(gn, preset)(3, statistics="input")
    np.testing.assert_allclose(y, layer(x), rtol=0, atol=1e-6 if dtype == "float32" else 1e-13)
    assert y.flags.f_contiguous
    if x.dtype.isnative:
        np.testing.assert_array_equal(y, layer(x), strict=True)
        assert chunks == [("r", 0, 40), ("r+", 0, 40)]
    else:
        assert len(chunks) > 4


@pytest.mark.parametrize(
    ("shape", "aggregate"),
    [((0, 3, 4), "1"), ((0, 3, 4), "0;;All"), ((4, 3, 0), "0;;All"), ((4, 3, 0), "3"), ((1,), "1")],
)
def test_apply_nothing_to_do(shape, aggregate, folder):
    x = np.zeros(shape, "float32")
    np.save("x.npy", x)
    run(
        "apply",
        "x.npy",
        "y.npy",
        "--aggregate",
        aggregate,
        "--scale",
        "{}",
        *(["--batched"] if aggregate[0] == "0" else []),
    )
    np.testing.assert_array_equal(np.load("y.npy"), x, strict=True)


def test_apply_into_itself(folder, chunks):
    x = random((300, 50))
    np.save("x.npy", x)
    Path("x.npy").chmod(0o640)
    before = Path("x.npy").stat()
    run("apply", "x.npy", "x.npy", "--preset", "layer_norm")
    np.testing.assert_array_equal(np.load("x.npy"), gn.layer_norm(50)(x), strict=True)
    after = Path("x.npy").stat()
    assert after.st_mode == before.st_mode
    assert after.st_ino != before.st_ino  # another file under the name: readers of the old one go on reading it
    assert len(chunks) > 4


def test_apply_new_files_have_the_usual_permissions(folder):
    np.save("x.npy", random((3, 4)))
    run("apply", "x.npy", "y.npy", "--preset", "layer_norm")
    assert Path("y.npy").stat().st_mode == Path("x.npy").stat().st_mode


def test_apply_follows_a_link(folder):
    x = random((3, 4))
    np.save("x.npy", x)
    Path("there").mkdir()
    Path("y.npy").symlink_to(Path("there") / "z.npy")
    run("apply", "x.npy", "y.npy", "--preset", "layer_norm")
    assert Path("y.npy").is_symlink()
    np.testing.assert_array_equal(np.load("there/z.npy"), gn.layer_norm(4)(x), strict=True)


@pytest.mark.parametrize("dtype", ["float16", "float64", "float32"])
def test_apply_converts_first(dtype, folder, chunks):
    x = random((300, 50), "int16")
    np.save("x.npy", x)
    run("apply", "x.npy", "y.npy", "--preset", "layer_norm", "--dtype", dtype)
    np.testing.assert_array_equal(np.load("y.npy"), gn.layer_norm(50)(x.astype(dtype)), strict=True)


def test_apply_bfloat16(folder, chunks):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = random((300, 50)).astype(ml_dtypes.bfloat16)
    np.save("x.npy", x)
    run("apply", "x.npy", "y.npy", "--preset", "layer_norm", "--dtype", "bfloat16")
    np.testing.assert_array_equal(np.load("y.npy").view(x.dtype), gn.layer_norm(50)(x), strict=True)
    assert failure("apply", "x.npy", "z.npy", "--preset", "layer_norm") == (
        "the input has the dtype |V2, and only real numbers of up to 64 bits are normalized\n"
        "pass floats, integers of up to 64 bits or booleans"
    )
    assert not Path("z.npy").exists()


def test_apply_in_little_memory(tmp_path):
    """A file of 192 MiB goes through a process that grows by a fraction of it."""
    script = """
import resource, sys
import numpy as np
from gennorm.cli import apply, files
from gennorm.cli.app import app
def peak():
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
apply.CHUNK = 1 << 22
np.save("small.npy", np.ones((1 << 14, 1024), "f4")[:8192])
for preset in ("layer_norm", "batch_norm"):
    app(["apply", "small.npy", "y.npy", "--preset", preset], standalone_mode=False)
before = peak()
np.lib.format.open_memmap("x.npy", "w+", "f4", (192 << 8, 1024))
for preset in ("layer_norm", "batch_norm"):
    app(["apply", "x.npy", "y.npy", "--preset", preset], standalone_mode=False)
print((peak() - before) >> 20)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        timeout=300,
    )
    assert int(result.stdout.splitlines()[-1]) < 48


# ------------------------------------------------------------------------------------------- apply: what goes wrong


def directory(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def occupied(folder):
    """An input, an output that is there already, and all that the directory holds."""
    np.save("x.npy", random((300, 50)))
    Path("y.npy").write_bytes(b"what was there before")
    return directory(folder)


@pytest.mark.parametrize("call", [1, 4, 11])
@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (KeyboardInterrupt(), 130, "gennorm: interrupted\n"),
        (MemoryError("Unable to allocate 1 TiB"), 1, "gennorm: out of memory: Unable to allocate 1 TiB\n"),
        (MemoryError(), 1, "gennorm: out of memory: an array does not fit\n"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            1,
            "gennorm: y.npy cannot be written: No space left on device\nnothing has been written there [F008]\n",
        ),
        (gn.GennormError("in the middle", code="X000"), 1, "gennorm: in the middle [X000]\n"),
    ],
    ids=["interrupt", "memory", "memory-silent", "disk", "gennorm"],
)
@pytest.mark.parametrize("preset", ["layer_norm", "batch_norm"])
def test_failure_in_the_middle(preset, call, error, status, text, occupied, folder, chunks, monkeypatch):
    rows = files.NpyFile.rows

    def failing(self, lo, hi, mode="r"):
        if len(chunks) >= call:
            raise error
        return rows(self, lo, hi, mode)

    monkeypatch.setattr(files.NpyFile, "rows", failing)
    result = run("apply", "x.npy", "y.npy", "--preset", preset, status=status)
    assert len(chunks) == call
    assert (result.stdout, result.stderr) == ("", text)
    assert directory(folder) == occupied


def test_failure_at_the_end(occupied, folder, monkeypatch):
    def refused(self, target):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "replace", refused)
    text = failure("apply", "x.npy", "y.npy", "--preset", "layer_norm")
    assert text == "y.npy cannot be written: Permission denied\nnothing has been written there"
    assert directory(folder) == occupied


def test_programming_errors_are_not_hidden(occupied, folder, monkeypatch):
    monkeypatch.setattr(applying, "_divides", lambda *_: 1 / 0)
    monkeypatch.setattr(applying, "CHUNK", 1)
    with pytest.raises(ZeroDivisionError):
        run("apply", "x.npy", "y.npy", "--preset", "layer_norm")
    assert directory(folder) == occupied


@pytest.mark.parametrize(
    ("name", "status", "text"), [("SIGINT", 130, "gennorm: interrupted\n"), ("SIGTERM", 143, ""), ("SIGHUP", 129, "")]
)
def test_a_signal_ends_a_command_and_leaves_no_file(name, status, text, occupied, folder):
    """The command starts with the default handlers; behind `nohup` or `&` it would inherit ignored signals."""
    script = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from gennorm.cli import apply, files, main
apply.CHUNK = 1 << 12
rows = files.NpyFile.rows
def slow(self, lo, hi, mode="r"):
    if lo > 50:
        print("begun", flush=True)
        time.sleep(300)
    return rows(self, lo, hi, mode)
files.NpyFile.rows = slow
main()
"""
    command = [sys.executable, "-c", script, "apply", "x.npy", "y.npy", "--preset", "layer_norm"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as child:
        try:
            assert child.stdout.readline() == "begun\n"
            assert len(directory(folder)) == 3
            child.send_signal(getattr(signal, name))
            assert (child.communicate(timeout=120)[1], child.returncode) == (text, status)
        finally:
            child.kill()
    assert directory(folder) == occupied


def test_a_signal_that_is_ignored_stays_so():
    before = "import atexit, signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    before += "atexit.register(lambda: print(signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGTERM)))"
    assert re.fullmatch(r"gennorm .*\n1 <function .*>\n", process("--version", before=before).stdout)


def test_full_disk(occupied, folder):
    """A limit on the size of files ends a write as a full disk does, and before a map is touched."""
    before = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    result = process("apply", "x.npy", "y.npy", "--preset", "layer_norm", before=before)
    text = f"gennorm: y.npy cannot be written: {os.strerror(errno.EFBIG)}\nnothing has been written there [F008]\n"
    assert (result.returncode, result.stdout, result.stderr) == (1, "", text)
    assert directory(folder) == occupied


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the operating system reserves no space")
def test_space_is_reserved(folder):
    """A map of a file with holes ends the process when the disk is full: there are no holes."""
    file = files.create_npy(Path("y.npy"), (1 << 10, 1 << 10), np.dtype("f8"), fortran=False)
    assert Path("y.npy").stat().st_blocks * 512 >= file.nbytes


def test_space_that_cannot_be_reserved_is_written(folder, monkeypatch):
    def refused(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", refused)
    monkeypatch.setattr(files, "ZEROS", 1000)
    file = files.create_npy(Path("y.npy"), (7, 61), np.dtype("f8"), fortran=False)
    assert Path("y.npy").stat().st_size == file.offset + 7 * 61 * 8
    np.testing.assert_array_equal(np.load("y.npy"), np.zeros((7, 61)), strict=True)


def test_an_unreadable_input_is_reported_first(folder):
    text = failure("apply", "x.npy", "y.npy")
    assert text == "x.npy does not exist\ngive the path of an existing file"
    Path("x.npy").mkdir()
    assert failure("apply", "x.npy", "y.npy") == (
        "x.npy cannot be read: Is a directory\ngive the path of a readable file"
    )
    assert [path.name for path in folder.iterdir()] == ["x.npy"]


@pytest.mark.parametrize("names", [("x.txt", "y.npy"), ("x.npy", "y.pngg"), ("x", "y.npy")])
def test_unknown_suffixes(names, folder):
    wrong, what = {
        ("x.txt", "y.npy"): ("x.txt", "has the suffix .txt"),
        ("x.npy", "y.pngg"): ("y.pngg", 'has the suffix .pngg; did you mean ".png"?'),
        ("x", "y.npy"): ("x", "has no suffix"),
    }[names]
    assert failure("apply", *names) == (f"{wrong} {what}\narrays are .npy or .npz files, pictures .png, .jpg or .jpeg")


def test_kinds_do_not_mix(folder):
    assert failure("apply", "x.npy", "y.PNG") == (
        "x.npy is an array, and y.PNG would be a picture\nuse the same kind of file for both"
    )
    assert failure("apply", "x.npz", "y.npy") == (
        "x.npz is an archive of arrays, and y.npy would be an array\nuse the same kind of file for both"
    )


def npy(shape="(3, 4)", descr="'<f4'", more=""):
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}{more}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "x.npy is not a .npy file: it is empty\nnumpy.save writes such files"),
        (
            b"PK\x03\x04 and more",
            "x.npy is not a .npy file: it starts with b'PK\\x03\\x04 a', and a .npy file with b'\\x93NUMPY'\n"
            "numpy.save writes such files",
        ),
        (
            npy() + bytes(47),
            "x.npy is truncated: an array of shape (3, 4) and dtype float32 has 48 bytes, and the file has 47\n"
            "write or copy the file again",
        ),
        (
            npy()[:40],
            "x.npy has a header that cannot be read: EOF: reading array header, expected 58 bytes got 30\n"
            "write or copy the file again",
        ),
        (
            npy("(-3, 4)") + bytes(48),
            "x.npy has a header that cannot be read: it has the shape (-3, 4)\nwrite or copy the file again",
        ),
        (
            npy(descr="'nonsense'") + bytes(48),
            "x.npy has a header that cannot be read: descr is not a valid dtype descriptor: 'nonsense'\n"
            "write or copy the file again",
        ),
        (
            npy(descr="'|O'") + bytes(100),
            "x.npy contains Python objects (dtype object), which are never unpickled\n"
            "save an array of numbers: numpy.save(path, array.astype(float))",
        ),
        (
            npy(descr="'<c8'") + bytes(100),
            "the input has the dtype complex64, and only real numbers of up to 64 bits are normalized\n"
            "normalize x.real and x.imag, or np.abs(x)",
        ),
    ],
)
def test_foreign_and_truncated_arrays(content, text, occupied, folder):
    Path("x.npy").write_bytes(content)
    assert failure("apply", "x.npy", "y.npy", "--preset", "layer_norm") == text
    assert directory(folder) == {**occupied, "x.npy": content}


def test_complex_arrays_are_not_converted(folder):
    np.save("x.npy", np.ones((3, 4), complex))
    text = failure("apply", "x.npy", "y.npy", "--preset", "layer_norm", "--dtype", "float32")
    assert text == (
        "the input has the dtype complex128, and only real numbers of up to 64 bits are normalized\n"
        "normalize x.real and x.imag, or np.abs(x)"
    )
    assert [path.name for path in folder.iterdir()] == ["x.npy"]


def test_other_versions_and_alignments_of_the_header(folder, chunks):
    x = random((300, 50))
    for version in ((1, 0), (2, 0), (3, 0)):
        with Path("x.npy").open("wb") as stream:
            np.lib.format.write_array(stream, x, version)
        run("apply", "x.npy", "y.npy", "--preset", "layer_norm")
        np.testing.assert_array_equal(np.load("y.npy"), gn.layer_norm(50)(x), strict=True)
    content = npy("(300, 50)", more=", ")
    assert len(content) % 4
    Path("x.npy").write_bytes(content + x.tobytes())
    run("apply", "x.npy", "y.npy", "--preset", "layer_norm")
    np.testing.assert_array_equal(np.load("y.npy"), gn.layer_norm(50)(x), strict=True)


def test_unwritable_places(occupied, folder, chunks):
    for name, reason in [("nowhere/y.npy", "No such file or directory"), ("y.npy/y.npy", "Not a directory")]:
        text = failure("apply", "x.npy", name, "--preset", "layer_norm")
        assert text == f"{name} cannot be written: {reason}\nnothing has been written there"
    Path("z.npy").mkdir()
    text = failure("apply", "x.npy", "z.npy", "--preset", "layer_norm")
    assert text == "z.npy cannot be written: Is a directory\nnothing has been written there"
    Path("z.npy").rmdir()
    assert directory(folder) == occupied
    assert chunks == []  # it was said before the work was done


def test_config_files(folder):
    np.save("x.npy", random((3, 4)))
    path = Path("layer.json")
    arguments = ("apply", "x.npy", "y.npy", "--config", path)
    assert failure(*arguments) == "layer.json does not exist\ngive the path of an existing file"
    path.write_text('{"format": ')
    assert failure(*arguments) == (
        "layer.json is not JSON: line 1, column 12: Expecting value\nwrite it with json.dump(layer.to_config(), file)"
    )
    path.write_bytes(b"\xff\xff")
    assert failure(*arguments) == (
        "layer.json is not JSON: it is not text, or too deeply nested\nwrite it with json.dump(layer.to_config(), file)"
    )
    config = gn.NormalizationLayer(-1, "Same").to_config()
    path.write_text(json.dumps({**config, "colour": 1}))
    assert failure(*arguments) == (
        'layer.json: a layer\'s config has an unknown key "colour"\nits keys are those that to_config() writes'
    )
    path.write_text(json.dumps({**config, "statistics": "moving"}))
    assert failure(*arguments) == (
        'layer.json says statistics="moving", and a config has no moments\n'
        'give --layer the file of a layer with its moments, or write "statistics": "input"'
    )
    assert sorted(directory(folder)) == ["layer.json", "x.npy"]


# --------------------------------------------------------------------------------------------------------------- adapt


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("chunk", [1 << 10, 1 << 25])
def test_adapt(suffix, chunk, folder, monkeypatch):
    monkeypatch.setattr("gennorm.cli.adapt.CHUNK", chunk)
    monkeypatch.setattr(applying, "CHUNK", chunk)
    x, more = random((300, 4)) * 3 + 7, random((20, 4))
    np.save("x.npy", x)
    np.save("f.npy", np.asfortranarray(x))
    np.savez("more.npz", more)
    target = f"layer{suffix}"
    whole = np.concatenate([x, x, more]).astype(np.float64)
    result = run("adapt", "x.npy", "f.npy", "more.npz", target)
    assert result.stdout == f"{target}: moments (4,), each of 620 elements\n"
    layer = gn.load(target)
    np.testing.assert_allclose(layer.moments.mean, whole.mean(0), rtol=1e-6)
    np.testing.assert_allclose(layer.moments.variance(), whole.var(0), rtol=1e-6)
    run("adapt", "x.npy", target, "--layer", target)
    assert gn.load(target).moments.count.tolist() == [920] * 4

    layer = gn.load(target)
    run("apply", "x.npy", "z.npy", "--layer", target)
    np.testing.assert_array_equal(np.load("z.npy"), layer(x))
    run("apply", "z.npy", "y.npy", "--layer", target, "--inverse")
    np.testing.assert_array_equal(np.load("y.npy"), layer.inverse(layer(x)))
    np.testing.assert_allclose(np.load("y.npy"), x, rtol=1e-5)
    run("apply", "more.npz", "z.npz", "--layer", target)
    run("apply", "z.npz", "z.npz", "--layer", target, "--inverse")
    np.testing.assert_allclose(np.load("z.npz")["arr_0"], more, rtol=1e-4, atol=1e-5)


def test_adapt_levels(folder):
    x = random((6, 3, 5))
    np.save("x.npy", x)
    for options, axes in (
        (["--level", "1"], (0, 2)),
        (["--level", "1,-1"], (0,)),
        (["--level", "none"], (0, 1, 2)),
        (["--level", "c,2", "--input-levels", "c w"], (0,)),
        (["--preset", "batch_norm"], (0, 2)),
        (["--aggregate", "0", "--batched"], (0,)),
        (["--dtype", "float64"], (0, 1)),
    ):
        run("adapt", "x.npy", "layer.npz", *options)
        layer = gn.load("layer.npz")
        assert layer.information("statistics") == "dataset"
        np.testing.assert_allclose(layer.moments.mean, x.mean(axes, dtype=np.float64), rtol=1e-6, atol=1e-7)
        run("apply", "x.npy", "y.npy", "--layer", "layer.npz")
        np.testing.assert_array_equal(np.load("y.npy"), layer.initialize(x)(x))


def test_adapt_nan(folder):
    x = np.array([[1.0, 2.0], [3.0, np.nan]])
    np.save("x.npy", x)
    result = run("adapt", "x.npy", "layer.npz")
    assert "1 of 2 variances are not finite" in result.stdout.replace("\n", " ")
    run("adapt", "x.npy", "layer.npz", "--nan", "omit")
    assert gn.load("layer.npz").moments == gn.Moments.of(x, axes=0, mask=~np.isnan(x))
    assert failure("adapt", "x.npy", "other.npz", "--nan", "raise").startswith(
        "x.npy: batch 1 of the data has NaN at (1, 1)"
    )
    assert not Path("other.npz").exists()
    assert "did you mean" in failure("adapt", "x.npy", "other.npz", "--nan", "omitt")


def test_adapt_failures(folder):
    np.save("x.npy", random((6, 3)))
    np.save("w.npy", random((6, 4)))
    before = sorted(directory(folder))
    assert failure("adapt", "x.npy", "y.npy") == (
        'y.npy cannot be the file of a layer; did you mean ".npz"?\n'
        "the last name is the file of the layer: .npz or .safetensors"
    )
    assert failure("adapt", "x.txt", "layer.npz").startswith("x.txt is not a file of arrays")
    assert failure("adapt", "missing.npy", "layer.npz").startswith("missing.npy does not exist")
    assert failure("adapt", "x.npy", "w.npy", "layer.npz").startswith("w.npy: batch 2 of the data has slices of shape")
    assert failure("apply", "x.npy", "z.npy", "--layer", "layer.npz").startswith("layer.npz does not exist")
    assert "names no levels" in misuse("adapt", "x.npy", "layer.npz", "--level", "first")
    assert "cannot be combined with --preset" in misuse(
        "adapt", "x.npy", "layer.npz", "--level", "1", "--preset", "layer_norm"
    )
    assert "it undoes the normalization of a saved layer" in misuse("apply", "x.npy", "z.npy", "--inverse")
    assert "--layer, which has every setting" in misuse(
        "apply", "x.npy", "z.npy", "--layer", "layer.npz", "--epsilon", "1"
    )
    assert sorted(directory(folder)) == before


# -------------------------------------------------------------------------------------------------- apply: many arrays


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(save, folder):
    arrays = {"weights/first": random((6, 4, 5)), "file": random((3, 4), "int64"), "é": random((2, 4, 3), order="F")}
    # savez takes names as keywords, of which one is its own.
    with zipfile.ZipFile("x.npz", "w", zipfile.ZIP_STORED if save is np.savez else zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array)
    result = run("apply", "x.npz", "y.npz", "--preset", "batch_norm")
    assert result.stdout == (
        "y.npz: float32 (6, 4, 5) (weights/first)\ny.npz: float64 (3, 4) (file)\ny.npz: float32 (2, 4, 3) (é)\n"
    )
    with np.load("y.npz") as found:
        assert found.files == [*arrays]
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], gn.batch_norm(4, statistics="input")(array), strict=True)
    with zipfile.ZipFile("y.npz") as archive, zipfile.ZipFile("x.npz") as source:
        kinds = [[entry.compress_type for entry in one.infolist()] for one in (archive, source)]
        assert kinds[0] == kinds[1]
    run("apply", "x.npz", "x.npz", "--preset", "batch_norm", "--dtype", "float16")
    with np.load("x.npz") as found:
        expected = gn.batch_norm(4, statistics="input")(arrays["file"].astype("float16"))
        np.testing.assert_array_equal(found["file"], expected, strict=True)


def test_npz_that_fails(folder):
    Path("y.npz").write_bytes(b"before")
    np.savez("x.npz", good=random((3, 4)), bad=random((3, 5)))
    Path("layer.json").write_text(json.dumps(gn.layer_norm(4).to_config()))
    before = directory(folder)
    assert failure("apply", "x.npz", "y.npz", "--config", "layer.json") == (
        'array "bad" of x.npz: level 2 (axis 1) has size 5, and input_shape (..., 4) declares 4\n'
        "the array has the shape (3, 5); None declares a size that varies, batched=True that axis 0 is the batch"
    )
    assert directory(folder) == before


def test_npz_that_is_none(folder):
    arguments = ("apply", "x.npz", "y.npz", "--preset", "layer_norm")
    assert failure(*arguments) == "x.npz does not exist\ngive the path of an existing file"
    Path("x.npz").write_bytes(b"no archive")
    assert failure(*arguments) == (
        "x.npz is not a .npz file: it is not an archive, or it is damaged\nwrite or copy the file again"
    )
    content = io.BytesIO()
    np.savez(content, a=random((30, 4)))
    Path("x.npz").write_bytes(content.getvalue()[:-30])
    assert failure(*arguments) == (
        "x.npz is not a .npz file: it is not an archive, or it is damaged\nwrite or copy the file again"
    )
    damaged = bytearray(content.getvalue())
    damaged[300] ^= 255
    Path("x.npz").write_bytes(damaged)
    assert failure(*arguments) == (
        "\"a.npy\" in x.npz cannot be read as an array: Bad CRC-32 for file 'a.npy'\nnumpy.savez writes such archives"
    )
    np.savez("x.npz", a=np.array([{}]))
    assert failure(*arguments) == (
        '"a.npy" in x.npz cannot be read as an array: it contains Python objects (dtype object), '
        "which are never unpickled\n"
        "numpy.savez writes such archives"
    )
    with zipfile.ZipFile("x.npz", "w") as archive:
        archive.writestr("notes.txt", "hello")
    assert failure(*arguments).startswith('"notes.txt" in x.npz cannot be read as an array: ')
    assert [path.name for path in folder.iterdir()] == ["x.npz"]


# --------------------------------------------------------------------------------------------------- apply: a picture


def save(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return pixels


@pytest.mark.parametrize(
    ("options", "layer"),
    [
        (["--preset", "instance_norm"], gn.instance_norm(3, channel_level=-1, batched=False)),
        (["--preset", "batch_norm"], gn.instance_norm(3, channel_level=-1, batched=False)),
        (["--preset", "instance_norm", "--channel-level", "1"], gn.instance_norm(20, batched=False)),
        (["--preset", "layer_norm"], gn.layer_norm(3)),
        (["--preset", "rms_norm", "--trailing", "2"], gn.rms_norm((16, 3))),
        (["--aggregate", "{1, 2}", "--groups", "5,4"], gn.NormalizationLayer("{1, 2}", group_number=(5, 4))),
        (["--preset", "group_norm", "--groups", "3"], gn.instance_norm(3, channel_level=-1, batched=False)),
    ],
)
def test_picture(options, layer, folder):
    pixels = save("x.png", random((20, 16, 3), "uint8"))
    layer.initialize(pixels.shape)
    assert run("apply", "x.png", "y.png", *options).stdout == "y.png: uint8 (20, 16, 3)\n"
    method = layer.information("method")
    y = layer(pixels.astype("float32")).astype(float)
    black, white = (0, 2) if method == "RMS" else (-2.5, 2.5)
    expected = np.clip((y - black) / (white - black), 0, 1) * 255
    found = np.asarray(Image.open("y.png"))
    assert found.dtype == np.uint8
    assert found.shape == pixels.shape
    assert abs(found - expected).max() <= 0.5 + 1e-9


def test_picture_into_itself_and_as_jpeg(folder):
    pixels = save("x.png", random((20, 16, 3), "uint8"))
    expected = pictures.levels_of_grey(gn.layer_norm((20, 16, 3))(pixels), "Standardize")
    run("apply", "x.png", "y.JPG", "--preset", "layer_norm", "--trailing", "3")
    with Image.open("y.JPG") as image:
        assert image.format == "JPEG"
        assert abs(np.asarray(image, float) - expected).mean() < 4
    run("apply", "y.JPG", "z.jpeg", "--preset", "layer_norm", "--trailing", "3")
    run("apply", "x.png", "x.png", "--preset", "layer_norm", "--trailing", "3")
    np.testing.assert_array_equal(np.asarray(Image.open("x.png")), expected)
    assert sorted(directory(folder)) == ["x.png", "y.JPG", "z.jpeg"]


@pytest.mark.parametrize("mode", ["L", "1", "LA", "RGBA", "P", "I;16"])
def test_modes_of_pictures(mode, folder):
    grey, alpha = random((20, 16), "uint8"), random((20, 16), "uint8") // 2
    image = Image.fromarray(grey)
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 256)
    elif mode in {"LA", "RGBA"}:
        image = image.convert(mode)
        image.putalpha(Image.fromarray(alpha))
    else:
        image = image.convert(mode)
    image.save("x.png")
    run("apply", "x.png", "y.png", "--preset", "instance_norm")
    with Image.open("y.png") as found:
        assert found.mode == {"1": "L", "P": "RGB", "I;16": "L"}.get(mode, mode)
        channels = np.asarray(found)
    if mode in {"LA", "RGBA"}:
        np.testing.assert_array_equal(channels[..., -1], alpha)
        channels = channels[..., 0]
    if mode in {"L", "LA", "RGBA", "I;16"}:
        y = gn.instance_norm(1, channel_level=-1, batched=False, epsilon=0)(grey[..., None])
        expected = pictures.levels_of_grey(y[..., 0], "Standardize")
        assert abs(channels.astype(int) - expected).max() <= 1


def test_pictures_are_the_right_way_up(folder):
    pixels = random((20, 16, 3), "uint8")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it by a quarter
    save("x.jpg", pixels, exif=exif)
    assert run("apply", "x.jpg", "y.png", "--preset", "layer_norm").stdout == "y.png: uint8 (16, 20, 3)\n"


def test_pictures_that_cannot_be(folder):
    arguments = ("apply", "x.png", "y.png", "--preset", "layer_norm")
    assert failure(*arguments) == "x.png does not exist\ngive the path of an existing file"
    Path("x.png").write_bytes(b"no picture")
    again = "write or copy the file again"
    assert failure(*arguments) == f"x.png cannot be read as a picture: it is neither PNG nor JPEG\n{again}"
    content = io.BytesIO()
    save(content, random((200, 160, 3), "uint8"), format="PNG")
    Path("x.png").write_bytes(content.getvalue()[:1000])
    assert re.fullmatch(rf"x\.png cannot be read as a picture: image file is truncated.*\n{again}", failure(*arguments))
    save("x.png", random((20, 16, 4), "uint8"))
    assert failure("apply", "x.png", "y.jpg", "--preset", "layer_norm") == (
        "x.png has transparency, and a .jpg file has none\nwrite a .png file"
    )
    assert [path.name for path in folder.iterdir()] == ["x.png"]


def test_nan_is_black():
    shown = pictures.levels_of_grey(np.array([np.nan, np.inf, -np.inf, 0.0]), "Standardize")
    assert shown.tolist() == [0, 255, 0, 128]


# ---------------------------------------------------------------------------------------------------------------- demo


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return run("demo", "--output", folder / "new" / "pictures").stdout, folder / "new" / "pictures"


def photograph():
    return np.asarray(Image.open(Path(__import__("matplotlib").get_data_path()) / "sample_data/grace_hopper.jpg"))


def test_demo_shows_every_preset(shown):
    text, folder = shown
    assert {exhibit.name for exhibit in demo.EXHIBITS} == {*Preset, "tiles"}
    for exhibit in demo.EXHIBITS:
        layer = eval(exhibit.call, {"gn": gn})
        assert repr(layer) == repr(exhibit.make())
        shape = (4, 300, 256, 3) if exhibit.crops else (600, 512, 3)
        assert f"{exhibit.call}\n" in text
        assert f"{layer.plan(shape)}\ntime       " in text
    for word in ("moments", "runs", "tasks"):  # each is said once, before it is used
        assert text.index(f"\n{word:<11}{demo.WORDS[word]}\n") < text.index("\narray ")
    assert f"{folder / 'contact-sheet.png'} has all of them; 7 single ones are in the same folder." in text


def table(text, name):
    """The numbers of an exhibit's table: name of the slice to numbers."""
    block = text.partition(f"\n{name} ──")[2].partition("\narray  ")[0]
    rows = block.partition("\nslice ")[2].splitlines()[1:]
    cut = (re.split(r" {2,}", row.strip()) for row in rows if row.strip())
    return {first: numbers for first, *numbers in cut}


def test_demo_numbers_are_those_of_the_photograph(shown):
    text, _ = shown
    x = photograph().astype(float)
    found = table(text, "batch_norm")
    for index, colour in enumerate(demo.COLOURS):
        channel = x[..., index]
        assert found[colour] == [f"{channel.mean():.1f}", f"{channel.std():.1f}", "0.000", "1.000"]
    crop = x[:300, 256:, 1]
    assert table(text, "instance_norm")["crop 2, green"][:2] == [f"{crop.mean():.1f}", f"{crop.std():.1f}"]
    pixel = x[225, 192]
    rms = np.sqrt((pixel**2).mean())
    after = pixel / rms
    assert table(text, "layer_norm")["pixel 226, 193"][:2] == [f"{pixel.mean():.1f}", f"{pixel.std():.1f}"]
    assert table(text, "rms_norm")["pixel 226, 193"] == [
        *(f"{value:.1f}" for value in (pixel.mean(), pixel.std(), rms)),
        *(f"{value:.3f}" for value in (after.mean(), after.std(), 1.0)),
    ]
    band = x[75:150]
    assert table(text, "group_norm")["band 2"][:2] == [f"{band.mean():.1f}", f"{band.std():.1f}"]
    tile = x[225:300, 192:256, 1]
    assert table(text, "tiles")["tile 4, 4, green"][:2] == [f"{tile.mean():.1f}", f"{tile.std():.1f}"]
    means = x.reshape(8, 75, 8, 64, 3).mean((1, 3))
    assert table(text, "tiles")["all 192"][0] == f"{means.min():.1f} to {means.max():.1f}"


def test_demo_pictures(shown):
    _, folder = shown
    names = ["photograph", *[exhibit.name for exhibit in demo.EXHIBITS]]
    assert sorted(path.name for path in folder.iterdir()) == [
        *[f"{number}-{name}.png" for number, name in enumerate(names)],
        "contact-sheet.png",
    ]
    x = photograph()
    found = {name: np.asarray(Image.open(folder / f"{number}-{name}.png")) for number, name in enumerate(names)}
    np.testing.assert_array_equal(found["photograph"], x)
    assert all(pixels.shape == x.shape for pixels in found.values())
    whole = gn.instance_norm(3, channel_level=-1, batched=False)(x)
    np.testing.assert_allclose(found["batch_norm"], pictures.levels_of_grey(whole, "Standardize"), atol=1)
    crop = pictures.levels_of_grey(gn.instance_norm(3, channel_level=-1, batched=False)(x[300:, :256]), "Standardize")
    np.testing.assert_allclose(found["instance_norm"][300:, :256], crop, atol=1)
    assert len({pixels.tobytes() for pixels in found.values()}) == len(names)
    with Image.open(folder / "contact-sheet.png") as sheet:
        assert sheet.size == (1144, 740)


def test_demo_that_cannot_write(folder):
    Path("occupied").write_text("a file")
    text = failure("demo", "--output", "occupied")
    assert text == "occupied cannot be written: File exists\nnothing has been written there"
    assert failure("demo", "--output", "occupied/below") == (
        "occupied/below cannot be written: Not a directory\nnothing has been written there"
    )


def test_demo_without_the_photograph(monkeypatch, folder):
    monkeypatch.setattr(demo, "PHOTOGRAPH", ("rich", "nowhere.jpg"))
    text = failure("demo")
    assert re.fullmatch(r"the photograph nowhere\.jpg is not in rich \d+\.\d+\.\d+\ninstall rich from its wheel", text)
    assert [*folder.iterdir()] == []


# ----------------------------------------------------------------------------------------------- nothing is overwritten


def test_adapt_does_not_write_over_data(folder):
    """With OUT forgotten, the last name is data."""
    np.save("x.npy", random((6, 3)))
    np.savez("a.npz", random((6, 3)))
    np.savez("b.npz", random((6, 3)))
    Path("link.npz").symlink_to("a.npz")
    os.link("a.npz", "hard.npz")
    before = directory(folder)
    is_input = "is an input, and the last name is the file of the layer"
    exists = "exists and is not the file of a layer, and the last name is the file of the layer"
    for arguments, why in (
        (["a.npz", "b.npz"], exists),
        (["x.npy", "a.npz"], exists),
        (["a.npz", "a.npz"], is_input),
        (["x.npy", "a.npz", "a.npz"], is_input),
        (["a.npz", "link.npz"], is_input),
        (["link.npz", "a.npz"], is_input),
        (["a.npz", "hard.npz"], is_input),
    ):
        text = failure("adapt", *arguments)
        assert text.startswith(f"{arguments[-1]} {why}\ngive the layer another name")
        assert directory(folder) == before
    run("adapt", "x.npy", "layer.npz")
    run("adapt", "x.npy", "layer.npz")  # a layer is replaced
    run("adapt", "x.npy", "layer.npz", "--layer", "layer.npz")  # the documented update
    assert gn.load("layer.npz").moments.count.tolist() == [12] * 3
    Path("empty.npz").touch()  # as mktemp makes it
    run("adapt", "x.npy", "empty.npz")
    assert gn.load("empty.npz").initialized


def test_apply_does_not_write_over_a_layer(folder):
    np.savez("a.npz", x=random((6, 3)))
    np.save("x.npy", random((6, 3)))
    Path("layer.json").write_text(json.dumps(gn.layer_norm(3).to_config()))
    run("adapt", "a.npz", "layer.npz")
    Path("link.npz").symlink_to("layer.npz")
    Path("link.npy").symlink_to("layer.npz")
    Path("json.npy").symlink_to("layer.json")
    before = directory(folder)
    for arguments in (
        ("a.npz", "layer.npz", "--layer", "layer.npz"),
        ("a.npz", "link.npz", "--layer", "layer.npz"),
        ("x.npy", "link.npy", "--layer", "layer.npz"),
        ("x.npy", "json.npy", "--config", "layer.json"),
        ("a.npz", "layer.npz", "--preset", "layer_norm"),
    ):
        text = failure("apply", *arguments)
        assert text.startswith(f"{arguments[1]} is the file of a layer, and apply would write arrays over it")
        assert directory(folder) == before


@pytest.mark.parametrize("mode", [0o600, 0o644])
@pytest.mark.parametrize("command", ["npy", "npz", "picture", "adapt"])
def test_a_private_file_is_private_while_it_is_replaced(command, mode, folder, monkeypatch):
    np.save("x.npy", random((6, 3)))
    np.savez("x.npz", random((6, 3)))
    save("x.png", random((6, 5, 3), "uint8"))
    gn.feature_norm(mean=1, variance=1).save("layer.npz")
    arguments = {
        "npy": ["apply", "x.npy", "x.npy", "--preset", "layer_norm"],
        "npz": ["apply", "x.npz", "x.npz", "--preset", "layer_norm"],
        "picture": ["apply", "x.png", "x.png", "--preset", "layer_norm"],
        "adapt": ["adapt", "x.npy", "layer.npz"],
    }[command]
    target = Path(arguments[2])
    target.chmod(mode)
    seen = []

    def watched(descriptor):
        seen.extend(oct(path.stat().st_mode & 0o777) for path in folder.glob(".gennorm-*.part"))
        chmod(descriptor, mode)

    chmod = os.fchmod
    monkeypatch.setattr(os, "fchmod", lambda descriptor, _: watched(descriptor))
    run(*arguments)
    assert seen == ["0o600"]
    assert target.stat().st_mode & 0o777 == mode


# ------------------------------------------------------------------------------------------- inputs that change, or lie


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("change", ["truncated", "rewritten", "removed"])
@pytest.mark.parametrize("command", ["layer_norm", "batch_norm", "adapt"])
def test_an_input_that_changes_while_it_is_read(command, change, order, folder, monkeypatch):
    """A map of a truncated file would end the process with SIGBUS."""
    np.save("x.npy", random((3000, 50), order=order))
    monkeypatch.setattr(applying, "CHUNK", 1 << 14)
    monkeypatch.setattr("gennorm.cli.adapt.CHUNK", 1 << 14)
    read = files.NpyFile._read
    calls = []

    def changed(self, *arguments):
        calls.append(arguments)
        if len(calls) == (3 if order == "C" else 1):
            if change == "truncated":
                os.truncate("x.npy", 4096)
            elif change == "removed":
                Path("x.npy").unlink()
            else:
                np.save("x.npy", random((3000, 50)))
            if change != "removed":
                os.utime("x.npy", ns=(1, 1))
        return read(self, *arguments)

    monkeypatch.setattr(files.NpyFile, "_read", changed)
    if command == "adapt":
        text = failure("adapt", "x.npy", "layer.npz")
    else:
        text = failure("apply", "x.npy", "y.npy", "--preset", command)
    expected = (
        "x.npy does not exist" if change == "removed" else "x.npy was changed by another process while it was read"
    )
    assert expected in text
    assert not Path("y.npy").exists()
    assert not Path("layer.npz").exists()


def test_an_input_that_is_cut_short_within_the_clock_of_the_file_system(folder, monkeypatch):
    np.save("x.npy", random((3000, 50)))
    file = files.read_npy(Path("x.npy"))
    os.truncate("x.npy", 4096)
    os.utime("x.npy", ns=(file.modified, file.modified))
    with pytest.raises(gn.errors.FileError, match="was changed by another process"):
        file.rows(0, 3000)


def archives():
    """Damaged archives: what is wrong with each, and its bytes."""
    stream = io.BytesIO()
    np.savez(stream, a=random((6, 4)))
    whole = stream.getvalue()
    local, central = whole.index(b"PK\x03\x04"), whole.index(b"PK\x01\x02")

    def with_method(number):
        data = bytearray(whole)
        data[local + 8 : local + 10] = data[central + 10 : central + 12] = number.to_bytes(2, "little")
        return bytes(data)

    for number in (1, 8, 9, 12, 14, 93, 99):
        yield f"method {number}", with_method(number)
    for place in range(central, len(whole)):
        yield f"byte {place}", whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]
    yield "encrypted", whole[: central + 8] + b"\x01" + whole[central + 9 :]
    yield "huge", whole.replace(b"(6, 4)", b"(6, 9)")
    yield "negative", whole.replace(b"(6, 4)", b"(-6,4)")


def test_damaged_archives(folder):
    for what, data in archives():
        Path("x.npz").write_bytes(data)
        for arguments in (("apply", "x.npz", "y.npz", "--preset", "layer_norm"), ("adapt", "x.npz", "layer.npz")):
            result = CliRunner().invoke(app, arguments)
            assert isinstance(result.exception, SystemExit | None), (what, result.exception)
            if result.exit_code:
                assert re.match(r'gennorm: (x\.npz|".*" in x\.npz|x\.npz: )', result.stderr), (what, result.stderr)
        Path("y.npz").unlink(missing_ok=True)
        Path("layer.npz").unlink(missing_ok=True)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_a_name_twice(folder):
    with zipfile.ZipFile("x.npz", "w") as archive:
        for _ in range(2):
            with archive.open("a.npy", "w") as member:
                np.lib.format.write_array(member, random((3, 4)))
    text = failure("apply", "x.npz", "y.npz", "--preset", "layer_norm")
    assert text.startswith('x.npz has two entries "a.npy"')


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.png", "layer.json", "layer.npz"])
def test_named_pipes_are_not_read(name, folder):
    os.mkfifo(name)
    np.save("data.npy", random((3, 4)))
    text = {
        "layer.json": lambda: failure("apply", "data.npy", "y.npy", "--config", name),
        "layer.npz": lambda: failure("apply", "data.npy", "y.npy", "--layer", name),
    }.get(name, lambda: failure("apply", name, f"y{Path(name).suffix}", "--preset", "layer_norm"))()
    assert text == f"{name} is a named pipe, not a regular file\ngive the path of a regular file"


@pytest.mark.parametrize("name", ["y.npy", "y.npz", "y.png", "layer.npz"])
@pytest.mark.parametrize("kind", ["pipe", "loop"])
def test_special_files_are_not_replaced(name, kind, folder):
    np.save("x.npy", random((3, 4)))
    np.savez("x.npz", random((3, 4)))
    save("x.png", random((6, 5, 3), "uint8"))
    os.mkfifo(name) if kind == "pipe" else Path(name).symlink_to(name)
    if name == "layer.npz":
        text = failure("adapt", "x.npy", name)
    else:
        text = failure("apply", f"x{Path(name).suffix}", name, "--preset", "layer_norm")
    assert text.startswith(name)
    assert Path(name).is_fifo() or Path(name).is_symlink()


@pytest.mark.parametrize(
    ("values", "dtype", "text"),
    [
        ([1.0, np.nan], "int32", "the value nan, which int32 does not have"),
        ([1.0, np.inf], "int32", "the value inf, which int32 does not have"),
        ([1.0, -np.inf], "uint8", "the value -inf, which uint8 does not have"),
        ([1.0, 3e9], "int32", "the value 3000000000.0, which int32 does not have"),
        ([1.0, 2.0**63], "int64", "the value 9.223372036854776e+18, which int64 does not have"),
        ([1, 300], "uint8", "the value 300, which uint8 does not have"),
        ([-1, 3], "uint64", "the value -1, which uint64 does not have"),
    ],
)
def test_integers_that_values_do_not_fit(values, dtype, text, folder):
    np.save("x.npy", np.array([values]))
    assert text in failure("apply", "x.npy", "y.npy", "--preset", "layer_norm", "--dtype", dtype)
    assert text in failure("adapt", "x.npy", "layer.npz", "--dtype", dtype)


def test_floats_that_values_do_not_fit_are_infinite(folder):
    np.save("x.npy", np.array([[1.0, 1e300, 2.0]]))
    run("apply", "x.npy", "y.npy", "--preset", "layer_norm", "--dtype", "float16")  # warnings are errors here
    assert np.load("y.npy").dtype == np.float16


# -------------------------------------------------------------------------------------------------- transparent colours


@pytest.mark.parametrize("mode", ["L", "RGB", "1", "I;16", "L;2", "L;4"])
def test_a_transparent_colour_is_kept(mode, folder):
    pixels = random((20, 16), "uint8") // 10
    key = int(pixels[3, 5])
    transparent = pixels == key
    match mode:
        case "L":
            Image.fromarray(pixels).save("x.png", transparency=key)
        case "RGB":
            colours = np.stack([pixels, pixels + 1, pixels + 2], -1)
            Image.fromarray(colours).save("x.png", transparency=(key, key + 1, key + 2))
        case "1":
            pixels, key = (pixels > pixels.mean()).astype(np.uint8), 1
            transparent = pixels == key
            Image.fromarray(pixels * 255).convert("1").save("x.png", transparency=key)
        case "I;16":
            Image.fromarray(pixels.astype(np.uint16) * 1000).save("x.png", transparency=key * 1000)
        case _:
            bits = int(mode[-1])
            pixels %= 1 << bits
            key = int(pixels[3, 5])
            transparent = pixels == key
            Path("x.png").write_bytes(grey_png(pixels, bits, key))
    run("apply", "x.png", "y.png", "--preset", "instance_norm")
    with Image.open("y.png") as found:
        assert found.mode == ("RGBA" if mode == "RGB" else "LA")
        alpha = np.asarray(found)[..., -1]
    np.testing.assert_array_equal(alpha, np.where(transparent, 0, 255))
    assert transparent.any()
    assert not transparent.all()
    assert "has transparency" in failure("apply", "x.png", "y.jpg", "--preset", "instance_norm")


def grey_png(pixels, bits, key):
    """A PNG file of grey values of a few bits, and of a transparent one."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    height, width = pixels.shape
    each = 8 // bits
    packed = sum(pixels[:, i::each].astype(int) << bits * (each - 1 - i) for i in range(each)).astype(np.uint8)
    lines = b"".join(b"\0" + row.tobytes() for row in packed)
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([bits, 0, 0, 0, 0])
    chunks = [(b"IHDR", header), (b"tRNS", key.to_bytes(2, "big")), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


@pytest.mark.parametrize("pixels", [60, 150])
def test_a_picture_of_too_many_pixels(pixels, folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    save("x.png", random((pixels // 10, 10, 3), "uint8"))
    arguments = ("apply", "x.png", "y.png", "--preset", "layer_norm")
    if pixels == 60:
        run(*arguments)  # Pillow warns of it, and warnings are errors here
    else:
        assert failure(*arguments).startswith("x.png has more than 100 pixels")


# --------------------------------------------------------------------------------------------- what is said of defaults


@pytest.mark.parametrize(
    ("arguments", "axis"),
    [
        (["apply", "x.npy", "y.npy"], "axis 0 is level 1 of one example, not a batch"),
        (["apply", "x.npz", "y.npz"], "axis 0 is level 1 of one example, not a batch"),
        (["apply", "x.png", "y.png"], "axis 0 is level 1 of one example, not a batch"),
        (["apply", "x.npy", "y.npy", "--batched"], "axis 0 is the batch"),
        (["explain", "--shape", "32,256,14,14"], "axis 0 is level 1 of one example, not a batch"),
        (["explain", "--shape", "32,256,14,14", "--batched", "--epsilon", "0.1"], "axis 0 is the batch"),
    ],
)
def test_a_default_layer_is_reported(arguments, axis, folder):
    np.save("x.npy", random((6, 3, 4)))
    np.savez("x.npz", random((6, 3, 4)))
    save("x.png", random((6, 5, 3), "uint8"))
    result = run(*arguments)
    assert re.fullmatch(rf"gennorm: no layer is given, so it is NormalizationLayer\(.*\); {axis}.*\n", result.stderr)
    for described in (["--aggregate", "-1"], ["--preset", "layer_norm"]):
        assert run(*[one for one in arguments if one != "--batched"], *described).stderr == ""


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ("100000000000,3", []),
        ("1,100000000000", ["--preset", "layer_norm"]),
        ("1,100000000000", ["--preset", "rms_norm"]),
        ("1,100000000000,2", ["--preset", "batch_norm"]),
        ("1,100000000000,2", ["--preset", "group_norm", "--groups", "4"]),
        ("1,100000000000,2", ["--preset", "instance_norm"]),
        ("3,100000000000", ["--aggregate", "-1", "--scale", "Same"]),
        ("3,100000000000", ["--config", "layer.json"]),
    ],
)
def test_explain_allocates_no_parameters(shape, options, folder):
    config = gn.NormalizationLayer(-1, "Same").to_config()
    Path("layer.json").write_text(json.dumps({**config, "input_shape": ["...", 100000000000]}))
    tracemalloc.start()
    try:
        assert "kernel " in run("explain", "--shape", shape, *options).stdout
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shape", ["9" * 5000, "9" * 30, f"{2**32},{2**32}", ",".join(["1"] * 65)])
def test_explain_of_no_array(shape):
    assert re.search("an array has at most|arrays have at most", misuse("explain", "--shape", shape))


def test_levels_without_braces(folder):
    np.save("x.npy", random((6, 3, 5)))
    one = run("explain", "--shape", "6,3,5", "--aggregate", "1,3", "--scale", "1,2").stdout
    assert one == run("explain", "--shape", "6,3,5", "--aggregate", "{1, 3}", "--scale", "{1, 2}").stdout
    run("adapt", "x.npy", "a.npz", "--level", "1,2")
    run("adapt", "x.npy", "b.npz", "--level", "{1, 2}")
    assert Path("a.npz").read_bytes() == Path("b.npz").read_bytes()


@pytest.mark.parametrize("level", ["9", "-3", "1,9", "3"])
def test_levels_that_the_array_does_not_have(level, folder):
    np.save("x.npy", random((6, 3, 5)))
    wrong = level.rpartition(",")[2]
    assert misuse("adapt", "x.npy", "layer.npz", f"--level={level}") == (
        f"Invalid value for '--level': level {wrong} does not exist: an array of shape (6, 3, 5) is a batch of rank 2"
    )


@pytest.mark.parametrize("preset", ["batch_norm", "instance_norm", "group_norm"])
@pytest.mark.parametrize(("level", "batched"), [("9", True), ("-3", True), ("3", True), ("4", False), ("-4", False)])
def test_channel_levels_that_the_array_does_not_have(preset, level, batched):
    arguments = ["--preset", preset, f"--channel-level={level}", *([] if batched else ["--example"])]
    arguments += ["--groups", "1"] if preset == "group_norm" else []
    if preset == "batch_norm" and not batched:
        return
    text = misuse("explain", "--shape", "6,3,5", *arguments)
    what = "a batch of arrays" if batched else "an array"
    assert text == f"Invalid value for '--channel-level': level {level} does not exist in {what} of shape (6, 3, 5)"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_config_with_a_byte_order_mark(encoding, folder):
    np.save("x.npy", random((3, 4)))
    Path("layer.json").write_text(json.dumps(gn.layer_norm(4).to_config()), encoding=encoding)
    run("apply", "x.npy", "y.npy", "--config", "layer.json")
    np.testing.assert_array_equal(np.load("y.npy"), gn.layer_norm(4)(np.load("x.npy")))


# ---------------------------------------------------------------------------------- streams, and interrupts at any time


def shell(line, **environment):
    """Run a line of a shell in which `gennorm` is the command line."""
    script = f'gennorm() {{ "{sys.executable}" -m gennorm "$@"; }}; set -o pipefail; {line}'
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=False, env=variables, timeout=300
    )


@pytest.mark.parametrize("command", ["presets", "explain --shape 3,4", "--help"])
def test_output_that_cannot_be_written(command, folder):
    result = shell(f"gennorm {command} >/dev/full")
    assert result.returncode == 1
    assert re.fullmatch(r"(gennorm: no layer.*\n)?gennorm: .*No space left on device\n", result.stderr)
    result = shell(f"gennorm {command} | true")
    assert result.returncode in ({0, 1} if command == "--help" else {0, 141})  # Rich ends with 1 where it prints help
    assert re.fullmatch(r"(gennorm: no layer.*\n)?", result.stderr)
    result = shell(f"gennorm {command} >&-")
    assert (result.returncode, result.stdout) == (0, "")
    assert "Traceback" not in result.stderr


def test_a_terminal_of_ascii(folder):
    np.save("é.npy", random((3, 4)))
    result = shell(
        "gennorm apply é.npy y☃.npy --preset layer_norm; gennorm presets; gennorm apply", PYTHONIOENCODING="ascii"
    )
    assert re.match(r"y.*\.npy: float32 \(3, 4\)\n", result.stdout)
    assert "Error" not in result.stdout
    assert "Traceback" not in result.stderr
    assert result.returncode == 2


INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # behind nohup it is ignored
calls = 0
def profile(frame, event, _):
    global calls
    calls += 1
    if calls == {at}:
        sys.setprofile(None)
        signal.raise_signal(signal.SIGINT)
from gennorm.cli import main
started = main.__code__
def begin(frame, event, argument):
    if event == "return" and frame.f_code.co_name == "_handle":
        sys.setprofile(profile)
sys.setprofile(begin)
try:
    main()
finally:
    sys.setprofile(None)
    if calls < {at}:
        print("not reached", file=sys.stderr)
"""


@pytest.mark.parametrize("at", [1, 3, 10, 100, 1000, 5000, 20_000, 60_000, 120_000, 200_000, 400_000])
def test_an_interrupt_while_the_command_line_starts(at, folder):
    """At any of its first calls, in its own code or in that of what it imports: one line, and a status."""
    np.save("x.npy", random((30, 4)))
    np.savez("x.npz", random((30, 4)))
    command = [sys.executable, "-c", INTERRUPTED.format(at=at), "apply", "x.npz", "y.npz", "--preset", "layer_norm"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    if "not reached" not in result.stderr:
        assert (result.returncode, result.stderr) == (130, "gennorm: interrupted\n")
        assert [*folder.glob(".gennorm*")] == []


def test_an_interrupt_that_a_library_swallows_or_changes(folder):
    """The exception of a signal may end in a callback, or become another one."""
    for body, status in (
        ("class A:\n    def __del__(self): signal.raise_signal(signal.SIGINT)\nA()\ntime.sleep(30)", 130),
        ("try: signal.raise_signal(signal.SIGINT)\nexcept BaseException: raise ValueError('it blames another')", 130),
        ("try: signal.raise_signal(signal.SIGINT)\nexcept BaseException: pass", 130),
        ("raise ValueError('a mistake')", 1),
    ):
        before = (
            "import gennorm.cli.app, signal, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
            f"def app(**_): exec({body!r}, globals())\ngennorm.cli.app.app = app"
        )
        result = process(before=before)
        assert result.returncode == status, result.stderr
        assert result.stderr == "gennorm: interrupted\n" or status == 1


# ----------------------------------------------------------------------------------------------------- the first kernel

COMPILES = """
import os, pty, sys
leader, follower = pty.openpty()
os.dup2(follower, 2)
import numpy as np, gennorm as gn
gn.layer_norm(4)(np.ones((3, 4)))
gn.layer_norm(4)(np.ones((3, 4), "float32"))
os.set_blocking(leader, False)
try:
    print(os.read(leader, 10000).decode())
except BlockingIOError:
    print("nothing")
"""


@pytest.mark.parametrize("quiet", [None, "1"])
def test_the_first_compilation_is_announced_on_a_terminal(quiet, tmp_path):
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "GENNORM_CACHE_DIR": str(tmp_path)}
    variables |= {} if quiet is None else {"GENNORM_QUIET": quiet}
    command = [sys.executable, "-c", COMPILES]
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=variables, timeout=300).stdout
    if quiet is None:
        line = r"gennorm: compiling kernels, which takes seconds; later processes load them from .*"
        assert re.fullmatch(line, text.strip())
        assert str(tmp_path) in text
    else:
        assert text == "nothing\n"
    if quiet is None:  # they are stored now
        again = subprocess.run(command, capture_output=True, text=True, check=True, env=variables, timeout=300)
        assert again.stdout == "nothing\n"
