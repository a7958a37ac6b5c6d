"""The official client of OpenAI against a server, with both engines."""

from __future__ import annotations

from typing import Any

import pytest

MESSAGES: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]


@pytest.fixture(params=["torch", "ct2"])
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_chat_is_answered_alike_whole_and_streamed(server: Any, model: str) -> None:
    client = server.openai()
    whole = client.chat.completions.create(model=model, messages=MESSAGES, max_completion_tokens=6)
    stream = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=6, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert whole.usage.completion_tokens == 6
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "length"
    assert whole.choices[0].finish_reason == "length"


def test_the_models_are_listed(server: Any) -> None:
    client = server.openai()
    assert [model.id for model in client.models.list()] == ["torch", "ct2", "mt"]
    assert client.models.retrieve("ct2").id == "ct2"
