"""The bracket notation of einops and einx: ``"b (g [c]) [h w]"``, another spelling of the same level specs.

A text names every level of an array in its order, and has brackets around the levels that are aggregated. ``(g [c])``
is a level that is split into g groups. `read` turns a text into names, a level spec and group numbers.
The grammar is the rule `brackets` of ``spec/levels.abnf``, the meaning section 10 of ``spec/levels.md``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gennorm.errors import GroupError, LevelSyntaxError, point, shown
from gennorm.spec.levels import AGGREGATION, LARGEST, Level, Listing, Span
from gennorm.spec.names import BATCH, Names, of_words

__all__ = ["Brackets", "is_brackets", "read", "write"]

_TOKEN = re.compile(
    r"(?P<blank>[ \t\r\n]+)|(?P<word>[A-Za-z][A-Za-z0-9_]*|\.\.\.)|(?P<number>[1-9][0-9]*)|(?P<mark>[\[\]()])"
)
_FORM = 'name every level of the array, with brackets around what is aggregated: "b [c h w]"'
_GROUP = 'a group is written "(32 [c])", or "(g [c])" with group_number={"g": 32}'
_INSTEAD = {
    "-": 'the levels of the input are all of the text: "b [c h w]"',
    ",": "names are separated by blanks",
    "{": "levels are numbers in braces and names in brackets; write one of them",
    ";": "a text with brackets has no spans: name the levels",
}


class _Token(NamedTuple):
    kind: str  # "word", "number", "[", "]", "(", ")", "end"
    text: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Brackets:
    """What a text in bracket notation says.

    Attributes
    ----------
    names : Names
        The names of the levels.
    levels : Level, Span or Listing
        The aggregation levels, in the order of the array.
    groups : object
        The `group_number` of the layer.
    """

    names: Names
    levels: Level | Span | Listing
    groups: object


def is_brackets(value: object) -> bool:
    """Return whether a value is a text in bracket notation, and not a level spec with a wrong character.

    Examples
    --------
    >>> is_brackets("b [c h w]"), is_brackets("[1]"), is_brackets("2;;All")
    (True, False, False)
    """
    return isinstance(value, str) and bool(re.search(r"[\[\]]", value) and re.search(r"[A-Za-z]|\.\.\.", value))


def read(text: str, group_number: object = None) -> Brackets:
    """Read a text in bracket notation.

    Parameters
    ----------
    text : str
        The names of all levels, and brackets around those that are aggregated.
    group_number : object, optional
        The numbers of the groups that have names in the text.

    Returns
    -------
    Brackets

    Raises
    ------
    LevelSyntaxError
        The text is not bracket notation.
    LevelConflictError
        A name is there twice.
    GroupError
        The number of a group is not given.

    Examples
    --------
    >>> found = read("b (g [c]) [h w]", {"g": 32})
    >>> str(found.names), found.levels, found.groups
    ('b c h w', Listing(items=(Level(number=1), Level(number=2), Level(number=3))), {'c': 32})
    >>> read("b [c")
    Traceback (most recent call last):
    gennorm.errors.LevelSyntaxError: a bracket in aggregation_levels is opened by "[" and not closed
        "b [c"
           ^
    name every level of the array, with brackets around what is aggregated: "b [c h w]" [L041]
    """
    reader = _Reader(text)
    reader.parts()
    names = of_words(text, [(token.text, token.start) for token in reader.words], AGGREGATION)
    items: list[Level | Span] = []
    for token in reader.aggregated:
        if token.text == "...":
            assert names.last is not None
            first, last = len(names.first) + 1, -len(names.last) - 1
            items.append(Span(first if first > 1 else None, last if last < -1 else None))
        else:
            number = names.number(token.text)
            assert number is not None
            items.append(Level(number))
    return Brackets(names, items[0] if len(items) == 1 else Listing(tuple(items)), reader.numbered(group_number))


class _Reader:
    """A parser of one text; errors mark the wrong characters."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.words: list[_Token] = []
        self.aggregated: list[_Token] = []
        self.groups: list[tuple[_Token, _Token]] = []  # the number or its name, and the level
        self.tokens = self._tokens()
        self.next = 0

    def fail(self, what: str, token: _Token, hint: str, code: str) -> LevelSyntaxError:
        place = token.start, token.stop
        return LevelSyntaxError(f"{what}\n{point(self.text, *place)}\n{hint}", code=code, position=place)

    def _tokens(self) -> list[_Token]:
        tokens: list[_Token] = []
        at = 0
        while at < len(self.text):
            found = _TOKEN.match(self.text, at)
            glued = found is not None and found.lastgroup in {"word", "number"} and tokens and tokens[-1].stop == at
            if found is None or (glued and tokens[-1].kind in {"word", "number"}):
                what = f'{AGGREGATION} has an unexpected character "{self.text[at]}"'
                hint = _INSTEAD.get(self.text[at], _FORM)
                raise self.fail(what, _Token("", "", at, at + 1), hint, "L040")
            kind = str(found.lastgroup)
            if kind != "blank":
                tokens.append(_Token(found.group() if kind == "mark" else kind, found.group(), at, found.end()))
            at = found.end()
        return [*tokens, _Token("end", "", len(self.text), len(self.text))]

    def take(self, *kinds: str) -> _Token | None:
        token = self.tokens[self.next]
        if token.kind not in kinds:
            return None
        self.next += 1
        return token

    def parts(self) -> None:
        while not self.take("end"):
            if word := self.take("word"):
                self.words.append(word)
            elif opened := self.take("["):
                self.bracket(opened)
            elif opened := self.take("("):
                self.group(opened)
            else:
                token = self.tokens[self.next]
                what = f'{AGGREGATION} has "{token.text}" where a level has to be'
                raise self.fail(what, token, _GROUP if token.kind == "number" else _FORM, "L042")

    def bracket(self, opened: _Token) -> None:
        start = len(self.aggregated)
        while word := self.take("word"):
            self.words.append(word)
            self.aggregated.append(word)
        token = self.tokens[self.next]
        if token.kind == "end":
            what = f'a bracket in {AGGREGATION} is opened by "[" and not closed'
            raise self.fail(what, opened, _FORM, "L041")
        if not self.take("]"):
            what = f'{AGGREGATION} has "{token.text}" inside brackets'
            raise self.fail(what, token, _FORM if token.kind == "[" else _GROUP, "L042")
        if start == len(self.aggregated):
            what = f"{AGGREGATION} has brackets without a level"
            raise self.fail(what, opened._replace(stop=token.stop), _FORM, "L043")

    def group(self, opened: _Token) -> None:
        number, _, level = self.take("word", "number"), self.take("["), self.take("word")
        marks = self.take("]"), self.take(")")
        if number is None or level is None or None in marks or "..." in {number.text, level.text}:
            last = self.tokens[self.next]
            what = f"{AGGREGATION} has parentheses that are not a group"
            raise self.fail(what, opened._replace(stop=max(opened.stop, last.start)), _GROUP, "L044")
        if number.kind == "number" and int(number.text[:10]) > LARGEST:
            what = f"a group number in {AGGREGATION} has more than nine digits"
            raise self.fail(what, number, _GROUP, "L045")
        self.words.append(level)
        self.aggregated.append(level)
        self.groups.append((number, level))

    def numbered(self, given: object) -> object:
        """Return the `group_number` by level, from the numbers in the text and those that are given."""
        if not self.groups:
            return given
        named = {number.text for number, _ in self.groups if number.kind == "word"}
        levels = {token.text for token in self.words}
        if isinstance(given, Mapping):
            numbers = dict(given)
        elif given is None or (len({number.text for number, _ in self.groups}) == len(named) == 1 and _is_one(given)):
            numbers = {} if given is None else dict.fromkeys(named, given)
        else:
            msg = f"group_number cannot be {shown(given)} for the groups of {shown(self.text)}\n{_GROUP}"
            raise GroupError(msg, code="G040")
        found: dict[object, object] = {key: number for key, number in numbers.items() if key not in named}
        for number, level in self.groups:
            if number.text in levels:
                what = f'the name "{number.text}" is that of a level and of a group in {AGGREGATION}'
                raise self.fail(what, number, _GROUP, "L046")
            if number.kind == "word" and number.text not in numbers:
                place = number.start, number.stop
                msg = f'the group "{number.text}" of {AGGREGATION} has no number\n{point(self.text, *place)}\n{_GROUP}'
                raise GroupError(msg, code="G041", position=place)
            if level.text in found:
                msg = f"group_number names level {level.text}, whose groups are in {shown(self.text)}\n{_GROUP}"
                raise GroupError(msg, code="G042")
            found[level.text] = int(number.text) if number.kind == "number" else numbers[number.text]
        return found


def _is_one(given: object) -> bool:
    return not isinstance(given, Sequence) or isinstance(given, (str, bytes, bytearray))


def write(names: Names, levels: Mapping[str, int], *, batched: bool) -> str | None:
    """Return the text in bracket notation; None if the batch has no name that is free.

    Parameters
    ----------
    names : Names
    levels : mapping of str to int
        The aggregated levels by name, ``"..."`` among them, and the numbers of their groups. The batch is ``""``.
    batched : bool
        Whether arrays have a batch.

    Returns
    -------
    str or None

    Examples
    --------
    >>> from gennorm.spec.names import read as named
    >>> write(named("channel height width"), {"channel": 32, "height": 1, "width": 1}, batched=True)
    'b (32 [channel]) [height width]'
    """
    words = [*names.first, *([] if names.last is None else ["...", *names.last])]
    places: list[tuple[str, str]] = [(word, word) for word in words]
    if batched:
        batch = names.batch or next((word for word in BATCH if word not in words), None)
        if batch is None:
            return None
        places.insert(0, (batch, ""))
    parts: list[str] = []
    opened = False
    for word, key in places:
        number = levels.get(key, 0)
        if opened and number == 1:
            parts[-1] = f"{parts[-1][:-1]} {word}]"
        else:
            parts.append(word if not number else f"[{word}]" if number == 1 else f"({number} [{word}])")
        opened = number == 1
    return " ".join(parts)
