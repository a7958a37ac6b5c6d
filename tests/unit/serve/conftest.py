"""Servers over tiny models, in a thread, and clients for them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

import tiny
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.generate.open import open_engine
from onmt_llm.releasing import release
from onmt_llm.serve.app import ServerSettings, ServerState, build_app
from onmt_llm.serve.launch import HttpServer, open_port
from onmt_llm.serve.models import ModelPool, ModelSpec

SHORT = GenerationConfig(max_length=8)


class Server:
    """A running server.

    Attributes:
        url: Where it listens.
        pool: Its models.
        state: Whether it takes requests.
        http: A client of this address.
        records: Lines of the access log.
    """

    def __init__(self, pool: ModelPool, settings: dict[str, Any]) -> None:
        self.pool, self.state = pool, ServerState()
        self.records: list[dict[str, Any]] = []
        settings = {"write_record": lambda line: self.records.append(json.loads(line)), **settings}
        app = build_app(pool, ServerSettings(**settings), state=self.state)
        self.server = HttpServer(app, open_port("127.0.0.1", 0), drain_seconds=1)
        self.server.start()
        self.url = f"http://127.0.0.1:{self.server.port}"
        self.http = httpx.Client(base_url=self.url, timeout=60)

    def close(self) -> None:
        self.http.close()
        self.server.stop()
        self.pool.close()

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.http.post(path, json=body)

    def chat(self, text: str = "Hi", **body: Any) -> httpx.Response:
        message = {"role": "user", "content": text}
        return self.post("/v1/chat/completions", **{"model": "torch", "messages": [message], **body})

    def complete(self, prompt: Any = "Hi", **body: Any) -> httpx.Response:
        return self.post("/v1/completions", **{"model": "torch", "prompt": prompt, **body})

    def openai(self, **options: Any) -> Any:
        """The official client."""
        from openai import OpenAI

        return OpenAI(**{"base_url": f"{self.url}/v1", "api_key": "unused", "max_retries": 0, **options})


Start = Callable[..., AbstractContextManager[Server]]


@contextmanager
def running(
    specs: list[ModelSpec], *, idle_seconds: float = 0, max_queue: int = 64, **settings: Any
) -> Iterator[Server]:
    """A server of these models."""
    server = Server(ModelPool(specs, idle_seconds=idle_seconds, max_queue=max_queue), settings)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def start() -> Start:
    return running


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a chat model (`torch`), its release (`ct2`), and a translation model (`mt`)."""
    folder = tmp_path_factory.mktemp("served")
    checkpoint = tiny.write_chat_model(folder / "torch")
    release(checkpoint, folder / "ct2", text="some text to verify")
    tiny.write_checkpoint(folder / "mt", tiny.seq2seq())
    return folder


@pytest.fixture(scope="session")
def spec(models: Path) -> Callable[..., ModelSpec]:
    """Makes the specification of a model in that folder."""

    def make(name: str, **fields: Any) -> ModelSpec:
        opener = partial(open_engine, models / name, device="cpu", threads=1)
        return ModelSpec(name, **{"open": opener, "generation": SHORT, **fields})

    return make


@pytest.fixture(scope="session")
def server(spec: Callable[..., ModelSpec]) -> Iterator[Server]:
    """A server of all three models, without keys."""
    with running([spec("torch"), spec("ct2"), spec("mt")]) as server:
        yield server


class Gate:
    """An engine that waits before each token until it is open, around a real one."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.opened = threading.Event()
        self.opened.set()
        self.steps = 0

    @property
    def codec(self) -> Any:
        return self._engine.codec

    def for_languages(self, src: str = "", tgt: str = "") -> Gate:
        return self

    def stream(self, prompt: Any, options: Any, *, should_stop: Any = None) -> Iterator[Any]:
        from onmt_llm.generate.engine import Delta

        for _ in range(options.max_length):
            while not self.opened.wait(0.005):
                if should_stop and should_stop():
                    break
            if should_stop and should_stop():
                yield Delta("", 0, "stopped")
                return
            self.steps += 1
            yield Delta("x", 1)
        yield Delta("", 0, "length")
