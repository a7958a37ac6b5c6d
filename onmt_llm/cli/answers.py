"""The output of `onmt_llm_translate`: the answers in a file, in the log, and their mean score."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from onmt_llm.atomic import write_text
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.config.translate import TranslateConfig
from onmt_llm.generate.alignment import SEPARATOR, pharaoh
from onmt_llm.generate.scoring import perplexity
from onmt_llm.log import logger
from onmt_llm.text.placeholders import to_line

if TYPE_CHECKING:
    from onmt_llm.generate.line_prompts import Answers


def write_answers(config: TranslateConfig, num_inputs: int, answers: Answers, gold: Sequence[float] | None) -> None:
    """Write the answers to `output`, or to standard output ("-")."""
    output = config.inference.output
    texts = list(_output_lines(config, answers, gold))
    content = "".join(text + "\n" for text in texts)
    if output == "-":
        sys.stdout.write(content)
        return
    write_text(output, content)
    logger.info("%d answers to %d inputs written to %s", len(texts), num_inputs, output)


def _output_lines(config: TranslateConfig, answers: Answers, gold: Sequence[float] | None) -> Iterator[str]:
    for number, hypotheses in enumerate(answers):
        for hypothesis in hypotheses:
            text = to_line(hypothesis.text)
            if config.generation.report_align:
                text += f" {SEPARATOR} {pharaoh(hypothesis.alignment or ())}"
            if config.inference.with_score:
                text += f"\t{hypothesis.score:.6f}" + (f"\t{gold[number]:.6f}" if gold is not None else "")
            yield text


def log_answers(
    lines: Sequence[str], answers: Answers, references: Sequence[str] | None, gold: Sequence[float] | None
) -> None:
    """Log every input line with its answers, and with its reference if that was scored."""
    for number, (line, hypotheses) in enumerate(zip(lines, answers, strict=True), 1):
        logger.info("%d  %s", number, line)
        for hypothesis in hypotheses:
            logger.info("    %.4f  %s", hypothesis.score, to_line(hypothesis.text))
            if hypothesis.alignment is not None:
                logger.info("    align %s", pharaoh(hypothesis.alignment))
        if references is not None and gold is not None:
            logger.info("    gold %.4f  %s", gold[number - 1], references[number - 1])


def log_mean_score(name: str, scores: Sequence[float]) -> None:
    """OpenNMT-py's line: the mean score, and the perplexity that corresponds to it."""
    if scores:
        mean = sum(scores) / len(scores)
        logger.info("%s SCORE: %.4f, %s PPL: %.2f NB SENTENCES: %d", name, mean, name, perplexity(-mean), len(scores))


def warn_of_cut_answers(answers: Answers, options: GenerationConfig, *, has_source: bool) -> None:
    """Warn if best answers ended at their maximum length, for which models with a source have a second limit."""
    cut = sum(hypotheses[0].finish_reason == "length" for hypotheses in answers if hypotheses)
    if cut:
        limits = f"max_length {options.max_length}"
        limits += f", max_length_ratio {options.max_length_ratio:g}" if has_source else ""
        logger.warning("%d of %d answers were cut at their maximum length (%s).", cut, len(answers), limits)
