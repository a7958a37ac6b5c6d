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
        role: "system" (only first), "user" or "assistant"; Jinja templates may allow more.
        content: Its text, with real newlines.
        train: Whether the loss covers it; None = only if it is an answer.
    """

    role: str
    content: str
    train: bool | None = None

    @property
    def trained(self) -> bool:
        """Whether the loss covers it."""
        return self.role == "assistant" if self.train is None else self.train


class Template(Protocol):
    """The layout of conversations with which a model was trained.

    Attributes:
        stop: Stop strings, at which an answer ends.
        stop_tokens: Tokens at which an answer ends. A template that has some closes each answer itself; with one that
            has none (alpaca), the end of the example closes the answer.
        control_tokens: All tokens that `render` gives.
    """

    @property
    def stop(self) -> tuple[str, ...]: ...

    @property
    def stop_tokens(self) -> tuple[str, ...]: ...

    @property
    def control_tokens(self) -> frozenset[str]: ...

    def render(self, messages: Sequence[Message], *, generation_prompt: bool) -> list[Segment]:
        """A conversation as segments, without the `bos` with which every text of the model starts.

        Args:
            messages: The conversation.
            generation_prompt: End with the heading of an answer.

        Raises:
            DataError: The layout does not allow a role, or the order of the roles.
        """
        ...
