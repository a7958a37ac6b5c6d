"""`Record`, and the `Reader` protocol."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

from onmt_llm.errors import DataError


class Record(NamedTuple):
    """What a reader yields.

    Attributes:
        line: Line (of a table: row) of its file on which the record begins, counted from 1.
        parts: Raw bytes, without the final line break: one part, or source, target and what goes with them.
        offsets: Byte offset of each part in its file.
        paths: File of each part.
    """

    line: int
    parts: tuple[bytes, ...]
    offsets: tuple[int, ...]
    paths: tuple[Path, ...]

    @property
    def where(self) -> str:
        """`file:line`, for messages."""
        return f"{self.paths[0]}:{self.line}"


class Reader(Protocol):
    """A corpus on disk, read in order; where it is made of plain files, also by number."""

    @property
    def corpus(self) -> str:
        """Name of the corpus, for messages."""
        ...

    @property
    def paths(self) -> tuple[Path, ...]:
        """Files read: of a single file (or set of parallel files), in the order of a record's parts."""
        ...

    def check(self) -> None:
        """Look at the files before a run starts; raises DataError."""
        ...

    def read(self) -> Record | None:
        """The next record, or None at the end."""
        ...

    def skip(self, number: int) -> int:
        """Pass over as many records; returns how many there were."""
        ...

    def tell(self) -> list[int]:
        """Where the next record begins, in plain numbers."""
        ...

    def seek(self, position: Sequence[int]) -> None:
        """Go to a place that `tell` named; raises DataError where the files cannot hold it."""
        ...

    def rewind(self) -> None:
        """Begin the next pass: at the first record, or (shuffled) in the order of the next epoch."""
        ...

    def close(self) -> None:
        """Close the files; the next read opens them again."""
        ...

    def count(self) -> int | None:
        """Number of records, if `at` can reach each of them at once; builds the index for that. None = it cannot."""
        ...

    def at(self, number: int) -> Record:
        """The record of this number, counted from 0, wherever `read` is. Only where `count` is a number."""
        ...

    def expect(self, numbers: Sequence[int]) -> None:
        """Told which records `at` will be asked for next: a disk serves many requests together faster than alone."""
        ...


def pass_over(reader: Reader, number: int) -> int:
    """`Reader.skip` by reading."""
    return sum(1 for _ in islice(iter(reader.read, None), number))


class BadRecord(DataError):
    """A record that cannot become an example, while those around it can.

    Args:
        reason: Under which it is counted where `on_bad_line` leaves it out.
    """

    def __init__(self, message: str, *, reason: str = "bad_record", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


def decode(raw: bytes, *, path: Path, line: int, offset: int) -> str:
    """Bytes that begin at a line and an offset of a file, as text.

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
            hint="convert the file with iconv, repair the line, or leave such lines out: on_bad_line: skip",
        ) from error


def strip_break(raw: bytes) -> bytes:
    """A line without its "\\n" or "\\r\\n"."""
    if raw.endswith(b"\n"):
        return raw[:-2] if raw.endswith(b"\r\n") else raw[:-1]
    return raw
