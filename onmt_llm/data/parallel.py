"""Process whole corpora in one process or several, with identical results.

Records are split into chunks of a fixed size, random transforms are seeded per chunk, and results come in the order of
the chunks, so nothing depends on the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Generic, TypeVar

from onmt_llm.data.corpus import Corpus, open_corpora
from onmt_llm.data.readers import Record, check_readers
from onmt_llm.data.spec import PipelineSpec, derived_seed
from onmt_llm.data.workers.pool import InlinePool, ProcessPool, WorkerPool

ChunkResultT = TypeVar("ChunkResultT")


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


ChunkWork = Callable[[Corpus, RecordChunk], ChunkResultT]
"""What is made of a chunk. An object of a class of ours, so that workers accept it."""


@dataclass(frozen=True)
class ChunkJob(Generic[ChunkResultT]):
    """The processing of chunks, as the job of a worker pool.

    Attributes:
        spec: The corpora, and what happens to them.
        work: What is made of a chunk.
    """

    spec: PipelineSpec
    work: ChunkWork[ChunkResultT]
    without_processes: ClassVar[str] = "num_threads: 1"
    less_memory: ClassVar[str] = "fewer num_threads"

    @property
    def plugins(self) -> Sequence[str]:
        return self.spec.data.plugins

    def open(self) -> Callable[[RecordChunk], ChunkResultT]:
        return self.on(open_corpora(self.spec))

    def on(self, opened: Sequence[Corpus]) -> Callable[[RecordChunk], ChunkResultT]:
        """The function from a chunk to its result, with these corpora."""

        def run(chunk: RecordChunk) -> ChunkResultT:
            corpus = opened[chunk.corpus]
            for place, transform in enumerate(corpus.transforms):
                transform.reseed(derived_seed(self.spec.seed, corpus.name, chunk.number, place))
            return self.work(corpus, chunk)

        return run


def run_chunks(
    spec: PipelineSpec, work: ChunkWork[ChunkResultT], *, n_sample: int = -1, processes: int = 1, size: int
) -> Iterator[tuple[int, ChunkResultT]]:
    """(index of the corpus, result) of every chunk, in order.

    Args:
        spec: The corpora, and what happens to them.
        work: What is done.
        n_sample: Records of each corpus; -1 = all.
        processes: Number of processes; 1 = only this one.
        size: Records per chunk.

    Raises:
        DataError: A file is missing or wrong.
    """
    opened = open_corpora(spec)
    check_readers([corpus.reader for corpus in opened])
    job = ChunkJob(spec, work)
    pool: WorkerPool[RecordChunk, ChunkResultT] = (
        InlinePool(job.on(opened)) if processes == 1 else ProcessPool(job, processes)
    )
    return pool.run((chunk.corpus, chunk) for chunk in _chunks(opened, n_sample, size))


def _chunks(opened: Sequence[Corpus], n_sample: int, size: int) -> Iterator[RecordChunk]:
    for index, corpus in enumerate(opened):
        records = iter(corpus.reader.read, None)
        wanted = records if n_sample < 0 else islice(records, n_sample)
        number = 0
        while chunk := list(islice(wanted, size)):
            yield RecordChunk(index, number, chunk)
            number += 1
        corpus.reader.close()
