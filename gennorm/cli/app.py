"""The commands: their options, their output and their exit status."""

from __future__ import annotations

import errno
import inspect
import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

import gennorm as gn
from gennorm import presets, zoo
from gennorm.cli import BROKEN_PIPE, INTERRUPTED, missing
from gennorm.cli.console import console, progress
from gennorm.cli.draw import Request, characters_of, drawn
from gennorm.cli.options import (
    LayerOptions,
    Preset,
    dtype_named,
    is_described,
    refuse,
    shape_of,
    takes_layer,
    uninitialized,
)
from gennorm.errors import DrawingError, GennormError
from gennorm.layer import NormalizationLayer
from gennorm.plan import Plan

__all__ = ["app"]


def _text(text: str) -> str:
    """A help text. The terminal breaks its paragraphs into lines; examples, which are in colour, stay as they are."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(part if "[cyan]" in part else part.replace("\n", " ") for part in paragraphs)


class Commands(TyperGroup):
    """The commands. An error of a command is one message and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except GennormError as error:
            _fail(f"gennorm: {error}")
        except ModuleNotFoundError as error:
            text = missing(error)
            if text is None:
                raise
            _fail(text)
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader of the output closed it, as `head` does
                raise typer.Exit(BROKEN_PIPE) from None
            about = f"{error.filename}: " if error.filename else ""
            _fail(f"gennorm: {about}{error.strerror or error}")
        except MemoryError as error:
            _fail(f"gennorm: out of memory: {str(error) or 'an array does not fit'}")
        except KeyboardInterrupt:  # in another process than that of `main`, which has a handler
            _fail("gennorm: interrupted", INTERRUPTED)


def _fail(text: str, status: int = 1) -> NoReturn:
    typer.echo(text, err=True)
    raise typer.Exit(status) from None


app = typer.Typer(
    cls=Commands,
    name="gennorm",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help=_text("""One normalization layer: say over which levels, with parameters on which levels.

Level 1 is the first dimension of one example, -1 the last, 0 the batch. Begin with

[cyan]gennorm demo[/cyan]
[cyan]gennorm presets[/cyan]
[cyan]gennorm explain --preset group_norm --groups 32 --shape 8,256,56,56[/cyan]"""),
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gennorm {gn.__version__}")
        raise typer.Exit


@app.callback()
def _gennorm(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """The options before the commands."""


# ---------------------------------------------------------------------------------------------------------------- demo


@app.command(
    help=_text("""Normalize a photograph with every preset, and with a layer that is not a preset.

For each: the mean and deviation of slices before and after, the plan of the engine, and a picture.

[cyan]gennorm demo[/cyan]
[cyan]gennorm demo --output pictures[/cyan]""")
)
def demo(
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="The folder of the pictures; it is made if it does not exist.", metavar="DIR"
        ),
    ] = Path("gennorm-demo"),
) -> None:
    """Show what the presets do to a photograph."""
    from gennorm.cli.demo import show

    show(output, console(), console(stderr=True))


# --------------------------------------------------------------------------------------------------------------- apply


@app.command(
    help=_text("""Normalize the arrays of a file.

[cyan]gennorm apply x.npy y.npy --preset layer_norm[/cyan]
[cyan]gennorm apply x.npy y.npy --aggregate All --groups 1=32 --batched[/cyan]
[cyan]gennorm apply x.npy x.npy --preset batch_norm[/cyan]         in place
[cyan]gennorm apply all.npz out.npz --config layer.json[/cyan]     each array
[cyan]gennorm apply x.npy z.npy --layer layer.npz[/cyan]           by the moments of other data
[cyan]gennorm apply z.npy x.npy --layer layer.npz --inverse[/cyan] and back
[cyan]gennorm apply a.jpg b.png --preset instance_norm[/cyan]      a picture

Without --preset, --aggregate, --config or --layer, the levels from 2 on are aggregated, and standard error says so.

An array in a .npy file is read in pieces along axis 0, so it may be larger than memory: in one pass where axis 0 is
kept, in two where it is the batch and aggregated (the moments of the pieces add up). Arrays in Fortran order and in
.npz files are read whole, one at a time.

A picture is one example of rows, columns and colours. It is written with grey for the mean, black and white for 2.5
deviations; with RMS, black for 0 and white for twice the root mean square. Transparency is kept.

OUT appears when it is complete. Until then, and after an error, an existing OUT stays as it was. OUT cannot be a file
of a layer.""")
)
@takes_layer
def apply(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A .npy, .npz, .png or .jpg file.", show_default=False)],
    target: Annotated[
        Path, typer.Argument(metavar="OUT", help="A file of the same kind; it may be IN itself.", show_default=False)
    ],
    options: LayerOptions,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Convert the input to this dtype first. bfloat16 also reads what NumPy saved as two nameless bytes.",
            metavar="DTYPE",
        ),
    ] = None,
    inverse: Annotated[
        bool, typer.Option("--inverse", help="Undo the normalization; with --layer.", show_default=False)
    ] = False,
) -> None:
    """Normalize the arrays of a file into another."""
    from gennorm.cli.apply import apply_file

    if inverse and options.layer is None:
        refuse("--inverse", "it undoes the normalization of a saved layer: give --layer FILE")
    wanted = None if dtype is None else dtype_named(dtype)
    with progress(source.name) as report:
        written = apply_file(source, target, options, wanted, report, inverse=inverse)
    if not is_described(options):
        _say_defaults(written.layer, batched=written.batched)
    for line in written.lines:
        typer.echo(line)


def _say_defaults(layer: str, *, batched: bool) -> None:
    """Say on standard error which layer is used if the command line describes none, and what axis 0 is."""
    axis = "axis 0 is the batch" if batched else "axis 0 is level 1 of one example, not a batch (--batched says it is)"
    typer.echo(f"gennorm: no layer is given, so it is {layer}; {axis}; --help lists the options of layers", err=True)


# --------------------------------------------------------------------------------------------------------------- adapt


@app.command(
    help=_text("""Take the moments of data, and save the layer that normalizes by them.

[cyan]gennorm adapt x.npy layer.npz[/cyan]                        a mean for each feature
[cyan]gennorm adapt a.npy b.npy c.npz layer.safetensors[/cyan]    of several files
[cyan]gennorm adapt pictures.npy layer.npz --level 1[/cyan]       for each channel
[cyan]gennorm adapt more.npy layer.npz --layer layer.npz[/cyan]   of more data
[cyan]gennorm apply x.npy z.npy --layer layer.npz[/cyan]

An array in a .npy file is read in pieces along axis 0, in one pass, so it may be larger than memory. Moments of pieces
and of files add up exactly.

OUT appears when it is complete. Until then, and after an error, an existing OUT stays as it was. Only the file of a
layer is replaced: with the last name forgotten, no data is lost.""")
)
@takes_layer
def adapt(
    sources: Annotated[list[Path], typer.Argument(metavar="DATA...", help=".npy or .npz files.", show_default=False)],
    target: Annotated[
        Path, typer.Argument(metavar="OUT", help="The layer: a .npz or .safetensors file.", show_default=False)
    ],
    options: LayerOptions,
    level: Annotated[
        str | None,
        typer.Option(
            help="The levels that are kept: each position on them has its own mean. -1 if not given, or 1,3, or none.",
            metavar="LEVELS",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Convert the data to this dtype first, as in apply.", metavar="DTYPE")
    ] = None,
    nan: Annotated[
        str,
        typer.Option(
            help="How NaN in the data is handled: propagate into the moments, omit (ignore it) or raise (an error).",
            metavar="WORD",
        ),
    ] = "propagate",
) -> None:
    """Save the moments of files as a layer."""
    from gennorm.cli.adapt import adapt_files

    wanted = None if dtype is None else dtype_named(dtype)
    with progress(", ".join(path.name for path in sources)) as report:
        lines = adapt_files(sources, target, options, level, wanted, report, nan)
    for line in lines:
        typer.echo(line)


# ------------------------------------------------------------------------------------------------------------- explain


@app.command(
    help=_text("""Print a layer, the plan of the engine for an array of a shape, and its slices as letters.

[cyan]gennorm explain --shape 8,128,768 --preset layer_norm[/cyan]
[cyan]gennorm explain --shape 32,256,14,14 --aggregate All --groups 1=32 --batched[/cyan]
[cyan]gennorm explain --shape 3,224,224 --dtype float16 --json[/cyan]""")
)
@takes_layer
def explain(
    options: LayerOptions,
    shape: Annotated[str, typer.Option(help="Shape of the array: 32,256,14,14.", metavar="SIZES", show_default=False)],
    dtype: Annotated[str, typer.Option(help="Dtype of the array.", metavar="DTYPE")] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print a layer and its plan for an array."""
    sizes = shape_of(shape)
    layer = uninitialized(options, sizes)  # the parameters of a huge shape are not allocated
    plan = layer.plan(sizes, dtype_named(dtype))
    if not is_described(options):
        _say_defaults(repr(layer), batched=plan.resolved.batched)
    if as_json:
        typer.echo(json.dumps(_report(layer, plan), indent=2))
        return
    typer.echo(repr(layer))
    typer.echo("")
    typer.echo(str(plan))
    with suppress(DrawingError):  # more axes than a drawing has, or no elements
        typer.echo(f"\n{characters_of(layer, plan.resolved.shape)}")


# ---------------------------------------------------------------------------------------------------------------- draw


@app.command(
    help=_text("""Draw which elements of an array share one mean and deviation, and which levels have parameters.

[cyan]gennorm draw "2;;All" --shape 3,4,4 -o norm.svg[/cyan]
[cyan]gennorm draw --preset group_norm --groups 32 --shape 8,256,14,14 --labels N,C,H,W -o norm.png --dark[/cyan]
[cyan]gennorm draw --aggregate -1 --shape 8,768[/cyan]                 in characters

Without -o, the elements are written as letters, one letter for each slice. Long levels are drawn with a few positions,
and the picture says so.""")
)
@takes_layer
def draw(
    options: LayerOptions,
    shape: Annotated[str, typer.Option(help="Shape of the array: 32,256,14,14.", metavar="SIZES", show_default=False)],
    aggregated: Annotated[
        str | None,
        typer.Argument(
            metavar="LEVELS", help="Aggregation levels, as --aggregate, which also takes -1.", show_default=False
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="A name for each axis: N,C,H,W.", metavar="NAMES", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A .svg, .png or .pdf file.", metavar="FILE", show_default=False),
    ] = None,
    dark: Annotated[bool, typer.Option("--dark", help="For a dark page.")] = False,
) -> None:
    """Draw the slices of a layer."""
    typer.echo(drawn(Request(aggregated, shape, labels, output, dark), options))


def _report(layer: NormalizationLayer, plan: Plan) -> dict[str, Any]:
    """The layer and its plan as values of JSON."""
    resolved = plan.resolved
    return {
        "format": "gennorm/plan",
        "version": 1,
        "layer": layer.to_config(),
        "repr": repr(layer),
        "shape": resolved.shape,
        "dtype": plan.dtype,
        "result": plan.result,
        "compute": plan.compute,
        "batched": resolved.batched,
        "aggregation": [{**_place(plan, axis), "groups": resolved.groups[axis]} for axis in resolved.aggregation],
        "scaling": [_place(plan, axis) for axis in resolved.scaling],
        "slices": plan.slices,
        "slice_size": resolved.count,
        "parameter_shape": resolved.parameter_shape,
        "moments_shape": resolved.moments_shape,
        "runs": [
            {"size": run.size, "role": "aggregated" if run.aggregated else "kept", "axes": run.axes}
            for run in plan.runs
        ],
        "kernel": plan.family,
        "copies": plan.copies,
        "reads": plan.reads,
        "bytes_read": plan.traffic[0],
        "bytes_written": plan.traffic[1],
        "tasks": plan.tasks,
        "text": str(plan),
    }


def _place(plan: Plan, axis: int) -> dict[str, Any]:
    resolved = plan.resolved
    return {
        "level": resolved.level(axis),
        "axis": axis,
        "name": resolved.name(axis),
        "size": resolved.shape[axis],
    }


# ------------------------------------------------------------------------------------------------------------- presets

# The sizes that papers and other libraries use in their examples.
EXAMPLES = {
    Preset.BATCH: "64",
    Preset.LAYER: "768",
    Preset.INSTANCE: "64",
    Preset.GROUP: "32, 256",
    Preset.RMS: "768",
}


@app.command(
    "presets",
    help=_text("""List the presets, each with the layer that it makes, and the published normalizations of gn.zoo.

[cyan]gennorm presets[/cyan]"""),
)
def list_presets() -> None:
    """List the presets and the zoo."""
    screen = console()
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True, style="bold cyan")
    table.add_column(overflow="fold")
    for preset, sizes in EXAMPLES.items():
        make = getattr(presets, preset)
        what = (inspect.getdoc(make) or "").split("\n\n")[0].replace("\n", " ")
        layer = make(*map(int, sizes.split(", ")))
        table.add_row(f"gn.{preset}({sizes})", what)
        table.add_row("", Text(repr(layer), style="green"))
        table.add_row("", f"gennorm explain --preset {preset}{_example(preset)}")
        table.add_row("", "")
    for name in zoo.names():
        found = zoo.describe(name)
        table.add_row(found.example, found.title)
    table.add_row("", "")
    screen.print(Padding(table, (0, 0, 0, 0)))
    screen.print(
        "print(gn.zoo.describe(name)) has the formula, the layer and the reference of a published normalization."
    )
    screen.print("Any other normalization is described by its levels: gennorm explain --help")


def _example(preset: Preset) -> str:
    if preset is Preset.GROUP:
        return " --groups 32 --shape 8,256,56,56"
    return " --shape 8,128,768" if preset in {Preset.LAYER, Preset.RMS} else " --shape 8,64,56,56"


# --------------------------------------------------------------------------------------------------------------- bench


@app.command(
    help=_text("""Time gennorm and those of torch, torch.compile, JAX, ONNX Runtime and NumPy that are installed.

[cyan]gennorm bench --threads 1[/cyan]                             everything: minutes
[cyan]gennorm bench --size tiny,small --peers torch,jax[/cyan]
[cyan]gennorm bench "group norm" bfloat16 --work backward[/cyan]
[cyan]gennorm bench --json speed.json --chart speed.svg[/cyan]
[cyan]gennorm bench --measure accuracy,startup,growth[/cyan]
[cyan]gennorm bench --list[/cyan]                                  the cases

All libraries compute each case. The values are compared with the definition in float64 before anything is timed. Then
the libraries take turns in this process, and the best time of each counts. A speed-up is the time of another library
over that of gennorm. The floor is the time in which np.copyto moves the bytes that must move.

The status is 1 where values are wrong; ≠ marks them.""")
)
def bench(
    patterns: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATTERN]...", help="Cases with this in their name; * is anything.", show_default=False
        ),
    ] = None,
    measure: Annotated[
        str | None,
        typer.Option(
            help="speed (the default), startup (new processes), accuracy (errors), growth (time per element of growing "
            "arrays), models (whole models before and after accelerate), between (norms between operators of torch): "
            "some of them.",
            metavar="WHAT",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="tiny, small, middle, large: some of them.", metavar="SIZES", show_default=False)
    ] = None,
    work: Annotated[
        str | None,
        typer.Option(
            help="forward, backward, out, inference, adapt, module, evaluation: some of them.",
            metavar="WORK",
            show_default=False,
        ),
    ] = None,
    peers: Annotated[
        str | None,
        typer.Option(
            help="torch, torch.compile (compiles each case for seconds), jax, onnxruntime, numpy, scikit-learn: some.",
            metavar="NAMES",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="Threads of gennorm and of every library.", metavar="NUMBER", min=1, show_default=False),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Time for each library in each case.", metavar="SECONDS", min=0)] = 0.3,
    gigabytes: Annotated[
        float, typer.Option(help="Size of the largest array of growth.", metavar="NUMBER", min=2**-10)
    ] = 1.0,
    as_json: Annotated[
        Path | None,
        typer.Option("--json", help="Write what was measured to this file.", metavar="FILE", show_default=False),
    ] = None,
    chart: Annotated[
        Path | None,
        typer.Option(help="Draw the ratios into this .svg, .png or .pdf file.", metavar="FILE", show_default=False),
    ] = None,
    list_cases: Annotated[bool, typer.Option("--list", help="List the cases, and measure nothing.")] = False,
) -> None:
    """Measure gennorm and other libraries."""
    from gennorm.cli.bench import Request, listed, run

    request = Request(tuple(patterns or ()), measure, size, work, peers, threads, seconds, gigabytes, as_json, chart)
    if list_cases:
        listed(request)
    elif run(request):
        raise typer.Exit(1)
