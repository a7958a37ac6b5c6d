"""Loss spikes: detect an update whose loss is far above those of the updates before it."""

from __future__ import annotations

import math
import statistics
from typing import Literal

from onmt_llm.errors import OnmtLlmError
from onmt_llm.log import logger
from onmt_llm.training.state import Progress

Action = Literal["none", "warn", "rollback"]
MAX_ROLLBACKS = 3
"""Rollbacks that a run may do without a checkpoint in between."""


class SpikeDetector:
    """Compares each loss with the previous ones, which are in the run's `Progress` and saved with it.

    Args:
        action: "none", "warn", or "rollback": the model is then never updated with a spike.
        threshold: Standard deviations above the mean from which a loss is a spike.
        window: Number of losses to compare with; nothing is a spike before there are half of them.
    """

    def __init__(self, action: Action = "none", *, threshold: float = 6.0, window: int = 100) -> None:
        self.rolls_back = action == "rollback"
        self._active = action != "none"
        self._threshold = threshold
        self._window = window

    def __call__(self, progress: Progress, loss: float, step: int) -> bool:
        """Record the loss of update `step`, before the model is updated; True if the run should roll back.

        Raises:
            OnmtLlmError: The run has rolled back too often.
        """
        if not self._active:
            return False
        limit = self._limit(progress.losses)
        spike = not loss <= limit
        if spike and self.rolls_back:
            return self.roll_back(progress, f"the loss is {loss:.4g}, above the expected maximum of {limit:.4g}", step)
        if spike and math.isfinite(loss):
            logger.warning("Step %d: loss spike: %.4g, above the expected maximum of %.4g.", step, loss, limit)
        if math.isfinite(loss):
            progress.losses = [*progress.losses, loss][-self._window :]
        return False

    def roll_back(self, progress: Progress, reason: str, step: int) -> bool:
        """Log that the run rolls back, and why; always True.

        Raises:
            OnmtLlmError: The run has rolled back too often.
        """
        if progress.rollbacks >= MAX_ROLLBACKS:
            raise OnmtLlmError(
                f"Loss spikes must not recur, but at step {step} {reason}, after {MAX_ROLLBACKS} rollbacks.",
                hint="lower learning_rate, set max_grad_norm, raise spike_threshold, or look at the data",
            )
        logger.warning("Step %d: %s. The run goes back to its last checkpoint, and skips these data.", step, reason)
        return True

    def _limit(self, losses: list[float]) -> float:
        if len(losses) < self._window // 2:
            return math.inf
        return statistics.fmean(losses) + self._threshold * max(statistics.pstdev(losses), 1e-3)
