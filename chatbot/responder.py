"""What stands between the page and the engine: the prompt that fits, and the answer as it arrives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from onmt_llm.config.generate import GenerationConfig
from onmt_llm.errors import ConfigError
from onmt_llm.generate.engine import Delta, Engine
from onmt_llm.generate.session import fit_history
from onmt_llm.log import log_once
from onmt_llm.text.templates import Message, get_template

if TYPE_CHECKING:
    from onmt_llm.text.codec import Codec


@dataclass(frozen=True)
class Reply:
    """An answer that is about to arrive.

    Attributes:
        prompt_tokens: Length of the prompt, template included.
        left_out: User messages that no longer fit, with the answers that belonged to them.
        deltas: The answer, piece by piece; closing the iterator ends the engine's work.
    """

    prompt_tokens: int
    left_out: int
    deltas: Iterator[Delta]


class Responder(Protocol):
    """What the page talks to; `EngineResponder`, or a script in a test."""

    max_context_length: int

    def respond(self, messages: Sequence[Message], *, should_stop: Callable[[], bool]) -> Reply:
        """Answer the last of `messages`.

        Raises:
            OnmtLlmError: With a sentence for the reader, here or while the answer is iterated over.
        """
        ...


class EngineResponder:
    """Answers with an engine; keeps `max_length` tokens of the context free for each answer.

    Args:
        engine: Shared by all visitors.
        options: How answers are produced. A beam is only known at its end, so a chat streams one hypothesis.
        max_context_length: Tokens that prompt and answer may have together.
        template: Chat template; None or "auto" = the checkpoint's, or alpaca where it has none, as in training.

    Raises:
        ConfigError: There is no room for a prompt, or no such template.
    """

    def __init__(
        self, engine: Engine, options: GenerationConfig, *, max_context_length: int, template: str | None = None
    ) -> None:
        if options.beam_size > 1 or options.n_best > 1:
            log_once(
                "The chat streams its answers: "
                f"beam_size {options.beam_size} and n_best {options.n_best} are taken as 1."
            )
            options = options.model_copy(update={"beam_size": 1, "n_best": 1})
        if max_context_length <= options.max_length:
            raise ConfigError(
                f"'max_context_length' must be above max_length, "
                f"but is {max_context_length} with max_length {options.max_length}.",
                hint="max_length is the room kept for an answer; lower it in the inference configuration",
            )
        layout: Any = engine.codec
        if template in (None, "auto") and engine.codec.template is None:
            log_once("The checkpoint names no chat template: alpaca is used.")
            template = "alpaca"
        if template not in (None, "auto"):
            stops = get_template(template, specials=engine.codec.config.specials).stop
            options = options.model_copy(update={"stop": [*options.stop, *stops]})
            layout = _Layout(engine.codec, template)
        self._engine = engine
        self._layout = layout
        self._options = options
        self.max_context_length = max_context_length

    def respond(self, messages: Sequence[Message], *, should_stop: Callable[[], bool]) -> Reply:
        """See `Responder.respond`."""
        budget = self.max_context_length - self._options.max_length
        prompt, kept = fit_history(self._layout, messages, budget=budget)
        left_out = _questions(messages) - _questions(kept)
        return Reply(len(prompt), left_out, self._engine.stream(prompt, self._options, should_stop=should_stop))


class _Layout:
    """A codec whose conversations are laid out by another template than the checkpoint's."""

    def __init__(self, codec: Codec, template: str) -> None:
        self._codec = codec
        self._template = template

    def encode_chat(self, messages: Sequence[Message]) -> list[str]:
        return self._codec.encode_chat(messages, template=self._template)


def _questions(messages: Sequence[Message]) -> int:
    return sum(message.role == "user" for message in messages)
