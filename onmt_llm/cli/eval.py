"""`onmt_llm_eval perplexity | score | tasks | compare | run`: measure the quality of a model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onmt_llm.atomic import write_text
from onmt_llm.cli import eval_run, eval_tasks
from onmt_llm.cli.inference import open_models
from onmt_llm.cli.inputs import missing_files, missing_models, missing_options, option_files
from onmt_llm.cli.outputs import Paths, model_files, output_option
from onmt_llm.cli.run import required, run_action, split_action
from onmt_llm.config.evaluate import EvalConfig, HarnessConfig
from onmt_llm.config.loading.load import Loaded
from onmt_llm.data.readers import read_lines
from onmt_llm.errors import DataError, Problem
from onmt_llm.text.placeholders import from_line

if TYPE_CHECKING:
    from onmt_llm.eval.perplexity import Perplexity
    from onmt_llm.generate.engine import Engine

USAGES = {
    "perplexity": "onmt_llm_eval perplexity -model CHECKPOINT -src FILE",
    "score": "onmt_llm_eval score -hyp FILE ... -tgt FILE, or -model CHECKPOINT -src FILE -tgt FILE",
    "tasks": eval_tasks.USAGE,
    "compare": "onmt_llm_eval compare MODEL MODEL -src FILE -output PAGE.html",
    "run": eval_run.USAGE,
}
USAGE = " | ".join(USAGES.values())
RUN = "run"
_ANSWERING = ("score", "compare")
_READING = ("perplexity", *_ANSWERING)
_READERS = {
    "model": ("perplexity", "score", "tasks"),
    "models": ("compare",),
    **dict.fromkeys(("src", "tgt", "src_lang", "tgt_lang"), _READING),
    **dict.fromkeys(("template", "metrics", "comet_model"), _ANSWERING),
    **dict.fromkeys(("hyp", "resamples"), ("score",)),
    **dict.fromkeys(HarnessConfig.model_fields, ("tasks",)),
}


def main(argv: Sequence[str] | None = None) -> int:
    action, words = split_action(argv)
    if action == RUN:
        return eval_run.main(words)
    # the models to compare may come first, without the flag -models
    models = list(takewhile(lambda word: not word.startswith("-"), words))
    if models and action == "compare":
        argv = [action, "-models", *words]
    return run_action("onmt_llm_eval", argv, ACTIONS, USAGE, paths=_paths, checks=_problems, readers=_READERS)


def _paths(_: str, loaded: Loaded[Any]) -> Paths:
    reads = [
        *model_files(loaded, "measure", ("model", "models")),
        *option_files(loaded, "measure", ("src", "tgt")),
        *_answers(loaded),
    ]
    return Paths(reads, output_option(loaded, "measure", "output"))


def _answers(loaded: Loaded[Any]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    return (("'hyp'", path, ("hyp",)) for path in loaded.job.scoring.hyp)


def _problems(action: str, loaded: Loaded[Any]) -> Iterator[Problem]:
    if action == "tasks":
        yield from eval_tasks.problems(loaded)
    models = loaded.job.measure.models
    if action == "compare" and models and (len(models) != 2 or len({*map(os.path.realpath, models)}) != 2):
        yield Problem(f"'models' must be two different models, but are {', '.join(models)}.", loaded.where("models"))
    hyp = loaded.job.scoring.hyp
    if len({*hyp}) < len(hyp):
        yield Problem(f"'hyp' must name each file once, but is {', '.join(hyp)}.", loaded.where("hyp"))
    yield from missing_options(loaded, "measure", _needs(action, loaded.job), USAGES.get(action, USAGE))
    yield from missing_files(
        loaded, [*option_files(loaded, "measure", ("src", "tgt")), *_answers(loaded)], streams=True
    )
    yield from missing_models(loaded, "measure", ("model", "models"), releases=True)


def _needs(action: str, config: EvalConfig) -> tuple[str, ...]:
    """The options of the section `measure` that an action needs."""
    if action == "score":
        hyp, reads_sources = config.scoring.hyp, "COMET" in config.scoring.metrics
        return ("tgt", *(("src",) if reads_sources else ())) if hyp else ("model", "src", "tgt")
    return {"perplexity": ("model", "src"), "compare": ("models", "src", "output")}.get(action, ())


def _perplexity(loaded: Loaded[Any]) -> int:
    from onmt_llm.eval.perplexity import measure

    config: EvalConfig = loaded.job
    model, source = (
        required(loaded, "measure", "model", USAGES["perplexity"]),
        required(loaded, "measure", "src", USAGES["perplexity"]),
    )
    lines = list(read_lines(source))
    answers = list(read_lines(config.measure.tgt)) if config.measure.tgt else None
    found = measure(_open(model, config), lines, answers)
    total = found.total
    if config.measure.output:
        _write(Path(config.measure.output), found)
    print(f"Loss: {-total.log_prob:.2f} Tokens: {total.tokens} Corpus PPL: {total.perplexity:.4f}")
    return 0


def _open(model: str, config: EvalConfig) -> Engine:
    return open_models([model], config.engine).for_languages(config.measure.src_lang, config.measure.tgt_lang)


def _write(path: Path, found: Perplexity) -> None:
    rows = (f"{line.perplexity:.6f}\t{line.log_prob:.6f}\t{line.tokens}\n" for line in found.lines)
    write_text(path, "".join(rows))


def _score(loaded: Loaded[Any]) -> int:
    from onmt_llm.eval.score import COMET, CometModel, check_metrics, score_systems, to_json

    config: EvalConfig = loaded.job
    options = config.scoring
    check_metrics(options.metrics)
    references = _texts(required(loaded, "measure", "tgt", USAGES["score"]))
    systems = {path: _texts(path) for path in options.hyp}
    sources = list(read_lines(config.measure.src)) if config.measure.src else []
    if config.measure.model:
        _check_references(sources, references)
        systems[config.measure.model] = _answered(config.measure.model, sources, config)
    comet = CometModel(options.comet_model, list(map(from_line, sources))) if COMET in options.metrics else None
    scores = score_systems(systems, references, options.metrics, resamples=options.resamples, comet=comet)
    for score in scores:
        print(score.line())
    for signature in dict.fromkeys(f"{score.metric}: {score.signature}" for score in scores if score.signature):
        print(signature)
    if config.measure.output:
        write_text(config.measure.output, json.dumps(to_json(scores), indent=1, ensure_ascii=False) + "\n")
    return 0


def _compare(loaded: Loaded[Any]) -> int:
    from onmt_llm.eval.compare import comparison_page, timed_answers
    from onmt_llm.eval.score import score_systems
    from onmt_llm.text.prompts import encode_line

    config: EvalConfig = loaded.job
    lines = list(read_lines(required(loaded, "measure", "src", USAGES["compare"])))
    references = _texts(config.measure.tgt) if config.measure.tgt else None
    if references is not None:
        _check_references(lines, references)
    found = []
    for model in config.measure.models:
        engine = _open(model, config)
        prompts = [encode_line(line, engine.codec, config.measure.template) for line in lines]
        found.append(timed_answers(engine, prompts, config.generation, model=model))
    answers = {each.model: [answer.text for answer in each.answers] for each in found}
    scores = [] if references is None else score_systems(answers, references, config.scoring.metrics)
    page = comparison_page(found[0], found[1], list(map(from_line, lines)), references, scores)
    write_text(required(loaded, "measure", "output", USAGES["compare"]), page)
    for each in found:
        print(f"{each.model}\t{each.tokens} tokens\tmedian {each.seconds:.2f} s\t{each.speed:.1f} tokens/s")
    for score in scores:
        print(score.line())
    return 0


def _check_references(sources: Sequence[str], references: Sequence[str]) -> None:
    """Refuse another number of references before a model answers all sources."""
    if len(references) != len(sources):
        raise DataError(f"'tgt' must have as many lines as 'src', {len(sources)}, but has {len(references)}.")


def _texts(path: str) -> list[str]:
    return list(map(from_line, read_lines(path)))


def _answered(model: str, lines: Sequence[str], config: EvalConfig) -> list[str]:
    """The model's answers to lines."""
    from onmt_llm.text.prompts import encode_line

    engine = _open(model, config)
    answers = engine.generate(
        [encode_line(line, engine.codec, config.measure.template) for line in lines],
        config.generation,
        batch_size=config.engine.batch_size,
        batch_type=config.engine.batch_type,
    )
    return [best[0].text for best in answers]


ACTIONS: dict[str, Callable[[Loaded[Any]], int]] = {
    "perplexity": _perplexity,
    "score": _score,
    "tasks": eval_tasks.run_tasks,
    "compare": _compare,
    RUN: eval_run.run,
}


if __name__ == "__main__":
    raise SystemExit(main())
