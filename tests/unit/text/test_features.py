"""Word features: reading them, and spreading them over subwords."""

from __future__ import annotations

import pytest

from onmt_llm.errors import DataError
from onmt_llm.text.features import parse_defaults, split_text, spread, words_of


def test_a_text_is_split_into_words_and_their_features() -> None:
    assert split_text("This￨D￨u is￨V￨l  it￨P￨l", 2) == ("This is it", [["D", "u"], ["V", "l"], ["P", "l"]])
    assert split_text("a b", 1, ["N"]) == ("a b", [["N"], ["N"]])
    assert parse_defaults("N￨0", 2) == ["N", "0"] and parse_defaults(None, 2) == []


@pytest.mark.parametrize(("text", "named"), [("a￨N b", "'b' carries 0"), ("a￨N￨u", "carries 2"), ("a b", "carries 0")])
def test_every_word_has_all_features_or_none_has(text: str, named: str) -> None:
    with pytest.raises(DataError, match=named):
        split_text(text, 1, ["N"] if " b" in text and "￨" in text else [])


def test_defaults_have_a_value_for_each_feature() -> None:
    with pytest.raises(DataError, match="src_feats_defaults must hold 2 values"):
        parse_defaults("N", 2)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ("▁He llo ▁wor ld ▁!", [0, 0, 1, 1, 2]),
        ("He ▁wor ld", [0, 1, 1]),
        ("▁ He llo ▁ ▁wor", [0, 0, 0, 1, 2]),
        ("Hel￭ lo world ￭!", [0, 0, 1, 1]),
        ("Hel@@ lo world", [0, 0, 1]),
        ("Hello world", [0, 1]),
    ],
)
def test_subwords_know_their_word(tokens: str, words: list[int]) -> None:
    assert words_of(tokens.split()) == words


def test_tokens_carry_the_features_of_their_word() -> None:
    assert spread(["▁He", "llo", "▁!"], [["N", "u"], ["P", "l"]]) == ["▁He￨N￨u", "llo￨N￨u", "▁!￨P￨l"]
    with pytest.raises(DataError, match="2 annotated words, but make up 1"):
        spread(["▁He", "llo"], [["N"], ["P"]])
