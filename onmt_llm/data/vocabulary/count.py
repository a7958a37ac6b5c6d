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
"""Records that a process takes at a time."""

PartT = TypeVar("PartT")


@dataclass
class Counts:
    """How often each token occurs, tokens in the order in which they were first seen.

    Attributes:
        src: Of the source side.
        tgt: Of the target side.
        features: The same of each source feature's values.
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
    """What `work` makes of the transformed examples of each chunk, in order. What was dropped is logged at the end.

    Args:
        spec: The corpora, and what happens to them.
        work: An object of a class of ours, so that workers accept it.
        n_sample: Records of each corpus; -1 = all.
        processes: How many; 1 = this one alone.

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
                f"Corpus '{name}' must yield at least one example, but of {counts.read} none came through: {left_out}."
            )
        logger.info("Corpus '%s': read %d, kept %d, dropped: %s.", name, counts.read, counts.kept, left_out)


@dataclass(frozen=True)
class _OnExamples(Generic[PartT]):
    """What `work` makes of the transformed examples of a chunk."""

    work: Callable[[list[Example]], PartT]

    def __call__(self, corpus: Corpus, chunk: RecordChunk) -> tuple[CorpusCounts, PartT]:
        examples = corpus.examples(chunk.records)
        corpus.counts.kept = len(examples)
        return corpus.counts, self.work(examples)


@dataclass(frozen=True)
class _CountTokens:
    """Counts the tokens of examples, and the values of this many features."""

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
