"""`open_engine`: which engine a path needs, and paths that hold no usable model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import tiny
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.errors import CheckpointError, ConfigError
from onmt_llm.generate.open import find_release, open_engine
from onmt_llm.releasing import release


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model, an encoder-decoder, and their releases."""
    directory = tmp_path_factory.mktemp("open")
    for name, model in (("lm", tiny.llama()), ("seq2seq", tiny.seq2seq())):
        checkpoint = tiny.write_checkpoint(directory / name, model)
        release(checkpoint, directory / f"{name}_ct2", verify="off")
    return directory


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lm", "TorchEngine"),
        ("lm.pt", "TorchEngine"),
        ("seq2seq", "TorchEngine"),
        ("lm_ct2", "Ct2Generator"),
        ("lm_ct2.pt", "Ct2Generator"),
        ("seq2seq_ct2", "Ct2Translator"),
    ],
)
def test_the_files_decide_which_engine_opens_them(folder: Path, name: str, kind: str) -> None:
    assert type(open_engine(folder / name, device="cpu")).__name__ == kind


def test_several_checkpoints_are_an_ensemble_but_releases_are_not(folder: Path) -> None:
    tiny.write_checkpoint(folder / "other", tiny.llama(), seed=1)
    engine = open_engine([folder / "lm", folder / "other"], device="cpu")
    assert len(engine.generate([["<s>", "w1"]], GenerationConfig(max_length=3))[0]) == 1
    with pytest.raises(ConfigError, match=r"models of an ensemble must be checkpoints, but .*lm_ct2 is a CTranslate2"):
        open_engine([folder / "lm", folder / "lm_ct2"])


@pytest.mark.parametrize("missing", ["config.yaml", "config.json", "vocabulary.json"])
def test_a_release_without_its_files_is_refused(folder: Path, tmp_path: Path, missing: str) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder / "lm_ct2", broken)
    (broken / missing).unlink()
    with pytest.raises(CheckpointError, match=f"must hold {missing}, but does not") as error:
        open_engine(broken)
    assert "release_model" in str(error.value.hint)


def test_what_is_no_release_is_none(folder: Path, tmp_path: Path) -> None:
    assert find_release(folder / "lm") is None and find_release(tmp_path / "none") is None
    assert find_release(folder / "lm_ct2.pt") == folder / "lm_ct2"
    assert find_release("/") is None
    with pytest.raises(CheckpointError, match="There is no checkpoint at"):
        open_engine(tmp_path / "none")


def test_a_model_may_be_the_current_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lm", "lm_ct2"):
        monkeypatch.chdir(folder / name)
        assert open_engine(".").generate([["<s>", "w1"]], GenerationConfig(max_length=3))


def test_a_release_where_a_checkpoint_belongs_is_named(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="must be a checkpoint, but is a CTranslate2 release"):
        Checkpoint.open(folder / "lm_ct2")


def test_nothing_is_said_about_the_release_that_no_memory_is_left_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("mkl_malloc: failed to allocate memory")

    monkeypatch.setattr("ctranslate2.Generator", refuse)
    with pytest.raises(MemoryError):
        open_engine(folder / "lm_ct2")
