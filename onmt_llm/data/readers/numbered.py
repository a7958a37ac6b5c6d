"""Random access to records that may span several lines, in plain files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from onmt_llm.data.readers.files import is_compressed
from onmt_llm.data.readers.index import Index, IndexCache, packed
from onmt_llm.data.readers.lines import LineFile, Spans
from onmt_llm.data.readers.record import Reader, Record, pass_over
from onmt_llm.errors import DataError

_LIKELY = 4096
"""Bytes to prefetch for a record whose length is not known."""


class Numbered:
    """Finds records through an index of reader positions, which is built on first use.

    Args:
        path: The file.
        kind: Kind of record: part of the index's name.
        cache: Stores the index.
        new: Opens another reader of the file.
    """

    def __init__(self, path: Path, kind: str, cache: IndexCache, new: Callable[[], Reader]) -> None:
        self._path = path
        self._kind = kind
        self._cache = cache
        self._new = new
        self._width = len(new().tell())
        self._spans = Spans(path)
        self._reader: Reader | None = None
        self._index: Index | None = None

    def count(self) -> int | None:
        if is_compressed(self._path):
            return None
        if self._index is None:
            self._index = self._cache.index(self._path, self._kind, self._width, lambda: packed(self._positions()))
        return self._index.count

    def at(self, number: int) -> Record:
        count = self.count()
        assert count is not None and self._index is not None and 0 <= number < count
        self._reader = self._reader or self._new()
        self._reader.seek(self._index.at(number))
        record = self._reader.read()
        if record is None:
            raise DataError(
                f"A file must not change while it is read, but {self._path} no longer has record {number + 1}."
            )
        return record

    def expect(self, numbers: Sequence[int]) -> None:
        if self._index is not None:
            self._spans.expect([(start, start + _LIKELY) for start, *_ in map(self._index.at, numbers)])

    def close(self) -> None:
        self._spans.close()
        for opened in (self._reader, self._index):
            if opened is not None:
                opened.close()

    def _positions(self) -> Iterator[list[int]]:
        reader = self._new()
        position = reader.tell()
        while reader.read() is not None:
            yield position
            position = reader.tell()
        reader.close()


class NumberedReader(ABC):
    """Base class of single-file readers with random access through an index.

    Args:
        corpus: Its name, for messages.
        path: The file.
        cache: Stores counts and indexes.
        file: The file, opened.
    """

    def __init__(self, corpus: str, path: Path, cache: IndexCache, file: LineFile) -> None:
        self.corpus = corpus
        self.paths: tuple[Path, ...] = (path,)
        self._cache = cache
        self._file = file
        self._line = 0
        self._numbered: Numbered | None = None

    @abstractmethod
    def check(self) -> None:
        """See `Reader.check`."""

    @abstractmethod
    def read(self) -> Record | None:
        """See `Reader.read`."""

    @abstractmethod
    def _record_kind(self) -> str:
        """Kind of record: part of the index's name."""

    @abstractmethod
    def _reopened(self) -> Reader:
        """Open another reader of the same file."""

    def tell(self) -> list[int]:
        """See `Reader.tell`: the offset in the file, and the lines before it."""
        return [self._file.offset, self._line]

    def seek(self, position: Sequence[int]) -> None:
        offset, self._line = position
        self._file.seek(offset)

    def rewind(self) -> None:
        self.seek([0, 0])

    def skip(self, number: int) -> int:
        return pass_over(self, number)

    def close(self) -> None:
        self._file.close()
        if self._numbered is not None:
            self._numbered.close()

    def count(self) -> int | None:
        return self._by_number().count()

    def at(self, number: int) -> Record:
        return self._by_number().at(number)

    def expect(self, numbers: Sequence[int]) -> None:
        self._by_number().expect(numbers)

    def _by_number(self) -> Numbered:
        if self._numbered is None:
            self._numbered = Numbered(self.paths[0], self._record_kind(), self._cache, self._reopened)
        return self._numbered
