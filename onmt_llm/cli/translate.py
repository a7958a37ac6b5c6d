"""`onmt_llm_translate` (also `onmt_llm_generate`): answer a file of inputs, line by line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from onmt_llm.cli.answers import log_answers, log_mean_score, warn_of_cut_answers, write_answers
from onmt_llm.cli.checks import inference_problems
from onmt_llm.cli.inference import open_configured_engine
from onmt_llm.cli.inputs import missing_files, missing_options, option_files
from onmt_llm.cli.outputs import Paths, model_files, output_option
from onmt_llm.cli.run import CheckedJob, required, run_job
from onmt_llm.config.loading.load import Loaded
from onmt_llm.config.translate import TranslateConfig
from onmt_llm.data.readers import read_lines
from onmt_llm.data.transforms.build import inference_transforms
from onmt_llm.data.transforms.transform import TransformContext
from onmt_llm.errors import ConfigError, DataError, Problem
from onmt_llm.generate.alignment import read_phrase_table, replace_unknown
from onmt_llm.generate.scoring import score_pairs
from onmt_llm.text.features import parse_defaults
from onmt_llm.text.placeholders import from_line
from onmt_llm.text.prompts import encode_prompt

if TYPE_CHECKING:
    from onmt_llm.generate.engine import Engine
    from onmt_llm.generate.line_prompts import Answers, LinePrompts
    from onmt_llm.text.codec import Codec

USAGE = "onmt_llm_translate -model CHECKPOINT -src input.txt -output answers.txt; -src - reads standard input"


def main(argv: Sequence[str] | None = None) -> int:
    return run_job(CheckedJob("onmt_llm_translate", _paths, _problems), _translate, argv)


def _paths(loaded: Loaded[Any]) -> Paths:
    files = option_files(loaded, "inference", ("src", "tgt", "phrase_table", "template"))
    return Paths([*model_files(loaded, "inference", ("model",)), *files], output_option(loaded, "inference", "output"))


def _problems(loaded: Loaded[Any]) -> Iterator[Problem]:
    yield from missing_options(loaded, "inference", ("model", "src"), USAGE)
    files = option_files(loaded, "inference", ("src", "tgt", "phrase_table"))
    yield from missing_files(loaded, files, streams=True)
    yield from inference_problems(loaded)


def _translate(loaded: Loaded[Any]) -> int:
    config: TranslateConfig = loaded.job
    lines = list(read_lines(required(loaded, "inference", "src", USAGE)))
    references = _references(config, len(lines))
    table = phrase_table(config)
    engine = open_configured_engine(loaded)
    codec = engine.codec
    questions = line_prompts(lines, codec, loaded)
    targets = [codec.tokenizer.encode(from_line(line)) for line in references] if references is not None else None
    forced, scored = (targets, None) if config.inference.tgt_file_prefix else (None, targets)
    answers = answer_prompts(engine, questions, config, prefixes=forced, table=table)
    gold = [score.log_prob for score in score_pairs(engine, questions.prompts, scored)] if scored is not None else None
    if config.engine.verbose:
        log_answers(lines, answers, references, gold)
    log_mean_score("PRED", [hypotheses[0].score for hypotheses in answers if hypotheses])
    if gold is not None:
        log_mean_score("GOLD", gold)
    warn_of_cut_answers(answers, config.generation, has_source=not codec.config.model.is_decoder_only)
    write_answers(config, len(lines), answers, gold)
    return 0


def _references(config: TranslateConfig, num_lines: int) -> list[str] | None:
    """Lines of `tgt`, as many as there are inputs; None if the option is not given."""
    if config.inference.tgt is None:
        if config.inference.tgt_file_prefix:
            raise ConfigError("'tgt' must be given with tgt_file_prefix, but is not.", hint="-tgt prefixes.txt")
        return None
    references = list(read_lines(config.inference.tgt))
    if len(references) != num_lines:
        raise DataError(
            f"tgt must have a line for each of the {num_lines} inputs, but {config.inference.tgt} has "
            f"{len(references)}."
        )
    return references


def phrase_table(config: TranslateConfig) -> dict[str, str]:
    """The phrase table that the options name, or an empty one."""
    return read_phrase_table(config.inference.phrase_table) if config.inference.phrase_table else {}


def line_prompts(lines: Sequence[str], codec: Codec, loaded: Loaded[Any]) -> LinePrompts:
    """The input lines as prompts; an empty line has no tokens, and its answer is empty."""
    from onmt_llm.generate.line_prompts import LinePrompts

    config: TranslateConfig = loaded.job
    if config.inference.src_feats_defaults is not None:
        codec.default_features = parse_defaults(config.inference.src_feats_defaults, len(codec.feature_vocabs))
    context = TransformContext(codec, tokenizer=codec.tokenizer, src_tokenizer=codec.src_tokenizer)
    text, tokens = inference_transforms(config.inference.transforms, loaded.options, context)
    needs_lines = {"tgt": config.inference.tgt, **config.generation.model_dump(include={"replace_unk", "report_align"})}
    wants = next((name for name, value in needs_lines.items() if value), None)
    if wants and any(transform.needs_neighbours for transform in (*text, *tokens)):
        raise ConfigError(
            f"`{wants}` must not be given where `transforms` joins lines (docify), but is.",
            hint="leave one of them out",
        )
    encode = partial(encode_prompt, codec=codec, template=config.inference.template)
    return LinePrompts(lines, text=text, tokens=tokens, encode=encode, codec=codec)


def answer_prompts(
    engine: Engine,
    questions: LinePrompts,
    config: TranslateConfig,
    *,
    prefixes: Sequence[Sequence[str]] | None = None,
    table: dict[str, str],
) -> Answers:
    """The hypotheses for each input line.

    Args:
        engine: Answers them.
        questions: The prompts of the lines.
        config: How to search, in which batches.
        prefixes: Forced beginnings of the answers.
        table: Phrase table, for `replace_unk`.
    """
    generate = partial(
        engine.generate,
        options=config.generation,
        batch_size=config.engine.batch_size,
        batch_type=config.engine.batch_type,
    )
    prompts = questions.prompts
    answers = generate(prompts, prefixes=prefixes)
    if config.generation.replace_unk:
        answers = [
            [replace_unknown(hypothesis, prompt, table, engine.codec) for hypothesis in hypotheses]
            for prompt, hypotheses in zip(prompts, answers, strict=True)
        ]
    return questions.by_line(answers, generate)


if __name__ == "__main__":
    raise SystemExit(main())
