"""`/v1/completions`: a text that is continued, or translated by an encoder-decoder."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

from onmt_llm.generate.scheduling.ticket import Request
from onmt_llm.serve.errors import Refusal
from onmt_llm.serve.models import ServedModel
from onmt_llm.serve.openai.choices import Choice, answer_tokens, choices_of, complete, pieces, several
from onmt_llm.serve.openai.events import heading, usage
from onmt_llm.serve.openai.log_probs import TokenTexts, completion_log_probs
from onmt_llm.serve.openai.options import fit_answer, generation_options
from onmt_llm.serve.openai.parameters import CompletionParameters
from onmt_llm.serve.service import Limits, PendingAnswers


@dataclass(frozen=True)
class CompletionJob:
    """A request that was checked.

    Attributes:
        parameters: As they were sent.
        model: Answers it.
        requests: For the scheduler: those of the first prompt, of the second ...
        prompts: The texts of the prompts.
    """

    parameters: CompletionParameters
    model: ServedModel
    requests: list[Request]
    prompts: list[str]

    @classmethod
    def of(cls, parameters: CompletionParameters, model: ServedModel, limits: Limits) -> CompletionJob:
        """Check a request.

        Raises:
            Refusal: It asks for something that is not possible.
            OnmtLlmError: The model has no such language.
        """
        options = generation_options(parameters, model, limits, max_tokens=parameters.max_tokens, stop=[])
        _check(parameters, model, beam_size=options.beam_size)
        src, tgt = parameters.src_lang or model.spec.src_lang, parameters.tgt_lang or model.spec.tgt_lang
        texts, requests = [], []
        for text, tokens in _prompts(parameters, model, src, tgt):
            texts.append(text)
            request = Request(
                tokens,
                fit_answer(options, len(tokens), model, fixed=parameters.max_tokens is not None),
                src_lang=src,
                tgt_lang=tgt,
                top_log_probs=parameters.logprobs,
                prompt_log_probs=bool(parameters.echo) and parameters.logprobs is not None,
            )
            requests += several(request, parameters.n or 1)
        if len(requests) > limits.queue:
            message = f"'prompt' and 'n' must ask for at most {limits.queue} answers, but ask for {len(requests)}."
            raise Refusal(400, message, param="prompt", code="above_limit")
        return cls(parameters, model, requests, texts)

    @property
    def _per_ticket(self) -> int:
        return choices_of(self.requests[0].options, self.parameters.n or 1)

    async def response(self, answers: PendingAnswers) -> dict[str, Any]:
        """The whole response."""
        choices = await complete(answers, self._per_ticket)
        tokens = 0 if self.parameters.max_tokens == 0 else answer_tokens(answers, self._per_ticket)
        return {
            **heading("text_completion", "cmpl", self.model),
            "choices": [self._choice(number, choice) for number, choice in enumerate(choices)],
            "usage": usage(answers.prompt_tokens, tokens),
        }

    def _choice(self, number: int, choice: Choice) -> dict[str, Any]:
        parameters, prompt = self.parameters, self._prompt(number)
        tokens = self._request(number).prompt
        text, log_probs, reported = choice.text, list(choice.log_probs), None
        if parameters.max_tokens == 0:  # no answer is wanted, only the prompt's log probabilities
            text, log_probs = "", log_probs[: len(tokens) - 1]
        if parameters.logprobs is not None:
            first = tokens[0] if parameters.echo and tokens else None
            offset = 0 if parameters.echo else len(prompt)
            reported = completion_log_probs(log_probs, TokenTexts(self.model.codec), first=first, offset=offset)
        text = prompt + text if parameters.echo else text
        return {"text": text, "index": number, "logprobs": reported, "finish_reason": choice.finish_reason}

    async def chunks(self, answers: PendingAnswers) -> AsyncIterator[dict[str, Any]]:
        """The response piece by piece."""
        head = heading("text_completion", "cmpl", self.model)
        parameters, text_of = self.parameters, TokenTexts(self.model.codec)
        ending: dict[str, Any] = {"usage": None} if parameters.wants_usage else {}
        offsets: dict[int, int] = {}
        async for piece in pieces(answers, self._per_ticket):
            text, log_probs, first = piece.text, None, None
            if piece.choice not in offsets:
                offsets[piece.choice] = 0 if parameters.echo else len(self._prompt(piece.choice))
                if parameters.echo:
                    text = self._prompt(piece.choice) + text
                    first = self._request(piece.choice).prompt[0]
            elif not text and not piece.log_probs and piece.finish_reason is None:
                continue
            if parameters.logprobs is not None:
                log_probs = completion_log_probs(piece.log_probs, text_of, first=first, offset=offsets[piece.choice])
                offsets[piece.choice] += sum(map(len, log_probs["tokens"]))
            choice = {
                "text": text, "index": piece.choice, "logprobs": log_probs, "finish_reason": piece.finish_reason,
            }  # fmt: skip
            yield {**head, "choices": [choice], **ending}
        if parameters.wants_usage:
            figures = usage(answers.prompt_tokens, answer_tokens(answers, self._per_ticket))
            yield {**head, "choices": [], "usage": figures}

    def _request(self, choice: int) -> Request:
        return self.requests[choice // self._per_ticket]

    def _prompt(self, choice: int) -> str:
        return self.prompts[choice // (self.parameters.n or 1)]


def _check(parameters: CompletionParameters, model: ServedModel, *, beam_size: int) -> None:
    if parameters.max_tokens == 0 and not (parameters.echo and not parameters.stream):
        raise Refusal(400, "'max_tokens' must be at least 1 without 'echo', but is 0.", param="max_tokens")
    if parameters.echo and model.codec.task == "seq2seq":
        raise Refusal(400, "'echo' needs a language model, but the model translates.", param="echo")
    if parameters.logprobs is not None and beam_size > 1:
        message = f"'logprobs' must be left out with beam search, but the model's beam_size is {beam_size}."
        raise Refusal(400, message, param="logprobs", code="unsupported_value")


def _prompts(
    parameters: CompletionParameters, model: ServedModel, src: str, tgt: str
) -> Iterator[tuple[str, list[str]]]:
    """Text and tokens of each prompt."""
    codec = model.codec.for_languages(src, tgt)
    given: Any = parameters.prompt
    several_prompts = isinstance(given, list) and not (given and isinstance(given[0], int))
    for prompt in given if several_prompts else [given]:
        if not prompt:
            raise Refusal(400, "'prompt' must not be empty, but is.", param="prompt")
        if isinstance(prompt, str):
            yield prompt, codec.encode(prompt)
        elif max(prompt) >= len(codec.src_vocab):
            message = f"'prompt' must have token ids below {len(codec.src_vocab)}, but has {max(prompt)}."
            raise Refusal(400, message, param="prompt")
        else:
            tokens = codec.src_vocab.tokens(prompt)
            yield codec.decode(tokens), tokens
    if several_prompts and not given:
        raise Refusal(400, "'prompt' must not be empty, but is.", param="prompt")
