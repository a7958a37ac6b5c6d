"""`Record`, the `Reader` protocol, and decoding of raw bytes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

from onmt_llm.errors import DataError


class Record(NamedTuple):
    """One undecoded record of a corpus.

    Attributes:
        line: Line (in a table: row) on which the record begins, counted from 1.
        parts: Raw bytes without the final line break: one part, or those of parallel files (source, target, ...).
        offsets: Byte offset of each part in its file.
        paths: File of each part.
        passed: Records that were passed over before this one, by reason.
    """

    line: int
    parts: tuple[bytes, ...]
    offsets: tuple[int, ...]
    paths: tuple[Path, ...]
    passed: tuple[tuple[str, int], ...] = ()

    @property
    def where(self) -> str:
        """`file:line`, for messages."""
        return f"{self.paths[0]}:{self.line}"


class Reader(Protocol):
    """A corpus on disk: sequential reading with a position that can be saved; for plain files, also random access."""

    @property
    def corpus(self) -> str:
        """Name of the corpus, for messages."""
        ...

    @property
    def paths(self) -> tuple[Path, ...]:
        """The current file, or the current parallel files in the order of a record's parts."""
        ...

    def check(self) -> None:
        """Check the files before a run starts; raises DataError."""
        ...

    def read(self) -> Record | None:
        """The next record, or None at the end."""
        ...

    def skip(self, number: int) -> int:
        """Skip up to `number` records; returns the number skipped."""
        ...

    def tell(self) -> list[int]:
        """Position of the next record, as a list of integers."""
        ...

    def seek(self, position: Sequence[int]) -> None:
        """Go to a position that `tell` returned; raises DataError if it lies outside the files."""
        ...

    def rewind(self) -> None:
        """Start the next pass: at the first record, or (shuffled) in the order of the next epoch."""
        ...

    def close(self) -> None:
        """Close the files; the next read opens them again."""
        ...

    def count(self) -> int | None:
        """Number of records, if `at` is supported (builds the index if needed); otherwise None."""
        ...

    def at(self, number: int) -> Record:
        """The record with this number, counted from 0; does not move `read`. Requires that `count` is not None."""
        ...

    def expect(self, numbers: Sequence[int]) -> None:
        """Announce the records that `at` will read next, so that the system can prefetch them together."""
        ...


def pass_over(reader: Reader, number: int) -> int:
    """`Reader.skip`, implemented by reading."""
    return sum(1 for _ in islice(iter(reader.read, None), number))


class BadRecord(DataError):
    """A single record cannot become an example; the records around it are not affected.

    Args:
        reason: Key under which the record is counted if `on_bad_line` skips it.
    """

    def __init__(self, message: str, *, reason: str = "bad_record", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


def decode(raw: bytes, *, path: Path, line: int, offset: int) -> str:
    """Decode bytes that begin at the given line and offset of a file.

    Raises:
        BadRecord: A byte is not UTF-8; the message names its file, line and offset.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        bad_line = line + raw.count(b"\n", 0, error.start)
        raise BadRecord(
            f"Text must be UTF-8, but {path}:{bad_line} holds the byte 0x{raw[error.start]:02x} "
            f"at offset {offset + error.start} of the file ({error.reason}).",
            reason="bad_utf8",
            hint="convert the file with iconv, repair the line, or skip such lines: on_bad_line: skip",
        ) from error


def strip_break(raw: bytes) -> bytes:
    """A line without its "\\n" or "\\r\\n"."""
    if raw.endswith(b"\n"):
        return raw[:-2] if raw.endswith(b"\r\n") else raw[:-1]
    return raw
