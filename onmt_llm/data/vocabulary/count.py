"""Count the tokens of transformed corpora, in the order of their first occurrence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from onmt_llm.data.corpus import Corpus
from onmt_llm.data.example import Example
from onmt_llm.data.parallel import RecordChunk, run_chunks
from onmt_llm.data.spec import PipelineSpec
from onmt_llm.data.statistics import CorpusCounts
from onmt_llm.errors import DataError
from onmt_llm.log import logger
from onmt_llm.text.features import split_features

CHUNK = 2000
"""Records per chunk."""

PartT = TypeVar("PartT")


@dataclass
class Counts:
    """Token counts, in the order of first occurrence.

    Attributes:
        src: Tokens of the source side.
        tgt: Tokens of the target side.
        features: Values of each source feature.
    """

    src: Counter[str] = field(default_factory=Counter)
    tgt: Counter[str] = field(default_factory=Counter)
    features: list[Counter[str]] = field(default_factory=list)

    def add(self, other: Counts) -> None:
        self.src.update(other.src)
        self.tgt.update(other.tgt)
        for mine, its in zip(self.features, other.features, strict=True):
            mine.update(its)


def count_tokens(spec: PipelineSpec, *, n_sample: int, processes: int = 1) -> Counts:
    """Count the tokens of the first `n_sample` records of each corpus (-1 = of all), transformed as in training.

    Raises:
        DataError: A file is missing or wrong, or a corpus yields no example.
    """
    features = spec.data.n_src_feats
    total = Counts(features=[Counter() for _ in range(features)])
    for part in over_chunks(spec, _CountTokens(features), n_sample=n_sample, processes=processes):
        total.add(part)
    return total


def over_chunks(
    spec: PipelineSpec, work: Callable[[list[Example]], PartT], *, n_sample: int, processes: int
) -> Iterator[PartT]:
    """Apply `work` to the transformed examples of each chunk, in order; dropped examples are logged at the end.

    Args:
        spec: The corpora, and what happens to them.
        work: An object of a class of ours, so that workers accept it.
        n_sample: Records of each corpus; -1 = all.
        processes: Number of processes; 1 = only this one.

    Raises:
        DataError: A file is missing or wrong, or a corpus yields no example.
    """
    happened = {name: CorpusCounts() for name in spec.corpora}
    names = list(happened)
    for index, (counts, result) in run_chunks(
        spec, _OnExamples(work), n_sample=n_sample, processes=processes, size=CHUNK
    ):
        happened[names[index]].add(counts)
        yield result
    for name, counts in happened.items():
        left_out = ", ".join(f"{reason} {number}" for reason, number in sorted(counts.dropped.items())) or "none"
        if not counts.kept:
            raise DataError(
                f"Corpus '{name}' must yield at least one example, but none of {counts.read} was kept: {left_out}."
            )
        logger.info("Corpus '%s': read %d, kept %d, dropped: %s.", name, counts.read, counts.kept, left_out)


@dataclass(frozen=True)
class _OnExamples(Generic[PartT]):
    """Applies `work` to the transformed examples of a chunk."""

    work: Callable[[list[Example]], PartT]

    def __call__(self, corpus: Corpus, chunk: RecordChunk) -> tuple[CorpusCounts, PartT]:
        counts = CorpusCounts()
        examples = corpus.examples(chunk.records, counts)
        counts.kept = len(examples)
        return counts, self.work(examples)


@dataclass(frozen=True)
class _CountTokens:
    """Counts the tokens of examples and the values of their features."""

    features: int

    def __call__(self, examples: list[Example]) -> Counts:
        counts = Counts(features=[Counter() for _ in range(self.features)])
        for example in examples:
            for segment in example.src:
                tokens, *values = (
                    split_features(segment.tokens or (), self.features) if self.features else [segment.tokens or ()]
                )
                counts.src.update(tokens)
                for counter, column in zip(counts.features, values, strict=True):
                    counter.update(column)
            for segment in example.tgt:
                counts.tgt.update(segment.tokens or ())
        return counts
