"""Conversations: how actions change them, what a browser may send, and files of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from onmt_llm.chat.conversation import Conversation, StoredMessage, read_jsonl
from onmt_llm.errors import DataError

TWO_ROUNDS = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "two"},
    {"role": "assistant", "content": "2", "truncated": True},
]


def conversation(columns: int = 1) -> Conversation:
    return Conversation.from_json({"id": "x", "title": "one", "columns": [TWO_ROUNDS]}, columns=columns)


def texts(talk: Conversation, column: int = 0) -> list[str]:
    return [turn.content for turn in talk.columns[column]]


def test_json_is_read_as_it_was_written() -> None:
    for talk in (Conversation(), conversation(), conversation(2)):
        assert Conversation.from_json(json.loads(json.dumps(talk.to_json())), columns=len(talk.columns)) == talk


def test_columns_of_another_page_are_dropped_or_copied() -> None:
    stored = conversation(2).with_text(3, 1, "other").to_json()
    assert texts(Conversation.from_json(stored)) == ["one", "1", "two", "2"]
    assert texts(Conversation.from_json(conversation().to_json(), columns=2), 1) == ["one", "1", "two", "2"]


def test_a_question_goes_to_every_column_and_the_first_names_the_conversation() -> None:
    asked = Conversation(columns=((), ())).asked("  What is this?\nTell me.")
    assert asked.title == "What is this?" and texts(asked, 1) == ["  What is this?\nTell me.", ""]
    assert asked.answered(1, "A").asked("next").title == "What is this?"


def test_the_model_sees_the_system_prompt_and_everything_before_its_answer() -> None:
    talk = Conversation.from_json({"system": "Be brief.", "columns": [TWO_ROUNDS]})
    assert [(m.role, m.content) for m in talk.messages(0)] == [
        ("system", "Be brief."), ("user", "one"), ("assistant", "1"), ("user", "two"),
    ]  # fmt: skip


@pytest.mark.parametrize("index", [0, 1])
def test_a_round_is_answered_again_without_what_followed(index: int) -> None:
    assert texts(conversation().until_question(index)) == ["one", ""]


@pytest.mark.parametrize(
    ("index", "left"), [(0, ["two", "2"]), (1, ["two", "2"]), (2, ["one", "1"]), (3, ["one", "1"])]
)
def test_a_question_is_deleted_with_its_answer(index: int, left: list[str]) -> None:
    assert texts(conversation().without_round(index)) == left


def test_an_edited_question_changes_everywhere_and_an_answer_in_its_column() -> None:
    talk = conversation(2).with_text(2, 0, "new").with_text(3, 1, "better")
    assert texts(talk) == ["one", "1", "new", "2"] and texts(talk, 1) == ["one", "1", "new", "better"]
    assert talk.columns[0][3].truncated and talk.columns[1][3] == StoredMessage("assistant", "better")


@pytest.mark.parametrize("index", [-1, 4])
def test_a_message_that_is_not_there_is_refused(index: int) -> None:
    for change in (conversation().until_question, conversation().without_round):
        with pytest.raises(DataError, match=f"from 0 to 3, but is {index}"):
            change(index)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (None, "must be a JSON object, but is of type NoneType"),
        ([], "must be a JSON object, but is of type list"),
        ({"title": 3}, "'title' of a conversation must be text"),
        ({"columns": {}, "id": []}, "'id' of a conversation must be text"),
        ({"columns": "x"}, "'columns' of a conversation must be a list"),
        ({"columns": ["x"]}, "must be a list of questions"),
        ({"columns": [TWO_ROUNDS[:3]]}, "each with its answer"),
        ({"columns": [TWO_ROUNDS[:2], []]}, "equally many messages"),
        ({"columns": [TWO_ROUNDS[1:3]]}, "number 1 is none of user"),
        ({"columns": [[TWO_ROUNDS[0], {"role": "assistant", "content": None}]]}, "number 2 is none of assistant"),
        ({"columns": [["x", "y"]]}, "number 1 is none of user"),
    ],
)
def test_what_is_no_conversation_is_refused_with_a_sentence(data: Any, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        Conversation.from_json(data)


def test_a_file_of_conversations_is_read() -> None:
    lines = [
        {"messages": [{"role": "system", "content": "Be kind."}, *TWO_ROUNDS]},
        {"title": "Named", "messages": TWO_ROUNDS[:2]},
    ]
    first, second = read_jsonl("\n\n".join(map(json.dumps, lines)) + "\n")
    assert (first.system, first.title, second.title) == ("Be kind.", "one", "Named")
    assert texts(first) == ["one", "1", "two", "2"] and first.id and first.id != second.id


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "but is empty"),
        ("\n{", r"must be JSON, but is not \(line 2\)\."),
        ("[" * 100_000, r"must be JSON, but is not \(line 1\)\."),
        ('{"text": "x"}', r"the list 'messages', but is not \(line 1\)\."),
        (
            '{"messages": [{"role": "user", "content": "q"}]}',
            r"each with its answer, but is something else \(line 1\)\.",
        ),
    ],
)
def test_a_file_that_is_none_is_refused_with_its_line(text: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        read_jsonl(text)
