"""What all APIs share: the models, the limits, and the way in which prompts are answered."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends

from onmt_llm.generate.engine import Delta, Hypothesis
from onmt_llm.generate.scheduling.ticket import Request, Ticket
from onmt_llm.serve import records
from onmt_llm.serve.metrics import Metrics, end_of
from onmt_llm.serve.models import ModelPool, ServedModel


@dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Attributes:
        body_bytes: Size of its body.
        n: Answers to a prompt.
        answer_tokens: Tokens of an answer.
        queue: Answers that may wait for a model.
        seconds: For an answer, waiting included; None = no limit.
    """

    body_bytes: int = 1 << 20
    n: int = 8
    answer_tokens: int = 4096
    queue: int = 64
    seconds: float | None = 600


@dataclass(frozen=True)
class Service:
    """What the routes of an API use.

    Attributes:
        models: The models.
        limits: What a request may ask for.
        metrics: Where answers are counted.
    """

    models: ModelPool
    limits: Limits
    metrics: Metrics

    @asynccontextmanager
    async def answer(self, model: ServedModel, requests: Iterable[Request]) -> AsyncIterator[PendingAnswers]:
        """Put requests into the queue of a model. What is not complete when the block ends is cancelled.

        Args:
            model: One that `models.use` keeps loaded.
            requests: The prompts.

        Raises:
            Overloaded: Too many requests are waiting.
            OnmtLlmError: A request is wrong.
        """
        answers = PendingAnswers()
        try:
            for request in requests:
                ticket = model.scheduler.submit(request, seconds=self.limits.seconds, notify=answers.notify)
                answers.tickets.append(ticket)
            yield answers
        finally:
            for ticket in answers.tickets:
                if not ticket.is_done:
                    ticket.cancel()
                self.metrics.count_answer(model.name, ticket)
            answers.record(model.name)


class PendingAnswers:
    """Answers that are being generated, read by one asyncio task.

    Attributes:
        tickets: Those of the requests, in order.
    """

    def __init__(self) -> None:
        self.tickets: list[Ticket] = []
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()

    def notify(self) -> None:
        """Tell the task that something has arrived; called by the scheduler's thread."""
        with suppress(RuntimeError):  # the loop is closed: the server has stopped without waiting for the answer
            self._loop.call_soon_threadsafe(self._changed.set)

    async def deltas(self) -> AsyncIterator[tuple[int, Delta]]:
        """The pieces of all answers as they arrive, with the number of the ticket.

        Raises:
            OnmtLlmError: An answer failed.
        """
        open_tickets = dict(enumerate(self.tickets))
        while open_tickets:
            self._changed.clear()
            for number, ticket in list(open_tickets.items()):
                done = ticket.is_done  # asked first: what arrives after `take` needs another round
                while new := ticket.take():  # the call after the last piece raises the error of an answer that failed
                    for delta in new:
                        yield number, delta
                if done:
                    del open_tickets[number]
            if open_tickets:
                await self._changed.wait()

    async def complete(self) -> list[list[Hypothesis]]:
        """Wait for all answers; the hypotheses of each ticket, best first.

        Raises:
            OnmtLlmError: An answer failed.
        """
        async for _ in self.deltas():
            pass
        return [ticket.result() for ticket in self.tickets]

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts; one that has several answers counts once."""
        return sum(len(ticket.request.prompt) for ticket in self.tickets if ticket.request.number == 0)

    @property
    def answer_tokens(self) -> int:
        """Tokens of the answers so far."""
        return sum(ticket.token_count for ticket in self.tickets)

    def record(self, model: str) -> None:
        """Add the figures to the access log."""
        record = records.current.get()
        if record is not None:
            ends = Counter(map(end_of, self.tickets))
            record.add(model, prompt_tokens=self.prompt_tokens, answer_tokens=self.answer_tokens, ends=ends)


def finish_reason(delta_reason: str | None) -> str | None:
    """The reason of a last delta in the words of the APIs: an answer whose time was over is "length"."""
    return "length" if delta_reason == "stopped" else delta_reason


async def _until_sent() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


UntilSent = Annotated[AsyncExitStack, Depends(_until_sent)]
"""A parameter of routes: what is entered into it ends when the response is sent, or the client has gone."""
