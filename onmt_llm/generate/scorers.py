"""Scores of translations against references, by name: what validation prints (`valid_metrics`).

They are sacrebleu's with its default settings: its own command gives the same results for the same files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
        package: Package that it needs; empty = none.
    """

    name: str
    score: Callable[[Sequence[str], Sequence[str]], float]
    higher_is_better: bool = True
    package: str = ""


SCORERS: Registry[Scorer] = Registry("metric")


def _sacrebleu(function: str) -> Callable[[Sequence[str], Sequence[str]], float]:
    def score(predictions: Sequence[str], references: Sequence[str]) -> float:
        sacrebleu: Any = require("sacrebleu", "this score")
        return float(getattr(sacrebleu, function)(list(predictions), [list(references)]).score)

    return score


SCORERS.register("BLEU")(Scorer("BLEU", _sacrebleu("corpus_bleu"), package="sacrebleu"))
SCORERS.register("CHRF")(Scorer("CHRF", _sacrebleu("corpus_chrf"), package="sacrebleu"))
SCORERS.register("TER")(Scorer("TER", _sacrebleu("corpus_ter"), higher_is_better=False, package="sacrebleu"))


def open_scorers(names: Sequence[str]) -> list[Scorer]:
    """The scorers with these names, their packages checked.

    Raises:
        ConfigError: A name is unknown.
        UnsupportedError: A package is missing.
    """
    scorers = [SCORERS.get(name) for name in names]
    for scorer in scorers:
        if scorer.package:
            require(scorer.package, f"the metric {scorer.name}")
    return scorers
