"""The records of a plain file by number, where they are longer than a line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from onmt_llm.data.readers.files import is_compressed
from onmt_llm.data.readers.index import Index, IndexCache, packed
from onmt_llm.data.readers.record import Reader, Record
from onmt_llm.data.readers.spans import Spans

_LIKELY = 4096
"""Bytes of a record that are fetched before its end is known."""


class Numbered:
    """Finds a reader's records through an index of their positions, which it makes when it is first asked.

    Args:
        path: The file that is read.
        what: What its records are: names the index.
        cache: Keeps the index.
        new: Opens another reader of the file.
    """

    def __init__(self, path: Path, what: str, cache: IndexCache, new: Callable[[], Reader]) -> None:
        self._path = path
        self._what = what
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
            self._index = self._cache.index(self._path, self._what, self._width, lambda: packed(self._positions()))
        return self._index.count

    def at(self, number: int) -> Record:
        count = self.count()
        assert count is not None and self._index is not None and 0 <= number < count
        self._reader = self._reader or self._new()
        self._reader.seek(self._index.at(number))
        record = self._reader.read()
        assert record is not None, "the index is of another file"
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
