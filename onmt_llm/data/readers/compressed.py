"""Read gzip, zstd and xz files as byte streams and verify the checksum of every stream that has one.

Python's own file classes differ in what they accept: some treat a truncated file, or one with other bytes after the
end, as complete, and lines are lost silently. Here one loop handles all three formats, with the same checks.
"""

from __future__ import annotations

import io
import logging
import lzma
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from onmt_llm.errors import DataError
from onmt_llm.log import log_once
from onmt_llm.optional import require

_CHUNK = 1 << 17
_HEAD = 8
"""Bytes that identify a stream; no stream is shorter."""
_ENDS_EARLY = "ends before the end of the stream"


class _Decompressor(Protocol):
    """The interface of `lzma.LZMADecompressor`."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """One member of a gzip file; zlib verifies its length and checksum."""

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
    """A compression format.

    Attributes:
        name: Its common name.
        magic: First bytes of every stream.
        new: Creates a decompressor for one stream.
        errors: The exception that it raises for a damaged stream.
        tool: Command that decompresses a file.
        is_unchecked: Whether a stream has no checksum, according to its first 8 bytes.
    """

    name: str
    magic: bytes
    new: Callable[[], _Decompressor]
    errors: Callable[[], type[Exception]]
    tool: str
    is_unchecked: Callable[[bytes], bool]

    def begins(self, head: bytes) -> bool:
        """Whether a file with these first bytes is of this format."""
        return head.startswith(self.magic) or (self.name == "zstd" and _is_skippable(head))


FORMATS = {
    ".gz": Format("gzip", b"\x1f\x8b", _Gzip, lambda: zlib.error, "gunzip", lambda head: False),
    ".zst": Format(
        "zstd",
        b"\x28\xb5\x2f\xfd",
        _zstd,
        lambda: _zstd_module().ZstdError,
        "unzstd",
        lambda head: not head[4] & 0b100,  # RFC 8878: Content_Checksum_flag of the frame header
    ),
    ".xz": Format(
        "xz",
        b"\xfd7zXZ\x00",
        lzma.LZMADecompressor,
        lambda: lzma.LZMAError,
        "unxz",
        lambda head: head[7] & 0xF == lzma.CHECK_NONE,
    ),
}
"""Formats by file name suffix."""


def _is_skippable(head: bytes) -> bool:
    """Whether this is a skippable zstd frame, as pzstd and the seekable format write (RFC 8878, section 3.1.2)."""
    return head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50


class Decompressed(io.RawIOBase):
    """The decompressed bytes of a file; memory use does not depend on the compression ratio.

    Args:
        path: Its suffix determines the format.
        file: The file, opened at its start.

    Raises:
        DataError: On reading: the file is truncated or damaged, or has other bytes after its end.
    """

    def __init__(self, path: Path, file: io.FileIO) -> None:
        self._path = path
        self._format = FORMATS[path.suffix]
        self._file = file
        self._stream: _Decompressor | None = None
        self._input = b""
        self._given = 0
        self._ended = False

    @property
    def passed(self) -> int:
        """Bytes of the compressed file read so far."""
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = b""
        while not block:
            if self._ended:
                return 0
            if (self._stream is None or self._stream.eof) and not self._next_stream():
                self._ended = True
                return 0
            block = self._decompress(len(buffer))
        self._given += len(block)
        buffer[: len(block)] = block
        return len(block)

    def close(self) -> None:
        self._file.close()
        super().close()

    def _decompress(self, most: int) -> bytes:
        assert self._stream is not None
        data = b""
        if self._stream.needs_input:
            data = self._input or self._file.read(_CHUNK)
            self._input = b""
            if not data:
                raise self._damaged(_ENDS_EARLY)
        try:
            return self._stream.decompress(data, most)
        except self._format.errors() as error:
            raise self._damaged(f"is damaged ({error})") from error

    def _next_stream(self) -> bool:
        """Start the next stream, after zero padding and skippable frames; False at the end of the file."""
        is_first = self._stream is None
        rest = self._input if self._stream is None else self._stream.unused_data or self._input
        while True:
            while not is_first and not (rest := rest.lstrip(b"\0")):
                if not (rest := self._file.read(_CHUNK)):
                    return False
            rest += self._file.read(max(_HEAD - len(rest), 0))
            if not (self._format.begins(rest) and _is_skippable(rest)):
                break
            rest, is_first = self._behind_frame(rest), False
        if len(rest) < _HEAD and self._format.magic.startswith(rest[: len(self._format.magic)]):
            raise self._damaged(_ENDS_EARLY)
        if not rest.startswith(self._format.magic):
            raise self._damaged("has other bytes after the end of the stream" if not is_first else "is none")
        if self._format.is_unchecked(rest):
            log_once(
                f"{self._path} has no checksum: damage may change its text without an error "
                f"({self._format.tool.removeprefix('un')} with its usual options adds one).",
                level=logging.WARNING,
            )
        self._stream, self._input = self._format.new(), rest
        return True

    def _behind_frame(self, rest: bytes) -> bytes:
        """The bytes after a skippable frame."""
        size = 8 + int.from_bytes(rest[4:8], "little")
        while len(rest) < size:
            size -= len(rest)
            if not (rest := self._file.read(min(size, _CHUNK))):
                raise self._damaged(_ENDS_EARLY)
        return rest[size:]

    def _damaged(self, problem: str) -> DataError:
        return DataError(
            f"{self._path} must be a whole {self._format.name} file, but {problem}, after {self._given} bytes of text.",
            hint=f"{self._format.tool} -t tests the file; copy it or create it again",
        )
