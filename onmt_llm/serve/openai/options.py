"""From the parameters of a request to the options of a search."""

from __future__ import annotations

from onmt_llm.config.generate import GenerationConfig
from onmt_llm.errors import OnmtLlmError
from onmt_llm.serve.errors import Refusal
from onmt_llm.serve.models import ServedModel
from onmt_llm.serve.openai.parameters import Parameters
from onmt_llm.serve.service import Limits

_OPTIONS = {
    "temperature": "random_sampling_temp",
    "top_p": "random_sampling_topp",
    "top_k": "random_sampling_topk",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "min_tokens": "min_length",
}
"""Parameters, and the options that they set."""
_SEEDS = 2**63
"""Seeds of OpenAI may be negative; ours are from 0 to this."""


def generation_options(
    parameters: Parameters, model: ServedModel, limits: Limits, *, max_tokens: int | None, stop: list[str]
) -> GenerationConfig:
    """The options of a search: the parameters that are given, the model's defaults for the others.

    A temperature above 0, `top_p` below 1 or `top_k` above 1 samples, whatever the model's default; a seed without
    sampling has no effect.

    Args:
        parameters: Of the request.
        model: Answers it.
        limits: What it may ask for.
        max_tokens: Maximum number of tokens of an answer; None = the model's default.
        stop: Stop strings besides those of the request.

    Raises:
        Refusal: The request asks for too much.
    """
    if (parameters.n or 1) > limits.n:
        raise Refusal(400, f"'n' must be at most {limits.n}, but is {parameters.n}.", param="n", code="above_limit")
    if max_tokens is not None and max_tokens > limits.answer_tokens:
        message = f"'max_tokens' must be at most {limits.answer_tokens:,}, but is {max_tokens:,}."
        raise Refusal(400, message, param="max_tokens", code="above_limit")
    default = model.options
    changes = {option: value for name, option in _OPTIONS.items() if (value := getattr(parameters, name)) is not None}
    if _wants_sampling(parameters):
        changes["beam_size"] = 1
        if parameters.top_k is None and not default.samples:
            changes["random_sampling_topk"] = 0
        if parameters.temperature is None and not default.samples:
            changes["random_sampling_temp"] = 1.0
    elif not default.samples and parameters.top_k != 1:
        changes.pop("random_sampling_topk", None)  # 0 and -1 allow all tokens, but do not ask to sample
    changes["max_length"] = max(1, min(default.max_length, limits.answer_tokens) if max_tokens is None else max_tokens)
    changes["stop"] = [*default.stop, *stop, *parameters.stops]
    options = default.model_copy(update=changes)
    # n answers of a beam search are its n best; n samples are n requests
    options = options.model_copy(update={"n_best": (parameters.n or 1) if options.beam_size > 1 else 1})
    if parameters.seed is not None and options.beam_size == 1 and options.samples:
        options = options.model_copy(update={"seed": parameters.seed % _SEEDS})
    return options


def _wants_sampling(parameters: Parameters) -> bool:
    if parameters.temperature == 0 or parameters.top_k == 1:
        return False
    return bool(parameters.temperature) or (parameters.top_p or 1) < 1 or (parameters.top_k or 0) > 1


def fit_answer(options: GenerationConfig, prompt_tokens: int, model: ServedModel, *, fixed: bool) -> GenerationConfig:
    """The options, with answers that fit into the context after the prompt.

    Args:
        options: Of the search.
        prompt_tokens: Length of the prompt.
        model: Answers it.
        fixed: The request sets the length of the answer, which must then fit.

    Raises:
        Refusal: The context is too short.
    """
    room = model.context_length - (prompt_tokens if model.codec.task == "lm" else 0)
    if prompt_tokens > model.context_length or room < (options.max_length if fixed else 1):
        answer = f" and the answer may have {options.max_length:,}" if fixed else ""
        raise Refusal(
            400,
            f"Prompt and answer must have at most {model.context_length:,} tokens together, but the prompt has "
            f"{prompt_tokens:,}{answer}.",
            code="context_length_exceeded",
        )
    return options.model_copy(update={"max_length": min(options.max_length, room)})


def naming_parameter(error: OnmtLlmError) -> Refusal:
    """The refusal of a request whose options contradict each other or are not supported by the engine."""
    words = {word.strip("'`,.:") for word in error.message.split()}
    names = {"seed": "seed", "n_best": "n", "min_length": "min_tokens"} | {
        option: name for name, option in _OPTIONS.items()
    }
    param = next((name for option, name in names.items() if option in words), None)
    if param is None and "og probabilities" in error.message:
        param = "logprobs"
    hint = f" ({error.hint})" if error.hint else ""
    return Refusal(400, error.message + hint, param=param, code="unsupported_value" if param else None)
