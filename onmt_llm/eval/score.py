"""Scores of systems against references: with signatures, confidence intervals and paired tests (sacrebleu)."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from onmt_llm.errors import CheckpointError, ConfigError, DataError
from onmt_llm.generate.scorers import Scorer, one_line, open_scorers
from onmt_llm.optional import require
from onmt_llm.version import __version__

COMET = "COMET"
"""The metric that reads sources too, and a model of its own."""
_SACREBLEU = {"BLEU": "BLEU", "CHRF": "CHRF", "TER": "TER"}
"""Classes of `sacrebleu.metrics`, by the names of our metrics."""


@dataclass(frozen=True)
class SystemScore:
    """The score of one system by one metric.

    Attributes:
        system: Its name.
        metric: Name of the metric.
        score: Of the whole test set.
        signature: How it was computed.
        mean: Mean over the bootstrap resamples; None without resamples.
        interval: Half of the 95% confidence interval; None likewise.
        p_value: That the difference from the first system is due to chance (paired bootstrap); None for that system.
    """

    system: str
    metric: str
    score: float
    signature: str
    mean: float | None = None
    interval: float | None = None
    p_value: float | None = None

    def line(self) -> str:
        """The score as a line of text."""
        digits = 4 if self.metric == COMET else 2  # COMET is about 1 at most
        text = f"{self.score:.{digits}f}"
        if self.mean is not None and self.interval is not None:
            text += f" (μ = {self.mean:.{digits}f} ± {self.interval:.{digits}f})"
        if self.p_value is not None:
            text += f" (p = {self.p_value:.4f}{'*' if self.p_value <= 0.05 else ''})"
        return f"{self.system}\t{self.metric}\t{text}"


@dataclass(frozen=True)
class CometModel:
    """The model of COMET, and the sources that it reads.

    Attributes:
        path: A checkpoint of COMET, the folder of a downloaded model, or the name of one.
        sources: One for each reference.
    """

    path: str
    sources: Sequence[str]

    def values(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        """The score of each prediction.

        Raises:
            CheckpointError: The model cannot be loaded.
            DataError: There are more or fewer sources than references.
        """
        if len(self.sources) != len(references):
            raise DataError(
                f"For {COMET} 'src' must have as many lines as 'tgt', {len(references)}, but has {len(self.sources)}."
            )
        rows = zip(self.sources, predictions, references, strict=True)
        data = [{"src": source, "mt": said, "ref": wanted} for source, said, wanted in rows]
        return [float(score) for score in self._model.predict(data, gpus=0).scores]

    @cached_property
    def _model(self) -> Any:
        comet: Any = require("comet", f"the metric {COMET}", "unbabel-comet")
        local = Path(self.path).absolute()  # hparams.yaml is looked for two folders above
        try:
            if local.is_dir():
                path = str(local / "checkpoints" / "model.ckpt")
            else:
                path = str(local) if local.suffix == ".ckpt" else comet.download_model(self.path)
            return comet.load_from_checkpoint(path)
        except Exception as error:  # COMET raises Exception itself
            raise CheckpointError(
                f"'comet_model' must be a model of COMET, but {self.path} cannot be loaded "
                f"({type(error).__name__}: {error}).",
                hint="-comet_model FOLDER, with hparams.yaml and checkpoints/model.ckpt; a name needs the network",
            ) from error


def check_metrics(names: Sequence[str]) -> list[Scorer]:
    """The scorers with these names except COMET, all packages checked.

    Raises:
        ConfigError: A name is unknown.
        UnsupportedError: A package is missing.
    """
    if COMET in names:
        require("comet", f"the metric {COMET}", "unbabel-comet")
    return open_scorers([name for name in names if name != COMET])


def score_systems(
    systems: Mapping[str, Sequence[str]],
    references: Sequence[str],
    metrics: Sequence[str],
    *,
    resamples: int = 0,
    comet: CometModel | None = None,
) -> list[SystemScore]:
    """Scores of systems.

    Args:
        systems: Answers of each system, by its name; the first is the baseline of the paired tests.
        references: One for each answer.
        metrics: Names in `SCORERS`, or COMET.
        resamples: Bootstrap resamples of confidence intervals and paired tests; 0 = none. sacrebleu draws them with
            the seed 12345, or SACREBLEU_SEED.
        comet: For COMET.

    Returns:
        The scores, metric by metric.

    Raises:
        ConfigError: A metric is unknown, or cannot be resampled.
        DataError: A system has another number of answers than there are references.
        UnsupportedError: A package is missing.
    """
    for name, answers in systems.items():
        if len(answers) != len(references):
            raise DataError(
                f"A system must have as many answers as there are references, {len(references)}, but {name} has "
                f"{len(answers)}."
            )
    if not references:
        raise DataError("There must be at least one answer to score, but there is none.")
    scorers = {scorer.name: scorer for scorer in check_metrics(metrics)}
    found: list[SystemScore] = []
    for name in metrics:
        scorer = scorers.get(name)
        if scorer is not None and name not in _SACREBLEU and scorer.single is None:
            found += _of_plugin(scorer, systems, references, resamples)
            continue
        lines = scorer is not None and not scorer.reads_lines
        texts = {
            system: [one_line(text) for text in answers] if lines else answers for system, answers in systems.items()
        }
        targets = [one_line(text) for text in references] if lines else references
        found += _scored(_metric(name, scorer, comet), name, texts, targets, resamples)
    return found


def _of_plugin(
    scorer: Scorer, systems: Mapping[str, Sequence[str]], references: Sequence[str], resamples: int
) -> list[SystemScore]:
    if resamples:
        raise ConfigError(
            f"With 'resamples' the metrics must be those of this package, but {scorer.name} is that of a plug-in.",
            hint="leave one of them out, or give its Scorer `single`",
        )
    return [
        SystemScore(system, scorer.name, scorer.of_texts(answers, references), "")
        for system, answers in systems.items()
    ]


def _metric(name: str, scorer: Scorer | None, comet: CometModel | None) -> Any:
    """The metric as an object of sacrebleu."""
    metrics: Any = require("sacrebleu.metrics", "onmt_llm_eval score", "sacrebleu")
    if name in _SACREBLEU:
        return getattr(metrics, _SACREBLEU[name])()
    from onmt_llm.eval.mean_metric import MeanMetric

    if scorer is None:
        if comet is None:
            raise ConfigError(f"The metric {COMET} must have sources and a model, but has none.", hint="-src FILE")
        return MeanMetric(name, comet.values, origin=f"comet-{importlib.metadata.version('unbabel-comet')}")
    single = scorer.single
    assert single is not None
    origin = f"onmt_llm-{__version__}"
    if scorer.package == "rouge_score":
        origin = f"rouge-score-{importlib.metadata.version('rouge-score')}"
    return MeanMetric(name, lambda said, wanted: list(map(single, said, wanted)), origin=origin)


def _scored(
    metric: Any, name: str, systems: Mapping[str, Sequence[str]], references: Sequence[str], resamples: int
) -> list[SystemScore]:
    if not resamples:
        scores = {system: metric.corpus_score(list(answers), [list(references)]) for system, answers in systems.items()}
        signature = str(metric.get_signature())
        return [SystemScore(system, name, float(score.score), signature) for system, score in scores.items()]
    tests: Any = require("sacrebleu.significance", "'resamples'", "sacrebleu")
    named = [(system, list(answers)) for system, answers in systems.items()]
    signatures, table = tests.PairedTest(named, {name: metric}, [list(references)], "bs", resamples)()
    (key,) = signatures
    make = partial(SystemScore, metric=name, signature=str(signatures[key]))
    return [
        make(system, score=float(r.score), mean=float(r.mean), interval=float(r.ci), p_value=_optional(r.p_value))
        for system, r in zip(systems, table[key], strict=True)
    ]


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)


def to_json(scores: Sequence[SystemScore]) -> list[dict[str, Any]]:
    """The scores as JSON objects, without what is not known."""
    return [{key: value for key, value in asdict(score).items() if value is not None} for score in scores]
