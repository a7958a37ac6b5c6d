"""Two models' answers to the same prompts side by side, as one HTML page that needs no other file."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onmt_llm.config.generate import GenerationConfig
from onmt_llm.data.inspection.diff import compare_texts
from onmt_llm.data.inspection.html import render_page
from onmt_llm.errors import DataError
from onmt_llm.eval.score import SystemScore
from onmt_llm.generate.scorers import one_line
from onmt_llm.optional import require

if TYPE_CHECKING:
    from onmt_llm.generate.engine import Engine


@dataclass(frozen=True)
class TimedAnswer:
    """One answer.

    Attributes:
        text: Its text.
        tokens: Their number.
        score: Log probability per token, as the engine gives it.
        seconds: Time from the prompt to the end of the answer, with no other prompt beside it.
    """

    text: str
    tokens: int
    score: float
    seconds: float


@dataclass(frozen=True)
class ModelAnswers:
    """The answers of one model, in the order of the prompts.

    Attributes:
        model: Its name.
        answers: One for each prompt.
    """

    model: str
    answers: Sequence[TimedAnswer]

    @property
    def seconds(self) -> float:
        """Median time of an answer."""
        return statistics.median(answer.seconds for answer in self.answers)

    @property
    def tokens(self) -> int:
        """Tokens of all answers."""
        return sum(answer.tokens for answer in self.answers)

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return self.tokens / max(sum(answer.seconds for answer in self.answers), 1e-9)


def timed_answers(
    engine: Engine, prompts: Sequence[Sequence[str]], options: GenerationConfig, *, model: str
) -> ModelAnswers:
    """Answer prompts one at a time. The first is answered twice, since the first call of a model is slower.

    Raises:
        DataError: There is no prompt.
    """
    if not prompts:
        raise DataError("There must be at least one prompt to answer, but there is none.")
    engine.generate([prompts[0]], options)
    found = []
    for place, prompt in enumerate(prompts):
        began = time.perf_counter()
        best = engine.generate([prompt], options, places=[place])[0][0]
        found.append(TimedAnswer(best.text, len(best.tokens), best.score, time.perf_counter() - began))
    return ModelAnswers(model, found)


def comparison_page(
    first: ModelAnswers,
    second: ModelAnswers,
    prompts: Sequence[str],
    references: Sequence[str] | None,
    scores: Sequence[SystemScore],
) -> str:
    """The page.

    Args:
        first: The answers of one model.
        second: Those of the other one; words that only one of them has are marked.
        prompts: The prompts as text.
        references: Reference answers; None = none. Each answer is then shown with its chrF.
        scores: Scores of both models by metric.
    """
    rows = [
        {
            "prompt": prompt,
            "reference": None if references is None else references[place],
            "answers": _marked(
                first.answers[place], second.answers[place], None if references is None else references[place]
            ),
            "differ": first.answers[place].text != second.answers[place].text,
        }
        for place, prompt in enumerate(prompts)
    ]
    metrics = dict.fromkeys(score.metric for score in scores)
    names = _short_names(first.model, second.model)
    return render_page(
        "compare.html",
        {},
        title=" beside ".join(names),
        names=names,
        models=(first, second),
        rows=rows,
        metrics=list(metrics),
        scores={(score.system, score.metric): score for score in scores},
        differ=sum(row["differ"] for row in rows),
        identical=sum(not row["differ"] for row in rows),
    )


def _short_names(*models: str) -> list[str]:
    """The ends of two paths that tell them apart."""
    paths = [model.rstrip("/").split("/") for model in models]
    longest = max(map(len, paths))
    count = next((n for n in range(1, longest) if len({tuple(path[-n:]) for path in paths}) > 1), longest)
    return ["/".join(path[-count:]) for path in paths]


def _marked(first: TimedAnswer, second: TimedAnswer, reference: str | None) -> list[dict[str, Any]]:
    """Both answers as stretches with their marks, and their chrF."""
    stretches = compare_texts(first.text, second.text)
    chrf = [None if reference is None else _chrf(answer.text, reference) for answer in (first, second)]
    best = None if None in chrf or chrf[0] == chrf[1] else max(value for value in chrf if value is not None)
    return [
        {"answer": answer, "stretches": [each for each in stretches if each[0] != other], "chrf": value}
        | {"is_better": best is not None and value == best}
        for answer, other, value in zip((first, second), ("added", "gone"), chrf, strict=True)
    ]


def _chrf(answer: str, reference: str) -> float:
    sacrebleu: Any = require("sacrebleu", "the scores of a comparison")
    return float(sacrebleu.sentence_chrf(one_line(answer), [one_line(reference)]).score)
