"""Prompts: an input text, or one line of an input file, as the tokens that a model continues."""

from __future__ import annotations

from onmt_llm.text.codec import Codec
from onmt_llm.text.placeholders import from_line
from onmt_llm.text.templates.message import Message


def encode_prompt(text: str, codec: Codec, template: str | None) -> list[str]:
    """Tokens of a text: of the text alone, or of the user's turn in a chat template ("auto" = the checkpoint's)."""
    if template is None:
        return codec.encode(text)
    return codec.encode_chat([Message("user", text)], template=None if template == "auto" else template)


def encode_line(line: str, codec: Codec, template: str | None) -> list[str]:
    """Tokens of one input line; an empty line has none, and its answer is empty."""
    return encode_prompt(from_line(line), codec, template) if line.strip() else []
