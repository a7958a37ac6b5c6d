"""`ray_chunks`: process whole corpora on a cluster of Ray, with the results of `parallel.run_chunks`.

A task of Ray reads a part of one file and works on it, so the files are read where they are worked on. A part is some
row groups of a table, or another file as a whole. Ray repeats the tasks of a worker that dies; their results come in
the order of the files, so nothing depends on the number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from onmt_llm.config.data import CorpusConfig
from onmt_llm.data.corpus import open_corpora
from onmt_llm.data.parallel import ChunkJob, ChunkResultT, ChunkWork, RecordChunk
from onmt_llm.data.readers import check_readers
from onmt_llm.data.readers.opening import one_file_each, open_reader
from onmt_llm.data.readers.tables import TableReader
from onmt_llm.data.spec import PipelineSpec
from onmt_llm.data.workers.pool import ahead
from onmt_llm.errors import ConfigError, DataError, OnmtLlmError
from onmt_llm.ray_cluster import connect, enter, last_line

_FEATURE = "engine: ray"
_RETRIES = 3
_PART_ROWS = 1 << 14
"""Rows of a table that one task works on."""


@dataclass(frozen=True)
class FilePart:
    """Consecutive records of one file.

    Attributes:
        corpus: Index of the corpus.
        name: Its name.
        config: The corpus, reduced to this file.
        first: Number of records before this part.
        count: Number of records; None = all that follow.
    """

    corpus: int
    name: str
    config: CorpusConfig
    first: int = 0
    count: int | None = None


def ray_chunks(
    spec: PipelineSpec, work: ChunkWork[ChunkResultT], *, size: int, address: str | None = None
) -> Iterator[tuple[int, ChunkResultT]]:
    """(index of the corpus, result) of every chunk, in order.

    The transforms must neither draw at random nor look at several records: chunks end where files end.

    Args:
        spec: The corpora, and what happens to them.
        work: What is done.
        size: Records per chunk, at most.
        address: See `ray_cluster.connect`.

    Raises:
        ConfigError: Records are selected by comparing files, each of which a task reads by itself.
        DataError: A file is missing or wrong, or a task failed for good.
    """
    for name, config in spec.corpora.items():
        if config.unique_by or config.sample:
            raise ConfigError(
                f"Corpus '{name}' must have neither unique_by nor sample with engine: ray, whose tasks read one file "
                "each, but has.",
                hint="engine: process; or select with `onmt_llm_data export` first",
            )
    check_readers([corpus.reader for corpus in open_corpora(spec)])
    ray = connect(address, _FEATURE)
    task = ray.remote(_work_on).options(num_cpus=1, max_retries=_RETRIES, num_returns="streaming")
    shared = ray.put((spec, work, size, Path.cwd()))

    def begin(_: int, part: FilePart) -> tuple[int, Any]:
        return part.corpus, task.remote(shared, part)

    try:
        for corpus, results in ahead(_parts(spec), begin, max(1, int(ray.cluster_resources().get("CPU", 1)))):
            for result in results:
                yield corpus, ray.get(result)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, OnmtLlmError):
            raise error.cause from None
        raise DataError(f"Every task of Ray must end with a result, but one says: {last_line(error)}.") from error
    except ray.exceptions.RayError as error:
        raise DataError(
            f"Every task of Ray must end with a result, but one failed {_RETRIES + 1} times: {last_line(error)}.",
            hint="its last messages are above; the system may be out of memory",
        ) from error


def _parts(spec: PipelineSpec) -> Iterator[FilePart]:
    for index, (name, corpus) in enumerate(spec.corpora.items()):
        for config in one_file_each(name, corpus):
            reader = open_reader(name, config)
            if not isinstance(reader, TableReader):
                yield FilePart(index, name, config)
                continue
            for first in range(0, reader.num_rows, _PART_ROWS):
                yield FilePart(index, name, config, first, _PART_ROWS)
            reader.close()


def _work_on(shared: tuple[PipelineSpec, ChunkWork[ChunkResultT], int, Path], part: FilePart) -> Iterator[ChunkResultT]:
    """A task of Ray."""
    spec, work, size, folder = shared
    enter(folder)
    mine = replace(spec, corpora={part.name: part.config})
    opened = open_corpora(mine)
    run: Callable[[RecordChunk], ChunkResultT] = ChunkJob(mine, work).on(opened)
    reader = opened[0].reader
    reader.skip(part.first)
    records = islice(iter(reader.read, None), part.count)
    number = 0
    while chunk := list(islice(records, size)):
        yield run(RecordChunk(0, number, chunk))
        number += 1
