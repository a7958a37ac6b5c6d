"""What the page shows: values of its components for a conversation and the state of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from onmt_llm.chat.answering import PartialAnswer
from onmt_llm.chat.conversation import Conversation, Messages
from onmt_llm.chat.escaping import escape_markdown
from onmt_llm.chat.model import Responder
from onmt_llm.errors import OnmtLlmError
from onmt_llm.log import logger


@dataclass(frozen=True)
class View:
    """A state of the page.

    Attributes:
        conversation: Its texts.
        statuses: A line of HTML below each column; () = empty lines.
        box: Text of the message box; None = as it is.
        busy: An answer is on its way: Stop is shown instead of Send.
        system: The system prompt's box shows that of the conversation.
        imported: Conversations that the browser shall store.
    """

    conversation: Conversation
    statuses: Sequence[str] = ()
    box: str | None = None
    busy: bool = False
    system: bool = False
    imported: Sequence[Conversation] = ()

    def values(self, gr: Any, number: int) -> tuple[Any, ...]:
        """Values for the chats, status lines, store, message box, Send, Stop, and system prompt of the page.

        Args:
            gr: The module `gradio`.
            number: Of the answer: should this arrive after a later one all the same, the browser knows.
        """
        columns = self.conversation.columns
        state: dict[str, Any] = {"conversation": self.conversation.to_json(), "busy": self.busy, "number": number}
        if self.imported:
            state["imported"] = [each.to_json() for each in self.imported]
        return (
            *map(shown, columns),
            *(self.statuses or [""] * len(columns)),
            state,
            gr.skip() if self.box is None else self.box,
            gr.Button(visible=not self.busy),
            gr.Button(visible=self.busy),
            self.conversation.system if self.system else gr.skip(),
        )


def shown(column: Messages) -> list[dict[str, Any]]:
    """The messages of a column for `gr.Chatbot`."""
    # a list of parts, because Gradio would remove the indentation of a plain string
    return [{"role": m.role, "content": [{"type": "text", "text": escape_markdown(m.content)}]} for m in column]


def status(progress: PartialAnswer, responder: Responder, *, stopped: bool = False) -> str:
    """The line below a column, in HTML: the queue or the speed, and how full the context is."""
    parts: list[str] = []
    if progress.waits and not stopped:
        parts.append(_place(progress.ticket.place))
    elif progress.tokens:
        parts.append(f"{progress.tokens:,} tokens")
        if (speed := progress.tokens_per_second) is not None:
            parts.append(f"{speed:.1f} tokens/s")
    elif not progress.is_done and not stopped:
        parts.append("reading the prompt")
    if stopped:
        parts.append("stopped")
    if progress.truncated:
        parts.append("truncated at the maximum length")
    if progress.left_out:
        rounds = "round was" if progress.left_out == 1 else f"{progress.left_out} rounds were"
        parts.append(f"the oldest {rounds} left out")
    used, most = progress.prompt_tokens + progress.tokens, responder.max_context_length
    meter = f'<meter min="0" max="{most}" value="{used}" aria-label="Context used"></meter>'
    return f"<span>{escape(' · '.join(parts))}</span><span>{meter} {used:,} of {most:,} tokens</span>"


def _place(before: int) -> str:
    return f"in the queue, {before} before you" if before else "in the queue, next"


def sentence(error: Exception) -> str:
    """The error as one line for the visitor; the log gets the traceback of an unexpected error."""
    if isinstance(error, OnmtLlmError):
        return error.message if error.hint is None else f"{error.message} ({error.hint})"
    logger.error("The answer failed.", exc_info=error)
    return f"The answer failed: {type(error).__name__}: {(str(error).splitlines() or ['no message'])[0][:200]}"
