"""`JinjaTemplate`: a model's own chat template, rendered in a sandbox and split into segments.

The rendered text is split at control tokens. To tell control tokens of the template from ones that a user typed, a mark
(the noncharacter U+FDD0) is inserted into the latter before rendering and removed afterwards. Answers are found by
rendering the conversation up to each of them (`turns`), so the template needs no `{% generation %}` blocks.

Many templates change what they have written when the conversation continues: they drop the thoughts of earlier answers,
or move the system message to the last question. Such a conversation has several training texts. Answers in
the same text share one.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from onmt_llm.config.checkpoint import SpecialTokens
from onmt_llm.errors import DataError
from onmt_llm.log import log_once
from onmt_llm.text.segment import Segment
from onmt_llm.text.templates.jinja.sandbox import brief, compile_template
from onmt_llm.text.templates.jinja.turns import AnswerData, Turn, find_answer, find_message, lacks
from onmt_llm.text.templates.message import (
    NO_VARIABLES,
    Message,
    mark_rounds,
    merged,
    with_rounds_of,
    without_leading_bos,
)

_MARK = "\ufdd0"
_MARKS = re.compile(f"{_MARK}({_MARK}?)")
_THOUGHTS = ("reasoning_content", "thinking", "reasoning")
_OURS = ("messages", "add_generation_prompt")
_QUESTION, _ANSWER = Message("user", "A question?"), Message("assistant", "Its answer.")


class JinjaTemplate:
    """A Jinja chat template in the format of Hugging Face models.

    Args:
        source: The template.
        name: Its name in error messages.
        specials: The model's special tokens; the template sees `bos_token`, `eos_token`, `unk_token`, `pad_token`.
        control_tokens: More control tokens of the template; in a user's text they stay text.

    Attributes:
        inputs: Names of the variables that the template takes besides the messages: `tools`, `enable_thinking` ...

    Raises:
        DataError: The source is not a Jinja template, or is too long.
    """

    stop: tuple[str, ...] = ()

    def __init__(
        self,
        source: str,
        *,
        name: str = "the chat template",
        specials: SpecialTokens,
        control_tokens: Collection[str] = (),
    ) -> None:
        self._sandbox = compile_template(source, name)
        self.source = source
        self._name = name
        self._specials = specials
        roles = {role: getattr(specials, role) for role in ("bos", "eos", "unk", "pad")}
        self._tokens = {f"{role}_token": token for role, token in roles.items() if token is not None}
        self.inputs = self._sandbox.inputs.difference(self._tokens, _OURS)
        known = (*control_tokens, *self._tokens.values())
        self.control_tokens = frozenset(token for token in known if len(token) > 1)
        longest_first = sorted(self.control_tokens, key=len, reverse=True)
        pattern = "|".join(map(re.escape, longest_first)) or "(?!)"
        self._control = re.compile(f"({pattern})")
        self._closed = re.compile(rf"(?:{pattern})\s*\Z")
        self._typed = re.compile(f"(?={pattern})(.)", re.DOTALL)

    def __reduce__(self) -> tuple[Callable[[], JinjaTemplate], tuple[()]]:
        # jinja2's objects cannot be pickled, so workers of the data pipeline compile the template again
        again = partial(
            JinjaTemplate,
            self.source,
            name=self._name,
            specials=self._specials,
            control_tokens=self.control_tokens,
        )
        return again, ()

    def with_control(self, tokens: Collection[str]) -> JinjaTemplate:
        """The same template with more control tokens."""
        known = {*self.control_tokens, *tokens}
        return JinjaTemplate(self.source, name=self._name, specials=self._specials, control_tokens=known)

    @classmethod
    def read(cls, file: Path, *, specials: SpecialTokens, control_tokens: Collection[str] = ()) -> JinjaTemplate:
        """Read a template from a file.

        Raises:
            DataError: The file cannot be read, or is not a template.
        """
        try:
            source = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"The chat template {file} cannot be read: {error}.") from error
        return cls(source, name=str(file), specials=specials, control_tokens=control_tokens)

    @property
    def jinja(self) -> str:
        """The source."""
        return self.source

    @cached_property
    def stop_tokens(self) -> tuple[str, ...]:
        """The control token that ends an answer, found by rendering one."""
        try:
            segments = self.render([_QUESTION, _ANSWER], generation_prompt=False)
        except DataError as error:
            log_once(f"{self._name} does not show how an answer ends: {error.message}")
            return ()
        ends = [segment.tokens[-1] for segment in segments if segment.tokens and segment.train_on]
        return tuple(ends[-1:])

    @cached_property
    def next_turn_tokens(self) -> tuple[str, ...]:
        """The control token after an answer that a question follows, if it is not one of `stop_tokens`."""
        try:
            text = self._write(self._chat([_QUESTION, _ANSWER, _QUESTION]), NO_VARIABLES)
        except DataError:
            return ()  # stop_tokens says so
        _, _, behind = text.partition(_ANSWER.content)
        token = self._control.match(behind.lstrip())
        return () if token is None or token.group() in self.stop_tokens else (token.group(),)

    def render(
        self, messages: Sequence[Message], *, generation_prompt: bool, variables: Mapping[str, Any] = NO_VARIABLES
    ) -> list[Segment]:
        """See `Template.render`. With a generation prompt, which is for inference, no segment is trained; without one,
        this is the last of the training texts.

        Raises:
            DataError: The template refuses the messages, fails, or exceeds a limit.
        """
        if not generation_prompt:
            return self.training_texts(messages, variables=variables)[-1]
        return self._segments(self._write(self._chat(messages), variables, prompt=True), [])

    def training_texts(
        self, messages: Sequence[Message], *, variables: Mapping[str, Any] = NO_VARIABLES
    ) -> list[list[Segment]]:
        """See `Template.training_texts`.

        Raises:
            DataError: As `render`.
        """
        chat = self._chat(messages)
        turns = {
            number: self._turn(messages, chat, number, variables)
            for number, message in enumerate(messages)
            if message.trained or message.role == "assistant"
        }
        answers = [turn for number, turn in turns.items() if messages[number].role == "assistant"]
        left = trained = [turn for number, turn in turns.items() if messages[number].trained]
        whole = self._write(chat, variables)
        texts: dict[int, list[Segment]] = {}
        for text in (whole, *(turn.text for turn in reversed(trained))):
            here = [turn for turn in left if text.startswith(turn.text)]
            if here:
                texts[trained.index(here[-1])] = self._with_rounds(text, here, answers)
                left = [turn for turn in left if turn not in here]
        return [texts[last] for last in sorted(texts)] or [self._with_rounds(whole, [], answers)]

    def _chat(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        chat = [{"role": message.role, "content": message.content, **_named(message)} for message in messages]
        return [self._marked(turn) for turn in chat]

    def _write(self, chat: list[dict[str, Any]], variables: Mapping[str, Any], *, prompt: bool = False) -> str:
        given = {name: self._marked(value) for name, value in variables.items() if name in self.inputs}
        known = {"tools": None, "documents": None, **given, **self._tokens}
        try:
            return self._sandbox.render(
                {**known, "messages": chat, "add_generation_prompt": prompt},
                characters=_characters(chat) + _characters(given),
                messages=len(chat),
            )
        except Exception as error:  # a template may raise anything
            raise DataError(f"{self._name} cannot render this conversation: {brief(error)}.") from error

    def _turn(
        self, messages: Sequence[Message], chat: list[dict[str, Any]], number: int, variables: Mapping[str, Any]
    ) -> Turn:
        """A turn that is trained or ends a round."""
        content = chat[number]["content"]
        content = content if isinstance(content, str) else self._marked(messages[number].content)
        written = self._write(chat[: number + 1], variables)
        prompt = self._prompt(chat[:number], variables) if messages[number].role == "assistant" else None
        if prompt is not None:
            asked = self._marked(messages[number - 1].content.strip())
            unasked = partial(self._write, chat[:number], variables)
            data = AnswerData(asked, content, self._thoughts(messages[number]), unasked)
            turn = find_answer(prompt, written, data, self._control, self._end)
        else:
            before = self._write(chat[:number], variables) if number else ""
            turn = find_message(before, written, content, self._control, self._end)
        self._note_lost(turn, content, messages[number])
        return turn

    def _prompt(self, chat: list[dict[str, Any]], variables: Mapping[str, Any]) -> str | None:
        """The text that asks for an answer; None if the template does not ask for one here."""
        try:
            return self._write(chat, variables, prompt=True) if chat else None
        except DataError:
            return None

    def _end(self, text: str, start: int) -> int:
        """The end of the turn that starts at `start`: of the first `eos`, or of the control token at the end."""
        ends = list(self._control.finditer(text, start))
        first = next((match.end() for match in ends if match.group() == self._specials.eos), None)
        last = ends[-1].end() if ends and self._closed.search(text, start) else len(text)
        return first or last

    def _note_lost(self, turn: Turn, content: str, message: Message) -> None:
        shown = turn.text[turn.start :]
        names = [
            str(call["function"].get("name")) for call in message.extra.get("tool_calls") or () if "function" in call
        ]
        if any(lacks(shown, part) for part in (content, self._thoughts(message), *names)):
            log_once(
                f"{self._name} leaves out part of some trained messages, such as thoughts or tool calls, so that part "
                "is not trained: does the template expect it elsewhere (reasoning_content, enable_thinking)?",
                level=logging.WARNING,
            )

    def _thoughts(self, message: Message) -> str:
        thoughts = _named(message).get("reasoning_content")
        return self._marked(thoughts) if isinstance(thoughts, str) else ""

    def _with_rounds(self, text: str, trained: Sequence[Turn], answers: Sequence[Turn]) -> list[Segment]:
        """A text in which some turns are trained, with the starts of rounds marked."""
        known = [turn for turn in answers if text.startswith(turn.text)]
        segments = self._segments(text, known)
        mark_rounds(segments)
        return segments if known == trained else with_rounds_of(self._segments(text, trained), segments)

    def _segments(self, text: str, trained: Sequence[Turn]) -> list[Segment]:
        segments: list[Segment] = []
        position = 0
        for turn in trained:
            segments += self._cut(text[position : turn.start], train_on=False)
            end = len(turn.text)
            if end > turn.start and not self._closed.search(turn.text) and (after := self._control.match(text, end)):
                end = after.end()  # the start of the next turn ends this one
            segments += self._cut(text[max(position, turn.start) : end], train_on=True)
            position = end
        segments += self._cut(text[position:], train_on=False)
        return without_leading_bos(merged(segments), self._specials)

    def _cut(self, text: str, *, train_on: bool) -> list[Segment]:
        """Rendered text as segments, split at control tokens."""
        parts = self._control.split(text)
        return [
            Segment(tokens=[part], train_on=train_on)
            if index % 2
            else Segment(_MARKS.sub(r"\1", part), train_on=train_on)
            for index, part in enumerate(parts)
        ]

    def _marked(self, typed: Any) -> Any:
        """Data in which control tokens are marked as typed."""
        if isinstance(typed, str):
            return self._typed.sub(rf"\1{_MARK}", typed.replace(_MARK, _MARK * 2))
        if isinstance(typed, Mapping):
            return {self._marked(key): self._marked(value) for key, value in typed.items()}
        return [self._marked(value) for value in typed] if isinstance(typed, (list, tuple)) else typed


def _named(message: Message) -> Mapping[str, Any]:
    """The other fields of a message, with its thoughts under the names that templates read, as in transformers."""
    thoughts = next((message.extra[name] for name in _THOUGHTS if message.extra.get(name) is not None), None)
    return message.extra if thoughts is None else {"thinking": thoughts, **message.extra, "reasoning_content": thoughts}


def _characters(data: Any) -> int:
    """The number of characters in data."""
    if isinstance(data, str):
        return len(data)
    if isinstance(data, Mapping):
        return sum(map(_characters, data)) + sum(map(_characters, data.values()))
    return sum(map(_characters, data)) if isinstance(data, list) else 0
