"""Rollback after a loss spike: return to an earlier checkpoint, and continue with later data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onmt_llm.data.pipeline import Pipeline
from onmt_llm.log import logger
from onmt_llm.training.process.dist import World
from onmt_llm.training.run_folder import newest_intact, remove_checkpoint


@dataclass(frozen=True)
class Rollback:
    """How a run continues after a loss spike.

    Attributes:
        checkpoint: The checkpoint to return to; None = the start of the run.
        position: This rank's data position, behind the bucket with the spike.
        seed: The run's seed, which determines the order of the data.
        count: Rollbacks since the last regular checkpoint.
        written: Checkpoints that the run has written so far.
    """

    checkpoint: Path | None
    position: dict[str, Any]
    seed: int
    count: int
    written: list[Path]


def roll_back(written: list[Path], data: Pipeline, world: World, *, seed: int, count: int) -> Rollback:
    """Choose the newest checkpoint of the run, the one before it at the second rollback, and so on.

    Args:
        written: Checkpoints of the run, in order.
        data: Batches for training; closed here.
        world: This process among the others.
        seed: The run's seed.
        count: Rollbacks since the last regular checkpoint, this one included.
    """
    existing = list(dict.fromkeys(path for path in written if path.exists()))
    path = ""
    if world.is_main:
        if count > 1 and len(existing) > 1:
            remove_checkpoint(existing.pop())
        path = str(newest_intact(existing, set_aside=True) or "")
    path = world.gather({"path": path})[0]["path"]
    logger.warning("The run goes back to %s.", path or "its start")
    data.skip_bucket()
    rollback = Rollback(Path(path) if path else None, data.state_dict(), seed, count, existing)
    data.close()
    return rollback
