"""Memory-mapped arrays whose blocks are verified on first read.

Opening a hundred gigabytes therefore reads nothing, yet damaged data are never trained on.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, NonNegativeInt, PositiveInt, model_validator

from onmt_llm.checksums import fast_digest
from onmt_llm.errors import DataError

BLOCK = 1 << 20
"""Bytes per digest: small enough for random access, large enough to keep the list short."""


class BlockDigests(BaseModel):
    """Digests of the blocks of a file, as they are stored."""

    bytes: NonNegativeInt
    block: PositiveInt
    xxh3: list[str]

    @model_validator(mode="after")
    def _of_every_block(self) -> BlockDigests:
        if len(self.xxh3) != -(-self.bytes // self.block):
            raise ValueError(f"{self.bytes:,} bytes must have a digest every {self.block:,}, but have {len(self.xxh3)}")
        return self


@dataclass(frozen=True)
class FileChecks:
    """Expected size and digests of a file.

    Attributes:
        size: In bytes; None = unknown.
        block: Bytes per digest; None = the whole file.
        digests: Digests of the blocks, in order.
        digest: Computes a digest.
    """

    size: int | None
    block: int | None
    digests: Sequence[str]
    digest: Callable[[Any], str]

    @classmethod
    def of_blocks(cls, saved: BlockDigests) -> FileChecks:
        """From the result of `block_digests`."""
        return cls(saved.bytes, saved.block, saved.xxh3, fast_digest)

    @classmethod
    def of_whole(cls, digest: str, size: int | None = None) -> FileChecks:
        """From the SHA-256 of a file."""
        return cls(size, None, [digest], lambda content: sha256(content).hexdigest())


def block_digests(path: Path) -> BlockDigests:
    """Size and digests of a file."""
    with path.open("rb") as file:
        digests = [fast_digest(block) for block in iter(lambda: file.read(BLOCK), b"")]
    return BlockDigests(bytes=path.stat().st_size, block=BLOCK, xxh3=digests)


class CheckedArray:
    """An array at the end of a file; any header before it is ignored.

    Args:
        path: The file.
        dtype: Type of the elements.
        shape: Shape; the first axis is that of `rows`.
        checks: Expected size and digests of the file.
    """

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...], checks: FileChecks) -> None:
        self._path = path
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._shape = shape
        self._row = self._dtype.itemsize * prod(shape[1:])
        self._checks = checks
        self._checked = bytearray(len(checks.digests))
        self._file: memoryview | None = None
        self._array: npt.NDArray[Any] = np.zeros(0, self._dtype)
        self._start = 0

    def check_size(self) -> None:
        """Check that the file exists and has the expected size.

        Raises:
            DataError: It is missing, or its size differs.
        """
        self._check_size(self._path.stat().st_size if self._path.is_file() else -1)

    def rows(self, first: int, end: int) -> npt.NDArray[Any]:
        """Rows from `first` to `end` (exclusive) or to the last one.

        Raises:
            DataError: The file is missing, or damaged in these rows.
        """
        file = self._open() if self._file is None else self._file
        block = self._checks.block or max(len(file), 1)
        start, stop = (self._start + min(row, self._shape[0]) * self._row for row in (first, end))
        for number in range(start // block, -(-stop // block)):
            if not self._checked[number]:
                self._check(number, file[number * block : (number + 1) * block])
        return self._array[first:end]

    def close(self) -> None:
        """Unmap the file; verified blocks are not verified again."""
        self._file, self._array = None, np.zeros(0, self._dtype)

    def _open(self) -> memoryview:
        try:
            with self._path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                self._check_size(size)
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        except OSError as error:
            raise DataError(
                f"Every file of token shards must be readable, but {self._path} is not ({error.strerror})."
            ) from error
        self._start = size - self._shape[0] * self._row
        if self._start < 0:
            raise self._damaged(f"has {size:,} bytes, fewer than the index in {self._path.parent} requires")
        self._file = memoryview(mapped)
        self._array = np.frombuffer(mapped, self._dtype, prod(self._shape), self._start).reshape(self._shape)
        return self._file

    def _check_size(self, size: int) -> None:
        if size < 0:
            raise DataError(f"Token shards must be complete, but {self._path} is missing.")
        if self._checks.size not in (None, size):
            raise DataError(
                f"Token shards must be complete, but {self._path} has {size:,} bytes instead of {self._checks.size:,}."
            )

    def _check(self, number: int, content: memoryview) -> None:
        if self._checks.digest(content) != self._checks.digests[number]:
            start = number * (self._checks.block or 0)
            raise self._damaged(f"has changed between byte {start:,} and byte {start + len(content):,}")
        self._checked[number] = True

    def _damaged(self, problem: str) -> DataError:
        return DataError(
            f"Token shards must be as they were packed, but {self._path} {problem}.",
            hint="copy the file again, or pack the corpus again; "
            f"`onmt_llm_data verify -shards {self._path.parent}` lists all damaged files",
        )
