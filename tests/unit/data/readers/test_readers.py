"""Readers split records by bytes, keep positions, and refuse files that would misalign."""

from __future__ import annotations

from pathlib import Path

import pytest

from onmt_llm.config.data import CorpusConfig
from onmt_llm.data.readers import Reader, check_readers, open_reader, read_lines
from onmt_llm.data.readers.index import count_lines
from onmt_llm.errors import ConfigError, DataError


def records(reader: Reader) -> list[tuple[int, tuple[bytes, ...]]]:
    return [(record.line, record.parts) for record in iter(reader.read, None)]


def test_lines_end_at_newline_bytes_alone(write):
    path = write("a.txt", "\ufeffone\u2028still one\x0c\r\ntwo\x85two\r\n\nfour".encode())
    found = records(open_reader("a", CorpusConfig(path_src=path)))
    assert found == [
        (1, ("one\u2028still one\x0c".encode(),)),
        (2, ("two\x85two".encode(),)),
        (3, (b"",)),
        (4, (b"four",)),
    ]
    assert count_lines(Path(path)) == 4


@pytest.mark.parametrize("kind", ["path_src", "path_txt", "path_jsonl"])
def test_a_saved_position_continues_with_the_very_next_record(write, kind):
    path = write("a.txt", "\ufeffone\ntwo\n\nthree\r\nfour\n\n\nfive\n")
    whole = records(open_reader("a", CorpusConfig(**{kind: path})))
    for taken in range(len(whole) + 1):
        first = open_reader("a", CorpusConfig(**{kind: path}))
        for _ in range(taken):
            first.read()
        second = open_reader("a", CorpusConfig(**{kind: path}))
        second.seek(first.tell())
        assert records(second) == whole[taken:]
        second.rewind()
        assert records(second) == whole


def test_documents_end_at_empty_lines(write):
    path = write("a.txt", "\n\nT one\r\nline\n \n\nTwo\n")
    assert records(open_reader("a", CorpusConfig(path_txt=path))) == [(3, (b"T one\r\nline",)), (7, (b"Two",))]


def test_parallel_files_of_unequal_length_are_refused_with_both_counts(write):
    reader = open_reader("a", CorpusConfig(path_src=write("s", "1\n2\n3\n"), path_tgt=write("t", "1\n2")))
    with pytest.raises(DataError, match=r"(?s)'a'.*has 3 lines.*has 2 lines"):
        reader.check()
    with pytest.raises(DataError, match=r"has 3 lines.*has 2 lines"):
        records(reader)


def test_a_shortened_file_cannot_be_resumed(write):
    reader = open_reader("a", CorpusConfig(path_src=write("s", "1\n")))
    with pytest.raises(DataError, match="shorter"):
        reader.seek([100, 3])


def test_all_problems_with_files_are_reported_at_once(write, tmp_path):
    corpora = {
        "gone": CorpusConfig(path_src=str(tmp_path / "none.txt")),
        "folder": CorpusConfig(path_src=str(tmp_path)),
        "empty": CorpusConfig(path_src=write("e", b"\xef\xbb\xbf")),
        "zip": CorpusConfig(path_src=write("z", b"\x1f\x8b\x08")),
    }
    with pytest.raises(DataError) as caught:
        check_readers([open_reader(name, corpus) for name, corpus in corpora.items()])
    for name in corpora:
        assert f"'{name}'" in caught.value.message


@pytest.mark.parametrize(
    "paths",
    [{}, {"path_tgt": "t"}, {"path_src": "s", "path_txt": "t"}, {"path_jsonl": "j", "path_tgt": "t"}],
)
def test_paths_that_do_not_go_together_are_refused(paths):
    with pytest.raises(ConfigError, match="Corpus 'x' must have"):
        open_reader("x", CorpusConfig(**paths))


def test_read_lines_keeps_empty_lines_and_names_a_bad_byte(write):
    assert list(read_lines(write("a", b"\xef\xbb\xbfone\r\n\ntwo"))) == ["one", "", "two"]
    with pytest.raises(DataError, match=r"bad:2 holds the byte 0xff at offset 5"):
        list(read_lines(write("bad", b"one\nx\xff\n")))
