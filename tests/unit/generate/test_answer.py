"""Streaming text of an answer, stop strings, and splitting into batches."""

from __future__ import annotations

import pytest

from onmt_llm.generate.answer import AnswerText
from onmt_llm.generate.batches import make_batches
from onmt_llm.text.decoding import ByteStreamDecoder, sentencepiece_bytes


def answer(*stops: str) -> AnswerText:
    return AnswerText(ByteStreamDecoder(sentencepiece_bytes), stops)


@pytest.mark.parametrize("tokens", [["a##", "#x"], ["a", "#", "#", "#", "x"], ["a", "###x"]])
def test_a_stop_string_is_found_wherever_tokens_cut_it(tokens: list[str]) -> None:
    text = answer("###")
    pieces = [text.push(token) for token in tokens] + [text.finish()]
    assert text.stopped
    assert "".join(pieces) == text.text == "a"
    assert text.token_count == (1 if tokens[0] == "a" else 0)


def test_text_that_only_looks_like_a_stop_string_is_given_out_later() -> None:
    text = answer("###")
    assert [text.push(token) for token in ("a#", "#", "b")] == ["a", "", "##b"]
    assert [text.push("##"), text.finish()] == ["", "##"]
    assert not text.stopped
    assert text.token_count == 4


def test_the_earliest_of_several_stop_strings_counts() -> None:
    text = answer("world", "o w")
    text.push("hello▁world")
    assert text.text == "hell"


def test_a_stop_string_in_the_last_bytes_counts() -> None:
    text = answer("é")
    assert text.push("x<0xC3>"[:1]) == "x"
    assert [text.push("<0xC3>"), text.push("<0xA9>"), text.finish()] == ["", "", ""]
    assert (text.text, text.token_count) == ("x", 1)


def test_characters_in_several_tokens_come_out_whole() -> None:
    text = answer()
    assert [text.push(piece) for piece in ("<0xE2>", "<0x82>", "<0xAC>", "5")] == ["", "", "€", "5"]


def test_batches_hold_similar_lengths_and_every_prompt_but_empty_ones() -> None:
    lengths = [3, 0, 9, 4, 1, 9, 2]
    assert make_batches(lengths, batch_size=2, batch_type="sents") == [[2, 5], [3, 0], [6, 4]]
    assert make_batches(lengths, batch_size=12, batch_type="tokens") == [[2], [5], [3, 0, 6], [4]]
    assert make_batches([50], batch_size=12, batch_type="tokens") == [[0]]
    assert make_batches([2, 3, 2, 3], batch_size=9, batch_type="sents", same_length=True) == [[1, 3], [0, 2]]
    assert make_batches([], batch_size=1, batch_type="sents") == []
