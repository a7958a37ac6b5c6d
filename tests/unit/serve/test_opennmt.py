"""OpenNMT-py's REST API, compared with what its own server answered (tests/oracle/make_opennmt_server_fixtures.py)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from onmt_llm.checkpoint.convert import convert
from onmt_llm.cli import serve as command
from onmt_llm.cli.jobs import load_job
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.generate.open import open_engine
from onmt_llm.releasing import release
from tests.tiny import seq2seq, write_checkpoint

pytest.importorskip("fastapi")

from starlette.testclient import TestClient

from onmt_llm.serve.app import ServerSettings, build_app
from onmt_llm.serve.keys import ApiKeys
from onmt_llm.serve.models import ModelPool, ModelSpec
from onmt_llm.serve.service import Limits

SHORT = GenerationConfig(max_length=5, beam_size=2)
DATA = Path(__file__).parents[2] / "data"
RECORDED: dict[str, Any] = json.loads((DATA / "opennmt_server.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A server with the configuration of the recorded one."""
    folder = tmp_path_factory.mktemp("server")
    models = folder / "available_models"
    convert(DATA / "opennmt/reverse.pt", models / "model")
    release(models / "model", models / "release", quantization="float32", text="1 2 3\n4 5 6\n")
    conf = {**RECORDED["conf"], "models_root": str(models)}
    (folder / "conf.json").write_text(json.dumps(conf))
    loaded = load_job("onmt_llm_serve", ["-config", str(folder / "conf.json")])
    pool = ModelPool(command.build_specs(loaded.job))
    pool.load_all()
    yield TestClient(build_app(pool, ServerSettings()))
    pool.close()


def test_answers_are_those_of_the_recorded_server(client: TestClient) -> None:
    for recorded in RECORDED["answers"]:
        body, status, theirs = recorded["body"], recorded["status"], recorded["answer"]
        answer = client.request(recorded["method"], recorded["path"], json=body)
        ours = answer.json()
        if status >= 400:  # a page for browsers
            if "clone" in recorded["path"]:  # which the original only fails to do
                assert (answer.status_code, ours["status"]) == (200, "ok")
            else:
                assert "error" in ours and (answer.status_code >= 400 or ours["status"] == "error"), recorded
            continue
        assert answer.status_code == status, answer.text
        if recorded["path"].endswith("/translate"):
            check_translations(ours, theirs)
        elif recorded["path"].endswith("/models"):
            check_models(ours, theirs)
        elif "error" in theirs:
            assert set(ours) == set(theirs) and ours["status"] == "error"
        else:
            assert ours == theirs


def check_translations(ours: list[list[dict[str, Any]]], theirs: list[list[dict[str, Any]]]) -> None:
    assert [len(row) for row in ours] == [len(row) for row in theirs]
    for mine, original in zip(chain(*ours), chain(*theirs), strict=True):
        assert set(original) - set(mine) <= {"align_score"} and set(mine) <= set(original)
        for key in ("src", "n_best"):
            assert mine[key] == original[key]
        if original["src"].strip():  # of white space alone the original makes twice as much
            assert mine["tgt"] == original["tgt"]
        if "align" in original:
            assert mine["align"] == original["align"]
        else:  # its CTranslate2 models count another length in scores
            assert mine["pred_score"] == pytest.approx(original["pred_score"], abs=1e-5)


def check_models(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    for mine, original in zip(ours, theirs, strict=True):
        for key in ("model_id", "loaded", "timeout"):
            assert mine[key] == original[key]
        known = {key: value for key, value in original["opt"].items() if key != "gpu"}
        assert {key: mine["opt"][key] for key in known} == known


def test_a_clone_has_its_own_options(client: TestClient) -> None:
    number = client.post(
        "/translator/clone_model/100", json={"opt": {"beam_size": 4, "n_best": 4, "batch_size": 1}}
    ).json()["model_id"]
    answer = client.post("/translator/translate", json=[{"id": number, "src": "1 2"}]).json()
    assert [row[0]["n_best"] for row in answer] == [4] * 4
    same = client.post(f"/translator/clone_model/{number}", json={"timeout": 3}).json()
    assert same["status"] == "ok" and same["model_id"] != number and same["load_time"] >= 0
    cards = {card["model_id"]: card for card in client.get("/translator/models").json()}
    assert cards[same["model_id"]]["timeout"] == 3 and cards[same["model_id"]]["opt"]["n_best"] == 4


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"opt": {"beam_sise": 2}}, "beam_sise"),
        ({"opt": {"beam_size": "many"}}, "beam_size"),
        ({"opt": [1]}, "'opt' must be a mapping"),
        ({"opt": {"copy_attn": True}}, "copy_attn"),
        ({"opt": {"threads": 3}}, "threads"),
        ({"opt": {"tgt_file_prefix": True}}, "tgt_file_prefix"),
        ({"opt": {"beam_size": 9, "n_best": 9}}, "'n_best' must be at most 8"),
        ({"opt": {"max_length": 10**6}}, "'max_length' must be at most 4,096"),
    ],
)
def test_wrong_options_of_a_clone(client: TestClient, body: Any, message: str) -> None:
    before = client.get("/translator/models").json()
    answer = client.post("/translator/clone_model/100", json=body)
    assert answer.json()["status"] == "error" and message in answer.json()["error"]
    assert client.get("/translator/models").json() == before


def test_the_content_type_does_not_matter(client: TestClient) -> None:
    answer = client.post("/translator/translate", content=b'[{"id": 100, "src": "1 2"}]')
    assert answer.json()[0][0]["tgt"] == "2 1"


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"[", 400),
        (b"[" * 100_000, 400),
        (b"[{}]", 400),
        (b'[{"src": 1}]', 400),
        (b'[{"src": "1", "ref": 1}]', 400),
        (b'[{"src": "1", "id": [100]}]', 404),
        (b'[{"src": "1", "id": "\\ud800"}]', 404),
    ],
)
def test_wrong_bodies(client: TestClient, content: bytes, status: int) -> None:
    answer = client.post("/translator/translate", content=content)
    assert (answer.status_code, answer.json()["status"]) == (status, "error")


@pytest.mark.parametrize("admins", [[], ["admin-key"]])
def test_keys(tmp_path: Path, admins: list[str]) -> None:
    path = write_checkpoint(tmp_path / "model", seq2seq())
    pool = ModelPool([ModelSpec("0", lambda: open_engine(path, device="cpu"), generation=SHORT)])
    settings = ServerSettings(keys=ApiKeys(["user-key"]), admin_keys=ApiKeys(admins))
    client = TestClient(build_app(pool, settings))

    def status(method: str, path: str, key: str) -> int:
        headers = {"authorization": f"Bearer {key}"}
        return client.request(method, f"/translator/{path}", headers=headers, json=[{"src": "w1"}]).status_code

    assert status("GET", "health", "") == 200
    for key in ("", "wrong-key"):
        assert status("POST", "translate", key) == status("GET", "models", key) == status("GET", "to_cpu/0", key) == 401
    assert status("POST", "translate", "user-key") == status("GET", "models", "user-key") == 200
    assert status("GET", "unload_model/0", "user-key") == (401 if admins else 200)
    for admin in admins:
        assert status("GET", "unload_model/0", admin) == status("POST", "translate", admin) == 200
    pool.close()


def test_a_translation_is_complete_or_refused(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "model", seq2seq())
    pool = ModelPool([ModelSpec("0", lambda: open_engine(path, device="cpu"), generation=SHORT)])
    client = TestClient(build_app(pool, ServerSettings(limits=Limits(seconds=1e-9))))
    answer = client.post("/translator/translate", json=[{"src": "w1 w2"}])
    assert answer.status_code == 503 and "must be complete within" in answer.json()["error"]
    answer = client.post("/translator/translate", json=[{"src": "w1"}] * 10_001)
    assert answer.status_code == 400 and "at most 10,000 texts" in answer.json()["error"]
    pool.close()


def test_ids_of_models_with_names(tmp_path: Path) -> None:
    """Names that are numbers are ids; the others have the lowest free ones. `ref` may be what answers start with."""
    path = write_checkpoint(tmp_path / "model", seq2seq())

    def open_model() -> Any:
        return open_engine(path, device="cpu")

    prefixed = ModelSpec("prefixed", open_model, generation=SHORT, tgt_file_prefix=True)
    pool = ModelPool([ModelSpec(name, open_model, generation=SHORT) for name in ("first", "1", "other")] + [prefixed])
    client = TestClient(build_app(pool, ServerSettings()))
    assert [card["model_id"] for card in client.get("/translator/models").json()] == [0, 1, 2, 3]

    def translation(number: int | str, **entry: str) -> str:
        return str(client.post("/translator/translate", json=[{"id": number, **entry}]).json()[0][0]["tgt"])

    assert translation(0, src="w1 w2") == translation(3, src="w1 w2") == translation("other", src="w1 w2")
    assert translation(2, src="w1 w2", ref="w9 w8") == translation(0, src="w1 w2")
    assert translation(3, src="w1 w2", ref="w9 w8").startswith("w9 w8 ")
    pool.close()
