"""`onmt_llm_hub`, against a small Hub on this machine: what is sent, what arrives, and what goes wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_hub
import pyarrow
import pyarrow.parquet
import pytest
from fake_hub import FakeHub

import tiny
from onmt_llm.checkpoint.directory import find_damage, write_manifest
from onmt_llm.checkpoint.formats.huggingface.write import export_hf
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.cli.hub import main
from onmt_llm.config.data import CorpusConfig
from onmt_llm.data.readers import open_reader

REPO = "me/model"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with fake_hub.serving() as server:
        fake_hub.use(server, monkeypatch, tmp_path)
        yield server


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint with a training state."""
    path = tiny.write_chat_model(tmp_path / "model")
    (path / "train_state").mkdir()
    (path / "train_state/state.json").write_text("{}")
    write_manifest(path, fingerprint=Checkpoint.open(path).fingerprint)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def upload(folder: Path, *words: str) -> int:
    return main(["upload", "-folder", str(folder), "-repo", REPO, *words])


def download(output: Path, *words: str) -> int:
    return main(["download", "-repo", REPO, "-output", str(output), *words])


def test_an_export_arrives_byte_by_byte(hub: FakeHub, model: Path, tmp_path: Path, capsys: Any) -> None:
    export = export_hf(model, tmp_path / "hf")
    assert upload(export, "-commit_message", "first") == 0
    assert hub.repos[REPO].private and hub.repos[REPO].messages[-1] == "first"
    assert hub.count("PUT", "/large/") > 0
    assert download(tmp_path / "again") == 0
    assert contents(tmp_path / "again") == contents(export)
    said = capsys.readouterr()
    assert "onmt_llm_convert -model_dir" in said.out and fake_hub.TOKEN not in said.out + said.err
    assert not list(tmp_path.glob(".*"))


def test_the_training_state_stays_here_unless_it_is_asked_for(hub: FakeHub, model: Path, tmp_path: Path) -> None:
    assert upload(model) == 0
    assert download(tmp_path / "again") == 0
    assert not (tmp_path / "again/train_state").exists() and find_damage(tmp_path / "again", thorough=True) == []
    assert Checkpoint.open(tmp_path / "again").fingerprint == Checkpoint.open(model).fingerprint
    assert upload(model, "-train_state", "-revision", "whole", "-private", "false") == 0
    assert download(tmp_path / "whole", "-revision", "whole") == 0
    assert contents(tmp_path / "whole") == contents(model)
    assert download(tmp_path / "again", "-revision", "whole") == 4  # it exists
    assert download(tmp_path / "again", "-revision", "whole", "-force") == 0
    assert contents(tmp_path / "again") == contents(model)


def test_what_the_hub_has_is_not_sent_again(hub: FakeHub, model: Path) -> None:
    assert upload(model) == 0
    sent = hub.count("PUT", "/large/")
    assert upload(model, "-revision", "other") == 0
    assert hub.count("PUT", "/large/") == sent


def test_a_dataset_is_downloaded_by_its_name_and_read(hub: FakeHub, tmp_path: Path, capsys: Any) -> None:
    table = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"text": f"row {n}" * 50} for n in range(9)]), table)
    hub.repos[REPO] = fake_hub.Repository()
    hub.repos[REPO].commit("main", {"data/train-00000-of-00001.parquet": table.getvalue().to_pybytes()}, "data")
    assert download(tmp_path / "rows", "-dataset", "true") == 0
    assert hub.count("GET", "/api/datasets/") and f"path_table: {tmp_path / 'rows'}" in capsys.readouterr().out
    reader = open_reader("a", CorpusConfig(path_table=str(tmp_path / "rows")))
    assert len(list(iter(reader.read, None))) == 9


def test_a_download_that_was_cut_continues(hub: FakeHub, model: Path, tmp_path: Path, capsys: Any) -> None:
    assert upload(model) == 0
    hub.failure = lambda method, path: fake_hub.CUT if method == "GET" and "safetensors" in path else None
    assert download(tmp_path / "again") == 4
    assert "connection failed" in capsys.readouterr().err and not (tmp_path / "again").exists()
    hub.failure, before = lambda method, path: None, hub.count("GET", "config.yaml")
    assert download(tmp_path / "again") == 0
    assert hub.count("GET", "config.yaml") == before
    assert find_damage(tmp_path / "again", thorough=True) == []


def test_a_file_that_was_changed_on_the_hub_is_not_published(hub: FakeHub, model: Path, tmp_path: Path) -> None:
    assert upload(model) == 0
    _, files = hub.repos[REPO].at("main")
    files["config.yaml"] += b"\n"
    assert download(tmp_path / "again") == 4
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_that_was_damaged_on_the_way_is_not_published(
    hub: FakeHub, model: Path, tmp_path: Path, capsys: Any, name: str
) -> None:
    """The Hub has its checksum, also of a model without a manifest."""
    assert upload(export_hf(model, tmp_path / "hf")) == 0
    hub.damaged = name
    assert download(tmp_path / "again") == 4
    assert f"{name} must arrive as it is" in capsys.readouterr().err and not (tmp_path / "again").exists()
    hub.damaged = ""
    assert download(tmp_path / "again") == 0


@pytest.mark.parametrize(
    ("status", "sentence"),
    [(401, "must grant access"), (403, "must grant access"), (404, "must exist on the Hub"), (500, "answers 500")],
)
@pytest.mark.parametrize("action", [upload, download])
def test_refusals_are_sentences(
    hub: FakeHub, model: Path, tmp_path: Path, capsys: Any, action: Any, status: int, sentence: str
) -> None:
    hub.failure = lambda method, path: status
    assert action(model if action is upload else tmp_path / "again") == 4
    said = capsys.readouterr().err
    assert sentence in said and "Traceback" not in said and fake_hub.TOKEN not in said


def test_no_token_no_network_no_client(
    hub: FakeHub, model: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert upload(model) == 4
    assert "hf auth login" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert download(tmp_path / "again") == 4
    assert "HF_HUB_OFFLINE" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert download(tmp_path / "again") == 4
    assert "connection failed" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert download(tmp_path / "again") == 2
    assert "pip install 'onmt_llm[hub]'" in capsys.readouterr().err


def test_paths_of_this_machine_are_told(hub: FakeHub, model: Path, capsys: Any) -> None:
    assert upload(model) == 0 and "names paths" not in capsys.readouterr().err
    (model / "release_report.json").write_text(json.dumps({"source": str(model)}))
    write_manifest(model)
    assert upload(model) == 0 and "release_report.json names paths" in capsys.readouterr().err


def test_what_is_no_model_is_not_sent(hub: FakeHub, model: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "letters").mkdir()
    assert upload(tmp_path / "letters") == 4
    manifest = json.loads((model / "manifest.json").read_text())
    (model / "vocab.txt").write_text("other\n")
    assert "vocab.txt" in manifest["files"] and upload(model) == 4
    assert main(["upload", "-folder", str(model), "-repo", "a/b/c"]) in (2, 4)
    assert main(["share"]) == 2
    assert hub.requests == []
