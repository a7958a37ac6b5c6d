"""Files of a corpus: patterns, and files that are something else than their name says."""

from __future__ import annotations

import gzip
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from onmt_llm.config.data import CorpusConfig
from onmt_llm.data.readers.files import bare_suffix, check_file, files_of, is_empty
from onmt_llm.data.readers.opening import one_file_each
from onmt_llm.errors import DataError

Write = Callable[[str, "str | bytes"], str]


@pytest.mark.parametrize(
    ("name", "content", "problem", "hint"),
    [
        ("t", gzip.compress(b"a\n", mtime=0), "is gzip-compressed", "rename it to t.gz"),
        ("t", b"\xfd7zXZ\x00" + bytes(20), "is xz-compressed", "rename it to t.xz"),
        ("t.gz", b"plain\n", "gzip file where its name says so, but .* is not", None),
        ("t.gz", b"", "gzip file where its name says so, but .* is empty", None),
        ("t.gz", gzip.compress(gzip.compress(b"a\n", mtime=0), mtime=0), "is compressed again", None),
        ("t", "text\n".encode("utf-16-le") * 20, "UTF-16", "iconv"),
        ("t", b"a\rb\rc\r", "a carriage return only", "tr "),
        ("t", b"x" * 257 + b"ustar" + b"x" * 300, "is a tar archive", "tar -xf"),
        ("t", b"PK\x03\x04" + bytes(30), "but .*t is ", None),
    ],
)
def test_what_is_no_text_is_named(write: Write, name: str, content: bytes, problem: str, hint: str | None) -> None:
    with pytest.raises(DataError, match=problem) as error:
        check_file("c", Path(write(name, content)))
    assert "'c'" in error.value.message and (hint is None or hint in str(error.value.hint))


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("nowhere")
    for path, what in {
        tmp_path: "a directory",
        tmp_path / "none": "missing",
        tmp_path / "link": "a link",
        tmp_path / "pipe": "a pipe",
    }.items():
        with pytest.raises(DataError, match=what):
            check_file("c", path)


def test_text_and_tables_pass(write: Write) -> None:
    check_file("c", Path(write("t", "a\r\nb\n")))
    check_file("c", Path(write("t.gz", gzip.compress(b"a\n"))))
    check_file("c", Path(write("t.parquet", b"PAR1\0\0")), binary=True)


def test_a_byte_order_mark_alone_is_empty(write: Write) -> None:
    assert is_empty(Path(write("t", b"\xef\xbb\xbf"))) and is_empty(Path(write("t.gz", gzip.compress(b""))))
    assert not is_empty(Path(write("t", b"\n")))


@pytest.mark.parametrize(("name", "suffix"), [("x.csv", ".csv"), ("x.csv.gz", ".csv"), ("x.gz", ""), ("x", "")])
def test_the_ending_of_a_compressed_file_is_the_one_before(name: str, suffix: str) -> None:
    assert bare_suffix(Path(name)) == suffix


@pytest.mark.parametrize("number", [1, 2, 3, 7, 10])
def test_two_parts_of_the_files_are_all_files_once(tmp_path: Path, number: int) -> None:
    files = [tmp_path / f"{place:02}.txt" for place in range(number)]
    for file in files:
        file.write_text("a\n")
    first, rest = (CorpusConfig(path_txt=str(tmp_path / "*.txt"), split=part) for part in ([0, 0.7], [0.7, 1]))
    train = files_of(first, "path_txt")
    assert train == files[: math.ceil(0.7 * number)]
    if number == len(train):
        with pytest.raises(DataError, match=rf"split: \[0.7, 1\] of path_txt must leave .* none of {number}"):
            files_of(rest, "path_txt")
    else:
        assert train + files_of(rest, "path_txt") == files
    assert [files_of(each, "path_txt") for each in one_file_each("c", first)] == [[file] for file in train]
