"""The clauses of levels.md as data: writes vectors/levels/valid.json, invalid.json and names.json.

    python -m spec.level_vectors            write them
    python -m spec.level_vectors --check    fail where they differ from what would be written

The texts, the canonical texts, the codes and the carets are typed here; the levels follow from the definition below,
which shares no code with gennorm.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "vectors" / "levels"
RANKS = range(6)
Value = int | str | list[Any]

# Value, canonical text. Every one of them is resolved at ranks 0 to 5, alone and in a batch.
AGGREGATION: list[tuple[Value, str]] = [
    # One level.
    (1, "1"),
    ("2", "2"),
    (" 3 ", "3"),
    (-1, "-1"),
    ("-3", "-3"),
    (0, "0"),
    ("0", "0"),
    (64, "64"),
    ("999999999", "999999999"),
    # Spans.
    ("1;;3", "1;;3"),
    ("2;;2", "2;;2"),
    ("2 ;; 3", "2;;3"),
    ("2;;All", "2;;All"),
    ("2;;", "2;;All"),
    ("2;;-1", "2;;-1"),
    ("2;;-2", "2;;-2"),
    ("3;;-2", "3;;-2"),
    ("-2;;All", "-2;;All"),
    ("-2;;", "-2;;All"),
    ("-3;;-2", "-3;;-2"),
    ("-2;;3", "-2;;3"),
    (";;2", ";;2"),
    ("All;;2", ";;2"),
    (";;-2", ";;-2"),
    ("All", "All"),
    (";;", "All"),
    (";;All", "All"),
    ("All;;All", "All"),
    ("1;;All", "1;;All"),
    ("0;;All", "0;;All"),
    ("0;;", "0;;All"),
    ("0;;0", "0;;0"),
    ("0;;2", "0;;2"),
    ("0;;-2", "0;;-2"),
    # Steps.
    ("1;;All;;2", "1;;All;;2"),
    ("1;;5;;1", "1;;5"),
    (";;;;2", ";;All;;2"),
    ("2;;;;3", "2;;All;;3"),
    ("0;;All;;2", "0;;All;;2"),
    ("-4;;-1;;2", "-4;;-1;;2"),
    ("1;;All;;9", "1;;All;;9"),
    # Lists.
    ("{1}", "{1}"),
    ("{1, 3}", "{1, 3}"),
    ("{3,1}", "{3, 1}"),
    ([3, 1], "{3, 1}"),
    (["3", "1;;2"], "{3, 1;;2}"),
    ("{1, 3;;4}", "{1, 3;;4}"),
    (" { 1 ,\t3 ;; 4 } ", "{1, 3;;4}"),
    ("{-1, 1}", "{-1, 1}"),
    ("{2, -2}", "{2, -2}"),
    ("{0, -1}", "{0, -1}"),
    ("{0, All}", "{0, All}"),
    ([0, "All"], "{0, All}"),
    ("{1;;2, 2;;3}", "{1;;2, 2;;3}"),
    ("{All}", "{All}"),
    # Spans of a list that reach nothing.
    ("{0, 2;;All}", "{0, 2;;All}"),
    ("{0, ;;-2}", "{0, ;;-2}"),
    ("{1, 2;;-2, -1}", "{1, 2;;-2, -1}"),
    ("{1, 0;;-3}", "{1, 0;;-3}"),
    ("{2;;All}", "{2;;All}"),
    ("{2;;All, 2;;-1}", "{2;;All, 2;;-1}"),
]

# Value, canonical text, aggregation levels.
SCALING: list[tuple[Value, str, str]] = [
    (2, "2", "1"),
    ("-1", "-1", "1"),
    ("1;;2", "1;;2", "All"),
    ("2;;All", "2;;All", "2;;All"),
    ("{3, 1}", "{3, 1}", "2"),
    ([], "{}", "2;;All"),
    ("{}", "{}", "2;;All"),
    (" { } ", "{}", "2;;All"),
    ("Complement", "Complement", "2;;All"),
    (" Complement ", "Complement", "{2, 4}"),
    ("Complement", "Complement", "All"),
    ("Complement", "Complement", "0;;All"),
    ("Complement", "Complement", "{0, 2;;All}"),
    ("Complement", "Complement", "-1"),
    ("Same", "Same", "2;;All"),
    ("Same", "Same", "{3, 1}"),
    ("Same", "Same", "-1"),
    ("Same", "Same", "0"),
    ("Same", "Same", "{0, 1}"),
]

# Text, its carets, code: refused without an array.
TEXTS: list[tuple[str, str, str]] = [
    ("", "^", "L001"),
    ("   ", "   ^", "L001"),
    ("1;2", " ^", "L002"),
    ("1;;;2", "   ^", "L002"),
    ("1:3", " ^", "L002"),
    ("(1, 2)", "^", "L002"),
    ("[1]", "^", "L002"),
    ("+1", "^", "L002"),
    ("-", "^", "L002"),
    ("--1", "^", "L002"),
    ("- 1", "^", "L002"),
    ("1.5", " ^", "L002"),
    ("...", "^", "L002"),
    ("1;;*", "   ^", "L002"),
    ("\u22121", "^", "L002"),
    ("\u00bd", "^", "L002"),
    ("\u0661", "^", "L002"),
    ("1\u00a0", " ^", "L002"),
    ("all", "^^^", "L003"),
    ("2;;ALL", "   ^^^", "L003"),
    ("{1, al}", "    ^^", "L003"),
    ("batch", "^^^^^", "L003"),
    ("All2", "^^^^", "L003"),
    ("01", "^^", "L006"),
    ("1;;-02", "   ^^^", "L006"),
    ("00", "^^", "L006"),
    ("-0", "^^", "L006"),
    ("1000000000", "^^^^^^^^^^", "L007"),
    ("{1, -1234567890}", "    ^^^^^^^^^^^", "L007"),
    ("{", " ^", "L008"),
    ("{1,}", "   ^", "L008"),
    ("{,1}", " ^", "L008"),
    ("{1,,2}", "   ^", "L008"),
    (",", "^", "L008"),
    ("}", "^", "L008"),
    ("{1,", "   ^", "L008"),
    ("1 2", "  ^", "L009"),
    ("1-2", " ^^", "L009"),
    ("1, 2", " ^", "L009"),
    ("1}", " ^", "L009"),
    ("{1 2}", "   ^", "L009"),
    ("{1}{2}", "   ^", "L009"),
    ("2All", " ^^^", "L009"),
    ("All All", "    ^^^", "L009"),
    ("Same;;2", "    ^^", "L009"),
    ("{1", "^", "L010"),
    (" {1, 2;;All ", " ^", "L010"),
    ("1;;2;;", "      ^", "L011"),
    (";;;;", "    ^", "L011"),
    ("1;;2;;All", "      ^^^", "L011"),
    ("{1;;2;;}", "       ^", "L011"),
    ("1;;2;;0", "      ^", "L012"),
    ("3;;1;;-1", "      ^^", "L012"),
    ("1;;2;;3;;4", "       ^^", "L013"),
    ("{Same}", " ^^^^", "L014"),
    ("{1, Complement}", "    ^^^^^^^^^^", "L014"),
    ("2;;Same", "   ^^^^", "L014"),
    ("{{1}}", " ^", "L015"),
    ("{1, {2, 3}}", "    ^", "L015"),
    ("1;;{2}", "   ^", "L015"),
    ("{1, 1}", "    ^", "L202"),
    ("{-1, 2, -1}", "        ^^", "L202"),
    ("3;;2", "^^^^", "L203"),
    ("{1, 3;;2}", "    ^^^^", "L203"),
    ("-1;;-2", "^^^^^^", "L203"),
    (";;0", "^^^", "L203"),
    ("-1;;0", "^^^^^", "L203"),
]

# The same, for one argument only.
AGGREGATION_TEXTS = [
    ("{}", "^^", "L201"),
    ("{ }", "^^^", "L201"),
    ("Same", "^^^^", "L204"),
    (" Complement", " ^^^^^^^^^^", "L204"),
]
SCALING_TEXTS = [
    ("0", "^", "L205"),
    ("{1, 0}", "    ^", "L205"),
    ("0;;All", "^^^^^^", "L205"),
    ("{2, 0;;1}", "    ^^^^", "L205"),
    ("same", "^^^^", "L003"),
    ("complement", "^^^^^^^^^^", "L003"),
]

# Canonical text, rank, batched, its carets, code: refused by the array.
ARRAYS: list[tuple[str, int, bool, str, str]] = [
    ("5", 4, False, "^", "L101"),
    ("-5", 4, False, "^^", "L101"),
    ("-4", 3, True, "^^", "L101"),
    ("2;;5", 4, False, "   ^", "L101"),
    ("5;;6", 4, False, "^", "L101"),
    ("2;;All", 1, False, "^", "L101"),
    (";;-2", 1, False, "  ^^", "L101"),
    (";;3", 2, False, "  ^", "L101"),
    ("{1, 2;;7;;2}", 3, False, "       ^", "L101"),
    ("{1;;2, 3;;9}", 5, False, "          ^", "L101"),
    ("All", 0, False, "^^^", "L101"),
    ("All", 0, True, "^^^", "L101"),
    ("{0, 2;;All}", 0, True, "    ^", "L101"),
    ("{2;;All}", 1, True, " ^", "L101"),
    ("{2;;All, 2;;-1}", 1, True, " ^", "L101"),
    ("0", 3, False, "^", "L102"),
    ("{1, 0}", 3, False, "    ^", "L102"),
    ("0;;All", 3, False, "^", "L102"),
    ("{1, -3}", 3, False, "    ^^", "L202"),
    ("{1;;2, 2;;3}", 3, False, "       ^^^^", "L202"),
    ("{0, 0;;1}", 3, True, "    ^^^^", "L202"),
    ("{2, All}", 3, True, "    ^^^", "L202"),
    ("3;;-3", 4, False, "^^^^^", "L203"),
    ("-1;;2", 3, False, "^^^^^", "L203"),
]


# Names of the levels, value, canonical text. In the canonical text a name is written where there is one.
CHW, OPEN, BATCH = "channel height width", "channel ... width", "batch channel height width"
NAMED: list[tuple[str, Value, str]] = [
    (CHW, "height", "height"),
    (CHW, 2, "height"),
    (CHW, "-1", "width"),
    (CHW, "height;;width", "height;;width"),
    (CHW, " height ;; ", "height;;All"),
    (CHW, "2;;-1", "height;;width"),
    (CHW, ";;-2", ";;height"),
    (CHW, "channel;;All;;2", "channel;;All;;2"),
    (CHW, "{width, channel}", "{width, channel}"),
    (CHW, ["channel", 3], "{channel, width}"),
    (CHW, ["channel", "height;;width"], "{channel, height;;width}"),
    (CHW, "{1, 3;;-2}", "{channel, width;;-2}"),
    (CHW, "{1, width;;-2}", "{channel, width;;-2}"),
    (CHW, "All", "All"),
    (OPEN, "channel", "channel"),
    (OPEN, "width", "width"),
    (OPEN, "-1", "width"),
    (OPEN, "2;;-2", "2;;-2"),
    (OPEN, "channel;;width", "channel;;width"),
    (OPEN, "{width, 2}", "{width, 2}"),
    (BATCH, "batch", "batch"),
    (BATCH, 0, "batch"),
    (BATCH, "{batch, height;;All}", "{batch, height;;All}"),
    (BATCH, "batch;;height", "batch;;height"),
    ("b c", "{b, c}", "{b, c}"),
    ("c b", "{b, c}", "{b, c}"),
    ("batch ...", "{batch, -1}", "{batch, -1}"),
    ("A Al", "{A, Al}", "{A, Al}"),
]
# Names of the levels, text, its carets, code.
MISNAMED: list[tuple[str, str, str, str]] = [
    (CHW, "heigth", "^^^^^^", "L004"),
    (CHW, "2;;wide", "   ^^^^", "L004"),
    (CHW, "{1, b}", "    ^", "L004"),
    (CHW, "all", "^^^", "L004"),
    (CHW, "height width", "       ^^^^^", "L009"),
    (CHW, "1;;3;;width", "      ^^^^^", "L011"),
    (CHW, "{height, height}", "         ^^^^^^", "L202"),
    (CHW, "{height, 2}", "         ^", "L202"),
    (CHW, "{width, -1}", "        ^^", "L202"),
    (CHW, "width;;height", "^^^^^^^^^^^^^", "L203"),
]
# Names, carets, code: refused as input_levels.
NOT_NAMES: list[tuple[str, str, str]] = [
    ("", "^", "L033"),
    ("  ", "  ^", "L033"),
    ("channel, height", "^^^^^^^^", "L031"),
    ("2d", "^^", "L031"),
    ("a _b", "  ^^", "L031"),
    ("a 1", "  ^", "L031"),
    ("a -b", "  ^^", "L031"),
    ("a\u00e9", "^^", "L031"),
    ("a All", "  ^^^", "L031"),
    ("same a", "^^^^", "L031"),
    ("a ... b ...", "        ^^^", "L034"),
    ("a ....", "  ^^^^", "L031"),
    ("a b a", "    ^", "L210"),
    ("b c b", "    ^", "L210"),
]


def numbered(names: str, canonical: str) -> str:
    """The canonical text with the numbers of the named levels."""
    words = names.split()
    numbers: dict[str, int] = {}
    if words[0] in {"b", "batch"}:
        numbers[words.pop(0)] = 0
    place = words.index("...") if "..." in words else len(words)
    numbers |= {word: level for level, word in enumerate(words[:place], 1)}
    numbers |= {word: -level for level, word in enumerate(reversed(words[place + 1 :]), 1)}
    return re.sub(r"[A-Za-z]\w*", lambda found: str(numbers.get(found.group(), found.group())), canonical)


def resolved(canonical: str, rank: int, batched: bool) -> list[int] | None:
    """The levels that a canonical text means, or None where it means none: levels.md, sections 1 to 3."""
    items = canonical.strip("{}").split(", ") if canonical != "{}" else []
    found: list[int] = []
    for item in items:
        ends = {"All": ["", ""]}.get(item, item.split(";;"))
        ends = ["" if end == "All" else end for end in ends]
        if len(ends) == 1:
            ends *= 2  # one level is the span from it to itself
        first, last = int(ends[0] or 1), int(ends[1] or rank)
        exist = all(
            number in range(0 if batched else 1, rank + 1) or -number in range(1, rank + 1) for number in (first, last)
        )
        first, last = (number if number >= 0 else rank + 1 + number for number in (first, last))
        if len(items) > 1 and last == first - 1 and 1 <= first <= rank + 1:
            continue  # 2.6
        if not exist or last < first:
            return None
        found += range(first, last + 1, int(ends[2]) if len(ends) == 3 else 1)
    unique = len({*found}) == len(found)
    return found if unique and (found or not items) else None


def scaled(canonical: str, aggregation: str, rank: int, batched: bool) -> list[int] | None:
    """The scaling levels: levels.md, section 5."""
    aggregated = resolved(aggregation, rank, batched)
    if aggregated is None:
        return None
    if canonical == "Complement":
        return [level for level in range(1, rank + 1) if level not in aggregated]
    if canonical == "Same":
        return sorted(aggregated) if 0 not in aggregated else None
    return resolved(canonical, rank, batched)


def span_of(carets: str) -> list[int]:
    """Where the carets lie; under the closing quote there is nothing, and they stand for the end of the text."""
    return [len(carets) - len(carets.lstrip()), len(carets)]


def documents() -> dict[str, str]:
    """The complete text of each file."""
    valid: list[dict[str, Any]] = []
    for value, canonical in AGGREGATION:
        levels = {name: [resolved(canonical, rank, batched) for rank in RANKS] for name, batched in FLAGS}
        valid.append({"argument": "aggregation_levels", "value": value, "canonical": canonical, **levels})
    for value, canonical, aggregation in SCALING:
        levels = {name: [scaled(canonical, aggregation, rank, batched) for rank in RANKS] for name, batched in FLAGS}
        case = {"argument": "scaling_levels", "value": value, "canonical": canonical, "aggregation": aggregation}
        valid.append({**case, **levels})
    invalid: list[dict[str, Any]] = []
    for argument, texts in (("aggregation_levels", AGGREGATION_TEXTS), ("scaling_levels", SCALING_TEXTS)):
        for text, carets, code in [*TEXTS, *texts]:
            start, stop = span_of(carets)
            position = [start, min(stop, len(text))]
            invalid.append({"argument": argument, "value": text, "code": code, "position": position})
    for text, rank, batched, carets, code in ARRAYS:
        case = {"argument": "aggregation_levels", "value": text, "rank": rank, "batched": batched}
        invalid.append({**case, "code": code, "position": span_of(carets)})
    named: list[dict[str, Any]] = []
    for names, value, canonical in NAMED:
        numbers = numbered(names, canonical)
        levels = {name: [resolved(numbers, rank, batched) for rank in RANKS] for name, batched in FLAGS}
        named.append({"input_levels": names, "value": value, "canonical": canonical, "numbers": numbers, **levels})
    for names, text, carets, code in MISNAMED:
        named.append({"input_levels": names, "value": text, "code": code, "position": span_of(carets)})
    for text, carets, code in NOT_NAMES:
        start, stop = span_of(carets)
        named.append({"input_levels": text, "code": code, "position": [min(start, len(text)), min(stop, len(text))]})
    return {"valid.json": lines(valid), "invalid.json": lines(invalid), "names.json": lines(named)}


FLAGS = (("example", False), ("batch", True))


def lines(cases: list[dict[str, Any]]) -> str:
    """JSON with one case to a line."""
    return "[\n" + ",\n".join(json.dumps(case, ensure_ascii=True) for case in cases) + "\n]\n"


def main(arguments: list[str]) -> int:
    """Write the files, or check them."""
    stale = []
    for name, text in documents().items():
        path = HERE / name
        if arguments == ["--check"]:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                stale.append(name)
        else:
            path.write_text(text, encoding="utf-8")
    if stale:
        print(f"{', '.join(stale)} differ: run python -m spec.level_vectors")
    return len(stale)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
