"""Servers in a thread, clients for them, and an engine that waits: what tests of the server share."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from onmt_llm.generate.engine import Delta
from onmt_llm.serve.app import ServerSettings, ServerState, build_app
from onmt_llm.serve.launch import HttpServer, open_port
from onmt_llm.serve.models import ModelPool, ModelSpec


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
        self.server = HttpServer(app, open_port("127.0.0.1", 0))
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


def wait_for(condition: Callable[[], Any], seconds: float = 10) -> float:
    """Seconds until a condition holds."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < seconds
        time.sleep(0.005)
    return time.monotonic() - begun


class Gate:
    """An engine that waits before each token until it is open, around a real one."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.opened = threading.Event()
        self.opened.set()
        self.failure: Exception | None = None

    @property
    def codec(self) -> Any:
        return self._engine.codec

    def for_languages(self, src: str = "", tgt: str = "") -> Gate:
        return self

    def stream(self, prompt: Any, options: Any, *, should_stop: Any = None) -> Iterator[Any]:
        for _ in range(options.max_length):
            while not self.opened.wait(0.005):
                if should_stop and should_stop():
                    break
            if should_stop and should_stop():
                yield Delta("", 0, "stopped")
                return
            if self.failure is not None:
                raise self.failure
            yield Delta("x", 1)
        yield Delta("", 0, "length")


def until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until something holds that the server does soon after it has answered."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it does not hold in time"
        time.sleep(0.01)
