"""`MissingTokenizer`: stands for the tokeniser of a model that was converted without one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from onmt_llm.errors import DataError
from onmt_llm.text.decoding import StreamDecoder


class MissingTokenizer:
    """Refuses all text, so that weights alone can be opened, exported and released."""

    control_tokens: frozenset[str] = frozenset()
    restarts_after_control = False
    fingerprint = "MissingTokenizer"

    def encode(self, text: str, *, continuation: bool = False) -> list[str]:
        _refuse()

    def encode_batch(self, texts: Sequence[str]) -> list[list[str]]:
        _refuse()

    def decode(self, tokens: Sequence[str]) -> str:
        _refuse()

    def stream_decoder(self) -> StreamDecoder:
        _refuse()

    def vocab_tokens(self) -> list[str] | None:
        return None

    def check_newline(self) -> None:
        _refuse()


def _refuse() -> NoReturn:
    raise DataError(
        "Text needs the model's tokeniser, but the model was converted without one.",
        hint="convert it again with -tokenizer_model FILE",
    )
