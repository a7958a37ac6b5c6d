"""`onmt_llm_train`: train or fine-tune from a YAML file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from onmt_llm.cli.run import run_job
from onmt_llm.config.load import Loaded
from onmt_llm.errors import ConfigError, DataError

SWITCHES = {"dry_run": "validate everything, build the model on the meta device, print the plan, and exit"}


def main(argv: Sequence[str] | None = None) -> int:
    return run_job("onmt_llm_train", _train, argv, switches=SWITCHES)


def _train(loaded: Loaded[Any]) -> int:
    check_inputs(loaded)
    from onmt_llm.training import job  # torch is imported here

    if loaded.switches["dry_run"]:
        print(job.plan(loaded.job, loaded.options).report())
        return 0
    job.train(loaded.job, loaded.options)
    return 0


def check_inputs(loaded: Loaded[Any]) -> None:
    """Refuse a job whose input files are not there, all of them at once.

    Raises:
        ConfigError: No corpus is named.
        DataError: Files are missing.
    """
    config = loaded.job
    if not config.corpora.data:
        raise ConfigError(
            "'data' must name at least one corpus, but names none.", hint="data: {my_corpus: {path_src: train.txt}}"
        )
    missing = [
        f"{name} must be a file that exists, but '{path}' is not{loaded.origin(*where)}."
        for name, path, where in _inputs(loaded)
        if not Path(path).is_file()
    ]
    if missing:
        raise DataError("\n  ".join(missing))


def _inputs(loaded: Loaded[Any]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(name, path, place in the YAML) of every file that the job reads."""
    config = loaded.job
    for corpus, entry in config.corpora.data.items():
        for key in ("path_src", "path_tgt", "path_align", "path_txt", "path_jsonl"):
            if getattr(entry, key):
                yield f"'data.{corpus}.{key}'", getattr(entry, key), ("data", corpus, key)
    for key in ("src_vocab", "tgt_vocab"):
        if getattr(config.vocabulary, key) and not config.run.train_from:
            yield f"'{key}'", getattr(config.vocabulary, key), (key,)
    for section in loaded.options.values():
        for key in ("src_subword_model", "tgt_subword_model"):
            if getattr(section, key, None):
                yield f"'{key}'", getattr(section, key), (key,)


if __name__ == "__main__":
    raise SystemExit(main())
