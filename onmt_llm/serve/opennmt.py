"""The REST API of OpenNMT-py's server: `/translator/translate` and the routes beside it.

`tests/data/opennmt_server.json` records what the original answers. Where it answers with a page for "internal server
error", this one says what is wrong, in the JSON of its other errors.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, Depends, Request
from pydantic import ValidationError

from onmt_llm.config.compat.server import search_options
from onmt_llm.config.compat.translate import translate as translate_options
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.errors import ConfigError
from onmt_llm.generate.alignment import word_pharaoh
from onmt_llm.generate.engine import Hypothesis
from onmt_llm.nn.device import resolve_device
from onmt_llm.serve.api import Api
from onmt_llm.serve.errors import Refusal
from onmt_llm.serve.keys import ApiKeys, bearer_key
from onmt_llm.serve.models import ModelPool, ModelSpec, ServedModel
from onmt_llm.serve.service import Limits, Service
from onmt_llm.serve.translation import Source, translate
from onmt_llm.text.codec import Codec

_MAX_CLONES = 100


@dataclass(frozen=True)
class NumberedModel:
    """A model as this API sees it.

    Attributes:
        name: Its name in the pool; that of a clone is the name of the model whose weights it uses.
        options: Decoding options; None = the model's.
        timeout: What the list of models says about it; null = the model's.
    """

    name: str
    options: GenerationConfig | None = None
    timeout: float | None = None


class NumberedModels:
    """The models by their ids: a name that is a number, or the place among the others; and clones.

    A clone has decoding options of its own. It shares the weights.
    """

    def __init__(self, pool: ModelPool) -> None:
        self._pool = pool
        self._clones: dict[int, NumberedModel] = {}

    def all(self) -> dict[int, NumberedModel]:
        """The models, in the order of the configuration, then the clones."""
        names = self._pool.names
        taken = {int(name) for name in names if name.isdecimal()}
        free = (number for number in range(len(names) * 2) if number not in taken)
        numbered = {int(name) if name.isdecimal() else next(free): NumberedModel(name) for name in names}
        return {**numbered, **{number: clone for number, clone in self._clones.items() if clone.name in names}}

    def get(self, number: Any) -> NumberedModel:
        """The model with an id, or with a name.

        Raises:
            Refusal: There is none.
        """
        models = self.all()
        found = models.get(number) if isinstance(number, int) else None
        if isinstance(number, str):
            found = {model.name: model for model in models.values()}.get(number)
        if found is None:
            raise Refusal(404, f"No such model '{str(number)[:100]}'", code="model_not_found")
        return found

    def clone(self, number: int, options: GenerationConfig | None, timeout: float) -> int:
        """Offer a model a second time, with other options; returns the id of the clone."""
        original = self.get(number)
        if len(self._clones) >= _MAX_CLONES:
            raise Refusal(400, f"There must be at most {_MAX_CLONES} clones, and there are as many.")
        own = next(free for free in range(len(self.all()) + 1) if free not in self.all())
        self._clones[own] = replace(original, options=options or original.options, timeout=timeout)
        return own


def opennmt_api(service: Service, *, keys: ApiKeys, admin_keys: ApiKeys, url_root: str) -> Api:
    """The API.

    Args:
        service: Models and limits.
        keys: Keys of which each request must have one in its header; none = everyone is served.
        admin_keys: The same for requests that clone, load or unload models; none = as for the others.
        url_root: What its paths begin with.
    """
    router = APIRouter(prefix=url_root.rstrip("/"), tags=["opennmt"])
    models = NumberedModels(service.models)
    for_users = [Depends(_key_checker(keys, admin_keys))] if keys else []
    for_admins = [Depends(_key_checker(admin_keys))] if admin_keys else for_users

    @router.get("/health")
    async def health() -> dict[str, str]:
        """The process lives."""
        return {"status": "ok"}

    @router.get("/models", dependencies=for_users)
    async def list_models() -> list[dict[str, Any]]:
        """The models."""
        return [_card(number, model, service.models) for number, model in models.all().items()]

    @router.post("/translate", dependencies=for_users)
    async def translate_texts(request: Request) -> list[list[dict[str, Any]]]:
        """Translate texts with the model that the first of them names: the list of the best, that of the second ..."""
        inputs = _inputs(await _body(request))
        return await _translated(service, models.get(inputs[0].get("id", 0)), inputs)

    @router.post("/clone_model/{model_id:int}", dependencies=for_admins)
    async def clone_model(model_id: int, request: Request) -> dict[str, Any]:
        """Offer a model a second time, with the decoding options in `opt`."""
        return _cloned(models, model_id, await _body(request), service.limits)

    @router.get("/unload_model/{model_id:int}", dependencies=for_admins)
    async def unload_model(model_id: int) -> dict[str, Any]:
        """Remove a model from memory; the next request loads it again."""
        try:
            name = models.get(model_id).name
            if not await asyncio.to_thread(service.models.unload, name):
                raise Refusal(400, f"Model {model_id} must be loaded, but is not.")
        except Refusal as refusal:
            return {"model_id": model_id, "status": "error", "error": refusal.message}
        return {"model_id": model_id, "status": "ok"}

    @router.get("/to_cpu/{model_id:int}", dependencies=for_admins)
    async def to_cpu(model_id: int) -> dict[str, Any]:
        """Free the GPU: a model that is on one is unloaded."""
        name = models.get(model_id).name
        if _is_for_gpu(service.models.spec(name)):
            await asyncio.to_thread(service.models.unload, name)
        return {"model_id": model_id, "status": "ok"}

    @router.get("/to_gpu/{model_id:int}", dependencies=for_admins)
    async def to_gpu(model_id: int) -> dict[str, Any]:
        """Load a model, if it is one for a GPU."""
        name = models.get(model_id).name
        if not _is_for_gpu(service.models.spec(name)):
            message = "The model must be one for a GPU, but this server has none, or its configuration says cpu."
            return {"model_id": model_id, "status": "error", "error": message}
        async with service.models.use(name):
            return {"model_id": model_id, "status": "ok"}

    return Api((router.prefix,), router, lambda refusal: {"status": "error", "error": refusal.message}, needs_key=False)


async def _translated(
    service: Service, numbered: NumberedModel, inputs: Sequence[dict[str, Any]]
) -> list[list[dict[str, Any]]]:
    """Translations of texts with one model: for each rank, the answers to all of them."""
    async with service.models.use(numbered.name) as model:
        options = numbered.options or model.options
        sources = [_source(entry, model) for entry in inputs]
        spec = model.spec
        found = await translate(service, model, sources, options, src_lang=spec.src_lang, tgt_lang=spec.tgt_lang)
        codec = model.codec.for_languages(spec.src_lang, spec.tgt_lang)
    rows = list(zip(inputs, sources, found, strict=True))
    return [
        [_answer(entry["src"], source, hypotheses, rank, codec) for entry, source, hypotheses in rows]
        for rank in range(options.n_best)
    ]


def _cloned(models: NumberedModels, number: int, body: Any, limits: Limits) -> dict[str, Any]:
    """Clone a model as a request asks; the answer to it."""
    if not isinstance(body, dict):
        raise Refusal(400, "The body must be a JSON object with `timeout` and `opt`, but is not.")
    begun = time.monotonic()
    timeout = body.get("timeout", -1)
    try:
        options = None if body.get("opt") is None else _options(body["opt"], limits)
        clone = models.clone(number, options, timeout if isinstance(timeout, int | float) else -1)
    except Refusal as refusal:
        return {"status": "error", "error": refusal.message}
    return {"status": "ok", "model_id": clone, "load_time": time.monotonic() - begun}


def _key_checker(*accepted: ApiKeys) -> Callable[[Request], None]:
    """Refuses requests without one of the keys."""

    def check(request: Request) -> None:
        key = bearer_key(request.headers.get("authorization", ""))
        if not any(keys.accepts(key) for keys in accepted):
            raise Refusal(
                401, "The header Authorization must carry a key for this request (`Bearer KEY`), but does not."
            )

    return check


async def _body(request: Request) -> Any:
    """The JSON of a request, whatever its content type says."""
    try:
        return json.loads(await request.body())
    except (ValueError, RecursionError):
        raise Refusal(400, "The body must be JSON, but is not.") from None


def _inputs(body: Any) -> list[dict[str, Any]]:
    if not isinstance(body, list) or not body or not all(isinstance(entry, dict) for entry in body):
        raise Refusal(400, 'The body must be a list of texts, `[{"id": 0, "src": "..."}]`, but is not.')
    for entry in body:
        for key, kind in (("src", str), ("ref", str | None)):
            if not isinstance(entry.get(key), kind):
                raise Refusal(400, f"'{key}' of each text must be a string, but is not.", param=key)
    return body


def _source(entry: Mapping[str, Any], model: ServedModel) -> Source:
    """The text of an entry; `ref` is what its translations start with, for a model that is served so."""
    prefix = entry.get("ref") if model.spec.tgt_file_prefix else None
    return Source.of(entry["src"], prefix=prefix or "")


def _answer(src: str, source: Source, hypotheses: list[Hypothesis], rank: int, codec: Codec) -> dict[str, Any]:
    best = hypotheses[rank]
    answer = {
        "src": src,
        "tgt": source.around(best.text),
        "n_best": len(hypotheses),
        "pred_score": best.score,
    }
    if best.alignment is not None:
        answer["align"] = [_alignment(codec, source, best.tokens, best.alignment)]
    return answer


def _alignment(codec: Codec, source: Source, tokens: Sequence[str], alignment: Sequence[int]) -> str:
    """The alignment of the words of a text, without what frames it."""
    shift = len(codec.source_frame[0])
    prompt = codec.unframed(codec.encode(source.text))
    return word_pharaoh(prompt, tokens, [place - shift for place in alignment])


def _card(number: int, model: NumberedModel, pool: ModelPool) -> dict[str, Any]:
    spec = pool.spec(model.name)
    return {
        "model_id": number,
        "models": [spec.name],
        "opt": (model.options or spec.generation).model_dump(exclude_unset=True),
        "loaded": spec.name in [each.name for each in pool.loaded],
        "timeout": model.timeout if model.timeout is not None else pool.idle_seconds_of(spec) or -1,
    }


def _options(opt: Any, limits: Limits) -> GenerationConfig:
    """The decoding options of a clone.

    Raises:
        Refusal: One is unknown, wrong, or above the limits.
    """
    try:
        options = GenerationConfig.model_validate(search_options(opt, translate_options))
    except ConfigError as error:
        raise Refusal(400, error.message) from error
    except ValidationError as error:
        first = error.errors()[0]
        raise Refusal(400, f"'{first['loc'][0]}' is wrong: {first['msg']}.") from error
    for name, most in (("n_best", limits.n), ("max_length", limits.answer_tokens)):
        if getattr(options, name) > most:
            raise Refusal(400, f"'{name}' must be at most {most:,}, but is {getattr(options, name):,}.")
    return options


def _is_for_gpu(spec: ModelSpec) -> bool:
    return resolve_device(spec.device).type == "cuda"
