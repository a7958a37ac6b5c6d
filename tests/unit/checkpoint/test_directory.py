"""Finding a checkpoint, with or without `.pt`; its manifest notices every changed byte."""

from __future__ import annotations

import errno
import random
from pathlib import Path
from typing import Any

import pytest

from onmt_llm.checkpoint.directory import MANIFEST_FILE, find_damage, read_manifest, resolve_path, write_manifest
from onmt_llm.config.checkpoint import CONFIG_FILE
from onmt_llm.errors import CheckpointError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train_state").mkdir()
    for name, size in (("model.safetensors", 900), ("train_state/state.json", 300), ("vocab.txt", 1), ("empty", 0)):
        (tmp_path / name).write_bytes(random.Random(size).randbytes(size))
    write_manifest(tmp_path)
    return tmp_path


def test_what_is_as_it_was_written_has_no_damage(folder: Path) -> None:
    assert find_damage(folder) == []
    (folder / "notes.txt").write_text("my best run")
    assert find_damage(folder) == []


@pytest.mark.parametrize("name", ["model.safetensors", "train_state/state.json", "vocab.txt", MANIFEST_FILE])
def test_every_flipped_bit_is_noticed(folder: Path, name: str) -> None:
    file = folder / name
    content = file.read_bytes()
    rng = random.Random(name)
    for _ in range(100):
        flipped = bytearray(content)
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        file.write_bytes(flipped)
        assert find_damage(folder), flipped
    file.write_bytes(content)
    assert find_damage(folder) == []


def test_the_damage_is_named(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1])
    (folder / "vocab.txt").unlink()
    (folder / "empty").write_bytes(b"x")
    assert find_damage(folder) == [
        "empty has 1 bytes instead of 0",
        "model.safetensors has 899 bytes instead of 900",
        "vocab.txt is missing",
    ]
    (folder / MANIFEST_FILE).unlink()
    assert find_damage(folder) == ["manifest.json is missing"]


@pytest.mark.parametrize("written", ["model", "model.pt"])
@pytest.mark.parametrize("asked", ["model", "model.pt"])
def test_both_spellings_name_the_directory(tmp_path: Path, written: str, asked: str) -> None:
    (tmp_path / written).mkdir()
    (tmp_path / written / CONFIG_FILE).write_text("")
    assert resolve_path(tmp_path / asked) == resolve_path(str(tmp_path / asked)) == tmp_path / written


@pytest.mark.parametrize(
    ("file", "asked", "problem", "hint"),
    [
        (None, "none", "There is no checkpoint at", None),
        ("opennmt.pt", "opennmt", "opennmt.pt is a file", "onmt_llm_convert -from auto"),
        ("opennmt.pt", "opennmt.pt", "opennmt.pt is a file", "onmt_llm_convert -from auto"),
        ("peft/adapter_config.json", "peft", "is a peft adapter", "onmt_llm_lora -action import"),
        ("other/config.json", "other", "must hold config.yaml", "onmt_llm_convert -model_dir"),
        ("run/m_step_10/config.yaml", "run", "must hold config.yaml", "run/m_step_10"),
        ("run/m_step_10/config.yaml", "run/m", "There is no checkpoint at", "did you mean"),
        ("model/config.yaml", "model/config.yaml", "config.yaml is a file", "the directory is"),
    ],
)
def test_something_else_is_named_with_what_to_do(
    tmp_path: Path, file: str | None, asked: str, problem: str, hint: str | None
) -> None:
    if file is not None:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("{}")
    with pytest.raises(CheckpointError, match=problem) as error:
        resolve_path(tmp_path / asked)
    assert (error.value.hint is None) if hint is None else hint in str(error.value.hint)


def test_the_newest_checkpoint_of_a_run_is_suggested(tmp_path: Path) -> None:
    for step in (9, 10):
        (tmp_path / f"m_step_{step}").mkdir()
        (tmp_path / f"m_step_{step}" / CONFIG_FILE).touch()
    with pytest.raises(CheckpointError) as error:
        resolve_path(tmp_path / "m")
    assert error.value.hint == f"did you mean {tmp_path / 'm_step_10'}?"


def test_too_many_open_files_are_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vocab.txt").touch()
    write_manifest(tmp_path)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        read_manifest(tmp_path)


def test_an_address_must_be_downloaded_first() -> None:
    with pytest.raises(CheckpointError, match=r"https://example\.org/model is a URL") as error:
        resolve_path("https://example.org/model")
    assert error.value.hint == "download it first"
