"""A metric that is a mean over texts, as one of sacrebleu's, so that its confidence intervals and paired tests are
sacrebleu's too. This module needs sacrebleu."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sacrebleu.metrics.base import Metric, Score

TextScores = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""(predictions, references) -> the score of each text."""


class MeanMetric(Metric):
    """The mean of the scores of single texts.

    Args:
        name: Of the metric.
        values: Gives the score of each text.
        origin: What computes it, for the signature: package and version.
    """

    def __init__(self, name: str, values: TextScores, *, origin: str) -> None:
        super().__init__()
        self._name, self._values, self._origin = name, values, origin
        self.num_refs = 1

    def get_signature(self) -> Any:
        """The signature, with the origin."""
        signature = super().get_signature()
        signature.update("by", self._origin)
        return signature

    def _extract_corpus_statistics(self, hypotheses: Sequence[str], references: Any) -> list[list[float]]:
        (targets,) = references
        return [[value, 1.0] for value in self._values(hypotheses, targets)]

    def _aggregate_and_compute(self, stats: Sequence[Sequence[float]]) -> Score:
        return self._compute_score_from_stats([sum(column) for column in zip(*stats, strict=True)])

    def _compute_score_from_stats(self, stats: Sequence[float]) -> Score:
        return Score(self._name, float(stats[0]) / max(float(stats[1]), 1))

    def _preprocess_segment(self, sent: str) -> str:
        return sent

    def _extract_reference_info(self, refs: Sequence[str]) -> dict[str, Any]:
        return {"refs": refs}

    def _compute_segment_statistics(self, hypothesis: str, ref_kwargs: dict[str, Any]) -> list[float]:
        return self._extract_corpus_statistics([hypothesis], [ref_kwargs["refs"][:1]])[0]
