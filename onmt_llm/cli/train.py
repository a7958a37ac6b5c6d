"""`onmt_llm_train`: train or fine-tune from a YAML file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from onmt_llm.cli.checks import MODELS, training_problems
from onmt_llm.cli.inputs import Input, corpus_files, option_files, subword_files
from onmt_llm.cli.outputs import Output, Paths, model_files, output_option
from onmt_llm.cli.run import CheckedJob, run_job
from onmt_llm.config.loading.load import Loaded
from onmt_llm.config.train import AUTO, TrainConfig

SWITCHES = {"dry_run": "validate everything, build the model on the meta device, print the plan, and exit"}


def main(argv: Sequence[str] | None = None) -> int:
    return run_job(JOB, _train, argv)


def _paths(loaded: Loaded[Any]) -> Paths:
    config: TrainConfig = loaded.job
    folders = {
        "save_model": str(Path(config.run.save_model).parent),
        "dump_preds": config.validation.dump_preds,
        "save_data": config.corpora.save_data,
        "tensorboard_log_dir": config.logging.tensorboard_log_dir if config.logging.tensorboard else None,
    }
    writes = [Output(name, path, collects=True) for name, path in folders.items() if path]
    return Paths(list(training_inputs(loaded)), [*writes, *output_option(loaded, "logging", "metrics_file")])


def training_inputs(loaded: Loaded[Any]) -> Iterator[Input]:
    """The inputs of a run: files and models."""
    yield from corpus_files(loaded)
    yield from subword_files(loaded)
    yield from option_files(loaded, "vocabulary", ("src_vocab", "tgt_vocab"))
    yield from option_files(loaded, "embeddings", ("both_embeddings", "src_embeddings", "tgt_embeddings"))
    for name, corpus in loaded.job.corpora.data.items():
        for key in ("path_packed", "path_tokens", "template"):
            if path := getattr(corpus, key):
                yield f"'data.{name}.{key}'", path, ("data", name, key)
    for section, names in MODELS.items():
        yield from (each for each in model_files(loaded, section, names) if each[1] != AUTO)


JOB = CheckedJob("onmt_llm_train", _paths, training_problems, SWITCHES)


def _train(loaded: Loaded[Any]) -> int:
    # These import torch.
    from onmt_llm.training.dry_run.plan import plan
    from onmt_llm.training.train import train

    if loaded.switches["dry_run"]:
        print(plan(loaded.job).report())
        return 0
    return train(loaded.job).exit_code


if __name__ == "__main__":
    raise SystemExit(main())
