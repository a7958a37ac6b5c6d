"""A model as the chat uses it: settings become options, and conversations become requests to its scheduler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pydantic import ValidationError

from onmt_llm.config.generate import GenerationConfig
from onmt_llm.errors import ConfigError
from onmt_llm.generate.scheduling.ticket import Request, Ticket
from onmt_llm.generate.session import count_questions, fit_history, prepare_chat
from onmt_llm.text.templates.message import Message

if TYPE_CHECKING:
    from onmt_llm.generate.scheduling.scheduler import Scheduler
    from onmt_llm.text.codec import Codec


@dataclass(frozen=True)
class ChatSettings:
    """What a visitor may set for an answer.

    Attributes:
        temperature: 0 = always the most likely token.
        top_p: Sample from the most likely tokens whose probabilities add up to this; 1 = all tokens.
        top_k: Sample from so many of the most likely tokens; 1 = no sampling, 0 = all tokens.
        max_tokens: Maximum number of tokens of an answer.
        seed: Of the random numbers; None = a new one for each answer.
    """

    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    seed: int | None = None

    @classmethod
    def of(cls, options: GenerationConfig) -> ChatSettings:
        """The settings with which a recipe's options are the same."""
        return cls(
            temperature=options.random_sampling_temp,
            top_p=options.random_sampling_topp or 1.0,
            top_k=max(options.random_sampling_topk, 0),
            max_tokens=options.max_length,
            seed=None if options.seed < 0 else options.seed,
        )

    def applied(self, options: GenerationConfig) -> GenerationConfig:
        """The options with these settings.

        Raises:
            ConfigError: A setting is outside its range.
        """
        update = {
            "random_sampling_temp": self.temperature,
            "random_sampling_topp": self.top_p,
            "random_sampling_topk": self.top_k,
            "max_length": self.max_tokens,
            "min_length": min(options.min_length, self.max_tokens),
            "seed": -1 if self.seed is None else self.seed,
        }
        try:
            return GenerationConfig.model_validate({**options.model_dump(), **update})
        except ValidationError as error:
            first = error.errors()[0]
            name = {"random_sampling_temp": "temperature", "random_sampling_topp": "top_p", "max_length": "max_tokens",
                    "random_sampling_topk": "top_k"}.get(str(first["loc"][0]), str(first["loc"][0]))  # fmt: skip
            raise ConfigError(f"'{name}' must be in its range, but: {first['msg']}.") from error


@dataclass(frozen=True)
class Submitted:
    """An answer on its way.

    Attributes:
        ticket: On which it arrives.
        prompt_tokens: Length of the prompt, template included.
        left_out: Rounds of the conversation that no longer fit.
        joint: What stands between the text that is continued and what arrives, unless that starts with white space.
        partial: The text that is continued.
    """

    ticket: Ticket
    prompt_tokens: int
    left_out: int
    joint: str = ""
    partial: str = ""


class Responder(Protocol):
    """Answers conversations: a `ChatModel`, or in tests a script."""

    @property
    def name(self) -> str: ...

    @property
    def max_context_length(self) -> int: ...

    @property
    def settings(self) -> ChatSettings: ...

    def submit(
        self, messages: Sequence[Message], settings: ChatSettings, *, partial: str = "", notify: Callable[[], None]
    ) -> Submitted: ...


class ChatModel:
    """A model with its scheduler.

    Args:
        scheduler: Answers; it may be shared.
        options: How to generate answers, where the settings say nothing else.
        max_context_length: Maximum number of tokens of prompt and answer together.
        template: Chat template; None or "auto" = the checkpoint's, or alpaca where it has none, as in training.
        name: Shown above its answers.

    Raises:
        ConfigError: There is no room for a prompt, or no such template.
        CheckpointError: The model does not know the template's control tokens.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        options: GenerationConfig,
        *,
        max_context_length: int = 4096,
        template: str | None = None,
        name: str = "",
    ) -> None:
        prepare_chat(scheduler.codec, options, max_context_length=max_context_length, template=template)
        self._scheduler = scheduler
        self._options = options
        self._template = template
        self.name = name
        self.max_context_length = max_context_length
        self.settings = ChatSettings.of(options)

    def submit(
        self, messages: Sequence[Message], settings: ChatSettings, *, partial: str = "", notify: Callable[[], None]
    ) -> Submitted:
        """Have a conversation answered.

        Args:
            messages: The conversation; the last message is the question.
            settings: How to generate the answer.
            partial: A truncated answer that is to be continued.
            notify: Called from the scheduler's thread after each change of the ticket.

        Raises:
            ConfigError: A setting is outside its range, or the engine does not support it.
            DataError: The last round alone is too long.
            Overloaded: Too many requests are waiting.
        """
        codec, context = self._scheduler.codec, self.max_context_length
        template, options = prepare_chat(
            codec, settings.applied(self._options), max_context_length=context, template=self._template
        )
        partial, joint = _cut(codec, partial)
        begun = codec.tokenizer.encode(partial) if partial else []
        budget = context - options.max_length - len(begun)
        prompt, kept = fit_history(codec, messages, budget=budget, template=template)
        ticket = self._scheduler.submit(Request([*prompt, *begun], options), notify=notify)
        left_out = count_questions(messages) - count_questions(kept)
        return Submitted(ticket, len(prompt) + len(begun), left_out, joint, partial)


def _cut(codec: Codec, partial: str) -> tuple[str, str]:
    """The text to continue, and what stands between it and the continuation.

    A SentencePiece tokeniser drops a space at the start of a text, and a continuation is decoded by itself. With such a
    tokeniser the last word is generated again, which keeps the space between the two.
    """
    keeps_spaces = codec.decode(codec.tokenizer.encode("a b")[-1:]).startswith(" ")
    cut = partial.rstrip(" ")
    if keeps_spaces or " " not in cut:
        return partial, ""
    return cut.rsplit(" ", 1)[0], " "
