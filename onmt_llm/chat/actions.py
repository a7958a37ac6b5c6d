"""What a visitor can do: each action is an asynchronous generator of pages, or of texts for programs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from onmt_llm.chat.answering import PartialAnswer, RunningAnswer, Visitors
from onmt_llm.chat.conversation import Conversation, read_jsonl
from onmt_llm.chat.model import ChatSettings, Responder
from onmt_llm.chat.view import View, status
from onmt_llm.errors import DataError

Event = Mapping[str, Any]


class ChatActions:
    """The actions on the page of one visitor at a time; it holds no conversation.

    Args:
        responders: The model that answers, or two that are compared.
        visitors: Their running answers.
    """

    def __init__(self, responders: Sequence[Responder], visitors: Visitors) -> None:
        self._responders = responders
        self._visitors = visitors

    def read(self, stored: Any) -> Conversation:
        """The conversation that the browser sent.

        Raises:
            DataError: It is something else.
        """
        return Conversation.from_json(stored, columns=len(self._responders))

    async def send(
        self, answer: RunningAnswer, past: Conversation, text: str, settings: ChatSettings
    ) -> AsyncIterator[View]:
        """Answer a question; when that fails, the question is in its box again."""
        if not text.strip():
            yield View(past)
            return
        past = past.with_id()
        async for view in self._answer(answer, past.asked(text), settings, before=View(past, box=text)):
            yield view

    async def act(
        self, answer: RunningAnswer, past: Conversation, event: Event, settings: ChatSettings
    ) -> AsyncIterator[View]:
        """What the buttons beside messages and conversations do.

        Raises:
            DataError: There is no such action, or it does not fit the conversation.
        """
        kind, index, column = event.get("action"), event.get("index", -1), event.get("column", 0)
        if not isinstance(index, int) or column not in range(len(self._responders)):
            raise DataError(f"An action must name a message by its number, but names {index!r} of column {column!r}.")
        if kind == "open":
            yield View(self.read(event.get("conversation")), system=True)
        elif kind == "import":
            imported = read_jsonl(str(event.get("text", "")))
            yield View(imported[0].with_columns(len(self._responders)), system=True, imported=imported)
        elif kind == "delete":
            yield View(past.without_round(index))
        elif kind == "edit" and index % 2:
            yield View(past.with_text(index, column, str(event.get("text", ""))))
        elif kind in ("retry", "edit", "continue"):
            async for view in self._again(answer, past, index, event, settings):
                yield view
        else:
            raise DataError(f"An action must be known, but '{kind}' is not.")

    async def _again(
        self, answer: RunningAnswer, past: Conversation, index: int, event: Event, settings: ChatSettings
    ) -> AsyncIterator[View]:
        conversation, continues = past, event["action"] == "continue"
        if event["action"] == "edit":
            conversation = past.with_text(index, 0, str(event.get("text", "")))
        if continues:
            if not any(column[-1:] and column[-1].truncated for column in past.columns):
                raise DataError("Only a truncated answer can be continued, but this one has ended.")
        else:
            conversation = conversation.until_question(index)
        views = self._answer(answer, conversation, settings, before=View(past), continues=continues)
        async for view in views:
            yield view

    async def _answer(
        self,
        answer: RunningAnswer,
        asked: Conversation,
        settings: ChatSettings,
        *,
        before: View,
        continues: bool = False,
    ) -> AsyncIterator[View]:
        """Views of a conversation while its last answer grows; `before` if it fails or is stopped at once."""
        yield View(asked, box=None if continues else "", busy=True)
        try:
            columns = await self._submit(answer, asked, settings, continues=continues)
            async for _ in answer.updates():
                if not answer.is_over:
                    yield View(_with_answers(asked, columns), self._statuses(columns), busy=True)
        except Exception:
            yield before
            raise
        if answer.stopped and all(column.is_empty for column in columns.values()):
            yield replace(before, statuses=["<span>stopped</span>"] * len(self._responders))
        else:
            yield View(_with_answers(asked, columns), self._statuses(columns, stopped=answer.stopped))

    async def _submit(
        self, answer: RunningAnswer, asked: Conversation, settings: ChatSettings, *, continues: bool
    ) -> dict[int, PartialAnswer]:
        """Have the last question of each column answered, or only the truncated answers continued."""
        columns = {}
        for number, responder in enumerate(self._responders):
            last = asked.columns[number][-1]
            if continues and not last.truncated:
                continue
            submitted = await asyncio.to_thread(
                responder.submit,
                asked.messages(number),
                settings,
                partial=last.content if continues else "",
                notify=answer.notify,
            )
            columns[number] = answer.add(submitted)
        return columns

    def _statuses(self, columns: Mapping[int, PartialAnswer], *, stopped: bool = False) -> list[str]:
        return [
            status(columns[i], responder, stopped=stopped and not columns[i].is_complete) if i in columns else ""
            for i, responder in enumerate(self._responders)
        ]

    async def reply(
        self, message: str, history: Sequence[Mapping[str, Any]], system: str, settings: ChatSettings
    ) -> AsyncIterator[str]:
        """The answer to a message for a program, growing.

        Raises:
            DataError: The history is something else.
        """
        turns = [{"role": turn.get("role"), "content": turn.get("content")} for turn in history]
        past = Conversation.from_json({"system": system, "columns": [turns]})
        async with self._visitors.begin(f"program {id(turns)}") as answer:
            messages = past.asked(message).messages(0)
            submit = self._responders[0].submit
            column = answer.add(await asyncio.to_thread(submit, messages, settings, notify=answer.notify))
            async for _ in answer.updates():
                yield column.text


def _with_answers(conversation: Conversation, columns: Mapping[int, PartialAnswer]) -> Conversation:
    for number, column in columns.items():
        conversation = conversation.answered(number, column.text, truncated=column.truncated)
    return conversation
