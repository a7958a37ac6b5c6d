"""The actions of the chat page over a scripted responder, as Gradio would run them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from chat_script import GREEDY, Scripted, says

from onmt_llm.chat.actions import ChatActions
from onmt_llm.chat.answering import RunningAnswer, Visitors
from onmt_llm.chat.conversation import Conversation
from onmt_llm.chat.view import View
from onmt_llm.errors import DataError
from onmt_llm.generate.engine import Delta

PAST = Conversation(id="x", title="q").asked("q").answered(0, "a", truncated=True)


def texts(view: View, column: int = 0) -> list[str]:
    return [turn.content for turn in view.conversation.columns[column]]


class Page:
    """A visitor's page: collects the views of actions."""

    def __init__(self, *responders: Scripted) -> None:
        self.visitors = Visitors()
        self.actions = ChatActions(responders, self.visitors)
        self.views: list[View] = []

    async def run(self, make: Callable[[RunningAnswer], AsyncIterator[View]]) -> list[View]:
        async with self.visitors.begin("me") as answer:
            async for view in make(answer):
                self.views.append(view)
                await asyncio.sleep(0)
        return self.views

    def send(self, text: str = "go", past: Conversation = PAST) -> list[View]:
        return asyncio.run(self.run(lambda answer: self.actions.send(answer, past, text, GREEDY)))

    def act(self, past: Conversation = PAST, **event: Any) -> list[View]:
        return asyncio.run(self.run(lambda answer: self.actions.act(answer, past, event, GREEDY)))


def test_the_page_is_busy_at_once_and_then_shows_the_whole_answer() -> None:
    first, *_, last = Page(Scripted(says("one two three"))).send()
    assert first.busy and first.box == "" and texts(first) == ["q", "a", "go", ""]
    assert not last.busy and last.box is None and texts(last) == ["q", "a", "go", "one two three"]


def test_updates_come_at_most_twenty_times_a_second() -> None:
    views = Page(Scripted([Delta("word ", 1) for _ in range(1000)])).send()
    assert len(views) < 20 and texts(views[-1])[-1] == "word " * 1000


def test_the_status_tells_tokens_context_and_truncation() -> None:
    (line,) = Page(Scripted(says("one two three", "length"))).send()[-1].statuses
    assert "3 tokens" in line and "10 of 100 tokens" in line and "truncated at the maximum length" in line


def test_stop_keeps_what_is_there_and_comes_from_the_answers_own_stream() -> None:
    page = Page(responder := Scripted([Delta("half ", 1), None]))

    async def scenario() -> None:
        running = asyncio.create_task(page.run(lambda answer: page.actions.send(answer, PAST, "go", GREEDY)))
        while not (page.views and page.views[-1].conversation.columns[0][-1].content):
            await asyncio.sleep(0.01)
        page.visitors.stop("me")
        await asyncio.wait_for(running, 0.5)

    asyncio.run(scenario())
    assert not page.views[-1].busy and texts(page.views[-1])[-1] == "half "
    assert "stopped" in page.views[-1].statuses[0] and responder.tickets[0].is_cancelled


def test_stop_before_the_first_word_takes_the_question_back() -> None:
    page = Page(Scripted([None]))

    async def scenario() -> None:
        running = asyncio.create_task(page.run(lambda answer: page.actions.send(answer, PAST, "go", GREEDY)))
        while len(page.views) < 2:
            await asyncio.sleep(0.01)
        page.visitors.stop("me")
        await asyncio.wait_for(running, 0.5)

    asyncio.run(scenario())
    assert texts(page.views[-1]) == ["q", "a"] and page.views[-1].box == "go"


def test_stop_before_the_first_word_of_a_continuation_changes_nothing() -> None:
    page = Page(Scripted([None]))
    event = {"action": "continue", "index": 1}

    async def scenario() -> None:
        running = asyncio.create_task(page.run(lambda answer: page.actions.act(answer, PAST, event, GREEDY)))
        while len(page.views) < 2:
            await asyncio.sleep(0.01)
        page.visitors.stop("me")
        await asyncio.wait_for(running, 0.5)

    asyncio.run(scenario())
    assert page.views[-1].conversation == PAST and "stopped" in page.views[-1].statuses[0]


def test_nothing_of_an_earlier_answer_arrives_after_the_next_action() -> None:
    page = Page(responder := Scripted([Delta("late ", 1), None]))

    async def scenario() -> None:
        slow = asyncio.create_task(page.run(lambda answer: page.actions.send(answer, PAST, "go", GREEDY)))
        while len(page.views) < 2:
            await asyncio.sleep(0.01)
        opened = {"action": "open", "conversation": Conversation(id="other").to_json()}
        await page.run(lambda answer: page.actions.act(answer, PAST, opened, GREEDY))
        before = len(page.views)
        await slow
        await asyncio.sleep(0.1)
        assert len(page.views) == before

    asyncio.run(scenario())
    assert page.views[-1].conversation.id == "other" and responder.tickets[0].is_cancelled


def test_a_visitor_who_leaves_frees_the_engine() -> None:
    page = Page(responder := Scripted([None]))

    async def scenario() -> None:
        running = asyncio.create_task(page.run(lambda answer: page.actions.send(answer, PAST, "go", GREEDY)))
        while not responder.tickets:
            await asyncio.sleep(0.01)
        page.visitors.leave("me")
        await asyncio.wait_for(running, 2)

    asyncio.run(scenario())
    assert responder.tickets[0].is_cancelled


def test_a_closed_stream_frees_the_engine() -> None:
    page = Page(responder := Scripted([Delta("a", 1), None]))

    async def scenario() -> None:
        async with page.visitors.begin("me") as answer:
            views = page.actions.send(answer, PAST, "go", GREEDY)
            await anext(views)
            await anext(views)
        assert responder.tickets[0].is_cancelled

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "responder",
    [Scripted([Delta("half", 1), DataError("Too long.")]), Scripted([], refuses=DataError("Too long."))],
    ids=["midway", "at once"],
)
def test_an_error_gives_back_the_question_and_the_conversation(responder: Scripted) -> None:
    page = Page(responder)
    with pytest.raises(DataError, match="Too long"):
        page.send("go")
    assert texts(page.views[-1]) == ["q", "a"] and page.views[-1].box == "go" and not page.views[-1].busy


def test_an_empty_message_is_not_sent() -> None:
    (view,) = Page(Scripted([])).send("  \n")
    assert texts(view) == ["q", "a"]


def test_an_answer_is_given_again() -> None:
    page = Page(responder := Scripted(says("better")))
    assert texts(page.act(action="retry", index=1)[-1]) == ["q", "better"]
    assert [message.content for message in responder.asked[0]] == ["q"]


def test_an_edited_question_is_answered() -> None:
    assert texts(Page(Scripted(says("b"))).act(action="edit", index=0, text="why")[-1]) == ["why", "b"]


def test_an_edited_answer_stays_as_it_is() -> None:
    (view,) = Page(Scripted([])).act(action="edit", index=1, text="mine")
    assert texts(view) == ["q", "mine"]


def test_a_truncated_answer_is_continued_and_a_complete_one_is_not() -> None:
    page = Page(responder := Scripted(says(" more")))
    assert texts(page.act(action="continue", index=1)[-1]) == ["q", "amore"] and responder.partial == "a"
    with pytest.raises(DataError, match="Only a truncated answer can be continued"):
        page.act(PAST.answered(0, "done"), action="continue", index=1)


def test_two_models_answer_side_by_side() -> None:
    page = Page(Scripted(says("left")), Scripted(says("right")))
    view = page.send(past=PAST.with_columns(2))[-1]
    assert texts(view, 0)[-1] == "left" and texts(view, 1)[-1] == "right" and len(view.statuses) == 2


def test_only_truncated_columns_are_continued() -> None:
    past = PAST.with_columns(2).answered(1, "whole")
    view = Page(Scripted(says("b")), Scripted(says("x"))).act(past, action="continue", index=1)[-1]
    assert texts(view, 0)[-1] == "ab" and texts(view, 1)[-1] == "whole"


@pytest.mark.parametrize(
    "event",
    [
        {}, {"action": "fly"}, {"action": "retry"}, {"action": "retry", "index": 9}, {"action": "delete", "index": "1"},
        {"action": "edit", "index": 1, "column": 4}, {"action": "open"}, {"action": "import", "text": "{"},
    ],
)  # fmt: skip
def test_an_action_that_does_not_fit_is_refused(event: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        Page(Scripted([])).act(**event)


def test_the_answer_for_a_program_grows() -> None:
    async def scenario() -> list[str]:
        actions = ChatActions([Scripted(says("one two"))], Visitors())
        history = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
        return [text async for text in actions.reply("go", history, "", GREEDY)]

    assert asyncio.run(scenario())[-1] == "one two"
