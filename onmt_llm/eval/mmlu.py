"""MMLU (Hendrycks et al. 2021) from CSV files, as tasks of lm-evaluation-harness. This module needs lm_eval."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask
from lm_eval.config.group import GroupConfig

from onmt_llm.errors import DataError

MMLU = "mmlu"
"""The task of all subjects; `mmlu_<subject>` is that of one."""


def subject_task(folder: Path, subject: str) -> ConfigurableTask:
    """A subject of MMLU with the prompts of its authors, as lm-eval's own task of that name has them."""
    choices = "".join(f"\n{letter}. {{{{choices[{number}]}}}}" for number, letter in enumerate("ABCD"))
    name = subject.replace("_", " ")
    config = {
        "task": f"{MMLU}_{subject}",
        "task_alias": subject,
        "custom_dataset": partial(_read_mmlu, folder, subject),
        **{"test_split": "test", "fewshot_split": "dev", "fewshot_config": {"sampler": "first_n"}},
        "output_type": "multiple_choice",
        "description": f"The following are multiple choice questions (with answers) about {name}.\n\n",
        "doc_to_text": f"{{{{question.strip()}}}}{choices}\nAnswer:",
        **{"doc_to_choice": [*"ABCD"], "doc_to_target": "answer"},
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    return ConfigurableTask(config=config)


def all_subjects(tasks: Sequence[ConfigurableTask]) -> Group:
    """All subjects, with the accuracy over all questions."""
    mean = [{"metric": "acc", "weight_by_size": True}]
    names = [task.task_name for task in tasks]
    group = Group.from_config(GroupConfig(group=MMLU, task=names, aggregate_metric_list=mean, metadata={"version": 2}))
    for task in tasks:
        group.add(task)
    return group


def subjects_in(folder: Path) -> list[str]:
    """The subjects of MMLU in a folder.

    Raises:
        DataError: There is none.
    """
    found = sorted(path.name.removesuffix("_test.csv") for path in (folder / "test").glob("*_test.csv"))
    if not found:
        raise DataError(f"'mmlu' must be a folder with files test/<subject>_test.csv, but {folder} has none.")
    return found


def _read_mmlu(folder: Path, subject: str, **_: Any) -> dict[str, Any]:
    """The questions of a subject by split, as lm-eval's task expects them."""
    return {
        split: datasets.Dataset.from_list(list(_questions(folder / split / f"{subject}_{split}.csv", subject)))
        for split in ("dev", "test")
    }


def _questions(file: Path, subject: str) -> Iterator[dict[str, Any]]:
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.reader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"MMLU needs {file} as a CSV file in UTF-8, but it cannot be read ({error}).") from error
    for number, row in enumerate(rows, 1):
        if len(row) != 6 or row[5] not in ("A", "B", "C", "D"):
            raise DataError(
                f"{file} must have a question, four choices and one of A, B, C, D in each row, but row {number} has "
                f"{len(row)} columns, the last of which is '{row[-1] if row else ''}'."
            )
        yield {"question": row[0], "subject": subject, "choices": row[1:5], "answer": "ABCD".index(row[5])}
