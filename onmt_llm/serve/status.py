"""The routes for those who run the server: health, readiness, metrics, and the reload of models."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request, Response

from onmt_llm.serve.api import Api
from onmt_llm.serve.errors import Refusal
from onmt_llm.serve.keys import ApiKeys, bearer_key
from onmt_llm.serve.metrics import CONTENT_TYPE
from onmt_llm.serve.service import Service


def status_api(
    service: Service,
    *,
    is_ready: Callable[[], bool],
    admin_keys: ApiKeys,
    reload: Callable[[], list[str]],
    error_body: Callable[[Refusal], dict[str, Any]],
) -> Api:
    """The routes.

    Args:
        service: The models and figures.
        is_ready: Whether new requests are welcome.
        admin_keys: Keys that may reload models.
        reload: Reloads them, and returns their names.
        error_body: The form of errors.
    """
    router = APIRouter(tags=["status"])

    @router.get("/health")
    async def health() -> dict[str, str]:
        """The process lives."""
        return {"status": "ok"}

    @router.get("/ready")
    async def ready() -> dict[str, Any]:
        """New requests are welcome; 503 while models are loaded at the start, and while the server stops."""
        if not is_ready():
            raise Refusal(503, "The server must have loaded its models and must not be stopping.", code="not_ready")
        return {"status": "ready", "loaded": [model.name for model in service.models.loaded]}

    @router.get("/metrics")
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    @router.post("/admin/reload")
    async def reload_models(request: Request) -> dict[str, list[str]]:
        """Load the models again, check them, and replace the old ones; with an admin key."""
        if not admin_keys.accepts(bearer_key(request.headers.get("authorization", ""))):
            raise Refusal(401, "The header Authorization must carry an admin key.", code="invalid_api_key")
        return {"reloaded": await asyncio.to_thread(reload)}

    return Api(("/health", "/ready", "/metrics", "/admin"), router, error_body, needs_key=False)
