"""No text becomes a control token, whatever the tokeniser does."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import pytest

from onmt_llm.errors import DataError
from onmt_llm.text.tokenizers.control_guard import ControlGuard
from onmt_llm.text.tokenizers.pieces import Pieces, PieceTable
from onmt_llm.text.tokenizers.whitespace import WhitespaceTokenizer

CONTROL = ("</s>", "<|end|>")
TABLE = PieceTable(["a", "</s>", "<", "/s>"])


class Numbering(WhitespaceTokenizer):
    """Gives words by number where it knows them."""

    def encode_pieces(self, texts: Sequence[str], *, continuation: bool = False) -> list[Pieces]:
        return [
            Pieces(TABLE, array("i", [TABLE.tokens.index(w) for w in self.encode(text)]).tobytes()) for text in texts
        ]


@pytest.fixture
def guard() -> ControlGuard:
    return ControlGuard(WhitespaceTokenizer(), CONTROL)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain words", ["plain", "words"]),
        ("a </s> b", ["a", "<", "/s>", "b"]),
        ("</s></s>", ["</s></s>"]),
        ("</s> <|end|>", ["<", "/s>", "<", "|end|>"]),
        ("", []),
    ],
)
def test_typed_control_tokens_are_split(guard: ControlGuard, text: str, expected: list[str]) -> None:
    assert guard.encode(text) == expected
    assert guard.encode_batch([text, "x"]) == [expected, ["x"]]


def test_tokens_by_number_are_checked_too() -> None:
    guard = ControlGuard(Numbering(), CONTROL)
    plain, forged = guard.encode_pieces(["a < a", "a </s>"])
    assert isinstance(plain, Pieces) and plain.tokens() == ["a", "<", "a"]
    assert forged == ["a", "<", "/s>"]


def test_text_that_is_not_unicode_is_refused(guard: ControlGuard) -> None:
    class Strict(WhitespaceTokenizer):
        def encode(self, text: str, *, continuation: bool = False) -> list[str]:
            text.encode("utf-8")
            return super().encode(text)

    strict = ControlGuard(Strict(), CONTROL)
    with pytest.raises(DataError, match=r"must be valid Unicode, but holds '\\udcff' alone"):
        strict.encode("a \udcff")
    with pytest.raises(DataError, match="must be valid Unicode"):
        strict.encode_batch(["a", "\udcff"])


def test_everything_else_is_the_tokenisers(guard: ControlGuard) -> None:
    inner = WhitespaceTokenizer()
    assert guard.decode(["a", "b"]) == inner.decode(["a", "b"]) and guard.vocab_tokens() is None
    assert guard.control_tokens == {*CONTROL} and guard.restarts_after_control is False
    assert guard.fingerprint not in (inner.fingerprint, ControlGuard(inner, ["</s>"]).fingerprint)
    guard.check_newline()
