"""`Message` and `Template`: a turn of a conversation, and the interface of a chat template.

A template gives control tokens (`<|im_start|>`) as tokens and everything else as text, so text that a user wrote never
becomes a control token. The loss covers the answers (or the turns that `Message.train` marks) and the token that ends
each of them, not the headings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from onmt_llm.text.segment import Segment


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: "system" (first, if at all), "user" or "assistant"; Jinja templates may know more.
        content: Its text, with real newlines.
        train: Whether the loss counts it; None = if it is an answer.
    """

    role: str
    content: str
    train: bool | None = None

    @property
    def trained(self) -> bool:
        """Whether the loss counts it."""
        return self.role == "assistant" if self.train is None else self.train


class Template(Protocol):
    """The layout of conversations that a model was trained with.

    Attributes:
        stop: Texts at which an answer ends.
        stop_tokens: Tokens at which an answer ends. A template that has any closes each answer itself; one that has
            none (alpaca) leaves it to the end of the example.
        control_tokens: All tokens that `render` gives.
    """

    @property
    def stop(self) -> tuple[str, ...]: ...

    @property
    def stop_tokens(self) -> tuple[str, ...]: ...

    @property
    def control_tokens(self) -> frozenset[str]: ...

    def render(self, messages: Sequence[Message], *, generation_prompt: bool) -> list[Segment]:
        """A conversation as segments, without the `bos` that a model gets at the start of every text.

        Args:
            messages: The conversation.
            generation_prompt: End with what comes before an answer.

        Raises:
            DataError: A role or an order of roles that the layout does not have.
        """
        ...
