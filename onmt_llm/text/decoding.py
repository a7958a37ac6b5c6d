"""Decoding tokens to text, all at once or token by token, up to a stop string.

Byte-fallback pieces (`<0xE2>`) and byte-level pieces (`Ġ`, `Ċ`) are parts of UTF-8 characters, so tokens become bytes
first and then text. The streaming decoder holds back the bytes of an incomplete character; `AnswerText` also holds back
what may become a stop string.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Sequence
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


class WithoutControlTokens:
    """Streaming decoder that leaves out control tokens.

    Args:
        decoder: Decodes the other tokens.
        control_tokens: The tokens that are not text.
    """

    def __init__(self, decoder: StreamDecoder, control_tokens: frozenset[str]) -> None:
        self._decoder = decoder
        self._control_tokens = control_tokens

    def push(self, token: str) -> str:
        return "" if token in self._control_tokens else self._decoder.push(token)

    def flush(self) -> str:
        return self._decoder.flush()


class AnswerText:
    """Decodes an answer token by token, and ends it at the first stop string.

    Text that could be the start of a stop string is held back until it cannot be one. So returned text is final, even
    if a stop string spans several tokens.

    Args:
        decoder: A fresh stream decoder.
        stops: Strings at which the answer ends; they are not part of it.
    """

    def __init__(self, decoder: StreamDecoder, stops: Sequence[str]) -> None:
        self._decoder = decoder
        self._stops = [stop for stop in stops if stop]
        self._decoded = ""
        self._returned = 0
        self._lengths: list[int] = []
        self.stopped = False

    @property
    def text(self) -> str:
        """The text returned so far; the whole answer after `finish`."""
        return self._decoded[: self._returned]

    @property
    def token_count(self) -> int:
        """Number of pushed tokens in the answer: all, or those that end before the stop string."""
        if not self.stopped:
            return len(self._lengths)
        lengths = [0, *self._lengths]
        return lengths.index(max(length for length in lengths if length <= self._returned))

    def push(self, token: str) -> str:
        """Add the next token; return the text that is final now."""
        if self.stopped:
            return ""
        self._decoded += self._decoder.push(token)
        self._lengths.append(len(self._decoded))
        return self._release(hold_back=True)

    def finish(self) -> str:
        """End the answer; return the rest of the text."""
        if self.stopped:
            return ""
        self._decoded += self._decoder.flush()
        return self._release(hold_back=False)

    def _release(self, *, hold_back: bool) -> str:
        found = [at for at in (self._decoded.find(stop, self._returned) for stop in self._stops) if at >= 0]
        self.stopped = bool(found)
        final = len(self._decoded) - (self._possible_stop() if hold_back else 0)
        end = min(found, default=final)
        new, self._returned = self._decoded[self._returned : end], end
        return new

    def _possible_stop(self) -> int:
        """Length of the longest suffix of the text that is a prefix of a stop string."""
        waiting = self._decoded[self._returned :]
        longest = min(len(waiting), max(map(len, self._stops), default=1) - 1)
        return next((n for n in range(longest, 0, -1) if any(stop.startswith(waiting[-n:]) for stop in self._stops)), 0)


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
