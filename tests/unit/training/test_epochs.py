"""Runs that end after a number of epochs, packed runs, and runs whose number of processes changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from onmt_llm.training.process import dist
from onmt_llm.training.result import has_ended

LINES = 600

RANKS = """
import json, sys
from onmt_llm.config.train import TrainConfig
from onmt_llm.training.train import train

train(TrainConfig.model_validate(json.loads(sys.argv[1])))
"""


def rows(folder: Path, name: str = "toy") -> list[dict[str, Any]]:
    written = map(json.loads, (folder / f"{name}_metrics.jsonl").read_text().splitlines())
    return [row for row in written if row["split"] == "train"]


def sections(**run: Any) -> dict[str, dict[str, Any]]:
    """One epoch, every update reported."""
    return {
        "corpora": {"epochs": 1},
        "logging": {"report_every": 1},
        "run": {"train_steps": 1000, "save_checkpoint_steps": 1000, **run},
    }


@pytest.mark.parametrize("packing", ["off", "pack"])
def test_a_run_ends_after_its_epochs_with_a_checkpoint(copy_task: Any, packing: str) -> None:
    batching = {"packing": packing, "packing_length": 16, "batch_type": "tokens", "batch_size": 64, "num_workers": 1}
    given = sections(accum_count=[2])
    given["corpora"]["data"] = copy_task.corpora
    result = copy_task.run(**given, batching=batching, validation={})
    done = rows(copy_task.folder)
    assert (result.status, result.step) == ("finished", len(done)) and has_ended(str(copy_task.folder / "toy"))
    assert sum(row["examples"] for row in done) == LINES
    assert result.checkpoint is not None and result.checkpoint.name == f"toy_step_{len(done)}"
    assert all(0 <= row["data_wait"] <= 1 for row in done)
    assert done[-1]["loss"] < 0.97 * done[0]["loss"]
    (validated,) = copy_task.validations()
    assert validated["step"] == result.step
    again = copy_task.run(**{**given, "run": {**given["run"], "train_from": str(result.checkpoint)}}, batching=batching)
    assert (again.status, again.step) == ("finished", result.step)


@pytest.mark.slow
def test_two_processes_end_together_and_one_goes_on_for_them(copy_task: Any) -> None:
    script = copy_task.folder / "ranks.py"
    script.write_text(RANKS)

    def run_two(**run: Any) -> None:
        given = {**sections(**run), "devices": {"world_size": 2, "device": "cpu"}}
        given["corpora"]["data"] = {"train": copy_task.corpora["train"]}
        options = copy_task.config(**given).model_dump(mode="json", exclude_unset=True)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(dist.__file__).parents[2])}
        done = subprocess.run(
            [*command, json.dumps(options)], capture_output=True, text=True, timeout=250, env=environment
        )
        assert done.returncode == 0, done.stderr[-2000:]

    run_two()
    both = rows(copy_task.folder)
    assert sum(row["examples"] for row in both) == LINES
    # 15 buckets of 5 batches: seven rounds of two, and the last bucket is shared
    assert [row["examples"] for row in both] == [16] * 37 + [8]

    run_two(train_steps=11, save_model=str(copy_task.folder / "half"))
    given = sections(train_from=str(copy_task.folder / "half_step_11"), save_model=str(copy_task.folder / "half"))
    given["corpora"]["data"] = {"train": copy_task.corpora["train"]}
    copy_task.run(**given)
    assert sum(row["examples"] for row in rows(copy_task.folder, "half")) == LINES
    assert len(rows(copy_task.folder, "half")) == 11 + (LINES - 11 * 16) // 8
