"""The output of `onmt_llm_translate`: the answers in a file, in the log, and their mean score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from onmt_llm.config.generate import GenerationConfig
from onmt_llm.config.translate import TranslateConfig
from onmt_llm.generate.alignment import SEPARATOR, pharaoh
from onmt_llm.generate.scoring import perplexity
from onmt_llm.log import logger
from onmt_llm.progress import ProgressBar
from onmt_llm.text.placeholders import to_line

if TYPE_CHECKING:
    from onmt_llm.generate.line_prompts import Answers


def output_lines(config: TranslateConfig, answers: Answers, gold: Sequence[float] | None) -> Iterator[str]:
    """The lines of the output for these answers.

    Args:
        config: What a line shows.
        answers: The hypotheses of each input line.
        gold: The score of the reference of each input line, if references are scored.
    """
    for number, hypotheses in enumerate(answers):
        for hypothesis in hypotheses:
            text = to_line(hypothesis.text)
            if config.generation.report_align:
                text += f" {SEPARATOR} {pharaoh(hypothesis.alignment or ())}"
            if config.inference.with_score:
                text += f"\t{hypothesis.score:.6f}" + (f"\t{gold[number]:.6f}" if gold is not None else "")
            yield text


def log_answers(
    lines: Sequence[str],
    answers: Answers,
    references: Sequence[str] | None,
    gold: Sequence[float] | None,
    *,
    first: int = 0,
) -> None:
    """Log every input line with its answers, and with its reference if that was scored.

    Args:
        lines: Input lines.
        answers: The hypotheses of each.
        references: The line of `tgt` of each.
        gold: The scores of these.
        first: Place of the first line in the whole input.
    """
    for number, (line, hypotheses) in enumerate(zip(lines, answers, strict=True)):
        logger.info("%d  %s", first + number + 1, line)
        for hypothesis in hypotheses:
            logger.info("    %.4f  %s", hypothesis.score, to_line(hypothesis.text))
            if hypothesis.alignment is not None:
                logger.info("    align %s", pharaoh(hypothesis.alignment))
        if references is not None and gold is not None:
            logger.info("    gold %.4f  %s", gold[number], references[number])


@dataclass
class AnswerTotals:
    """What is known of all answers so far.

    Attributes:
        lines: Input lines.
        answers: Lines of the output.
        tokens: Tokens of all answers.
        cut: Lines whose best answer ended at its maximum length.
        score: Sum of the scores of the best answers.
        gold: Sum of the scores of the references; None if they are not scored.
    """

    lines: int = 0
    answers: int = 0
    tokens: int = 0
    cut: int = 0
    score: float = 0.0
    gold: float | None = None

    def add(self, answers: Answers, gold: Sequence[float] | None) -> None:
        """Add the hypotheses of further lines, and the scores of their references."""
        best = [hypotheses[0] for hypotheses in answers]
        self.lines += len(best)
        self.answers += sum(map(len, answers))
        self.tokens += sum(len(hypothesis.tokens) for hypotheses in answers for hypothesis in hypotheses)
        self.cut += sum(hypothesis.finish_reason == "length" for hypothesis in best)
        self.score += sum(hypothesis.score for hypothesis in best)
        if gold is not None:
            self.gold = sum(gold, self.gold or 0.0)

    def log(self, options: GenerationConfig, *, has_source: bool) -> None:
        """Log the mean scores, and warn of best answers that ended at their maximum length.

        Args:
            options: Have the limit of lengths.
            has_source: The model is an encoder-decoder, which has a second limit.
        """
        if not self.lines:
            return
        _log_mean_score("PRED", self.score, self.lines)
        if self.gold is not None:
            _log_mean_score("GOLD", self.gold, self.lines)
        if self.cut:
            limits = f"max_length {options.max_length}"
            limits += f", max_length_ratio {options.max_length_ratio:g}" if has_source else ""
            logger.warning("%d of %d answers were cut at their maximum length (%s).", self.cut, self.lines, limits)


class LineProgress:
    """Shows how many lines are answered, with rates and the time left.

    Args:
        totals: What is counted; it may be above zero at the beginning.
        lines: Number of input lines; None = unknown.
        is_shown: False = nothing is shown.
    """

    def __init__(self, totals: AnswerTotals, lines: int | None, *, is_shown: bool) -> None:
        self._totals, self._lines = totals, lines
        self._lines_before, self._tokens_before = totals.lines, totals.tokens
        self._progress = ProgressBar("translate", lines, unit="line", describe=self._sentence, is_shown=is_shown)

    def __enter__(self) -> LineProgress:
        self._progress.__enter__()
        self._progress.skip(self._lines_before)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)

    def add(self, lines: int) -> None:
        """Further lines are answered, and counted in the totals."""
        self._progress.add(lines, f"{self._tokens(self._progress.seconds()):,.0f} tokens/s")

    def _tokens(self, seconds: float) -> float:
        return (self._totals.tokens - self._tokens_before) / seconds

    def _sentence(self, seconds: float) -> str:
        done = self._totals.lines
        rate = (done - self._lines_before) / seconds
        rates = f"{rate:,.1f} lines/s, {self._tokens(seconds):,.0f} tokens/s"
        if self._lines is None:
            return f"{done:,} lines, {rates}"
        left = (self._lines - done) / rate if rate else 0.0
        return f"{done:,} of {self._lines:,} lines, {rates}, {left:,.0f} s left"


def _log_mean_score(name: str, total: float, count: int) -> None:
    """OpenNMT-py's line: the mean score, and the perplexity that corresponds to it."""
    mean = total / count
    logger.info("%s SCORE: %.4f, %s PPL: %.2f NB SENTENCES: %d", name, mean, name, perplexity(-mean), count)
