"""How a run ended: its status, its last step and its newest checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class RunStatus(StrEnum):
    """How a run, or its training loop, ended."""

    FINISHED = "finished"
    """All updates are done, or all epochs."""
    STOPPED_EARLY = "stopped early"
    """Validations no longer improved."""
    INTERRUPTED = "interrupted"
    """A signal asked the run to stop."""
    OUT_OF_TIME = "out of time"
    """`max_time` has passed."""
    LOSS_SPIKE = "loss spike"
    """The loop alone ends so: the run then rolls back and trains on."""
    ALREADY_DONE = "already done"
    """The checkpoint to resume from had no updates left to do."""
    SAMPLED = "sampled"
    """Samples of the data were written instead of training."""


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        status: "finished", "stopped early", "interrupted", "out of time", "already done" or "sampled".
        step: Updates done in total.
        checkpoint: The newest checkpoint; None if none was written.
        best_ppl: Best validation perplexity; inf without validation.
        exit_code: Exit code of the command: 0, or the shell's code for the signal that ended the run.
    """

    status: RunStatus
    step: int = 0
    checkpoint: Path | None = None
    best_ppl: float = float("inf")
    exit_code: int = 0
