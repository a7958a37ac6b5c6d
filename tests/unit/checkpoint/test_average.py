"""Averages of checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from onmt_llm.checkpoint.average import average
from onmt_llm.checkpoint.store import Checkpoint

Make = Callable[..., Checkpoint]


def test_average_is_the_mean(tmp_path: Path, make_model: Make) -> None:
    one, two = make_model("one", seed=1), make_model("two", seed=2)
    average([one.path, two.path], tmp_path / "mean")
    mean = Checkpoint.open(tmp_path / "mean")
    for name in one.names():
        torch.testing.assert_close(mean.tensor(name), (one.tensor(name) + two.tensor(name)) / 2)
