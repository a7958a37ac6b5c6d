"""Alignments of answers: Pharaoh format, phrase tables, and the replacement of unknown tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from onmt_llm.errors import DataError
from onmt_llm.generate.alignment import pharaoh, read_phrase_table, replace_unknown, word_pharaoh
from onmt_llm.text.tokenizers.whitespace import WhitespaceTokenizer


@dataclass(frozen=True)
class Answer:
    tokens: list[str]
    text: str
    alignment: tuple[int, ...] | None


CODEC: Any = SimpleNamespace(
    config=SimpleNamespace(specials=SimpleNamespace(unk="<unk>")), stream_decoder=WhitespaceTokenizer().stream_decoder
)


def test_pairs_come_in_the_order_of_the_source() -> None:
    assert pharaoh([2, 0, 0, 1]) == "0-1 0-2 1-3 2-0" and pharaoh([]) == ""


@pytest.mark.parametrize(
    ("source", "target", "alignment", "pairs"),
    [
        ("▁the ▁sta tion ▁is ▁here", "▁la ▁ga re ▁est ▁i ci", [0, 1, 2, 3, 4, 4], "0-0 1-1 2-2 3-3"),
        ("the sta￭ tion is ￭n￭ 't .￭", "la gare ￭, n￭ ' est ￭.", [0, 1, 2, 4, 5, 3, 6], "0-0 1-1 2-2 2-3 3-3"),
        ("a b c", "x y", [2, 0], "0-1 2-0"),
        ("a b", "x y z", [-1, 1, 2], "1-1"),
        ("", "", [], ""),
    ],
)
def test_pairs_of_words(source: str, target: str, alignment: list[int], pairs: str) -> None:
    """The first two pairs are those that OpenNMT-py's `to_word_align` returns."""
    assert word_pharaoh(source.split(), target.split(), alignment) == pairs


def test_a_phrase_table_is_read_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "table"
    file.write_text("chat|||cat\nà|||to|||at\n", encoding="utf-8")
    assert read_phrase_table(file) == {"chat": "cat", "à": "to|||at"}
    file.write_text("chat|||cat\nchien dog\n")
    with pytest.raises(DataError, match=r"must be source\|\|\|target, but .*table:2 is 'chien dog'"):
        read_phrase_table(file)


def test_unknown_tokens_become_their_source_or_its_translation() -> None:
    answer: Any = Answer(["the", "<unk>", "<unk>"], "the <unk> <unk>", (0, 2, 1))
    replaced: Any = replace_unknown(answer, ["le", "noir", "chat"], {"chat": "cat"}, CODEC)
    assert (replaced.tokens, replaced.text) == (["the", "cat", "noir"], "the cat noir")


@pytest.mark.parametrize(("tokens", "alignment"), [(["the", "cat"], (0, 1)), (["the", "<unk>"], None)])
def test_other_answers_stay(tokens: list[str], alignment: tuple[int, ...] | None) -> None:
    answer: Any = Answer(tokens, " ".join(tokens), alignment)
    assert replace_unknown(answer, ["le", "chat"], {}, CODEC) is answer
