"""Checksums of files, tensors and memory: XXH3 detects damage at every read, SHA-256 identifies content.

XXH3 (128 bits) hashes several gigabytes per second on one core, so a check costs less than the read. It detects
damage, not forgery: a digest that stands for the content itself (the base model of an adapter, a shared manifest) is a
SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import xxhash

_BLOCK = 1 << 20
_SAMPLE = 1 << 16


class Hash(Protocol):
    def update(self, data: Any, /) -> None: ...

    def hexdigest(self) -> str: ...


def fast_digest(*buffers: Any) -> str:
    """XXH3 (128 bits, hexadecimal) of the concatenation of objects with the buffer protocol."""
    return _digest(fast_hash(), buffers)


def fast_hash(start: bytes = b"") -> Hash:
    """XXH3 (128 bits) of `start` and what is added by `update`, as `fast_digest`."""
    return xxhash.xxh3_128(start)


def fast_digest_of_file(path: str | Path, *, without: int = 0) -> str:
    """XXH3 (128 bits, hexadecimal) of a file's content.

    Args:
        path: The file.
        without: Number of bytes at the end to leave out.

    Raises:
        OSError: The file cannot be read.
    """
    size = max(0, os.path.getsize(path) - without) if without else None
    return _digest(fast_hash(), _blocks(path, 0, size))


def fast_digest_of_part(path: str | Path, start: int, size: int, *, prefix: bytes = b"") -> str:
    """XXH3 (128 bits, hexadecimal) of `prefix` followed by `size` bytes of a file, from offset `start`.

    Raises:
        OSError: The file cannot be read.
    """
    return _digest(fast_hash(prefix), _blocks(path, start, size))


def sha256_of_file(path: str | Path) -> str:
    """SHA-256 (hexadecimal) of a file's content.

    Raises:
        OSError: The file cannot be read.
    """
    return _digest(hashlib.sha256(), _blocks(path))


def sha256_of_sample(path: str | Path) -> str:
    """SHA-256 (hexadecimal) of 64 KiB at the beginning, in the middle and at the end of a file.

    Raises:
        OSError: The file cannot be read.
    """
    size = os.path.getsize(path)
    starts = (0, size // 2, max(size - _SAMPLE, 0))
    return _digest(hashlib.sha256(), (block for start in starts for block in _blocks(path, start, _SAMPLE)))


def fingerprint(kind: str, content: bytes | None, options: Any = None) -> str:
    """SHA-256 (hexadecimal) of a kind, the content of its model file, and its options (plain data).

    It tells whether two tokenisers, or two templates, are the same.
    """
    digest = hashlib.sha256(json.dumps([kind, options], sort_keys=True, default=str).encode())
    digest.update(content or b"")
    return digest.hexdigest()


def tensor_prefix(name: str, dtype: str, shape: Sequence[int]) -> bytes:
    """What a tensor's digest covers before its bytes.

    Args:
        name: Name of the tensor.
        dtype: Its type, as safetensors names it.
        shape: Its shape.
    """
    return f"{name}\0{dtype}\0{list(shape)}\0".encode()


def safetensors_header(path: Path) -> bytes:
    """Length and header of a safetensors file; as much as can be read if the length is wrong."""
    with open(path, "rb") as file:
        length = file.read(8)
        size = struct.unpack("<Q", length)[0] if len(length) == 8 else 0
        return length + file.read(min(size, path.stat().st_size))


def tensor_digests(path: Path, header: bytes) -> dict[str, str]:
    """XXH3 of the tensors of a safetensors file (`tensor_prefix` and bytes) by name.

    Args:
        path: The file.
        header: Its `safetensors_header`.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: It is no safetensors file.
    """
    digests = {}
    for name, info in json.loads(header[8:]).items():
        if name != "__metadata__":
            start, end = info["data_offsets"]
            prefix = tensor_prefix(name, info["dtype"], info["shape"])
            digests[name] = fast_digest_of_part(path, len(header) + start, end - start, prefix=prefix)
    return digests


def _digest(digest: Hash, buffers: Iterable[Any]) -> str:
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
