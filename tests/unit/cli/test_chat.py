"""`onmt_llm_chat`: the page that it serves, and what it refuses before a model is loaded."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tiny
from onmt_llm.cli.chat import main
from onmt_llm.text.templates.message import Message

SCRIPTS = Path(__file__).parents[3] / "chatbot"


@pytest.fixture
def config(tmp_path: Path) -> str:
    model = tiny.write_checkpoint(tmp_path / "tiny", tiny.llama())
    file = tmp_path / "chat.yaml"
    file.write_text(f"model: {model}\nmax_length: 8\ndevice: cpu\n")
    return str(file)


def test_a_page_is_served_over_the_model(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio")
    served: list[Any] = []
    monkeypatch.setattr("onmt_llm.chat.app.check_server", lambda *address: served.append(address))
    monkeypatch.setattr("onmt_llm.chat.app.build_app", lambda *args, **headings: (args, headings))
    monkeypatch.setattr("onmt_llm.chat.app.launch", lambda app, **server: served.append((app, server)))
    words = ["-inference_config_file", config, "-inference_mode", "py", "-server_port", "7001"]
    assert main([*words, "-max_context_length", "512"]) == 0
    address, (((session,), headings), server) = served
    assert address == ("127.0.0.1", 7001) == tuple(server.values())
    assert headings["title"] == "Chat with tiny" and "PyTorch" in headings["subtitle"] and "512" in headings["subtitle"]
    reply = session.respond([Message("user", "w1")])
    assert session.max_context_length == 512 and sum(delta.tokens for delta in reply.deltas) <= 8


def test_a_port_in_use_is_refused(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["-inference_config_file", config, "-inference_mode", "py", "-server_port", port]) == 2
    assert f"port {port}, but cannot" in capsys.readouterr().err


def test_a_model_of_the_other_kind_is_refused(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-inference_config_file", config, "-inference_mode", "ct2"]) == 2
    assert "With inference_mode ct2 the model must be a CTranslate2 release" in capsys.readouterr().err


@pytest.mark.parametrize(("script", "usage"), [("chatbot", "onmt_llm_chat"), ("simple_inference", "simple_inference")])
def test_the_scripts_run_from_a_checkout(script: str, usage: str, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / f"{script}.py"), "-help"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.startswith(f"usage: {usage} ")
