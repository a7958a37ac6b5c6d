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
"""Bytes per number."""
_HEADER = Struct("<8sIIQ16s")
"""Magic, version, numbers per row, rows, identity of the indexed file."""
_MAGIC = b"onmtidx\n"
_VERSION = 1
_DIGEST = 32
"""Bytes of the final checksum, which covers everything before it."""


class Unusable(Exception):
    """An index cannot be used; the text gives the reason."""


class Index:
    """Rows of integers in a file, read on demand.

    Args:
        path: The file.
        width: Numbers per row.
        identity: 16 bytes that identify what is indexed.

    Attributes:
        count: Number of rows.

    Raises:
        Unusable: The index is damaged, or belongs to something else.
    """

    def __init__(self, path: Path, width: int, identity: bytes) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._row = width * WORD
        self.count = self._checked_count(width, identity)

    def at(self, number: int, rows: int = 1) -> list[int]:
        """The numbers of one row, or of several consecutive ones.

        Raises:
            DataError: The index has been removed or truncated.
        """
        return list(unpack(f"<{rows * self._row // WORD}Q", self.bytes_at(number, rows)))

    def bytes_at(self, number: int, rows: int) -> bytes:
        """The same, as little-endian 64-bit words."""
        wanted = self._row * rows
        try:
            if self._file is None:
                self._file = self._path.open("rb", buffering=0)
            raw = os.pread(self._file.fileno(), wanted, _HEADER.size + number * self._row)
        except OSError as error:
            raise self._changed() from error
        if len(raw) < wanted:
            raise self._changed()
        return raw

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
                raise Unusable("has the wrong size, or belongs to another file")
            if digest != _digest(self._path):
                raise Unusable("does not match its checksum")
        except OSError as error:
            raise Unusable(f"cannot be read ({error.strerror})") from error
        return int(count)

    def _changed(self) -> DataError:
        return DataError(
            f"An index must not change while it is used, but {self._path} has.",
            hint="start again; the index is rebuilt",
        )


@contextmanager
def new_index(target: Path, blocks: Iterable[bytes], width: int, identity: bytes) -> Iterator[None]:
    """Write an index under a hidden name; rename it once it is on disk and the context ends without an error.

    Args:
        target: Final path.
        blocks: Its rows, as little-endian 64-bit words.
        width: Numbers per row.
        identity: 16 bytes that identify what is indexed.
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
