"""Headers of GGUF files: what announces more than the file holds is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from onmt_llm.checkpoint.formats.gguf.header import check_header
from onmt_llm.errors import CheckpointError


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(keys: list[bytes] = (), tensors: list[bytes] = (), *, version: int = 3) -> bytes:  # type: ignore[assignment]
    counts = struct.pack("<QQ", len(tensors), len(keys))
    return b"GGUF" + struct.pack("<I", version) + counts + b"".join(keys) + b"".join(tensors)


def key(kind: int, value: bytes) -> bytes:
    return text("some.key") + struct.pack("<I", kind) + value


def tensor(dimensions: int) -> bytes:
    return text("weight") + struct.pack("<I", dimensions) + bytes(8 * dimensions + 12)


def array(kind: int, count: int, values: bytes) -> bytes:
    return key(9, struct.pack("<IQ", kind, count) + values)


VALUES = [key(4, bytes(4)), key(8, text("llama")), key(7, b"\1"), key(12, bytes(8))]
ARRAYS = [array(5, 3, bytes(12)), array(8, 2, text("a") + text(""))]
GOOD = header([*VALUES, *ARRAYS], [tensor(2), tensor(1)])


def test_every_kind_of_value_is_walked(tmp_path: Path) -> None:
    file = tmp_path / "good.gguf"
    file.write_bytes(GOOD)
    check_header(file)


@pytest.mark.parametrize("left", range(4, len(GOOD)))
def test_a_header_that_ends_early_is_refused(tmp_path: Path, left: int) -> None:
    file = tmp_path / "short.gguf"
    file.write_bytes(GOOD[:left])
    with pytest.raises(CheckpointError, match=r"is not a readable GGUF file: it (ends|announces)") as error:
        check_header(file)
    assert "copy it again" in str(error.value.hint)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"GGML" + bytes(40), "does not start with GGUF"),
        (header(version=3 << 24), "other byte order"),
        (header()[:-8] + struct.pack("<Q", 1 << 60), "announces 1152921504606846976 keys"),
        (header()[:8] + struct.pack("<QQ", 1 << 60, 0), "announces 1152921504606846976 tensors"),
        (header([array(4, 1 << 60, b"")]), "announces 1152921504606846976 values"),
        (header([array(8, 1 << 60, b"")]), "announces 1152921504606846976 strings"),
        (header([key(8, struct.pack("<Q", 1 << 60))]), "characters, which do not fit"),
        (header([array(9, 1, bytes(12))]), "an array of arrays"),
        (header([array(99, 1, bytes(12))]), "values of type 99"),
        (header([key(99, bytes(12))]), "a value of type 99"),
        (header([], [tensor(9)]), "a tensor of 9 dimensions"),
    ],
)
def test_impossible_headers_are_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=problem):
        check_header(file)


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a regular file"):
        check_header(tmp_path)
