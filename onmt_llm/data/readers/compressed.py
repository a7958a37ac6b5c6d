"""Compressed files as streams of bytes, every stream in them read to its checksum.

Python's own file classes differ in what they let pass: some take a file that ends early, or has something else behind
its end, for a whole one. Lines would be lost without a word. Here all three formats go through one loop.
"""

from __future__ import annotations

import io
import lzma
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from onmt_llm.errors import DataError
from onmt_llm.optional import require

_CHUNK = 1 << 17


class _Decompressor(Protocol):
    """What `lzma.LZMADecompressor` offers."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """One member of a gzip file; zlib checks its length and its checksum."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail and not self.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


def _zstd() -> _Decompressor:
    decompressor: _Decompressor = _zstd_module().ZstdDecompressor()
    return decompressor


def _zstd_module() -> Any:
    if sys.version_info >= (3, 14):
        return require("compression.zstd", "A .zst file")
    return require("backports.zstd", "A .zst file")


class Format(NamedTuple):
    """A way to compress a file.

    Attributes:
        name: As people call it.
        magic: With which every file of it begins.
        new: Makes a decompressor of one stream.
        errors: What it raises when a stream is damaged.
        tool: Command that decompresses.
    """

    name: str
    magic: bytes
    new: Callable[[], _Decompressor]
    errors: Callable[[], type[Exception]]
    tool: str


FORMATS = {
    ".gz": Format("gzip", b"\x1f\x8b", _Gzip, lambda: zlib.error, "gunzip"),
    ".zst": Format("zstd", b"\x28\xb5\x2f\xfd", _zstd, lambda: _zstd_module().ZstdError, "unzstd"),
    ".xz": Format("xz", b"\xfd7zXZ\x00", lzma.LZMADecompressor, lambda: lzma.LZMAError, "unxz"),
}
"""By the ending of a file's name."""


class Decompressed(io.RawIOBase):
    """The bytes of a compressed file; memory does not depend on how far they expand.

    Args:
        path: Its ending says how it is compressed.
        file: The file, open at its start.

    Raises:
        DataError: On reading: the file ends early, is damaged, or holds something else behind its end.
    """

    def __init__(self, path: Path, file: io.FileIO) -> None:
        self._path = path
        self._format = FORMATS[path.suffix]
        self._file = file
        self._stream = self._format.new()
        self._input = b""
        self._given = 0

    @property
    def passed(self) -> int:
        """Bytes of the compressed file that are read."""
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = b""
        while not block:
            if self._stream.eof and not self._next_stream():
                return 0
            block = self._decompress(len(buffer))
        self._given += len(block)
        buffer[: len(block)] = block
        return len(block)

    def close(self) -> None:
        self._file.close()
        super().close()

    def _decompress(self, most: int) -> bytes:
        data = b""
        if self._stream.needs_input:
            data = self._input or self._file.read(_CHUNK)
            self._input = b""
            if not data:
                raise self._damaged("ends before the end of the stream")
        try:
            return self._stream.decompress(data, most)
        except self._format.errors() as error:
            raise self._damaged(f"is damaged ({error})") from error

    def _next_stream(self) -> bool:
        """Whether another stream follows the one that has ended; zero bytes between streams are padding."""
        rest = self._stream.unused_data or self._input
        while not (rest := rest.lstrip(b"\0")):
            if not (rest := self._file.read(_CHUNK)):
                return False
        rest += self._file.read(len(self._format.magic))
        if not rest.startswith(self._format.magic):
            raise self._damaged("has other bytes behind the end of the stream")
        self._stream, self._input = self._format.new(), rest
        return True

    def _damaged(self, problem: str) -> DataError:
        return DataError(
            f"{self._path} must be a whole {self._format.name} file, but {problem}, after {self._given} bytes of text.",
            hint=f"{self._format.tool} -t shows whether it is whole; copy or make it again",
        )
