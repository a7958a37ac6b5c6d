"""Texts that are translated together, for the APIs of translation servers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from onmt_llm.config.generate import GenerationConfig
from onmt_llm.errors import DataError
from onmt_llm.generate.engine import Hypothesis, empty_answers
from onmt_llm.generate.scheduling.ticket import Request
from onmt_llm.serve.errors import Refusal
from onmt_llm.serve.models import ServedModel
from onmt_llm.serve.service import Service

MOST_TEXTS = 10_000
"""Texts of a request; more than fit into a body of sentences."""


@dataclass(frozen=True)
class Source:
    """A text to be translated.

    Attributes:
        text: Without white space around it.
        before, after: That white space.
        prefix: Text with which its translations start.
    """

    text: str
    before: str = ""
    after: str = ""
    prefix: str = ""

    @classmethod
    def of(cls, text: str, *, prefix: str = "") -> Source:
        """A text with the white space around it."""
        stripped = text.strip()
        if not stripped:
            return cls("", text)
        before = text[: text.index(stripped)]
        return cls(stripped, before, text[len(before) + len(stripped) :], prefix)

    def around(self, translation: str) -> str:
        """A translation, in the white space of the source."""
        return f"{self.before}{translation}{self.after}"


async def translate(
    service: Service,
    model: ServedModel,
    sources: Sequence[Source],
    options: GenerationConfig,
    *,
    src_lang: str = "",
    tgt_lang: str = "",
) -> list[list[Hypothesis]]:
    """Translate texts, in groups that leave room in the queue for other requests.

    Args:
        service: Limits and figures.
        model: One that `models.use` keeps loaded.
        sources: The texts; an empty one has empty translations.
        options: How to search or sample.
        src_lang, tgt_lang: Languages by the model's codes; "" = the model's default.

    Returns:
        For each text its translations, best first.

    Raises:
        Overloaded: Too many requests are waiting.
        Refusal: The translations take longer than a request may.
        DataError: A text is too long, or there are too many.
        ConfigError: The model has no such language.
    """
    found = [empty_answers(options) for _ in sources]
    if len(sources) > MOST_TEXTS:
        raise DataError(f"A request must have at most {MOST_TEXTS:,} texts or lines, but has {len(sources):,}.")
    full = [place for place, source in enumerate(sources) if source.text]
    codec = model.codec.for_languages(src_lang, tgt_lang)

    def request(source: Source) -> Request:
        prompt = codec.encode(source.text)
        if len(prompt) > model.context_length:
            raise DataError(
                f"A text must have at most the {model.context_length:,} tokens that the model was trained for, but one "
                f"has {len(prompt):,}.",
                hint="send its sentences one by one",
            )
        prefix = codec.tokenizer.encode(source.prefix) if source.prefix else []
        return Request(prompt, options, src_lang=src_lang, tgt_lang=tgt_lang, prefix=prefix)

    size = max(1, service.limits.queue // 2)
    for start in range(0, len(full), size):
        group = full[start : start + size]
        model.scheduler.check_room()
        requests = await asyncio.to_thread(lambda places: [request(sources[place]) for place in places], group)
        async with service.answer(model, requests) as answers:
            for place, hypotheses in zip(group, await answers.complete(), strict=True):
                found[place] = hypotheses
            if any(ticket.was_stopped for ticket in answers.tickets):
                message = f"A translation must be complete within {service.limits.seconds:g} s, but is not."
                raise Refusal(503, message, code="timeout", retry_after=1)
    return found
