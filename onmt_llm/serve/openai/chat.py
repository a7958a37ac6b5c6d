"""`/v1/chat/completions`: a conversation that is answered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from onmt_llm.errors import DataError
from onmt_llm.generate.scheduling.ticket import Request
from onmt_llm.generate.session import fit_history
from onmt_llm.serve.errors import Refusal
from onmt_llm.serve.models import ServedModel
from onmt_llm.serve.openai.choices import answer_tokens, choices_of, complete, pieces, several
from onmt_llm.serve.openai.events import heading, usage
from onmt_llm.serve.openai.log_probs import TokenTexts, chat_log_probs
from onmt_llm.serve.openai.options import fit_answer, generation_options
from onmt_llm.serve.openai.parameters import ChatParameters
from onmt_llm.serve.service import Limits, PendingAnswers


@dataclass(frozen=True)
class ChatJob:
    """A request that was checked.

    Attributes:
        parameters: As they were sent.
        model: Answers it.
        requests: For the scheduler.
    """

    parameters: ChatParameters
    model: ServedModel
    requests: list[Request]

    @classmethod
    def of(cls, parameters: ChatParameters, model: ServedModel, limits: Limits) -> ChatJob:
        """Check a request.

        Raises:
            Refusal: It asks for something that is not possible.
        """
        if not model.is_chat_model:
            message = f"'model' must be a language model to chat, but {model.name} translates: use /v1/completions."
            raise Refusal(400, message, param="model", code="unsupported_value")
        if parameters.top_logprobs is not None and not parameters.logprobs:
            raise Refusal(400, "'top_logprobs' needs 'logprobs': true, but that is not set.", param="top_logprobs")
        if None not in (parameters.max_tokens, parameters.max_completion_tokens):
            raise Refusal(400, "'max_tokens' must be left out with 'max_completion_tokens'.", param="max_tokens")
        max_tokens = parameters.max_completion_tokens or parameters.max_tokens
        if parameters.max_tokens == 0:
            raise Refusal(400, "'max_tokens' must be at least 1, but is 0.", param="max_tokens")
        codec, template = model.codec, model.template
        stops = () if template is None else codec.chat_template(template).stop
        options = generation_options(parameters, model, limits, max_tokens=max_tokens, stop=list(stops))
        # a chat streams, so it has no beams
        options = options.model_copy(update={"beam_size": 1, "n_best": 1})
        messages = [message.as_message() for message in parameters.messages]
        try:
            if model.spec.drop_old_rounds:
                # a length that the request does not set is no demand: at most half of the context is kept for it
                most = model.context_length if max_tokens is not None else model.context_length // 2
                budget = max(0, model.context_length - min(options.max_length, most))
                prompt, _ = fit_history(codec, messages, budget=budget, template=template)
            else:
                prompt = codec.encode_chat(messages, template=template)
        except DataError as error:
            raise Refusal(400, error.message, param="messages", code="invalid_messages") from error
        options = fit_answer(options, len(prompt), model, fixed=max_tokens is not None)
        top = (parameters.top_logprobs or 0) if parameters.logprobs else None
        return cls(parameters, model, several(Request(prompt, options, top_log_probs=top), parameters.n or 1))

    @property
    def _per_ticket(self) -> int:
        return choices_of(self.requests[0].options, self.parameters.n or 1)

    async def response(self, answers: PendingAnswers) -> dict[str, Any]:
        """The whole response."""
        choices = await complete(answers, self._per_ticket)
        text_of = TokenTexts(self.model.codec)
        return {
            **heading("chat.completion", "chatcmpl", self.model),
            "choices": [
                {
                    "index": number,
                    "message": {"role": "assistant", "content": choice.text, "refusal": None},
                    "logprobs": chat_log_probs(choice.log_probs, text_of) if self.parameters.logprobs else None,
                    "finish_reason": choice.finish_reason,
                }
                for number, choice in enumerate(choices)
            ],
            "usage": usage(answers.prompt_tokens, answer_tokens(answers, self._per_ticket)),
        }

    async def chunks(self, answers: PendingAnswers) -> AsyncIterator[dict[str, Any]]:
        """The response piece by piece."""
        head = heading("chat.completion.chunk", "chatcmpl", self.model)
        text_of = TokenTexts(self.model.codec)
        parameters = self.parameters
        ending: dict[str, Any] = {"usage": None} if parameters.wants_usage else {}

        def chunk(number: int, delta: dict[str, Any], finish: str | None = None, log_probs: Any = None) -> Any:
            choice = {"index": number, "delta": delta, "logprobs": log_probs, "finish_reason": finish}
            return {**head, "choices": [choice], **ending}

        for number in range(len(answers.tickets)):
            yield chunk(number, {"role": "assistant", "content": ""})
        async for piece in pieces(answers, self._per_ticket):
            log_probs = chat_log_probs(piece.log_probs, text_of) if parameters.logprobs and piece.log_probs else None
            if piece.text or log_probs:
                yield chunk(piece.choice, {"content": piece.text}, log_probs=log_probs)
            if piece.finish_reason is not None:
                yield chunk(piece.choice, {}, piece.finish_reason)
        if parameters.wants_usage:
            figures = usage(answers.prompt_tokens, answer_tokens(answers, self._per_ticket))
            yield {**head, "choices": [], "usage": figures}
