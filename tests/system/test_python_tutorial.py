"""The tutorial on the Python functions: its blocks run in one session in an empty folder, and print what it shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import onmt_llm
import tiny

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "python.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def test_the_blocks_print_what_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    download = onmt_llm.convert(tiny.write_chat_model(tmp_path / "tiny"), tmp_path / "SmolLM2-135M-Instruct", to="hf")
    (download / "chat_template.jinja").write_text(TEMPLATE)
    monkeypatch.chdir(tmp_path)
    session: dict[str, Any] = {}
    printed = ""
    for language, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(text, str(PAGE), "exec"), session)
            printed = capsys.readouterr().out
        else:
            assert printed == text
    assert session["chat"].messages[-1].role == "assistant"
