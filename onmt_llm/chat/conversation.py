"""Conversations: what the browser stores and sends with each action, and how the actions change them.

A conversation has a column for each model that answers it: one, or two that are compared. The columns have the same
length, since a question goes to both, so one index names a message in every column.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from onmt_llm.errors import DataError
from onmt_llm.text.templates.message import Message

TITLE_LENGTH = 48
"""Characters of the first question that become the title."""


@dataclass(frozen=True)
class StoredMessage:
    """A question or an answer, as it was typed or generated.

    Attributes:
        role: "user" or "assistant".
        content: Its text.
        truncated: The answer ended at its maximum length, so that it can be continued.
    """

    role: str
    content: str
    truncated: bool = False


Messages = tuple[StoredMessage, ...]


@dataclass(frozen=True)
class Conversation:
    """Questions and answers in turn, with a system prompt.

    Attributes:
        id: Its key in the browser's store; "" = it is not stored yet.
        title: Its name in the list; "" = it has no question yet.
        system: System prompt; "" = none.
        columns: For each model the questions and its answers.
    """

    id: str = ""
    title: str = ""
    system: str = ""
    columns: tuple[Messages, ...] = ((),)

    @classmethod
    def from_json(cls, data: Any, *, columns: int = 1) -> Conversation:
        """Check and convert what a browser sent.

        Args:
            data: Made by `to_json`.
            columns: Of the result: superfluous columns are dropped, and missing ones are copies of the first.

        Raises:
            DataError: It is no conversation.
        """
        if not isinstance(data, Mapping):
            raise DataError(f"A conversation must be a JSON object, but is of type {type(data).__name__}.")
        names = {name: data.get(name, "") for name in ("id", "title", "system")}
        for name, value in names.items():
            if not isinstance(value, str):
                raise DataError(f"'{name}' of a conversation must be text, but is of type {type(value).__name__}.")
        stored = data.get("columns") or [[]]
        if not isinstance(stored, list):
            raise DataError(f"'columns' of a conversation must be a list, but is of type {type(stored).__name__}.")
        own = tuple(tuple(_turns(column)) for column in stored)
        if len({len(column) for column in own}) > 1:
            raise DataError("The columns of a conversation must have equally many messages, but have not.")
        return cls(**names, columns=own).with_columns(columns)

    def to_json(self) -> dict[str, Any]:
        """The conversation as the browser stores it."""
        return {
            "id": self.id,
            "title": self.title,
            "system": self.system,
            "columns": [[turn.__dict__ for turn in column] for column in self.columns],
        }

    def __len__(self) -> int:
        return len(self.columns[0])

    def with_columns(self, count: int) -> Conversation:
        """With so many columns: superfluous ones are dropped, and missing ones are copies of the first."""
        return replace(self, columns=(*self.columns, *self.columns[:1] * count)[:count])

    def messages(self, column: int) -> list[Message]:
        """What the model of a column has to answer: everything before the last answer."""
        system = [Message("system", self.system)] if self.system.strip() else []
        return [*system, *(Message(turn.role, turn.content) for turn in self.columns[column][:-1])]

    def with_id(self) -> Conversation:
        """With a new id if it has none."""
        return self if self.id else replace(self, id=uuid.uuid4().hex)

    def asked(self, text: str) -> Conversation:
        """With a question, and an empty answer to it."""
        asked = self._each(lambda column: (*column, StoredMessage("user", text), StoredMessage("assistant", "")))
        return replace(asked, title=self.title or _title(text))

    def answered(self, column: int, text: str, *, truncated: bool = False) -> Conversation:
        """With the text of the last answer of a column."""
        changed = list(self.columns)
        changed[column] = (*changed[column][:-1], StoredMessage("assistant", text, truncated))
        return replace(self, columns=tuple(changed))

    def until_question(self, index: int) -> Conversation:
        """Up to the round of a message, with an empty answer: to be answered again."""
        question = self._question(index)
        return self._each(lambda column: (*column[: question + 1], StoredMessage("assistant", "")))

    def with_text(self, index: int, column: int, text: str) -> Conversation:
        """With another text of a message: a question in all columns, an answer in its own."""
        self._check(index)
        columns = [column] if index % 2 else range(len(self.columns))
        changed = list(self.columns)
        for each in columns:
            turn = replace(changed[each][index], content=text, truncated=False)
            changed[each] = (*changed[each][:index], turn, *changed[each][index + 1 :])
        return replace(self, columns=tuple(changed))

    def without_round(self, index: int) -> Conversation:
        """Without the question and the answer to which a message belongs."""
        question = self._question(index)
        return self._each(lambda column: (*column[:question], *column[question + 2 :]))

    def _each(self, change: Any) -> Conversation:
        return replace(self, columns=tuple(change(column) for column in self.columns))

    def _question(self, index: int) -> int:
        self._check(index)
        return index - index % 2

    def _check(self, index: int) -> None:
        if not 0 <= index < len(self):
            raise DataError(f"The number of a message must be from 0 to {len(self) - 1}, but is {index}.")


def _turns(column: Any) -> Iterator[StoredMessage]:
    if not isinstance(column, list) or len(column) % 2:
        raise DataError("A conversation must be a list of questions, each with its answer, but is something else.")
    for number, turn in enumerate(column, 1):
        role = "assistant" if number % 2 == 0 else "user"
        if not isinstance(turn, Mapping) or turn.get("role") != role or not isinstance(turn.get("content"), str):
            raise DataError(
                f"The messages of a conversation must be texts of user and assistant in turn, but number {number} is "
                f"none of {role}."
            )
        yield StoredMessage(role, turn["content"], bool(turn.get("truncated")))


def read_jsonl(text: str) -> list[Conversation]:
    """Conversations of a file such as the page exports, and as a corpus for training has: `{"messages": [...]}` lines.

    Raises:
        DataError: The message names the line.
    """
    conversations = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                conversations.append(_from_line(line))
            except (DataError, ValueError, RecursionError) as error:
                what = error.message if isinstance(error, DataError) else "The line must be JSON, but is not."
                raise DataError(f"{what[:-1]} (line {number}).") from error
    if not conversations:
        raise DataError("The file must have a line with a conversation, but is empty.")
    return conversations


def _from_line(line: str) -> Conversation:
    data = json.loads(line)
    messages = data.get("messages") if isinstance(data, dict) else None
    if not isinstance(messages, list):
        raise DataError("A line must be an object with the list 'messages', but is not.")
    system = ""
    if messages and isinstance(messages[0], dict) and messages[0].get("role") == "system":
        system, messages = str(messages[0].get("content", "")), messages[1:]
    conversation = Conversation.from_json({"system": system, "columns": [messages]})
    title = data.get("title")
    first = next((turn.content for turn in conversation.columns[0]), "")
    return replace(conversation.with_id(), title=title if isinstance(title, str) else _title(first))


def _title(text: str) -> str:
    return (text.strip().splitlines() or [""])[0][:TITLE_LENGTH]
