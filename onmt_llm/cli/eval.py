"""`onmt_llm_eval perplexity`: the perplexity of a text under a model."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from onmt_llm.atomic import write_text
from onmt_llm.cli.inference import open_models
from onmt_llm.cli.inputs import missing_files, missing_models, missing_options, option_files
from onmt_llm.cli.outputs import Paths, model_files, output_option
from onmt_llm.cli.run import CheckedJob, required, run_action, run_job, split_action, unknown_action
from onmt_llm.config.evaluate import EvalConfig
from onmt_llm.config.loading.load import Loaded
from onmt_llm.data.readers import read_lines
from onmt_llm.errors import Problem
from onmt_llm.eval.perplexity import Perplexity, measure

USAGE = "onmt_llm_eval perplexity -model CHECKPOINT -src FILE [-tgt FILE] [-output FILE]"


def main(argv: Sequence[str] | None = None) -> int:
    action, words = split_action(argv)
    work = functools.partial(run_action, action, ACTIONS, USAGE)
    checks = functools.partial(_problems, action)
    return run_job(CheckedJob("onmt_llm_eval", _paths, checks), work, words)


def _paths(loaded: Loaded[Any]) -> Paths:
    reads = [*model_files(loaded, "measure", ("model",)), *option_files(loaded, "measure", ("src", "tgt"))]
    return Paths(reads, output_option(loaded, "measure", "output"))


def _problems(action: str, loaded: Loaded[Any]) -> Iterator[Problem]:
    if action:
        yield from unknown_action(action, ACTIONS, USAGE)
    yield from missing_options(loaded, "measure", ("model", "src"), USAGE)
    yield from missing_files(loaded, option_files(loaded, "measure", ("src", "tgt")), streams=True)
    yield from missing_models(loaded, "measure", ("model",), releases=True)


def _perplexity(loaded: Loaded[Any]) -> int:
    config: EvalConfig = loaded.job
    model, source = required(loaded, "measure", "model", USAGE), required(loaded, "measure", "src", USAGE)
    lines = list(read_lines(source))
    answers = list(read_lines(config.measure.tgt)) if config.measure.tgt else None
    engine = open_models([model], config.engine).for_languages(config.measure.src_lang, config.measure.tgt_lang)
    found = measure(engine, lines, answers)
    total = found.total
    if config.measure.output:
        _write(Path(config.measure.output), found)
    print(f"Loss: {-total.log_prob:.2f} Tokens: {total.tokens} Corpus PPL: {total.perplexity:.4f}")
    return 0


def _write(path: Path, found: Perplexity) -> None:
    rows = (f"{line.perplexity:.6f}\t{line.log_prob:.6f}\t{line.tokens}\n" for line in found.lines)
    write_text(path, "".join(rows))


ACTIONS = {"perplexity": _perplexity}


if __name__ == "__main__":
    raise SystemExit(main())
