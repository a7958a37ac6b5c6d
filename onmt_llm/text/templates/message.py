"""`Message` and `Template`: a turn of a conversation, and the interface of a chat template; and what templates share.

A template gives control tokens (`<|im_start|>`) as tokens and everything else as text, so text that a user wrote never
becomes a control token. The loss covers the answers (or the turns that `Message.train` marks) and the token that ends
each of them, not the headings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Protocol

from onmt_llm.config.checkpoint import SpecialTokens
from onmt_llm.errors import DataError
from onmt_llm.text.segment import Segment


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: "system" (only first), "user" or "assistant"; Jinja templates may allow more.
        content: Its text, with real newlines; of a list of parts, their texts joined.
        train: Whether the loss covers it; None = only if it is an answer.
        extra: What else a Jinja template sees of it: `tool_calls`, `reasoning_content` ..., and `content` if that is no
            text but a list of parts, or null beside tool calls.
    """

    role: str
    content: str
    train: bool | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def trained(self) -> bool:
        """Whether the loss covers it."""
        return self.role == "assistant" if self.train is None else self.train


NO_VARIABLES: Mapping[str, Any] = MappingProxyType({})


class Template(Protocol):
    """The layout of conversations with which a model was trained.

    Attributes:
        stop: Stop strings, at which an answer ends.
        stop_tokens: Tokens at which an answer ends. A template that has some closes each answer itself; with one that
            has none (alpaca), the end of the example closes the answer.
        next_turn_tokens: Tokens that end an answer, and generation, besides these, where another message follows: the
            heading of a question (GLM).
        control_tokens: All tokens that `render` gives.
        inputs: Names of the variables that a Jinja template takes besides the messages: `tools`, `enable_thinking` ...
        jinja: The template as other programs read it; None if it has no such form.
    """

    @property
    def stop(self) -> tuple[str, ...]: ...

    @property
    def stop_tokens(self) -> tuple[str, ...]: ...

    @property
    def next_turn_tokens(self) -> tuple[str, ...]:
        return ()

    @property
    def control_tokens(self) -> frozenset[str]: ...

    @property
    def jinja(self) -> str | None:
        return None

    @property
    def inputs(self) -> frozenset[str]:
        return frozenset()

    def render(
        self, messages: Sequence[Message], *, generation_prompt: bool, variables: Mapping[str, Any] = NO_VARIABLES
    ) -> list[Segment]:
        """A conversation as segments, without the `bos` with which every text of the model starts.

        Args:
            messages: The conversation.
            generation_prompt: End with the heading of an answer.
            variables: What else a Jinja template sees: `tools`, `documents`, `enable_thinking` ...

        Raises:
            DataError: The layout does not allow a role, or the order of the roles.
        """
        ...

    def training_texts(
        self, messages: Sequence[Message], *, variables: Mapping[str, Any] = NO_VARIABLES
    ) -> list[list[Segment]]:
        """The texts on which a conversation is trained, with the starts of rounds marked.

        It is one text, unless the layout of earlier messages depends on later ones. Then there are several. Each
        trained turn is trained in one of them, after the text that the model sees when it has to answer.

        Raises:
            DataError: As `render`; or there are tool calls, which only Jinja templates lay out.
        """
        check_text_only(messages)
        answers = self.render(only_answers(messages), generation_prompt=False, variables=variables)
        mark_rounds(answers)
        if all(message.trained == (message.role == "assistant") for message in messages):
            return [answers]
        return [with_rounds_of(self.render(messages, generation_prompt=False, variables=variables), answers)]


def check_text_only(messages: Sequence[Message]) -> None:
    """Refuse messages that a built-in template cannot lay out.

    Raises:
        DataError: One has tool calls.
    """
    for number, message in enumerate(messages, start=1):
        if message.extra.get("tool_calls") or message.extra.get("function_call"):
            raise DataError(
                f"The messages of a built-in template must be text, but number {number} has tool calls.",
                hint="name the model's own template (a .jinja file) as `template` of the corpus",
            )


def only_answers(messages: Sequence[Message]) -> list[Message]:
    """The messages, of which exactly the answers are trained."""
    return [replace(message, train=message.role == "assistant") for message in messages]


def split_system(messages: Sequence[Message]) -> tuple[Message | None, Sequence[Message]]:
    """The system message, if there is one, and the turns.

    Raises:
        DataError: A role is unknown, or a system message is not first.
    """
    has_system = bool(messages) and messages[0].role == "system"
    turns = messages[1:] if has_system else messages
    for number, turn in enumerate(turns, start=1 + has_system):
        if turn.role not in ("user", "assistant"):
            raise DataError(
                f"Messages must be of user and assistant, after at most one of system, but number {number} is "
                f"of '{turn.role}'."
            )
    return (messages[0] if has_system else None), turns


def merged(segments: Sequence[Segment]) -> list[Segment]:
    """Merge adjacent texts with the same `train_on`, so the tokeniser sees a heading and its question as one text."""
    result: list[Segment] = []
    for segment in segments:
        last = result[-1] if result else None
        if segment.text is None:
            result.append(segment)
        elif last is not None and last.text is not None and last.train_on == segment.train_on:
            result[-1] = Segment(last.text + segment.text, train_on=last.train_on)
        elif segment.text:
            result.append(segment)
    return result


def mark_rounds(segments: Sequence[Segment]) -> None:
    """Mark where rounds start: after an answer and the white space that follows it.

    Args:
        segments: A conversation in which exactly the answers are trained.
    """
    answered = False
    for segment in segments:
        if segment.train_on:
            answered = True
        elif answered and (segment.tokens or (segment.text or "").strip()):
            segment.starts_round, answered = True, False


def with_rounds_of(segments: Sequence[Segment], answers: Sequence[Segment]) -> list[Segment]:
    """The segments, split and marked where rounds start.

    Args:
        segments: A conversation; any part of it may be trained.
        answers: The same conversation, marked by `mark_rounds`.
    """
    places, place = [], 0
    for segment in answers:
        if segment.starts_round:
            places.append(place)
        place += _length(segment)
    result, place = [], 0
    for segment in segments:
        start, end, text = place, place + _length(segment), segment.text
        cuts = [at for at in places if start < at < end] if text is not None else []
        if text is None or not cuts:
            result.append(segment)
        else:
            bounds = [start, *cuts, end]
            result += [
                Segment(text[one - start : other - start], train_on=segment.train_on) for one, other in pairwise(bounds)
            ]
        place = end
    place = 0
    for segment in result:
        segment.starts_round = place in places
        place += _length(segment)
    return result


def _length(segment: Segment) -> int:
    return len(segment.text) if segment.text is not None else sum(map(len, segment.tokens or ()))


def without_leading_bos(segments: list[Segment], specials: SpecialTokens) -> list[Segment]:
    """Remove a leading `bos` if the model adds one to every text anyway."""
    doubled = specials.add_bos and bool(segments) and segments[0].tokens == [specials.bos]
    return segments[1:] if doubled else segments
