"""The answers to one request as numbered choices, piece by piece: samples, or the results of a beam search."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from onmt_llm.config.generate import GenerationConfig
from onmt_llm.generate.engine import TokenLogProbs
from onmt_llm.generate.scheduling.ticket import Request
from onmt_llm.serve.service import PendingAnswers, finish_reason


@dataclass(frozen=True)
class Piece:
    """A piece of a choice.

    Attributes:
        choice: Its number.
        text: New text.
        log_probs: Of the new tokens, where they were requested.
        finish_reason: Set in the last piece of a choice.
    """

    choice: int
    text: str
    log_probs: tuple[TokenLogProbs, ...] = ()
    finish_reason: str | None = None


@dataclass
class Choice:
    """A complete choice: its pieces, joined."""

    text: str = ""
    log_probs: tuple[TokenLogProbs, ...] = ()
    finish_reason: str = "length"


def several(request: Request, n: int) -> list[Request]:
    """The requests for n answers to a prompt: one for a beam search, which has several results; else n."""
    return [request] if request.options.beam_size > 1 else [replace(request, number=number) for number in range(n)]


def choices_of(options: GenerationConfig, n: int) -> int:
    """Choices that a ticket of `several` gives."""
    return n if options.beam_size > 1 else 1


async def pieces(answers: PendingAnswers, per_ticket: int) -> AsyncIterator[Piece]:
    """The pieces of all choices as they arrive.

    Args:
        answers: Those of the tickets.
        per_ticket: Choices that each ticket gives; if several, they arrive when they are complete.
    """
    async for number, delta in answers.deltas():
        if per_ticket == 1:
            yield Piece(number, delta.text, delta.log_probs, finish_reason(delta.finish_reason))
        elif delta.finish_reason is not None:
            hypotheses = answers.tickets[number].result()
            for rank, hypothesis in enumerate(hypotheses):
                yield Piece(number * per_ticket + rank, hypothesis.text, (), hypothesis.finish_reason)


async def complete(answers: PendingAnswers, per_ticket: int) -> list[Choice]:
    """Wait for all choices."""
    choices = [Choice() for _ in range(len(answers.tickets) * per_ticket)]
    async for piece in pieces(answers, per_ticket):
        choice = choices[piece.choice]
        choice.text += piece.text
        choice.log_probs += piece.log_probs
        choice.finish_reason = piece.finish_reason or choice.finish_reason
    return choices


def answer_tokens(answers: PendingAnswers, per_ticket: int) -> int:
    """Tokens of all choices."""
    if per_ticket == 1:
        return answers.answer_tokens
    return sum(len(hypothesis.tokens) for ticket in answers.tickets for hypothesis in ticket.result())
