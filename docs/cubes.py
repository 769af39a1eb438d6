"""Write the cubes of the README and of the pages, or check that they are up to date.

    python docs/cubes.py --write
    python docs/cubes.py --check

`docs/images/` gets two files for each norm, one for light pages and one for dark ones.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import gennorm as gn
from gennorm.drawing.cubes import Cubes, describe
from gennorm.drawing.scene import DARK, LIGHT, Scene, place
from gennorm.drawing.svg import alternative, svg_file
from gennorm.spec.config import LayerConfig

IMAGES = Path(__file__).resolve().parent / "images"
WIDTH, STEP = 200, 25  # of a picture, and of an element, in pixels
THEMES = {"light": LIGHT, "dark": DARK}


class Shown(NamedTuple):
    """The title of a picture, the layer as Python, the shape of the array, and the names of its axes."""

    title: str
    call: str
    shape: tuple[int, ...]
    labels: str


# By the name of the files. No shape has more slices than there are colours.
KNOWN = {
    "batch-norm": Shown("batch norm", "gn.batch_norm(3)", (4, 3, 4), "NCL"),
    "layer-norm": Shown("layer norm", "gn.layer_norm((4, 4), batched=True)", (3, 4, 4), "NCL"),
    "instance-norm": Shown("instance norm", "gn.instance_norm(3)", (3, 3, 4), "NCL"),
    "group-norm": Shown("group norm", "gn.group_norm(2, 4)", (3, 4, 4), "NCL"),
    "rms-norm": Shown("RMS norm", "gn.rms_norm(4, batched=True)", (3, 3, 4), "NTD"),
}
UNNAMED = {
    "tiles": Shown(
        '"All", {1: 2, 2: 2}', 'gn.NormalizationLayer("All", 1, {1: 2, 2: 2}, batched=True)', (2, 4, 4), "NCL"
    ),
    "positions": Shown('"0;;1"', 'gn.NormalizationLayer("0;;1", batched=True)', (3, 4, 4), "NCL"),
    "bands": Shown('"{0, 2}", {2: 2}', 'gn.NormalizationLayer("{0, 2}", 1, {2: 2}, batched=True)', (4, 3, 4), "NCL"),
}
# Those of docs/drawing.md, with a legend.
EXPLAINED = {
    "cube": Shown("", "gn.NormalizationLayer('2;;All', 1, batched=True)", (3, 3, 4), "NCL"),
    "grid": Shown("", "gn.group_norm(32, 256)", (8, 256, 14, 14), "NCHW"),
}


def described(shown: Shown) -> Cubes:
    """The cubes of a layer that is written as Python."""
    config = LayerConfig.from_dict(eval(shown.call, {"gn": gn}).to_config())
    return describe(config, shown.shape, list(shown.labels))


def pictures() -> dict[str, str]:
    """The text of each file by its name."""
    rows = {**KNOWN, **UNNAMED}
    cubes = {name: described(shown) for name, shown in rows.items()}

    def page(name: str, height: float) -> Scene:
        return place(cubes[name], width=WIDTH, height=height, step=STEP, title=rows[name].title, legend=False)

    height = max(page(name, 0).height for name in rows)
    found = {}
    for name, shown in rows.items():
        words = f"{shown.title}. {alternative(cubes[name])}"
        for theme, colours in THEMES.items():
            found[f"{name}-{theme}.svg"] = svg_file(page(name, height), colours, words)
    for name, shown in EXPLAINED.items():
        alone = described(shown)
        for theme, colours in THEMES.items():
            found[f"{name}-{theme}.svg"] = svg_file(place(alone), colours, alternative(alone))
    return found


def main(arguments: Sequence[str] | None = None, folder: Path = IMAGES) -> int:
    """Write or check; the exit status is 1 where the check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--write", action="store_true", help="write the pictures")
    choice.add_argument("--check", action="store_true", help="fail where a file differs from what would be written")
    options = parser.parse_args(arguments)
    wanted = pictures()
    if options.write:
        folder.mkdir(exist_ok=True)
        for name, text in wanted.items():
            (folder / name).write_text(text, encoding="utf-8")
        return 0
    present = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.svg")}
    stale = sorted(name for name in wanted.keys() | present.keys() if wanted.get(name) != present.get(name))
    if stale:
        print(f"docs/images is out of date: {', '.join(stale)}: python docs/cubes.py --write", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
