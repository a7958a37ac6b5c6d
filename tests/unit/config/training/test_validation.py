"""Metrics of validations, and criteria of early stopping."""

from __future__ import annotations

import pytest

from onmt_llm.config.training.validation import ValidationConfig


def test_names_of_metrics_are_upper_case_and_unique() -> None:
    config = ValidationConfig(valid_metrics=["bleu", "BLEU", "Chrf"], early_stopping_criteria=["chrf", "ppl", "CHRF"])
    assert config.valid_metrics == ["BLEU", "CHRF"] and config.early_stopping_criteria == ["CHRF", "ppl"]


@pytest.mark.parametrize(
    ("criteria", "sentence"),
    [
        ([], "must name at least one criterion, but is empty"),
        (["ppl", "bleu"], "must be ppl, accuracy, loss, reward_accuracy or among valid_metrics, but is BLEU"),
    ],
)
def test_criteria_must_be_measured(criteria: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ValidationConfig(early_stopping_criteria=criteria)
