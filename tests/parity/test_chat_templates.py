"""Chat templates of several families render the same text as in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onmt_llm.config.checkpoint import SpecialTokens
from onmt_llm.text.templates.jinja.sandbox import compile_template
from onmt_llm.text.templates.jinja.template import JinjaTemplate
from onmt_llm.text.templates.message import Message

FILES = sorted((Path(__file__).parents[1] / "data" / "chat_templates").glob("*.jinja"))
PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Zürich", "Rome"]},
        "days": {"type": "array", "items": {"type": "integer"}, "default": [1, 2]},
        "unit": {"type": ["string", "null"]},
    },
    "required": ["city"],
}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Says\nit.", "parameters": PARAMETERS}}]
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome", "n": 1}}}
CHATS: dict[str, list[dict[str, Any]]] = {
    "question": [{"role": "user", "content": " Hello there\n"}],
    "system": [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": "1 < 2?\n\n"}],
    "answered": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\n 1. "},
        {"role": "user", "content": "<tool_response>😀</tool_response>"},
        {"role": "assistant", "content": "<think>\nwell\n</think>\n\n2."},
    ],
    "long": [{"role": ("user", "assistant")[i % 2], "content": f"{i} é\n" * i} for i in range(51)],
    "call": [
        {"role": "user", "content": "Rome?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "20 degrees\nsunny", "name": "weather", "tool_call_id": "call_abcdefghi"},
        {"role": "assistant", "content": "Warm."},
    ],
}


def render(source: str, chat: list[dict[str, Any]], tools: Any) -> tuple[str, str]:
    """Ours and theirs; the text, or that the template refused."""
    from transformers.utils.chat_template_utils import render_jinja_template

    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    asks = chat[-1]["role"] == "user"
    try:
        texts, _ = render_jinja_template([chat], tools, None, source, add_generation_prompt=asks, **tokens)
        theirs = str(texts[0])
    except Exception as error:
        theirs = f"refused: {error}"
    variables = {"messages": chat, "tools": tools, "documents": None, "add_generation_prompt": asks, **tokens}
    characters = sum(len(message["content"]) for message in chat)
    try:
        ours = compile_template(source, "it").render(variables, characters=characters, messages=len(chat))
    except Exception as error:
        ours = f"refused: {error}"
    return ours, theirs


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
def test_same_text_as_transformers(file: Path, chat: str, tools: Any) -> None:
    ours, theirs = render(file.read_text(encoding="utf-8"), CHATS[chat], tools)
    assert ours == theirs


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_same_text_through_segments(file: Path) -> None:
    source, chat = file.read_text(encoding="utf-8"), CHATS["long"]
    template = JinjaTemplate(source, specials=SpecialTokens(add_bos=False), control_tokens=["<|im_start|>", "<|end|>"])
    segments = template.render([Message(**message) for message in chat], generation_prompt=True)
    _, theirs = render(source, chat, None)
    assert "".join("".join(one.tokens) if one.tokens else one.text or "" for one in segments) == theirs
