"""Parts that chat templates share: roles, merging, rounds, a doubled begin-of-sequence token."""

from __future__ import annotations

import pytest

from onmt_llm.config.checkpoint import SpecialTokens
from onmt_llm.errors import DataError
from onmt_llm.text.segment import Segment
from onmt_llm.text.templates.message import (
    Message,
    mark_rounds,
    merged,
    split_system,
    with_rounds_of,
    without_leading_bos,
)


def messages(*roles: str) -> list[Message]:
    return [Message(role, role[0]) for role in roles]


def prompt(text: str) -> Segment:
    return Segment(text, train_on=False)


def test_the_system_message_is_optional() -> None:
    system, turns = split_system(messages("system", "user", "assistant"))
    assert system is not None and system.role == "system" and [turn.role for turn in turns] == ["user", "assistant"]
    assert split_system(messages("user")) == (None, messages("user")) and split_system([]) == (None, [])


@pytest.mark.parametrize(
    ("roles", "number", "role"),
    [(("user", "system"), 2, "system"), (("system", "tool"), 2, "tool"), (("robot",), 1, "robot")],
)
def test_other_roles_are_refused_by_number(roles: tuple[str, ...], number: int, role: str) -> None:
    with pytest.raises(DataError, match=f"number {number} is of '{role}'"):
        split_system(messages(*roles))


def test_neighbours_of_one_kind_are_one_text() -> None:
    parts = [prompt("a"), prompt("b"), Segment("c"), Segment(tokens=["<end>"]), Segment("d"), Segment("")]
    assert merged(parts) == [prompt("ab"), Segment("c"), Segment(tokens=["<end>"]), Segment("d")]
    assert merged([prompt(""), Segment("a")]) == [Segment("a")]


def test_a_round_begins_behind_an_answer() -> None:
    segments = [prompt("Q: 1 "), Segment("A"), prompt(" \n"), prompt("Q: 2 "), Segment("B"), prompt("Q: 3")]
    mark_rounds(segments)
    assert [segment.starts_round for segment in segments] == [False, False, False, True, False, True]


def test_other_masks_of_the_same_conversation_get_the_same_rounds() -> None:
    answers = [prompt("Q1"), Segment("A"), prompt("Q2"), Segment("B")]
    mark_rounds(answers)
    (whole,) = [Segment("Q1AQ2B")]
    assert [(s.text, s.starts_round) for s in with_rounds_of([whole], answers)] == [("Q1A", False), ("Q2B", True)]
    tokens = [Segment(tokens=["Q1", "A"]), Segment("Q2B")]
    assert [segment.starts_round for segment in with_rounds_of(tokens, answers)] == [False, True]


def test_a_begin_of_sequence_token_is_not_doubled() -> None:
    segments = [Segment(tokens=["<s>"], train_on=False), Segment("a")]
    assert without_leading_bos(segments, SpecialTokens(add_bos=True)) == segments[1:]
    assert without_leading_bos(segments, SpecialTokens(add_bos=False)) == segments
    assert without_leading_bos([], SpecialTokens(add_bos=True)) == []
