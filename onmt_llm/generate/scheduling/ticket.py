"""Requests, and the tickets on which their answers arrive."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from onmt_llm.config.generate import GenerationConfig
from onmt_llm.generate.engine import Delta, Hypothesis

Place = Callable[["Ticket"], int]


@dataclass(frozen=True)
class Request:
    """A prompt to be answered.

    Attributes:
        prompt: Tokens, as in `Engine.generate`; an empty prompt gets empty answers.
        options: How to search or sample.
        src_lang, tgt_lang: Languages of a multilingual model, by their codes; "" = the model's default.
        prefix: Tokens with which the answers start.
        number: Number of the answer among several to one prompt (`n` of the OpenAI API): with one seed, each number has
            its own random numbers.
        top_log_probs: Report the log probability of each token, and those of this many of the most likely tokens in its
            place; None = no log probabilities.
        prompt_log_probs: Report them for the tokens of the prompt too, before those of the answer.
    """

    prompt: Sequence[str]
    options: GenerationConfig
    src_lang: str = ""
    tgt_lang: str = ""
    prefix: Sequence[str] = ()
    number: int = 0
    top_log_probs: int | None = None
    prompt_log_probs: bool = False


class Ticket:
    """The answer to a request, as it arrives: read by one thread while the scheduler's thread writes it.

    A request with `beam_size` 1 and `n_best` 1 arrives token by token; any other as one delta with the best answer. The
    last delta has a `finish_reason`: "stop" or "length"; "stopped" if the answer was cancelled or its time was over.

    Args:
        request: What is answered.
        deadline: Time of `time.monotonic()` at which the answer ends, finished or not; None = none.
        notify: Called, from the scheduler's thread, after each change; it must return at once. An asyncio server passes
            a function that calls `loop.call_soon_threadsafe`.
        place: Tells the number of requests that are answered before this one.

    Attributes:
        submitted, started, first_token, finished: Times of `time.monotonic()`; None = not yet.
        token_count: Tokens of the answer so far.
    """

    def __init__(
        self,
        request: Request,
        *,
        deadline: float | None = None,
        notify: Callable[[], None] | None = None,
        place: Place = lambda ticket: 0,
    ) -> None:
        self.request = request
        self.deadline = deadline
        self.submitted = time.monotonic()
        self.started: float | None = None
        self.first_token: float | None = None
        self.finished: float | None = None
        self.token_count = 0
        self._notify, self._place = notify, place
        self._changed = threading.Condition()
        self._new: list[Delta] = []
        self._hypotheses: list[Hypothesis] | None = None
        self._error: Exception | None = None
        self._cancelled = False
        self._was_stopped = False

    @property
    def place(self) -> int:
        """Requests that wait before this one; 0 = it is the next, is being answered, or is done."""
        return 0 if self.started is not None else self._place(self)

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled

    @property
    def is_expired(self) -> bool:
        """Whether its time is over."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    @property
    def must_stop(self) -> bool:
        """Whether the scheduler shall end the answer now."""
        return self._cancelled or self.is_expired

    @property
    def is_done(self) -> bool:
        """Whether nothing more will arrive."""
        return self.finished is not None

    @property
    def error(self) -> Exception | None:
        """Why the answer failed."""
        return self._error

    @property
    def was_stopped(self) -> bool:
        """Whether the answer ended because it was cancelled or its time was over."""
        return self._was_stopped

    def cancel(self) -> None:
        """End the answer, from any thread, at any time; what has arrived stays."""
        self._cancelled = True

    def take(self) -> list[Delta]:
        """What has arrived since the last call, without waiting.

        Raises:
            OnmtLlmError: The answer failed, and what arrived before has been taken.
        """
        with self._changed:
            new, self._new = self._new, []
            if not new and self._error is not None:
                raise self._error
        return new

    def deltas(self) -> Iterator[Delta]:
        """The answer piece by piece, waiting for each; closing the iterator cancels the answer.

        Raises:
            OnmtLlmError: The answer failed.
        """
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: bool(self._new) or self.is_done)
                new = self.take()
                if not new:
                    return
                yield from new
        finally:
            self.cancel()

    def result(self, timeout: float | None = None) -> list[Hypothesis]:
        """Wait for the whole answer; its hypotheses, best first. A cancelled answer has the text that it has got.

        Raises:
            OnmtLlmError: The answer failed.
            TimeoutError: It takes longer than `timeout` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.is_done, timeout):
                raise TimeoutError(f"no answer within {timeout} seconds")
            if self._error is not None:
                raise self._error
            assert self._hypotheses is not None
            return self._hypotheses

    def begin(self) -> None:
        """For the scheduler: the answer is begun."""
        self._change(lambda now: setattr(self, "started", now))

    def push(self, delta: Delta) -> None:
        """For the scheduler: add a piece that is not the last."""

        def change(now: float) -> None:
            self._append(delta, now)

        self._change(change)

    def finish(self, delta: Delta, hypotheses: list[Hypothesis]) -> None:
        """For the scheduler: add the last piece, and the whole answer."""

        def change(now: float) -> None:
            self._append(delta, now)
            self._hypotheses, self.finished = hypotheses, now
            self._was_stopped = delta.finish_reason == "stopped"

        self._change(change)

    def fail(self, error: Exception) -> None:
        """For the scheduler: the answer ends with an error."""

        def change(now: float) -> None:
            self._error, self.finished = error, now

        self._change(change)

    def _append(self, delta: Delta, now: float) -> None:
        self._new.append(delta)
        self.token_count += delta.tokens
        if self.first_token is None and delta.tokens:
            self.first_token = now

    def _change(self, change: Callable[[float], None]) -> None:
        with self._changed:
            change(time.monotonic())
            self._changed.notify_all()
        if self._notify is not None:
            self._notify()


@dataclass
class Statistics:
    """What a scheduler has done.

    Attributes:
        waiting, running: Requests now.
        rows: Rows of the batches that are decoded now: one for each running request, or several for its hypotheses.
        answered, cancelled, failed, refused: Requests since the start; `refused` found the queue full.
        prompt_tokens, answer_tokens: Tokens since the start.
        queue_seconds: Sum of the times that requests have waited until they were begun.
    """

    waiting: int = 0
    running: int = 0
    rows: int = 0
    answered: int = 0
    cancelled: int = 0
    failed: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    queue_seconds: float = 0.0
