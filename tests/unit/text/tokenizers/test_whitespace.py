"""Words between spaces."""

from __future__ import annotations

import pytest

from onmt_llm.text.placeholders import NEWLINE
from onmt_llm.text.tokenizers.whitespace import WhitespaceTokenizer


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("a b", ["a", "b"]),
        ("  a   b ", ["a", "b"]),
        ("a\nb", ["a", NEWLINE, "b"]),
        ("a\n\nb", ["a", NEWLINE, NEWLINE, "b"]),
        ("non\u00a0breaking\ttab", ["non\u00a0breaking\ttab"]),
        ("", []),
    ],
)
def test_only_spaces_and_line_breaks_separate(text: str, tokens: list[str]) -> None:
    tokenizer = WhitespaceTokenizer()
    assert tokenizer.encode(text) == tokens and tokenizer.encode_batch([text]) == [tokens]
    assert tokenizer.decode(tokens) == " ".join(text.split(" ")).strip(" ").replace("   ", " ")


def test_the_stream_is_the_text() -> None:
    decoder = WhitespaceTokenizer().stream_decoder()
    assert [decoder.push(token) for token in ("a", "b", NEWLINE, "c")] == ["a", " b", "\n", "c"]
    assert decoder.flush() == ""
