"""Conversations: truncated history, refused messages, stored turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest

from onmt_llm.config.generate import GenerationConfig
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.generate.engine import Delta
from onmt_llm.generate.session import ChatSession, fit_history
from onmt_llm.text.templates.builtin import get_template
from onmt_llm.text.templates.message import Message, Template


class WordCodec:
    """A template of one token a message and one a word."""

    def __init__(self, template: str | None = "chatml") -> None:
        self.template = template
        self.asked_template: str | None = None

    def chat_template(self, name: str) -> Template:
        return get_template(name)

    def encode_chat(self, messages: Sequence[Message], *, template: str | None = None) -> list[str]:
        self.asked_template = template
        return [token for m in messages for token in (f"<{m.role}>", *m.content.split())] + ["<assistant>"]


class EchoEngine:
    """Answers with the words of its prompt, one a delta."""

    def __init__(self, template: str | None = "chatml") -> None:
        self.codec = WordCodec(template)
        self.prompts: list[list[str]] = []
        self.options: list[GenerationConfig] = []

    def stream(
        self, prompt: Sequence[str], options: GenerationConfig, *, should_stop: Callable[[], bool] | None = None
    ) -> Iterator[Delta]:
        self.prompts.append(list(prompt))
        self.options.append(options)
        for word in ("one ", "two ", "three"):
            yield Delta(word, 1)
            if should_stop and should_stop():
                yield Delta("", 0, "stopped")
                return
        yield Delta("", 1, "stop")


def session(max_context_length: int = 100, **options: str) -> ChatSession:
    return ChatSession(EchoEngine(), GenerationConfig(max_length=10), max_context_length=max_context_length, **options)  # type: ignore[arg-type]


def test_a_round_is_remembered() -> None:
    chat = session(system="be kind")
    assert "".join(delta.text for delta in chat.reply("hello there")) == "one two three"
    assert [m.role for m in chat.messages] == ["system", "user", "assistant"]
    list(chat.reply("again"))
    assert chat._engine.prompts[1] == [
        "<system>",
        "be",
        "kind",
        "<user>",
        "hello",
        "there",
        "<assistant>",
        "one",
        "two",
        "three",
        "<user>",
        "again",
        "<assistant>",
    ]  # type: ignore[attr-defined]
    chat.reset()
    assert [m.role for m in chat.messages] == ["system"]


def test_whole_oldest_rounds_go_first_and_the_system_message_stays() -> None:
    messages = [Message("system", "s")]
    for number in range(4):
        messages += [Message("user", f"question {number}"), Message("assistant", "a b c d")]
    messages.append(Message("user", "last"))
    for budget in range(5, 50):
        prompt, kept = fit_history(WordCodec(), messages, budget=budget)  # type: ignore[arg-type]
        assert len(prompt) <= budget
        assert kept[0].role == "system" and kept[1].role == "user" and kept[-1].content == "last"
        one_more = [*kept[:1], *messages[len(messages) - len(kept) - 1 :]]
        assert len(kept) == len(messages) or len(WordCodec().encode_chat(one_more)) > budget


def test_prompt_and_answer_fit_the_context_exactly() -> None:
    chat = session(max_context_length=16)
    list(chat.reply("w w w w"))
    assert len(chat._engine.prompts[0]) + 10 == 16  # type: ignore[attr-defined]
    list(chat.reply("x"))
    assert chat._engine.prompts[1] == ["<user>", "x", "<assistant>"]  # type: ignore[attr-defined]


def test_a_message_that_is_too_long_is_refused_and_forgotten() -> None:
    chat = session(max_context_length=16)
    with pytest.raises(DataError, match=r"7 tokens.*at most 6 fit"):
        chat.reply("w w w w w")
    assert chat.messages == []
    with pytest.raises(ConfigError, match="'max_context_length' must be above max_length, but is 10"):
        session(max_context_length=10)


def test_what_was_said_before_a_stop_is_remembered() -> None:
    chat = session()
    for delta in chat.reply("hello"):
        if delta.text == "two ":
            chat.stop()
    assert chat.messages[-1] == Message("assistant", "one two ")
    stream = chat.reply("more")
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert chat.messages[-1] == Message("assistant", "one ")


def test_a_conversation_kept_elsewhere_is_answered_and_what_was_left_out_is_counted() -> None:
    chat = session(max_context_length=20)
    turns = [m for n in range(3) for m in (Message("user", f"q{n}"), Message("assistant", f"a{n}"))]
    reply = chat.respond([*turns, Message("user", "now")])
    assert (reply.prompt_tokens, reply.left_out) == (7, 2)
    assert "".join(delta.text for delta in reply.deltas) == "one two three" and chat.messages == []


def test_a_chat_has_one_hypothesis() -> None:
    engine = EchoEngine()
    options = GenerationConfig(beam_size=3, n_best=2, max_length=4)
    list(ChatSession(engine, options).reply("x"))  # type: ignore[arg-type]
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
    engine = EchoEngine(in_checkpoint)
    list(ChatSession(engine, GenerationConfig(max_length=4), template=asked).reply("x"))  # type: ignore[arg-type]
    assert engine.codec.asked_template == used
    assert engine.options[0].stop == stops
