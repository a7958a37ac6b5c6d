"""`ray_chunks`: process whole corpora on a cluster of Ray, with the results of `parallel.run_chunks`.

A task of Ray reads a part of one file and works on it, so the files are read where they are worked on. A part is some
row groups of a table, or another file as a whole. `unique_by` and `sample` compare all files, so this process selects
before, and a task is given the rows of the selection that are in its part. Ray repeats the tasks of a worker that dies;
their results come in the order of the files, so nothing depends on the number of workers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from onmt_llm.config.data import CorpusConfig
from onmt_llm.data.corpus import Corpus, open_corpora
from onmt_llm.data.parallel import ChunkJob, ChunkResultT, ChunkWork, RecordChunk
from onmt_llm.data.readers import Reader, check_readers
from onmt_llm.data.readers.opening import one_file_each, open_reader
from onmt_llm.data.readers.tables import TableReader
from onmt_llm.data.selection import SelectedReader
from onmt_llm.data.selection.select import SelectedRows
from onmt_llm.data.spec import PipelineSpec
from onmt_llm.data.workers.pool import ahead
from onmt_llm.errors import DataError, OnmtLlmError
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
        rows: The selected ones, numbered from the first of the file (`SelectedReader.rows_between`); None = the options
            compare no records.
    """

    corpus: int
    name: str
    config: CorpusConfig
    first: int = 0
    count: int | None = None
    rows: SelectedRows | None = None


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
        DataError: A file is missing or wrong, or a task failed for good.
    """
    opened = open_corpora(spec)
    check_readers([corpus.reader for corpus in opened])
    ray = connect(address, _FEATURE)
    task = ray.remote(work_on).options(num_cpus=1, max_retries=_RETRIES, num_returns="streaming")
    shared = ray.put((spec, work, size, Path.cwd()))

    def begin(_: int, part: FilePart) -> tuple[int, Any]:
        return part.corpus, task.remote(shared, part)

    try:
        cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
        for corpus, results in ahead(file_parts(spec, opened), begin, cpus):
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


def file_parts(spec: PipelineSpec, opened: Sequence[Corpus]) -> Iterator[FilePart]:
    """The parts of all files, in order.

    Args:
        spec: The corpora.
        opened: The same, opened.
    """
    for index, corpus in enumerate(opened):
        before, selected = 0, corpus.reader if isinstance(corpus.reader, SelectedReader) else None
        for config in one_file_each(corpus.name, spec.corpora[corpus.name]):
            reader = open_reader(corpus.name, config)
            if not isinstance(reader, TableReader) and selected is None:
                yield FilePart(index, corpus.name, config)
                continue
            size = reader.num_rows if isinstance(reader, TableReader) else _count(reader)
            step = _PART_ROWS if isinstance(reader, TableReader) else max(size, 1)
            reader.close()
            for first in range(0, size, step):
                rows = None
                if selected is not None:
                    rows = selected.rows_between(before + first, before + min(first + step, size))
                    rows[:, 0] -= before
                yield FilePart(index, corpus.name, config, first, step, rows)
            before += size
        corpus.reader.close()


def _count(reader: Reader) -> int:
    """Number of records of a file that is not a table."""
    count = reader.count()
    return reader.skip(sys.maxsize) if count is None else count


def work_on(shared: tuple[PipelineSpec, ChunkWork[ChunkResultT], int, Path], part: FilePart) -> Iterator[ChunkResultT]:
    """A task of Ray: the results of the chunks of a part."""
    spec, work, size, folder = shared
    enter(folder)
    mine = replace(spec, corpora={part.name: part.config})
    opened = open_corpora(mine)
    run: Callable[[RecordChunk], ChunkResultT] = ChunkJob(mine, work).on(opened)
    reader = opened[0].reader
    if part.rows is None:
        reader.skip(part.first)
    else:
        assert isinstance(reader, SelectedReader)
        reader.give_rows(part.rows)
    records = islice(iter(reader.read, None), part.count)
    number = 0
    while chunk := list(islice(records, size)):
        yield run(RecordChunk(0, number, chunk))
        number += 1
