"""The parameters of requests: those that are supported, and those of OpenAI's that are refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from onmt_llm.text.templates.message import Message

REFUSED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "prompt_cache_options": ({},),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}
"""Parameters of OpenAI's API that are not supported, with the values that ask for nothing (null is one for all)."""
IGNORED = ("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
"""Parameters that do not change an answer: who asks, and hints to a cache."""

TokenId = Annotated[int, Field(ge=0)]
StopString = Annotated[str, Field(min_length=1, max_length=1000)]


class StreamOptions(BaseModel):
    """What a stream contains besides the answer."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = None
    """End with a chunk that has the usage."""
    include_obfuscation: Literal[False] | None = None


class Parameters(BaseModel):
    """Parameters of both kinds of requests; null = not given."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    model: str
    """Name of the model."""
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    """Maximum number of tokens of an answer."""
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    """Fewest tokens of an answer; an extension."""
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    """Sampling temperature; 0 = always the most likely token."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Sample from the most likely tokens whose probabilities add up to this."""
    top_k: Annotated[int, Field(ge=-1)] | None = None
    """Sample from the k most likely tokens; 0 or -1 = all; an extension."""
    repetition_penalty: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Penalty of tokens already present (Keskar et al. 2019); an extension."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    """Subtracted from the logits of tokens that the answer already contains."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    """Subtracted from the logit of a token for each time that the answer already contains it."""
    n: Annotated[int, Field(ge=1)] | None = None
    """Answers to a prompt."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    """Random seed of sampling."""
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    """Strings at which an answer ends."""
    stream: bool | None = None
    """Send the answer piece by piece, as server-sent events."""
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, values: Any) -> Any:
        """Drop parameters without effect, and refuse those that are not supported."""
        if not isinstance(values, dict):
            return values
        for name, neutral in REFUSED.items():
            value = values.get(name)
            if value is not None and not any(value == each and type(value) is type(each) for each in neutral):
                raise PydanticCustomError("unsupported_parameter", "{name}", {"name": name})
        return {name: value for name, value in values.items() if name not in REFUSED and name not in IGNORED}

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class CompletionParameters(Parameters):
    """A request for `/v1/completions`."""

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    """A text or several, or their token ids; of a translation model, the source."""
    echo: bool | None = None
    """Put the prompt in front of the answer."""
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """Report log probabilities, with those of so many of the most likely tokens."""
    src_lang: str | None = None
    """Language of the prompt, for a multilingual model; an extension."""
    tgt_lang: str | None = None
    """Language to translate into; an extension."""


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    """Who speaks; `developer` is another name of `system`."""
    content: str | list[TextPart]
    """Its text, or parts of it."""
    name: None = None
    refusal: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None
    function_call: None = None
    audio: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None

    def as_message(self) -> Message:
        """The message as templates take it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, content)


class ChatParameters(Parameters):
    """A request for `/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    """The conversation; the last message is to be answered."""
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """Another name of `max_tokens`."""
    logprobs: bool | None = None
    """Report the log probabilities of the answer's tokens."""
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """With `logprobs`: report those of so many of the most likely tokens."""
