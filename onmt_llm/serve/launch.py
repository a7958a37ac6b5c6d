"""Runs the app until a signal stops it.

The server runs in a thread of its own, so that signals are handled here and not by uvicorn, which closes its port at
once: load balancers would see refused connections instead of "not ready".
"""

from __future__ import annotations

import logging
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from onmt_llm.errors import ConfigError, OnmtLlmError
from onmt_llm.log import logger
from onmt_llm.serve.app import ServerState
from onmt_llm.serve.models import ModelPool

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_BACKLOG = 2048
_POLL_SECONDS = 0.2
_CLOSING_SECONDS = 2
"""Time for responses that are still being sent when the port is closed."""
_HANGUP: int | None = getattr(signal, "SIGHUP", None)


class _Interrupted(BaseException):
    """The server is to stop while it loads models."""


def open_port(host: str, port: int) -> socket.socket:
    """Take the port, before minutes are spent on loading models.

    Raises:
        ConfigError: It is not available.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Only where the protocol is named, asyncio switches off Nagle's algorithm, with which the body of a response waits
    # until the client has acknowledged its head: 40 ms on Linux.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"The server must be able to listen on {host}, port {port}, but cannot: {error.strerror or error}.",
            hint="choose another -port",
        ) from error
    if host not in LOOPBACK:
        logger.warning("The server listens on %s: everyone who can reach this machine can use it.", host)
    return listener


class HttpServer:
    """uvicorn in a thread.

    Args:
        app: Answers.
        listener: The port.
    """

    def __init__(self, app: ASGIApp, listener: socket.socket) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_graceful_shutdown=_CLOSING_SECONDS,
        )
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), name="http")
        self.host, self.port = listener.getsockname()[:2]

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        """Start to answer."""
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            self._thread.join(0.01)

    def stop(self) -> None:
        """Close the port, and cancel what is still being answered after a moment."""
        self._server.should_exit = True
        self._thread.join()


def launch(
    app: ASGIApp,
    listener: socket.socket,
    *,
    models: ModelPool,
    state: ServerState,
    drain_seconds: float,
    reload: Callable[[], Any],
) -> None:
    """Serve until SIGTERM or SIGINT: then refuse new requests, finish the accepted ones, and return.

    If models are being loaded or reloaded, that ends at once. SIGHUP reloads the models. A second SIGTERM or SIGINT
    cancels the accepted requests.

    Args:
        app: From `build_app`.
        listener: From `open_port`.
        models: Loaded while the server already tells that it is alive.
        state: That of the app.
        drain_seconds: Time that requests have to finish.
        reload: Reloads the models.

    Raises:
        OnmtLlmError: A model cannot be loaded.
    """
    state.is_ready = False
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    is_loading = threading.Event()

    def put(number: int, frame: FrameType | None) -> None:
        if number != _HANGUP and is_loading.is_set():
            is_loading.clear()
            raise _Interrupted
        if number != _HANGUP or not state.is_stopping:
            signals.put(number)

    def interruptible(load: Callable[[], Any]) -> Any:
        is_loading.set()
        try:
            return load()
        finally:
            is_loading.clear()

    server = HttpServer(app, listener)
    server.start()
    before: dict[int, Any] = {}
    try:
        for number in filter(None, (signal.SIGTERM, signal.SIGINT, _HANGUP)):
            before[number] = signal.signal(number, put)
        interruptible(models.load_all)
        state.is_ready = True
        logger.info("Serving at http://%s:%d (Ctrl+C stops it).", server.host, server.port)
        while server.is_alive and not _asked_to_stop(signals, lambda: interruptible(reload)):
            continue
    except _Interrupted:
        logger.info("No more models are loaded, since the server is stopped.")
    finally:
        state.is_stopping = True
        logger.info("Stopping: no new requests are taken, and those that were accepted are finished.")
        _drain(models, signals, drain_seconds)
        server.stop()
        models.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def _asked_to_stop(signals: queue.SimpleQueue[int], reload: Callable[[], Any]) -> bool:
    """Wait a moment for a signal, and heed it."""
    try:
        number = signals.get(timeout=_POLL_SECONDS)
    except queue.Empty:
        return False
    if number == _HANGUP:
        try:
            logger.info("Reloaded: %s.", ", ".join(reload()) or "no model was in memory")
        except OnmtLlmError as error:
            logger.error("The models stay as they were, because: %s", error)
        return False
    return True


def _drain(models: ModelPool, signals: queue.SimpleQueue[int], seconds: float) -> None:
    """Wait until nothing is being answered. The port stays open, so that clients learn that the server stops."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and signals.empty() and not models.is_idle:
        time.sleep(_POLL_SECONDS)
