"""Input files and models that a job names: which are missing, and how that is said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import tiny
from onmt_llm.cli.checks import corpora_problems
from onmt_llm.cli.inputs import corpus_files, missing_files, missing_models, missing_options
from onmt_llm.cli.jobs import load_job
from onmt_llm.errors import CheckpointError, DataError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_missing_files_say_what_is_there_instead(folder: Path) -> None:
    loaded = load_job("onmt_llm_translate", [])
    (folder / "text").write_text("")
    os.mkfifo(folder / "pipe")
    found = {}
    for path in ("text", "nowhere", ".", "*.txt", "-", "pipe"):
        found[path] = [problem.sentence for problem in missing_files(loaded, [("'src'", path, ("src",))])]
    sentence = "'src' must be a file that exists, but '{}' {}."
    assert found == {
        "text": [],
        "nowhere": [sentence.format("nowhere", "is not")],
        ".": [sentence.format(".", "is a folder")],
        "*.txt": [sentence.format("*.txt", "matches none")],
        "-": [sentence.format("-", "is not")],
        "pipe": [sentence.format("pipe", "is not")],
    }
    streams = [("'src'", path, ("src",)) for path in ("-", "pipe", "/dev/null")]
    assert not list(missing_files(loaded, streams, streams=True))


def test_the_place_in_the_yaml_is_named(folder: Path) -> None:
    (folder / "run.yaml").write_text("data:\n  news:\n    path_src: news.*.txt\n")
    loaded = load_job("onmt_llm_build_vocab", ["-config", "run.yaml"])
    (problem,) = missing_files(loaded, corpus_files(loaded))
    assert problem.message == (
        "run.yaml:3  'data.news.path_src' must be a file that exists, but 'news.*.txt' matches none."
    )
    assert problem.kind is DataError
    for number in (1, 2):
        (folder / f"news.{number}.txt").write_text("")
    assert [path for _, path, _ in corpus_files(loaded)] == ["news.1.txt", "news.2.txt"]
    assert not list(missing_files(loaded, corpus_files(loaded)))


def test_a_dataset_is_a_folder_of_files(folder: Path) -> None:
    (folder / "chats/data").mkdir(parents=True)
    (folder / "chats/data/train-00000-of-00001.parquet").write_bytes(b"")
    for split, found in {"train": ["chats/data/train-00000-of-00001.parquet"], "test": []}.items():
        loaded = load_job("onmt_llm_data", [f"-data={{a: {{path_table: chats, dataset_split: {split}}}}}"])
        assert [path for _, path, _ in corpus_files(loaded)] == found
        assert [problem.kind for problem in corpora_problems(loaded)] == ([] if found else [DataError])


def test_missing_models_and_options(folder: Path) -> None:
    model = str(tiny.write_checkpoint(folder / "model", tiny.llama()))
    loaded = load_job("onmt_llm_translate", ["-model", model, "nowhere"])
    (problem,) = missing_models(loaded, "inference", ("model",))
    assert problem.sentence.startswith("model: ") and "nowhere" in problem.sentence and problem.kind is CheckpointError
    (problem,) = missing_options(loaded, "inference", ("model", "src"), "usage")
    assert (problem.sentence, problem.hint) == ("'src' must be given, but is not.", "usage")
