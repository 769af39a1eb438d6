"""Formulas of docstrings on the site: LaTeX becomes MathML, which browsers display without a script.

Docstrings have formulas as numpydoc does: a directive ``.. math::`` for a line apart, a role ``:math:`` in the text.
`Formulas` replaces both in the docstrings that the site shows, before they become HTML, by a code that Markdown does
not change. `on_page_content` replaces the codes by MathML.
"""

import re
import textwrap
from typing import Any

import griffe
from latex2mathml.converter import convert

# A directive, with the lines that are indented more than it; and a role.
DIRECTIVE = re.compile(r"^(?P<indent> *)\.\. math:: *(?P<formula>.*(?:\n(?P=indent) +\S.*)*)", re.MULTILINE)
ROLE = re.compile(r":math:`(?P<formula>[^`]+)`")
BLOCK = re.compile(r"<p>formulablockx([0-9a-f]+)x</p>")
INLINE = re.compile(r"\bformulainlinex([0-9a-f]+)x")


def encode(text: str) -> str:
    r"""Replace the formulas of a docstring by codes.

    >>> encode(r"the mean :math:`\mu`")
    'the mean formulainlinex5c6d75x'
    """

    def block(found: re.Match[str]) -> str:
        formula = textwrap.dedent(found["formula"]).strip()
        return f"{found['indent']}\n{found['indent']}formulablockx{formula.encode().hex()}x\n"

    def inline(found: re.Match[str]) -> str:
        return f"formulainlinex{' '.join(found['formula'].split()).encode().hex()}x"

    return ROLE.sub(inline, DIRECTIVE.sub(block, text))


def decode(html: str) -> str:
    r"""Replace the codes of a page by MathML.

    >>> "<mi>&#x003BC;</mi>" in decode(encode(r":math:`\mu`"))
    True
    """

    def block(found: re.Match[str]) -> str:
        return f'<div class="formula">{convert(bytes.fromhex(found[1]).decode(), display="block")}</div>'

    def inline(found: re.Match[str]) -> str:
        return convert(bytes.fromhex(found[1]).decode())

    return INLINE.sub(inline, BLOCK.sub(block, html))


class Formulas(griffe.Extension):
    """Replaces the formulas of docstrings by codes."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of an object that was read."""
        if obj.docstring is not None:
            obj.docstring.value = encode(obj.docstring.value)


def on_page_content(html: str, **_: Any) -> str:
    """Replace codes in a page; MkDocs calls this hook."""
    return decode(html)
