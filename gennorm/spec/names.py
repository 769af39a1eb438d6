"""Names of levels: what ``input_levels="channel height width"`` declares, and which level each name is.

Names are an input and output of level specs only: a spec that is read has integers, and is written with names. The
grammar is the rule `input-levels` of ``spec/levels.abnf``, the meaning section 9 of ``spec/levels.md``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import EllipsisType

from gennorm.errors import LevelConflictError, LevelSyntaxError, point, shown

__all__ = ["BATCH", "Names", "called", "is_name", "listed", "of_words", "read"]

ARGUMENT = "input_levels"
BATCH = ("b", "batch")  # in the first place, names of level 0
MOST = 64  # the largest number of axes of a NumPy array
WORDS = ("All", "Same", "Complement")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_ALLOWED = 'write one name for each level of an example: "channel height width"; ... stands for levels without a name'


@dataclass(frozen=True, slots=True)
class Names:
    """The names of the levels of an array.

    Attributes
    ----------
    batch : str or None
        Name of level 0.
    first : tuple of str
        Names of levels 1, 2, ...
    last : tuple of str or None
        Names of the levels up to -1, behind ``...``; None where every level has a name, so that the rank is known.

    Examples
    --------
    >>> names = read("batch channel height width")
    >>> names.number("height"), names.called(2), names.rank
    (2, 'height', 3)
    >>> read("channel ... width").number("width")
    -1
    """

    batch: str | None
    first: tuple[str, ...]
    last: tuple[str, ...] | None

    @property
    def rank(self) -> int | None:
        """Number of levels of an example; None if it is open."""
        return len(self.first) if self.last is None else None

    @property
    def shape(self) -> tuple[int | EllipsisType | None, ...]:
        """The `input_shape` that the names declare: sizes that vary."""
        return (*[None] * len(self.first), *(() if self.last is None else (..., *[None] * len(self.last))))

    def all(self) -> tuple[str, ...]:
        """Return every name, that of the batch first."""
        return (*(() if self.batch is None else (self.batch,)), *self.first, *(self.last or ()))

    def number(self, name: object) -> int | None:
        """Return the level of a name, from the front if that is known; None for another word."""
        if not isinstance(name, str):
            return None
        if name == self.batch:
            return 0
        if name in self.first:
            return self.first.index(name) + 1
        if self.last is not None and name in self.last:
            return self.last.index(name) - len(self.last)
        return None

    def called(self, number: int) -> str | None:
        """Return the name that `number` returns this number for, if there is one."""
        if number == 0:
            return self.batch
        if 0 < number <= len(self.first):
            return self.first[number - 1]
        if self.last is not None and -len(self.last) <= number < 0:
            return self.last[number]
        return None

    def canonical(self, number: int) -> int:
        """Return a level counted from the front where every level has a name: -1 is 3 in "channel height width"."""
        return number % (self.rank + 1) if self.rank is not None and -self.rank <= number < 0 else number

    def of(self, level: int, rank: int) -> str | None:
        """Return the name of a resolved level in an example of this rank."""
        return self.called(level) or (self.called(level - rank - 1) if level else None)

    def __str__(self) -> str:
        before = self.all()[: -len(self.last)] if self.last else self.all()
        return " ".join([*before, *(() if self.last is None else ("...", *self.last))])


def called(number: int, names: Names | None) -> str:
    """Return how a level is written in a level spec.

    Examples
    --------
    >>> called(2, read("channel height width")), called(2, None)
    ('height', '2')
    """
    return (None if names is None else names.called(number)) or str(number)


def is_name(word: str) -> bool:
    """Return whether a word can name a level.

    Examples
    --------
    >>> is_name("channel_2"), is_name("2d"), is_name("all")
    (True, False, False)
    """
    return _NAME.fullmatch(word) is not None and word.lower() not in {one.lower() for one in WORDS}


def listed(names: Names) -> str:
    """Return the names for errors.

    Examples
    --------
    >>> listed(read("channel height width"))
    'channel, height and width'
    """
    words = names.all()
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words) or "none"


def read(value: object) -> Names:
    """Read the names of levels.

    Parameters
    ----------
    value : str or sequence of str
        One name for each level of an example. One ``...`` stands for any number of levels without names. A first name
        ``b`` or ``batch`` is that of level 0.

    Returns
    -------
    Names

    Raises
    ------
    LevelSyntaxError
        A word is not a name.
    LevelConflictError
        A name is there twice.

    Examples
    --------
    >>> read(["channel", ...]) == read("channel ...")
    True
    >>> read("channel height channel")
    Traceback (most recent call last):
    gennorm.errors.LevelConflictError: the name "channel" is there twice in input_levels
        "channel height channel"
                        ^^^^^^^
    every level has one name, and every name one level [L210]
    """
    if isinstance(value, Names):
        return value
    if isinstance(value, str):
        text = value
        words = [(found.group(), found.start()) for found in re.finditer(r"[^ \t\r\n]+", text)]
    elif isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        text, words = "", []
        for place, item in enumerate(value, 1):
            if not isinstance(item, str) and item is not ...:
                msg = f"{ARGUMENT} has {shown(item)} at place {place}\n{_ALLOWED}"
                raise LevelSyntaxError(msg, code="L030")
            word = "..." if item is ... else str(item)
            text += " " if text else ""
            words.append((word, len(text)))
            text += word
    else:
        msg = f"{ARGUMENT} cannot be {shown(value)}\n{_ALLOWED}"
        raise LevelSyntaxError(msg, code="L030")
    return of_words(text, words, ARGUMENT)


def of_words(text: str, words: list[tuple[str, int]], argument: str) -> Names:
    """Return the names for the words of a text, with the place of each; errors point into the text."""
    if not words:
        what = f"{argument} has no name"
        raise _wrong(what, text, len(text), len(text), _ALLOWED, "L033")
    seen: list[str] = []
    for word, start in words:
        stop = start + len(word)
        if word == "...":
            if word in seen:
                what = f'{argument} has "..." twice'
                raise _wrong(what, text, start, stop, _ALLOWED, "L034")
        elif not is_name(word):
            what = f"{argument} has {shown(word)}, which is not a name"
            raise _wrong(what, text, start, stop, _instead(word), "L031")
        elif word in seen:
            msg = f'the name "{word}" is there twice in {argument}\n{point(text, start, stop)}\n'
            msg += "every level has one name, and every name one level"
            raise LevelConflictError(msg, code="L210", position=(start, stop))
        seen.append(word)
    batch = seen.pop(0) if seen[0] in BATCH else None
    if len(seen) - ("..." in seen) > MOST:
        msg = f"{argument} has {len(seen)} names\nNumPy's arrays have at most {MOST} axes"
        raise LevelSyntaxError(msg, code="L035")
    if "..." not in seen:
        return Names(batch, tuple(seen), None)
    place = seen.index("...")
    return Names(batch, tuple(seen[:place]), tuple(seen[place + 1 :]))


def _instead(word: str) -> str:
    if word.lower() in {one.lower() for one in WORDS}:
        return '"All", "Same" and "Complement" are words of level specs, however they are written'
    if "," in word:
        return 'names are separated by blanks: "channel height width"'
    return "a name has the letters a to z, digits and underscores, and begins with a letter"


def _wrong(what: str, text: str, start: int, stop: int, hint: str, code: str) -> LevelSyntaxError:
    return LevelSyntaxError(f"{what}\n{point(text, start, stop)}\n{hint}", code=code, position=(start, stop))
