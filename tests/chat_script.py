"""A responder for the tests of the chat: it says given pieces, through a real ticket."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from onmt_llm.chat.model import ChatSettings, Submitted
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.generate.engine import Delta, Hypothesis
from onmt_llm.generate.scheduling.ticket import Request, Ticket

GREEDY = ChatSettings(temperature=1.0, top_p=1.0, top_k=1, max_tokens=256)


class Scripted:
    """Says `pieces` one after another; a piece that is None waits until the answer is cancelled, or for a second."""

    name = "script"
    max_context_length = 100
    settings = GREEDY

    def __init__(self, pieces: Sequence[Delta | Exception | None], *, refuses: Exception | None = None) -> None:
        self.pieces = pieces
        self.refuses = refuses
        self.tickets: list[Ticket] = []
        self.asked: list[Any] = []
        self.partial = ""

    def submit(
        self, messages: Any, settings: ChatSettings, *, partial: str = "", notify: Callable[[], None]
    ) -> Submitted:
        if self.refuses is not None:
            raise self.refuses
        self.asked.append(messages)
        self.partial = partial
        ticket = Ticket(Request([], GenerationConfig()), notify=notify)
        self.tickets.append(ticket)
        threading.Thread(target=self._say, args=(ticket,), daemon=True).start()
        return Submitted(ticket, 7, 0, partial=partial)

    def _say(self, ticket: Ticket) -> None:
        ticket.begin()
        text = ""
        for piece in self.pieces:
            if isinstance(piece, Exception):
                return ticket.fail(piece)
            if piece is None:
                for _ in range(100):
                    if ticket.is_cancelled:
                        return ticket.finish(Delta("", 0, "stopped"), [Hypothesis([], text, 0.0, "length")])
                    threading.Event().wait(0.01)
            elif piece.finish_reason is None:
                text += piece.text
                ticket.push(piece)
            else:
                return ticket.finish(piece, [Hypothesis([], text + piece.text, 0.0, "stop")])
        return ticket.finish(Delta("", 0, "stop"), [Hypothesis([], text, 0.0, "stop")])


def says(text: str, reason: Any = "stop") -> list[Delta | Exception | None]:
    """Pieces of a whole answer."""
    words = [Delta(word + " ", 1) for word in text.split()]
    return [*words[:-1], Delta(text.split()[-1], 1, reason)]
