"""`TableReader`: rows of Parquet and Arrow tables as JSON objects, which are parsed like JSONL."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from onmt_llm.data.readers.files import check_file
from onmt_llm.data.readers.record import Record
from onmt_llm.errors import DataError
from onmt_llm.optional import require

TABLE_FILES = (".parquet", ".arrow", ".feather")

TableRow = dict[str, Any] | bytes
"""Values by column; or bytes that are not UTF-8, which the parser refuses."""

_FEATURE = "A Parquet or Arrow table"
_ARROW = b"ARROW1"
_ROWS = 1024


class TableReader:
    """Reads one example per row.

    Args:
        corpus: Its name, for messages.
        path: A Parquet file, an Arrow file or an Arrow stream (what Hugging Face `datasets` writes).
        wanted: Columns that an example may use; only these are read.
    """

    def __init__(self, corpus: str, path: Path, *, wanted: Collection[str]) -> None:
        self.corpus = corpus
        self.paths: tuple[Path, ...] = (path,)
        self._wanted = wanted
        self._table: _Parquet | _Arrow | None = None
        self._row = 0
        self._rows: Iterator[TableRow] | None = None

    def check(self) -> None:
        check_file(self.corpus, self.paths[0], binary=True)
        self._open()
        self.close()  # a corpus may have thousands of files

    def read(self) -> Record | None:
        if self._rows is None:
            self._rows = self._open().rows(self._row)
        try:
            row = next(self._rows, None)
        except _errors() as error:
            raise _unreadable(self.paths[0], error) from error
        if row is None:
            return None
        self._row += 1
        return self._record(self._row, row)

    @property
    def num_rows(self) -> int:
        """Number of rows, which the table states."""
        return self._open().num_rows

    def skip(self, number: int) -> int:
        passed = min(number, self._open().num_rows - self._row)
        self.seek([self._row + passed])
        return passed

    def tell(self) -> list[int]:
        return [self._row]

    def seek(self, position: Sequence[int]) -> None:
        (self._row,) = position
        self._rows = None
        rows = self._open().num_rows
        if self._row > rows:
            raise DataError(
                f"The saved position must lie inside {self.paths[0]}, but is row {self._row} of {rows}.",
                hint="the file has changed since the run was saved",
            )

    def rewind(self) -> None:
        self.seek([0])

    def close(self) -> None:
        self._table = self._rows = None

    def count(self) -> int | None:
        table = self._open()
        return table.num_rows if isinstance(table, _Arrow) else None

    def at(self, number: int) -> Record:
        table = self._open()
        assert isinstance(table, _Arrow)
        return self._record(number + 1, next(table.rows(number, 1)))

    def expect(self, numbers: Sequence[int]) -> None:
        """Do nothing: the table is memory-mapped."""

    def _open(self) -> _Parquet | _Arrow:
        if self._table is None:
            path = self.paths[0]
            kind = _Parquet if path.suffix == ".parquet" else _Arrow
            try:
                self._table = kind(path, self._wanted)
            except _errors() as error:
                raise _unreadable(path, error) from error
            if not self._table.columns:
                raise DataError(
                    f"Corpus '{self.corpus}' must have one of the columns {', '.join(sorted(self._wanted))}, "
                    f"but those of {path} are {', '.join(self._table.names) or 'none'}.",
                    hint="text_key, prompt_key, answer_key and messages_key name other columns",
                )
        return self._table

    def _record(self, number: int, row: dict[str, Any] | bytes) -> Record:
        if isinstance(row, bytes):
            return Record(number, (row,), (0,), self.paths)
        try:
            raw = json.dumps(row, ensure_ascii=False).encode()
        except TypeError as error:
            kinds = ", ".join(f"'{key}' of type {type(value).__name__}" for key, value in row.items())
            raise DataError(f"{self.paths[0]}:{number} must hold text or lists of text, but has {kinds}.") from error
        return Record(number, (raw,), (0,), self.paths)


class _Parquet:
    """A Parquet file: row groups, decoded in blocks of rows.

    Attributes:
        names: All columns.
        columns: The columns that are read.
        num_rows: Number of rows.
    """

    def __init__(self, path: Path, wanted: Collection[str]) -> None:
        self._file = require("pyarrow.parquet", _FEATURE, "pyarrow").ParquetFile(path)
        self.names: list[str] = self._file.schema_arrow.names
        self.columns = [name for name in self.names if name in wanted]
        self.num_rows: int = self._file.metadata.num_rows
        groups = range(self._file.num_row_groups)
        self._ends = list(accumulate(self._file.metadata.row_group(group).num_rows for group in groups))

    def rows(self, start: int) -> Iterator[TableRow]:
        """The rows from `start` on."""
        if start >= self.num_rows:
            return
        group = bisect_right(self._ends, start)
        skip = start - (self._ends[group - 1] if group else 0)
        batches = self._file.iter_batches(
            batch_size=_ROWS, row_groups=range(group, len(self._ends)), columns=self.columns, use_threads=False
        )
        for batch in batches:
            yield from _dicts(batch.slice(skip))
            skip = max(0, skip - batch.num_rows)


class _Arrow:
    """An Arrow file or stream, memory-mapped, with random access to rows.

    Attributes:
        names: All columns.
        columns: The columns that are read.
        num_rows: Number of rows.
    """

    def __init__(self, path: Path, wanted: Collection[str]) -> None:
        pyarrow = require("pyarrow", _FEATURE)
        source = pyarrow.memory_map(str(path))
        if source.read(len(_ARROW)) == _ARROW:
            file = pyarrow.ipc.open_file(source)
            self._batch: Callable[[int], Any] = file.get_batch
            sizes = [file.get_batch(number).num_rows for number in range(file.num_record_batches)]
        else:
            source.seek(0)
            file = pyarrow.ipc.open_stream(source)
            batches = list(file)
            self._batch = batches.__getitem__
            sizes = [batch.num_rows for batch in batches]
        self.names: list[str] = file.schema.names
        self.columns = [name for name in self.names if name in wanted]
        self.num_rows = sum(sizes)
        self._ends = list(accumulate(sizes))
        self._valid: set[int] = set()

    def rows(self, start: int, count: int | None = None) -> Iterator[TableRow]:
        """The rows from `start` on: `count` of them, or all."""
        end = self.num_rows if count is None else start + count
        while start < end:
            number = bisect_right(self._ends, start)
            batch = self._checked(number)
            first = self._ends[number] - batch.num_rows
            size = min(self._ends[number], end, start + _ROWS) - start
            yield from _dicts(batch.slice(start - first, size))
            start += size

    def _checked(self, number: int) -> Any:
        """A validated record batch (its offsets stay within it), reduced to the columns that are read."""
        batch = self._batch(number)
        if number not in self._valid:
            batch.validate(full=True)
            self._valid.add(number)
        return batch.select(self.columns)


def _dicts(batch: Any) -> Iterator[TableRow]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for place in range(batch.num_rows):
            yield _dict(batch.slice(place, 1))


def _dict(row: Any) -> TableRow:
    """One row; if it holds text that is not UTF-8, the bytes of that text."""
    try:
        values: dict[str, Any] = row.to_pylist()[0]
    except UnicodeDecodeError as error:
        return bytes(error.object)
    return values


def _errors() -> tuple[type[Exception], ...]:
    return (require("pyarrow", _FEATURE).lib.ArrowException, OSError)


def _unreadable(path: Path, error: Exception) -> DataError:
    kind = "Parquet" if path.suffix == ".parquet" else "Arrow"
    reason = str(error).split("\n")[0].rstrip(".")
    return DataError(f"{path} must be a whole {kind} file, but is not readable: {reason}.")
