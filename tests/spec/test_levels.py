"""Level specs: the vectors, the grammar, and what holds for every spec."""

import itertools
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gennorm.errors import GennormError, LevelConflictError, LevelRangeError, LevelSyntaxError
from gennorm.spec import names as level_names
from gennorm.spec.levels import (
    Level,
    Listing,
    Span,
    Word,
    batch_place,
    format,
    members,
    name,
    parse,
    resolve,
    resolve_scaling,
    uses_batch,
)
from spec import level_vectors, reference
from tests.spec.grammar import regex

SPEC = Path(__file__).parents[2] / "spec"
ARGUMENTS = ("aggregation_levels", "scaling_levels")


def cases(file: str) -> list[dict]:
    return json.loads((SPEC / "vectors" / "levels" / file).read_text(encoding="utf-8"))


def resolved(case: dict, rank: int, batched: bool) -> list[int] | None:
    """What a case of valid.json means in an array; None where it is refused."""
    spec = parse(case["value"], argument=case["argument"])
    try:
        if case["argument"] == "aggregation_levels":
            return [*resolve(spec, rank, batched=batched)]
        aggregation = resolve(parse(case["aggregation"]), rank, batched=batched)
        return [*resolve_scaling(spec, aggregation, rank, batched=batched)]
    except (LevelRangeError, LevelConflictError):
        return None


def read(case: dict) -> None:
    """What a case of invalid.json refuses: the text alone, or its levels in an array."""
    spec = parse(case["value"], argument=case["argument"])
    assert format(spec) == case["value"]
    resolve(spec, case["rank"], batched=case["batched"], argument=case["argument"])


def refusal(value: object, argument: str, names=None) -> LevelSyntaxError | LevelConflictError | None:
    """The error that a value raises, if any. Any other exception passes through."""
    try:
        parse(value, argument=argument, names=names)
    except (LevelSyntaxError, LevelConflictError) as error:
        return error
    return None


# ------------------------------------------------------------------------------------------------------------- vectors


@pytest.mark.parametrize("case", cases("valid.json"), ids=lambda case: repr(case["value"]))
def test_valid(case):
    spec = parse(case["value"], argument=case["argument"])
    assert format(spec) == case["canonical"]
    for batched, levels in ((False, case["example"]), (True, case["batch"])):
        assert [resolved(case, rank, batched) for rank in range(len(levels))] == levels


@pytest.mark.parametrize("case", cases("invalid.json"), ids=lambda case: f"{case['value']!r}-{case['code']}")
def test_invalid(case):
    expected = LevelRangeError if case["code"] in {"L101", "L102"} else LevelConflictError
    with pytest.raises(LevelSyntaxError if case["code"].startswith("L0") else expected) as caught:
        read(case)
    assert caught.value.code == case["code"]
    assert caught.value.position == tuple(case["position"])
    _, text, carets, hint = caught.value.message.split("\n")
    start, stop = case["position"]
    assert text.startswith('    "')
    assert text.endswith('"')
    if case["value"].isascii():
        assert carets == " " * (5 + start) + "^" * max(1, stop - start)
    assert hint


NAMED = [case for case in cases("names.json") if "canonical" in case]
MISNAMED = [case for case in cases("names.json") if "code" in case]


@pytest.mark.parametrize("case", NAMED, ids=lambda case: f"{case['input_levels']}-{case['value']!r}")
def test_named(case):
    names = level_names.read(case["input_levels"])
    spec = parse(case["value"], names=names)
    assert format(spec, names) == case["canonical"]
    assert parse(case["canonical"], names=names) == spec
    assert parse(case["numbers"], names=names) == spec
    assert names.rank is not None or format(spec) == case["numbers"]
    for batched, levels in ((False, case["example"]), (True, case["batch"])):
        for rank, expected in enumerate(levels):
            if names.rank in {None, rank}:
                try:
                    found = [*resolve(spec, rank, batched=batched, names=names)]
                except (LevelRangeError, LevelConflictError):
                    found = None
                assert found == expected


@pytest.mark.parametrize("case", MISNAMED, ids=lambda case: f"{case['input_levels']!r}-{case.get('value')!r}")
def test_misnamed(case):
    with pytest.raises((LevelSyntaxError, LevelConflictError)) as caught:
        parse(case.get("value", 1), names=level_names.read(case["input_levels"]))
    assert caught.value.code == case["code"]
    assert caught.value.position == tuple(case["position"])
    _, _, carets, _ = caught.value.message.split("\n")
    start, stop = case["position"]
    assert carets == " " * (5 + start) + "^" * max(1, stop - start)


def test_vectors_follow_the_clauses():
    for file, text in level_vectors.documents().items():
        assert (SPEC / "vectors" / "levels" / file).read_text(encoding="utf-8") == text


def test_stale_vectors_are_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(level_vectors, "HERE", tmp_path)
    assert level_vectors.main([]) == 0
    assert level_vectors.main(["--check"]) == 0
    (tmp_path / "valid.json").write_text("[]\n", encoding="utf-8")
    assert level_vectors.main(["--check"]) == 1
    assert "valid.json" in capsys.readouterr().out


@pytest.mark.parametrize("case", cases("valid.json"), ids=lambda case: repr(case["value"]))
def test_reference_agrees(case):
    """Wherever the reference reads a spec, it means the same levels."""
    if case["argument"] == "scaling_levels" and case["canonical"] in {"Same", "Complement"}:
        return  # the reference has the words elsewhere, and its own tests
    for rank, levels in enumerate(case["batch"]):
        try:
            found = reference.levels(case["canonical"], rank)
        except ValueError:
            continue
        if levels is not None:
            assert found == levels


# ------------------------------------------------------------------------------------------------------------- grammar

GRAMMAR = (SPEC / "levels.abnf").read_text(encoding="utf-8")
RULES = ("aggregation-levels", "scaling-levels", "level-spec", "input-levels", "brackets")
NOT_RESERVED = r"(?!(?i:All|Same|Complement)(?![A-Za-z0-9_]))"
PATTERNS = {rule: re.compile(regex(GRAMMAR, rule, {"name": NOT_RESERVED})) for rule in RULES}


def names_in(text: str) -> level_names.Names | None:
    """Names for the words of a text, so that none is unknown."""
    words = dict.fromkeys(re.findall(r"[A-Za-z][A-Za-z0-9_]*", text))
    known = [word for word in words if level_names.is_name(word)]
    return level_names.read(known) if known else None


def check_against_grammar(text: str) -> None:
    """The parser reads exactly what the grammar generates; conflicts are found in what is read."""
    names = names_in(text)
    for argument in ARGUMENTS:
        error = refusal(text, argument, names)
        code = error.code if error else ""
        assert error is None or error.position is not None
        assert (PATTERNS["level-spec"].fullmatch(text) is None) == code.startswith("L0"), (text, argument, code)
        if not code:
            assert PATTERNS[argument.replace("_", "-")].fullmatch(text), text
            spec = parse(text, argument=argument, names=names)
            assert parse(format(spec, names), argument=argument, names=names) == spec


def check_names_against_grammar(text: str) -> None:
    """The reader of names reads exactly what the grammar generates, but for names that are there twice."""
    matches, refused = PATTERNS["input-levels"].fullmatch(text), None
    try:
        names = level_names.read(text)
    except (LevelSyntaxError, LevelConflictError) as error:
        refused = error
    if refused is None:
        assert matches, text
        assert level_names.read(str(names)) == names
        assert [names.called(names.number(name)) for name in names.all()] == [*names.all()]
    else:
        assert refused.position is not None
        assert not matches or refused.code in {"L034", "L210"}, (text, refused.code)


def test_every_short_text():
    """Everything up to four characters is read as the grammar has it, or refused with a code and a place."""
    for length in range(5):
        for characters in itertools.product("0123;-,{} Al", repeat=length):
            check_against_grammar("".join(characters))


def test_every_short_text_of_names():
    for length in range(6):
        for characters in itertools.product("b2. _A", repeat=length):
            check_names_against_grammar("".join(characters))


@pytest.mark.parametrize("text", ["999999999", "-999999999", "1000000000", "1;;2;;999999999", "1;;2;;1000000000"])
def test_longest_number(text):
    check_against_grammar(text)


PIECES = ["0", "1", "2", "13", "-1", "-2", "-", ";;", ";", "{", "}", ",", " ", "\n", "All", "Same", "Complement", "007"]
PIECES += ["height", "w_2", "all", "...", "{1, 2;;All}", ";;All;;2", "1234567890", "x", "(", "\u00e9"]


@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
def test_text_of_pieces(text):
    check_against_grammar(text)
    check_names_against_grammar(text)


@given(st.text(max_size=20))
def test_any_text(text):
    check_against_grammar(text)
    check_names_against_grammar(text)


@pytest.mark.parametrize("argument", ARGUMENTS)
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.binary(max_size=2),
        lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.integers(), inner),
        max_leaves=5,
    )
)
def test_any_value(value, argument):
    error = refusal(value, argument)
    if error is None:
        spec = parse(value, argument=argument)
        assert parse(format(spec), argument=argument) == spec
    else:
        assert re.fullmatch(r"L[02]\d\d", error.code)


def test_integers_of_python_have_no_bound_but_levels_have():
    for value in (10**9, -(10**9), 10**5000, (1, 10**5000), Level(10**9), Span(1, 10**9), Span(1, 2, 10**9)):
        with pytest.raises(LevelSyntaxError) as caught:
            parse(value)
        assert caught.value.code == "L007"


# ---------------------------------------------------------------------------------------------------------- properties

RANK = 5
LEVELS = st.integers(-RANK, RANK)
SPANS = st.builds(Span, st.none() | LEVELS, st.none() | LEVELS, st.integers(1, 3))
SPECS = (
    st.builds(Level, LEVELS) | SPANS | st.lists(st.builds(Level, LEVELS) | SPANS, max_size=4).map(tuple).map(Listing)
)


@given(spec=SPECS | st.sampled_from(Word), argument=st.sampled_from(ARGUMENTS))
def test_round_trip(spec, argument):
    """A spec that is taken as a value is taken as its text, and is the same."""
    error = refusal(spec, argument)
    if error is None:
        assert parse(spec, argument=argument) == spec
        assert parse(format(spec), argument=argument) == spec
    else:
        assert str(refusal(format(spec), argument)) == str(error)


@given(spec=SPECS, rank=st.integers(0, RANK), batched=st.booleans())
def test_resolved_levels_exist_once(spec, rank, batched):
    try:
        levels = resolve(parse(spec), rank, batched=batched)
    except (LevelRangeError, LevelConflictError):
        return
    assert levels
    assert len({*levels}) == len(levels)
    assert {*levels} <= {*range(0 if batched else 1, rank + 1)}
    assert uses_batch(spec) == (0 in levels)


@given(levels=st.sets(st.integers(1, RANK), min_size=1).map(list), seed=st.randoms(use_true_random=False))
def test_order_of_a_list_does_not_change_the_set(levels, seed: random.Random):
    shuffled = [*levels]
    seed.shuffle(shuffled)
    assert resolve(parse(shuffled), RANK, batched=False) == tuple(shuffled)
    assert {*resolve(parse(shuffled), RANK, batched=False)} == {*resolve(parse(levels), RANK, batched=False)}
    assert resolve_scaling(Word.SAME, tuple(shuffled), RANK) == tuple(sorted(levels))


@given(rank=st.integers(1, RANK), batched=st.booleans(), data=st.data())
def test_negative_levels_are_the_same_levels(rank, batched, data):
    first = data.draw(st.integers(1, rank))
    last = data.draw(st.integers(first, rank))
    step = data.draw(st.integers(1, 3))
    expected = tuple(range(first, last + 1, step))
    for a, b in itertools.product((first, first - rank - 1), (last, last - rank - 1)):
        assert resolve(parse(f"{a};;{b};;{step}"), rank, batched=batched) == expected
    assert resolve(parse(first - rank - 1), rank, batched=batched) == (first,)


@given(rank=st.integers(1, RANK), batched=st.booleans(), data=st.data())
def test_complement_is_the_rest(rank, batched, data):
    aggregation = data.draw(st.sets(st.integers(0 if batched else 1, rank)).map(tuple))
    rest = resolve_scaling(Word.COMPLEMENT, aggregation, rank, batched=batched)
    assert [*rest] == sorted({*range(1, rank + 1)} - {*aggregation})


@pytest.mark.parametrize("text", ["All", ";;", ";;All", "All;;", "All;;All", ";;;;1", " All "])
def test_one_spec_for_everything(text):
    assert parse(text) == Span(None, None)


def test_same_spec():
    assert parse("2;;") == parse("2;;All") == Span(2, None)
    assert parse(np.int64(2)) == parse("2") == parse(2) == Level(2)
    assert parse(np.array(2)) == Level(2)
    assert parse([np.uint8(1), "2;;3"]) == parse((1, Span(2, 3))) == parse("{1, 2;;3}")
    assert parse(range(1, 4)) == parse("{1, 2, 3}")
    assert type(parse(np.int64(2)).number) is int
    assert len({parse("2;;"), parse("2;;All"), Span(2, None)}) == 1


def test_small_things():
    assert members(Word.SAME) == members(Listing(())) == ()
    assert batch_place(parse("{1, 0;;All}")) == (4, 5)
    assert batch_place(parse("{1, 10}")) is None
    assert name(3, batched=True) == "level 3 (axis 3)"
    assert name(3, batched=False) == "level 3 (axis 2)"
    assert repr(Word.COMPLEMENT) == "Word.COMPLEMENT"


@pytest.mark.parametrize(
    ("value", "write"),
    [
        (slice(1, None), "2;;All"),
        (slice(0, 3), "1;;3"),
        (slice(None, -1), ";;-2"),
        (slice(-2, None), "-2;;All"),
        (slice(1, None, 2), "2;;All;;2"),
        (slice(3, 1), "2;;All"),
        (slice(None, 0), "2;;All"),
        (slice(None, None, -1), "2;;All"),
        (slice("a", "b"), "2;;All"),
        (slice(10**10, None), "2;;All"),
    ],
)
def test_the_alternative_to_a_slice(value, write):
    with pytest.raises(LevelSyntaxError) as caught:
        parse(value)
    assert caught.value.code == "L023"
    assert caught.value.message.endswith(f'write "{write}"')
    parse(write)


def test_every_error_is_a_value_error():
    with pytest.raises(ValueError, match="aggregation_levels") as caught:
        parse("x")
    assert isinstance(caught.value, GennormError)
