"""CSV and TSV files: fields, headers, quotes over several lines, and damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from onmt_llm.data.readers import Reader
from onmt_llm.data.readers.index import IndexCache
from onmt_llm.data.readers.rows import RowFormat, RowReader, header
from onmt_llm.errors import DataError

Write = Callable[[str, "str | bytes"], str]


def open_rows(path: str, *, columns: tuple[str, ...] | None = None, **options: int) -> RowReader:
    rows = RowFormat.of([Path(path)], None, columns)
    return RowReader("c", Path(path), rows=rows, cache=IndexCache(), **options)


def raw(reader: Reader) -> list[tuple[int, bytes]]:
    return [(record.line, record.parts[0]) for record in iter(reader.read, None)]


@pytest.mark.parametrize(
    ("name", "delimiter", "expected"),
    [
        ("x.csv", None, (",", True)),
        ("x.tsv", None, ("\t", False)),
        ("x.csv.gz", None, (",", True)),
        ("x.tsv", "|", ("|", False)),
    ],
)
def test_the_ending_says_how_rows_are_written(name: str, delimiter: str | None, expected: tuple[str, bool]) -> None:
    rows = RowFormat.of([Path(name)], delimiter, ["a"])
    assert (rows.delimiter, rows.quoted) == expected and rows.columns == ("a",)


@pytest.mark.parametrize(
    ("quoted", "text", "fields"),
    [
        (True, 'a,"b,c",""', ["a", "b,c", ""]),
        (True, '"say ""hi""",x', ['say "hi"', "x"]),
        (True, '"two\nlines",x', ["two\nlines", "x"]),
        (False, '"a,b', ['"a', "b"]),
        (False, "a,,", ["a", "", ""]),
    ],
)
def test_fields(quoted: bool, text: str, fields: list[str]) -> None:
    assert RowFormat(",", quoted).fields(text) == fields


@pytest.mark.parametrize("text", ['"a"b,c', '"a'])
def test_quotes_in_the_wrong_place_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        RowFormat(",", True).fields(text)


def test_a_quoted_field_may_span_lines_and_the_header_is_no_example(write: Write) -> None:
    path = write("x.csv", 'a,b\r\n1,"two\nlines"\r\n3,4\n')
    assert raw(open_rows(path)) == [(2, b'1,"two\nlines"'), (4, b"3,4")]
    assert raw(open_rows(path, columns=("a", "b")))[0] == (1, b"a,b")


def test_a_saved_position_continues_with_the_next_row(write: Write) -> None:
    path = write("x.csv", 'a,b\n1,"x\ny"\n2,z\n3,"\n\n"\n')
    whole = raw(open_rows(path))
    for taken in range(len(whole) + 1):
        first, second = open_rows(path), open_rows(path)
        for _ in range(taken):
            first.read()
        second.seek(first.tell())
        assert raw(second) == whole[taken:]
        second.rewind()
        assert raw(second) == whole


def test_an_open_quote_is_found_before_the_run(write: Write) -> None:
    reader = open_rows(write("x.csv", 'a,b\n1,2\n3,"open\n4,5\n'))
    with pytest.raises(DataError, match=r"one opened at .*x.csv:3 is not by the end of the file") as error:
        reader.check()
    assert '""' in str(error.value.hint)
    long = open_rows(write("y.csv", 'a,b\n1,"' + "x\n" * 500 + '"\n'), max_bytes=100)
    with pytest.raises(DataError, match="within 100 bytes"):
        raw(long)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("a,a\n1,2\n", "a name of its own"),
        ("a,\n1,2\n", "must give every column a name"),
        ("\n1,2\n", "must give every column a name"),
        ('"a"b,c\n', "must be a valid row"),
    ],
)
def test_a_header_must_name_columns(write: Write, content: str, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        open_rows(write("x.csv", content)).check()


def test_names_of_columns_come_from_the_header_or_the_options(write: Write) -> None:
    path = Path(write("x.tsv", "\ufeffsource\ttarget\n1\t2\n"))
    assert header(path, RowFormat("\t", False)) == ["source", "target"]
    assert header(path, RowFormat("\t", False, ("s", "t"))) == ["s", "t"]
