"""`onmt_llm_translate` (also `onmt_llm_generate`): answer a file of inputs, line by line."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from onmt_llm.atomic import write_text
from onmt_llm.checkpoint.damage import damage_ignored
from onmt_llm.cli.checks import inference_problems
from onmt_llm.cli.inputs import missing_files, not_given, option_files
from onmt_llm.cli.outputs import Paths, model_files, one
from onmt_llm.cli.run import needed, run_job
from onmt_llm.config.loading.load import Loaded
from onmt_llm.config.translate import EngineConfig, TranslateConfig
from onmt_llm.data.readers import read_lines
from onmt_llm.data.transforms import TransformContext, inference_transforms
from onmt_llm.errors import ConfigError, DataError, Problem
from onmt_llm.generate.alignment import SEPARATOR, pharaoh, read_phrase_table, replace_unknown
from onmt_llm.generate.scoring import perplexity, score_pairs
from onmt_llm.log import logger
from onmt_llm.text.features import parse_defaults
from onmt_llm.text.placeholders import from_line, to_line
from onmt_llm.text.templates import Message

if TYPE_CHECKING:
    from onmt_llm.generate.engine import Engine, Hypothesis
    from onmt_llm.generate.questions import Questions
    from onmt_llm.text.codec import Codec

USAGE = "onmt_llm_translate -model CHECKPOINT -src input.txt -output answers.txt; -src - reads standard input"


def main(argv: Sequence[str] | None = None) -> int:
    return run_job("onmt_llm_translate", _translate, argv, paths=_paths, checks=_problems)


def _paths(loaded: Loaded[Any]) -> Paths:
    files = option_files(loaded, "inference", ("src", "tgt", "phrase_table", "template"))
    return Paths([*model_files(loaded, "inference", ("model",)), *files], one(loaded, "inference", "output"))


def _problems(loaded: Loaded[Any]) -> Iterator[Problem]:
    yield from not_given(loaded, "inference", ("model", "src"), USAGE)
    files = option_files(loaded, "inference", ("src", "tgt", "phrase_table"))
    yield from missing_files(loaded, files, streams=True)
    yield from inference_problems(loaded)


def _translate(loaded: Loaded[Any]) -> int:
    config: TranslateConfig = loaded.job
    source = needed(loaded, "inference", "src", USAGE)
    lines = list(read_lines(source))
    references = _references(loaded, len(lines))
    table = read_phrase_table(config.inference.phrase_table) if config.inference.phrase_table else {}
    engine = open_from(loaded)
    codec = engine.codec
    if config.inference.src_feats_defaults is not None:
        codec.default_features = parse_defaults(config.inference.src_feats_defaults, len(codec.feature_vocabs))
    questions = _questions(lines, codec, loaded)
    prompts = questions.prompts
    targets = [codec.tokenizer.encode(from_line(line)) for line in references] if references is not None else None
    generate = partial(
        engine.generate,
        options=config.generation,
        batch_size=config.engine.batch_size,
        batch_type=config.engine.batch_type,
    )
    answers = generate(prompts, prefixes=targets if config.inference.tgt_file_prefix else None)
    if config.generation.replace_unk:
        answers = [
            [replace_unknown(hypothesis, prompt, table, codec) for hypothesis in hypotheses]
            for prompt, hypotheses in zip(prompts, answers, strict=True)
        ]
    answers = questions.by_line(answers, generate)
    gold: list[float] | None = None
    if targets is not None and not config.inference.tgt_file_prefix:
        gold = [score.log_prob for score in score_pairs(engine, prompts, targets)]
    if config.engine.verbose:
        _log_answers(lines, answers, references if gold is not None else None, gold)
    _report("PRED", [hypotheses[0].score for hypotheses in answers if hypotheses])
    if gold is not None:
        _report("GOLD", gold)
    _write(config, lines, answers, gold)
    return 0


def _references(loaded: Loaded[Any], num_lines: int) -> list[str] | None:
    """Lines of `tgt`, as many as there are inputs; None where the option is not given."""
    config: TranslateConfig = loaded.job
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


def open_from(loaded: Loaded[Any]) -> Engine:
    """The engine that a translate configuration describes."""
    needed(loaded, "inference", "model", USAGE)
    with damage_ignored(loaded.job.integrity.ignore_damage):  # also where it was loaded for another command
        return open_models(loaded.job.inference.model, loaded.job.engine)


def open_models(models: Sequence[str], options: EngineConfig) -> Engine:
    """The engine for these models."""
    from onmt_llm.generate.open import open_engine  # torch or ctranslate2 are imported here

    return open_engine(
        models,
        device=options.device,
        compute_type="int8" if options.precision == "int8" else options.compute_type,
        dtype=options.precision if options.precision not in ("", "int8") else None,
        threads=options.threads,
        average_probabilities=options.avg_raw_probs,
    )


def _questions(lines: Sequence[str], codec: Codec, loaded: Loaded[Any]) -> Questions:
    """The input lines as prompts; an empty line has no tokens, and keeps its place with an empty answer."""
    from onmt_llm.generate.questions import Questions

    config: TranslateConfig = loaded.job
    is_lm = codec.config.model.is_decoder_only
    context = TransformContext(
        task="lm" if is_lm else "seq2seq", tokenizer=codec.tokenizer, src_tokenizer=codec.src_tokenizer
    )
    text, tokens = inference_transforms(config.inference.transforms, loaded.options, context)
    needs_lines = {"tgt": config.inference.tgt, **config.generation.model_dump(include={"replace_unk", "report_align"})}
    wants = next((name for name, value in needs_lines.items() if value), None)
    if wants and any(transform.needs_neighbours for transform in (*text, *tokens)):
        raise ConfigError(
            f"`{wants}` must not be given where `transforms` joins lines (docify), but is.",
            hint="leave one of them out",
        )
    encode = partial(encode_text, codec=codec, template=config.inference.template)
    specials = codec.config.specials
    bos = specials.bos if is_lm and specials.add_bos else None
    return Questions(lines, text=text, tokens=tokens, encode=encode, bos=bos)


def encode_line(line: str, codec: Codec, template: str | None) -> list[str]:
    """Tokens of one input line; an empty line has none, and keeps its place with an empty answer."""
    return encode_text(from_line(line), codec, template) if line.strip() else []


def encode_text(text: str, codec: Codec, template: str | None) -> list[str]:
    """Tokens of one input: a prompt as it is, or the user's turn in a chat template (`auto` = the checkpoint's)."""
    if template is None:
        return codec.encode(text)
    return codec.encode_chat([Message("user", text)], template=None if template == "auto" else template)


def _log_answers(
    lines: Sequence[str],
    answers: Sequence[Sequence[Hypothesis]],
    references: Sequence[str] | None,
    gold: Sequence[float] | None,
) -> None:
    for number, (line, hypotheses) in enumerate(zip(lines, answers, strict=True), 1):
        logger.info("%d  %s", number, line)
        for hypothesis in hypotheses:
            logger.info("    %.4f  %s", hypothesis.score, to_line(hypothesis.text))
            if hypothesis.alignment is not None:
                logger.info("    align %s", pharaoh(hypothesis.alignment))
        if references is not None and gold is not None:
            logger.info("    gold %.4f  %s", gold[number - 1], references[number - 1])


def _report(name: str, scores: Sequence[float]) -> None:
    """OpenNMT-py's line: the mean score of an input, and what perplexity that would be."""
    if scores:
        mean = sum(scores) / len(scores)
        logger.info("%s SCORE: %.4f, %s PPL: %.2f NB SENTENCES: %d", name, mean, name, perplexity(-mean), len(scores))


def _write(
    config: TranslateConfig,
    lines: Sequence[str],
    answers: Sequence[Sequence[Hypothesis]],
    gold: Sequence[float] | None,
) -> None:
    target = config.inference.output
    texts = list(_output_lines(config, answers, gold))
    content = "".join(text + "\n" for text in texts)
    if target == "-":
        sys.stdout.write(content)
        return
    write_text(target, content)
    logger.info("%d answers to %d inputs written to %s", len(texts), len(lines), target)


def _output_lines(
    config: TranslateConfig, answers: Sequence[Sequence[Hypothesis]], gold: Sequence[float] | None
) -> Iterator[str]:
    for place, hypotheses in enumerate(answers):
        for hypothesis in hypotheses:
            text = to_line(hypothesis.text)
            if config.generation.report_align:
                text += f" {SEPARATOR} {pharaoh(hypothesis.alignment or ())}"
            if config.inference.with_score:
                text += f"\t{hypothesis.score:.6f}" + (f"\t{gold[place]:.6f}" if gold is not None else "")
            yield text


if __name__ == "__main__":
    raise SystemExit(main())
