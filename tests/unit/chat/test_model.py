"""A model as the chat uses it, over real schedulers and engines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

import tiny
from onmt_llm.chat.model import ChatModel, ChatSettings
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.errors import ConfigError, DataError, OnmtLlmError
from onmt_llm.generate.open import open_engine
from onmt_llm.generate.scheduling.scheduler import Scheduler
from onmt_llm.text.templates.message import Message

OPTIONS = GenerationConfig(max_length=16)
HELLO = [Message("user", "Hello")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatModel]:
    engine = open_engine(tiny.write_chat_model(tmp_path_factory.mktemp("chat") / "tiny"), device="cpu")
    with Scheduler(engine) as scheduler:
        yield ChatModel(scheduler, OPTIONS, max_context_length=256)


def answer(model: ChatModel, settings: ChatSettings, **more: Any) -> str:
    submitted = model.submit(HELLO, settings, notify=lambda: None, **more)
    return "".join(delta.text for delta in submitted.ticket.deltas())


def test_settings_of_a_recipe_change_nothing() -> None:
    for options in (
        OPTIONS, GenerationConfig(random_sampling_topk=0, random_sampling_topp=0.9, random_sampling_temp=0.7, seed=3),
    ):  # fmt: skip
        assert ChatSettings.of(options).applied(options) == options


@pytest.mark.parametrize(
    ("change", "name"),
    [({"temperature": -1.0}, "temperature"), ({"top_p": 1.5}, "top_p"), ({"top_k": -7}, "top_k"),
     ({"max_tokens": 0}, "max_tokens"), ({"seed": 2**70}, "seed")],
)  # fmt: skip
def test_a_setting_outside_its_range_is_refused_by_its_name(change: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' must be in its range"):
        replace(ChatSettings.of(OPTIONS), **change).applied(OPTIONS)


def test_settings_reach_the_engine(model: ChatModel) -> None:
    base = model.settings
    assert answer(model, replace(base, max_tokens=4)) == answer(model, base)[:4]
    drawn = replace(base, top_k=0, temperature=2.0, max_tokens=24)
    assert answer(model, replace(drawn, seed=1)) == answer(model, replace(drawn, seed=1))
    assert answer(model, replace(drawn, seed=1)) != answer(model, replace(drawn, seed=2))


def test_a_truncated_answer_continues_as_if_it_had_not_been_truncated(model: ChatModel) -> None:
    codec = model._scheduler.codec
    whole = model.submit(HELLO, model.settings, notify=lambda: None).ticket.result()[0].text
    short = answer(model, replace(model.settings, max_tokens=1))
    assert codec.tokenizer.encode(short) and whole.startswith(short)
    assert short + answer(model, replace(model.settings, max_tokens=15), partial=short) == whole


def test_no_room_for_the_prompt_or_the_answer_is_refused(model: ChatModel) -> None:
    with pytest.raises(ConfigError, match="'max_context_length' must be above max_length"):
        answer(model, replace(model.settings, max_tokens=256))
    with pytest.raises(DataError, match="must leave room for the answer"):
        model.submit([Message("user", "long " * 100)], model.settings, notify=lambda: None)
    with pytest.raises(OnmtLlmError, match="must leave room for the answer"):
        answer(model, model.settings, partial="long " * 100)
