"""Checksums of files and of memory: a fast one for what is checked whenever it is read, SHA-256 for what identifies.

XXH3 (128 bits) reads several gigabytes a second on one core, so that a check costs less than the read. It notices
damage, not forgery: where a digest stands for the content itself (the base of an adapter, a manifest that is shared),
SHA-256 is used.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import xxhash

_BLOCK = 1 << 20


class _Hash(Protocol):
    def update(self, data: Any, /) -> None: ...

    def hexdigest(self) -> str: ...


def fast_digest(*buffers: Any) -> str:
    """XXH3 (128 bits, hexadecimal) of objects with the buffer protocol, as if they were one."""
    return _digest(xxhash.xxh3_128(), buffers)


def fast_digest_of_file(path: str | Path, *, without: int = 0) -> str:
    """XXH3 (128 bits, hexadecimal) of a file's content.

    Args:
        path: The file.
        without: Leave out so many bytes at the end.

    Raises:
        OSError: The file cannot be read.
    """
    size = max(0, os.path.getsize(path) - without) if without else None
    return _digest(xxhash.xxh3_128(), _blocks(path, 0, size))


def fast_digest_of_part(path: str | Path, start: int, size: int, *, prefix: bytes = b"") -> str:
    """XXH3 (128 bits, hexadecimal) of `prefix` and of `size` bytes of a file from `start` on.

    Raises:
        OSError: The file cannot be read.
    """
    return _digest(xxhash.xxh3_128(prefix), _blocks(path, start, size))


def sha256_of_file(path: str | Path) -> str:
    """SHA-256 (hexadecimal) of a file's content.

    Raises:
        OSError: The file cannot be read.
    """
    return _digest(hashlib.sha256(), _blocks(path))


def _digest(digest: _Hash, buffers: Iterable[Any]) -> str:
    for buffer in buffers:
        digest.update(buffer)
    return digest.hexdigest()


def _blocks(path: str | Path, start: int = 0, size: int | None = None) -> Iterable[bytes]:
    with open(path, "rb") as file:
        file.seek(start)
        left = size
        while block := file.read(_BLOCK if left is None else min(_BLOCK, left)):
            left = None if left is None else left - len(block)
            yield block
