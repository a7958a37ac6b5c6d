"""Compressed corpora: several streams, and every damage that would lose lines."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from onmt_llm.data.readers import read_lines
from onmt_llm.errors import DataError

TEXT = "".join(f"line {number} {'x' * (number % 50)}\n" for number in range(3000)).encode()


def zstd(data: bytes) -> bytes:
    module = pytest.importorskip("backports.zstd")
    return module.compress(data, options={module.CompressionParameter.checksum_flag: 1})


FORMATS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstd}


@pytest.fixture(params=FORMATS)
def compress(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Callable[[bytes], bytes], Path]:
    return FORMATS[request.param], tmp_path / f"text{request.param}"


def test_streams_one_behind_the_other_are_one_text(compress: tuple[Callable[[bytes], bytes], Path]) -> None:
    pack, file = compress
    file.write_bytes(pack(TEXT[:5000]) + pack(b"") + pack(TEXT[5000:]))
    assert list(read_lines(file)) == TEXT.decode().splitlines()


@pytest.mark.parametrize("left", [0.2, 0.9, 0.999])
def test_a_truncated_file_is_refused(compress: tuple[Callable[[bytes], bytes], Path], left: float) -> None:
    pack, file = compress
    data = pack(TEXT)
    file.write_bytes(data[: int(left * len(data))])
    with pytest.raises(DataError, match=f"{file.name} must be a whole .* file") as error:
        list(read_lines(file))
    assert " -t tests the file" in str(error.value.hint)


@pytest.mark.parametrize("place", [0.3, 0.6, 0.95])
def test_a_changed_byte_is_noticed(compress: tuple[Callable[[bytes], bytes], Path], place: float) -> None:
    pack, file = compress
    data = bytearray(pack(TEXT))
    data[int(place * len(data))] ^= 0x55
    file.write_bytes(data)
    with pytest.raises(DataError, match="must be a whole"):
        list(read_lines(file))


def test_other_bytes_behind_the_end_are_refused(compress: tuple[Callable[[bytes], bytes], Path]) -> None:
    pack, file = compress
    file.write_bytes(pack(TEXT) + b"more text that is not compressed")
    with pytest.raises(DataError, match="other bytes"):
        list(read_lines(file))


def test_zero_bytes_behind_the_end_are_padding(compress: tuple[Callable[[bytes], bytes], Path]) -> None:
    pack, file = compress
    file.write_bytes(pack(TEXT) + bytes(512) + pack(b"end\n") + bytes(64))
    assert list(read_lines(file)) == [*TEXT.decode().splitlines(), "end"]
