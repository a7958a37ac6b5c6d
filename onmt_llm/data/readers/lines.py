"""`LineReader`: the lines of one file, or of several parallel files.

Lines end only at "\\n". Python's `str.splitlines` also splits at form feeds and U+2028, which would silently misalign
parallel files.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from io import BufferedReader, FileIO
from pathlib import Path
from typing import cast

from onmt_llm.data.readers.files import check_file, is_compressed, open_bytes, open_raw, skip_mark
from onmt_llm.data.readers.index import IndexCache, LineIndex
from onmt_llm.data.readers.record import Record, decode, pass_over, strip_break
from onmt_llm.errors import DataError
from onmt_llm.log import log_once, logger

MAX_BYTES = 1 << 23
"""Default maximum record size."""

_SKIP = 1 << 20
_LINE_BREAK = 2


class LineFile:
    """The lines of one file as bytes, with the current position. A byte-order mark at the start is skipped.

    Args:
        path: The file, plain or compressed.
        max_bytes: A longer line is returned truncated: more than `max_bytes` bytes, without a line break.

    Attributes:
        offset: Start of the next line in the decompressed file.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        self.path = path
        self.offset = 0
        self._limit = max_bytes + _LINE_BREAK + 1
        self._file: BufferedReader | None = None
        self._size: int | None = None
        self._pushed = b""

    def read(self) -> bytes | None:
        """The next line with its line break; None at the end.

        Raises:
            DataError: The file is damaged, or has shrunk.
        """
        raw = self.read_piece(self._limit)
        if raw is not None and len(raw) == self._limit and not raw.endswith(b"\n"):
            while (rest := self.read_piece(_SKIP)) is not None and not rest.endswith(b"\n"):
                pass
        return raw

    def read_piece(self, most: int) -> bytes | None:
        """The next line, or its first `most` bytes; None at the end."""
        file = self._file or self._open()
        if self._pushed:
            raw, self._pushed = self._pushed, b""
            raw += file.readline(most - len(raw))
        else:
            raw = file.readline(most)
        self.offset += len(raw)
        if not raw:
            self._check_end()
        return raw or None

    def read_block(self, most: int) -> bytes:
        """The next bytes, regardless of lines; empty at the end."""
        block = (self._file or self._open()).read(most)
        self.offset += len(block)
        if not block:
            self._check_end()
        return block

    def push_back(self, tail: bytes) -> None:
        """Return the last bytes read to the file; they must not contain a line break."""
        self._pushed = tail
        self.offset -= len(tail)

    def seek(self, offset: int) -> None:
        """Go to a byte offset; in a compressed file, by reading up to it.

        Raises:
            DataError: The file is shorter.
        """
        if offset == 0:
            self.close()
            self.offset = 0
            self._open()
        elif is_compressed(self.path):
            if offset < self.offset or self._pushed:
                self.close()
                self.offset = 0
            file = self._file or self._open()
            self._skip(file, offset - self.offset)
        else:
            if offset > self.path.stat().st_size:
                raise self._too_short(offset)
            (self._file or self._open()).seek(offset)
        self._pushed = b""
        self.offset = offset or self.offset

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> BufferedReader:
        offset, self.offset = self.offset, 0
        self._file, self._pushed = open_bytes(self.path), b""
        if not is_compressed(self.path):
            self._compare_size(self.path.stat().st_size)
        if offset:
            self.seek(offset)
        else:
            self.offset = skip_mark(self._file)
        return self._file

    def _skip(self, file: BufferedReader, number: int) -> None:
        if number > _SKIP:
            logger.info("%s is compressed: reading up to byte %d to resume there.", self.path, self.offset + number)
        while number > 0:
            passed = len(file.read(min(number, _SKIP)))
            if not passed:
                raise self._too_short(self.offset + number)
            number -= passed

    def _check_end(self) -> None:
        if self._size is not None:
            self._compare_size(self.offset)

    def _compare_size(self, size: int) -> None:
        """A file must not shrink while a run reads it; data appended to it are read."""
        if self._size is not None and size < self._size:
            raise DataError(
                f"A file must not shrink while it is read, but {self.path} ends at byte {size} "
                f"and had {self._size} bytes when it was opened."
            )
        if self._size is not None and size > self._size:
            log_once(f"{self.path} has grown since it was opened: the new data are read too.", level=logging.WARNING)
        self._size = size

    def _too_short(self, offset: int) -> DataError:
        return DataError(
            f"The saved position must lie inside {self.path}, but is byte {offset} of a file that is shorter.",
            hint="the file has changed since the run was saved",
        )


class Spans:
    """Byte ranges of a plain file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: FileIO | None = None

    def read(self, start: int, end: int) -> bytes:
        """The bytes from `start` to `end`.

        Raises:
            DataError: The file has shrunk.
        """
        raw = os.pread(self._fileno(), end - start, start)
        if len(raw) < end - start:
            raise DataError(f"A file must not shrink while it is read, but {self._path} has.")
        return raw

    def expect(self, spans: Iterable[tuple[int, int]]) -> None:
        """Ask the system to prefetch ranges that will be read next."""
        if hasattr(os, "posix_fadvise"):
            file = self._fileno()
            for start, end in spans:
                os.posix_fadvise(file, start, end - start, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _fileno(self) -> int:
        if self._file is None:
            self._file = open_raw(self._path)
        return self._file.fileno()


class LineReader:
    """Reads one example per line, from one file or from several parallel files.

    Args:
        corpus: Its name, for messages.
        paths: The files.
        names: The options that name the files, for messages.
        cache: Stores counts and indexes.
        max_bytes: A longer line is read only up to this size.
    """

    def __init__(
        self,
        corpus: str,
        paths: Sequence[Path],
        *,
        names: Sequence[str],
        cache: IndexCache,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.corpus = corpus
        self._paths = tuple(paths)
        self._names = names
        self._cache = cache
        self._files = [LineFile(path, max_bytes) for path in paths]
        self._spans = [Spans(path) for path in paths]
        self._indexes: list[LineIndex] = []
        self._most = max_bytes + _LINE_BREAK + 1
        self._line = 0

    @property
    def paths(self) -> tuple[Path, ...]:
        return self._paths

    def check(self) -> None:
        for path in self.paths:
            check_file(self.corpus, path)
        if len(self._files) > 1 and len({self._cache.lines(path) for path in self.paths}) > 1:
            raise self._unequal()
        for path in self.paths:
            if is_compressed(path):
                self._cache.lines(path)  # reads to the end, where the checksum is

    def read(self) -> Record | None:
        parts = [part for file in self._files if (part := file.read()) is not None]
        if len(parts) < len(self._files):
            if parts:
                # the files changed after `check`
                raise self._unequal()
            return None
        self._line += 1
        offsets = tuple([file.offset - len(part) for file, part in zip(self._files, parts, strict=True)])
        return Record(self._line, tuple([strip_break(part) for part in parts]), offsets, self._paths)

    def skip(self, number: int) -> int:
        count = self.count()
        if count is None:
            return pass_over(self, number)
        passed = min(number, count - self._line)
        if passed:
            self.seek([*(index.start(self._line + passed) for index in self._indexes), self._line + passed])
        return passed

    def tell(self) -> list[int]:
        return [*(file.offset for file in self._files), self._line]

    def seek(self, position: Sequence[int]) -> None:
        *offsets, line = position
        for file, offset in zip(self._files, offsets, strict=True):
            file.seek(offset)
        self._line = line

    def rewind(self) -> None:
        self.seek([0] * (len(self._files) + 1))

    def close(self) -> None:
        for file in self._files:
            file.close()
        for spans in self._spans:
            spans.close()
        for index in self._indexes:
            index.close()

    def count(self) -> int | None:
        if self._indexes:
            return self._indexes[0].count
        if any(is_compressed(path) for path in self.paths):
            return None
        self._indexes = [self._cache.line_index(path) for path in self.paths]
        if len({index.count for index in self._indexes}) > 1:
            raise self._unequal()
        return self._indexes[0].count

    def at(self, number: int) -> Record:
        count = self.count()
        assert count is not None and 0 <= number < count
        spans = [index.span(number) for index in self._indexes]
        parts = [
            strip_break(file.read(start, min(end, start + self._most)))
            for file, (start, end) in zip(self._spans, spans, strict=True)
        ]
        return Record(number + 1, tuple(parts), tuple([start for start, _ in spans]), self._paths)

    def expect(self, numbers: Sequence[int]) -> None:
        for file, index in zip(self._spans, self._indexes, strict=False):
            file.expect([index.span(number) for number in numbers])

    def _unequal(self) -> DataError:
        return DataError(
            f"{' and '.join(self._names)} of corpus '{self.corpus}' must have the same number of lines, "
            f"but {' and '.join(f'{path} has {self._cache.lines(path)} lines' for path in self.paths)}.",
            hint="one file has a missing or an extra line; nothing after it would match",
        )


def read_lines(source: str | Path) -> Iterator[str]:
    """The lines of a text file, placeholders unchanged; "-" = standard input.

    Raises:
        DataError: The file is missing, or holds a byte that is not UTF-8.
    """
    path, file = open_lines(source)
    return decode_lines(path, iter(file.readline, b""))


def open_lines(source: str | Path) -> tuple[Path, BufferedReader]:
    """The name, for messages, and the bytes of a text file; "-" = standard input.

    Raises:
        DataError: There is no such file.
    """
    if str(source) == "-":
        return Path("<stdin>"), cast(BufferedReader, sys.stdin.buffer)
    path = Path(source)
    if path.is_dir() or not path.exists():
        raise DataError(f"The input must be a file, but there is none at {path}.")
    return path, open_bytes(path)


def decode_lines(path: Path, lines: Iterable[bytes]) -> Iterator[str]:
    """The text of the lines of a file, without line breaks and byte-order mark.

    Raises:
        DataError: A byte is not UTF-8.
    """
    offset = 0
    for number, raw in enumerate(lines, start=1):
        text = decode(strip_break(raw), path=path, line=number, offset=offset)
        yield text.removeprefix("\ufeff") if number == 1 else text
        offset += len(raw)
