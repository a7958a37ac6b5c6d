"""Workers: how an engine answers the requests of a queue. This one answers them one by one."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol

from onmt_llm.errors import UnsupportedError
from onmt_llm.generate.engine import Delta, Engine, FinishReason, Hypothesis
from onmt_llm.generate.scheduling.ticket import Request, Ticket


class Take(Protocol):
    def __call__(
        self, limit: int, seconds: float, alike: Callable[[Ticket], Hashable] | None = None
    ) -> list[Ticket]: ...


@dataclass(frozen=True)
class Queue:
    """The queue of a scheduler, as its worker sees it.

    Attributes:
        take: `take(limit, seconds)` removes up to `limit` tickets, the oldest first. It waits at most `seconds` for
            that many; 0 = it returns those that wait, which may be none. `take(limit, seconds, alike)` removes only
            tickets for which the function `alike` returns what it returns for the oldest. Tickets that must stop are
            removed too, beyond the limit: they are to be finished, not answered.
        done: `done(ticket)` reports that nothing more will be written to a ticket; the worker calls it once for each.
    """

    take: Take
    done: Callable[[Ticket], None]


class Worker(Protocol):
    """Drives an engine."""

    @property
    def rows(self) -> int:
        """Rows of the batches that are decoded now."""
        ...

    def check(self, request: Request) -> None:
        """Refuse what the engine cannot do; called from the clients' threads.

        Raises:
            OnmtLlmError: As the engine would refuse it.
        """
        ...

    def run(self, queue: Queue) -> None:
        """Answer requests until none is waiting and none is running, then return."""
        ...


class SequentialWorker:
    """Answers one request at a time, with any engine: the reference for workers that are faster."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.rows = 0

    def check(self, request: Request) -> None:
        """See `Worker.check`; what else the engine refuses becomes the ticket's error."""
        if request.top_log_probs is not None or request.prompt_log_probs:
            raise UnsupportedError("Log probabilities need a worker for this engine, which answers one by one.")

    def run(self, queue: Queue) -> None:
        while tickets := queue.take(1, 0.0):
            for ticket in tickets:
                self.rows = 1
                try:
                    answer_alone(self._engine, ticket)
                except Exception as error:
                    ticket.fail(error)
                self.rows = 0
                queue.done(ticket)


def answer_alone(engine: Engine, ticket: Ticket) -> None:
    """Answer one request with nothing beside it."""
    request = ticket.request
    if ticket.must_stop:
        return finish_streamed(ticket, Delta("", 0, "stopped"), "")
    engine = engine.for_languages(request.src_lang, request.tgt_lang)
    if request.options.beam_size > 1 or request.options.n_best > 1 or request.prefix:
        prefixes = [request.prefix] if request.prefix else None
        hypotheses = engine.generate([request.prompt], request.options, prefixes=prefixes)[0]
        return ticket.finish(hypotheses[0].as_delta(), hypotheses)
    text = ""
    for delta in engine.stream(request.prompt, request.options, should_stop=lambda: ticket.must_stop):
        text += delta.text
        if delta.finish_reason is None:
            ticket.push(delta)
        else:
            finish_streamed(ticket, delta, text)


def finish_streamed(ticket: Ticket, last: Delta, text: str) -> None:
    """Finish the ticket of a streamed answer with its last piece and its whole text."""
    reason: FinishReason = "stop" if last.finish_reason == "stop" else "length"
    ticket.finish(last, [Hypothesis([], text, 0.0, reason)])
