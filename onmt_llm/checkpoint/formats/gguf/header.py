"""Validate the header of a GGUF file against the file's size, before the `gguf` package reads it.

That package reads as many values as a file announces, and nested arrays recursively. Here the header is walked without
storing anything. (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from onmt_llm.errors import CheckpointError

MAX_DIMENSIONS = 8

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value, by type number."""
_STRING, _ARRAY = 8, 9


def check_header(file: Path) -> None:
    """Refuse a header that does not fit into its file.

    Raises:
        CheckpointError: It announces more than the file holds, or nested arrays; or the file is not a regular one.
    """
    if not file.is_file():
        raise CheckpointError(f"{file} must be a GGUF file, but is not a regular file.")
    with open(file, "rb") as opened:
        try:
            if opened.read(4) != b"GGUF":
                raise ValueError("it does not start with GGUF")
            _walk(_Reader(opened, file.stat().st_size))
        except ValueError as error:
            raise CheckpointError(
                f"{file} is not a readable GGUF file: {error}.", hint="it is damaged or incomplete: copy it again"
            ) from error


class _Reader:
    """Reads a file sequentially, never beyond its end."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left = file, size - file.tell()

    def number(self, layout: str) -> int:
        size = struct.calcsize(layout)
        self._take(size)
        return int(struct.unpack(layout, self._file.read(size))[0])

    def skip(self, size: int) -> None:
        self._take(size)
        self._file.seek(size, 1)

    def count(self, smallest: int, what: str) -> int:
        """Read a count of things that take at least `smallest` bytes each."""
        return self.fitting(self.number("<Q"), smallest, what)

    def fitting(self, count: int, smallest: int, what: str) -> int:
        """`count`, if that many things of at least `smallest` bytes fit into the rest of the file."""
        if count * smallest > self._left:
            raise ValueError(f"it announces {count} {what}, which do not fit into it")
        return count

    def _take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise ValueError("it ends inside its header")


def _walk(reader: _Reader) -> None:
    version = reader.number("<I")
    if version & 0xFFFF == 0:
        raise ValueError("it has the other byte order")
    tensors = reader.number("<Q")
    for _ in range(reader.count(13, "keys")):
        reader.skip(reader.count(1, "characters"))
        _walk_value(reader, reader.number("<I"))
    for _ in range(reader.fitting(tensors, 24, "tensors")):
        reader.skip(reader.count(1, "characters"))
        dimensions = reader.number("<I")
        if dimensions > MAX_DIMENSIONS:
            raise ValueError(f"it has a tensor of {dimensions} dimensions")
        reader.skip(8 * dimensions + 12)


def _walk_value(reader: _Reader, kind: int) -> None:
    if kind in _SIZES:
        reader.skip(_SIZES[kind])
    elif kind == _STRING:
        reader.skip(reader.count(1, "characters"))
    elif kind == _ARRAY:
        inner = reader.number("<I")
        if inner in _SIZES:
            reader.skip(reader.count(_SIZES[inner], "values") * _SIZES[inner])
        elif inner == _STRING:
            for _ in range(reader.count(8, "strings")):
                reader.skip(reader.count(1, "characters"))
        else:
            raise ValueError("it holds an array of arrays" if inner == _ARRAY else f"it holds values of type {inner}")
    else:
        raise ValueError(f"it holds a value of type {kind}")
