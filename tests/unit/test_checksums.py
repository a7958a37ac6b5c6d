"""Checksums: of memory, whole files, and parts of files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from onmt_llm.checksums import fast_digest, fast_digest_of_file, fast_digest_of_part, sha256_of_file

CONTENT = bytes(range(256)) * (5 * 4096)  # more than a block of 1 MiB


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


def test_memory_and_file_agree(file: Path) -> None:
    assert fast_digest(CONTENT) == fast_digest(CONTENT[:7], CONTENT[7:]) == fast_digest_of_file(file)
    assert sha256_of_file(file) == hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize(("start", "size"), [(0, 0), (5, 1), (3, 3 << 20), (len(CONTENT) - 2, 2)])
def test_a_part_is_that_part(file: Path, start: int, size: int) -> None:
    part = CONTENT[start : start + size]
    assert fast_digest_of_part(file, start, size) == fast_digest(part)
    assert fast_digest_of_part(file, start, size, prefix=b"head") == fast_digest(b"head", part)


@pytest.mark.parametrize("without", [1, 100, len(CONTENT), len(CONTENT) + 1])
def test_the_end_can_be_left_out(file: Path, without: int) -> None:
    assert fast_digest_of_file(file, without=without) == fast_digest(CONTENT[: max(0, len(CONTENT) - without)])


def test_every_flipped_bit_changes_the_digest(file: Path) -> None:
    expected = fast_digest_of_file(file)
    for place in (0, 1 << 20, len(CONTENT) - 1):
        changed = bytearray(CONTENT)
        changed[place] ^= 1
        file.write_bytes(changed)
        assert fast_digest_of_file(file) != expected


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    for digest in (fast_digest_of_file, sha256_of_file):
        with pytest.raises(FileNotFoundError):
            digest(tmp_path / "none")
