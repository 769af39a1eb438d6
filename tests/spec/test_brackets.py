"""Bracket notation: what it is read to, what it is written as, and its grammar."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

import gennorm as gn
from gennorm.errors import GennormError, LevelConflictError, LevelRangeError
from gennorm.spec import brackets
from gennorm.spec.config import LayerConfig, resolve_config
from tests.spec.test_levels import PATTERNS

make = LayerConfig.make

TEXTS = [
    # Text, group_number, canonical text, and the same in levels and numbers.
    ("b [c h w]", None, "b [c h w]", {"aggregation_levels": "{1, 2, 3}", "input_levels": "b c h w"}),
    ("[c] h w", None, "[c] h w", {"aggregation_levels": 1, "input_levels": "c h w"}),
    (" batch\t[ c][h ]w ", None, "batch [c h] w", {"aggregation_levels": "{1, 2}", "input_levels": "batch c h w"}),
    ("[b]c[h w]", None, "[b] c [h w]", {"aggregation_levels": "{0, 2, 3}", "input_levels": "b c h w"}),
    ("[b c]", None, "[b c]", {"aggregation_levels": "{0, 1}", "input_levels": "b c"}),
    ("b c [...]", None, "b c [...]", {"aggregation_levels": "2;;All", "input_levels": "b c ..."}),
    ("b [...] c", None, "b [...] c", {"aggregation_levels": ";;-2", "input_levels": "b ... c"}),
    ("b h [... w] c", None, "b h [... w] c", {"aggregation_levels": "{2;;-3, -2}", "input_levels": "b h ... w c"}),
    ("... [c]", None, "... [c]", {"aggregation_levels": -1, "input_levels": "... c"}),
    ("[...]", None, "[...]", {"aggregation_levels": "All", "input_levels": "..."}),
    (
        "b (32 [c]) [h w]",
        None,
        "b (32 [c]) [h w]",
        {"aggregation_levels": "{1, 2, 3}", "group_number": {1: 32}, "input_levels": "b c h w"},
    ),
    (
        "b(g[c])[h]w",
        {"g": 2},
        "b (2 [c]) [h] w",
        {"aggregation_levels": "{1, 2}", "group_number": {1: 2}, "input_levels": "b c h w"},
    ),
    (
        "(g [b]) c (g [h])",
        2,
        "(2 [b]) c (2 [h])",
        {"aggregation_levels": "{0, 2}", "group_number": (2, 2), "input_levels": "b c h"},
    ),
    (
        "(4 [c]) (k [h]) [w]",
        {"k": 3, "w": 5},
        "(4 [c]) (3 [h]) (5 [w])",
        {"aggregation_levels": "{1, 2, 3}", "group_number": (4, 3, 5), "input_levels": "c h w"},
    ),
    (
        "b [c h]",
        (2, 1),
        "b (2 [c]) [h]",
        {"aggregation_levels": "{1, 2}", "group_number": (2, 1), "input_levels": "b c h"},
    ),
    ("b (1 [c]) [h]", None, "b [c h]", {"aggregation_levels": "{1, 2}", "input_levels": "b c h"}),
]


@pytest.mark.parametrize(("text", "group_number", "canonical", "same"), TEXTS, ids=[text for text, *_ in TEXTS])
def test_read_and_written(text, group_number, canonical, same):
    config, plain = make(text, (), group_number), make(scaling_levels=(), **same)
    assert config.aggregation_levels == plain.aggregation_levels
    assert (config.input_levels, config.input_shape, config.batched) == (
        plain.input_levels,
        plain.input_shape,
        plain.batched,
    )
    shape = (4 * 3 * 5 * 32,) * (len(config.input_shape) + bool(config.batched))
    assert resolve_config(config, shape) == resolve_config(plain, shape)
    for one in (config, plain):
        assert one.to_brackets() == canonical
        assert make(canonical, ()).to_brackets() == canonical
        assert resolve_config(make(canonical, ()), shape) == resolve_config(config, shape)
    assert make(**config.arguments()) == LayerConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (lambda: gn.NormalizationLayer("b [c h w]", "Same"), lambda: gn.layer_norm((4, 5, 6), epsilon=1e-3)),
        (lambda: gn.NormalizationLayer("b (g [c]) [h w]", "c", {"g": 2}), lambda: gn.group_norm(2, 4)),
        (lambda: gn.NormalizationLayer("b c [...]", "c"), lambda: gn.instance_norm(4)),
        (lambda: gn.NormalizationLayer("[b] c [...]", "c"), lambda: gn.batch_norm(4, statistics="input")),
    ],
)
def test_norms_in_brackets(layer, expected):
    x = np.random.default_rng(0).normal(3, 2, (6, 4, 5, 6))
    np.testing.assert_array_equal(layer().initialize(x)(x), expected()(x))
    config = layer().to_config()
    assert gn.NormalizationLayer.from_config(config).to_brackets() == layer().to_brackets()


def test_normalize_in_brackets():
    x = np.random.default_rng(0).normal(3, 2, (6, 4, 5))
    np.testing.assert_array_equal(gn.normalize(x, "b c [w]"), gn.normalize(x, -1))


NAMES = ["c h w", "b c h w", "c ...", "b ... w", "c ... w", "...", "batch c"]


@given(
    names=st.sampled_from(NAMES),
    spec=st.sampled_from(["All", "1", "-1", "2;;All", ";;-2", "{0, 2;;All}", "0;;All", "{1, -1}", "2", "1;;All;;2", 0]),
    groups=st.none() | st.dictionaries(st.sampled_from([0, 1, 2, -1]), st.sampled_from([1, 2, 3]), max_size=2),
    batched=st.booleans(),
)
def test_round_trip(names, spec, groups, batched):
    """A layer and the text that it is written as mean the same, for every rank; or the text cannot say it."""
    try:
        config = make(spec, (), groups, input_levels=names, batched=batched or names.startswith("b"))
        text = config.to_brackets()
    except GennormError as error:
        event(error.code)
        return
    event("written")
    again = make(text, (), batched=config.batched)
    assert again.to_brackets() == text
    for rank in range(6):
        shape = (12,) * (rank + bool(config.batched))
        found = []
        for one in (config, again):
            try:
                resolved = resolve_config(one, shape)
                found.append((sorted(resolved.aggregation), resolved.groups, resolved.batched))
            except GennormError:
                found.append(None)
        # "{0, 2;;All}" has no level 2 where the text has "..." for no level: then both are the batch alone.
        assert found[0] == found[1] or found[0] is None


PIECES = [
    "b",
    "c",
    "h",
    "[",
    "]",
    "(",
    ")",
    " ",
    "  ",
    "...",
    "2",
    "32",
    "0",
    "[c]",
    "(g [c])",
    "[h w]",
    "All",
    "-",
    ",",
]


def check_against_grammar(text: str) -> None:
    """The reader reads exactly what the grammar generates, but for names and numbers that are there twice."""
    numbers = dict.fromkeys(re.findall(r"[A-Za-z]\w*", text), 2)
    refused = None
    try:
        brackets.read(text, numbers)
    except GennormError as error:
        refused = error
    matches = PATTERNS["brackets"].fullmatch(text) is not None
    if refused is None:
        assert matches or "[" not in text, text
    else:
        assert not matches or refused.code in {"L034", "L210", "L046", "G042"}, (text, refused.code)


def test_every_short_text():
    for length in range(6):
        for characters in itertools.product("b2[]() .", repeat=length):
            check_against_grammar("".join(characters))


@given(st.lists(st.sampled_from(PIECES), max_size=10).map("".join))
def test_text_of_pieces(text):
    check_against_grammar(text)


@given(st.text(alphabet="bch[]() .2;{},-é", max_size=14))
def test_any_text_is_read_or_refused(text):
    try:
        config = make(text, ())
    except GennormError:
        return
    if brackets.is_brackets(text):
        try:
            written = config.to_brackets()
        except (LevelRangeError, LevelConflictError):
            return
        assert make(written, ()).to_brackets() == written
