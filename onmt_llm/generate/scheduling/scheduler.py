"""The scheduler: a bounded queue of requests, answered by one thread."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING

from onmt_llm.config.generate import GenerationConfig
from onmt_llm.errors import OnmtLlmError
from onmt_llm.generate.ct2.engine import Ct2Engine
from onmt_llm.generate.engine import Delta, Engine, check_options
from onmt_llm.generate.scheduling.ct2_worker import Ct2Worker
from onmt_llm.generate.scheduling.ticket import Request, Statistics, Ticket
from onmt_llm.generate.scheduling.worker import Queue, SequentialWorker, Worker
from onmt_llm.log import logger

if TYPE_CHECKING:
    from onmt_llm.text.codec import Codec


class Overloaded(OnmtLlmError):
    """The queue is full, or the scheduler is closing: the request may be sent again later.

    Attributes:
        retry_after: Seconds after which the request may be sent again.
    """

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message, hint=f"try again in {retry_after:.0f} s")
        self.retry_after = retry_after


class Scheduler:
    """Answers requests of many threads with one engine, in the order in which they came.

    An answer does not depend on the other requests: it is the one that `Engine.generate` gives to its prompt alone.

    Examples:
        >>> scheduler = Scheduler(engine)
        >>> ticket = scheduler.submit(Request(prompt, GenerationConfig(max_length=8)))
        >>> "".join(delta.text for delta in ticket.deltas()) == ticket.result()[0].text
        True
        >>> scheduler.close()

    Args:
        engine: Only the scheduler's thread may use it from now on, except its `codec`.
        max_queue: Requests that may wait.
        worker: How to drive the engine; None = the best for its kind (`best_worker`).
    """

    def __init__(self, engine: Engine, *, max_queue: int = 64, worker: Worker | None = None) -> None:
        self._engine = engine
        self._max_queue = max_queue
        self._worker = worker or best_worker(engine)
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._running: set[Ticket] = set()
        self._closing = False
        self._statistics = Statistics()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    @property
    def codec(self) -> Codec:
        """Vocabulary, tokeniser and template of the model."""
        return self._engine.codec

    @property
    def statistics(self) -> Statistics:
        """A copy of the figures so far."""
        with self._changed:
            now = {"waiting": len(self._waiting), "running": len(self._running), "rows": self._worker.rows}
            return replace(self._statistics, **now)

    def submit(
        self, request: Request, *, seconds: float | None = None, notify: Callable[[], None] | None = None
    ) -> Ticket:
        """Put a request into the queue.

        Args:
            request: What to answer.
            seconds: Time limit, waiting included; then its answer ends as if cancelled.
            notify: See `Ticket`.

        Raises:
            ConfigError: The options contradict each other, or the engine does not support one of them.
            DataError: The prompt does not fit into the model.
            Overloaded: Too many requests are waiting, or the scheduler is closing.
        """
        check_options(request.options)
        self._worker.check(request)
        deadline = None if seconds is None else time.monotonic() + seconds
        ticket = Ticket(request, deadline=deadline, notify=notify, place=self._place)
        with self._changed:
            self.check_room()
            self._waiting.append(ticket)
            self._changed.notify_all()
        return ticket

    def check_room(self) -> None:
        """Refuse a request, before any work is put into it, if the queue cannot take one.

        Raises:
            Overloaded: Too many requests are waiting, or the scheduler is closing.
        """
        with self._changed:
            if self._closing:
                raise Overloaded("A request must come before the model is closed, but it is being closed.")
            if len(self._waiting) >= self._max_queue:
                self._statistics.refused += 1
                raise Overloaded(f"At most {self._max_queue} requests may wait, and as many are waiting.")

    def stream(
        self, prompt: Sequence[str], options: GenerationConfig, *, should_stop: Callable[[], bool] | None = None
    ) -> Iterator[Delta]:
        """As `Engine.stream`, but through the queue."""
        ticket = self.submit(Request(prompt, options))
        for delta in ticket.deltas():
            yield delta
            if should_stop is not None and should_stop():
                ticket.cancel()

    def close(self, *, drain: bool = True) -> None:
        """Accept no more requests, and wait until the engine is free.

        Args:
            drain: Answer what was accepted; otherwise cancel it.
        """
        with self._changed:
            self._closing = True
            if not drain:
                for ticket in (*self._waiting, *self._running):
                    ticket.cancel()
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(drain=error is None)

    def _place(self, ticket: Ticket) -> int:
        with self._changed:
            return self._waiting.index(ticket) if ticket in self._waiting else 0

    def _run(self) -> None:
        queue = Queue(self._take, self._done)
        while self._wait():
            try:
                self._worker.run(queue)
            except Exception as error:  # a bug in a worker must not leave clients waiting
                logger.error("The scheduler's worker failed.", exc_info=error)
                for ticket in list(self._running):
                    if not ticket.is_done:
                        ticket.fail(error)
                    self._done(ticket)

    def _wait(self) -> bool:
        """Wait for a request; False = the scheduler is closed and nothing waits."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting) or self._closing)
            return bool(self._waiting)

    def _take(self, limit: int, seconds: float, alike: Callable[[Ticket], Hashable] | None = None) -> list[Ticket]:
        end = time.monotonic() + seconds
        with self._changed:
            while len(self._waiting) < limit and not self._closing and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)
            stopped = [ticket for ticket in self._waiting if ticket.must_stop]
            chosen: Iterable[Ticket] = [ticket for ticket in self._waiting if ticket not in stopped]
            oldest = next(iter(chosen), None)
            if alike is not None and oldest is not None:
                wanted = alike(oldest)
                chosen = (ticket for ticket in chosen if alike(ticket) == wanted)
            taken = [*stopped, *islice(chosen, limit)]
            for ticket in taken:
                self._waiting.remove(ticket)
            self._running.update(taken)
        for ticket in taken:
            ticket.begin()
            assert ticket.started is not None
            self._statistics.queue_seconds += ticket.started - ticket.submitted
        return taken

    def _done(self, ticket: Ticket) -> None:
        with self._changed:
            self._running.discard(ticket)
            statistics = self._statistics
            statistics.prompt_tokens += len(ticket.request.prompt)
            statistics.answer_tokens += ticket.token_count
            if ticket.error is not None:
                statistics.failed += 1
            elif ticket.was_stopped:
                statistics.cancelled += 1
            else:
                statistics.answered += 1


def best_worker(engine: Engine) -> Worker:
    """The fastest worker for this kind of engine."""
    if isinstance(engine, Ct2Engine):
        return Ct2Worker(engine)
    from onmt_llm.generate.torch.engine import TorchEngine

    if isinstance(engine, TorchEngine):
        from onmt_llm.generate.scheduling.torch_worker import TorchWorker

        return TorchWorker(engine)
    return SequentialWorker(engine)
