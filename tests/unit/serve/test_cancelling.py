"""Clients that leave, answers that take too long, and queues that are full."""

from __future__ import annotations

import asyncio
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from onmt_llm.config.generate import GenerationConfig
from onmt_llm.errors import DataError
from onmt_llm.generate.engine import Delta
from onmt_llm.generate.scheduling.ticket import Request, Ticket
from onmt_llm.serve.models import ModelSpec
from onmt_llm.serve.service import Limits, PendingAnswers
from serving import Gate, Server, running, wait_for

ENGINE_FREE_SECONDS = 1.0


def figures(server: Server) -> Any:
    return server.pool.loaded[0].scheduler.statistics


def send(server: Server, body: str) -> socket.socket:
    """Send a request, and do not wait for its answer."""
    connection = socket.create_connection(("127.0.0.1", server.server.port))
    head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    connection.sendall(f"{head}\r\n\r\n{body}".encode())
    return connection


@pytest.mark.parametrize("stream", ["true", "false"])
def test_the_answer_to_a_client_that_leaves_is_cancelled(gated: ModelSpec, gate: Gate, stream: str) -> None:
    with running([gated]) as server:
        server.pool.load_all()
        gate.opened.clear()
        connection = send(server, f'{{"model": "torch", "prompt": "Hi", "stream": {stream}}}')
        wait_for(lambda: figures(server).running == 1)
        connection.close()
        assert wait_for(lambda: figures(server).running == 0) < ENGINE_FREE_SECONDS
        assert figures(server).cancelled == 1
        wait_for(lambda: server.records)
        record = server.records[-1]
        assert record["answers"] == {"cancelled": 1}
        assert record["status"] == 499
        gate.opened.set()
        assert server.complete().json()["choices"][0]["text"] == "x" * 8
        wait_for(lambda: server.pool.loaded[0].is_idle(0))


def test_a_full_queue_is_refused_at_once(gated: ModelSpec, gate: Gate) -> None:
    with running([gated], max_queue=2, limits=Limits(queue=2)) as server, ThreadPoolExecutor(3) as clients:
        server.pool.load_all()
        gate.opened.clear()
        waiting = [clients.submit(server.complete)]
        wait_for(lambda: figures(server).running == 1)  # before it runs, it would take a place in the queue
        waiting += [clients.submit(server.complete) for _ in range(2)]
        wait_for(lambda: figures(server).waiting == 2)
        begun = time.monotonic()
        refused = server.complete()
        assert time.monotonic() - begun < 0.5  # 50 ms on a machine that does nothing else
        assert (refused.status_code, figures(server).refused) == (429, 1)
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        gate.opened.set()
        assert [each.result().status_code for each in waiting] == [200] * 3
        several = server.complete(["a", "b", "c"])
        assert (several.status_code, several.json()["error"]["param"]) == (400, "prompt")


def test_answers_of_which_one_does_not_fit_into_the_queue_are_all_cancelled(gated: ModelSpec, gate: Gate) -> None:
    with running([gated], max_queue=2, limits=Limits(queue=8)) as server:
        server.pool.load_all()
        gate.opened.clear()
        assert server.complete(n=4, temperature=1.0).status_code == 429
        wait_for(lambda: figures(server).running == figures(server).waiting == 0)
        gate.opened.set()
        assert server.complete().status_code == 200


def test_an_answer_ends_when_its_time_is_over(gated: ModelSpec, gate: Gate) -> None:
    with running([gated], limits=Limits(seconds=0.3)) as server:
        server.pool.load_all()
        gate.opened.clear()
        late = server.complete()
        assert (late.status_code, late.json()["choices"][0]["finish_reason"]) == (200, "length")
        chunks = list(server.openai().completions.create(model="torch", prompt="Hi", stream=True))
        assert chunks[-1].choices[0].finish_reason == "length"
        gate.opened.set()


def test_a_server_that_stops_takes_no_requests(gated: ModelSpec) -> None:
    with running([gated]) as server:
        server.state.is_stopping = True
        refused = server.complete()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
        assert server.http.get("/ready").status_code == 503
        assert server.http.get("/health").status_code == 200


def test_an_answer_that_fails_together_with_a_piece_is_an_error() -> None:
    async def scenario() -> None:
        answers = PendingAnswers()
        ticket = Ticket(Request(["x"], GenerationConfig()), notify=answers.notify)
        answers.tickets.append(ticket)
        ticket.push(Delta("x", 1))
        ticket.fail(DataError("The answer must fit into the model, but does not."))
        pieces = answers.deltas()
        assert (await anext(pieces))[1].text == "x"
        with pytest.raises(DataError):
            await anext(pieces)

    asyncio.run(scenario())


def test_an_engine_that_fails_is_an_error_of_the_server(models: Any, gated: ModelSpec, gate: Gate) -> None:
    with running([gated]) as server:
        server.pool.load_all()
        gate.failure = RuntimeError("a secret of the machine")
        whole = server.complete()
        assert (whole.status_code, whole.json()["error"]["code"]) == (500, "internal_error")
        assert "secret" not in whole.text
        with server.http.stream(
            "POST", "/v1/completions", json={"model": "torch", "prompt": "a", "stream": True}
        ) as late:
            events = late.read().decode()
        assert '"server_error"' in events and "secret" not in events
        gate.failure = None
        assert server.complete().status_code == 200
