"""Segments: text or tokens with one mark, and where a text continues."""

from __future__ import annotations

from array import array

import pytest

from onmt_llm.text.segment import Segment, continuations, tokenize_segments
from onmt_llm.text.tokenizers.pieces import Pieces, PieceTable
from onmt_llm.text.tokenizers.whitespace import WhitespaceTokenizer


class Restarting(WhitespaceTokenizer):
    restarts_after_control = True


def pieces(*ids: int) -> Pieces:
    return Pieces(PieceTable(["a", "b", "c"]), array("i", ids).tobytes())


def test_tokens_take_the_place_of_the_text() -> None:
    segment = Segment("a b", train_on=False)
    assert segment.num_tokens is None and segment.tokens is None
    segment.tokenized(["a", "b"])
    assert (segment.text, segment.tokens, segment.num_tokens, segment.train_on) == (None, ["a", "b"], 2, False)


def test_pieces_become_strings_when_someone_asks() -> None:
    segment = Segment("a c")
    segment.tokenized(pieces(0, 2))
    assert segment.num_tokens == 2 and segment.pieces is not None
    assert segment.tokens == ["a", "c"] and segment.pieces is None
    segment.tokens.append("b")
    assert segment == Segment(tokens=["a", "c", "b"])


def test_a_copy_keeps_what_it_is_not_given() -> None:
    segment = Segment("a", train_on=False, starts_round=True)
    assert segment.like() == segment and segment.like() is not segment
    assert segment.like(text="b") == Segment("b", train_on=False, starts_round=True)
    assert segment.like(train_on=True) == Segment("a", starts_round=True)
    numbered = Segment()
    numbered.tokenized(pieces(1))
    assert numbered.like(train_on=False) == Segment(tokens=["b"], train_on=False)


def test_segments_that_differ_in_anything_are_not_equal() -> None:
    one = Segment("a")
    others = [Segment("b"), Segment(tokens=["a"]), Segment("a", train_on=False), Segment("a", starts_round=True)]
    assert all(one != other for other in others) and one != "a"
    with pytest.raises(TypeError):
        hash(one)


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [(WhitespaceTokenizer(), [False, False, True, True, True]), (Restarting(), [False, False, True, True, False])],
)
def test_a_text_continues_unless_a_control_token_restarts_it(
    tokenizer: WhitespaceTokenizer, expected: list[bool]
) -> None:
    segments = [Segment(tokens=["<s>"]), Segment("a"), Segment("b"), Segment(tokens=["<end>"]), Segment("c")]
    assert continuations(tokenizer, segments, bos="<s>") == expected


def test_an_empty_text_begins_nothing() -> None:
    assert continuations(WhitespaceTokenizer(), [Segment(""), Segment("a"), Segment("b")]) == [False, False, True]


def test_segments_that_have_tokens_keep_them() -> None:
    segments = [Segment(tokens=["<s>"]), Segment("a b"), Segment("")]
    assert tokenize_segments(WhitespaceTokenizer(), segments, bos="<s>") == [["<s>"], ["a", "b"], []]
