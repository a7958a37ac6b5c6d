"""How a run ended: its status, its last step and its newest checkpoint; also as a file, for other processes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from onmt_llm.atomic import write_text


class RunStatus(str, Enum):
    """How a run, or its training loop, ended. Python 3.10 has no `StrEnum`."""

    __str__ = str.__str__

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


_ENDED = frozenset({RunStatus.FINISHED, RunStatus.STOPPED_EARLY, RunStatus.ALREADY_DONE})
"""After these a run has nothing left to do: started again, it would do no update."""


def status_file(save_model: str) -> Path:
    """The file that says how a run ended; it is missing while the run trains, and after a failure."""
    return Path(f"{save_model}_status.json")


def write_status(save_model: str, result: TrainResult) -> None:
    """Write how a run ended."""
    write_text(status_file(save_model), json.dumps({"status": result.status, "step": result.step}) + "\n")


def read_status(save_model: str) -> RunStatus | None:
    """How a run ended; None if it has not, or if that is not known."""
    try:
        return RunStatus(json.loads(status_file(save_model).read_text(encoding="utf-8"))["status"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def has_ended(save_model: str) -> bool:
    """Whether a run has ended and has nothing left to do; one that was stopped or failed can be resumed."""
    return read_status(save_model) in _ENDED
