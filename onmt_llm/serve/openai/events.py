"""Server-sent events, and the parts that responses of both APIs have."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi.responses import StreamingResponse

from onmt_llm.serve.errors import Refusal, refusal_of
from onmt_llm.serve.models import ServedModel

_DONE = "data: [DONE]\n\n"


def heading(kind: str, prefix: str, model: ServedModel) -> dict[str, Any]:
    """The fields with which a response, and every chunk of a stream, begins."""
    number = f"{prefix}-{uuid.uuid4().hex}"
    return {"id": number, "object": kind, "created": int(time.time()), "model": model.name}


def usage(prompt_tokens: int, answer_tokens: int) -> dict[str, int]:
    """Tokens of a request and of its answers."""
    total = prompt_tokens + answer_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": answer_tokens, "total_tokens": total}


def event_stream(chunks: AsyncIterator[dict[str, Any]]) -> StreamingResponse:
    """A stream of JSON objects; an error after its start is its last one."""
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(_events(chunks), media_type="text/event-stream", headers=headers)


async def _events(chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    try:
        async for chunk in chunks:
            yield f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
    except Exception as error:
        yield f"data: {json.dumps(error_body(refusal_of(error)))}\n\n"
    yield _DONE


def error_body(refusal: Refusal) -> dict[str, Any]:
    """An error in OpenAI's form."""
    if refusal.status == 429:
        kind = "rate_limit_error"
    else:
        kind = "invalid_request_error" if refusal.status < 500 else "server_error"
    error = {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}
    return {"error": error}
