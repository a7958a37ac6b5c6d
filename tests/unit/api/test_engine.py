"""`open_engine` and the methods of its engine: what they take, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import onmt_llm
from onmt_llm.cli.translate import main as translate_command
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.generate.open import open_engine as open_inner
from onmt_llm.text.templates.message import Message

TEXTS = ["Hello", "", "How are you?", "a\nb", "x"]


def test_ask_applies_the_chat_template(engine: onmt_llm.TextEngine) -> None:
    inner = open_inner("llama")
    prompt = inner.codec.encode_chat([Message("user", "Hello")])
    options = GenerationConfig(max_length=6)
    assert engine.ask("Hello", max_length=6) == inner.generate([prompt], options)[0][0].text
    plain = inner.generate([inner.codec.encode("Hello")], options)[0][0].text
    assert (
        engine.ask("Hello", max_length=6, template=None)
        == plain
        == onmt_llm.open_engine("llama", template=None).ask("Hello", max_length=6)
    )
    assert engine.ask("") == ""


def test_a_stream_is_the_answer_in_pieces(engine: onmt_llm.TextEngine) -> None:
    pieces = list(engine.stream_text("Hello", max_length=8))
    assert len(pieces) > 1 and "".join(pieces) == engine.ask("Hello", max_length=8)
    assert list(engine.stream_text("Hello", should_stop=lambda: True)) == pieces[:1]


def test_translate_answers_as_the_command(engine: onmt_llm.TextEngine, tmp_path: Path) -> None:
    lines = [text for text in TEXTS if "\n" not in text]
    source, output = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("".join(f"{line}\n" for line in lines))
    words = ["-model", "llama", "-src", str(source), "-output", str(output), "-beam_size", "3", "-max_length", "4"]
    assert translate_command(words) == 0
    found = [text.replace("\n", "｟newline｠") for text in engine.translate(lines, beam_size=3, max_length=4)]
    assert found == output.read_text().split("\n")[:-1]


def test_translate_keeps_the_order(engine: onmt_llm.TextEngine) -> None:
    whole = engine.translate((text for text in TEXTS), batch_size=2)
    assert whole == [engine.translate([text])[0] for text in TEXTS] and whole[1] == ""
    assert engine.translate(TEXTS[:1], template="auto") == [engine.ask("Hello")]


def test_generate_takes_texts_and_tokens(engine: onmt_llm.TextEngine) -> None:
    options = GenerationConfig(max_length=3, beam_size=2, n_best=2)
    tokens = engine.generate([engine.codec.encode("Hello")], options)
    assert (
        engine.generate("Hello", max_length=3, beam_size=2, n_best=2) == tokens == engine.generate(["Hello"], options)
    )
    assert len(tokens[0]) == 2
    assert list(engine.stream("Hello", max_length=3))[-1].finish_reason == "length"
    prefix = engine.generate("Hello", prefixes=["ab"], max_length=3)[0][0]
    assert prefix.text.startswith("ab") and engine.generate("Hello", prefixes="ab", max_length=3)[0][0] == prefix


def test_a_chat_remembers(engine: onmt_llm.TextEngine) -> None:
    session = engine.chat(max_length=4, max_context_length=200)
    assert session.ask("Hello") == engine.ask("Hello", max_length=4)
    session.ask("And now?")
    assert [message.role for message in session.messages] == ["user", "assistant"] * 2
    with pytest.raises(onmt_llm.ConfigError, match="'max_context_length' must be above max_length"):
        engine.chat(max_context_length=4)


def test_options_come_from_a_yaml_file_too(tmp_path: Path) -> None:
    (tmp_path / "translate.yaml").write_text("model: llama\nsrc: questions.txt\nmax_length: 3\ntemplate: auto\n")
    engine = onmt_llm.open_engine(config=tmp_path / "translate.yaml")
    assert engine.translate(["Hello"]) == [engine.ask("Hello", max_length=3)]


def test_engines_score(engine: onmt_llm.TextEngine) -> None:
    tokens = engine.codec.encode("Hello")
    assert len(engine.score([tokens])[0]) == len(tokens) - 1
    assert engine.logits(tokens).shape == (len(tokens), 259)


def test_what_an_engine_shows(engine: onmt_llm.TextEngine) -> None:
    assert "llama" in repr(engine) and "TorchEngine: decoder-only, 0+2 layers" in repr(engine)
    assert "tokens" not in repr(engine.generate("Hello", max_length=2)[0][0])


WRONG: dict[str, tuple[Callable[[onmt_llm.TextEngine], Any], str]] = {
    "ask": (
        lambda engine: engine.ask("x", max_lenght=5),
        "'max_lenght' is not a known option: did you mean 'max_length'",
    ),
    "ask, value": (lambda engine: engine.ask("x", max_length=-5), "'max_length' must be >= 1, but is -5"),
    "ask, list": (lambda engine: engine.ask(["x"]), "ask must be given a text"),
    "ask, template": (lambda engine: engine.ask("x", template="vicunna"), "vicunna"),
    "ask, device": (lambda engine: engine.ask("x", device="cuda"), "'device' must be given to open_engine"),
    "ask, conflict": (lambda engine: engine.ask("x", min_length=9, max_length=5), "min_length must be <= max_length"),
    "stream_text": (lambda engine: engine.stream_text("x", beam_sise=5), "did you mean 'beam_size'"),
    "translate": (lambda engine: engine.translate("x"), "translate must be given a list of texts, but got 'x'"),
    "translate, option": (lambda engine: engine.translate(["x"], beam_sise=5), "did you mean 'beam_size'"),
    "translate, number": (lambda engine: engine.translate([5]), "translate must be given a list of texts"),
    "translate, no list": (lambda engine: engine.translate(5), "translate must be given a list of texts, but got 5"),
    "generate, number": (lambda engine: engine.generate(5), "generate must be given texts, or lists of tokens"),
    "generate, prefixes": (
        lambda engine: engine.generate(["x", "y"], prefixes=["z"]),
        "'prefixes' must be as many as the prompts, 2, but are 1",
    ),
    "generate, more prefixes": (
        lambda engine: engine.generate([["x"]], prefixes=["y", "z"]),
        "'prefixes' must be as many as the prompts, 1, but are 2",
    ),
    "score": (lambda engine: engine.score(["Hello"]), "must be a list of tokens, but is the text 'Hello'"),
    "logits": (lambda engine: engine.logits("Hello"), "must be a list of tokens, but is the text 'Hello'"),
    "generate": (lambda engine: engine.generate("x", n_best=2), "n_best must be <= beam_size"),
    "generate, mixed": (
        lambda engine: engine.generate(["x", ["y"]]),
        "generate must be given texts, or lists of tokens",
    ),
    "chat": (lambda engine: engine.chat(sistem="x"), "'sistem' is not a known option"),
    "open_engine": (lambda engine: onmt_llm.open_engine("llama", precison="bf16"), "did you mean 'precision'"),
    "open_engine, value": (lambda engine: onmt_llm.open_engine("llama", precision="x"), "must be one of"),
    "open_engine, file": (
        lambda engine: onmt_llm.open_engine("llama", src="x"),
        "'src' must be left out of open_engine",
    ),
    "open_engine, none": (lambda engine: onmt_llm.open_engine(), "'model' must be given, but is not"),
}


@pytest.mark.parametrize("call", WRONG)
def test_a_wrong_argument_gets_a_sentence(call: str, engine: onmt_llm.TextEngine) -> None:
    function, sentence = WRONG[call]
    with pytest.raises(onmt_llm.ConfigError, match=sentence) as error:
        function(engine)
    assert error.value.exit_code == 2


def test_a_missing_model_gets_the_sentence_of_the_command() -> None:
    with pytest.raises(onmt_llm.CheckpointError, match="model: There is no checkpoint at nowhere") as error:
        onmt_llm.open_engine("nowhere")
    assert error.value.exit_code == 4
