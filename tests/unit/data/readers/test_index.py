"""Line counts and indexes of corpora are built once, and never used for a file that has changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from onmt_llm.config.data import CorpusConfig
from onmt_llm.data.readers import IndexCache, ShuffledReader, open_reader
from onmt_llm.data.readers import index as index_module
from onmt_llm.errors import ConfigError, DataError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\n\nfour")
    return path


def test_an_index_is_eight_bytes_a_line_and_is_made_once(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = IndexCache(tmp_path / "cache")
    lines = cache.line_index(file)
    assert [lines.span(number) for number in range(lines.count)] == [(3, 8), (8, 12), (12, 13), (13, 17)]
    assert cache.lines(file) == 4
    sizes = {path.suffixes[0]: path.stat().st_size for path in (tmp_path / "cache").iterdir()}
    assert {path.name.split(".", 1)[1] for path in (tmp_path / "cache").iterdir()} == {"lines.index", "lines.count"}
    around = 40 + 32  # header and checksum
    assert sizes[".lines"] in (around + 8, around + 8 * 5)
    monkeypatch.setattr(index_module, "line_starts", lambda path: pytest.fail("made again"))
    monkeypatch.setattr(index_module, "count_lines", lambda path: pytest.fail("counted again"))
    again = IndexCache(tmp_path / "cache")
    assert again.line_index(file).count == again.lines(file) == 4


@pytest.mark.parametrize("change", ["size", "time", "content"])
def test_a_file_that_has_changed_has_no_index(tmp_path: Path, file: Path, change: str) -> None:
    cache = IndexCache(tmp_path / "cache")
    assert cache.line_index(file).count == 4
    state = file.stat()
    if change == "size":
        file.write_bytes(b"one\ntwo\nthree\nfour\nfive\n")
    elif change == "content":
        file.write_bytes(b"\n" * state.st_size)
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    else:
        os.utime(file, ns=(0, 0))
    made = cache.line_index(file).count
    assert made == {"size": 5, "content": state.st_size, "time": 4}[change]
    # what was known about the file as it was is gone
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_file_that_changes_while_it_is_indexed_is_refused(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def grow(path: Path) -> list[bytes]:
        path.write_bytes(path.read_bytes() + b"more\n")
        return []

    monkeypatch.setattr(index_module, "line_starts", grow)
    with pytest.raises(DataError, match=r"a.txt changed while it was indexed"):
        IndexCache(tmp_path / "cache").line_index(file)
    assert not list((tmp_path / "cache").iterdir())


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"line\n" * 100_000)
    reader = open_reader("a", CorpusConfig(path_src=str(path)))
    assert reader.read()
    path.write_bytes(b"line\n" * 10)
    with pytest.raises(DataError, match="must not shrink while it is read"):
        list(iter(reader.read, None))


def test_without_a_folder_to_write_to_indexes_last_as_long_as_the_process(tmp_path: Path, file: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    for cache in (IndexCache(), IndexCache(tmp_path / "taken")):
        assert cache.line_index(file).count == cache.lines(file) == 4


def test_what_cannot_be_reached_by_number_cannot_be_shuffled(tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"a\nb\n"))
    reader = ShuffledReader("c", open_reader("c", CorpusConfig(path_src=str(path))), seed=1)
    with pytest.raises(ConfigError, match=r"'c' must consist of plain text, .* but has .*a\.gz"):
        reader.check()


@pytest.mark.parametrize(
    ("position", "warns"), [([2, 1, 4], False), ([2, 1, 3], True), ([0, 1, 3], False), ([2, 1], False)]
)
def test_a_shuffled_corpus_that_has_another_size_when_a_pass_is_resumed(
    tmp_path: Path, file: Path, caplog: pytest.LogCaptureFixture, position: list[int], warns: bool
) -> None:
    config = CorpusConfig(path_src=str(file))
    reader = ShuffledReader("x", open_reader("x", config, cache=IndexCache(tmp_path / "cache")), seed=1)
    reader.seek(position)
    assert ["had 3 records" in record.message for record in caplog.records] == [True] * warns
    assert reader.tell() == [*position[:2], 4]
