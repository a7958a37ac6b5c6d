"""Answers on their way to visitors: each has a number, and a visitor has one at a time.

A visitor's browser shows what arrives last, so nothing of an earlier answer may arrive after the next action. Therefore
an action begins with `Visitors.begin`, which ends the answer before it and waits until nothing more of that can come.
Stop is different: it sends nothing itself, and the answer's own stream delivers the last page.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from onmt_llm.chat.model import Submitted

UPDATE_SECONDS = 0.05
"""Minimum time between two updates of a page: more often, browsers would lag."""
IDLE_SECONDS = 1.0
"""Time after which a page is updated although nothing has arrived; also notices that a visitor has left."""


class RunningAnswer:
    """An answer of one model, or of two that are compared; for the event loop's thread only, except `notify`.

    Attributes:
        number: Counted over all visitors, for the log and for tests.
        stopped: The visitor wants no more of it, but keeps what has arrived.
        abandoned: The visitor has left it: nothing more of it may be shown.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.stopped = False
        self.abandoned = False
        self._columns: list[PartialAnswer] = []
        self._changed = asyncio.Event()
        self._unwanted = asyncio.Event()
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def notify(self) -> None:
        """Something has changed; from any thread."""
        with suppress(RuntimeError):  # the loop is closed: the page has ended without waiting for the answer
            self._loop.call_soon_threadsafe(self._changed.set)

    def add(self, submitted: Submitted) -> PartialAnswer:
        """Have a ticket followed; it is cancelled with the answer."""
        progress = PartialAnswer(submitted)
        self._columns.append(progress)
        if self.stopped or self.abandoned:
            submitted.ticket.cancel()
        return progress

    def stop(self) -> None:
        """End it at once; what has arrived stays."""
        self.stopped = True
        self._cancel()

    async def abandon(self) -> None:
        """End it, and wait until nothing more of it is shown."""
        self.abandoned = True
        self._cancel()
        await self._ended.wait()

    def end(self) -> None:
        """Nothing more of it is shown from now on."""
        self._cancel()
        self._ended.set()

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be added to it, or nothing more of it is wanted."""
        return self.stopped or self.abandoned or all(column.is_done for column in self._columns)

    async def updates(self) -> AsyncIterator[None]:
        """One element after each change of its columns, at most every `UPDATE_SECONDS`; the last when it is over.

        Raises:
            OnmtLlmError: The answer failed.
        """
        while True:
            begun = time.monotonic()
            for column in self._columns:
                column.advance()
            yield
            if self.is_over:
                return
            # a long page takes time to send: as much is left for other visitors
            pause = min(max(UPDATE_SECONDS, time.monotonic() - begun), 5 * UPDATE_SECONDS)
            if not await _happens(self._unwanted, pause):
                await _happens(self._changed, IDLE_SECONDS)
                self._changed.clear()

    def _cancel(self) -> None:
        for column in self._columns:
            column.ticket.cancel()
        self._unwanted.set()
        self._changed.set()


async def _happens(event: asyncio.Event, seconds: float) -> bool:
    try:
        return await asyncio.wait_for(event.wait(), seconds)
    except asyncio.TimeoutError:
        return False


class PartialAnswer:
    """What has arrived of the answer of one model."""

    def __init__(self, submitted: Submitted) -> None:
        self.ticket = submitted.ticket
        self.prompt_tokens = submitted.prompt_tokens
        self.left_out = submitted.left_out
        self.text = self._begun = submitted.partial
        self._finish: str | None = None
        self._joint = submitted.joint

    def advance(self) -> None:
        """Take what has arrived."""
        for delta in self.ticket.take():
            if delta.text and self._joint:
                self.text += "" if delta.text[0].isspace() else self._joint
                self._joint = ""
            self.text += delta.text
            if delta.finish_reason is not None:
                self._finish = delta.finish_reason

    @property
    def is_empty(self) -> bool:
        """Whether no text has arrived, besides the text that is continued."""
        return self.text == self._begun

    @property
    def is_done(self) -> bool:
        """Whether nothing more will arrive."""
        return self._finish is not None

    @property
    def is_complete(self) -> bool:
        """Whether the model has ended the answer itself, or at its maximum length."""
        return self._finish in ("stop", "length")

    @property
    def truncated(self) -> bool:
        """Whether the answer ended at its maximum length."""
        return self._finish == "length"

    @property
    def waits(self) -> bool:
        """Whether the answer is not begun."""
        return self.ticket.started is None

    @property
    def tokens(self) -> int:
        return self.ticket.token_count

    @property
    def tokens_per_second(self) -> float | None:
        """Speed since the first token; None = not known yet."""
        first = self.ticket.first_token
        if first is None or self.tokens < 2:
            return None
        seconds = (self.ticket.finished or time.monotonic()) - first
        return (self.tokens - 1) / seconds if seconds > 0 else None


class Visitors:
    """The running answer of each visitor."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._running: dict[str, RunningAnswer] = {}

    @asynccontextmanager
    async def begin(self, visitor: str) -> AsyncIterator[RunningAnswer]:
        """A new answer for a visitor, once an earlier one has ended."""
        while earlier := self._running.get(visitor):
            await earlier.abandon()
        answer = self._running[visitor] = RunningAnswer(next(self._numbers))
        try:
            yield answer
        finally:
            del self._running[visitor]
            answer.end()

    def stop(self, visitor: str) -> None:
        """Stop the answer of a visitor, if there is one."""
        if answer := self._running.get(visitor):
            answer.stop()

    def leave(self, visitor: str) -> None:
        """End the answer of a visitor who has gone."""
        if answer := self._running.get(visitor):
            answer.abandoned = True
            answer.stop()
