"""The watchdog: is the loss of an update far above those before it?"""

from __future__ import annotations

import math
import statistics
from typing import Literal

from onmt_llm.errors import OnmtLlmError
from onmt_llm.log import logger
from onmt_llm.training.state import Progress

Action = Literal["none", "warn", "rollback"]
ROLLBACKS = 3
"""Times that a run may go back without a checkpoint in between."""


class Watchdog:
    """Compares each loss with the last ones, which are kept in the run's `Progress` and saved with it.

    Args:
        action: "none", "warn", or "rollback": a leap is then never learned from.
        threshold: Standard deviations above the mean that make a leap.
        window: Losses to compare with; with less than half of them nothing is judged.
    """

    def __init__(self, action: Action = "none", *, threshold: float = 6.0, window: int = 100) -> None:
        self.rolls_back = action == "rollback"
        self._active = action != "none"
        self._threshold = threshold
        self._window = window

    def __call__(self, progress: Progress, loss: float, step: int) -> bool:
        """Take in the loss of update `step`, before it is learned from; True when the run should go back.

        Raises:
            OnmtLlmError: It has gone back often enough.
        """
        if not self._active:
            return False
        limit = self._limit(progress.losses)
        leap = not loss <= limit
        if leap and self.rolls_back:
            return self.back(progress, f"the loss is {loss:.4g}, and {limit:.4g} was the most to be expected", step)
        if leap and math.isfinite(loss):
            logger.warning("Step %d: the loss leaps to %.4g; %.4g was the most to be expected.", step, loss, limit)
        if math.isfinite(loss):
            progress.losses = [*progress.losses, loss][-self._window :]
        return False

    def back(self, progress: Progress, reason: str, step: int) -> bool:
        """Say that the run goes back, and why.

        Raises:
            OnmtLlmError: It has gone back often enough.
        """
        if progress.rollbacks >= ROLLBACKS:
            raise OnmtLlmError(
                f"The loss must not leap again and again, but at step {step} {reason}, after {ROLLBACKS} rollbacks.",
                hint="lower learning_rate, set max_grad_norm, raise spike_threshold, or look at the data",
            )
        logger.warning("Step %d: %s. The run goes back to its last checkpoint, and past these data.", step, reason)
        return True

    def _limit(self, losses: list[float]) -> float:
        if len(losses) < self._window // 2:
            return math.inf
        return statistics.fmean(losses) + self._threshold * max(statistics.pstdev(losses), 1e-3)
