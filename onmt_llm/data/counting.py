"""Counting the tokens of transformed corpora, in one process or in several, with the same result.

Records are dealt in chunks of a fixed size, random transforms are seeded by chunk, and the counts of the chunks are
added up in order: so neither the numbers nor the order in which tokens were first seen depends on who counted.
"""

from __future__ import annotations

import multiprocessing
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice, takewhile
from typing import TypeVar

from onmt_llm.config.data import CorpusConfig, DataConfig
from onmt_llm.config.section import Section
from onmt_llm.data.corpus import Corpus, open_corpora
from onmt_llm.data.counts import CorpusCounts
from onmt_llm.data.example import Example
from onmt_llm.data.model_text import ModelText
from onmt_llm.data.readers import Record, check_readers
from onmt_llm.errors import DataError
from onmt_llm.log import logger
from onmt_llm.text.features import split_features

CHUNK = 2000
"""Records that a process takes at a time."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Source:
    """Corpora and what happens to them: all that a process needs to transform records.

    Attributes:
        corpora: Corpora by name.
        data: Options of all corpora.
        options: Sections of the transforms.
        model: The model that they are prepared for; its vocabulary need not hold their tokens yet.
        seed: Of random transforms.
        text_only: Only the transforms in front of the tokeniser act.
        without: Transforms that do not act.
    """

    corpora: Mapping[str, CorpusConfig]
    data: DataConfig
    options: Mapping[str, Section]
    model: ModelText
    seed: int
    text_only: bool = False
    without: frozenset[str] = frozenset()

    def open(self) -> list[Corpus]:
        opened = open_corpora(self.corpora, data=self.data, options=self.options, model=self.model, training=True)
        for corpus in opened:
            transforms = [transform for transform in corpus.transforms if transform.name not in self.without]
            if self.text_only:
                transforms = list(takewhile(lambda transform: not transform.tokenizes, transforms))
            corpus.transforms = transforms
        return opened


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


def count_tokens(source: Source, *, n_sample: int, processes: int = 1) -> Counts:
    """Count the tokens of the first `n_sample` records of each corpus (-1 = of all), transformed as in training.

    Raises:
        DataError: A file is missing or wrong, or a corpus yields no example.
    """
    features = source.data.n_src_feats
    total = Counts(features=[Counter() for _ in range(features)])
    for part in over_chunks(source, partial(_count, features), n_sample=n_sample, processes=processes):
        total.add(part)
    return total


def over_chunks(
    source: Source, work: Callable[[list[Example]], Result], *, n_sample: int, processes: int
) -> Iterator[Result]:
    """What `work` makes of the transformed examples of each chunk, in order. What was dropped is logged at the end.

    Args:
        source: The corpora.
        work: A function of a module, so that other processes find it.
        n_sample: Records of each corpus; -1 = all.
        processes: How many; 1 = this one alone.

    Raises:
        DataError: A file is missing or wrong, or a corpus yields no example.
    """
    opened = source.open()
    check_readers([corpus.reader for corpus in opened])
    happened = [CorpusCounts() for _ in opened]
    for index, counts, result in _results(opened, source, work, _chunks(opened, n_sample), processes):
        happened[index].read += counts.read
        happened[index].made += counts.made
        happened[index].kept += counts.kept
        happened[index].dropped += counts.dropped
        yield result
    for corpus, counts in zip(opened, happened, strict=True):
        left_out = ", ".join(f"{reason} {number}" for reason, number in sorted(counts.dropped.items())) or "none"
        if not counts.kept:
            raise DataError(
                f"Corpus '{corpus.name}' must yield at least one example, but of {counts.read} none came through: "
                f"{left_out}."
            )
        logger.info("Corpus '%s': read %d, kept %d, dropped: %s.", corpus.name, counts.read, counts.kept, left_out)


Chunk = tuple[int, int, list[Record]]
"""Index of the corpus, number of the chunk in it, records."""


def _results(
    opened: list[Corpus],
    source: Source,
    work: Callable[[list[Example]], Result],
    chunks: Iterator[Chunk],
    processes: int,
) -> Iterator[tuple[int, CorpusCounts, Result]]:
    """(index of the corpus, what happened to its records, what `work` returned), chunk by chunk in order."""
    if processes == 1:
        for chunk in chunks:
            yield _work(opened, source.seed, work, chunk)
        return
    # spawned, not forked: tokenisers have threads, which a fork would leave half alive
    context = multiprocessing.get_context("spawn")
    level = source.data.skip_empty_level
    quiet = source.data.model_copy(update={"skip_empty_level": "error" if level == "error" else "silent"})
    there = replace(source, data=quiet)
    with ProcessPoolExecutor(processes, context, initializer=_open_here, initargs=(there,)) as pool:
        waiting: deque[Future[tuple[int, CorpusCounts, Result]]] = deque()
        for chunk in chunks:
            waiting.append(pool.submit(_work_here, work, chunk))
            if len(waiting) > 2 * processes:
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()


def _chunks(opened: list[Corpus], n_sample: int) -> Iterator[Chunk]:
    for index, corpus in enumerate(opened):
        records = iter(corpus.reader.read, None)
        wanted = records if n_sample < 0 else islice(records, n_sample)
        number = 0
        while chunk := list(islice(wanted, CHUNK)):
            yield index, number, chunk
            number += 1
        corpus.reader.close()


def _work(
    opened: list[Corpus], seed: int, work: Callable[[list[Example]], Result], chunk: Chunk
) -> tuple[int, CorpusCounts, Result]:
    index, number, records = chunk
    corpus = opened[index]
    for place, transform in enumerate(corpus.transforms):
        transform.reseed(random.Random(f"{seed}:{corpus.name}:{number}:{place}").getrandbits(31))
    corpus.counts = CorpusCounts()
    examples = corpus.examples(records)
    corpus.counts.kept = len(examples)
    return index, corpus.counts, work(examples)


def _count(features: int, examples: list[Example]) -> Counts:
    counts = Counts(features=[Counter() for _ in range(features)])
    for example in examples:
        for segment in example.src:
            tokens, *values = split_features(segment.tokens or (), features) if features else [segment.tokens or ()]
            counts.src.update(tokens)
            for counter, column in zip(counts.features, values, strict=True):
                counter.update(column)
        for segment in example.tgt:
            counts.tgt.update(segment.tokens or ())
    return counts


_corpora: list[Corpus] = []
_seed = 0


def _open_here(source: Source) -> None:
    """What a new process does first."""
    global _seed
    _corpora[:], _seed = source.open(), source.seed


def _work_here(work: Callable[[list[Example]], Result], chunk: Chunk) -> tuple[int, CorpusCounts, Result]:
    return _work(_corpora, _seed, work, chunk)
