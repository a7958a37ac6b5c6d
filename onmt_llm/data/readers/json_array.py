"""`JsonArrayReader`: stream the elements of one large JSON array, such as Alpaca's data, without loading it whole."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from onmt_llm.data.readers.files import check_file
from onmt_llm.data.readers.index import IndexCache
from onmt_llm.data.readers.lines import MAX_BYTES, LineFile
from onmt_llm.data.readers.numbered import NumberedReader
from onmt_llm.data.readers.record import Record
from onmt_llm.errors import DataError

_BLOCK = 1 << 17
_NOT_SPACE = re.compile(rb"[^ \t\r\n]")
# a whole string (brackets inside it do not count), a bracket, or a string that continues past the buffer
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]|"', re.DOTALL)
_LITERAL_END = re.compile(rb"[,\]\s]")


class JsonArrayReader(NumberedReader):
    """Reads one example per element. It only matches brackets to find elements; the parser decodes them.

    Args:
        corpus: Its name, for messages.
        path: The file.
        cache: Stores counts and indexes.
        max_bytes: A longer element is refused.
    """

    def __init__(self, corpus: str, path: Path, *, cache: IndexCache, max_bytes: int = MAX_BYTES) -> None:
        super().__init__(corpus, path, cache, LineFile(path))
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._place = 0
        self._offset = self._line = self._number = 0

    def check(self) -> None:
        check_file(self.corpus, self.paths[0])
        self._cache.number(self.paths[0], "elements", self._count)

    def read(self) -> Record | None:
        if not self._buffer:
            self._more()
        mark = self._skip_space(self._place)
        first = self._number == 0
        if not first and self._byte(mark) == b"]":
            self._check_end(mark)
            return None
        if self._byte(mark) != (b"[" if first else b","):
            wanted = "begin with '['" if first else "have ',' or ']' after every element"
            raise self._wrong(mark, f"must {wanted}, but has {self._shown(mark)}")
        start = self._skip_space(mark + 1)
        if first and self._byte(start) == b"]":
            self._check_end(start)
            return None
        end = self._element_end(start)
        if end == start:
            raise self._wrong(start, f"must have an element after every comma, but has {self._shown(start)}")
        record = Record(
            self._line_of(start),
            (bytes(self._buffer[start:end]),),
            (self._offset + start - self._place,),
            self.paths,
        )
        self._pass(end)
        return record

    def tell(self) -> list[int]:
        return [self._offset, self._line, self._number]

    def seek(self, position: Sequence[int]) -> None:
        self._offset, self._line, self._number = position
        self._buffer.clear()
        self._place = 0
        self._file.seek(self._offset)
        self._offset = self._file.offset

    def rewind(self) -> None:
        self.seek([0, 0, 0])

    def close(self) -> None:
        position = self.tell()
        super().close()
        self._buffer.clear()
        self._place, self._file.offset = 0, position[0]

    def _record_kind(self) -> str:
        return "elements"

    def _reopened(self) -> JsonArrayReader:
        return JsonArrayReader(self.corpus, self.paths[0], cache=self._cache, max_bytes=self._max_bytes)

    def _count(self) -> int:
        reader = self._reopened()
        number = sum(1 for _ in iter(reader.read, None))
        reader.close()
        return number

    def _more(self) -> bool:
        """Read the next block into the buffer; False at the end of the file."""
        before = self._file.offset
        block = self._file.read_block(_BLOCK)
        if not self._buffer and self._offset == 0:
            self._offset = self._file.offset - len(block)  # after the byte-order mark
        self._buffer += block
        return self._file.offset > before

    def _byte(self, place: int) -> bytes:
        return bytes(self._buffer[place : place + 1])

    def _skip_space(self, place: int) -> int:
        """Position of the next byte that is not white space; at the end of the file, the end of the buffer."""
        while (found := _NOT_SPACE.search(self._buffer, place)) is None:
            place = len(self._buffer)
            if not self._more():
                return place
        return found.start()

    def _element_end(self, start: int) -> int:
        if self._byte(start) not in (b"{", b"[", b'"'):
            return self._search_end(start)
        depth, place = 0, start
        while True:
            token = _TOKEN.search(self._buffer, place)
            if token is None or token.group() == b'"':
                place = len(self._buffer) if token is None else token.start()
                self._more_of(start)
                continue
            place = token.end()
            kind = token.group()[:1]
            depth += (kind in b"[{") - (kind in b"]}")
            if depth == 0:
                return place

    def _search_end(self, start: int) -> int:
        """End of an element that is not a string, list or object."""
        while (found := _LITERAL_END.search(self._buffer, start)) is None:
            self._more_of(start)
        return found.start()

    def _more_of(self, start: int) -> None:
        """Read the next block of an unfinished element."""
        if len(self._buffer) - start > self._max_bytes:
            raise self._wrong(
                start,
                f"must have elements of at most {self._max_bytes} bytes, but has one that is longer",
                hint="max_record_bytes raises the limit",
            )
        if not self._more():
            raise self._wrong(start, "must be a whole array, but the file ends within an element")

    def _check_end(self, place: int) -> None:
        behind = self._skip_space(place + 1)
        if behind < len(self._buffer):
            raise self._wrong(behind, f"must be the only content of the file, but has {self._shown(behind)} after it")

    def _pass(self, end: int) -> None:
        """Move past an element."""
        self._line += self._buffer.count(b"\n", self._place, end)
        self._offset += end - self._place
        self._number += 1
        self._place = end
        if end > _BLOCK:
            del self._buffer[:end]
            self._place = 0

    def _line_of(self, place: int) -> int:
        return self._line + 1 + self._buffer.count(b"\n", self._place, place)

    def _shown(self, place: int) -> str:
        """The text at a position, for messages."""
        text = bytes(self._buffer[place : place + 20]).decode("utf-8", "replace").split("\n")[0]
        return f"'{text}'" if text else "nothing more"

    def _wrong(self, place: int, problem: str, *, hint: str | None = None) -> DataError:
        where = f"{self.paths[0]}:{self._line_of(place)}"
        known = "path_json reads one JSON array; path_jsonl reads one JSON object per line"
        return DataError(f"The JSON array at {where} {problem}.", hint=hint or known)
