"""Writes scenes as SVG, for files and for notebooks; it needs no other library."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from gennorm.drawing.cubes import Cubes
from gennorm.drawing.scene import COLOURS, LIGHT, Point, Scene, Theme, colour, letters

__all__ = ["alternative", "inline_svg", "svg_file"]

FONT = "font-family:system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif"
DASHES = {"both": "", "divided": ' stroke-dasharray="4 3"', "centred": ' stroke-dasharray="1 2.5"'}
SHADES = {"front": "s", "top": "t", "right": "r"}

# What hovering does: elements of other slices fade, the marks at the parameters of the element grow, and a line says
# which moments and which parameters belong to the element. An attribute needs no names that two pictures could share.
HOVER = """\
const f=event.target.closest('[data-s]'),q=(s)=>this.querySelectorAll(s),d=f&&f.dataset;
for(const e of q('[data-s]'))e.style.opacity=!d||e.dataset.s===d.s?1:.18;
for(const e of q('[data-m]'))e.style.opacity=!d||d.p.split(' ').includes(e.dataset.m)?1:.18;
q('.say')[0].textContent=d?d.say:'';"""


def alternative(cubes: Cubes) -> str:
    """Return the picture in words, for readers who do not see it.

    Examples
    --------
    >>> from gennorm.drawing.cubes import describe
    >>> from gennorm.spec.config import LayerConfig
    >>> print(alternative(describe(LayerConfig.make("2;;All", biases=None), (2, 3, 4), ["C", None, None])))
    A cube of 2 × 3 × 4 elements, cut along C into 2 slices of 12. scaling varies along C.
    """
    shape = " × ".join(map(str, cubes.shape))
    cut = [side for side in cubes.sides if side.parts[-1] > 0]
    names = ", ".join(side.name + (f" in {side.groups} groups" if side.aggregated else "") for side in cut)
    elements = len(cubes.slices.flat) // cubes.count
    words = f"A cube of {shape} elements, "
    words += f"cut along {names} into {cubes.count} slices of {elements}." if cut else f"one slice of {elements}."
    varying = [side.name for side in cubes.sides if side.has_parameters]
    if varying:
        verb = "varies" if len(cubes.parameters) == 1 else "vary"
        words += f" {' and '.join(cubes.parameters)} {verb} along {', '.join(varying)}."
    return words


def svg_file(scene: Scene, theme: Theme, title: str) -> str:
    """Return a scene as the text of an SVG file with a transparent page.

    Parameters
    ----------
    scene : Scene
    theme : Theme
    title : str
        What the picture shows, in words.

    Returns
    -------
    str
    """
    used = sorted({(face.slice % len(COLOURS), face.side) for face in scene.faces})
    rules = [f".{SHADES[side]}{_key(number)}{{fill:{colour(number, side, theme)}}}" for number, side in used]
    rules += [
        f"path{{stroke:{theme.page};stroke-width:.7;stroke-linejoin:round}}",
        f"text{{{FONT};fill:{theme.ink}}}.l{{fill:#111;font-weight:700;text-anchor:middle}}.f{{fill:{theme.faint}}}",
        f"line{{stroke:{theme.ink};stroke-width:1.6}}.m{{fill:{theme.ink};stroke:none}}",
    ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {_size(scene)} role="img">\n<title>{escape(title)}</title>\n'
    style = f"<style>{''.join(rules)}</style>\n"
    faces = (
        f'<path class="{SHADES[face.side]}{_key(face.slice)}" d="{_path(face.corners)}"/>\n' for face in scene.faces
    )
    return f"{head}{style}{''.join(faces)}{_rest(scene)}</svg>\n"


def inline_svg(scene: Scene, cubes: Cubes) -> str:
    """Return a scene as an SVG element for a page, in the colours of its text; hovering an element marks its slice.

    Parameters
    ----------
    scene : Scene
    cubes : Cubes
        What the scene shows.

    Returns
    -------
    str
    """
    script = escape(HOVER.replace("\n", ""))
    words = escape(alternative(cubes))
    parts = [
        f'<svg {_size(scene, below=20)} style="max-width:100%;height:auto" role="img" aria-label="{words}" '
        f'onmouseover="{script}" onmouseleave="{script}">',
        '<g stroke="#fff" stroke-width=".7" stroke-linejoin="round">',
    ]
    shape = cubes.moments_shape
    for face in scene.faces:
        say = f"moments{_index(face.slice, shape)}" + "".join(
            f", {name}{_index(face.place, [cubes.shape[axis] for axis in cubes.parameter_axes])}"
            for name in cubes.parameters
        )
        parts.append(
            f'<path data-s="{face.slice}" data-p="{_marked(face.place, cubes)}" data-say="{say}" '
            f'fill="{colour(face.slice, face.side, LIGHT)}" d="{_path(face.corners)}"/>'
        )
    parts.append("</g>")
    style = f"{FONT};fill:currentColor"
    parts.append(f'<g style="{style}" stroke-width="1.6">{_rest(scene, inline=True)}')
    parts.append(
        f'<text class="say" x="28" y="{scene.height + 8:g}" font-size="11" font-weight="600"></text></g></svg>'
    )
    return "\n".join(parts)


def _rest(scene: Scene, *, inline: bool = False) -> str:
    """Return what lies over the faces: letters, marks, bars and texts."""
    stroke, faint = (' stroke="currentColor"', ' opacity=".7"') if inline else ("", ' class="f"')
    found = []
    letter = ' style="pointer-events:none" fill="#111" font-weight="700" text-anchor="middle"'
    letter = letter if inline else ' class="l"'
    for (x, y), number in scene.letters:
        at = f'x="{x:g}" y="{y + scene.letter / 3:.2f}" font-size="{scene.letter:g}"'
        found.append(f"<text{letter} {at}>{letters(number)}</text>")
    for bar in scene.bars:
        (x, y), (x2, y2) = bar.start, bar.stop
        found.append(f'<line x1="{x:g}" y1="{y:g}" x2="{x2:g}" y2="{y2:g}"{stroke}{DASHES[bar.kind]}/>')
    for mark in scene.marks:
        (x, y), half = mark.centre, scene.mark
        corners = ((x, y - half), (x + half, y), (x, y + half), (x - half, y))
        kind = f'data-m="{mark.axis}.{mark.position}"' if inline else 'class="m"'
        found.append(f'<path {kind} d="{_path(corners)}"/>')
    anchors = {"start": "", "middle": ' text-anchor="middle"', "end": ' text-anchor="end"'}
    for text in scene.texts:
        kind = (faint if text.faint else "") + (' font-weight="600"' if text.strong else "") + anchors[text.anchor]
        found.append(
            f'<text x="{text.at[0]:g}" y="{text.at[1]:g}" font-size="{text.size:g}"{kind}>{escape(text.words)}</text>'
        )
    return "\n".join(found) + "\n"


def _size(scene: Scene, below: float = 0) -> str:
    height = scene.height + below
    return f'viewBox="0 0 {scene.width:g} {height:g}" width="{scene.width:g}" height="{height:g}"'


def _key(number: int) -> str:
    return "abcdefghi"[number % len(COLOURS)]


def _path(corners: tuple[Point, ...]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners) + "Z"


def _index(number: int, shape: Sequence[int]) -> str:
    """Return the index of an element by its number in C order, as Python writes it."""
    return f"[{', '.join(str(int(place)) for place in np.unravel_index(number, shape))}]" if shape else ""


def _marked(place: int, cubes: Cubes) -> str:
    """Return the names of the marks of a parameter; the first is the mark of the legend."""
    axes = cubes.parameter_axes
    positions = np.unravel_index(place, [cubes.shape[axis] for axis in axes]) if axes else ()
    return " ".join(["-1.-1", *(f"{axis}.{position}" for axis, position in zip(axes, positions, strict=True))])
