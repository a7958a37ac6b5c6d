"""The pool of models: loading, unloading and replacing them while they answer."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from onmt_llm.errors import CheckpointError, ConfigError
from onmt_llm.generate.scheduling.scheduler import Overloaded
from onmt_llm.serve.app import ServerSettings, ServerState, build_app
from onmt_llm.serve.launch import launch, open_port
from onmt_llm.serve.models import ModelPool, ModelSpec, UnknownModel
from serving import Gate, running, wait_for


def broken(spec: ModelSpec) -> ModelSpec:
    def fail() -> Any:
        raise CheckpointError("The weights must be whole, but are not.")

    return replace(spec, open=fail)


def test_a_model_is_loaded_when_it_is_needed_and_unloaded_when_it_is_not(spec: Callable[..., ModelSpec]) -> None:
    with running([spec("torch"), spec("mt", load_at_start=False)], idle_seconds=0.2) as server:
        server.pool.load_all()
        assert [model.name for model in server.pool.loaded] == ["torch"]
        with ThreadPoolExecutor(8) as clients:
            answers = list(clients.map(lambda _: server.complete("w3", model="mt").status_code, range(8)))
        assert answers == [200] * 8
        deadline = time.monotonic() + 20
        while server.pool.loaded and time.monotonic() < deadline:
            time.sleep(0.05)
        assert server.pool.loaded == []
        assert server.complete("w3", model="mt").status_code == 200
        assert server.pool.unload("mt")
        assert not server.pool.unload("mt")


def test_a_replaced_model_finishes_what_it_has_begun(
    gated: ModelSpec, gate: Gate, spec: Callable[..., ModelSpec]
) -> None:
    with running([gated]) as server, ThreadPoolExecutor(1) as clients:
        server.complete()
        old = server.pool.loaded[0]
        gate.opened.clear()
        begun = clients.submit(server.complete)
        while old.scheduler.statistics.running == 0:
            time.sleep(0.005)
        assert server.pool.reload([spec("torch"), spec("mt", load_at_start=False)]) == ["torch"]
        assert server.pool.names == ["torch", "mt"]
        assert server.pool.loaded[0] is not old
        assert server.complete().json()["choices"][0]["text"] != "x" * 8  # the new one answers while the old one waits
        assert not begun.done()
        assert not server.pool.is_idle
        gate.opened.set()
        assert begun.result().json()["choices"][0]["text"] == "x" * 8
        wait_for(lambda: server.pool.is_idle)


def test_a_version_that_cannot_be_loaded_changes_nothing(spec: Callable[..., ModelSpec]) -> None:
    with running([spec("torch"), spec("mt")]) as server:
        server.pool.load_all()
        before, threads = server.pool.loaded, threading.active_count()
        with pytest.raises(CheckpointError):
            server.pool.reload([spec("torch"), broken(spec("mt"))])
        with pytest.raises(ConfigError):
            server.pool.reload([spec("torch", template="no such template"), spec("mt")])
        assert server.pool.loaded == before
        wait_for(lambda: threading.active_count() <= threads)  # no scheduler keeps a refused model
        assert server.complete().status_code == 200


def test_a_model_that_cannot_be_loaded_is_unavailable(spec: Callable[..., ModelSpec]) -> None:
    with running([broken(spec("torch"))]) as server:
        refused = server.complete()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_unusable")
        assert "weights" not in refused.text
        assert server.complete().status_code == 503


def test_a_server_that_still_loads_its_models_stops_at_once(spec: Callable[..., ModelSpec]) -> None:
    def opening() -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return spec("torch").open()

    pool, state = ModelPool([replace(spec("torch"), open=opening)]), ServerState()
    app, before = build_app(pool, ServerSettings(), state=state), signal.getsignal(signal.SIGTERM)
    launch(app, open_port("127.0.0.1", 0), models=pool, state=state, drain_seconds=5, reload=pool.reload)
    assert (state.is_ready, state.is_stopping, pool.loaded) == (False, True, [])
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_server_that_reloads_its_models_stops_at_once(spec: Callable[..., ModelSpec]) -> None:
    opened: list[str] = []

    def opening() -> Any:
        if opened:
            os.kill(os.getpid(), signal.SIGTERM)
        opened.append("")
        return spec("torch").open()

    pool, state = ModelPool([replace(spec("torch"), open=opening)]), ServerState()

    def hang_up() -> None:
        wait_for(lambda: state.is_ready)
        os.kill(os.getpid(), signal.SIGHUP)

    app = build_app(pool, ServerSettings(), state=state)
    with ThreadPoolExecutor(1) as other:
        state.is_ready = False
        other.submit(hang_up)
        launch(app, open_port("127.0.0.1", 0), models=pool, state=state, drain_seconds=5, reload=pool.reload)
    assert (len(opened), pool.loaded, pool.is_idle) == (1, [], True)


def test_models_that_do_not_exist_are_named_by_the_error(server: Any) -> None:
    with pytest.raises(UnknownModel, match="torch, ct2, mt"):
        server.pool.spec("bert")
    assert server.http.get("/v1/models/bert").status_code == 404


def opened_slowly(spec: ModelSpec) -> tuple[ModelSpec, threading.Event, threading.Event]:
    """A model that says when it begins to be loaded, and waits until it may be."""
    started, go = threading.Event(), threading.Event()

    def opening() -> Any:
        started.set()
        go.wait(20)
        return spec.open()

    return replace(spec, open=opening), started, go


def test_few_requests_wait_for_a_model_that_is_loaded(spec: Callable[..., ModelSpec]) -> None:
    slow, started, go = opened_slowly(spec("torch"))
    pool = ModelPool([slow], max_queue=1)

    async def use() -> str:
        async with pool.use("torch") as model:
            return model.name

    async def scenario() -> None:
        first = asyncio.create_task(use())
        await asyncio.to_thread(started.wait, 20)
        with pytest.raises(Overloaded):
            await use()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        go.set()
        assert await use() == "torch"

    asyncio.run(scenario())
    pool.close()  # would wait endlessly if the cancelled request still used the model


def test_a_server_that_stops_while_a_model_is_loaded_ends(spec: Callable[..., ModelSpec]) -> None:
    slow, started, go = opened_slowly(spec("torch"))
    pool = ModelPool([slow])

    async def use() -> None:
        async with pool.use("torch"):
            pass

    async def scenario() -> None:
        request = asyncio.create_task(use())
        await asyncio.to_thread(started.wait, 20)
        assert not pool.is_idle
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request

    asyncio.run(scenario())
    go.set()  # the model is loaded when the event loop has ended
    pool.close()  # would wait endlessly if the cancelled request still used the model
    assert pool.is_idle
