"""The file format of a line index: a header, rows of integers, and a checksum."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import Struct, unpack
from typing import BinaryIO

from onmt_llm.atomic import replacing
from onmt_llm.checksums import fast_digest_of_file
from onmt_llm.errors import DataError

WORD = 8
"""Bytes of a number."""
_HEADER = Struct("<8sIIQ16s")
"""Magic, version, numbers a row, rows, identity of the file."""
_MAGIC = b"onmtidx\n"
_VERSION = 1
_DIGEST = 32
"""Bytes of the checksum at the end, of all that stands before it."""


class Unusable(Exception):
    """An index that is not as it must be; the text says how."""


class Index:
    """Rows of whole numbers in a file.

    Args:
        path: The file.
        width: IndexArray a row.
        identity: 16 bytes that name what the index is of.

    Attributes:
        count: Number of rows.

    Raises:
        Unusable: It is not as it was written, or of something else.
    """

    def __init__(self, path: Path, width: int, identity: bytes) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._row = width * WORD
        self.count = self._checked_count(width, identity)

    def at(self, number: int, rows: int = 1) -> list[int]:
        """The numbers of a row, or of several that follow each other.

        Raises:
            DataError: The index has gone, or has become shorter.
        """
        wanted = self._row * rows
        try:
            if self._file is None:
                self._file = self._path.open("rb", buffering=0)
            raw = os.pread(self._file.fileno(), wanted, _HEADER.size + number * self._row)
        except OSError as error:
            raise self._changed() from error
        if len(raw) < wanted:
            raise self._changed()
        return list(unpack(f"<{len(raw) // WORD}Q", raw))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _checked_count(self, width: int, identity: bytes) -> int:
        try:
            size = self._path.stat().st_size
            with self._path.open("rb") as file:
                head = file.read(_HEADER.size)
                file.seek(max(size - _DIGEST, 0))
                digest = file.read()
            if len(head) < _HEADER.size or not head.startswith(_MAGIC):
                raise Unusable("is truncated, or of an earlier version")
            _, version, own_width, count, own_identity = _HEADER.unpack(head)
            if version != _VERSION:
                raise Unusable(f"has version {version} instead of {_VERSION}")
            if size != _HEADER.size + count * self._row + _DIGEST or (own_width, own_identity) != (width, identity):
                raise Unusable("is not of the size, or of the file, that it must be of")
            if digest != _digest(self._path):
                raise Unusable("does not match its checksum")
        except OSError as error:
            raise Unusable(f"cannot be read ({error.strerror})") from error
        return int(count)

    def _changed(self) -> DataError:
        return DataError(
            f"An index must not change while it is used, but {self._path} has.", hint="start again: it is rebuilt"
        )


@contextmanager
def new_index(target: Path, blocks: Iterable[bytes], width: int, identity: bytes) -> Iterator[None]:
    """Write an index under a hidden name; it takes its own where the context ends without an error, and is on the disk.

    Args:
        target: Its name.
        blocks: Its rows, as little-endian 64-bit words.
        width: IndexArray a row.
        identity: 16 bytes that name what the index is of.
    """
    with replacing(target) as unfinished:
        with open(unfinished, "wb") as file:
            file.write(bytes(_HEADER.size))
            size = sum(file.write(block) for block in blocks)
            file.seek(0)
            file.write(_HEADER.pack(_MAGIC, _VERSION, width, size // (width * WORD), identity))
            file.seek(0, os.SEEK_END)
            file.flush()
            file.write(fast_digest_of_file(unfinished).encode())
        yield


def _digest(path: Path) -> bytes:
    return fast_digest_of_file(path, without=_DIGEST).encode()
