"""Placeholders for characters that a line cannot hold."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from onmt_llm.text.placeholders import MASK_BEFORE, NEWLINE, escape, from_line, to_line, unescape


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\n\nb", "a｟newline｠｟newline｠b"),
        ("a\r\nb", "a｟newline｠b"),
        ("a\rb", "a｟U+000D｠b"),
        ("｟newline｠", "｟U+FF5F｠newline｠"),
        ("｟U+000D｠", "｟U+FF5F｠U+000D｠"),
        (MASK_BEFORE, "｟U+FF5F｠_mask_before_｠"),
        ("｟ent_1｠ and lone ｟ and ｠", "｟ent_1｠ and lone ｟ and ｠"),
        ("<0x0A> \\n", "<0x0A> \\n"),
    ],
)
def test_a_line_stands_for_one_text(text: str, line: str) -> None:
    assert to_line(text) == line
    assert from_line(line) == text.replace("\r\n", "\n")


def test_lines_of_other_corpora_are_read_as_they_are() -> None:
    assert from_line(f"prompt{NEWLINE}{MASK_BEFORE}answer ｟ent_1｠") == f"prompt\n{MASK_BEFORE}answer ｟ent_1｠"
    assert from_line("｟U+D800｠ ｟U+110000｠") == "｟U+D800｠ ｟U+110000｠"  # no characters


def test_every_text_survives_one_line(random_texts: Callable[[int], list[str]]) -> None:
    for text in random_texts(1000):
        line = to_line(text)
        assert "\n" not in line and "\r" not in line
        assert from_line(line) == text.replace("\r\n", "\n")


def test_escape_is_reversible(random_texts: Callable[[int], list[str]]) -> None:
    odd = re.compile(r"\s")
    assert escape("", odd) == "｟U+｠"
    for text in random_texts(500):
        assert not odd.search(escape(text, odd))
        assert unescape(escape(text, odd)) == text
