"""Modelfiles for Ollama: their Go templates render what the built-in templates render."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import tiny
from onmt_llm.checkpoint.formats.gguf.modelfile import modelfile
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.checkpoint import SamplingDefaults
from onmt_llm.text.codec import Codec
from onmt_llm.text.templates.message import Message

CHATS = [
    [("user", "hi")],
    [("system", "be brief"), ("user", "two\nlines"), ("assistant", "yes"), ("user", "and 'now'?")],
]
CONTROL = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def go_render(template: str, scope: dict[str, Any]) -> str:
    """A template of Go's text/template: values, `range`, `if`, `else if`, variables, `eq`, `and` and `not`."""
    parts = re.split(r"\{\{ (.*?) \}\}", template, flags=re.S)
    text, rest = _block(list(enumerate(parts)), [scope], scope, True)
    assert not rest
    return text


def _block(parts: Sequence[tuple[int, str]], dots: list[Any], root: Any, on: bool) -> tuple[str, list[Any]]:
    """The text up to an `end` or `else`, and the parts from there."""
    rest, text = list(parts), ""
    while rest:
        number, part = rest.pop(0)
        if number % 2 == 0:
            text += part
        elif part == "end" or part.startswith("else"):
            return text, [(number, part), *rest]
        elif part.startswith("range "):
            start = rest
            texts = []
            for item in _value(part.removeprefix("range "), dots, root):
                inner, rest = _block(start, [*dots, item], root, on)
                texts.append(inner)
            text += "".join(texts)
            assert rest.pop(0)[1] == "end"
        elif part.startswith("if "):
            inner, rest = _branches(part.removeprefix("if "), rest, dots, root, on)
            text += inner
        elif match := re.fullmatch(r"(\$\w+) :?= (.*)", part):
            if on:
                root[match[1]] = _value(match[2], dots, root)
        else:
            text += str(_value(part, dots, root))
    return text, rest


def _branches(condition: str, rest: Any, dots: list[Any], root: Any, on: bool) -> tuple[str, list[Any]]:
    text, taken = "", False
    while True:
        runs = on and not taken and (condition == "else" or bool(_value(condition, dots, root)))
        inner, rest = _block(rest, dots, root, runs)
        text, taken = (inner if runs else text), taken or runs
        _, mark = rest.pop(0)
        if mark == "end":
            return text, rest
        condition = mark.removeprefix("else if ")


def _value(expression: str, dots: list[Any], root: Any) -> Any:
    words = re.findall(r'"[^"]*"|\S+', expression)
    if words[0] in ("eq", "and", "not"):
        values = [_value(word, dots, root) for word in words[1:]]
        return {"eq": lambda: values[0] == values[1], "and": lambda: all(values), "not": lambda: not values[0]}[
            words[0]
        ]()
    word = words[0]
    if word.startswith('"'):
        return word[1:-1]
    if word in ("true", "false"):
        return word == "true"
    if word.startswith("$."):
        return root[word[2:]]
    return dots[-1][word[1:]] if word.startswith(".") else root[word]


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Names and values of a Modelfile, as Ollama's parser reads them: nothing is escaped in quotes."""
    for match in re.finditer(r'^(FROM|TEMPLATE|PARAMETER \w+) (?:"""(.*?)"""|"(.*?)"|(\S+))$', text, re.S | re.M):
        yield match[1], match[2] or match[3] or match[4]


def codec_with(tmp_path: Path, template: str | None, **changes: Any) -> Codec:
    tokens = [*tiny.tokens(40), *CONTROL]
    config = tiny.llama(vocab_size=len(tokens), max_position=20_000)
    return Checkpoint.open(
        tiny.write_checkpoint(tmp_path / "model", config, tokens, template=template, **changes)
    ).codec()


@pytest.mark.parametrize("name", ["alpaca", "vicuna", "chatml", "llama2", "llama3"])
def test_go_templates_render_what_the_template_renders(tmp_path: Path, name: str) -> None:
    codec = codec_with(tmp_path, name)
    assert codec.template is not None
    found = dict(commands(modelfile(codec, "model.gguf")))
    for chat in CHATS:
        segments = codec.template.render([Message(*turn) for turn in chat], generation_prompt=True)
        expected = "".join(segment.text or "".join(segment.tokens or ()) for segment in segments)
        system = next((content for role, content in chat if role == "system"), "")
        messages = [{"Role": role, "Content": content} for role, content in chat]
        assert go_render(found["TEMPLATE"], {"System": system, "Messages": messages}) == expected


def test_parameters_say_where_an_answer_ends(tmp_path: Path) -> None:
    codec = codec_with(tmp_path, "alpaca", stop=['say "stop"'])
    found = list(commands(modelfile(codec, "model.gguf")))
    assert found[0] == ("FROM", "./model.gguf")
    stops = [value for name, value in found if name == "PARAMETER stop"]
    assert stops == ["</s>", 'say "stop"', "\n\n### Instruction:", "### Instruction:"]
    assert [value for name, value in found if name == "PARAMETER num_ctx"] == ["8192"]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (SamplingDefaults(), {"temperature": "0", "repeat_penalty": "1"}),
        (
            SamplingDefaults(do_sample=True, temperature=0.6, top_p=0.9, repetition_penalty=1.1),
            {"temperature": "0.6", "top_k": "50", "top_p": "0.9", "repeat_penalty": "1.1"},
        ),
    ],
    ids=["greedy", "sampling"],
)
def test_answers_are_sampled_as_the_model_says(
    tmp_path: Path, sampling: SamplingDefaults, expected: dict[str, str]
) -> None:
    found = dict(commands(modelfile(codec_with(tmp_path, "alpaca", sampling=sampling), "model.gguf")))
    names = ("temperature", "top_k", "top_p", "repeat_penalty")
    assert {name: found[f"PARAMETER {name}"] for name in names if f"PARAMETER {name}" in found} == expected


def test_another_template_is_left_to_the_gguf_file(tmp_path: Path) -> None:
    assert "TEMPLATE" not in dict(commands(modelfile(codec_with(tmp_path, None), "model.gguf")))
