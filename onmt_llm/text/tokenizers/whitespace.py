"""`WhitespaceTokenizer`: tokens are the words between spaces, for text that is already tokenised."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from onmt_llm.text.decoding import StreamDecoder, decode_all
from onmt_llm.text.placeholders import NEWLINE, from_line, to_line


def to_words(text: str) -> list[str]:
    """Words of a text; a line break, and only a line break, is the word `｟newline｠`."""
    return to_line(text).replace(NEWLINE, f" {NEWLINE} ").split(" ")


class WordStreamDecoder:
    """Joins words with spaces, except around line breaks."""

    def __init__(self) -> None:
        self._glue = ""

    def push(self, token: str) -> str:
        if token == NEWLINE:
            self._glue = ""
            return "\n"
        text = self._glue + from_line(token)
        self._glue = " "
        return text

    def flush(self) -> str:
        return ""


class WhitespaceTokenizer:
    """Splits at spaces. Repeated spaces count as one, so decoding restores the text except for these."""

    control_tokens: frozenset[str] = frozenset()
    restarts_after_control = False
    fingerprint = "WhitespaceTokenizer"

    def encode(self, text: str, *, continuation: bool = False) -> list[str]:
        return [word for word in to_words(text) if word]

    def encode_batch(self, texts: Sequence[str]) -> list[list[str]]:
        return [self.encode(text) for text in texts]

    def decode(self, tokens: Iterable[str]) -> str:
        return decode_all(self.stream_decoder(), tokens)

    def stream_decoder(self) -> StreamDecoder:
        return WordStreamDecoder()

    def vocab_tokens(self) -> list[str] | None:
        return None

    def check_newline(self) -> None:
        """Line breaks are the token `｟newline｠` and are never lost here."""
