"""Shows a layer in a notebook: its settings, its plan, and its cubes."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from gennorm.drawing.cubes import Cubes
from gennorm.drawing.scene import place
from gennorm.drawing.svg import inline_svg

__all__ = ["page"]

CELL = "text-align:left;padding:1px 12px 1px 0;vertical-align:top"


def page(title: str, settings: Mapping[str, Any], plan: str | None, cubes: Cubes | None) -> str:
    """Return an HTML element with what is known of a layer.

    Parameters
    ----------
    title : str
        The layer as Python.
    settings : mapping
        Names and values, which are written as text.
    plan : str, optional
        The text of a plan.
    cubes : Cubes, optional

    Returns
    -------
    str
        It refers to nothing outside itself.

    Examples
    --------
    >>> print(page("NormalizationLayer()", {"epsilon": 0.001}, None, None))
    <div><div style="margin-bottom:6px"><code>NormalizationLayer()</code></div>
    <div style="display:flex;flex-wrap:wrap;gap:24px;align-items:flex-start">
    <table><tr><th style="...">epsilon</th><td style="...">0.001</td></tr></table>
    </div></div>
    """
    rows = "".join(
        f'<tr><th style="{CELL}">{escape(name)}</th><td style="{CELL}">{escape(str(value))}</td></tr>'
        for name, value in settings.items()
    )
    parts = [f'<div><div style="margin-bottom:6px"><code>{escape(title)}</code></div>']
    parts.append('<div style="display:flex;flex-wrap:wrap;gap:24px;align-items:flex-start">')
    if cubes is not None:
        parts.append(inline_svg(place(cubes), cubes))
    parts.append(f"<table>{rows}</table>")
    if plan is not None:
        parts.append(f'<pre style="margin:0">{escape(plan)}</pre>')
    parts.append("</div></div>")
    return "\n".join(parts)
