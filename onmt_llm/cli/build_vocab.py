"""`onmt_llm_build_vocab`: count the tokens of the transformed corpora and write vocabulary files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from onmt_llm.checkpoint.directory import resolve_path
from onmt_llm.cli.checks import corpora_problems
from onmt_llm.cli.inputs import corpus_files, missing_files, subword_files
from onmt_llm.cli.outputs import Output, Paths
from onmt_llm.cli.run import CheckedJob, run_job
from onmt_llm.config.build_vocab import VocabConfig
from onmt_llm.config.checkpoint import read_config
from onmt_llm.config.loading.load import Loaded
from onmt_llm.config.overrides import check_task
from onmt_llm.config.train import AUTO
from onmt_llm.data.vocabulary.build import build_vocab
from onmt_llm.errors import Problem


def main(argv: Sequence[str] | None = None) -> int:
    return run_job(JOB, _build, argv)


def _paths(loaded: Loaded[Any]) -> Paths:
    data, vocabulary = loaded.job.corpora, loaded.job.vocabulary
    named = {path: name for name in ("tgt_vocab", "src_vocab") if (path := getattr(vocabulary, name))}
    writes = [Output(name, path) for path, name in named.items()]
    writes += [Output("src_vocab", f"{vocabulary.src_vocab}_feat{number}") for number in range(data.n_src_feats)]
    models = list(subword_files(loaded))
    if loaded.job.counting.learn_subwords:
        writes += [Output(name, path) for path, name in {path: where[0] for _, path, where in models}.items()]
        models = []
    if data.save_data:
        writes.append(Output("save_data", data.save_data, collects=True))
    return Paths([*corpus_files(loaded), *models], writes)


def _problems(loaded: Loaded[Any]) -> Iterator[Problem]:
    models = [] if loaded.job.counting.learn_subwords else subword_files(loaded)
    yield from corpora_problems(loaded)
    yield from missing_files(loaded, [*corpus_files(loaded), *models])


def _for_checkpoint(job: VocabConfig) -> VocabConfig:
    """The job with the task of the checkpoint in `train_from`, if there is one.

    Raises:
        CheckpointError: The checkpoint does not exist.
        ConfigError: Its task is not `model_task`.
    """
    counting = job.counting
    if counting.train_from in (None, AUTO):
        return job
    path = resolve_path(counting.train_from)
    task = check_task(counting.model_task, read_config(path).model, path)
    settled = counting.model_copy(update={"model_task": task, "encoder_layers": None})
    return job.model_copy(update={"counting": settled})


def build(loaded: Loaded[Any]) -> dict[Path, int]:
    """Build the vocabularies: their files, with the number of tokens of each."""
    return build_vocab(_for_checkpoint(loaded.job))


def _build(loaded: Loaded[Any]) -> int:
    for file, size in build(loaded).items():
        print(f"{size} tokens written to {file}")
    return 0


JOB = CheckedJob("onmt_llm_build_vocab", _paths, _problems)


if __name__ == "__main__":
    raise SystemExit(main())
