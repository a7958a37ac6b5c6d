"""A conversation: history, template, and a prompt that always leaves room for the answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from onmt_llm.config.generate import GenerationConfig
from onmt_llm.errors import DataError
from onmt_llm.generate.engine import Delta, Engine
from onmt_llm.log import logger
from onmt_llm.text.templates import Message

if TYPE_CHECKING:
    from onmt_llm.text.codec import Codec


def fit_history(codec: Codec, messages: Sequence[Message], *, budget: int) -> tuple[list[str], list[Message]]:
    """Drop whole rounds, oldest first, until the rendered prompt has at most `budget` tokens.

    A round is a user message with all that follows it up to the next one. A system message at the start always stays.
    Tokens are counted on the rendered prompt itself, so the count is exact for every template and tokeniser.

    Args:
        codec: Renders and tokenises.
        messages: The conversation; the last message is the one to be answered.
        budget: Tokens that the prompt may have.

    Returns:
        The prompt's tokens, and the messages that they stand for.

    Raises:
        DataError: The last round alone is too long.
    """
    system = list(messages[:1]) if messages and messages[0].role == "system" else []
    rounds = _rounds(messages[len(system) :])
    while True:
        kept = [*system, *(message for round_ in rounds for message in round_)]
        prompt = codec.encode_chat(kept)
        if len(prompt) <= budget:
            return prompt, kept
        if len(rounds) <= 1:
            raise DataError(
                f"The message must leave room for the answer: with its template it has {len(prompt)} tokens, "
                f"and at most {budget} fit.",
                hint="shorten the message, lower max_length, or raise max_context_length (up to what the model knows)",
            )
        rounds = rounds[1:]


def _rounds(messages: Sequence[Message]) -> list[list[Message]]:
    rounds: list[list[Message]] = []
    for message in messages:
        if message.role == "user" or not rounds:
            rounds.append([])
        rounds[-1].append(message)
    return rounds


class ChatSession:
    """One person's conversation with a model.

    Args:
        engine: Shared by all sessions; it keeps no state of a conversation.
        options: How answers are produced; `max_length` tokens are kept free for each.
        max_context_length: Tokens that prompt and answer may have together.
        system: Instructions that stand before the conversation, if the template has a place for them.

    Attributes:
        messages: The whole conversation, also what no longer fits into the prompt.
    """

    def __init__(
        self, engine: Engine, options: GenerationConfig, *, max_context_length: int = 4096, system: str | None = None
    ) -> None:
        self._engine = engine
        self._options = options
        self._budget = max_context_length - options.max_length
        self._system = system
        self._stop = threading.Event()
        self.messages: list[Message] = []
        if self._budget < 1:
            raise DataError(
                f"max_context_length must be above max_length, but is {max_context_length} with max_length "
                f"{options.max_length}.",
                hint="lower max_length: it is the room kept for an answer",
            )
        self.reset()

    def reset(self) -> None:
        """Forget the conversation."""
        self.stop()
        self.messages = [Message("system", self._system)] if self._system else []

    def stop(self) -> None:
        """End the answer that is being produced, from any thread; what there is of it stays in the history."""
        self._stop.set()

    def reply(self, text: str) -> Iterator[Delta]:
        """Answer a user's message, piece by piece.

        The message and its answer (or what there is of it when it is stopped or the iterator is closed) join the
        history.

        Raises:
            DataError: The message alone is too long; the history is left as it was.
        """
        asked = [*self.messages, Message("user", text)]
        prompt = self.prompt(asked)
        return self._answer(asked, prompt)

    def prompt(self, messages: Sequence[Message]) -> list[str]:
        """Tokens of the prompt for these messages, pruned to fit; says in the log what was left out.

        Raises:
            DataError: The last round alone is too long.
        """
        prompt, kept = fit_history(self._engine.codec, messages, budget=self._budget)
        if len(kept) < len(messages):
            logger.info(
                "The conversation is longer than the context: its %d oldest messages are left out.",
                len(messages) - len(kept),
            )
        return prompt

    def answer(self, messages: Sequence[Message], *, should_stop: Callable[[], bool] | None = None) -> Iterator[Delta]:
        """Answer a conversation that is kept elsewhere (in a browser); the session's own history is not touched.

        Raises:
            DataError: The last round alone is too long.
        """
        return self._engine.stream(self.prompt(messages), self._options, should_stop=should_stop)

    def _answer(self, asked: list[Message], prompt: list[str]) -> Iterator[Delta]:
        self._stop.clear()
        self.messages = asked
        pieces: list[str] = []
        try:
            with closing(self._engine.stream(prompt, self._options, should_stop=self._stop.is_set)) as stream:  # type: ignore[type-var]
                for delta in stream:
                    pieces.append(delta.text)
                    yield delta
        finally:
            if self.messages is asked:
                self.messages = [*asked, Message("assistant", "".join(pieces))]
