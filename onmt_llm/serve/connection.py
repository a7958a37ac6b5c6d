"""What happens to every HTTP request before and after its route: number, log, key, size, and a client that leaves.

These are plain ASGI applications around the app, since Starlette's middleware class hides that a client has gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from onmt_llm.serve import records
from onmt_llm.serve.errors import Refusal, refusal_of, stopping
from onmt_llm.serve.metrics import Metrics
from onmt_llm.serve.records import RequestRecord, WriteLine

CLIENT_GONE = 499
"""The status in log and metrics of a request whose client left, as in nginx."""
_BODY_SECONDS = 60.0
"""Time limit for a client to send its body."""

Respond = Callable[[Scope, Refusal], ASGIApp]
"""Makes the response of a refusal, in the form of the API to which the path belongs."""


class Recorded:
    """Gives every request a number, and writes it to log and metrics when it is over.

    Args:
        app: Answers.
        write: Writes a line of the access log.
        metrics: Counts requests.
        respond: Makes the response to an unexpected error.
    """

    def __init__(self, app: ASGIApp, *, write: WriteLine, metrics: Metrics, respond: Respond) -> None:
        self._app, self._write, self._metrics, self._respond = app, write, metrics, respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        record = RequestRecord(
            records.request_id(Headers(scope=scope).get("x-request-id", "")), scope["method"], scope["path"]
        )
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", record.id.encode())]}
            await send(message)

        token = records.current.set(record)
        try:
            await self._app(scope, receive, send_with_id)
        except ClientGone:
            status = CLIENT_GONE
        except asyncio.CancelledError:  # uvicorn stops, and its time for running requests is over
            if not status:
                await self._respond(scope, stopping())(scope, receive, send_with_id)
        except Exception as error:
            refusal = refusal_of(error)
            if not status:
                await self._respond(scope, refusal)(scope, receive, send_with_id)
        finally:
            records.current.reset(token)
            route = getattr(scope.get("route"), "path", "unknown")  # not the path, which a client may make up
            self._metrics.count_request(record.method, route, status)
            self._write(record.line(status))


class ClientGone(Exception):
    """The client closed the connection before it had the whole response."""


class Guarded:
    """Refuses what must not reach a route, reads the body, and ends the work for a client that leaves.

    Args:
        app: Answers.
        refuse: Gives the refusal of a request by its path and headers, or None.
        body_bytes: Maximum number of bytes of a body.
        respond: Makes the response of a refusal.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        refuse: Callable[[str, Headers], Refusal | None],
        body_bytes: int,
        respond: Respond,
    ) -> None:
        self._app, self._refuse, self._body_bytes, self._respond = app, refuse, body_bytes, respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        refusal = self._refuse(scope["path"], headers)
        body = b""
        if refusal is None:
            try:
                body = await asyncio.wait_for(self._read(headers, receive), _BODY_SECONDS)
            except Refusal as error:
                refusal = error
            except asyncio.TimeoutError:  # before Python 3.11, not the built-in one
                refusal = Refusal(408, f"The body must arrive within {_BODY_SECONDS:.0f} s, but did not.")
        if refusal is not None:
            return await self._respond(scope, refusal)(scope, receive, send)
        await _until_client_leaves(self._app, scope, body, receive, send)

    async def _read(self, headers: Headers, receive: Receive) -> bytes:
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._body_bytes:
            raise self._too_large(f"it has {int(length):,}")
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            body += message.get("body", b"")
            if len(body) > self._body_bytes:
                raise self._too_large("it has more")
            if not message.get("more_body", False):
                return bytes(body)

    def _too_large(self, found: str) -> Refusal:
        message = f"The body must have at most {self._body_bytes:,} bytes, but {found}."
        return Refusal(413, message, code="body_too_large")


async def _until_client_leaves(app: ASGIApp, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
    """Call an app with a body that has been read, and cancel it when the client leaves.

    Raises:
        ClientGone: It has left.
    """
    gone = asyncio.Event()
    unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        if unread:
            return unread.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            continue
        gone.set()

    working: asyncio.Task[Any] = asyncio.ensure_future(_as_coroutine(app(scope, replay, send)))
    watching = asyncio.ensure_future(watch())
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            working.cancel()
            await asyncio.wait((working,))
            raise ClientGone
        working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _as_coroutine(awaitable: Awaitable[None]) -> None:
    await awaitable
