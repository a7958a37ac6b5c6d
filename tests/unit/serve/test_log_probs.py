"""Log probabilities in both forms of OpenAI's API."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from onmt_llm.generate.engine import TokenLogProbs
from onmt_llm.generate.open import open_engine
from onmt_llm.serve.openai.log_probs import TokenTexts, completion_log_probs
from serving import Server

PROMPT = "Once é"


def reported(server: Server, **options: Any) -> Any:
    answer = server.openai().completions.create(model="torch", prompt=PROMPT, max_tokens=5, **options)
    return answer.choices[0]


def test_with_echo_the_prompt_has_them_too(server: Server, models: Path) -> None:
    engine = open_engine(models / "torch", device="cpu")
    choice = reported(server, logprobs=2, echo=True)
    log_probs = choice.logprobs
    prompt = engine.codec.encode(PROMPT)
    assert log_probs.tokens[: len(prompt)] == [TokenTexts(engine.codec)(token) for token in prompt]
    assert log_probs.token_logprobs[0] is log_probs.top_logprobs[0] is None
    expected = engine.score([prompt])[0]
    assert log_probs.token_logprobs[1 : len(prompt)] == pytest.approx(expected, abs=1e-4)
    assert {len(values) for values in log_probs.model_dump().values()} == {len(prompt) + 5}
    for (token, start), (_, end) in pairwise(zip(log_probs.tokens, log_probs.text_offset, strict=True)):
        assert end - start == len(token)
    for token, log_prob, top in list(
        zip(log_probs.tokens, log_probs.token_logprobs, log_probs.top_logprobs, strict=True)
    )[len(prompt) :]:
        assert max(top, key=top.__getitem__) == token  # greedy
        assert top[token] == log_prob


def test_only_the_prompt(server: Server) -> None:
    alone = server.complete(PROMPT, max_tokens=0, logprobs=1, echo=True).json()["choices"][0]
    with_answer = reported(server, logprobs=1, echo=True)
    count = len(alone["logprobs"]["tokens"])
    assert alone["text"] == PROMPT
    assert with_answer.logprobs.token_logprobs[1:count] == pytest.approx(alone["logprobs"]["token_logprobs"][1:])
    assert count == len(with_answer.logprobs.tokens) - 5


def test_a_stream_has_the_same(server: Server) -> None:
    whole = reported(server, logprobs=2, echo=True).logprobs.model_dump()
    pieces: dict[str, list[Any]] = {name: [] for name in whole}
    stream = server.openai().completions.create(
        model="torch", prompt=PROMPT, max_tokens=5, logprobs=2, echo=True, stream=True
    )
    for chunk in stream:
        for name in pieces:
            pieces[name] += getattr(chunk.choices[0].logprobs, name)
    assert pieces["tokens"] == whole["tokens"]
    assert pieces["text_offset"] == whole["text_offset"]
    assert pieces["token_logprobs"][1:] == pytest.approx(whole["token_logprobs"][1:])


def test_a_chat_reports_tokens_and_alternatives(server: Server) -> None:
    options: dict[str, Any] = {"model": "torch", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
    create = server.openai().chat.completions.create
    content = create(logprobs=True, top_logprobs=3, **options).choices[0].logprobs.content
    assert len(content) == 5
    for each in content:
        assert len(each.top_logprobs) == 3
        assert each.top_logprobs[0].token == each.token
        assert bytes(each.bytes).decode() == each.token
        assert sum(math.exp(top.logprob) for top in each.top_logprobs) <= 1.0001
    stream = create(logprobs=True, top_logprobs=3, stream=True, **options)
    choices = [chunk.choices[0] for chunk in stream]
    streamed = [each for choice in choices if choice.logprobs for each in choice.logprobs.content]
    assert [each.token for each in streamed] == [each.token for each in content]
    assert create(logprobs=True, **options).choices[0].logprobs.content[0].top_logprobs == []
    assert create(**options).choices[0].logprobs is None


def test_of_two_tokens_with_the_same_text_the_more_likely_one_counts(models: Path) -> None:
    text_of = TokenTexts(open_engine(models / "torch", device="cpu").codec)
    assert text_of("Ġ") == " "
    assert text_of("</s>") == "</s>"
    assert text_of("Ã") == "Ã"  # half a character keeps its name in the vocabulary
    found = completion_log_probs([TokenLogProbs("Ġ", -2.0, (("a", -0.5), ("Ġ", -2.0)))], text_of, offset=4)
    assert found["top_logprobs"] == [{"a": -0.5, " ": -2.0}]
    assert found["text_offset"] == [4]
