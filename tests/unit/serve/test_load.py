"""Many clients at once, of which some leave: no answer is lost, and none goes to another client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from onmt_llm.config.generate import GenerationConfig
from onmt_llm.generate.open import open_engine
from onmt_llm.serve.models import ModelSpec
from onmt_llm.serve.service import Limits
from serving import Server, running, wait_for

MIXED: list[dict[str, Any]] = [
    {"max_tokens": 5},
    {"max_tokens": 9, "stop": ["e"]},
    {"max_tokens": 12, "repetition_penalty": 1.3},
    {"max_tokens": 7, "min_tokens": 7},
    {"max_tokens": 3, "echo": True},
    {"max_tokens": 8, "top_k": 20, "seed": 3},
]


@pytest.fixture(params=["torch", "ct2"])
def crowded(request: pytest.FixtureRequest, spec: Callable[..., ModelSpec]) -> Iterator[Server]:
    with running([spec(request.param)], max_queue=256, limits=Limits(queue=256)) as server:
        server.pool.load_all()
        yield server


def body(server: Server, client: int) -> dict[str, Any]:
    options = MIXED[client % len(MIXED)]
    if server.pool.names == ["ct2"] and "seed" in options:  # CTranslate2 has no seeds of requests
        options = {"max_tokens": 8}
    return {"model": server.pool.names[0], "prompt": f"Client {client} asks", **options}


def alone(server: Server, models: Path, bodies: list[dict[str, Any]]) -> list[str]:
    """The answers without other clients."""
    texts = [server.post("/v1/completions", **each).json()["choices"][0]["text"] for each in bodies]
    engine = open_engine(models / server.pool.names[0], device="cpu")
    assert (
        texts[0]
        == engine.generate([engine.codec.encode(bodies[0]["prompt"])], GenerationConfig(max_length=5))[0][0].text
    )
    return texts


def ask(server: Server, body: dict[str, Any], number: int) -> str | None:
    """The answer, whole or streamed; None for a client that leaves after the first piece."""
    create = server.openai().completions.create
    extra = {name: body[name] for name in ("top_k", "repetition_penalty", "min_tokens") if name in body}
    usual = {name: value for name, value in body.items() if name not in extra}
    if number % 4 == 0:
        with create(**usual, extra_body=extra, stream=True) as stream:
            next(iter(stream))
        return None
    if number % 4 == 1:
        return "".join(each.choices[0].text for each in create(**usual, extra_body=extra, stream=True))
    return str(create(**usual, extra_body=extra).choices[0].text)


def crowd(server: Server, models: Path, clients: int) -> None:
    bodies = [body(server, client) for client in range(clients)]
    expected = alone(server, models, bodies)
    with ThreadPoolExecutor(clients) as threads:
        answers = list(threads.map(lambda number: ask(server, bodies[number], number), range(clients)))
    wrong = [
        number
        for number, (text, right) in enumerate(zip(answers, expected, strict=True))
        if text is not None and text != right
    ]
    assert wrong == []
    assert answers.count(None) == -(-clients // 4)
    statistics = server.pool.loaded[0].scheduler.statistics
    assert (statistics.failed, statistics.refused) == (0, 0)


def test_sixteen_clients(crowded: Server, models: Path) -> None:
    crowd(crowded, models, 16)


@pytest.mark.slow
def test_sixty_four_clients(crowded: Server, models: Path) -> None:
    crowd(crowded, models, 64)
    server = crowded
    assert server.post("/v1/completions", model=server.pool.names[0], prompt="a").status_code == 200
    wait_for(lambda: server.pool.loaded[0].is_idle(0))
