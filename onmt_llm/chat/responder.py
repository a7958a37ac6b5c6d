"""What the page talks to: a `ChatSession`, or a script in a test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from onmt_llm.generate.session import Reply
from onmt_llm.text.templates.message import Message

__all__ = ["Reply", "Responder"]


class Responder(Protocol):
    """Answers conversations."""

    @property
    def max_context_length(self) -> int: ...

    def respond(self, messages: Sequence[Message], *, should_stop: Callable[[], bool]) -> Reply:
        """Answer the last of `messages`.

        Raises:
            OnmtLlmError: With a sentence for the reader, here or while the answer is iterated over.
        """
        ...
