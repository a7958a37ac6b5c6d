"""Log probabilities of tokens in the forms of OpenAI's two APIs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onmt_llm.generate.engine import TokenLogProbs
from onmt_llm.text.codec import Codec


class TokenTexts:
    """The text of single tokens, as within a sentence: with the space that a piece begins with.

    Args:
        codec: Decodes.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._before = codec.tokenizer.encode("a")

    def __call__(self, token: str) -> str:
        """The text; of a control token, and of one that is a part of a character, its name in the vocabulary."""
        if token in self._codec.tokenizer.control_tokens:
            return token
        decoder = self._codec.stream_decoder()
        for each in self._before:
            decoder.push(each)
        text = decoder.push(token) + decoder.flush()
        return token if "\ufffd" in text else text


def chat_log_probs(log_probs: Sequence[TokenLogProbs], text_of: TokenTexts) -> dict[str, Any]:
    """As `/v1/chat/completions` reports them."""
    return {"content": [_chat_token(each, text_of) for each in log_probs], "refusal": None}


def _chat_token(each: TokenLogProbs, text_of: TokenTexts) -> dict[str, Any]:
    def entry(token: str, log_prob: float) -> dict[str, Any]:
        text = text_of(token)
        return {"token": text, "logprob": log_prob, "bytes": list(text.encode("utf-8"))}

    return {**entry(each.token, each.log_prob), "top_logprobs": [entry(*pair) for pair in each.top]}


def completion_log_probs(
    log_probs: Sequence[TokenLogProbs], text_of: TokenTexts, *, first: str | None = None, offset: int = 0
) -> dict[str, Any]:
    """As `/v1/completions` reports them.

    Args:
        log_probs: Of the tokens, in order.
        text_of: Gives their texts.
        first: A token before them, which has no log probability: the first of a prompt.
        offset: Place of the first token in the text.
    """
    tokens = [*([] if first is None else [text_of(first)]), *(text_of(each.token) for each in log_probs)]
    nothing: list[Any] = [] if first is None else [None]
    offsets = [offset]
    for token in tokens:
        offsets.append(offsets[-1] + len(token))
    return {
        "tokens": tokens,
        "token_logprobs": [*nothing, *(each.log_prob for each in log_probs)],
        "top_logprobs": [*nothing, *({**_top(each, text_of)} for each in log_probs)],
        "text_offset": offsets[:-1],
    }


def _top(each: TokenLogProbs, text_of: TokenTexts) -> dict[str, float]:
    """The most likely tokens; of two with the same text, the more likely one. The token itself is always there."""
    top: dict[str, float] = {}
    for token, log_prob in (*each.top, (each.token, each.log_prob)):
        top.setdefault(text_of(token), log_prob)
    return top
