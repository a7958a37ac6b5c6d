"""`run.attempt`: an attempt leaves the process and what it was set up from as they were."""

from __future__ import annotations

import json
import warnings
from typing import Any

import torch

from onmt_llm.training.process.dist import World
from onmt_llm.training.result import RunStatus
from onmt_llm.training.run.attempt import RunEnvironment, run_attempt
from onmt_llm.training.setup.run_setup import open_run_setup


def test_an_attempt_changes_neither_its_setup_nor_the_warning_filters(copy_task: Any) -> None:
    copy_task.run(run={"train_steps": 3})
    base = str(copy_task.folder / "toy_step_3")
    tuned = copy_task.config("tuned", start={"train_from": base, "reset_optim": "all", "update_vocab": True})
    (copy_task.folder / "vocab.txt").write_text((copy_task.folder / "vocab.txt").read_text() + "new\n")
    setup, filters = open_run_setup(tuned), list(warnings.filters)
    assert setup.start.weights is not None
    stored = setup.start.weights.config
    attempt = run_attempt(setup, RunEnvironment(World(rank=0, size=1, device=torch.device("cpu"))), None)
    assert attempt.rollback is None and attempt.result.status is RunStatus.FINISHED
    assert setup.start.weights.config == stored and warnings.filters == filters


def test_a_status_is_the_string_of_the_public_result() -> None:
    assert RunStatus.STOPPED_EARLY == "stopped early" and f"{RunStatus.OUT_OF_TIME}" == "out of time"
    assert json.dumps(RunStatus.FINISHED) == '"finished"'
