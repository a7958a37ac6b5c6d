"""Early stopping: what counts as an improvement, and what a resumed run remembers."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from onmt_llm.config.learning import ValidationConfig
from onmt_llm.errors import ConfigError
from onmt_llm.training.state import Progress
from onmt_llm.training.validation.early_stopping import EarlyStopping

# (ppl, accuracy) of each validation, and after how many OpenNMT-py 3.5.1's EarlyStopping(2, [ppl, accuracy]) stops
COURSES = {
    "worse twice": ([(5, 50), (6, 40), (7, 30), (8, 20)], 3),
    "mixed twice": ([(5, 50), (4, 40), (6, 60), (3, 70)], 3),
    "worse and mixed use up a patience each": ([(5, 50), (6, 40), (4, 40), (7, 30)], 4),
    "better in between": ([(5, 50), (6, 40), (4, 60), (6, 40), (3, 70), (4, 60)], None),
    "equal is not better": ([(5, 50), (6, 40), (4, 60), (6, 40), (4, 60), (4, 60)], 6),
}


@pytest.mark.parametrize("case", list(COURSES))
def test_all_criteria_must_get_better_together(case: str) -> None:
    course, expected = COURSES[case]
    stopping, progress = EarlyStopping(2, ["ppl", "accuracy"]), Progress()
    stops = [stopping(progress, {"ppl": ppl, "accuracy": accuracy}) for ppl, accuracy in course]
    assert (stops.index(True) + 1 if True in stops else None) == expected


def test_the_log_names_each_score_its_best_and_the_patience_left(caplog: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("onmt_llm.log.logger.propagate", True)
    caplog.set_level("INFO")
    stopping, progress = EarlyStopping(2, ["ppl", "accuracy"]), Progress(step=10)
    for ppl, accuracy in [(5, 50), (6, 40), (4, 40)]:
        stopping(progress, {"ppl": ppl, "accuracy": accuracy})
        progress.step += 10
    assert [record.getMessage() for record in caplog.records] == [
        "No improvement since step 10: ppl 6 (best 5), accuracy 40 (best 50). "
        "Worse validations: 1 of 2; neither better nor worse: 0 of 2.",
        "No improvement since step 10: ppl 4 (best 5), accuracy 40 (best 50). "
        "Worse validations: 1 of 2; neither better nor worse: 1 of 2.",
    ]


@pytest.mark.parametrize(("metric", "better"), [("BLEU", 1), ("CHRF", 1), ("TER", -1)])
def test_metrics_know_which_way_is_up(metric: str, better: int) -> None:
    stopping, progress = EarlyStopping(1, [metric]), Progress()
    assert not stopping(progress, {metric: 50.0, "ppl": 3.0})
    assert not stopping(progress, {metric: 50.0 + better, "ppl": 4.0})
    assert stopping(progress, {metric: 50.0, "ppl": 1.0})
    assert progress.best == {metric: 50.0 + better}


def test_zero_is_endless() -> None:
    stopping, progress = EarlyStopping(0), Progress()
    assert not any(stopping(progress, {"ppl": float(n)}) for n in range(1, 9))
    assert stopping.left(progress) is None


def test_a_resumed_run_remembers_its_patience(copy_task: Any) -> None:
    def go(name: str, **run: Any) -> Any:
        settings = {"save_model": str(copy_task.folder / name), "seed": 7, "train_steps": 9, "save_checkpoint_steps": 1}
        return copy_task.run(
            name,
            optimizer={"optim": "sgd", "learning_rate": 1e-30},  # nothing ever gets better
            validation={"early_stopping": 3, "early_stopping_criteria": ["accuracy"]},
            run={**settings, "valid_steps": 1, **run},
        )

    whole = go("whole")
    assert (whole.status, whole.step) == ("stopped early", 4)
    assert [row["patience"] for row in copy_task.validations("whole")] == [3, 2, 1, 0]
    part = go("part", train_from=str(copy_task.folder / "whole_step_2"))
    assert (part.status, part.step) == ("stopped early", 4)


def test_unusable_criteria_are_refused(copy_task: Any) -> None:
    with pytest.raises(ValidationError, match="or among valid_metrics, but is BLEU"):
        ValidationConfig(early_stopping_criteria=["bleu"])
    data = {"data": {"train": copy_task.corpora["train"]}}
    with pytest.raises(ConfigError, match="early_stopping must have a corpus named `valid`"):
        copy_task.run(corpora=data, validation={"early_stopping": 2})
    with pytest.raises(ConfigError, match="valid_metrics must have a corpus named `valid`"):
        copy_task.run(corpora=data, validation={"valid_metrics": ["BLEU"]})
    with pytest.raises(ConfigError, match=r"'BLUE' is not a known metric(?s:.)*did you mean 'BLEU'"):
        copy_task.run(validation={"valid_metrics": ["blue"]})
