"""`BpeTokenizer`: byte-pair encoding as subword-nmt does it (Sennrich et al. 2016), on words split at spaces."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from onmt_llm.checksums import fingerprint
from onmt_llm.errors import DataError
from onmt_llm.optional import require
from onmt_llm.text.decoding import StreamDecoder, decode_all
from onmt_llm.text.placeholders import NEWLINE
from onmt_llm.text.tokenizers.whitespace import WordStreamDecoder, to_words


class BpeStreamDecoder:
    """Gives a word once its last piece has arrived: a `｟...｠` placeholder may be split into pieces."""

    def __init__(self, separator: str) -> None:
        self._separator = separator
        self._words = WordStreamDecoder()
        self._word = ""

    def push(self, token: str) -> str:
        if token.endswith(self._separator) and token != self._separator:
            self._word += token.removesuffix(self._separator)
            return ""
        word, self._word = self._word + token, ""
        return self._words.push(word)

    def flush(self) -> str:
        word, self._word = self._word, ""
        return self._words.push(word) if word else ""


class BpeTokenizer:
    """subword-nmt's BPE.

    Args:
        file: The codes that `learn-bpe` wrote.
        separator: Mark at the end of a piece that another piece continues.
        dropout: Probability of skipping a merge (BPE-dropout); for training only.

    Raises:
        DataError: The file does not hold BPE codes.
    """

    control_tokens: frozenset[str] = frozenset()
    restarts_after_control = False

    def __init__(self, file: str | Path, *, separator: str = "@@", dropout: float = 0.0) -> None:
        apply_bpe = require("subword_nmt.apply_bpe", "a BPE tokeniser", "subword-nmt")
        try:
            content = Path(file).read_bytes()
            self._bpe = apply_bpe.BPE(io.StringIO(content.decode("utf-8"), newline=None), separator=separator)
        # subword-nmt raises SystemExit for a line that it cannot read
        except (OSError, ValueError, IndexError, SystemExit) as error:
            raise DataError(f"{file} must hold BPE codes as subword-nmt writes them, but cannot be read.") from error
        self._separator = separator
        self._dropout = dropout
        self.fingerprint = fingerprint(type(self).__name__, content, [separator, dropout])

    def encode(self, text: str, *, continuation: bool = False) -> list[str]:
        tokens: list[str] = []
        for word in to_words(text):
            if word == NEWLINE:
                tokens.append(word)
            elif word:
                tokens += self._bpe.segment_tokens([word], dropout=self._dropout)
        return tokens

    def encode_batch(self, texts: Sequence[str]) -> list[list[str]]:
        return [self.encode(text) for text in texts]

    def decode(self, tokens: Iterable[str]) -> str:
        return decode_all(self.stream_decoder(), tokens)

    def stream_decoder(self) -> StreamDecoder:
        return BpeStreamDecoder(self._separator)

    def vocab_tokens(self) -> list[str] | None:
        return None

    def check_newline(self) -> None:
        """Line breaks are the token `｟newline｠` and are never lost here."""
