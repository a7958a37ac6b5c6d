"""Every parameter of the official client is honoured, without effect, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types import completion_create_params as completion
from openai.types.chat import completion_create_params as chat

from onmt_llm.serve.openai.parameters import IGNORED, REFUSED, ChatParameters, CompletionParameters
from serving import Server

OFFICIAL = {
    "/v1/chat/completions": (chat.CompletionCreateParamsBase, ChatParameters),
    "/v1/completions": (completion.CompletionCreateParamsBase, CompletionParameters),
}
BASE: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "torch", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2},
    "/v1/completions": {"model": "torch", "prompt": "Hi", "max_tokens": 2},
}
ASKING: dict[str, Any] = {
    "audio": {"format": "wav", "voice": "alloy"},
    "best_of": 2,
    "function_call": {"name": "f"},
    "functions": [{"name": "f"}],
    "logit_bias": {"5": 1},
    "metadata": {"a": "b"},
    "modalities": ["text", "audio"],
    "moderation": {"model": "m"},
    "prediction": {"type": "content", "content": "a"},
    "prompt_cache_options": {"ttl": "1h"},
    "reasoning_effort": "low",
    "response_format": {"type": "json_object"},
    "service_tier": "priority",
    "store": True,
    "suffix": "the end",
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "verbosity": "low",
    "web_search_options": {},
}
"""Values that ask for what is not supported; `parallel_tool_calls` alone asks for nothing."""


def official(path: str) -> set[str]:
    return set(OFFICIAL[path][0].__annotations__)


@pytest.mark.parametrize("path", OFFICIAL)
def test_every_official_parameter_is_known(path: str) -> None:
    known = {*OFFICIAL[path][1].model_fields, *REFUSED, *IGNORED}
    assert official(path) <= known
    assert set(ASKING) == set(REFUSED) - {"parallel_tool_calls"}


@pytest.mark.parametrize(("path", "name"), [(path, name) for path in OFFICIAL for name in ASKING])
def test_what_is_not_supported_is_refused_by_name(server: Server, path: str, name: str) -> None:
    response = server.post(path, **BASE[path], **{name: ASKING[name]})
    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", name, "unsupported_parameter")
    assert name in error["message"]


@pytest.mark.parametrize("path", OFFICIAL)
def test_values_that_ask_for_nothing_are_accepted(server: Server, path: str) -> None:
    given = BASE[path]
    nothing = dict.fromkeys(official(path) - set(given))
    neutral = {name: values[0] for name, values in REFUSED.items() if values}
    harmless = {"user": "someone", "safety_identifier": "x", "prompt_cache_key": "y"}
    penalties = {"presence_penalty": 0, "frequency_penalty": 0.0, "model": "ct2"}
    for extra in (nothing, neutral, harmless, penalties):
        assert server.post(path, **{**given, **extra}).status_code == 200


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"temprature": 0}, "temprature"),
        ({"temperature": "0"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"presence_penalty": 1, "model": "ct2"}, "presence_penalty"),
        ({"frequency_penalty": -0.5, "model": "ct2"}, "frequency_penalty"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"max_tokens": 5000}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2, "min_tokens": 3}, "min_tokens"),
        ({"stop": ""}, "stop.constrained-str"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"stream_options": {"what": True}}, "stream_options.what"),
        ({"model": "Torch"}, "model"),
        ({"model": None}, "model"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"max_completion_tokens": 2}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "a", "name": "b"}]}, "messages.0.name"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}, "messages"),
    ],
)
def test_wrong_values_are_refused_by_name(server: Server, changes: dict[str, Any], param: str) -> None:
    path = "/v1/chat/completions"
    response = server.post(path, **{**BASE[path], **changes})
    error = response.json()["error"]
    assert response.status_code == (404 if param == "model" and changes["model"] else 400)
    assert (error["param"] or "").startswith(param.split(".constrained")[0]), error


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
def test_parts_that_are_no_text_are_refused(server: Server, kind: str) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": kind, kind: {"url": "http://a"}}]}]
    response = server.post("/v1/chat/completions", model="torch", messages=messages)
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("messages.0.content")


@pytest.mark.parametrize("prompt", ["", [], [""], [[]], [3, 100_000], [[3], [100_000]], [-1], [1.5], None, {"a": 1}])
def test_wrong_prompts_are_refused(server: Server, prompt: Any) -> None:
    response = server.complete(prompt, max_tokens=1)
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("prompt")
