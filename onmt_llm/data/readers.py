"""Readers: corpus files as records of raw bytes, in order, from any saved position.

A reader only finds where records begin and end; `records.py` decodes them. So a rank that skips the records of other
ranks pays for the disk alone, and a saved position (byte offsets and a line number) is all that a restart needs.

Lines end at "\\n" and nowhere else: Python's universal newlines also split at form feeds and U+2028, which silently
shifts two parallel files against each other.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from onmt_llm.config.data import CorpusConfig
from onmt_llm.errors import ConfigError, DataError

_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
_BLOCK = 1 << 20


class Record(NamedTuple):
    """What a reader yields.

    Attributes:
        line: Line of the corpus file on which the record begins, counted from 1.
        parts: Raw bytes, without the final line break: one part, or source and target.
        offsets: Byte offset of each part in its file.
    """

    line: int
    parts: tuple[bytes, ...]
    offsets: tuple[int, ...]


class Reader(Protocol):
    """A corpus on disk, read in order."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """Files read, in the order of a record's parts."""
        ...

    def check(self) -> None:
        """Look at the files before a run starts; raises DataError."""
        ...

    def read(self) -> Record | None:
        """The next record, or None at the end."""
        ...

    def tell(self) -> list[int]:
        """Where the next record begins: a byte offset for each file, then the number of lines read."""
        ...

    def seek(self, position: Sequence[int]) -> None:
        """Go to a place that `tell` named; raises DataError where the files cannot hold it."""
        ...

    def rewind(self) -> None:
        """Go back to the first record."""
        ...

    def close(self) -> None:
        """Close the files; the next read opens them again."""
        ...


def count_lines(path: Path) -> int:
    """Number of lines of a file, the last one counted with or without its line break; runs at disk speed."""
    lines, last = 0, b"\n"
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            lines += block.count(b"\n")
            last = block[-1:]
    return lines + (last != b"\n")


class LineFile:
    """The lines of one file as bytes, with the position kept.

    A byte-order mark at the head is skipped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        self._file: BinaryIO | None = None

    def read(self) -> bytes | None:
        """The next line with its line break, or None at the end."""
        raw = self._open().readline()
        self.offset += len(raw)
        return raw or None

    def seek(self, offset: int) -> None:
        file = self._open()
        if offset > self.path.stat().st_size:
            raise DataError(
                f"The saved position must lie inside {self.path}, but is byte {offset} of a file that is shorter.",
                hint="the file has changed since the run was saved",
            )
        if offset > 0:
            file.seek(offset)
            self.offset = offset
        else:
            self._to_start(file)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> BinaryIO:
        if self._file is None:
            self._file = self.path.open("rb")
            if self.offset:
                self._file.seek(self.offset)
            else:
                self._to_start(self._file)
        return self._file

    def _to_start(self, file: BinaryIO) -> None:
        file.seek(0)
        self.offset = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
        file.seek(self.offset)


class LineReader:
    """One example a line: of one file, or of several files that are parallel."""

    def __init__(self, corpus: str, paths: Sequence[Path]) -> None:
        self.corpus = corpus
        self._files = [LineFile(path) for path in paths]
        self._line = 0

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(file.path for file in self._files)

    def check(self) -> None:
        for path in self.paths:
            _check_file(self.corpus, path)
        if len(self._files) > 1 and len({count_lines(path) for path in self.paths}) > 1:
            raise self._unequal()

    def read(self) -> Record | None:
        parts = [part for file in self._files if (part := file.read()) is not None]
        if len(parts) < len(self._files):
            if parts:
                # the files have changed since `check`
                raise self._unequal()
            return None
        self._line += 1
        offsets = tuple([file.offset - len(part) for file, part in zip(self._files, parts, strict=True)])
        return Record(self._line, tuple([_strip(part) for part in parts]), offsets)

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

    def _unequal(self) -> DataError:
        names = ["path_src", "path_tgt", "path_align"][: len(self._files)]
        return DataError(
            f"{' and '.join(names)} of corpus '{self.corpus}' must have the same number of lines, "
            f"but {' and '.join(f'{path} has {count_lines(path)} lines' for path in self.paths)}.",
            hint="a line of one file is lost or broken in two; nothing after it would match",
        )


class DocumentReader:
    """Plain text in which an empty line ends a document; a document is one example."""

    def __init__(self, corpus: str, path: Path) -> None:
        self.corpus = corpus
        self._file = LineFile(path)
        self._line = 0

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self._file.path,)

    def check(self) -> None:
        _check_file(self.corpus, self._file.path)

    def read(self) -> Record | None:
        lines: list[bytes] = []
        first, start = self._line + 1, self._file.offset
        while (raw := self._file.read()) is not None:
            self._line += 1
            if raw.strip():
                if not lines:
                    first, start = self._line, self._file.offset - len(raw)
                lines.append(raw)
            elif lines:
                break
        return Record(first, (_strip(b"".join(lines)),), (start,)) if lines else None

    def tell(self) -> list[int]:
        return [self._file.offset, self._line]

    def seek(self, position: Sequence[int]) -> None:
        offset, self._line = position
        self._file.seek(offset)

    def rewind(self) -> None:
        self.seek([0, 0])

    def close(self) -> None:
        self._file.close()


def open_reader(name: str, corpus: CorpusConfig) -> Reader:
    """The reader that a corpus' paths call for; opens nothing yet.

    Raises:
        ConfigError: The corpus names no path, or paths that do not go together.
    """
    given = [key for key in ("path_src", "path_txt", "path_jsonl") if getattr(corpus, key)]
    lone_align = corpus.path_align and not corpus.path_tgt
    if len(given) != 1 or (corpus.path_tgt and given != ["path_src"]) or lone_align:
        keys = [*given, *(key for key in ("path_tgt", "path_align") if getattr(corpus, key))]
        raise ConfigError(
            f"Corpus '{name}' must have path_src (alone, with path_tgt, or with path_tgt and path_align), path_txt or "
            f"path_jsonl, but has {' and '.join(keys) or 'none of them'}."
        )
    if corpus.path_txt:
        return DocumentReader(name, Path(corpus.path_txt))
    paths = [corpus.path_src, corpus.path_tgt, corpus.path_align] if corpus.path_src else [corpus.path_jsonl]
    return LineReader(name, [Path(path) for path in paths if path])


def read_lines(source: str | Path) -> Iterator[str]:
    """The lines of a text file, placeholders left as they are; "-" = standard input.

    Raises:
        DataError: The file is missing, or holds a byte that is not UTF-8.
    """
    if str(source) == "-":
        path, lines = Path("<stdin>"), iter(sys.stdin.buffer.readline, b"")
    else:
        path = Path(source)
        if not path.is_file():
            raise DataError(f"The input must be a file, but there is none at {path}.")
        lines = iter(path.open("rb").readline, b"")
    offset = 0
    for number, raw in enumerate(lines, start=1):
        text = decode(_strip(raw), path=path, line=number, offset=offset)
        yield text.removeprefix("\ufeff") if number == 1 else text
        offset += len(raw)


def decode(raw: bytes, *, path: Path, line: int, offset: int) -> str:
    """Bytes that begin at a line and an offset of a file, as text.

    Raises:
        DataError: A byte is not UTF-8; the message names its file, line and offset.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        bad_line = line + raw.count(b"\n", 0, error.start)
        raise DataError(
            f"Text must be UTF-8, but {path}:{bad_line} holds the byte 0x{raw[error.start]:02x} "
            f"at offset {offset + error.start} of the file ({error.reason}).",
            hint="convert the file with iconv, or repair the line",
        ) from error


def check_readers(readers: Sequence[Reader]) -> None:
    """Look at all corpora and report all that is wrong with them at once.

    Raises:
        DataError: Files are missing, empty, compressed, or not parallel.
    """
    problems: list[DataError] = []
    for reader in readers:
        try:
            reader.check()
        except DataError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise DataError("\n".join(problem.message for problem in problems))


def _check_file(corpus: str, path: Path) -> None:
    if not path.is_file():
        what = "a directory" if path.is_dir() else "missing"
        raise DataError(f"Every path of corpus '{corpus}' must be a file, but {path} is {what}.")
    with path.open("rb") as file:
        head = file.read(len(_BOM))
    if not head or head == _BOM:
        raise DataError(f"Corpus '{corpus}' must not be empty, but {path} is.")
    if head.startswith(_GZIP):
        raise DataError(f"Corpus '{corpus}' must be plain text, but {path} is gzip-compressed.", hint=f"gunzip {path}")


def _strip(raw: bytes) -> bytes:
    """A line without its "\\n" or "\\r\\n"."""
    if raw.endswith(b"\n"):
        return raw[:-2] if raw.endswith(b"\r\n") else raw[:-1]
    return raw
