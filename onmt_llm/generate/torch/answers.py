"""Answers of the torch engine: the rows of a search with their texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from onmt_llm.config.generate import GenerationConfig
from onmt_llm.generate.engine import Hypothesis, end_ids
from onmt_llm.generate.lengths import length_penalty
from onmt_llm.generate.search.sampling import DecodingRow
from onmt_llm.text.decoding import AnswerText

if TYPE_CHECKING:
    from onmt_llm.text.codec import Codec


class Answer:
    """A row and its text, up to a stop string.

    Args:
        row: May have tokens already; `read` them.
        codec: Vocabulary and stop strings of the model.
        options: How it is made.
    """

    def __init__(self, row: DecodingRow, codec: Codec, options: GenerationConfig) -> None:
        self.row = row
        self._codec, self._options = codec, options
        self._ends = end_ids(codec, options)
        self._text = AnswerText(codec.stream_decoder(), [*codec.stop, *options.stop])

    @property
    def text(self) -> str:
        """What is final of its text."""
        return self._text.text

    def read(self) -> str:
        """Add the row's newest token to the text; end the row at a stop string. Returns the new text."""
        token = self.row.tokens[-1]
        if token in self._ends:
            return self._text.finish()
        new = self._text.push(self._codec.vocab[token])
        if self.row.finish is not None and not self._text.stopped:
            new += self._text.finish()
        if self._text.stopped:
            self.row.finish = "stop"
        return new

    def read_all(self) -> None:
        """Make the text of a row whose search is over."""
        tokens = self.row.tokens
        for token in tokens[:-1] if tokens and tokens[-1] in self._ends else tokens:
            self._text.push(self._codec.vocab[token])
        self._text.finish()

    def finish(self) -> str:
        """End the text of a row that is not finished; returns the rest of it."""
        return self._text.finish()

    def hypothesis(self, score: float | None = None) -> Hypothesis:
        """The answer, with the score of its tokens unless a search has given it another."""
        if score is None:
            score = self.row.log_prob / length_penalty(self._options)(len(self.row.tokens))
        tokens = self._codec.vocab.tokens(self.row.tokens[: self._text.token_count])
        return Hypothesis(tokens, self._text.text, score, self.row.finish or "length")


def finished_answers(
    best: Sequence[tuple[float, DecodingRow]], codec: Codec, options: GenerationConfig
) -> list[Hypothesis]:
    """The answers of a beam search, from its pairs of score and row."""
    found = []
    for score, row in best:
        answer = Answer(row, codec, options)
        answer.read_all()
        found.append(answer.hypothesis(score))
    return found


def stop_detector(codec: Codec, options: GenerationConfig) -> Callable[[list[int]], bool] | None:
    """For beams, which have no incremental text: whether the text of the last tokens contains a stop string."""
    stops = [stop for stop in (*codec.stop, *options.stop) if stop]
    if not stops:
        return None
    # A character has at most four tokens (its bytes), so this many tokens contain the longest stop string.
    tail = 4 * max(map(len, stops)) + 4

    def at_stop(tokens: list[int]) -> bool:
        text = codec.decode(codec.vocab.tokens(tokens[-tail:]))
        return any(stop in text for stop in stops)

    return at_stop
