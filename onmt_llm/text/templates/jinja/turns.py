"""Where a trained turn starts and ends in the text that a template writes.

A template's text of an answered question usually starts with its prompt for the answer. Where it does not (most often
the prompt opens the model's thoughts, and the answered text has none), the answer is joined to the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from onmt_llm.errors import DataError

_THOUGHTS = {"<think>": "</think>", "[THINK]": "[/THINK]", "<|START_THINKING|>": "<|END_THINKING|>"}
"""Markup with which prompts open the model's thoughts, and the markup that closes them."""

_LONGEST_MARKUP = 100

_UNFINISHED_TAG = re.compile(r"[<\[][^<>\[\]\s]*$")
_CLOSING_TAG = re.compile(r"</[^<>\s]+>|\[/[A-Z_]+\]|<\|END_THINKING\|>")
_FRAGMENT = re.compile(r"[^\n>\]]*[\n>\]]|[^\n>\]]+")
_TAG = re.compile(r"<[^<>]*>|\[[^\[\]]*\]|\n")


@dataclass(frozen=True)
class Turn:
    """A turn, and the conversation before it.

    Attributes:
        text: The conversation up to the end of the turn.
        start: Where the turn starts in `text`.
    """

    text: str
    start: int


@dataclass(frozen=True)
class AnswerData:
    """What the data say about an answer.

    Attributes:
        question: The message before it.
        content: Its text.
        thoughts: The thoughts before it, if they are apart from its text.
        write_unasked: Writes the conversation before it without the heading that asks for it.
    """

    question: str
    content: str
    thoughts: str
    write_unasked: Callable[[], str]


def find_answer(
    prompt: str, written: str, data: AnswerData, control: re.Pattern[str], find_end: Callable[[str, int], int]
) -> Turn:
    """The answer to a prompt, as the model has to write it.

    Args:
        prompt: The text that asks the model for the answer.
        written: The template's text of the conversation with the answer.
        data: What the data say about the answer.
        control: Matches a control token.
        find_end: Finds where a turn ends that starts at some place of a text.

    Raises:
        DataError: An answered question is written in another way, and the answer cannot be found after it.
    """
    start = _shared(prompt, written)
    opened, answer = prompt[start:], written[start : find_end(written, start)]
    if not data.content.strip() and not answer.strip():
        return Turn(written, len(written))  # the template does not write it
    if _asks(prompt, start, data) or find_end(prompt, start) < len(prompt):
        # an answered question is written in another way
        found = find_message(prompt, written, data.content, control, find_end).start
        if found == start:
            found = _after_heading(prompt, written, start, find_end)
        opened, answer = "", written[found : find_end(written, found)]
    own = _without_opening(data.content, opened, answer)
    longest = min(len(opened), _LONGEST_MARKUP)
    repeated = next(n for n in range(longest, -1, -1) if answer.startswith(opened[len(opened) - n :]))
    closes = _CLOSING_TAG.findall(opened[: len(opened) - repeated])
    if own is None and any(tag in answer for tag in closes):
        return Turn(written[:start] + answer, start)  # the prompt asks for no thoughts, but the answer has some
    return Turn(prompt + _thought(prompt, answer[repeated:] if own is None else own, data.thoughts), len(prompt))


def find_message(
    before: str, written: str, content: str, control: re.Pattern[str], find_end: Callable[[str, int], int]
) -> Turn:
    """A message that no prompt asks for, such as a question: its heading does not belong to it.

    A first message whose content is not found is taken for empty, since a template may write a system prompt of its own
    before it.

    Args:
        before: The text without the message; empty for the first one.
        written: The text with the message as the last one.
        content: The message in the data.
        control: Matches a control token.
        find_end: Finds where a turn ends that starts at some place of a text.
    """
    start = _common_length(before, written) if before else len(written)
    place = 0
    for match in [*control.finditer(written), None]:
        stretch = written[place : match.start() if match else len(written)].rstrip()
        if content.strip() and stretch.endswith(content.strip()):
            start = place + len(stretch) - len(content.strip())
        place = match.end() if match else place
    return Turn(written[: find_end(written, start)], start)


def lacks(written: str, content: str) -> bool:
    """Whether a template has left out part of a message, apart from markup and white space."""
    return any(part.strip() not in written for part in _TAG.split(content))


def _asks(prompt: str, start: int, data: AnswerData) -> bool:
    """Whether the question is in the part of the prompt from `start` on, and not only a word of its heading like it."""
    if not data.question or prompt.rfind(data.question) + len(data.question) <= start:
        return False
    heading = _common_length(prompt, data.write_unasked())
    return prompt.rfind(data.question, 0, heading) + len(data.question) > start


def _after_heading(prompt: str, written: str, start: int, find_end: Callable[[str, int], int]) -> int:
    """Where an answer starts that has the heading with which the prompt ends."""
    while (end := find_end(prompt, start)) < len(prompt):
        start = end
    heading = prompt[start:]
    place = written.rfind(heading) if heading.strip() else -1
    if place < 0:
        raise DataError("the chat template changes a question when it is answered, and the answer cannot be found")
    return place + len(heading)


def _without_opening(content: str, opened: str, answer: str) -> str | None:
    """The answer of the data without what the prompt opens; None if it does not begin with that.

    Templates drop the thoughts of an answer, because they take it for an earlier one.
    """
    opening, content = opened.strip(), content.strip()
    last = next((part for part in reversed(_FRAGMENT.findall(content)) if part.strip()), "")
    if not (opening and last and content.startswith(opening) and last in answer):
        return None
    own = content[len(opening) :] + answer[answer.rindex(last) + len(last) :]
    return own.lstrip() if opened[-1:].isspace() else own


def _thought(prompt: str, answer: str, thoughts: str) -> str:
    """An answer that continues the thoughts that the prompt has opened, and ends them."""
    for opening, closing in _THOUGHTS.items():
        if not prompt.rstrip().endswith(opening):
            continue
        if answer.lstrip().startswith(opening):
            return answer.lstrip()[len(opening) :].lstrip()
        if closing not in answer:
            gap = "\n" if prompt[-1:].isspace() else ""
            return f"{thoughts}{gap}{closing}{gap * 2}{answer}"
    return answer


def _shared(prompt: str, written: str) -> int:
    """Length of the text that both start with; markup is not cut."""
    length = _common_length(prompt, written)
    tag = _UNFINISHED_TAG.search(prompt, 0, length) if length < len(prompt) else None
    return tag.start() if tag else length


def _common_length(one: str, other: str) -> int:
    if other.startswith(one):
        return len(one)
    return next(n for n, (a, b) in enumerate(zip(one + "\0", other + "\1", strict=False)) if a != b)
