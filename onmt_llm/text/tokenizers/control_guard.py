"""`ControlGuard`: keeps any tokeniser from encoding a user's text into control tokens."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from itertools import pairwise

from onmt_llm.checksums import fingerprint
from onmt_llm.errors import DataError
from onmt_llm.text.decoding import StreamDecoder
from onmt_llm.text.tokenizers.base import Tokenizer, encode_pieces
from onmt_llm.text.tokenizers.pieces import Pieces, PieceTable


class ControlGuard:
    """Wraps a tokeniser so that no text is encoded into a control token.

    Most libraries ensure this themselves. The exceptions are user-defined pieces of SentencePiece models, and word
    tokenisers, for which `</s>` is a word like any other. If an encoded text contains a control token, it is encoded
    again, split after the first character of every control token.

    Args:
        tokenizer: The wrapped tokeniser.
        control_tokens: More control tokens than the tokeniser knows.

    Attributes:
        inner: The wrapped tokeniser.
    """

    def __init__(self, tokenizer: Tokenizer, control_tokens: Collection[str]) -> None:
        self.inner = tokenizer
        self.control_tokens = tokenizer.control_tokens.union(control_tokens)
        cuttable = [re.escape(token) for token in self.control_tokens if len(token) > 1]
        self._blocked: dict[PieceTable, frozenset[int]] = {}
        self._start = re.compile(f"(?={'|'.join(cuttable)})") if cuttable else None

    @property
    def restarts_after_control(self) -> bool:
        return self.inner.restarts_after_control

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.inner.fingerprint, None, sorted(self.control_tokens))

    def encode(self, text: str, *, continuation: bool = False) -> list[str]:
        try:
            tokens = self.inner.encode(text, continuation=continuation)
        except (RuntimeError, TypeError, UnicodeError):
            _require_unicode(text)
            raise
        return self._checked(text, tokens, continuation)

    def encode_batch(self, texts: Sequence[str]) -> list[list[str]]:
        try:
            encoded = self.inner.encode_batch(texts)
        except (RuntimeError, TypeError, UnicodeError):
            for text in texts:
                _require_unicode(text)
            raise
        return [self._checked(text, tokens, False) for text, tokens in zip(texts, encoded, strict=True)]

    def encode_pieces(self, texts: Sequence[str], *, continuation: bool = False) -> list[Pieces | list[str]]:
        try:
            encoded = encode_pieces(self.inner, texts, continuation=continuation)
        except (RuntimeError, TypeError, UnicodeError):
            for text in texts:
                _require_unicode(text)
            raise
        return [
            tokens
            if isinstance(tokens, Pieces) and self._are_text(tokens)
            else self._checked(text, tokens.tokens() if isinstance(tokens, Pieces) else tokens, continuation)
            for text, tokens in zip(texts, encoded, strict=True)
        ]

    def _are_text(self, pieces: Pieces) -> bool:
        """Whether no piece is one of the additional control tokens."""
        blocked = self._blocked.get(pieces.table)
        if blocked is None:
            control = self.control_tokens - self.inner.control_tokens
            blocked = frozenset(id_ for id_, token in enumerate(pieces.table.tokens) if token in control)
            self._blocked[pieces.table] = blocked
        return not blocked or blocked.isdisjoint(memoryview(pieces.ids).cast("i"))

    def _checked(self, text: str, tokens: list[str], continuation: bool) -> list[str]:
        if self._start is None or self.control_tokens.isdisjoint(tokens):
            return tokens
        cuts = [0, *(match.start() + 1 for match in self._start.finditer(text)), len(text)]
        safe: list[str] = []
        for start, end in pairwise(cuts):
            safe += self.inner.encode(text[start:end], continuation=continuation or start > 0)
        return safe

    def decode(self, tokens: Sequence[str]) -> str:
        return self.inner.decode(tokens)

    def stream_decoder(self) -> StreamDecoder:
        return self.inner.stream_decoder()

    def vocab_tokens(self) -> list[str] | None:
        return self.inner.vocab_tokens()

    def check_newline(self) -> None:
        self.inner.check_newline()


def unguarded(tokenizer: Tokenizer) -> Tokenizer:
    """The tokeniser inside a guard; any other tokeniser as it is."""
    return tokenizer.inner if isinstance(tokenizer, ControlGuard) else tokenizer


def _require_unicode(text: str) -> None:
    """Refuse lone surrogates, which Python and JSON allow in a string but UTF-8, and so every library, does not."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"Text must be valid Unicode, but holds {text[error.start]!r} alone.") from error
