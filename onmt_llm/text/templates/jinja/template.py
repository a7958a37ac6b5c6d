"""`JinjaTemplate`: a model's own chat template, rendered in a sandbox and split into segments.

The rendered text is split at control tokens. To tell control tokens of the template from ones that a user typed, a mark
(the noncharacter U+FDD0) is inserted into the latter before rendering and removed afterwards. Answers are found by
rendering the conversation up to each of them, so the template needs no `{% generation %}` blocks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path

from onmt_llm.config.checkpoint import SpecialTokens
from onmt_llm.errors import DataError
from onmt_llm.log import log_once
from onmt_llm.text.segment import Segment
from onmt_llm.text.templates.jinja.sandbox import brief, compile_template
from onmt_llm.text.templates.message import Message, merged, without_leading_bos

_MARK = "\ufdd0"
_MARKS = re.compile(f"{_MARK}({_MARK}?)")


class JinjaTemplate:
    """A Jinja chat template in the format of Hugging Face models.

    Args:
        source: The template.
        name: Its name in error messages.
        specials: The model's special tokens; the template sees `bos_token`, `eos_token`, `unk_token`, `pad_token`.
        control_tokens: More control tokens of the template; in a user's text they stay text.

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
        self._variables = {f"{role}_token": token for role, token in roles.items() if token is not None}
        known = (*control_tokens, *self._variables.values())
        self.control_tokens = frozenset(token for token in known if len(token) > 1)
        longest_first = sorted(self.control_tokens, key=len, reverse=True)
        pattern = "|".join(map(re.escape, longest_first)) or "(?!)"
        self._control = re.compile(f"({pattern})")
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

    @cached_property
    def stop_tokens(self) -> tuple[str, ...]:
        """The control token that ends an answer, found by rendering one."""
        try:
            segments = self.render([Message("user", "a"), Message("assistant", "b")], generation_prompt=False)
        except DataError as error:
            log_once(f"{self._name} does not show how an answer ends: {error.message}")
            return ()
        ends = [segment.tokens[-1] for segment in segments if segment.tokens and segment.train_on]
        return tuple(ends[-1:])

    def render(self, messages: Sequence[Message], *, generation_prompt: bool) -> list[Segment]:
        """See `Template.render`. With a generation prompt, which is for inference, no segment is trained.

        Raises:
            DataError: The template refuses the messages, fails, or exceeds a limit; or its text of a conversation does
                not start with its text of the same conversation without the last message, so answers cannot be found.
        """
        chat = [{"role": self._marked(message.role), "content": self._marked(message.content)} for message in messages]
        text = self._write(chat, generation_prompt)
        segments: list[Segment] = []
        position = 0
        for start, end in [] if generation_prompt else self._trained(messages, chat, text):
            segments += self._cut(text[position:start], train_on=False)
            segments += self._cut(text[start:end], train_on=True)
            position = end
        segments += self._cut(text[position:], train_on=False)
        return without_leading_bos(merged(segments), self._specials)

    def _write(self, chat: list[dict[str, str]], generation_prompt: bool) -> str:
        variables = {
            **self._variables,
            "messages": chat,
            "add_generation_prompt": generation_prompt,
            "tools": None,
            "documents": None,
        }
        characters = sum([len(message["content"]) for message in chat])
        try:
            return self._sandbox.render(variables, characters=characters, messages=len(chat))
        except Exception as error:  # a template may raise anything
            raise DataError(f"{self._name} cannot render this conversation: {brief(error)}.") from error

    def _trained(self, messages: Sequence[Message], chat: list[dict[str, str]], text: str) -> list[tuple[int, int]]:
        """The spans of the trained turns in `text`, from their first character to the control token that ends them."""
        spans = []
        for number, message in enumerate(messages):
            if not message.trained:
                continue
            is_answer = message.role == "assistant"
            before = self._write(chat[:number], is_answer) if number else ""
            after = self._write(chat[: number + 1], False)
            if not (text.startswith(after) and after.startswith(before)):
                raise DataError(
                    f"{self._name} must only append text when a message is added, but changes the text around "
                    f"message {number + 1}, so this answer cannot be marked for training.",
                    hint="train on conversations of one round, or with a built-in template",
                )
            start = len(before)
            if not is_answer:
                # a template cannot render the heading of a question alone, so find where the question starts
                start = self._content_start(after, start, chat[number]["content"].strip())
            ends = [match.end() for match in self._control.finditer(after, start)]
            spans.append((start, ends[-1] if ends else len(after)))
        return spans

    def _content_start(self, text: str, start: int, content: str) -> int:
        """The start of `content` in the last text between control tokens that ends with it; otherwise `start`."""
        found = start
        edges = [(match.start(), match.end()) for match in self._control.finditer(text, start)]
        for begin, end in pairwise([(start, start), *edges, (len(text), len(text))]):
            stretch = text[begin[1] : end[0]].rstrip()
            if stretch.endswith(content):
                found = begin[1] + len(stretch) - len(content)
        return found

    def _cut(self, text: str, *, train_on: bool) -> list[Segment]:
        """Rendered text as segments, split at control tokens."""
        parts = self._control.split(text)
        return [
            Segment(tokens=[part], train_on=train_on)
            if index % 2
            else Segment(_MARKS.sub(r"\1", part), train_on=train_on)
            for index, part in enumerate(parts)
        ]

    def _marked(self, typed: str) -> str:
        return self._typed.sub(rf"\1{_MARK}", typed.replace(_MARK, _MARK * 2))
