"""The app: all APIs over the same models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.types import ASGIApp, Scope

from onmt_llm.errors import OnmtLlmError
from onmt_llm.serve.api import Api
from onmt_llm.serve.connection import Guarded, Recorded
from onmt_llm.serve.errors import Refusal, invalid_body, refusal_of, stopping
from onmt_llm.serve.keys import ApiKeys, bearer_key
from onmt_llm.serve.libretranslate import libretranslate_api
from onmt_llm.serve.metrics import Metrics
from onmt_llm.serve.models import ModelPool
from onmt_llm.serve.openai.routes import openai_api
from onmt_llm.serve.opennmt import opennmt_api
from onmt_llm.serve.records import WriteLine
from onmt_llm.serve.service import Limits, Service
from onmt_llm.serve.status import status_api
from onmt_llm.version import __version__

_ALWAYS_OPEN = ("/health", "/ready", "/metrics", "/admin/reload")


@dataclass(frozen=True)
class ServerSettings:
    """How models are served.

    Attributes:
        limits: What requests may ask for.
        keys: Keys of which each request must have one; none = everyone is served.
        admin_keys: Keys that may reload models; none = models cannot be reloaded.
        cors_origins: Origins whose pages may send requests from a browser.
        write_record: Writes a line of the access log.
        url_root: What the paths of OpenNMT-py's API begin with.
    """

    limits: Limits = field(default_factory=Limits)
    keys: ApiKeys = field(default_factory=ApiKeys)
    admin_keys: ApiKeys = field(default_factory=ApiKeys)
    cors_origins: Sequence[str] = ()
    write_record: WriteLine = lambda line: None
    url_root: str = "/translator"


class ServerState:
    """Whether the server takes requests. `launch` and the routes share it.

    Attributes:
        is_ready: The models are loaded, and the server is not stopping.
        is_stopping: No new requests are taken.
    """

    def __init__(self) -> None:
        self.is_ready = True
        self.is_stopping = False


def build_app(
    models: ModelPool,
    settings: ServerSettings,
    *,
    state: ServerState | None = None,
    reload: Callable[[], list[str]] | None = None,
) -> FastAPI:
    """Build the app, to be run by `launch` or by any ASGI server.

    Args:
        models: The models; the app does not close them.
        settings: Limits, keys, log.
        state: Whether requests are taken; None = always.
        reload: Reloads the models, and returns their names; None = `models.reload`.
    """
    state = state or ServerState()
    service = Service(models, settings.limits, Metrics(models))
    apis = [  # errors of paths that belong to none have the form of the first
        openai_api(service),
        opennmt_api(service, keys=settings.keys, admin_keys=settings.admin_keys, url_root=settings.url_root),
        libretranslate_api(service, settings.keys),
    ]
    status = status_api(
        service,
        is_ready=lambda: state.is_ready and not state.is_stopping,
        admin_keys=settings.admin_keys,
        reload=reload or models.reload,
        error_body=apis[0].error_body,
    )

    def api_of(path: str) -> Api:
        return next((api for api in (status, *apis) if api.has(path)), apis[0])

    def respond(scope: Scope, refusal: Refusal) -> ASGIApp:
        return JSONResponse(api_of(scope["path"]).error_body(refusal), refusal.status, refusal.headers)

    def refuse(path: str, headers: Headers) -> Refusal | None:
        if path in _ALWAYS_OPEN:
            return None
        if state.is_stopping:
            return stopping()
        if settings.keys and api_of(path).needs_key and not _has_key(settings.keys, headers):
            message = "The header Authorization must carry an API key of this server (`Bearer KEY`), but does not."
            return Refusal(401, message, code="invalid_api_key")
        return None

    async def on_error(request: HttpRequest, error: Exception) -> JSONResponse:
        refusal = _refusal(error)
        return JSONResponse(api_of(request.url.path).error_body(refusal), refusal.status, refusal.headers)

    app = FastAPI(
        title="onmt_llm", version=__version__, docs_url=None, redoc_url=None, lifespan=_lifespan(models)
    )  # the pages of documentation would load scripts from other servers
    for api in (*apis, status):
        app.include_router(api.router)
    for kind in (RequestValidationError, HTTPException, Refusal, OnmtLlmError):
        app.add_exception_handler(kind, on_error)
    # the last one is the outermost
    app.add_middleware(Guarded, refuse=refuse, body_bytes=settings.limits.body_bytes, respond=respond)
    if settings.cors_origins:
        origins = list(settings.cors_origins)
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(Recorded, write=settings.write_record, metrics=service.metrics, respond=respond)
    return app


def _has_key(keys: ApiKeys, headers: Headers) -> bool:
    return keys.accepts(bearer_key(headers.get("authorization", "")))


def _refusal(error: Exception) -> Refusal:
    if isinstance(error, RequestValidationError):
        return invalid_body(error.errors())
    if isinstance(error, HTTPException):
        if error.status_code == 404:
            return Refusal(404, "The path must be one of this server's, but is not.", code="not_found")
        return Refusal(error.status_code, f"{error.detail}.")
    return refusal_of(error)


def _lifespan(models: ModelPool) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(_unload_idle(models))
        yield
        watching.cancel()

    return lifespan


async def _unload_idle(models: ModelPool) -> None:
    while True:
        # asked each time: a reload may set the first idle time
        await asyncio.sleep(min(60.0, models.shortest_idle_seconds / 4 or 60.0))
        await asyncio.to_thread(models.unload_idle)
