"""`Segment`: a part of an example that the loss either covers or not; and tokenising the segments of an example."""

from __future__ import annotations

from collections.abc import Sequence

from onmt_llm.text.tokenizers.base import Tokenizer
from onmt_llm.text.tokenizers.pieces import Pieces


class Segment:
    """Text, or tokens once it has been tokenised.

    Attributes:
        text: Text with real newlines; None once tokenised.
        train_on: Whether the loss covers this segment.
        starts_round: Whether a round of a conversation (a question, with what precedes it) starts here.
    """

    __slots__ = ("_pieces", "_tokens", "starts_round", "text", "train_on")

    def __init__(
        self,
        text: str | None = None,
        tokens: list[str] | None = None,
        train_on: bool = True,
        starts_round: bool = False,
    ) -> None:
        self.text = text
        self._tokens = tokens
        self._pieces: Pieces | None = None
        self.train_on = train_on
        self.starts_round = starts_round

    def like(
        self, *, text: str | None = None, tokens: list[str] | None = None, train_on: bool | None = None
    ) -> Segment:
        """A copy with other text or tokens (neither = the same) or another `train_on`."""
        train_on = self.train_on if train_on is None else train_on
        made = Segment(text, tokens, train_on, self.starts_round)
        if text is None and tokens is None:
            made.text, made._tokens, made._pieces = self.text, self._tokens, self._pieces
        return made

    @property
    def tokens(self) -> list[str] | None:
        """Tokens; control tokens (`<|im_start|>`) are always given as tokens and never made from text."""
        if self._pieces is not None:
            self._tokens, self._pieces = self._pieces.tokens(), None  # the list may be changed from now on
        return self._tokens

    @tokens.setter
    def tokens(self, tokens: list[str] | None) -> None:
        self._tokens, self._pieces = tokens, None

    @property
    def pieces(self) -> Pieces | None:
        """The tokens as numbers, until `tokens` is read."""
        return self._pieces

    @property
    def num_tokens(self) -> int | None:
        """Number of tokens; None while it is text."""
        counted = self._tokens if self._pieces is None else self._pieces
        return None if counted is None else len(counted)

    def tokenized(self, tokens: list[str] | Pieces) -> None:
        """Replace the text by tokens."""
        self.text = None
        if isinstance(tokens, Pieces):
            self._tokens, self._pieces = None, tokens
        else:
            self._tokens, self._pieces = tokens, None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Segment):
            return NotImplemented
        return self._key() == other._key()

    def _key(self) -> tuple[str | None, list[str] | None, bool, bool]:
        return self.text, self.tokens, self.train_on, self.starts_round

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Segment(text={self.text!r}, tokens={self.tokens!r}, train_on={self.train_on})"


def tokenize_segments(tokenizer: Tokenizer, segments: Sequence[Segment], *, bos: str | None = None) -> list[list[str]]:
    """Tokens of each segment of one example, as parts of one text (see `continuations`).

    Segments that have tokens keep them.
    """
    return [
        tokenizer.encode(segment.text or "", continuation=goes_on) if segment.tokens is None else list(segment.tokens)
        for segment, goes_on in zip(segments, continuations(tokenizer, segments, bos=bos), strict=True)
    ]


def continuations(tokenizer: Tokenizer, segments: Sequence[Segment], *, bos: str | None = None) -> list[bool]:
    """Which segments of one example continue the text before them.

    A dummy prefix is added only at the start, after `bos`, and after control tokens if the tokeniser does so.

    Args:
        tokenizer: Encodes the segments that are text.
        segments: The segments in order.
        bos: The model's begin-of-sequence token.
    """
    restart = True
    goes_on = []
    for segment in segments:
        goes_on.append(not restart)
        if segment.text is not None:
            restart = restart and not segment.text
        elif segment.tokens:
            restart = tokenizer.restarts_after_control or segment.tokens[-1] == bos
    return goes_on
