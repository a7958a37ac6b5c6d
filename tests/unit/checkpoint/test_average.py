"""Averages of checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tiny
from onmt_llm.checkpoint.average import average
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.errors import CheckpointError

Make = Callable[..., Checkpoint]


def test_models_of_different_vocabularies_have_no_mean(tmp_path: Path) -> None:
    tokens = ["<unk>", "<s>", "</s>", "a", "b", "c"]
    one = tiny.write_checkpoint(tmp_path / "one", tiny.llama(vocab_size=6), tokens)
    two = tiny.write_checkpoint(tmp_path / "two", tiny.llama(vocab_size=6), [*tokens[:3], "c", "b", "a"])
    with pytest.raises(CheckpointError, match="vocabulary"):
        average([one, two], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_average_is_the_mean(tmp_path: Path, make_model: Make) -> None:
    one, two = make_model("one", seed=1), make_model("two", seed=2)
    average([one.path, two.path], tmp_path / "mean")
    mean = Checkpoint.open(tmp_path / "mean")
    for name in one.names():
        torch.testing.assert_close(mean.tensor(name), (one.tensor(name) + two.tensor(name)) / 2)
