"""`onmt_llm_eval perplexity`: the perplexity of a text under a model."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from onmt_llm.atomic import write_text
from onmt_llm.cli.inference import open_models
from onmt_llm.cli.inputs import missing_files, missing_models, not_given, option_files
from onmt_llm.cli.outputs import Paths, model_files, one
from onmt_llm.cli.run import needed, run_job
from onmt_llm.config.evaluate import EvalConfig
from onmt_llm.config.loading.load import Loaded
from onmt_llm.data.readers import read_lines
from onmt_llm.errors import ConfigError, Problem
from onmt_llm.eval.perplexity import Perplexity, measure

USAGE = "onmt_llm_eval perplexity -model CHECKPOINT -src FILE [-tgt FILE] [-output FILE]"


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else list(argv)
    # what is measured comes first, and is not an option
    action = words.pop(0) if words and not words[0].startswith("-") else ""
    return run_job("onmt_llm_eval", functools.partial(_evaluate, action), words, paths=_paths, checks=_problems)


def _paths(loaded: Loaded[Any]) -> Paths:
    reads = [*model_files(loaded, "measure", ("model",)), *option_files(loaded, "measure", ("src", "tgt"))]
    return Paths(reads, one(loaded, "measure", "output"))


def _problems(loaded: Loaded[Any]) -> Iterator[Problem]:
    yield from not_given(loaded, "measure", ("model", "src"), USAGE)
    yield from missing_files(loaded, option_files(loaded, "measure", ("src", "tgt")), streams=True)
    yield from missing_models(loaded, "measure", ("model",), releases=True)


def _evaluate(action: str, loaded: Loaded[Any]) -> int:
    actions = {"perplexity": _perplexity}
    if action not in actions:
        raise ConfigError(f"The first word must be one of {', '.join(actions)}, but is '{action}'.", hint=USAGE)
    return actions[action](loaded)


def _perplexity(loaded: Loaded[Any]) -> int:
    config: EvalConfig = loaded.job
    model, source = needed(loaded, "measure", "model", USAGE), needed(loaded, "measure", "src", USAGE)
    lines = list(read_lines(source))
    answers = list(read_lines(config.measure.tgt)) if config.measure.tgt else None
    found = measure(open_models([model], config.engine), lines, answers)
    total = found.total
    if config.measure.output:
        _write(Path(config.measure.output), found)
    print(f"Loss: {-total.log_prob:.2f} Tokens: {total.tokens} Corpus PPL: {total.perplexity:.4f}")
    return 0


def _write(path: Path, found: Perplexity) -> None:
    rows = (f"{line.perplexity:.6f}\t{line.log_prob:.6f}\t{line.tokens}\n" for line in found.lines)
    write_text(path, "".join(rows))


if __name__ == "__main__":
    raise SystemExit(main())
