"""Chat sessions: history, template, and prompts that leave room for the answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onmt_llm.config.generate import GenerationConfig
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.generate.engine import Delta, Engine
from onmt_llm.log import log_once
from onmt_llm.text.templates.message import Message

if TYPE_CHECKING:
    from onmt_llm.text.codec import Codec


def prepare_chat(
    codec: Codec, options: GenerationConfig, *, max_context_length: int, template: str | None = None
) -> tuple[str | None, GenerationConfig]:
    """The template of a chat, and its options: streamed, and ended by the template's stop strings.

    Args:
        codec: Of the model.
        options: How to generate answers.
        max_context_length: Maximum number of tokens of prompt and answer together.
        template: Chat template; None or "auto" = the checkpoint's, or alpaca where it has none, as in training.

    Returns:
        The template's name, None = the checkpoint's; and the options.

    Raises:
        ConfigError: There is no room for a prompt, or no such template.
        CheckpointError: The model does not know the template's control tokens.
    """
    if options.beam_size > 1 or options.n_best > 1:
        log_once(f"A chat streams: beam_size {options.beam_size} and n_best {options.n_best} count as 1.")
    if max_context_length <= options.max_length:
        raise ConfigError(
            f"'max_context_length' must be above max_length, but is {max_context_length} with max_length "
            f"{options.max_length}.",
            hint="max_length is reserved for an answer: lower it",
        )
    if template == "auto":
        template = None
    if template is None and codec.template is None:
        log_once("The checkpoint names no chat template: alpaca is used.")
        template = "alpaca"
    stops = () if template is None else codec.chat_template(template).stop
    return template, options.model_copy(update={"beam_size": 1, "n_best": 1, "stop": [*options.stop, *stops]})


def fit_history(
    codec: Codec, messages: Sequence[Message], *, budget: int, template: str | None = None
) -> tuple[list[str], list[Message]]:
    """Drop whole rounds, oldest first, until the rendered prompt has at most `budget` tokens.

    A round is a user message with all messages up to the next one. A system message at the start always stays. Tokens
    are counted in the rendered prompt, so the count is exact for every template and tokeniser.

    Args:
        codec: Renders and tokenises.
        messages: The conversation; the last message is to be answered.
        budget: Maximum number of tokens of the prompt.
        template: Chat template; None = the checkpoint's.

    Returns:
        The prompt's tokens, and its messages.

    Raises:
        DataError: The last round alone is too long.
    """
    system = list(messages[:1]) if messages and messages[0].role == "system" else []
    rounds = _rounds(messages[len(system) :])
    while True:
        kept = [*system, *(message for round_ in rounds for message in round_)]
        prompt = codec.encode_chat(kept, template=template)
        if len(prompt) <= budget:
            return prompt, kept
        if len(rounds) <= 1:
            raise DataError(
                f"The message must leave room for the answer: with its template it has {len(prompt)} tokens, "
                f"and at most {budget} fit.",
                hint="shorten the message, lower max_length, or raise max_context_length (up to the model's context)",
            )
        rounds = rounds[1:]


def _rounds(messages: Sequence[Message]) -> list[list[Message]]:
    rounds: list[list[Message]] = []
    for message in messages:
        if message.role == "user" or not rounds:
            rounds.append([])
        rounds[-1].append(message)
    return rounds


@dataclass(frozen=True)
class Reply:
    """An answer that is being generated.

    Attributes:
        prompt_tokens: Length of the prompt, template included.
        left_out: User messages that no longer fit; their answers are left out too.
        deltas: The answer, piece by piece; closing the iterator stops the engine.
    """

    prompt_tokens: int
    left_out: int
    deltas: Iterator[Delta]


class ChatSession:
    """A conversation with a model; `max_length` tokens of the context are reserved for each answer.

    Examples:
        >>> session = onmt_llm.open_engine("llama").chat(max_length=8)
        >>> for delta in session.reply("Hello"):
        ...     assert delta.tokens <= 1  # show delta.text
        >>> [message.role for message in session.messages]
        ['user', 'assistant']

    Args:
        engine: Shared by all sessions; it has no state of a conversation.
        options: How to generate answers. A chat streams, so it has no beam and one hypothesis.
        max_context_length: Maximum number of tokens of prompt and answer together.
        template: Chat template; None or "auto" = the checkpoint's, or alpaca where it has none, as in training.
        system: System prompt, if the template supports one.

    Attributes:
        messages: The whole conversation, including messages that no longer fit into the prompt.

    Raises:
        ConfigError: There is no room for a prompt, or no such template.
        CheckpointError: The model does not know the template's control tokens.
    """

    def __init__(
        self,
        engine: Engine,
        options: GenerationConfig,
        *,
        max_context_length: int = 4096,
        template: str | None = None,
        system: str | None = None,
    ) -> None:
        self._template, self._options = prepare_chat(
            engine.codec, options, max_context_length=max_context_length, template=template
        )
        self._engine = engine
        self.max_context_length = max_context_length
        self._system = system
        self._stop = threading.Event()
        self.messages: list[Message] = []
        self.reset()

    def __repr__(self) -> str:
        return f"ChatSession({len(self.messages)} messages)"

    def ask(self, text: str) -> str:
        """Answer a message of the user; `reply` gives the answer piece by piece.

        Raises:
            DataError: As `reply`.
        """
        return "".join(delta.text for delta in self.reply(text))

    def respond(self, messages: Sequence[Message], *, should_stop: Callable[[], bool] | None = None) -> Reply:
        """Answer a conversation that is stored elsewhere (in a browser); the session's own stays unchanged.

        Raises:
            DataError: The last round alone is too long.
        """
        budget = self.max_context_length - self._options.max_length
        prompt, kept = fit_history(self._engine.codec, messages, budget=budget, template=self._template)
        left_out = count_questions(messages) - count_questions(kept)
        return Reply(len(prompt), left_out, self._engine.stream(prompt, self._options, should_stop=should_stop))

    def reply(self, text: str) -> Iterator[Delta]:
        """Answer a message of the user, piece by piece.

        The message and its answer (partial if it is stopped or the iterator is closed) are added to the history.

        Raises:
            DataError: The message alone is too long; the history stays unchanged.
        """
        conversation = [*self.messages, Message("user", text)]
        self._stop.clear()
        return self._remember(conversation, self.respond(conversation, should_stop=self._stop.is_set).deltas)

    def stop(self) -> None:
        """Stop the current answer, from any thread; its text so far stays in the history."""
        self._stop.set()

    def reset(self) -> None:
        """Forget the conversation."""
        self.stop()
        self.messages = [Message("system", self._system)] if self._system else []

    def _remember(self, conversation: list[Message], deltas: Iterator[Delta]) -> Iterator[Delta]:
        self.messages = conversation
        pieces: list[str] = []
        try:
            with closing(deltas) as stream:  # type: ignore[type-var]
                for delta in stream:
                    pieces.append(delta.text)
                    yield delta
        finally:
            if self.messages is conversation:
                self.messages = [*conversation, Message("assistant", "".join(pieces))]


def count_questions(messages: Sequence[Message]) -> int:
    """Rounds of a conversation."""
    return sum(message.role == "user" for message in messages)
