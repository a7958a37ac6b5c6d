"""Rollback: which checkpoint a run returns to after a loss spike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from onmt_llm.training.process.dist import World
from onmt_llm.training.run.attempt import Rollback, roll_back

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


class Data:
    """A pipeline that records what is done with it."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def skip_bucket(self) -> None:
        self.calls.append("skip")

    def state_dict(self) -> dict[str, Any]:
        self.calls.append("state")
        return {"bucket": 5}

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture
def written(tmp_path: Path) -> list[Path]:
    """Three checkpoints of a format before there were manifests, and one that was removed."""
    paths = [tmp_path / f"m_step_{step}" for step in (2, 4, 6)]
    for path in paths:
        (path / "train_state").mkdir(parents=True)
        (path / "train_state/state.json").write_text(json.dumps({"version": 1}))
    return [tmp_path / "m_step_1", *paths]


def rolled_back(written: list[Path], count: int) -> tuple[Rollback, Data]:
    data = Data()
    return roll_back(written, data, ALONE, seed=3, count=count), data  # type: ignore[arg-type]


def test_the_first_rollback_returns_to_the_newest_checkpoint(written: list[Path]) -> None:
    rollback, data = rolled_back(written, 1)
    assert rollback == Rollback(written[3], {"bucket": 5}, 3, 1, written[1:])
    assert data.calls == ["skip", "state", "close"], "the position is behind the bucket with the spike"


def test_the_second_rollback_removes_the_newest_and_returns_to_the_one_before(written: list[Path]) -> None:
    rollback, _ = rolled_back(written, 2)
    assert rollback.checkpoint == written[2] and rollback.written == written[1:3]
    assert not written[3].exists()


def test_without_a_checkpoint_a_run_returns_to_its_start(tmp_path: Path) -> None:
    rollback, _ = rolled_back([tmp_path / "m_step_1"], 1)
    assert rollback.checkpoint is None and rollback.written == []
