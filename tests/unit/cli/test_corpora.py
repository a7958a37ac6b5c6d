"""Datasets of the Hub by their address: fetched once, pinned, and the same again when a run is resumed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_hub
import pyarrow
import pyarrow.parquet
import pytest
from fake_hub import FakeHub

import tiny
from onmt_llm.checkpoint.provenance import Provenance, TrainingRun, UsedCorpus, provenance_text
from onmt_llm.cli.checks import corpora_problems
from onmt_llm.cli.inputs import corpus_files, missing_files
from onmt_llm.cli.jobs import load_job
from onmt_llm.config.loading.load import Loaded
from onmt_llm.data.readers import open_reader
from onmt_llm.data.readers.files import expand
from onmt_llm.data.readers.hub_path import HubPath, source_of
from onmt_llm.errors import ConfigError, DataError, Problem

REPO = "me/rows"


def training_corpora(loaded: Loaded[Any]) -> Iterator[Problem]:
    yield from missing_files(loaded, corpus_files(loaded))
    yield from corpora_problems(loaded)


def table(text: str) -> bytes:
    stream = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"text": text}] * 3), stream)
    return bytes(stream.getvalue().to_pybytes())


def files(text: str) -> fake_hub.Files:
    names = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-0.parquet"]
    return {
        **{name: table(f"{text} {name}") for name in names},
        "FR/A/train.txt": b"[A:] a\n",
        "FR/B/train.txt": b"[B:] b\n",
    }


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    monkeypatch.chdir(tmp_path)
    with fake_hub.serving() as server:
        fake_hub.use(server, monkeypatch, tmp_path)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        server.repos[REPO] = fake_hub.Repository()
        server.repos[REPO].commit("main", files("first"), "data")
        yield server


def load(path: str, command: str = "onmt_llm_data", **options: object):
    corpus = {"path_txt" if path.endswith(".txt") else "path_table": path, **options}
    values = {"data": {"a": corpus}, "save_model": "run/m"}
    return load_job(command, [], values=values, checks=lambda loaded: ()).job.corpora.data


def test_a_dataset_is_fetched_once_and_pinned(hub: FakeHub) -> None:
    first = hub.repos[REPO].branches["main"]
    corpus = load(f"hf://datasets/{REPO}")["a"]
    assert corpus.path_table == [f"hf://datasets/{REPO}@{first}"]
    assert len(list(iter(open_reader("a", corpus).read, None))) == 6  # without the split `test`, which is not fetched
    assert not hub.count("GET", "test-0") and hub.count("GET", "train-00001") == 1
    asked = len(hub.requests)
    second = hub.repos[REPO].commit("main", files("second"), "other data")
    assert load(f"hf://datasets/{REPO}")["a"] == corpus and len(hub.requests) == asked
    assert load(f"hf://datasets/{REPO}@{second}")["a"].path_table == [f"hf://datasets/{REPO}@{second}"]
    (file, *_) = expand(f"hf://datasets/{REPO}@{first}/data/train-*.parquet")
    assert source_of(file) == f"hf://datasets/{REPO}@{first}"


def test_patterns_and_groups(hub: FakeHub) -> None:
    Path("table.csv").write_text("dataset,genre\nFR/A,x\nFR/B,y\n")
    corpora = load(f"hf://datasets/{REPO}/FR/*/train.txt", group_by="genre", group_table="table.csv")
    assert list(corpora) == ["a_x", "a_y"] and not hub.count("GET", "parquet")
    assert [expand(corpus.path_txt)[0].read_text() for corpus in corpora.values()] == ["[A:] a\n", "[B:] b\n"]


def test_a_resumed_run_reads_what_it_began_with(hub: FakeHub) -> None:
    """Also where the cache has another revision under the name by now."""
    first = hub.repos[REPO].branches["main"]
    load(f"hf://datasets/{REPO}")
    used = UsedCorpus(name="a", weight=1, sources=[f"hf://datasets/{REPO}@{first}"])
    tiny.write_checkpoint(Path("run/m_step_5"), tiny.llama())
    Path("run/m_step_5/provenance.json").write_text(provenance_text(Provenance(runs=[TrainingRun(corpora=[used])])))
    second = hub.repos[REPO].commit("main", files("second"), "other data")
    Path("cache/datasets--me--rows/refs/main").write_text(second)
    values = {"data": {"a": {"path_table": f"hf://datasets/{REPO}"}}, "save_model": "run/m"}
    for start, commit in {"auto": first, "run/m_step_5": first, None: second}.items():
        job = load_job("onmt_llm_train", [], values={**values, "train_from": start}, checks=lambda loaded: ()).job
        assert job.corpora.data["a"].path_table == [f"hf://datasets/{REPO}@{commit}"]


def test_without_the_hub(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    hub.failure = lambda method, path: 503
    with pytest.raises(DataError, match=REPO) as caught:
        load(f"hf://datasets/{REPO}")
    assert f"onmt_llm_hub download -dataset true -repo {REPO}" in str(caught.value)
    hub.failure = lambda method, path: None
    corpus = load(f"hf://datasets/{REPO}")["a"]
    Path("cache").rename("other")  # with the files alone, as if another program had fetched some
    (listing,) = Path("other").glob("datasets--*/trees/*.json")
    listing.unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "other"))
    hub.failure = lambda method, path: 503
    with caplog.at_level(logging.WARNING, "onmt_llm"):
        assert load(f"hf://datasets/{REPO}")["a"] == corpus
    assert "may not have all" in caplog.text


def test_what_is_wrong_with_an_address(hub: FakeHub) -> None:
    for path, error, words in [
        ("hf://me/rows", ConfigError, "hf://datasets/OWNER/NAME"),
        ("hf://datasets/me/none", DataError, "me/none must exist on the Hub"),
        (f"hf://datasets/{REPO}@none", DataError, "revision"),
        (f"hf://datasets/{REPO}/nowhere/*.parquet", DataError, "matches none"),
    ]:
        with pytest.raises(error, match=words) as caught:
            load_job("onmt_llm_build_vocab", [], values={"data": {"a": {"path_table": path}}}, checks=training_corpora)
        assert not caught.value.problems
    assert str(HubPath.parse("hf://datasets/a/b@refs/convert/parquet/c")) == "hf://datasets/a/b@refs/convert/parquet/c"
    with pytest.raises(DataError, match="cache"):
        expand("hf://datasets/me/other")
