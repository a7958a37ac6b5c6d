"""Answers of OpenAI's API: the official client, with both engines and with a translation model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onmt_llm.config.checkpoint import SamplingDefaults
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.generate.open import open_engine
from onmt_llm.serve.models import ModelSpec, with_model_defaults
from onmt_llm.text.templates.message import Message
from serving import Server, running

MESSAGES: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
SAMPLED = {"temperature": 1.0, "seed": 7, "max_tokens": 12}


@pytest.fixture(params=["torch", "ct2"])
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_chat_is_answered_alike_whole_and_streamed(server: Server, models: Path, model: str) -> None:
    create = server.openai().chat.completions.create
    whole = create(model=model, messages=MESSAGES, max_completion_tokens=6)
    chunks = list(
        create(model=model, messages=MESSAGES, max_tokens=6, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    finish = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    engine = open_engine(models / model, device="cpu")
    prompt = engine.codec.encode_chat([Message(each["role"], each["content"]) for each in MESSAGES])
    expected = engine.generate([prompt], GenerationConfig(max_length=6))[0][0].text
    assert text == whole.choices[0].message.content == expected
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (len(prompt), 6)
    assert finish[-1] == whole.choices[0].finish_reason == "length"
    assert finish[:-1] == [None] * (len(finish) - 1)
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_a_text_is_continued_alike_whole_and_streamed(server: Server, model: str) -> None:
    create = server.openai().completions.create
    whole = create(model=model, prompt="Once", max_tokens=6, n=1, temperature=0, seed=3)  # without effect at 0
    chunks = list(create(model=model, prompt="Once", max_tokens=6, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "length"
    assert chunks[-1].usage is None


def test_parts_and_developer_messages_are_texts(server: Server) -> None:
    parts = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
    ]
    answers = [server.chat(messages=messages).json()["choices"] for messages in (MESSAGES, parts)]
    assert answers[0] == answers[1]


def test_prompts_may_be_lists_and_token_ids(server: Server, models: Path) -> None:
    codec = open_engine(models / "torch", device="cpu").codec
    texts = ["one", "two"]
    ids = [codec.vocab.ids(codec.encode(text)) for text in texts]
    alone = [server.complete(text).json()["choices"][0]["text"] for text in texts]
    for prompt in (texts, ids):
        both = server.complete(prompt).json()
        assert [choice["text"] for choice in both["choices"]] == alone
        assert both["usage"]["prompt_tokens"] == sum(map(len, ids))
    assert server.complete(ids[0]).json()["choices"][0]["text"] == alone[0]


def test_a_seed_repeats_several_different_samples(server: Server) -> None:
    def samples() -> list[str]:
        return [choice["text"] for choice in server.complete("Once", n=4, **SAMPLED).json()["choices"]]

    assert samples() == samples()
    assert len(set(samples())) == 4
    streamed = [""] * 4
    for chunk in server.openai().completions.create(model="torch", prompt="Once", n=4, stream=True, **SAMPLED):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == samples()


def test_ctranslate2_refuses_the_seed_of_a_sampled_answer(server: Server) -> None:
    refused = server.complete("Once", model="ct2", **SAMPLED)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "seed")
    assert server.complete("Once", model="ct2", temperature=0, seed=7).status_code == 200  # nothing is drawn
    assert server.complete("Once", model="ct2", temperature=1.0).status_code == 200


def test_what_samples(server: Server) -> None:
    def text(**options: Any) -> str:
        return str(server.complete("Once", **{"max_tokens": 12, **options}).json()["choices"][0]["text"])

    greedy = text()  # the model's default
    assert greedy == text(temperature=0, top_p=0.9) == text(temperature=1.0, top_k=1) == text(top_p=1.0, top_k=-1)
    assert text(temperature=1.0, seed=1) != greedy
    assert text(top_k=200, seed=1) == text(temperature=1.0, top_k=200, seed=1) != greedy
    long = text(max_tokens=60)
    for penalty in ({"repetition_penalty": 50.0}, {"presence_penalty": 2.0}, {"frequency_penalty": 2}):
        assert text(max_tokens=60, **penalty) != long


def test_answers_end_before_a_stop_string(server: Server) -> None:
    whole = server.complete("Once", max_tokens=12).json()["choices"][0]["text"]
    stop = whole[4]
    cut = server.complete("Once", max_tokens=12, stop=["not there", stop]).json()["choices"][0]
    assert (cut["text"], cut["finish_reason"]) == (whole[: whole.index(stop)], "stop")


def test_echo_puts_the_prompt_in_front(server: Server) -> None:
    answer = server.complete("Once", max_tokens=3).json()["choices"][0]["text"]
    assert server.complete("Once", max_tokens=3, echo=True).json()["choices"][0]["text"] == "Once" + answer
    chunks = server.openai().completions.create(model="torch", prompt=["Once"], max_tokens=3, echo=True, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Once" + answer
    nothing = server.complete("Once", max_tokens=0, echo=True).json()
    assert (nothing["choices"][0]["text"], nothing["usage"]["completion_tokens"]) == ("Once", 0)


def test_a_prompt_that_does_not_fit_is_refused(server: Server, spec: Callable[..., ModelSpec]) -> None:
    with running(
        [spec("torch", max_context_length=30), spec("ct2", max_context_length=160, drop_old_rounds=True)]
    ) as small:
        refused = small.complete("a" * 40).json()["error"]
        assert refused["code"] == "context_length_exceeded"
        assert small.complete("a" * 20, max_tokens=20).json()["error"]["code"] == "context_length_exceeded"
        shortened = small.complete("a" * 24).json()  # the default of 8 tokens is no demand
        assert shortened["usage"] == {"prompt_tokens": 25, "completion_tokens": 5, "total_tokens": 30}
        long = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b" * 200},
            {"role": "user", "content": "c"},
        ]
        assert small.chat(model="ct2", messages=long).json()["usage"]["prompt_tokens"] <= 152
        assert small.chat(model="ct2", max_tokens=160).json()["error"]["code"] == "invalid_messages"
        assert small.chat(messages=long).json()["error"]["code"] == "context_length_exceeded"
    lengthy = GenerationConfig(max_length=1000)  # longer than the context, which is no demand either
    with running([spec("torch", max_context_length=400, drop_old_rounds=True, generation=lengthy)]) as small:
        usage = small.chat(messages=long).json()["usage"]
        assert usage["prompt_tokens"] <= 200 and usage["total_tokens"] <= 400


def test_a_translation_model_completes_and_does_not_chat(server: Server, spec: Callable[..., ModelSpec]) -> None:
    greedy = server.complete("w3 w4", model="mt").json()
    assert greedy["usage"]["prompt_tokens"] == 2
    assert greedy["choices"][0]["text"]
    refused = server.chat(model="mt")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")
    assert server.complete("w3", model="mt", echo=True).json()["error"]["param"] == "echo"
    with running([spec("mt", generation=GenerationConfig(beam_size=4, max_length=6))]) as beams:
        best = beams.complete("w3 w4", model="mt", n=3).json()["choices"]
        assert [choice["index"] for choice in best] == [0, 1, 2]
        assert len({choice["text"] for choice in best}) == 3
        chunks = beams.openai().completions.create(model="mt", prompt="w3 w4", n=3, stream=True)
        assert [chunk.choices[0].text for chunk in chunks] == [choice["text"] for choice in best]
        assert beams.complete("w3", model="mt", n=5).json()["error"]["param"] == "n"
        assert beams.complete("w3", model="mt", logprobs=1).json()["error"]["param"] == "logprobs"


def test_the_recommendations_of_a_models_authors_are_defaults() -> None:
    recommended = SamplingDefaults(do_sample=True, temperature=0.6, top_p=0.9)
    chosen = with_model_defaults(GenerationConfig(random_sampling_topp=0.5, max_length=9), recommended)
    assert chosen.random_sampling_temp == 0.6
    assert (chosen.random_sampling_topk, chosen.random_sampling_topp, chosen.max_length) == (0, 0.5, 9)
    greedy = GenerationConfig()
    assert with_model_defaults(greedy, SamplingDefaults()) == greedy
    penalised = with_model_defaults(greedy, SamplingDefaults(repetition_penalty=1.2, temperature=0.6))
    assert (penalised.repetition_penalty, penalised.samples) == (1.2, False)
    beams = GenerationConfig(beam_size=4)
    assert with_model_defaults(beams, recommended) == beams
