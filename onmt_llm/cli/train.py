"""`onmt_llm_train`: train or fine-tune from a YAML file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from onmt_llm.cli.inputs import Input, check_files, corpus_files, option_files, subword_files
from onmt_llm.cli.run import run_job
from onmt_llm.config.load import Loaded
from onmt_llm.config.train import AUTO

SWITCHES = {"dry_run": "validate everything, build the model on the meta device, print the plan, and exit"}


def main(argv: Sequence[str] | None = None) -> int:
    return run_job("onmt_llm_train", _train, argv, switches=SWITCHES)


def _train(loaded: Loaded[Any]) -> int:
    check_files(loaded, training_files(loaded))
    from onmt_llm.training import job  # torch is imported here

    if loaded.switches["dry_run"]:
        print(job.plan(loaded.job, loaded.options).report())
        return 0
    return job.train(loaded.job, loaded.options).exit_code


def training_files(loaded: Loaded[Any]) -> Iterator[Input]:
    """The files that a run reads."""
    yield from corpus_files(loaded)
    run = loaded.job.run
    if run.update_vocab or not (run.init_from if run.train_from == AUTO else run.train_from):
        yield from option_files(loaded, "vocabulary", ("src_vocab", "tgt_vocab"))
    yield from option_files(loaded, "embeddings", ("both_embeddings", "src_embeddings", "tgt_embeddings"))
    yield from subword_files(loaded)


if __name__ == "__main__":
    raise SystemExit(main())
