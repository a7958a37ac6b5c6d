"""`onmt_llm_translate` (also `onmt_llm_generate`): answer a file of inputs, line by line."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from random import SystemRandom
from typing import Any

from onmt_llm.cli.checks import inference_problems
from onmt_llm.cli.inference import open_configured_engine
from onmt_llm.cli.inputs import missing_files, missing_options, option_files
from onmt_llm.cli.lines.answers import answer_chunk, phrase_table, prompt_builder
from onmt_llm.cli.lines.chunks import ChunkReader, LineInput, chunk_lines
from onmt_llm.cli.lines.origin import answer_origin
from onmt_llm.cli.lines.output import AnswerTotals, LineProgress, log_answers, output_lines
from onmt_llm.cli.lines.partial_output import START_AGAIN, GrowingOutput, open_output, partial_files, with_partial_files
from onmt_llm.cli.outputs import STANDARD, Paths, model_files, output_option
from onmt_llm.cli.run import CheckedJob, required, run_job
from onmt_llm.config.loading.load import Loaded
from onmt_llm.config.translate import InferenceConfig, TranslateConfig
from onmt_llm.data.transforms.affix import Prefix, PrefixConfig
from onmt_llm.errors import ConfigError, DataError, Problem
from onmt_llm.generate.open import find_release
from onmt_llm.log import logger

USAGE = "onmt_llm_translate -model CHECKPOINT -src input.txt -output answers.txt; -src - reads standard input"


def main(argv: Sequence[str] | None = None) -> int:
    return run_job(CheckedJob("onmt_llm_translate", _paths, _problems), _translate, argv)


def _paths(loaded: Loaded[Any]) -> Paths:
    files = option_files(loaded, "inference", ("src", "tgt", "phrase_table", "template"))
    output = output_option(loaded, "inference", "output")
    return Paths([*model_files(loaded, "inference", ("model",)), *files], [*with_partial_files(output)])


def _problems(loaded: Loaded[Any]) -> Iterator[Problem]:
    yield from missing_options(loaded, "inference", ("model", "src"), USAGE)
    files = option_files(loaded, "inference", ("src", "tgt", "phrase_table"))
    yield from missing_files(loaded, files, streams=True)
    yield from inference_problems(loaded)


def _translate(loaded: Loaded[Any]) -> int:
    config: TranslateConfig = loaded.job
    src = LineInput(required(loaded, "inference", "src", USAGE))
    reader = ChunkReader(src, _references(loaded))
    table = phrase_table(config)
    redraws = config.generation.draws and find_release(config.inference.model[0]) is not None
    output = config.inference.output
    if redraws and any(path.exists() for path in partial_files(output)):
        logger.warning("CTranslate2 cannot continue sampled answers exactly: all lines are answered again.")
    with open_output(output, answer_origin(loaded), resume=config.inference.resume and not redraws) as writer:
        totals = _resume(writer, reader)
        config = _with_seed(config, writer.state.get("seed"), draw=not redraws)
        engine = open_configured_engine(loaded)
        size = chunk_lines(engine.codec.task, config.engine.batch_size, config.engine.batch_type)
        is_shown = output != STANDARD or not sys.stdout.isatty()
        with LineProgress(totals, src.count, is_shown=is_shown) as progress:
            for chunk in reader.chunks(size, prompt_builder(engine.codec, loaded)):
                answers, gold = answer_chunk(engine, chunk, config, table)
                if config.engine.verbose:
                    log_answers(chunk.lines, answers, chunk.references, gold, first=chunk.first)
                totals.add(answers, gold)
                text = "".join(f"{line}\n" for line in output_lines(config, answers, gold))
                writer.add(text, {"seed": config.generation.seed, "inputs": reader.digests, "totals": asdict(totals)})
                progress.add(len(chunk.lines))
        totals.log(config.generation, has_source=not engine.codec.config.model.is_decoder_only)
    if output != STANDARD:
        logger.info("%d answers to %d inputs written to %s", totals.answers, totals.lines, output)
    return 0


def _resume(writer: GrowingOutput, reader: ChunkReader) -> AnswerTotals:
    """Skip the lines that are answered already.

    Raises:
        DataError: The inputs were others then.
    """
    if not writer.state:
        return AnswerTotals()
    totals = AnswerTotals(**writer.state["totals"])
    reader.skip(totals.lines)
    for name, digest in reader.digests.items():
        if digest != writer.state["inputs"].get(name):
            raise DataError(
                f"{name} must begin with the {totals.lines} lines that are answered already, but they are others now.",
                hint=START_AGAIN,
            )
    logger.info("%d lines are answered already: resuming after them.", totals.lines)
    return totals


def _with_seed(config: TranslateConfig, seed: int | None, *, draw: bool) -> TranslateConfig:
    """With a seed for all chunks, and for a resumed process: the earlier one, the option's, or a new one."""
    if seed is None:
        seed = config.generation.seed
    if seed < 0 and draw and config.generation.draws:
        seed = SystemRandom().getrandbits(63)
    return config.model_copy(update={"generation": config.generation.model_copy(update={"seed": seed})})


def _references(loaded: Loaded[Any]) -> LineInput | None:
    """Lines of `tgt`; None if the option is not given."""
    inference: InferenceConfig = loaded.job.inference
    if inference.tgt is not None:
        return LineInput(inference.tgt)
    prefix = loaded.options.get(Prefix.section, PrefixConfig())
    assert isinstance(prefix, PrefixConfig)
    if inference.tgt_file_prefix and not ("prefix" in inference.transforms and prefix.tgt_prefix):
        raise ConfigError(
            "'tgt' must be given with tgt_file_prefix, but is not.",
            hint="-tgt prefixes.txt; or one prefix for all lines: -transforms prefix -tgt_prefix TOKENS",
        )
    return None


if __name__ == "__main__":
    raise SystemExit(main())
