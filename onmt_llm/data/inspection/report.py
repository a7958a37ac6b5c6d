"""`onmt_llm_data report`: statistics of every corpus after transforms and tokenisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onmt_llm.config.data import CorpusConfig, DataConfig
from onmt_llm.data.corpus import Corpus
from onmt_llm.data.parallel import RecordChunk, run_chunks
from onmt_llm.data.sampling.mixing import tempered
from onmt_llm.data.spec import PipelineSpec, split_corpora
from onmt_llm.data.statistics import CorpusCounts, percent, percentile

FORMAT_VERSION = 1
PERCENTILES = {"p10": 0.10, "p50": 0.50, "p90": 0.90, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True)
class CorpusReport:
    """One corpus.

    Attributes:
        name: Its name in `data:`.
        files: Its files.
        transforms: Names of its transforms.
        weight: Its weight in the mixture; 0 = for validation.
        counts: Counts of its examples.
    """

    name: str
    files: tuple[str, ...]
    transforms: tuple[str, ...]
    weight: float
    counts: CorpusCounts

    @property
    def lengths(self) -> dict[str, dict[int, int]]:
        """Kept examples by length, by side: `tokens` of a language model, else `source` and `target`."""
        counts = self.counts
        if not counts.src_lengths:
            return {"tokens": dict(sorted(counts.lengths.items()))}
        return {"source": dict(sorted(counts.src_lengths.items())), "target": dict(sorted(counts.lengths.items()))}

    @property
    def duplicates(self) -> int | None:
        """Examples dropped as duplicates; None where nothing was compared."""
        found = [number for reason, number in self.counts.dropped.items() if "duplicate" in reason]
        return sum(found) if found or "deduplicate" in self.transforms else None

    def to_dict(self) -> dict[str, Any]:
        counts = self.counts
        return {
            "files": self.files,
            "transforms": self.transforms,
            "weight": self.weight,
            "read": counts.read,
            "made": counts.made,
            "kept": counts.kept,
            "dropped": dict(counts.dropped.most_common()),
            "suspect": dict(counts.suspect.most_common()),
            "truncated": counts.truncated,
            "duplicates": self.duplicates,
            "tokens": counts.tokens,
            "trained": counts.trained,
            "trained_share": counts.trained / max(counts.tokens, 1),
            "unknown": counts.unknown,
            "unknown_rate": counts.unknown / max(counts.tokens, 1),
            "lengths": {
                side: {**lengths_at(lengths), "histogram": {str(length): n for length, n in lengths.items()}}
                for side, lengths in self.lengths.items()
            },
        }


@dataclass(frozen=True)
class Mixture:
    """The share of each corpus in training.

    Attributes:
        examples: Shares of the records read, according to the weights.
        tokens: Shares of the resulting tokens.
        trained: Shares of the trained tokens.
    """

    examples: dict[str, float]
    tokens: dict[str, float]
    trained: dict[str, float]


def measure(spec: PipelineSpec, *, n_sample: int = -1, processes: int = 1) -> list[CorpusReport]:
    """Read the corpora once, as a run would, and count.

    Args:
        spec: Corpora of training and validation, and what happens to them; transforms see the records of one bucket
            together.
        n_sample: Records of each corpus; -1 = all.
        processes: Number of processes.

    Raises:
        ConfigError, DataError: As in training.
    """
    train, valid = split_corpora(spec.corpora)
    reports: list[CorpusReport] = []
    for part, training in ((train, True), (valid, False)):
        if not part:
            continue
        mine, size = replace(spec, corpora=part, training=training), spec.batching.bucket_size
        counts = {name: CorpusCounts() for name in part}
        names = list(part)
        for index, found in run_chunks(mine, _Count(), n_sample=n_sample, processes=processes, size=size):
            counts[names[index]].add(found)
        reports += [_report(name, part[name], spec.data, counts[name], training) for name in names]
    return reports


def mixture(reports: Sequence[CorpusReport], temperature: float | None = None) -> Mixture:
    """The shares that result from the weights, without validation corpora.

    Args:
        reports: Report of each corpus; with a temperature, of the complete corpus.
        temperature: `mixing_temperature`.
    """
    training = [report for report in reports if report.weight]
    weights = [report.weight for report in training]
    if temperature is not None:
        weights = tempered(weights, [report.counts.read for report in training], temperature)
    per_record = {
        report.name: (
            weight,
            weight * report.counts.tokens / max(report.counts.read, 1),
            weight * report.counts.trained / max(report.counts.read, 1),
        )
        for report, weight in zip(training, weights, strict=True)
    }
    examples, tokens, trained = (
        _shares({name: values[place] for name, values in per_record.items()}) for place in range(3)
    )
    return Mixture(examples, tokens, trained)


def to_json(reports: Sequence[CorpusReport], shares: Mixture) -> dict[str, Any]:
    """The whole report as plain data."""
    return {
        "format_version": FORMAT_VERSION,
        "corpora": {report.name: report.to_dict() for report in reports},
        "mixture": shares.__dict__,
    }


def table(reports: Sequence[CorpusReport]) -> str:
    """The report for a terminal: one line per corpus and per reason for dropping."""
    head = ("corpus", "read", "kept", "dropped", "truncated", "tokens", "trained", "unknown", *PERCENTILES)
    rows = [head]
    for report in reports:
        counts = report.counts
        figures = (f"{counts.read:,}", f"{counts.kept:,}", f"{counts.dropped.total():,}", f"{counts.truncated:,}")
        shares = (f"{counts.tokens:,}", percent(counts.trained, counts.tokens), percent(counts.unknown, counts.tokens))
        for place, (side, lengths) in enumerate(report.lengths.items()):
            at = tuple(f"{length:,}" for length in lengths_at(lengths).values())
            # an encoder's lengths come first, the decoder's below them
            rows.append((report.name, *figures, *shares, *at) if not place else (f"  {side}", *[""] * 7, *at))
        rows += [(f"  {reason}", "", "", f"{number:,}", *[""] * 9) for reason, number in counts.dropped.most_common()]
        rows += [(f"  {what}", f"{number:,}", *[""] * 11) for what, number in counts.suspect.most_common()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_line(row, widths) for row in rows)


def lengths_at(lengths: Mapping[int, int]) -> dict[str, int]:
    """The percentiles of lengths, by name."""
    return {name: percentile(lengths, share) for name, share in PERCENTILES.items()}


class _Count:
    """Counts the examples of a chunk."""

    def __call__(self, corpus: Corpus, chunk: RecordChunk) -> CorpusCounts:
        counts = CorpusCounts()
        for example in corpus.examples(chunk.records, counts):
            corpus.encode(example, counts)
        return counts


def _report(name: str, corpus: CorpusConfig, data: DataConfig, counts: CorpusCounts, training: bool) -> CorpusReport:
    values = [value for key, value in corpus if key.startswith("path_") and value]
    files = tuple(file for value in values for file in ([value] if isinstance(value, str) else value))
    names = tuple(data.transforms_of(corpus))
    return CorpusReport(name, files, names, corpus.weight if training else 0, counts)


def _shares(amounts: Mapping[str, float]) -> dict[str, float]:
    whole = sum(amounts.values())
    return {name: amount / whole if whole else 0.0 for name, amount in amounts.items()}


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
    return "  ".join([row[0].ljust(widths[0]), *cells]).rstrip()
