"""The routes of OpenAI's API."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any, Protocol, TypeVar

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from onmt_llm.errors import ConfigError, DataError, UnsupportedError
from onmt_llm.generate.scheduling.ticket import Request
from onmt_llm.serve.api import Api
from onmt_llm.serve.models import ModelPool, ServedModel
from onmt_llm.serve.openai.chat import ChatJob
from onmt_llm.serve.openai.completions import CompletionJob
from onmt_llm.serve.openai.events import error_body, event_stream
from onmt_llm.serve.openai.options import naming_parameter
from onmt_llm.serve.openai.parameters import ChatParameters, CompletionParameters, Parameters
from onmt_llm.serve.service import Limits, PendingAnswers, Service, UntilSent

P = TypeVar("P", bound=Parameters)


class _Job(Protocol):
    """A request that was checked: `ChatJob` or `CompletionJob`."""

    @property
    def model(self) -> ServedModel: ...

    @property
    def requests(self) -> list[Request]: ...

    async def response(self, answers: PendingAnswers) -> dict[str, Any]: ...

    def chunks(self, answers: PendingAnswers) -> Any: ...


def openai_api(service: Service) -> Api:
    """The API."""
    router = APIRouter(prefix="/v1", tags=["openai"])

    @router.get("/models")
    async def list_models() -> dict[str, Any]:
        """The models."""
        return {"object": "list", "data": [_card(name, service.models) for name in service.models.names]}

    @router.get("/models/{name:path}")
    async def retrieve_model(name: str) -> dict[str, Any]:
        """One model."""
        return _card(name, service.models)

    @router.post("/chat/completions")
    async def create_chat_completion(parameters: ChatParameters, until_sent: UntilSent) -> Response:
        """Answer a conversation."""
        return await _answer(service, ChatJob.of, parameters, until_sent)

    @router.post("/completions")
    async def create_completion(parameters: CompletionParameters, until_sent: UntilSent) -> Response:
        """Continue a text, or translate it."""
        return await _answer(service, CompletionJob.of, parameters, until_sent)

    return Api(("/v1",), router, error_body)


async def _answer(
    service: Service, build: Callable[[P, ServedModel, Limits], _Job], parameters: P, until_sent: AsyncExitStack
) -> Response:
    """Check a request in a thread, since it tokenises the prompt, and answer it."""
    model = await until_sent.enter_async_context(service.models.use(parameters.model))
    model.scheduler.check_room()
    with _naming_parameters():
        job = await asyncio.to_thread(build, parameters, model, service.limits)
        answers = await until_sent.enter_async_context(service.answer(job.model, job.requests))
        if parameters.stream:
            return event_stream(job.chunks(answers))
        return JSONResponse(await job.response(answers))


def _card(name: str, models: ModelPool) -> dict[str, Any]:
    models.spec(name)
    created = next((model.created for model in models.loaded if model.name == name), 0)
    return {"id": name, "object": "model", "created": created, "owned_by": "onmt_llm"}


@contextmanager
def _naming_parameters() -> Iterator[None]:
    """Errors about options become refusals that name parameters."""
    try:
        yield
    except (ConfigError, DataError, UnsupportedError) as error:
        raise naming_parameter(error) from error
