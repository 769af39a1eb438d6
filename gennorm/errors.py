"""Every error that gennorm raises on purpose: one class for each phase, one stable code for each text.

A message has two or four lines: what is wrong with the value; the text that was given and carets under the offending
characters, where there is such a text; what is allowed and what to write instead. The printed message ends with the
code, such as ``[L101]``. The code does not change when the wording improves.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable
from functools import partial
from typing import Any

__all__ = [
    "ConfigError",
    "DrawingError",
    "DtypeError",
    "FileError",
    "FrozenError",
    "GennormError",
    "GroupError",
    "InitializationError",
    "InputError",
    "LevelConflictError",
    "LevelRangeError",
    "LevelSyntaxError",
    "OutputError",
    "ParameterError",
    "ShapeError",
    "TensorError",
    "UnknownNameError",
    "point",
    "shown",
    "suggest",
]

UNPRINTED = 10**18  # longer integers are not printed: Python refuses to print thousands of digits


class GennormError(Exception):
    """An error raised on purpose by gennorm.

    Parameters
    ----------
    message : str
        The complete message, without the code.
    code : str
        The stable name of the message: one letter for the phase and three digits.
    position : (int, int), optional
        First and last-plus-one offending character, where the error points into a text.

    Attributes
    ----------
    code : str
    message : str
        What was passed. ``str(error)`` is the message followed by the code in brackets.
    position : (int, int) or None

    Examples
    --------
    >>> from gennorm.spec.levels import parse
    >>> try:
    ...     parse("2;;all")
    ... except GennormError as error:
    ...     print(error.code, error.position)
    ...     print(error)
    L003 (3, 6)
    unknown word "all" in aggregation_levels; did you mean "All"?
        "2;;all"
            ^^^
    a level spec is a level (2), a span ("2;;All"), a list ("{1, 3;;4}") or "All" [L003]
    """

    code: str
    position: tuple[int, int] | None

    def __init__(self, message: str, *, code: str, position: tuple[int, int] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.position = position

    @property
    def message(self) -> str:
        """The message without the code."""
        return str(self.args[0])

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]"

    def __reduce__(self) -> tuple[Any, ...]:
        # BaseException would call the class with the message alone, and the code is required.
        return partial(type(self), code=self.code), self.args, self.__dict__


class LevelSyntaxError(GennormError, ValueError):
    """A level spec cannot be read (L0xx)."""


class LevelRangeError(GennormError, ValueError):
    """A level does not exist in the array at hand (L1xx)."""


class LevelConflictError(GennormError, ValueError):
    """The levels of a spec contradict each other or its place: twice, empty, batch or word not allowed (L2xx)."""


class GroupError(GennormError, ValueError):
    """``group_number`` does not fit the aggregation levels or their sizes (G0xx)."""


class ConfigError(GennormError, ValueError):
    """Any other setting of a layer is wrong (C0xx)."""


class ShapeError(GennormError, ValueError):
    """The rank or a size of an array differs from the declared ``input_shape`` (S0xx)."""


class InitializationError(GennormError, ValueError):
    """The sizes of the parameters are not known yet (I0xx)."""


class ParameterError(GennormError, ValueError):
    """Scaling, biases or moments have a wrong shape or value (P0xx)."""


class FrozenError(ParameterError, AttributeError):
    """An attribute that does not exist, or that cannot be assigned (P1xx)."""


class DtypeError(GennormError, TypeError):
    """A dtype that cannot be normalized: complex, object, text (D0xx)."""


class InputError(GennormError, TypeError):
    """The input is not a NumPy array (A0xx)."""


class OutputError(GennormError, ValueError):
    """``out`` has a wrong shape or dtype, is read-only, or overlaps the input (O0xx)."""


class TensorError(GennormError, RuntimeError):
    """A tensor that the layer cannot take: its device, layout or dtype (T0xx)."""


class FileError(GennormError, ValueError):
    """A file cannot be read or written (F0xx)."""


class DrawingError(GennormError, ValueError):
    """A picture cannot be drawn: its axes, its labels, or a library that is not installed (V0xx)."""


class UnknownNameError(GennormError, AttributeError):
    """The package, or a layer, has no attribute of this name (N0xx)."""


def point(text: str, start: int, stop: int | None = None) -> str:
    r"""Draw `text` in quotes, and a caret under each character from `start` up to `stop`.

    Parameters
    ----------
    text : str
        Any text; what does not take exactly one column is shown as its escape sequence.
    start, stop : int
        The offending characters. Without `stop`, or with an empty range, one caret is drawn at `start`; at the end of
        the text it lies under the closing quote.

    Returns
    -------
    str
        Two lines, without a newline at the end.

    Examples
    --------
    >>> print(point("2;;5", 3))
        "2;;5"
            ^
    >>> print(point("2;;\tall", 4, 7))
        "2;;\tall"
              ^^^
    """
    columns = [_one_column(character) for character in text]
    before = sum(map(len, columns[:start]))
    width = max(1, sum(map(len, columns[start : start + 1 if stop is None else stop])))
    return f'    "{"".join(columns)}"\n     {" " * before}{"^" * width}'


def _one_column(character: str) -> str:
    # Tabs, newlines, combining and wide characters would move the caret away from what it points at.
    wide = unicodedata.east_asian_width(character) in {"W", "F"}
    if character.isprintable() and not wide and not unicodedata.combining(character):
        return character
    return character.encode("unicode_escape").decode("ascii")


def shown(value: object) -> str:
    """How errors show a value: itself where its text is short and says it all, else its type.

    Examples
    --------
    >>> shown("1"), shown(1.5), shown([1, 2])
    ('"1"', '1.5', 'of type list')
    """
    if isinstance(value, str):
        return f'"{value}"'
    if value is None or isinstance(value, (bool, int, float)):
        return str(value) if not isinstance(value, int) or abs(value) < UNPRINTED else "an integer of 19 digits or more"
    return "..." if value is ... else f"of type {type(value).__name__}"


def suggest(word: object, allowed: Iterable[str]) -> str:
    """The allowed word that `word` was probably meant to be, as the end of a sentence, or nothing.

    Examples
    --------
    >>> suggest("standardise", ["Standardize", "RMS"])
    '; did you mean "Standardize"?'
    >>> suggest("mean", ["Standardize", "RMS"])
    ''
    """
    by_lower = {one.lower(): one for one in allowed} if isinstance(word, str) else {}
    near = difflib.get_close_matches(str(word).lower(), by_lower, n=1, cutoff=0.6)
    return f'; did you mean "{by_lower[near[0]]}"?' if near else ""
