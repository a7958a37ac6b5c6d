"""Embeddings extracted from a checkpoint as text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from onmt_llm.checkpoint.extract import extract_vocabulary
from onmt_llm.checkpoint.store import Checkpoint

Make = Callable[..., Checkpoint]


def test_extract_vocabulary(tmp_path: Path, make_model: Make) -> None:
    assert extract_vocabulary(make_model().path, tmp_path / "out/vocab.txt", side="src") == 20
    assert (tmp_path / "out/vocab.txt").read_text().splitlines()[:4] == ["<unk>", "<s>", "</s>", "t0"]
