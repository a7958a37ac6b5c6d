"""Workers: how an engine answers the requests of a queue. This one answers them one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from onmt_llm.generate.engine import Delta, Engine, FinishReason, Hypothesis
from onmt_llm.generate.scheduling.ticket import Ticket


@dataclass(frozen=True)
class Queue:
    """The queue of a scheduler, as its worker sees it.

    Attributes:
        take: `take(limit, seconds)` removes up to `limit` tickets, the oldest first. It waits at most `seconds` for
            that many; 0 = it returns what there is, which may be nothing.
        done: `done(ticket)` reports that nothing more will be written to a ticket; the worker calls it once for each.
    """

    take: Callable[[int, float], list[Ticket]]
    done: Callable[[Ticket], None]


class Worker(Protocol):
    """Drives an engine."""

    def run(self, queue: Queue) -> None:
        """Answer requests until none is waiting and none is running, then return."""
        ...


class SequentialWorker:
    """Answers one request at a time, with any engine: the reference for workers that are faster."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def run(self, queue: Queue) -> None:
        while tickets := queue.take(1, 0.0):
            for ticket in tickets:
                try:
                    answer_alone(self._engine, ticket)
                except Exception as error:
                    ticket.fail(error)
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


def finish_streamed(ticket: Ticket, last: Delta, text: str, tokens: Sequence[str] = ()) -> None:
    """Write the last piece of an answer, and the whole of it."""
    reason: FinishReason = "stop" if last.finish_reason == "stop" else "length"
    ticket.finish(last, [Hypothesis(list(tokens), text, 0.0, reason)])
