"""`RowReader`: rows of CSV and TSV files, their fields and column names."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from onmt_llm.config.data import CorpusConfig
from onmt_llm.data.readers.files import bare_suffix, check_file, files_of, is_compressed, is_empty
from onmt_llm.data.readers.index import IndexCache
from onmt_llm.data.readers.lines import MAX_BYTES, LineFile
from onmt_llm.data.readers.numbered import NumberedReader
from onmt_llm.data.readers.record import Record, decode, strip_break
from onmt_llm.errors import DataError

ROW_FILES = (".csv", ".tsv")

csv.field_size_limit(1 << 31 - 1)


@dataclass(frozen=True)
class RowFormat:
    """The format of rows.

    Attributes:
        delimiter: Separates fields.
        quoted: Fields may be in double quotes and may then contain delimiters and line breaks (RFC 4180). If False, a
            quote is an ordinary character.
        columns: Column names for files without a header; None = the first row is the header.
    """

    delimiter: str
    quoted: bool
    columns: tuple[str, ...] | None = None

    @classmethod
    def of(cls, paths: Sequence[Path], delimiter: str | None, columns: Sequence[str] | None) -> RowFormat:
        """Defaults by suffix: commas and quotes for .csv, tabs and no quotes for .tsv."""
        quoted = bare_suffix(paths[0]) == ".csv"
        return cls(delimiter or ("," if quoted else "\t"), quoted, tuple(columns) if columns else None)

    def fields(self, text: str) -> list[str]:
        """The fields of a row.

        Raises:
            ValueError: The quoting is invalid.
        """
        if not self.quoted:
            return text.split(self.delimiter)
        try:
            (row,) = csv.reader([text], delimiter=self.delimiter, strict=True)
        except csv.Error as error:
            raise ValueError(str(error)) from error
        return row


def row_format(corpus: CorpusConfig) -> RowFormat | None:
    """The row format of a corpus with `path_table`; None for Parquet and Arrow tables, and registered readers."""
    if corpus.reader:
        return None
    paths = files_of(corpus, "path_table")
    if not paths or bare_suffix(paths[0]) not in ROW_FILES:
        return None
    return RowFormat.of(paths, corpus.delimiter, corpus.columns)


class RowReader(NumberedReader):
    """Reads one example per row.

    Args:
        corpus: Its name, for messages.
        path: The file.
        rows: The format of its rows.
        cache: Stores counts and indexes.
        max_bytes: A longer row is refused.
    """

    def __init__(
        self, corpus: str, path: Path, *, rows: RowFormat, cache: IndexCache, max_bytes: int = MAX_BYTES
    ) -> None:
        super().__init__(corpus, path, cache, LineFile(path, max_bytes))
        self._rows = rows
        self._max_bytes = max_bytes

    def check(self) -> None:
        path = self.paths[0]
        check_file(self.corpus, path)
        if is_empty(path):
            return
        header(path, self._rows)
        if self._rows.quoted:
            # an unclosed quote swallows the following rows: find it before the run
            self._cache.number(path, "rows", self._count)
        elif is_compressed(path):
            self._cache.lines(path)

    def read(self) -> Record | None:
        if self._line == 0 and self._rows.columns is None:
            self._read_row()
        offset, line = self._file.offset, self._line + 1
        raw = self._read_row()
        return None if raw is None else Record(line, (strip_break(raw),), (offset,), self.paths)

    def _record_kind(self) -> str:
        return f"rows-{self._rows.quoted:d}{self._rows.columns is None:d}"

    def _reopened(self) -> RowReader:
        return RowReader(self.corpus, self.paths[0], rows=self._rows, cache=self._cache, max_bytes=self._max_bytes)

    def _count(self) -> int:
        reader = self._reopened()
        number = sum(1 for _ in iter(reader.read, None))
        reader.close()
        return number

    def _read_row(self) -> bytes | None:
        """The next row: one line, or several if there are line breaks within quotes."""
        raw = self._file.read()
        if raw is None:
            return None
        first = self._line = self._line + 1
        if not self._rows.quoted or raw.count(b'"') % 2 == 0:
            return raw
        lines, size, is_open = [raw], len(raw), True
        while is_open:
            raw = self._file.read()
            if raw is None or size > self._max_bytes:
                raise DataError(
                    f"Every quote must be closed, but one opened at {self.paths[0]}:{first} is not"
                    + (" by the end of the file." if raw is None else f" within {self._max_bytes} bytes."),
                    hint='write a quote within a field as "", and put the field in quotes',
                )
            self._line += 1
            size += len(raw)
            lines.append(raw)
            is_open = raw.count(b'"') % 2 == 0
        return b"".join(lines)


def header(path: Path, rows: RowFormat) -> list[str]:
    """The column names of a file.

    Raises:
        DataError: The first row does not name columns.
    """
    if rows.columns is not None:
        return list(rows.columns)
    reader = RowReader("", path, rows=replace(rows, columns=("",)), cache=IndexCache())
    record = reader.read()
    reader.close()
    raw = b"" if record is None else record.parts[0]
    try:
        names = rows.fields(decode(raw, path=path, line=1, offset=0))
    except ValueError as error:
        raise DataError(f"The header of {path} must be a valid row, but is not: {error}.") from error
    if not names or not all(name.strip() for name in names) or len(set(names)) < len(names):
        raise DataError(
            f"The first row of {path} must give every column a name of its own, but is {', '.join(names)!r}.",
            hint="columns: [...] names the columns of a file without a header",
        )
    return names
