"""Early stopping: stop when validations no longer improve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan

from onmt_llm.generate.scorers import SCORERS
from onmt_llm.log import logger
from onmt_llm.training.state import Progress

_HIGHER_IS_BETTER = {"ppl": False, "accuracy": True, "loss": False, "reward_accuracy": True}


class EarlyStopping:
    """Keeps the best scores in the run's `Progress`, which is saved with it.

    A validation is better if it improves every criterion. Validations that are worse by every criterion and those that
    are neither better nor worse are counted separately, each with this patience, as in OpenNMT-py.

    Args:
        patience: Validations without improvement that are tolerated; 0 = any number.
        criteria: `ppl`, `accuracy`, `loss`, `reward_accuracy` or names in `SCORERS`.
    """

    def __init__(self, patience: int, criteria: Sequence[str] = ("ppl",)) -> None:
        self.patience = patience
        self.criteria = tuple(criteria)

    def __call__(self, progress: Progress, scores: Mapping[str, float]) -> bool:
        """Record the scores of a validation; True if the run should stop."""
        signs = {name: 1.0 if _higher_is_better(name) else -1.0 for name in self.criteria}
        gains = [
            sign * (scores[name] - progress.best[name]) if name in progress.best else 1.0
            for name, sign in signs.items()
        ]
        if all(gain > 0 for gain in gains):
            progress.best.update({name: scores[name] for name in self.criteria})
            progress.best_step = progress.step
            progress.worse_validations = progress.stalled_validations = 0
        elif all(gain < 0 for gain in gains):
            progress.worse_validations += 1
        else:
            progress.stalled_validations += 1
        left = self.left(progress)
        if left is not None and left < self.patience:
            compared = (
                f"{name} {scores[name]:.6g} (best {progress.best.get(name, nan):.6g})" for name in self.criteria
            )
            logger.info(
                "No improvement since step %d: %s. Worse validations: %d of %d; neither better nor worse: %d of %d.",
                *(progress.best_step, ", ".join(compared)),
                *(progress.worse_validations, self.patience, progress.stalled_validations, self.patience),
            )
        return left is not None and left <= 0

    @property
    def reason(self) -> str:
        """Why a run is stopped."""
        together = " together" if len(self.criteria) > 1 else ""
        return f"{self.patience} validations without improvement in {' and '.join(self.criteria)}{together}"

    def left(self, progress: Progress) -> int | None:
        """Further validations without improvement that are tolerated; None = any number."""
        if not self.patience:
            return None
        return self.patience - max(progress.worse_validations, progress.stalled_validations)


def _higher_is_better(name: str) -> bool:
    return _HIGHER_IS_BETTER[name] if name in _HIGHER_IS_BETTER else SCORERS.get(name).higher_is_better
