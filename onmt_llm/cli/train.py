"""`onmt_llm_train`: train or fine-tune from a YAML file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onmt_llm.cli.checks import training_problems
from onmt_llm.cli.run import run_job
from onmt_llm.config.load import Loaded

SWITCHES = {"dry_run": "validate everything, build the model on the meta device, print the plan, and exit"}


def main(argv: Sequence[str] | None = None) -> int:
    return run_job("onmt_llm_train", _train, argv, switches=SWITCHES, checks=training_problems)


def _train(loaded: Loaded[Any]) -> int:
    from onmt_llm.training import job  # torch is imported here

    if loaded.switches["dry_run"]:
        print(job.plan(loaded.job, loaded.options).report())
        return 0
    return job.train(loaded.job, loaded.options).exit_code


if __name__ == "__main__":
    raise SystemExit(main())
