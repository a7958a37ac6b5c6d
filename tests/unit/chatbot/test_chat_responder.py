from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from chatbot.responder import EngineResponder
from onmt_llm.config.checkpoint import SpecialTokens
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.generate.engine import Delta
from onmt_llm.text.templates import Message


class WordCodec:
    """One token for each word, and one for the role."""

    class config:
        specials = SpecialTokens()

    def __init__(self, template: str | None = "chatml") -> None:
        self.template = template
        self.asked_template: str | None = None

    def encode_chat(self, messages: Sequence[Message], *, template: str | None = None) -> list[str]:
        self.asked_template = template
        return [word for message in messages for word in (message.role, *message.content.split())]


class RecordingEngine:
    def __init__(self, codec: WordCodec) -> None:
        self.codec = codec
        self.prompts: list[list[str]] = []
        self.options: list[GenerationConfig] = []

    def stream(self, prompt: Sequence[str], options: GenerationConfig, *, should_stop: Any = None) -> Iterator[Delta]:
        self.prompts.append(list(prompt))
        self.options.append(options)
        return iter([Delta("hi", 1, "stop")])


def conversation(rounds: int) -> list[Message]:
    turns = [m for n in range(rounds) for m in (Message("user", f"q{n}"), Message("assistant", f"a{n}"))]
    return [*turns, Message("user", "now")]


def test_whole_rounds_are_left_out_oldest_first_and_counted() -> None:
    engine = RecordingEngine(WordCodec())
    responder = EngineResponder(engine, GenerationConfig(max_length=4), max_context_length=11)  # type: ignore[arg-type]
    reply = responder.respond(conversation(3), should_stop=lambda: False)
    assert engine.prompts == [["user", "q2", "assistant", "a2", "user", "now"]]
    assert (reply.prompt_tokens, reply.left_out) == (6, 2)
    assert [delta.text for delta in reply.deltas] == ["hi"]


def test_a_message_that_leaves_no_room_is_refused() -> None:
    responder = EngineResponder(RecordingEngine(WordCodec()), GenerationConfig(max_length=4), max_context_length=6)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="room for the answer"):
        responder.respond([Message("user", "too many words")], should_stop=lambda: False)


def test_a_context_without_room_for_a_prompt_is_refused() -> None:
    with pytest.raises(ConfigError, match="'max_context_length' must be above max_length, but is 8 with max_length 8"):
        EngineResponder(RecordingEngine(WordCodec()), GenerationConfig(max_length=8), max_context_length=8)  # type: ignore[arg-type]


def test_a_chat_has_one_hypothesis() -> None:
    engine = RecordingEngine(WordCodec())
    options = GenerationConfig(beam_size=3, n_best=2, max_length=4)
    EngineResponder(engine, options, max_context_length=50).respond([Message("user", "x")], should_stop=lambda: False)  # type: ignore[arg-type]
    assert (engine.options[0].beam_size, engine.options[0].n_best) == (1, 1)


@pytest.mark.parametrize(
    ("in_checkpoint", "asked", "used", "stops"),
    [
        ("chatml", None, None, []),
        ("chatml", "auto", None, []),
        (None, None, "alpaca", ["\n\n### Instruction:", "### Instruction:"]),
        ("chatml", "alpaca", "alpaca", ["\n\n### Instruction:", "### Instruction:"]),
    ],
)
def test_the_template_is_the_one_asked_for_or_the_checkpoints_or_alpaca(
    in_checkpoint: str | None, asked: str | None, used: str | None, stops: list[str]
) -> None:
    engine = RecordingEngine(WordCodec(in_checkpoint))
    responder = EngineResponder(engine, GenerationConfig(max_length=4), max_context_length=50, template=asked)  # type: ignore[arg-type]
    responder.respond([Message("user", "x")], should_stop=lambda: False)
    assert engine.codec.asked_template == used
    assert engine.options[0].stop == stops
