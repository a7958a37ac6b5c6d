"""Process whole corpora in one process or several, with identical results.

Records are split into chunks of a fixed size, random transforms are seeded per chunk, and results come in the order of
the chunks, so nothing depends on the number of processes.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

from onmt_llm.data.corpus import Corpus, open_corpora
from onmt_llm.data.readers import Record, check_readers
from onmt_llm.data.seeding import derived_seed
from onmt_llm.data.spec import PipelineSpec
from onmt_llm.data.statistics import CorpusCounts

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class RecordChunk:
    """Consecutive records.

    Attributes:
        corpus: Index of their corpus.
        number: Chunks of that corpus before this one.
        records: What a reader yields.
    """

    corpus: int
    number: int
    records: list[Record]


Work = Callable[[Corpus, RecordChunk], ResultT]
"""What is made of a chunk. A function of a module, so that other processes find it; `corpus.counts` begin at zero."""


def run_chunks(
    spec: PipelineSpec, work: Work[ResultT], *, n_sample: int = -1, processes: int = 1, size: int
) -> Iterator[tuple[int, ResultT]]:
    """(index of the corpus, result) of every chunk, in order.

    Args:
        spec: The corpora, and what happens to them.
        work: What is done.
        n_sample: Records of each corpus; -1 = all.
        processes: How many; 1 = this one alone.
        size: Records of a chunk.

    Raises:
        DataError: A file is missing or wrong.
    """
    opened = open_corpora(spec)
    check_readers([corpus.reader for corpus in opened])
    chunks = _chunks(opened, n_sample, size)
    if processes == 1:
        for chunk in chunks:
            yield chunk.corpus, _work(opened, spec.seed, work, chunk)
        return
    # spawned, not forked: tokenisers have threads, which a fork would leave half alive
    context = multiprocessing.get_context("spawn")
    level = spec.data.skip_empty_level
    quiet = spec.data.model_copy(update={"skip_empty_level": "error" if level == "error" else "silent"})
    there = replace(spec, data=quiet)
    with ProcessPoolExecutor(processes, context, initializer=_open_here, initargs=(there,)) as pool:
        waiting: deque[tuple[int, Future[ResultT]]] = deque()
        for chunk in chunks:
            waiting.append((chunk.corpus, pool.submit(_work_here, work, chunk)))
            if len(waiting) > 2 * processes:
                index, future = waiting.popleft()
                yield index, future.result()
        for index, future in waiting:
            yield index, future.result()


def _chunks(opened: list[Corpus], n_sample: int, size: int) -> Iterator[RecordChunk]:
    for index, corpus in enumerate(opened):
        records = iter(corpus.reader.read, None)
        wanted = records if n_sample < 0 else islice(records, n_sample)
        number = 0
        while chunk := list(islice(wanted, size)):
            yield RecordChunk(index, number, chunk)
            number += 1
        corpus.reader.close()


def _work(opened: list[Corpus], seed: int, work: Work[ResultT], chunk: RecordChunk) -> ResultT:
    corpus = opened[chunk.corpus]
    for place, transform in enumerate(corpus.transforms):
        transform.reseed(derived_seed(seed, corpus.name, chunk.number, place))
    corpus.counts = CorpusCounts()
    return work(corpus, chunk)


_corpora: list[Corpus] = []
_seed = 0


def _open_here(spec: PipelineSpec) -> None:
    """What a new process does first."""
    global _seed
    _corpora[:], _seed = open_corpora(spec), spec.seed


def _work_here(work: Work[ResultT], chunk: RecordChunk) -> ResultT:
    return _work(_corpora, _seed, work, chunk)
