"""Decoding tokens to text, all at once or token by token.

Byte-fallback pieces (`<0xE2>`) and byte-level pieces (`Ġ`, `Ċ`) are parts of UTF-8 characters, so tokens become bytes
first and then text. The streaming decoder holds back the bytes of an incomplete character.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable
from functools import cache
from typing import Protocol

BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "▁"


class StreamDecoder(Protocol):
    """Decodes one answer while it is generated; its results, concatenated, equal the full decode."""

    def push(self, token: str) -> str:
        """Add the next token; returns the text that is now final, possibly empty."""
        ...

    def flush(self) -> str:
        """Returns the text that was held back, at the end of the answer."""
        ...


class ByteStreamDecoder:
    """Streaming decoder for tokenisers whose tokens are byte strings.

    Args:
        to_bytes: Gives the UTF-8 bytes of a token.
        strip: Leading spaces to drop: "none", "one" (the dummy prefix), or "all" (extra white space is not kept).
    """

    def __init__(self, to_bytes: Callable[[str], bytes], *, strip: str = "none") -> None:
        self._to_bytes = to_bytes
        self._strip = strip
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: str) -> str:
        return self._stripped(self._utf8.decode(self._to_bytes(token)))

    def decode(self, tokens: Iterable[str]) -> str:
        """Decode a whole answer; nothing must have been pushed to this decoder."""
        return self._stripped(self._utf8.decode(b"".join(map(self._to_bytes, tokens)), True))

    def flush(self) -> str:
        return self._stripped(self._utf8.decode(b"", True))

    def _stripped(self, text: str) -> str:
        if self._strip == "none" or not text:
            return text
        if self._strip == "one":
            self._strip = "none"
            return text.removeprefix(" ")
        text = text.lstrip(" ")
        if text:
            self._strip = "none"
        return text


def decode_all(decoder: StreamDecoder, tokens: Iterable[str]) -> str:
    """The text of a list of tokens, decoded by a streaming decoder."""
    return "".join([*map(decoder.push, tokens), decoder.flush()])


def sentencepiece_bytes(token: str) -> bytes:
    """Bytes of a SentencePiece piece: `<0x0A>` is a byte, `▁` a space."""
    match = BYTE_PIECE.fullmatch(token)
    return bytes([int(match[1], 16)]) if match else token.replace(_SPACE, " ").encode("utf-8")


@cache
def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-ins for the 256 bytes (Radford et al. 2019): space is `Ġ`, newline `Ċ`.

    The printable characters of Latin-1 stand for themselves; the other bytes, in order, are U+0100 and up.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return {byte: chr(byte if byte in printable else next(others)) for byte in range(256)}


@cache
def _byte_of() -> dict[str, int]:
    return {character: byte for byte, character in byte_alphabet().items()}


def to_byte_level(text: str) -> str:
    """Text in GPT-2's alphabet, one character per UTF-8 byte."""
    return "".join(map(byte_alphabet().__getitem__, text.encode("utf-8")))


def byte_level_bytes(token: str) -> bytes:
    """Bytes of a byte-level piece; a token with characters outside the alphabet (an added token) is plain text."""
    try:
        return bytes(map(_byte_of().__getitem__, token))
    except KeyError:
        return token.encode("utf-8")
