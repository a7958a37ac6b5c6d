"""Answers of a batch of CTranslate2, as its callback hears of their tokens.

Nothing here refers to the model, once a batch is over: CTranslate2 drops a callback in a thread of its own, and a model
that ends there waits for that very thread.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from onmt_llm.generate.ct2.decoding import answer_text
from onmt_llm.generate.engine import Delta, FinishReason, Hypothesis, end_ids
from onmt_llm.generate.lengths import length_penalty
from onmt_llm.generate.scheduling.ticket import Ticket

if TYPE_CHECKING:
    from onmt_llm.text.codec import Codec


class Ct2Row:
    """One answer.

    Args:
        ticket: Its request.
        codec: Vocabulary and stop strings of the model.
        limit: Maximum number of tokens.
        forced: Tokens that the decoder is given first, which are not of the answer.

    Attributes:
        finish_reason: Why it ended; None = it is alive.
    """

    def __init__(self, ticket: Ticket, codec: Codec, *, limit: int, forced: int) -> None:
        self._ticket, self._codec, self._limit, self._forced = ticket, codec, limit, forced
        self._options = ticket.request.options
        self._ends: Collection[int] = end_ids(codec, self._options)
        self._text = answer_text(codec, self._options)
        self._log_prob = 0.0
        self.ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.was_stopped = False

    def add(self, step: Any) -> str:
        """Add the token of a step; returns the new text."""
        if step.step < self._forced:
            return ""
        self.ids.append(step.token_id)
        self._log_prob += step.log_prob
        if step.token_id in self._ends:
            self.finish_reason = "stop"
            return self._text.finish()
        new = self._text.push(self._codec.vocab[step.token_id])
        self.was_stopped = self._ticket.must_stop
        if not self._text.stopped and (self.was_stopped or step.is_last or len(self.ids) >= self._limit):
            new += self._text.finish()
            self.finish_reason = "length"
        if self._text.stopped:
            self.finish_reason, self.was_stopped = "stop", False
        return new

    def hypothesis(self) -> Hypothesis:
        """The answer so far."""
        answer = self.ids[:-1] if self.ids and self.ids[-1] in self._ends else self.ids
        tokens = self._codec.vocab.tokens(answer[: self._text.token_count])
        score = self._log_prob / length_penalty(self._options)(len(self.ids))
        return Hypothesis(tokens, self._text.text, score, self.finish_reason or "length")


class Ct2Rows:
    """The callback of a batch: it delivers the answers of requests for one answer as they grow.

    Args:
        requests: The rows of each request: one for each of its `n_best` answers.
        held: Requests whose end is not delivered here, since more is computed of the answer.
    """

    def __init__(self, requests: Sequence[tuple[Ticket, list[Ct2Row]]], held: Collection[Ticket]) -> None:
        self._requests, self._held = requests, held

    def __call__(self, step: Any) -> bool:
        if step.batch_id >= len(self._requests):
            return True  # a prompt that only makes CTranslate2 read the others as it must
        ticket, rows = self._requests[step.batch_id]
        row = rows[step.hypothesis_id]
        try:
            if row.finish_reason is None:
                new = row.add(step)
                if len(rows) == 1 and row.ids:
                    self._deliver(ticket, row, new)
        except Exception as error:  # an error that passed through CTranslate2 would end the process
            row.finish_reason = "length"
            if not ticket.is_done:
                ticket.fail(error)
        return row.finish_reason is not None

    def release(self) -> None:
        """Forget the requests."""
        self._requests, self._held = (), ()

    def _deliver(self, ticket: Ticket, row: Ct2Row, new: str) -> None:
        if row.finish_reason is None or ticket in self._held:
            ticket.push(Delta(new, 1))
        else:
            ticket.finish(Delta(new, 1, "stopped" if row.was_stopped else row.finish_reason), [row.hypothesis()])
