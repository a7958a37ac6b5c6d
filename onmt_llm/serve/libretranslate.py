"""The API of LibreTranslate: `/translate`, `/languages`, `/detect`, `/frontend/settings`.

Languages are BCP 47 tags (`fr`, `zh-Hant`). Each line of a text is translated alone, as models are trained on lines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from fastapi import APIRouter, Request

from onmt_llm.config.generate import GenerationConfig
from onmt_llm.serve.api import Api
from onmt_llm.serve.errors import Refusal
from onmt_llm.serve.keys import ApiKeys, bearer_key
from onmt_llm.serve.markup import Document, of_html, of_lines
from onmt_llm.serve.models import ModelPool
from onmt_llm.serve.service import Service
from onmt_llm.serve.translation import Source, translate
from onmt_llm.text.detection import LanguageDetector
from onmt_llm.text.language_tags import find_tag, language_name

_PATHS = ("/translate", "/translate_file", "/languages", "/detect", "/frontend", "/suggest")
_CANDIDATES = 20
"""Languages that the detector may name until one of the server's is found."""
_DOCUMENTS = {"text": of_lines, "html": of_html}


@dataclass(frozen=True)
class Detected:
    """The language of a text.

    Attributes:
        tag: One of the server's languages.
        confidence: From 0 to 100.
    """

    tag: str
    confidence: float

    def as_json(self) -> dict[str, Any]:
        return {"language": self.tag, "confidence": self.confidence}


class Languages:
    """The languages of all models.

    Args:
        pool: The models; those that have no languages are left out.
    """

    def __init__(self, pool: ModelPool) -> None:
        self._specs = [spec for spec in map(pool.spec, pool.names) if spec.sources and spec.targets]

    def targets(self) -> dict[str, list[str]]:
        """The languages, with those that each is translated into."""
        found: dict[str, set[str]] = {}
        for spec in self._specs:
            for tag in spec.sources:
                found.setdefault(tag, set()).update(spec.targets)
        return {tag: sorted(found[tag] - {tag}) for tag in sorted(found)}

    def sources(self) -> dict[str, str]:
        """The languages of texts, with a model's code for each."""
        return {tag: code for spec in reversed(self._specs) for tag, code in spec.sources.items()}

    def source(self, wanted: str) -> str:
        """The tag of a language to translate from.

        Raises:
            Refusal: No model has it.
        """
        return _known(wanted, self.sources())

    def pair(self, source: str, wanted: str) -> tuple[str, str, str]:
        """The first model that translates between two languages, and its codes for them.

        Raises:
            Refusal: No model does.
        """
        for spec in self._specs:
            target = find_tag(wanted, spec.targets)
            if source in spec.sources and target is not None:
                return spec.name, spec.sources[source], spec.targets[target]
        target = _known(wanted, {tag: code for spec in self._specs for tag, code in spec.targets.items()})
        raise Refusal(
            400,
            f"{language_name(target)} ({target}) is not available as a target language from "
            f"{language_name(source)} ({source})",
        )

    def detect(self, text: str) -> list[Detected]:
        """Those of the languages that a text may be in, most likely first."""
        sources = self.sources()
        found: dict[str, float] = {}
        for code, probability in _detector().detect(text, limit=_CANDIDATES):
            tag = find_tag(code, sources)
            if tag is not None:
                found.setdefault(tag, round(100 * probability, 1))
        return [Detected(tag, confidence) for tag, confidence in found.items()]


@cache
def _detector() -> LanguageDetector:
    return LanguageDetector("The detection of languages")


def _known(wanted: str, tags: Mapping[str, str]) -> str:
    tag = find_tag(wanted, tags)
    if tag is None:
        raise Refusal(400, f"{wanted[:50]} is not supported")
    return tag


@dataclass(frozen=True)
class TranslationJob:
    """A request that was checked.

    Attributes:
        documents: The texts, in segments.
        sources: The language of each.
        detected: The same as the detector found it, if it was asked.
        target: The language to translate into, as it was named.
        alternatives: Further translations of each text.
    """

    documents: Sequence[Document]
    sources: Sequence[str]
    detected: Sequence[Detected]
    target: str
    alternatives: int

    @classmethod
    def of(cls, parameters: Mapping[str, Any], languages: Languages, *, most_alternatives: int) -> TranslationJob:
        """Check the parameters of a request.

        Raises:
            Refusal: One is missing or wrong.
        """
        texts = _texts(parameters)
        source, target = _required(parameters, "source"), _required(parameters, "target")
        form = parameters.get("format") or "text"
        if not isinstance(form, str) or form not in _DOCUMENTS:
            raise Refusal(400, f"{str(form)[:50]} format is not supported", param="format")
        alternatives = _count(parameters.get("alternatives") or 0, most_alternatives)
        documents = [_DOCUMENTS[form](text) for text in texts]
        detected = (
            [_first(languages, "\n".join(document.segments)) for document in documents] if source == "auto" else []
        )
        sources = [each.tag for each in detected] or [languages.source(source)] * len(texts)
        return cls(documents, sources, detected, target, alternatives if form == "text" else 0)

    async def translations(self, service: Service, languages: Languages) -> list[list[str]]:
        """The translations of each text: the best, then up to `alternatives` others."""
        found = [["".join(document.parts)] for document in self.documents]
        for pair, places in self._pairs(languages):
            name, src, tgt = pair
            segments = [Source.of(segment) for place in places for segment in self.documents[place].segments]
            async with service.models.use(name) as model:
                options = _with_alternatives(model.options, self.alternatives)
                answers = iter(await translate(service, model, segments, options, src_lang=src, tgt_lang=tgt))
            for place in places:
                document = self.documents[place]
                own = [(Source.of(segment), next(answers)) for segment in document.segments]
                ranked = [
                    document.filled([source.around(hypotheses[rank].text) for source, hypotheses in own])
                    for rank in range(options.n_best)
                ]
                found[place] = [ranked[0], *dict.fromkeys(text for text in ranked[1:] if text not in ("", ranked[0]))]
        return found

    def _pairs(self, languages: Languages) -> Iterator[tuple[tuple[str, str, str], list[int]]]:
        """The texts by model and its codes of the languages; without those that are in the language already."""
        pairs: dict[tuple[str, str, str], list[int]] = {}
        for place, source in enumerate(self.sources):
            if find_tag(self.target, {source: source}) is None:
                pairs.setdefault(languages.pair(source, self.target), []).append(place)
        yield from pairs.items()


def libretranslate_api(service: Service, keys: ApiKeys) -> Api:
    """The API.

    Args:
        service: Models and limits.
        keys: ApiKeys of which each request must have one, in `api_key` or in the header; none = everyone is served.
    """
    router = APIRouter(tags=["libretranslate"])

    @router.post("/translate")
    async def translate_texts(request: Request) -> dict[str, Any]:
        """Translate a text, or a list of texts."""
        parameters = await _parameters(request, keys)
        languages = Languages(service.models)
        job = await asyncio.to_thread(TranslationJob.of, parameters, languages, most_alternatives=service.limits.n - 1)
        found = await job.translations(service, languages)
        is_list = isinstance(parameters["q"], list)
        answer: dict[str, Any] = {"translatedText": _listed([texts[0] for texts in found], is_list)}
        if job.detected:
            answer["detectedLanguage"] = _listed([each.as_json() for each in job.detected], is_list)
        if job.alternatives:
            answer["alternatives"] = _listed([texts[1:] for texts in found], is_list)
        return answer

    @router.get("/languages")
    async def list_languages() -> list[dict[str, Any]]:
        """The languages, with those that each is translated into."""
        targets = Languages(service.models).targets()
        return [{"code": tag, "name": language_name(tag), "targets": into} for tag, into in targets.items()]

    @router.post("/detect")
    async def detect(request: Request) -> list[dict[str, Any]]:
        """The languages that a text may be in."""
        text = "\n".join(_texts(await _parameters(request, keys)))
        found = await asyncio.to_thread(Languages(service.models).detect, text)
        return [each.as_json() for each in found[:3]]

    @router.get("/frontend/settings")
    async def settings() -> dict[str, Any]:
        """What a page of a client needs to know."""
        into = next(iter(Languages(service.models).targets().values()), [])
        target = into[0] if into else ""
        return {
            "apiKeys": bool(keys),
            "keyRequired": bool(keys),
            "charLimit": -1,
            "frontendTimeout": 500,
            "suggestions": False,
            "filesTranslation": False,
            "supportedFilesFormat": [],
            "language": {
                "source": {"code": "auto", "name": "Auto Detect"},
                "target": {"code": target, "name": language_name(target)},
            },
        }

    @router.post("/translate_file")
    async def translate_file() -> None:
        """Not supported."""
        raise Refusal(403, "Files translation are disabled on this server.")

    @router.post("/suggest")
    async def suggest() -> None:
        """Not supported."""
        raise Refusal(403, "Suggestions are disabled on this server.")

    return Api(_PATHS, router, lambda refusal: {"error": refusal.message}, needs_key=False)


async def _parameters(request: Request, keys: ApiKeys) -> Mapping[str, Any]:
    """The parameters, from JSON or a form; their key is checked.

    Raises:
        Refusal: There are none, or the key is wrong.
    """
    if request.headers.get("content-type", "").startswith("application/json"):
        try:
            parameters = await request.json()
        except (ValueError, RecursionError):
            parameters = None
        if not isinstance(parameters, dict):
            raise Refusal(400, "Invalid JSON format")
    else:
        parameters = {**request.query_params, **await request.form()}
    if keys:
        key = parameters.get("api_key") or bearer_key(request.headers.get("authorization", ""))
        if not key:
            raise Refusal(400, "Please contact the server operator to get an API key", param="api_key")
        if not isinstance(key, str) or not keys.accepts(key):
            raise Refusal(403, "Invalid API key", param="api_key")
    return parameters


def _required(parameters: Mapping[str, Any], name: str) -> str:
    value = parameters.get(name)
    if not value or not isinstance(value, str):
        raise Refusal(400, f"Invalid request: missing {name} parameter", param=name)
    return value


def _texts(parameters: Mapping[str, Any]) -> list[str]:
    """The texts of `q`, a string or a list of strings."""
    texts = parameters.get("q")
    if not texts:
        raise Refusal(400, "Invalid request: missing q parameter", param="q")
    listed = texts if isinstance(texts, list) else [texts]
    if not all(isinstance(text, str) for text in listed):
        raise Refusal(400, "Invalid request: q must be a text or a list of texts", param="q")
    return listed


def _count(value: Any, most: int) -> int:
    try:
        count = max(0, int(value))
    except (TypeError, ValueError, OverflowError):
        raise Refusal(400, "Invalid request: alternatives parameter is not a number", param="alternatives") from None
    if count > most:
        raise Refusal(400, f"Invalid request: alternatives parameter must be <= {most}", param="alternatives")
    return count


def _first(languages: Languages, text: str) -> Detected:
    found = languages.detect(text)
    if not found:
        raise Refusal(400, "The language of the text must be one of the server's, but none of them was detected.")
    return found[0]


def _with_alternatives(options: GenerationConfig, alternatives: int) -> GenerationConfig:
    beams = (
        options.beam_size if options.samples and options.beam_size == 1 else max(options.beam_size, alternatives + 1)
    )
    return options.model_copy(update={"n_best": alternatives + 1, "beam_size": beams})


def _listed(values: list[Any], is_list: bool) -> Any:
    return values if is_list else values[0]
