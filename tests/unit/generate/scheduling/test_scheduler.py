"""The scheduler's queue and tickets, over an engine that spells its prompt, and the reference worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from onmt_llm.config.generate import GenerationConfig
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.generate.engine import Delta
from onmt_llm.generate.scheduling.scheduler import Overloaded, Scheduler
from onmt_llm.generate.scheduling.ticket import Request, Ticket
from onmt_llm.generate.scheduling.worker import Queue, SequentialWorker

OPTIONS = GenerationConfig(max_length=100)


class Speller:
    """Answers with the tokens of the prompt; waits at each token until `gate` is open."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.answered: list[str] = []

    def for_languages(self, src: str = "", tgt: str = "") -> Speller:
        return self

    def stream(
        self, prompt: Sequence[str], options: GenerationConfig, *, should_stop: Callable[[], bool] | None = None
    ) -> Iterator[Delta]:
        if prompt[0] == "bad":
            raise DataError("The prompt must be good, but is bad.")
        for token in prompt:
            while not self.gate.wait(0.01):
                if should_stop and should_stop():
                    yield Delta("", 0, "stopped")
                    return
            yield Delta(token, 1)
        self.answered.append("".join(prompt))
        yield Delta("", 0, "stop")


@pytest.fixture
def speller() -> Speller:
    return Speller()


def ask(scheduler: Scheduler, text: str, **options: Any) -> Any:
    return scheduler.submit(Request(list(text), OPTIONS), **options)


def test_answers_come_in_the_order_of_the_requests(speller: Speller) -> None:
    with Scheduler(speller) as scheduler:  # type: ignore[arg-type]
        tickets = [ask(scheduler, text) for text in ("one", "two", "three")]
        assert ["".join(delta.text for delta in ticket.deltas()) for ticket in tickets] == ["one", "two", "three"]
    assert speller.answered == ["one", "two", "three"]
    assert [ticket.result()[0].text for ticket in tickets] == speller.answered
    figures = scheduler.statistics
    assert (figures.answered, figures.prompt_tokens, figures.answer_tokens) == (3, 11, 11)


def test_a_full_queue_refuses_at_once_and_counts_it(speller: Speller) -> None:
    speller.gate.clear()
    with Scheduler(speller, max_queue=2) as scheduler:  # type: ignore[arg-type]
        running = ask(scheduler, "a")
        while running.started is None:
            time.sleep(0.001)
        waiting = [ask(scheduler, "b"), ask(scheduler, "c")]
        assert [ticket.place for ticket in (running, *waiting)] == [0, 0, 1]
        with pytest.raises(Overloaded):
            ask(scheduler, "d")
        with pytest.raises(Overloaded):
            scheduler.check_room()
        speller.gate.set()
        assert [ticket.result(5)[0].text for ticket in waiting] == ["b", "c"]
    assert scheduler.statistics.refused == 2


def test_a_cancelled_answer_keeps_its_text_and_frees_the_engine(speller: Speller) -> None:
    with Scheduler(speller) as scheduler:  # type: ignore[arg-type]
        deltas = ask(scheduler, "abc").deltas()
        assert next(deltas).text == "a"
        deltas.close()
        speller.gate.clear()
        ticket, later = ask(scheduler, "xyz"), ask(scheduler, "next")
        ticket.cancel()
        assert ticket.result(5)[0].text == "" and ticket.was_stopped
        speller.gate.set()
        assert later.result(5)[0].text == "next"
    assert scheduler.statistics.cancelled >= 1


def test_an_answer_ends_at_its_deadline(speller: Speller) -> None:
    speller.gate.clear()
    with Scheduler(speller) as scheduler:  # type: ignore[arg-type]
        ticket = ask(scheduler, "abc", seconds=0.05)
        ticket.result(5)
        assert ticket.was_stopped and ticket.is_expired
        speller.gate.set()


def test_a_request_that_waits_ends_at_its_deadline_although_there_is_no_room(speller: Speller) -> None:
    taken: list[list[Any]] = []

    class Full(SequentialWorker):
        def run(self, queue: Queue) -> None:
            first = queue.take(1, 0.0)
            while len(taken) < 2:
                if stopped := queue.take(0, 0.0):
                    taken.append(stopped)
            for ticket in [*first, *(ticket for some in taken for ticket in some)]:
                ticket.finish(Delta("", 0, "stopped"), [])
                queue.done(ticket)

    with Scheduler(speller, worker=Full(speller)) as scheduler:  # type: ignore[arg-type]
        ask(scheduler, "running")
        late, cancelled = ask(scheduler, "late", seconds=0.02), ask(scheduler, "cancelled")
        while not taken:
            time.sleep(0.001)
        cancelled.cancel()
        assert late.result(5) == cancelled.result(5) == []
    assert taken == [[late], [cancelled]]


def test_an_error_belongs_to_its_request_alone(speller: Speller) -> None:
    with Scheduler(speller) as scheduler:  # type: ignore[arg-type]
        bad, good = scheduler.submit(Request(["bad"], OPTIONS)), ask(scheduler, "good")
        with pytest.raises(DataError):
            bad.result(5)
        assert good.result(5)[0].text == "good"
        with pytest.raises(ConfigError):
            scheduler.submit(Request(["x"], GenerationConfig(min_length=9, max_length=3)))


def test_an_answer_that_fails_after_its_last_piece_ends_with_the_error() -> None:
    ticket = Ticket(Request(["x"], OPTIONS))
    ticket.push(Delta("x", 1))
    deltas = ticket.deltas()
    assert next(deltas).text == "x"
    ticket.fail(DataError("The answer must fit into the model, but does not."))
    with pytest.raises(DataError):
        next(deltas)


@pytest.mark.parametrize("drain", [True, False])
def test_closing_answers_or_cancels_what_was_accepted(speller: Speller, drain: bool) -> None:
    speller.gate.clear()
    scheduler = Scheduler(speller)  # type: ignore[arg-type]
    tickets = [ask(scheduler, text) for text in ("one", "two")]
    threading.Timer(0.05, speller.gate.set).start()
    scheduler.close(drain=drain)
    assert all(ticket.is_done for ticket in tickets)
    assert [ticket.was_stopped for ticket in tickets] == [not drain, not drain]
    with pytest.raises(Overloaded):
        ask(scheduler, "late")


def test_each_change_is_notified(speller: Speller) -> None:
    calls: list[None] = []
    with Scheduler(speller) as scheduler:  # type: ignore[arg-type]
        ask(scheduler, "ab", notify=lambda: calls.append(None)).result(5)
    assert len(calls) == 4  # begun, two tokens, the end
