"""Reads level specs, from text or Python values, and resolves them to levels. It uses integers and text only.

A level spec selects levels (1-based dimensions of one example; 0 is the batch): ``2``, ``"2;;All"``,
``";;-2"``, ``"{1, 3;;4}"``, ``[1, "3;;4"]``, and for scaling also ``"Same"``, ``"Complement"`` and ``()``. Where the
levels have names, a spec may use these beside numbers: ``"height;;All"``. The grammar is ``spec/levels.abnf``, the
meaning ``spec/levels.md``.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, assert_never

from gennorm.errors import LevelConflictError, LevelRangeError, LevelSyntaxError, point, suggest
from gennorm.spec.names import WORDS, Names, called, listed

__all__ = [
    "Level",
    "LevelSpec",
    "Listing",
    "Span",
    "Word",
    "batch_place",
    "format",
    "members",
    "name",
    "numbered",
    "parse",
    "resolve",
    "resolve_scaling",
    "uses_batch",
]

AGGREGATION = "aggregation_levels"
SCALING = "scaling_levels"
LARGEST = 999_999_999  # nine digits; NumPy arrays stop at 64 axes
_ALLOWED = {
    AGGREGATION: 'a level spec is a level (2), a span ("2;;All"), a list ("{1, 3;;4}") or "All"',
    SCALING: 'a level spec is a level (2), a span ("2;;All"), a list ("{1, 3;;4}"), "All", "Same" or "Complement"',
}


@dataclass(frozen=True, slots=True)
class Level:
    """One level: 1 is the first dimension of an example, -1 the last, 0 the batch."""

    number: int


@dataclass(frozen=True, slots=True)
class Span:
    """The levels from `first` to `last`, both included; None is the outermost level of that side."""

    first: int | None
    last: int | None
    step: int = 1


@dataclass(frozen=True, slots=True)
class Listing:
    """Levels and spans in the order written. Without items: one scalar parameter (scaling levels only)."""

    items: tuple[Level | Span, ...]


class Word(Enum):
    """Words that can replace the scaling levels."""

    SAME = "Same"
    COMPLEMENT = "Complement"

    def __repr__(self) -> str:
        return f"Word.{self.name}"


LevelSpec = Level | Span | Listing | Word


# ------------------------------------------------------------------------------------------------------------- reading


def parse(value: object, *, argument: str = AGGREGATION, names: Names | None = None) -> LevelSpec:
    """Read a level spec.

    Parameters
    ----------
    value : int, str, sequence of int and str, or LevelSpec
        The spec as a user writes it.
    argument : {"aggregation_levels", "scaling_levels"}
        The argument of the layer; it determines whether ``"Same"``, ``"Complement"``, ``()`` and level 0 are allowed.
    names : Names, optional
        The names that `value` may use. Where every level has a name, negative levels become positive ones.

    Returns
    -------
    LevelSpec

    Raises
    ------
    LevelSyntaxError
        `value` is not a level spec.
    LevelConflictError
        No array has these levels, or they are not allowed for this argument.

    Examples
    --------
    >>> parse("2;;All")
    Span(first=2, last=None, step=1)
    >>> parse([1, "3;;4"]) == parse("{1, 3;;4}")
    True
    >>> parse("Same", argument="scaling_levels")
    Word.SAME
    >>> from gennorm.spec.names import read
    >>> parse("height;;-1", names=read("channel height width"))
    Span(first=2, last=3, step=1)
    >>> parse("2;;al")
    Traceback (most recent call last):
    gennorm.errors.LevelSyntaxError: unknown word "al" in aggregation_levels; did you mean "All"?
        "2;;al"
            ^^
    a level spec is a level (2), a span ("2;;All"), a list ("{1, 3;;4}") or "All" [L003]
    """
    if isinstance(value, str):
        spec, places = _Reader(value, argument, names).spec()
        _check(spec, value, places, argument, names)
        return spec
    spec = _read_value(value, argument, names)
    _check(spec, format(spec, names), _places(spec, names), argument, names)
    return spec


def _read_value(value: object, argument: str, names: Names | None) -> LevelSpec:
    if isinstance(value, Listing):
        return Listing(tuple(_read_item(item, argument, names) for item in value.items))
    if isinstance(value, Word):
        return value
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        return Listing(tuple(_read_item(item, argument, names) for item in value))
    return _read_item(value, argument, names)


def _read_item(value: object, argument: str, names: Names | None) -> Level | Span:
    """Read one item of a sequence, or a spec that is not a sequence."""
    if isinstance(value, str):
        return _Reader(value, argument, names).only_item()
    if isinstance(value, Level):
        return Level(_level(value.number, argument, names))
    if isinstance(value, Span):
        first, last = (None if end is None else _number(end, argument) for end in (value.first, value.last))
        return _span(first, last, _step(value.step, argument), names)
    if isinstance(value, Word):
        return _Reader(value.value, argument, names).only_item()
    return Level(_level(value, argument, names))


def _level(value: object, argument: str, names: Names | None) -> int:
    number = _number(value, argument)
    return number if names is None else names.canonical(number)


def _span(first: int | None, last: int | None, step: int, names: Names | None) -> Span:
    """Return a span with canonical ends; not where it reaches nothing, which a list may contain in this form only."""
    if names is None or first is None or last is None:
        ends = [end if end is None or names is None else names.canonical(end) for end in (first, last)]
        return Span(ends[0], ends[1], step)
    canonical = Span(names.canonical(first), names.canonical(last), step)
    return Span(first, last, step) if names.canonical(first) > names.canonical(last) else canonical


def _step(value: object, argument: str) -> int:
    step = _number(value, argument)
    if step < 1:
        msg = f"the step of a span in {argument} is {step}\na step is 1 or more: spans run upwards"
        raise LevelSyntaxError(msg, code="L012")
    return step


def _number(value: object, argument: str) -> int:
    if type(value).__name__ in {"bool", "bool_"}:
        msg = f"{argument} cannot be the bool {value}\n{_ALLOWED[argument]}"
        raise LevelSyntaxError(msg, code="L021")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise _not_a_spec(value, argument) from None
    if abs(number) > LARGEST:
        digits = "more than nine digits" if number > 0 else "a minus sign and more than nine digits"
        msg = f"a number in {argument} has {digits}\nlevels count the dimensions of an array, and NumPy stops at 64"
        raise LevelSyntaxError(msg, code="L007")
    return number


def _not_a_spec(value: object, argument: str) -> LevelSyntaxError:
    kind = type(value).__name__
    if value is None:
        scalar = "write () for one scalar parameter, and scaling=None, biases=None for none at all"
        hint = scalar if argument == SCALING else _ALLOWED[argument]
        return LevelSyntaxError(f"{argument} cannot be None\n{hint}", code="L022")
    if isinstance(value, slice):
        return LevelSyntaxError(f"{argument} cannot be the {value}\n{_instead_of_slice(value)}", code="L023")
    if isinstance(value, float):
        whole = f"; write {int(value)}" if value.is_integer() and abs(value) <= LARGEST else ""
        return LevelSyntaxError(f"{argument} cannot be the float {value}\nlevels are integers{whole}", code="L024")
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        msg = f"{argument} has a {kind} inside a sequence\nlevels are not nested: write one flat sequence"
        return LevelSyntaxError(msg, code="L015")
    if isinstance(value, (set, frozenset)):
        msg = f"{argument} cannot be a {kind}: it has no order\nwrite a tuple, such as (1, 3)"
        return LevelSyntaxError(msg, code="L025")
    return LevelSyntaxError(f"{argument} cannot be of type {kind}\n{_ALLOWED[argument]}", code="L026")


def _instead_of_slice(value: slice) -> str:
    rule = "a slice counts from 0 and leaves out its end, a span counts from 1 and includes it"
    start, stop, step = value.start, value.stop, value.step
    if any(type(end) not in {int, type(None)} for end in (start, stop, step)) or (step or 1) < 1 or stop == 0:
        return f'{rule}; write "2;;All"'
    first = "" if start is None else start + 1 if start >= 0 else start
    last = "All" if stop is None else stop if stop > 0 else stop - 1
    span = f"{first};;{last}{f';;{step}' if step not in {None, 1} else ''}"
    try:
        parse(span)
    except (LevelSyntaxError, LevelConflictError):
        span = "2;;All"
    return f'{rule}; write "{span}"'


class _Token(NamedTuple):
    kind: str  # "number", "name", "word", ";;", "{", "}", ",", "end"
    text: str
    start: int
    stop: int


_TOKEN = re.compile(r"(?P<blank>[ \t\r\n]+)|(?P<number>-?[0-9]+)|(?P<word>[A-Za-z][A-Za-z0-9_]*)|(?P<mark>;;|[{},])")
_INSTEAD = {
    ";": 'a span is written with two semicolons: "2;;All"',
    ":": 'a span is written with two semicolons: "2;;All"',
    "(": 'a list is written in braces: "{1, 3;;4}"',
    "[": 'a list is written in braces: "{1, 3;;4}"',
    ")": 'a list is written in braces: "{1, 3;;4}"',
    "]": 'a list is written in braces: "{1, 3;;4}"',
    "+": 'levels have no plus sign: write "2", or "-1" for the last level',
    "−": 'a negative level is written with a hyphen: "-1"',
    "–": 'a negative level is written with a hyphen: "-1"',
    "-": 'a hyphen belongs to the number after it: "-1" is the last level',
    ".": 'levels are integers; "2;;All" means every level from 2 on',
    "…": '"2;;All" means every level from 2 on',
}


class _Reader:
    """A recursive-descent parser of one text; errors mark the wrong characters."""

    def __init__(self, text: str, argument: str, names: Names | None) -> None:
        self.text = text
        self.argument = argument
        self.names = names
        self.tokens = self._tokens()
        self.next = 0

    def fail(self, what: str, token: _Token | tuple[int, int], hint: str, code: str) -> LevelSyntaxError:
        start, stop = token[-2:]
        return LevelSyntaxError(f"{what}\n{point(self.text, start, stop)}\n{hint}", code=code, position=(start, stop))

    def _tokens(self) -> list[_Token]:
        tokens, at = [], 0
        while at < len(self.text):
            found = _TOKEN.match(self.text, at)
            if found is None:
                what = f'{self.argument} has an unexpected character "{self.text[at]}"'
                hint = _INSTEAD.get(self.text[at], _ALLOWED[self.argument])
                raise self.fail(what, (at, at + 1), hint, "L002")
            kind = str(found.lastgroup)
            if kind != "blank":
                kind = found.group() if kind == "mark" else kind
                tokens.append(self._good(_Token(kind, found.group(), at, found.end())))
            at = found.end()
        return [*tokens, _Token("end", "", len(self.text), len(self.text))]

    def _good(self, token: _Token) -> _Token:
        if token.kind == "word":
            allowed = ["All"] if self.argument == AGGREGATION else [*WORDS]
            if self.names is not None and self.names.number(token.text) is not None:
                return token._replace(kind="name")
            if token.text not in WORDS and self.names is not None:
                what = f'unknown name "{token.text}" in {self.argument}'
                what += suggest(token.text, [*self.names.all(), *allowed])
                raise self.fail(what, token, f"the names in input_levels are {listed(self.names)}", "L004")
            if token.text not in WORDS:
                what = f'unknown word "{token.text}" in {self.argument}{suggest(token.text, allowed)}'
                raise self.fail(what, token, _ALLOWED[self.argument], "L003")
        elif token.kind == "number":
            digits = token.text.removeprefix("-")
            if len(digits) > 1 and digits[0] == "0":
                what = f"a number in {self.argument} has leading zeros"
                raise self.fail(what, token, f'write "{token.text[: -len(digits)]}{digits.lstrip("0") or "0"}"', "L006")
            if token.text == "-0":
                what = f'{self.argument} has a "-0"'
                raise self.fail(what, token, '0 is the batch, "-1" the last level', "L006")
            if len(digits) > len(str(LARGEST)):
                what = f"a number in {self.argument} has more than nine digits"
                raise self.fail(what, token, "levels count the dimensions of an array, and NumPy stops at 64", "L007")
        return token

    @property
    def token(self) -> _Token:
        return self.tokens[self.next]

    def take(self, kind: str) -> _Token | None:
        if self.token.kind != kind:
            return None
        self.next += 1
        return self.tokens[self.next - 1]

    def spec(self) -> tuple[LevelSpec, list[tuple[int, int]]]:
        """Read the whole text as a spec; return it and the places of its items."""
        if self.token.kind == "end":
            what = f"{self.argument} is an empty text"
            raise self.fail(what, self.token, _ALLOWED[self.argument], "L001")
        spec: LevelSpec
        if self.take("{"):
            spec, places = self.listing()
        elif self.token.text in {"Same", "Complement"}:
            spec, places = Word(self.token.text), [self.token[-2:]]
            self.next += 1
        else:
            spec, place = self.item()
            places = [place]
        self.expect_end()
        return spec, places

    def only_item(self) -> Level | Span:
        """Read the whole text as one item of a sequence."""
        item, _ = self.item()
        self.expect_end()
        return item

    def listing(self) -> tuple[Listing, list[tuple[int, int]]]:
        opened = self.tokens[self.next - 1]
        if self.take("}"):
            return Listing(()), []
        items, places = [], []
        while True:
            item, place = self.item()
            items.append(item)
            places.append(place)
            if self.take("}"):
                return Listing(tuple(items)), places
            if self.token.kind == "end":
                what = f'a list in {self.argument} is opened by "{{" and not closed'
                raise self.fail(what, opened, f'write "{self.text.strip()}}}"', "L010")
            if not self.take(","):
                what = f'expected "," or "}}" in {self.argument}, not "{self.token.text}"'
                raise self.fail(what, self.token, 'the items of a list are separated by commas: "{1, 3;;4}"', "L009")

    def item(self) -> tuple[Level | Span, tuple[int, int]]:
        begin = self.token
        first = self.end_of_span()
        if not self.take(";;"):
            if first is None:
                found = f'not "{begin.text}"' if begin.text else "and the text ends here"
                what = f"expected a level in {self.argument}, {found}"
                raise self.fail(what, begin, _ALLOWED[self.argument], "L008")
            end = self.number(first)
            item = Span(None, None) if end is None else Level(_level(end, self.argument, self.names))
        else:
            last = self.end_of_span()
            step = self.step() if self.take(";;") else 1
            item = _span(self.number(first), self.number(last), step, self.names)
        return item, (begin.start, self.tokens[self.next - 1].stop)

    def end_of_span(self) -> _Token | None:
        """Read a number, a name or "All"; return None if there is none of them."""
        if self.token.kind == "{":
            what = f"{self.argument} has a list inside a list or span"
            raise self.fail(what, self.token, 'levels are not nested: write one flat list, "{1, 3;;4}"', "L015")
        if self.token.text in {"Same", "Complement"}:
            what = f'"{self.token.text}" is combined with other levels in {self.argument}'
            raise self.fail(what, self.token, f'"{self.token.text}" stands alone and only in {SCALING}', "L014")
        return self.take("number") or self.take("name") or self.take("word")

    def number(self, token: _Token | None) -> int | None:
        """Return the level of a number or a name; None, the outermost level, for "All" and for nothing."""
        if token is None or token.kind == "word":
            return None
        if self.names is not None and token.kind == "name":
            return self.names.number(token.text)
        return int(token.text)

    def step(self) -> int:
        token = self.take("number")
        if token is None:
            what = f"a span in {self.argument} has no step after its second ;;"
            raise self.fail(what, self.token, 'write a step, "1;;All;;2", or leave out the second ;;', "L011")
        if int(token.text) < 1:
            what = f"the step of a span in {self.argument} is {token.text}"
            raise self.fail(what, token, "a step is 1 or more: spans run upwards", "L012")
        if self.token.kind == ";;":
            what = f"a span in {self.argument} has a third ;;"
            raise self.fail(what, self.token, 'a span is "first;;last" or "first;;last;;step"', "L013")
        return int(token.text)

    def expect_end(self) -> None:
        if self.token.kind == "end":
            return
        what = f'{self.argument} goes on with "{self.token.text}" where the level spec ends'
        hint = 'a list is written in braces: "{1, 3;;4}"' if self.token.kind == "," else _ALLOWED[self.argument]
        raise self.fail(what, self.token, hint, "L009")


# ------------------------------------------------------------------------------------------------------------- writing


def format(spec: LevelSpec, names: Names | None = None) -> str:
    """Return the canonical text of a spec: ``parse(format(spec)) == spec``. Levels that have a name are written so.

    Examples
    --------
    >>> format(parse(" {1,3;;}"))
    '{1, 3;;All}'
    >>> format(parse(";;"))
    'All'
    >>> from gennorm.spec.names import read
    >>> format(parse("{1, 2;;}"), read("channel height width"))
    '{channel, height;;All}'
    """
    match spec:
        case Level(number):
            return called(number, names)
        case Span(None, None, 1):
            return "All"
        case Span(first, last, step):
            ends = ";;".join(
                (
                    "" if first is None else called(first, names),
                    "All" if last is None else called(last, names),
                )
            )
            return ends if step == 1 else f"{ends};;{step}"
        case Listing(items):
            return "{" + ", ".join(format(item, names) for item in items) + "}"
        case Word():
            return spec.value
        case _:
            assert_never(spec)


def members(spec: LevelSpec) -> tuple[Level | Span, ...]:
    """Return the levels and spans of a spec in the order written; a word has none."""
    match spec:
        case Level() | Span():
            return (spec,)
        case Listing(items):
            return items
        case Word():
            return ()
        case _:
            assert_never(spec)


def _places(spec: LevelSpec, names: Names | None) -> list[tuple[int, int]]:
    """Return the places of the items in ``format(spec, names)``."""
    at = 1 if isinstance(spec, Listing) else 0
    places = []
    for item in members(spec):
        places.append((at, at + len(format(item, names))))
        at = places[-1][1] + len(", ")
    return places or [(0, len(format(spec, names)))]


# ----------------------------------------------------------------------------------------- conflicts without an array


def _check(spec: LevelSpec, text: str, places: list[tuple[int, int]], argument: str, names: Names | None) -> None:
    """Refuse specs that no array has, or that are not allowed for the argument."""
    items = members(spec)
    if argument == AGGREGATION and isinstance(spec, Word):
        what = f'{AGGREGATION} cannot be "{spec.value}"'
        hint = f'"{spec.value}" is for {SCALING}; for all levels write "All"'
        raise _conflict(what, text, places[0], hint, "L204")
    if argument == AGGREGATION and not items:
        what = f"{AGGREGATION} is empty"
        raise _conflict(what, text, (0, len(text)), 'write at least one level, such as 1 or "2;;All"', "L201")
    seen: set[Level] = set()
    for item, place in zip(items, places, strict=False):
        if isinstance(item, Span):
            first, last = 1 if item.first is None else item.first, -1 if item.last is None else item.last
            if last < first and (last == 0 or (first < 0) == (last < 0)):
                what = f"the span {format(item, names)} in {argument} is empty: "
                what += f"level {called(last, names)} comes before level {called(first, names)}"
                hint = f'spans run upwards: write "{format(Span(last, first, item.step), names)}"'
                raise _conflict(what, text, place, hint, "L203")
            if last == 0 and first < 0:
                what = (
                    f"the span {format(item, names)} in {argument} is empty: level 0 is the batch, before every level"
                )
                hint = f'spans run upwards: write "{format(Span(0, first, item.step), names)}"'
                raise _conflict(what, text, place, hint, "L203")
            if argument == SCALING and first == 0:
                raise _batch_in_scaling(text, place)
        elif item in seen:
            what = f"level {called(item.number, names)} is named twice in {argument}"
            raise _conflict(what, text, place, "write every level once", "L202")
        elif argument == SCALING and item.number == 0:
            raise _batch_in_scaling(text, place)
        else:
            seen.add(item)


def _batch_in_scaling(text: str, place: tuple[int, int]) -> LevelConflictError:
    what = f"level 0, the batch, is named in {SCALING}"
    hint = "every example shares the same parameters: levels run from 1 to the last, or -1 downwards"
    return _conflict(what, text, place, hint, "L205")


def _conflict(what: str, text: str, place: tuple[int, int], hint: str, code: str) -> LevelConflictError:
    return LevelConflictError(f"{what}\n{point(text, *place)}\n{hint}", code=code, position=place)


# ----------------------------------------------------------------------------------------------------------- resolving


def resolve(
    spec: LevelSpec, rank: int, *, batched: bool, argument: str = AGGREGATION, names: Names | None = None
) -> tuple[int, ...]:
    """Return the levels of an array that a spec selects.

    Parameters
    ----------
    spec : LevelSpec
        What `parse` returned; ``"Same"`` and ``"Complement"`` need `resolve_scaling`.
    rank : int
        Number of levels of one example, without the batch.
    batched : bool
        Whether the array has a batch, level 0.
    argument : {"aggregation_levels", "scaling_levels"}
        Name of the argument in errors.
    names : Names, optional
        Names of the levels; only the errors use them.

    Returns
    -------
    tuple of int
        Levels from 0 to `rank` in the order written, spans ascending, none twice.

    Raises
    ------
    LevelRangeError
        A level does not exist: outside 1 to `rank`, -1 to -`rank`, or level 0 without a batch.
    LevelConflictError
        A level twice, or an empty span.

    Examples
    --------
    >>> resolve(parse("{3, 1;;2}"), 4, batched=False)
    (3, 1, 2)
    >>> resolve(parse("0;;All"), 3, batched=True)
    (0, 1, 2, 3)
    >>> resolve(parse("2;;5"), 4, batched=False)
    Traceback (most recent call last):
    gennorm.errors.LevelRangeError: level 5 of aggregation_levels does not exist in an array of rank 4
        "2;;5"
            ^
    levels run from 1 to 4, or -4 to -1; "2;;All" means every level from 2 on [L101]
    """
    return _Resolution(spec, format(spec, names), rank, batched, argument, names).levels()


@dataclass(frozen=True, slots=True)
class _Resolution:
    """Resolves one spec for one array; errors mark characters of the canonical text."""

    spec: LevelSpec
    text: str
    rank: int
    batched: bool
    argument: str
    names: Names | None

    @property
    def array(self) -> str:
        return f"a batch of arrays of rank {self.rank}" if self.batched else f"an array of rank {self.rank}"

    def levels(self) -> tuple[int, ...]:
        found: list[int] = []
        placed = list(zip(members(self.spec), _places(self.spec, self.names), strict=False))
        for item, place in placed:
            if isinstance(item, Span) and self.reaches_nothing(item):
                continue
            for level in self.of(item, place):
                if level in found:
                    which = name(level, batched=self.batched, names=self.names, rank=self.rank)
                    what = f"{which} is named twice in {self.argument}, in {self.array}"
                    same = f"{level} and {level - self.rank - 1} are the same level here" if level else "0 is the batch"
                    raise _conflict(what, self.text, place, f"{same}: write every level once", "L202")
                found.append(level)
        if placed and not found:
            self.of(*placed[0])  # no item selects a level: raise the error of the first one
        return tuple(found)

    def reaches_nothing(self, span: Span) -> bool:
        """Return whether a span starts just after its end, as in "{0, 2;;All}" at rank 1, which a list may contain."""
        first, last = 1 if span.first is None else span.first, -1 if span.last is None else span.last
        first, last = (end if end >= 0 else self.rank + 1 + end for end in (first, last))
        return 0 < first == last + 1

    def of(self, item: Level | Span, place: tuple[int, int]) -> range:
        if isinstance(item, Level):
            level = self.existing(item.number, place, place[0])
            return range(level, level + 1)
        first = self.existing(1 if item.first is None else item.first, place, None if item.first is None else place[0])
        last = self.rank
        if item.last is not None:
            last = self.existing(item.last, place, self.text.index(";;", place[0]) + len(";;"))
        if last < first:
            what = f"the span {format(item, self.names)} in {self.argument} is empty in {self.array}"
            hint = f"level {last} comes before level {first} here; spans run upwards"
            raise _conflict(what, self.text, place, hint, "L203")
        return range(first, last + 1, item.step)

    def existing(self, level: int, place: tuple[int, int], start: int | None) -> int:
        """Return a level counted from the front; `start` is its place in the text, None for that of "All" or ";;2"."""
        if level == 0 and self.batched:
            return 0
        if 1 <= abs(level) <= self.rank:
            return level % (self.rank + 1)
        written = called(level, self.names)
        if start is not None:
            place = start, start + len(written)
        if level == 0:
            what = f"level {written} of {self.argument} is the batch, and {self.array} has none"
            hint = "pass batched=True if the first axis is the batch; the levels of one example start at 1"
            code = "L102"
        else:
            what, code = f"level {written} of {self.argument} does not exist in {self.array}", "L101"
            hint = f'levels run from 1 to {self.rank}, or -{self.rank} to -1; "2;;All" means every level from 2 on'
            if self.rank < 2:
                hint = "its only level is 1, or -1" if self.rank else "a scalar has no levels"
            hint += "; level 0 is the batch" if self.batched else ""
        msg = f"{what}\n{point(self.text, *place)}\n{hint}"
        raise LevelRangeError(msg, code=code, position=place)


def uses_batch(spec: LevelSpec) -> bool:
    """Return whether a spec selects level 0, the batch.

    Examples
    --------
    >>> uses_batch(parse("0;;All")), uses_batch(parse("{2, 0}")), uses_batch(parse("All"))
    (True, True, False)
    """
    return batch_place(spec) is not None


def batch_place(spec: LevelSpec, names: Names | None = None) -> tuple[int, int] | None:
    """Return the place of level 0, the batch, in ``format(spec, names)``."""
    for item, (start, _) in zip(members(spec), _places(spec, names), strict=False):
        if (item.number if isinstance(item, Level) else item.first) == 0:
            return start, start + len(called(0, names))
    return None


def resolve_scaling(
    spec: LevelSpec, aggregation: tuple[int, ...], rank: int, *, batched: bool = False, names: Names | None = None
) -> tuple[int, ...]:
    """Resolve the scaling levels, which may be "Same" or "Complement".

    Parameters
    ----------
    spec : LevelSpec
        What ``parse(..., argument="scaling_levels")`` returned.
    aggregation : tuple of int
        The aggregation levels, resolved.
    rank : int
        Number of levels of one example, without the batch.
    batched : bool
        Whether the array has a batch; only the errors, which name axes, depend on it.
    names : Names, optional
        Names of the levels; only the errors use them.

    Returns
    -------
    tuple of int
        Levels from 1 to `rank`: in the order written, spans and words ascending.

    Raises
    ------
    LevelRangeError, LevelConflictError
        As `resolve`; or "Same" would include level 0, the batch.

    Examples
    --------
    >>> resolve_scaling(Word.COMPLEMENT, (2, 3), 4)
    (1, 4)
    >>> resolve_scaling(Word.SAME, (3, 2), 4)
    (2, 3)
    """
    if spec is Word.COMPLEMENT:
        return tuple(level for level in range(1, rank + 1) if level not in aggregation)
    if spec is Word.SAME:
        if 0 in aggregation:
            what = f'{SCALING} "Same" would include level 0, the batch'
            hint = 'every example shares the same parameters: write the levels, or "Complement"'
            raise _conflict(what, "Same", (0, 4), hint, "L206")
        return tuple(sorted(aggregation))
    return resolve(spec, rank, batched=batched, argument=SCALING, names=names)


def name(level: int, *, batched: bool, names: Names | None = None, rank: int = 0) -> str:
    """Return the name of a resolved level of an array, for errors. With `names`, `rank` is that of an example.

    Examples
    --------
    >>> name(2, batched=True)
    'level 2 (axis 2)'
    >>> name(2, batched=False)
    'level 2 (axis 1)'
    >>> from gennorm.spec.names import read
    >>> name(2, batched=False, names=read("channel ... width"), rank=2)
    'level 2 width (axis 1)'
    """
    return f"level {numbered(level, names, rank)} (axis {level if batched else level - 1})"


def numbered(level: int, names: Names | None, rank: int) -> str:
    """Return the number of a resolved level, and its name if it has one. With `names`, `rank` is that of an example.

    Examples
    --------
    >>> from gennorm.spec.names import read
    >>> numbered(2, None, 0), numbered(2, read("channel ... width"), 2)
    ('2', '2 width')
    """
    word = None if names is None else names.of(level, rank)
    return str(level) if word is None else f"{level} {word}"
