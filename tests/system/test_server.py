"""`onmt_llm_serve` as a process: its page of instructions, its signals, and what it refuses before it listens."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

import tiny
from onmt_llm.cli.serve import main

PAGE = Path(__file__).parents[2] / "docs/how-to/serve.md"
BIN = Path(sys.executable).parent
LONG = 600
"""Tokens of an answer that takes long enough to send signals meanwhile."""


class Process:
    """A server in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.config, self._log = folder / "serve.yaml", folder / "log"
        self.write()
        with open(self._log, "wb") as log:
            words = [sys.executable, "-m", "onmt_llm.cli.serve", "-config", str(self.config)]
            self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=log)
        self.url = self.wait_for_log(r"Serving at (http://[\d.:]+)")[1]

    def write(self, **changes: Any) -> None:
        """Write the configuration; `changes` are further models."""
        release = {"model": str(self.config.with_name("release")), "max_context_length": 10_000}
        models = {"release": {**release, "engine": {"threads": 1}}, **changes}
        self.config.write_text(yaml.safe_dump({"models": models, "port": 0}))

    def wait_for_log(self, pattern: str) -> re.Match[str]:
        deadline = time.monotonic() + 120
        while not (found := re.search(pattern, self._log.read_text())):
            assert self.process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.05)
        return found

    def names(self) -> list[str]:
        return [model["id"] for model in httpx.get(f"{self.url}/v1/models").json()["data"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_chat_model(tmp_path_factory.mktemp("server") / "release").parent


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Process]:
    server = Process(folder)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)


@pytest.mark.slow
def test_the_examples_of_the_page_run(server: Process) -> None:
    commands = [(["bash", "-c"], blocks("bash")[0]), ([sys.executable, "-c"], blocks("python")[0])]
    for words, example in commands:
        code = example.replace("http://127.0.0.1:8000", server.url).replace('"max_tokens": 40', '"max_tokens": 5')
        done = subprocess.run([*words, code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout
    answer = subprocess.run(
        ["bash", "-c", blocks("bash")[0].replace("http://127.0.0.1:8000", server.url)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(answer.stdout)["choices"][0]["message"]["role"] == "assistant"


def test_the_configuration_of_the_page_is_valid(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = blocks("yaml")[0]
    for path in re.findall(r" model: (\S+)", text):
        text = text.replace(path, str(folder / "release"))
    (tmp_path / "serve.yaml").write_text(text)
    assert main(["-config", str(tmp_path / "serve.yaml"), "-print_config"]) == 0
    assert "idle_unload_seconds: 3600" in capsys.readouterr().out


@pytest.mark.slow
def test_signals_reload_and_stop(server: Process) -> None:
    server.write(second={"model": str(server.config.with_name("nothing"))})
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_log("stay as they were, because: .*'?models.second'?.*nothing")
    assert server.names() == ["release"]
    server.write(second={"model": str(server.config.with_name("release")), "load_at_start": False})
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_log("Reloaded: release")
    assert server.names() == ["release", "second"]

    body = {"model": "release", "prompt": "a", "max_tokens": LONG, "min_tokens": LONG, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=120) as response:
        lines = response.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_log("Stopping")
        refused = httpx.post(f"{server.url}/v1/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    assert server.process.wait(60) == 0


def test_mistakes_are_found_before_a_model_is_loaded(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(folder / "release")
    (tmp_path / "serve.yaml").write_text(
        f"models:\n  a:\n    model: {model}\n    templat: x\n  b:\n    model: nowhere\n"
        f"  c:\n    model: {model}\n    generation:\n      max_length: 0\nprot: 1\n"
    )
    assert main(["-config", str(tmp_path / "serve.yaml")]) != 0
    error = capsys.readouterr().err
    for part in ("did you mean 'template'", "nowhere", "max_length' must be >= 1", "did you mean 'port'"):
        assert part in error
    assert main([]) == 2
    assert "'models' or 'model' must be given" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["-model", model, "-port", str(taken.getsockname()[1])]) == 2
    assert "must be able to listen" in capsys.readouterr().err
