"""`Tokenizer`: the protocol that all tokenisers share. Text goes in, and comes out, with real newlines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from onmt_llm.text.decoding import StreamDecoder
from onmt_llm.text.tokenizers.pieces import Pieces


class Tokenizer(Protocol):
    """Text <-> vocabulary pieces.

    Attributes:
        control_tokens: Pieces with a role (`</s>`, `<|im_end|>`) that the model file itself declares. No text is ever
            encoded into one of them, and they are left out of decoded text.
        restarts_after_control: Text behind any control token is encoded like the start of a text, with the dummy
            prefix, as the library that the model was trained with does it. (Behind `bos` it always is.)
    """

    @property
    def control_tokens(self) -> frozenset[str]: ...

    @property
    def restarts_after_control(self) -> bool: ...

    @property
    def fingerprint(self) -> str:
        """A hash of the model file and all options: two tokenisers that share it make the same pieces of any text."""
        ...

    def encode(self, text: str, *, continuation: bool = False) -> list[str]:
        """Pieces of a text.

        Args:
            text: Any text; what looks like a control token or a marker is text too.
            continuation: The text goes on where another one ended: no dummy prefix is put before it.
        """
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[str]]:
        """Pieces of each text; the fast way for many."""
        ...

    def decode(self, tokens: Sequence[str]) -> str:
        """The text of pieces. The caller has taken out control tokens."""
        ...

    def stream_decoder(self) -> StreamDecoder:
        """A fresh decoder for one answer that comes token by token."""
        ...

    def vocab_tokens(self) -> list[str] | None:
        """The model's own pieces in id order; None where it has no vocabulary of its own."""
        ...

    def check_newline(self) -> None:
        """Raise DataError where a line break would be lost without a word."""
        ...


@runtime_checkable
class PieceEncoder(Protocol):
    """A tokeniser that gives its pieces by number, which is faster than as strings."""

    def encode_pieces(self, texts: Sequence[str], *, continuation: bool = False) -> list[Pieces | list[str]]:
        """Pieces of each text, the same as `encode` gives; as strings where numbers cannot say them."""
        ...


def encode_pieces(
    tokenizer: Tokenizer, texts: Sequence[str], *, continuation: bool = False
) -> Sequence[Pieces | list[str]]:
    """Pieces of each text, by number where the tokeniser can."""
    if isinstance(tokenizer, PieceEncoder):
        return tokenizer.encode_pieces(texts, continuation=continuation)
    if continuation:
        return [tokenizer.encode(text, continuation=True) for text in texts]
    return tokenizer.encode_batch(texts)
