"""What holds for every request, whatever its API: keys, sizes, numbers, log, errors, metrics."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from onmt_llm.errors import ConfigError
from onmt_llm.serve.keys import ApiKeys, bearer_key, read_keys
from onmt_llm.serve.models import ModelSpec
from onmt_llm.serve.records import open_access_log
from onmt_llm.serve.service import Limits
from serving import Server, running, until

KEY, ADMIN = "key-of-a-client", "key-of-an-admin"


@pytest.fixture(scope="module")
def locked(spec: Callable[..., ModelSpec]) -> Iterator[Server]:
    """A server with keys, which takes bodies of 2,000 bytes."""
    keys = {"keys": ApiKeys([KEY, "another-key"]), "admin_keys": ApiKeys([ADMIN])}
    with running([spec("torch")], limits=Limits(body_bytes=2000), cors_origins=["https://a.example"], **keys) as server:
        yield server


def error(response: Any) -> dict[str, Any]:
    """The error in a response, which has OpenAI's form."""
    found: dict[str, Any] = response.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    assert found["message"].endswith((".", ")"))
    return found


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong-key", f"Basic {KEY}", f"Bearer {ADMIN}", "\xff"])
def test_a_request_without_a_valid_key_is_refused(locked: Server, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    response = locked.http.get("/v1/models", headers=headers)
    assert (response.status_code, error(response)["code"]) == (401, "invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("key", [KEY, "another-key"])
def test_every_key_opens(locked: Server, key: str) -> None:
    assert locked.http.get("/v1/models", headers={"Authorization": f"bearer {key}"}).status_code == 200


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics"])
def test_state_and_figures_need_no_key(locked: Server, path: str) -> None:
    assert locked.http.get(path).status_code == 200


def test_the_body_of_a_response_does_not_wait_until_its_head_is_acknowledged(server: Server) -> None:
    """As it would with Nagle's algorithm: 40 ms, for all but the first responses of a connection."""
    seconds = []
    for _ in range(30):
        begun = time.perf_counter()
        server.http.get("/health")
        seconds.append(time.perf_counter() - begun)
    assert min(seconds[20:]) < 0.03


def test_models_are_reloaded_only_with_an_admin_key(locked: Server, server: Server) -> None:
    def reload(where: Server, key: str) -> Any:
        return where.http.post("/admin/reload", headers={"Authorization": f"Bearer {key}"})

    locked.pool.load_all()
    assert reload(locked, KEY).status_code == 401
    assert reload(locked, ADMIN).json() == {"reloaded": ["torch"]}
    assert reload(server, "any").status_code == 401  # without admin keys, nobody may


def test_keys_come_from_a_file_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys").write_text("# clients\nfirst-key\n\n second-key \n")
    monkeypatch.setenv("KEYS", "third-key, fourth-key")
    keys = read_keys("api_keys_file", str(tmp_path / "keys"), "KEYS")
    assert all(keys.accepts(f"{name}-key") for name in ("first", "second", "third", "fourth"))
    assert not keys.accepts("# clients")
    assert not ApiKeys().accepts("")
    assert bearer_key("Bearer  a") == "a"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("", "must have a key"), ("short", "at least 8"), ("schlüssel", "ASCII"), (None, "must be a file")],
)
def test_unusable_files_of_keys_are_refused(tmp_path: Path, text: str | None, sentence: str) -> None:
    if text is not None:
        (tmp_path / "keys").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=sentence):
        read_keys("api_keys_file", str(tmp_path / "keys"), "NO_SUCH_VARIABLE")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused(locked: Server, chunked: bool) -> None:
    body = json.dumps({"model": "torch", "prompt": "a" * 2000}).encode()
    content: Any = iter([body[:500], body[500:]]) if chunked else body
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    response = locked.http.post("/v1/completions", content=content, headers=headers)
    assert (response.status_code, error(response)["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "application/json"),
        (b"{", "application/json"),
        (b"[]", "application/json"),
        (b"[" * 100_000, "application/json"),
        (b'{"model": "torch", "prompt": "\xff"}', "application/json"),
        (b'{"model": "torch", "prompt": "Hi"}', "text/plain"),  # what a page of another origin can send
        (b'{"model": "torch", "prompt": "Hi"}', None),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(server: Server, content: bytes, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    response = server.http.post("/v1/completions", content=content, headers=headers)
    assert response.status_code in (400, 415, 422)
    assert error(response)["type"] == "invalid_request_error"


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("GET", "/v1/completions", 405)])
def test_unknown_paths_and_methods_have_the_form_of_errors(server: Server, method: str, path: str, status: int) -> None:
    response = server.http.request(method, path)
    assert response.status_code == status
    error(response)


def test_requests_are_numbered_and_recorded_without_their_texts(server: Server) -> None:
    given = server.http.post(
        "/v1/completions", json={"model": "mt", "prompt": "w1 w2"}, headers={"X-Request-ID": "a-1"}
    )
    made = server.http.get("/health", headers={"X-Request-ID": "x\ty" * 50})
    assert given.headers["x-request-id"] == "a-1"
    assert len(made.headers["x-request-id"]) == 32
    record = next(record for record in server.records if record["id"] == "a-1")
    assert record["status"] == 200
    assert (record["model"], record["prompt_tokens"], record["answers"]) == ("mt", 2, {"complete": 1})
    assert record["answer_tokens"] == given.json()["usage"]["completion_tokens"]
    assert "w1" not in json.dumps(record)


def test_requests_and_answers_are_counted(server: Server) -> None:
    def figures() -> dict[str, float]:
        lines = server.http.get("/metrics").text.splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    before = figures()
    answered = server.complete("Hello", max_tokens=4).json()["usage"]
    server.http.get("/made/up/path")
    after = figures()

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grown('onmt_llm_http_requests_total{method="POST",route="/v1/completions",status="200"}') == 1
    assert grown('onmt_llm_http_requests_total{method="GET",route="unknown",status="404"}') == 1
    assert grown('onmt_llm_prompt_tokens_total{model="torch"}') == answered["prompt_tokens"]
    assert grown('onmt_llm_answer_tokens_total{model="torch"}') == 4
    for histogram in ("queue_time", "first_token", "per_token", "answer"):
        assert grown(f'onmt_llm_{histogram}_seconds_count{{model="torch"}}') == 1
    until(lambda: {figures()[f'onmt_llm_{queue}{{model="torch"}}'] for queue in ("waiting", "running")} == {0})


def test_only_pages_of_allowed_origins_may_read_answers(locked: Server) -> None:
    def allowed(origin: str) -> str | None:
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        found: str | None = locked.http.options("/v1/models", headers=headers).headers.get(
            "access-control-allow-origin"
        )
        return found

    assert allowed("https://a.example") == "https://a.example"
    assert allowed("https://b.example") is None


def test_the_access_log_is_added_to(tmp_path: Path) -> None:
    for line in ("one", "two"):
        open_access_log(str(tmp_path / "logs/access"))(line)
    assert (tmp_path / "logs/access").read_text() == "one\ntwo\n"
    open_access_log("")("nothing happens")
    with pytest.raises(ConfigError, match="access_log"):
        open_access_log(str(tmp_path))
