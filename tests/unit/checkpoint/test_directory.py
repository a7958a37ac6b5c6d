"""The manifest notices every changed byte of a checkpoint."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from onmt_llm.checkpoint.directory import MANIFEST_FILE, find_damage, write_manifest


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
