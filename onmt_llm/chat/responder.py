"""`Responder`: the interface between the page and a model (`ChatSession`) or, in tests, a script."""

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
            OnmtLlmError: With a message for the visitor, here or while iterating over the answer.
        """
        ...
