"""Scores of answers against references, by name: what validation (`valid_metrics`) and `onmt_llm_eval score` print.

BLEU, CHRF and TER are sacrebleu's, and ROUGE is rouge-score's, with their default settings: their own commands give the
same results for the same files. All scores are from 0 to 100; TER may exceed 100.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from onmt_llm.optional import require
from onmt_llm.registry import Registry


@dataclass(frozen=True)
class Scorer:
    """A metric of a whole test set.

    Attributes:
        name: As in the options.
        score: (predictions, references) -> score; the texts are detokenised.
        higher_is_better: False for an error rate.
        package: Module of the package that it needs; empty = none.
        reads_lines: The metric distinguishes the lines of a text; others are given texts of one line.
        single: (prediction, reference) -> score, of a metric that is the mean over the texts; None = it is none.
    """

    name: str
    score: Callable[[Sequence[str], Sequence[str]], float]
    higher_is_better: bool = True
    package: str = ""
    reads_lines: bool = False
    single: Callable[[str, str], float] | None = None

    def of_texts(self, predictions: Sequence[str], references: Sequence[str]) -> float:
        """The score of texts, which may have several lines."""
        if self.reads_lines:
            return self.score(predictions, references)
        return self.score([one_line(text) for text in predictions], [one_line(text) for text in references])


SCORERS: Registry[Scorer] = Registry("metric")


def one_line(text: str) -> str:
    """A text as a line of a file, so that the scores of the files are those of the texts."""
    return text.replace("\r", " ").replace("\n", " ").strip()


def _sacrebleu(function: str) -> Callable[[Sequence[str], Sequence[str]], float]:
    def score(predictions: Sequence[str], references: Sequence[str]) -> float:
        sacrebleu: Any = require("sacrebleu", "this score")
        return float(getattr(sacrebleu, function)(list(predictions), [list(references)]).score)

    return score


def _rouge(kind: str) -> Callable[[str, str], float]:
    """F-measure in percent of one prediction; rouge-score takes the reference first."""

    def score(prediction: str, reference: str) -> float:
        return 100 * float(_rouge_scorer(kind).score(reference, prediction)[kind].fmeasure)

    return score


@cache
def _rouge_scorer(kind: str) -> Any:
    return require("rouge_score.rouge_scorer", "this score", "rouge-score").RougeScorer([kind])


def _equals(prediction: str, reference: str) -> float:
    return 100.0 * (prediction.strip() == reference.strip())


def _mean(single: Callable[[str, str], float]) -> Callable[[Sequence[str], Sequence[str]], float]:
    def score(predictions: Sequence[str], references: Sequence[str]) -> float:
        pairs = zip(predictions, references, strict=True)
        return sum(single(*pair) for pair in pairs) / max(len(references), 1)

    return score


def _register_mean(name: str, single: Callable[[str, str], float], *, package: str = "") -> None:
    SCORERS.register(name)(Scorer(name, _mean(single), package=package, reads_lines=True, single=single))


SCORERS.register("BLEU")(Scorer("BLEU", _sacrebleu("corpus_bleu"), package="sacrebleu"))
SCORERS.register("CHRF")(Scorer("CHRF", _sacrebleu("corpus_chrf"), package="sacrebleu"))
SCORERS.register("TER")(Scorer("TER", _sacrebleu("corpus_ter"), higher_is_better=False, package="sacrebleu"))
for _name, _kind in {"ROUGE1": "rouge1", "ROUGE2": "rouge2", "ROUGEL": "rougeL", "ROUGELSUM": "rougeLsum"}.items():
    _register_mean(_name, _rouge(_kind), package="rouge_score")
_register_mean("EXACT_MATCH", _equals)

_PIP_NAMES = {"rouge_score": "rouge-score"}


def open_scorers(names: Sequence[str]) -> list[Scorer]:
    """The scorers with these names, their packages checked.

    Raises:
        ConfigError: A name is unknown.
        UnsupportedError: A package is missing.
    """
    scorers = [SCORERS.get(name) for name in names]
    for scorer in scorers:
        if scorer.package:
            require(scorer.package, f"the metric {scorer.name}", _PIP_NAMES.get(scorer.package))
    return scorers
