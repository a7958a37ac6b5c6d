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


def served(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> tuple[Any, ...]:
    """What the command would serve: its models, headings, and server."""
    pytest.importorskip("gradio")
    found: list[Any] = []
    monkeypatch.setattr("onmt_llm.chat.launch.check_server", lambda *address, **more: found.append(address))
    monkeypatch.setattr("onmt_llm.chat.page.build_app", lambda responders, **headings: (responders, headings))

    def launch(app: Any, **server: Any) -> None:
        answers = []
        for responder in app[0]:
            ticket = responder.submit([Message("user", "w1")], responder.settings, notify=lambda: None).ticket
            answers.append(ticket.result(60))
        found.append((app, server, answers))

    monkeypatch.setattr("onmt_llm.chat.launch.launch", launch)
    assert main(words) == 0
    address, (app, server, answers) = found
    return address, app, server, answers


def test_a_page_is_served_over_the_model(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["-inference_config_file", config, "-inference_mode", "py", "-server_port", "7001"]
    address, (responders, headings), server, answers = served(
        monkeypatch, [*words, "-max_context_length", "512", "-system_prompt", "Be brief."]
    )
    assert address == ("127.0.0.1", 7001) == (server["server_name"], server["server_port"]) and server["users"] == {}
    assert headings["title"] == "Chat with tiny" and "PyTorch" in headings["subtitle"] and "512" in headings["subtitle"]
    assert headings["system"] == "Be brief." and responders[0].max_context_length == 512
    assert responders[0].settings.max_tokens == 8 and len(answers) == 1


def test_two_models_are_compared(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tiny.write_checkpoint(tmp_path / "tuned", tiny.llama(), seed=1)
    users = tmp_path / "users"
    users.write_text("ann:secret\n")
    words = ["-inference_config_file", config, "-compare_model", str(other), "-users_file", str(users)]
    _, (responders, headings), server, (one, two) = served(monkeypatch, words)
    assert headings["title"] == "tiny and tuned" and [each.name for each in responders] == ["tiny", "tuned"]
    assert one[0].text != two[0].text and server["users"] == {"ann": "secret"}


def test_a_translation_model_is_not_compared(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("onmt_llm.chat.launch.check_server", lambda *address, **more: None)
    other = tiny.write_checkpoint(tmp_path / "translator", tiny.seq2seq())
    assert main(["-inference_config_file", config, "-compare_model", str(other)]) == 2
    assert "'compare_model' must not be given for a model that translates" in capsys.readouterr().err


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
