"""`Tokenizer`: the protocol of all tokenisers. They take and give text with real newlines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from onmt_llm.text.decoding import StreamDecoder
from onmt_llm.text.tokenizers.pieces import Pieces


class Tokenizer(Protocol):
    """Text <-> pieces (the tokens of the tokeniser's model).

    Attributes:
        control_tokens: Control tokens (`</s>`, `<|im_end|>`) that the model file declares. No text is encoded into one
            of them, and decoded text leaves them out.
        restarts_after_control: Text after any control token is encoded like the start of a text, with the dummy prefix,
            as in the library with which the model was trained. (Text after `bos` always is.)
    """

    @property
    def control_tokens(self) -> frozenset[str]: ...

    @property
    def restarts_after_control(self) -> bool: ...

    @property
    def fingerprint(self) -> str:
        """A hash of the model file and all options: tokenisers with the same hash encode any text alike."""
        ...

    def encode(self, text: str, *, continuation: bool = False) -> list[str]:
        """Pieces of a text.

        Args:
            text: Any text; what looks like a control token or a placeholder is text too.
            continuation: The text continues another one, so it gets no dummy prefix.
        """
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[str]]:
        """Pieces of each text; faster than `encode` for many texts."""
        ...

    def decode(self, tokens: Sequence[str]) -> str:
        """The text of pieces without control tokens."""
        ...

    def stream_decoder(self) -> StreamDecoder:
        """A new streaming decoder for one answer."""
        ...

    def vocab_tokens(self) -> list[str] | None:
        """The pieces of the model file in id order; None if it has no vocabulary."""
        ...

    def check_newline(self) -> None:
        """Raise DataError if line breaks would be lost silently."""
        ...


@runtime_checkable
class PieceEncoder(Protocol):
    """A tokeniser that gives its pieces as numbers, which is faster than strings."""

    def encode_pieces(self, texts: Sequence[str], *, continuation: bool = False) -> list[Pieces | list[str]]:
        """Pieces of each text as `encode` gives them; as strings where numbers cannot express them."""
        ...


def encode_pieces(
    tokenizer: Tokenizer, texts: Sequence[str], *, continuation: bool = False
) -> Sequence[Pieces | list[str]]:
    """Pieces of each text, as numbers if the tokeniser can."""
    if isinstance(tokenizer, PieceEncoder):
        return tokenizer.encode_pieces(texts, continuation=continuation)
    if continuation:
        return [tokenizer.encode(text, continuation=True) for text in texts]
    return tokenizer.encode_batch(texts)
