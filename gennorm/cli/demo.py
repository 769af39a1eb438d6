"""`gennorm demo`: normalize a photograph with every preset, and with a layer that is not a preset."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

import gennorm as gn
from gennorm.cli.files import cannot_write, replacing
from gennorm.cli.pictures import Picture, levels_of_grey, read_picture, save_picture
from gennorm.errors import FileError
from gennorm.moments import Moments

__all__ = ["show"]

Array = npt.NDArray[Any]

PHOTOGRAPH = ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg")
ROWS, COLUMNS = 600, 512
COLOURS = ("red", "green", "blue")
SHOWN = 4  # slices in a table
REPEATS = 5

# What the plans below name.
WORDS = {
    "moments": "the count, the mean and the sum of squared deviations of each slice: what a norm has to know of it",
    "runs": "axes next to each other in memory that have one role, so that one loop goes over all of them",
    "tasks": "the parts of a call that do not depend on each other, which threads share",
}


@dataclass(frozen=True, slots=True)
class Exhibit:
    """One layer of the demonstration.

    Attributes
    ----------
    name : str
        Of the picture's file.
    call : str
        The call that makes the layer, as Python.
    what : str
        The explanation that is printed.
    crops : bool
        Whether the layer takes the photograph as a batch of its quarters.
    slices : str
        Format of the name of a slice: its place among the moments, counted from 1, and its colour.
    make : callable
    """

    name: str
    call: str
    what: str
    crops: bool
    slices: str
    make: Callable[[], gn.NormalizationLayer]


EXHIBITS = (
    Exhibit(
        "batch_norm",
        "gn.batch_norm(3, channel_level=-1, statistics='input')",
        "The photograph is cut into a batch of four crops. A colour has one mean and deviation, over all of them: "
        "the crops still fit together.",
        True,
        "{colour}",
        lambda: gn.batch_norm(3, channel_level=-1, statistics="input"),
    ),
    Exhibit(
        "instance_norm",
        "gn.instance_norm(3, channel_level=-1)",
        "The same four crops, and a colour has a mean and deviation in each: the seams show.",
        True,
        "crop {0}, {colour}",
        lambda: gn.instance_norm(3, channel_level=-1),
    ),
    Exhibit(
        "layer_norm",
        "gn.layer_norm(3)",
        "Every pixel is a slice, over its three colours: light and shadow are gone, hue is left.",
        False,
        "pixel {0}, {1}",
        lambda: gn.layer_norm(3),
    ),
    Exhibit(
        "rms_norm",
        "gn.rms_norm(3)",
        "Every pixel again, and no mean is subtracted: all pixels are equally bright, in their own colour.",
        False,
        "pixel {0}, {1}",
        lambda: gn.rms_norm(3),
    ),
    Exhibit(
        "group_norm",
        f"gn.group_norm(8, {ROWS}, batched=False)",
        "The rows take the place of the channels: eight groups of them are eight bands, each normalized by itself.",
        False,
        "band {0}",
        lambda: gn.group_norm(8, ROWS, batched=False),
    ),
    Exhibit(
        "tiles",
        f'gn.NormalizationLayer("{{1, 2}}", 3, {{1: 8, 2: 8}}, input_shape=({ROWS}, {COLUMNS}, 3))',
        "No framework has this one. Two levels are split into eight groups each: 64 tiles, normalized colour by "
        "colour.",
        False,
        "tile {0}, {1}, {colour}",
        lambda: gn.NormalizationLayer("{1, 2}", 3, {1: 8, 2: 8}, input_shape=(ROWS, COLUMNS, 3)),
    ),
)


@dataclass(frozen=True, slots=True)
class Shown:
    """The result of a layer for the photograph.

    Attributes
    ----------
    layer : NormalizationLayer
    plan : Plan
    before, after : Moments
        Of the layer's slices.
    seconds : float
    pixels : ndarray of uint8
    """

    layer: gn.NormalizationLayer
    plan: gn.Plan
    before: Moments
    after: Moments
    seconds: float
    pixels: Array


def show(output: Path, screen: Console, aside: Console) -> None:
    """Normalize the photograph, print what happened, and write the pictures.

    Parameters
    ----------
    output : Path
        A folder; it is made if it does not exist.
    screen, aside : Console
        The console for the output, and the one for a line while kernels are compiled.

    Raises
    ------
    FileError
        The photograph is not installed, or a picture cannot be written.
    """
    photograph = _photograph()
    x = photograph.astype(np.float32)
    _folder(output)
    package, path = PHOTOGRAPH
    screen.print(
        f"The photograph is {Path(path).name}, which comes with {package} {version(package)}: "
        f"{ROWS} rows, {COLUMNS} columns, 3 colours, as float32.",
        soft_wrap=True,
    )
    screen.print()
    for word, meaning in WORDS.items():
        screen.print(f"[bold]{word:<11}[/bold]{meaning}", soft_wrap=True)
    pictures = {"photograph": photograph}
    for exhibit in EXHIBITS:
        with aside.status("normalizing; kernels are compiled the first time"):
            shown = _normalized(exhibit, x)
        _print(exhibit, shown, screen)
        pictures[exhibit.name] = shown.pixels

    for number, (name, pixels) in enumerate(pictures.items()):
        _save(output / f"{number}-{name}.png", pixels)
    sheet = output / "contact-sheet.png"
    _save(sheet, _contact_sheet(pictures))
    screen.print()
    screen.print(Rule(Text("pictures", "bold cyan"), align="left", style="dim"))
    screen.print(f"{sheet} has all of them; {len(pictures)} single ones are in the same folder.", soft_wrap=True)


def _photograph() -> Array:
    """Return the photograph, without importing the package that contains it."""
    package, path = PHOTOGRAPH
    found = importlib.util.find_spec(package)
    if found is None:
        raise ModuleNotFoundError(name=package)
    folders = [Path(folder) for folder in found.submodule_search_locations or ()]
    for file in (folder / path for folder in folders):
        if file.exists():
            return read_picture(file).pixels[:ROWS, :COLUMNS]
    msg = f"the photograph {path} is not in {package} {version(package)}\ninstall {package} from its wheel"
    raise FileError(msg, code="F019")


def _folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from None


def _save(path: Path, pixels: Array) -> None:
    with replacing(path) as temporary:
        save_picture(temporary, Picture(pixels, None, None), ".png")


# --------------------------------------------------------------------------------------------------------- the numbers


def _normalized(exhibit: Exhibit, photograph: Array) -> Shown:
    layer = exhibit.make()
    x = _crops(photograph) if exhibit.crops else photograph
    y = layer(x)
    seconds = math.inf
    for _ in range(REPEATS):
        start = time.perf_counter()
        layer(x)
        seconds = min(seconds, time.perf_counter() - start)
    # Mean and deviation, whatever the method divides by.
    config = {**layer.to_config(), "method": "Standardize"}
    measuring = gn.NormalizationLayer.from_config(config)
    shown = levels_of_grey(y, layer.information("method"))
    return Shown(
        layer,
        layer.plan(x),
        measuring.measure(x),
        measuring.measure(y),
        seconds,
        _together(shown) if exhibit.crops else shown,
    )


def _crops(photograph: Array) -> Array:
    """Return the four quarters as a batch."""
    quarters = photograph.reshape(2, ROWS // 2, 2, COLUMNS // 2, 3).swapaxes(1, 2)
    return np.ascontiguousarray(quarters).reshape(4, ROWS // 2, COLUMNS // 2, 3)


def _together(crops: Array) -> Array:
    """Return the photograph for its four quarters."""
    return crops.reshape(2, 2, ROWS // 2, COLUMNS // 2, 3).swapaxes(1, 2).reshape(ROWS, COLUMNS, 3)


def _print(exhibit: Exhibit, shown: Shown, screen: Console) -> None:
    screen.print()
    screen.print(Rule(Text(exhibit.name, "bold cyan"), align="left", style="dim"))
    screen.print(Text(exhibit.call, "green"), soft_wrap=True)
    if repr(shown.layer) != exhibit.call.removeprefix("gn.").replace('"', "'"):
        screen.print(Text(f"which is {shown.layer!r}", "dim green"), soft_wrap=True)
    screen.print(exhibit.what)
    screen.print()
    screen.print(_table(exhibit, shown))
    screen.print()
    screen.print(Text(str(shown.plan), "dim"), soft_wrap=True)
    screen.print(Text(f"{'time':<11}{shown.seconds * 1e3:.1f} ms, best of {REPEATS}", "dim"), soft_wrap=True)


def _table(exhibit: Exhibit, shown: Shown) -> Table:
    """Return a table of mean and deviation (and root mean square) before and after, for a few slices and for all."""
    columns: list[Literal["mean", "deviation", "rms"]] = ["mean", "deviation"]
    if shown.layer.information("method") == "RMS":
        columns.append("rms")
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("slice", vertical="bottom", no_wrap=True)
    values = []
    for when, moments, digits in (("before", shown.before, 1), ("after", shown.after, 3)):
        for column in columns:
            table.add_column(f"{column}\n{when}", justify="right")
            values.append((_values(moments, column), digits))
    for place in _places(shown.before.shape):
        name = exhibit.slices.format(*(index + 1 for index in place), colour=COLOURS[place[-1] % len(COLOURS)])
        table.add_row(name, *(_number(array[place], digits) for array, digits in values))
    ranges = (f"{_number(array.min(), digits)} to {_number(array.max(), digits)}" for array, digits in values)
    table.add_row(f"all {math.prod(shown.before.shape):,}", *ranges, style="bold")
    return table


def _values(moments: Moments, column: Literal["mean", "deviation", "rms"]) -> Array:
    if column == "mean":
        assert moments.mean is not None  # they were measured with method Standardize
        return moments.mean
    return np.sqrt(moments.variance() if column == "deviation" else moments.mean_square())


def _places(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the indices of a few slices, along the diagonal of the moments."""
    number = min(SHOWN, max(shape))
    return [tuple((2 * i + 1) * size // (2 * number) for size in shape) for i in range(number)]


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".removeprefix("-") if round(value, digits) == 0 else f"{value:.{digits}f}"


# -------------------------------------------------------------------------------------------------------- the pictures

PAPER, INK, FAINT = (250, 250, 247), (25, 25, 30), (120, 120, 125)
SMALL = (256, 300)  # width and height of a picture on the sheet
MARGIN, LABEL, ACROSS = 24, 34, 4
LEGEND = """Grey is the mean,
black and white are
2.5 deviations away.

rms_norm: black is 0,
white twice the
root mean square."""


def _contact_sheet(pictures: dict[str, Array]) -> Array:
    """Return one picture with all pictures and their names."""
    width, height = SMALL[0] + MARGIN, SMALL[1] + LABEL + MARGIN
    down = -(-(len(pictures) + 1) // ACROSS)
    sheet = Image.new("RGB", (ACROSS * width + MARGIN, down * height + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(18), ImageFont.load_default(15)
    for number, (name, pixels) in enumerate(pictures.items()):
        left, top = MARGIN + number % ACROSS * width, MARGIN + number // ACROSS * height
        sheet.paste(Image.fromarray(pixels).resize(SMALL, Image.Resampling.LANCZOS), (left, top))
        draw.text((left, top + SMALL[1] + 7), name, INK, font)
    left, top = MARGIN + len(pictures) % ACROSS * width, MARGIN + len(pictures) // ACROSS * height
    draw.multiline_text((left, top), LEGEND, FAINT, small, spacing=8)
    return np.asarray(sheet)
