"""From tokens to text: streaming equals decoding at once, whole characters only, up to a stop string."""

from __future__ import annotations

import pytest

from onmt_llm.text.decoding import (
    AnswerText,
    ByteStreamDecoder,
    byte_alphabet,
    byte_level_bytes,
    decode_all,
    sentencepiece_bytes,
    to_byte_level,
)

TEXTS = ["plain", " two  spaces ", "naïve 你好 👩‍👩‍👧 \n\t", "", "\x00\x7f"]


@pytest.mark.parametrize("text", TEXTS)
def test_the_byte_alphabet_keeps_any_text(text: str) -> None:
    pieces = to_byte_level(text)
    assert not set(pieces) & set(" \n\t\x00") and byte_level_bytes(pieces).decode() == text
    assert decode_all(ByteStreamDecoder(byte_level_bytes), list(pieces)) == text


def test_the_byte_alphabet_is_that_of_gpt2() -> None:
    alphabet = byte_alphabet()
    assert len(set(alphabet.values())) == 256
    assert [alphabet[byte] for byte in (0x20, 0x0A, 0x41, 0xAD)] == ["Ġ", "Ċ", "A", "Ń"]


def test_added_tokens_are_plain_text() -> None:
    assert byte_level_bytes("<|im_end|> 你") == "<|im_end|> 你".encode()


def test_a_character_appears_when_its_last_byte_does() -> None:
    decoder = ByteStreamDecoder(sentencepiece_bytes)
    assert [decoder.push(token) for token in ("<0xE4>", "<0xBD>", "<0xA0>", "▁a")] == ["", "", "你", " a"]
    assert decoder.flush() == ""


def test_an_incomplete_character_ends_as_a_replacement() -> None:
    decoder = ByteStreamDecoder(sentencepiece_bytes)
    assert decoder.push("<0xE4>") == "" and decoder.flush() == "\ufffd"
    assert ByteStreamDecoder(sentencepiece_bytes).decode(["<0xE4>", "a"]) == "\ufffda"


@pytest.mark.parametrize(("strip", "expected"), [("none", "  two words"), ("one", " two words"), ("all", "two words")])
def test_leading_spaces_are_dropped_once(strip: str, expected: str) -> None:
    tokens = ["▁", "▁two", "▁words"]
    assert ByteStreamDecoder(sentencepiece_bytes, strip=strip).decode(tokens) == expected
    assert decode_all(ByteStreamDecoder(sentencepiece_bytes, strip=strip), tokens) == expected


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
