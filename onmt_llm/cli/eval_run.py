"""`onmt_llm_eval run`: measure the checkpoints of a run on its validation corpora, also while it trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from onmt_llm.cli.checks import corpora_problems
from onmt_llm.cli.inputs import corpus_files, missing_files
from onmt_llm.cli.outputs import Paths, output_option
from onmt_llm.cli.run import CheckedJob, required, run_job
from onmt_llm.cli.train import training_inputs
from onmt_llm.config.evaluate import RunEvalConfig
from onmt_llm.config.loading.load import Loaded
from onmt_llm.errors import Problem

USAGE = "onmt_llm_eval run -config x.yaml -save_model RUN -output results.csv [-watch 60]"


def main(argv: Sequence[str] | None = None) -> int:
    return run_job(CheckedJob("onmt_llm_eval_run", _paths, _problems), run, argv)


def _paths(loaded: Loaded[Any]) -> Paths:
    return Paths(list(training_inputs(loaded)), output_option(loaded, "offline", "output"))


def _problems(loaded: Loaded[Any]) -> Iterator[Problem]:
    yield from corpora_problems(loaded)
    yield from missing_files(loaded, corpus_files(loaded))
    if not loaded.job.offline.output and "output" not in loaded.invalid:
        yield Problem("'output' must be given, but is not.", hint=USAGE)


def run(loaded: Loaded[Any]) -> int:
    """Measure what is not measured yet."""
    config: RunEvalConfig = loaded.job
    output = required(loaded, "offline", "output", USAGE)
    from onmt_llm.training.checkpoint_validation import measure_run

    rows = measure_run(config, Path(output), watch=config.offline.watch)
    print(f"{rows} measurements added to {output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
