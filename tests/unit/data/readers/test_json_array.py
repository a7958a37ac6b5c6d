"""JSON arrays that fill a file: elements, positions, and damage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from onmt_llm.data.readers import Reader
from onmt_llm.data.readers.index import IndexCache
from onmt_llm.data.readers.json_array import JsonArrayReader
from onmt_llm.errors import DataError

Write = Callable[[str, "str | bytes"], str]
ELEMENTS = [{"a": '[]{}\\"', "b": [1, {"c": 2}]}, {}, {"text": "é" * 100}, {"n": 1}]


def open_array(path: str, **options: int) -> JsonArrayReader:
    return JsonArrayReader("c", Path(path), cache=IndexCache(None), **options)


def elements(reader: Reader) -> list[object]:
    return [json.loads(record.parts[0]) for record in iter(reader.read, None)]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_elements_are_separated_by_their_brackets(write: Write, indent: int | None, mark: str) -> None:
    path = write("a.json", mark + json.dumps(ELEMENTS, indent=indent, ensure_ascii=False) + "\n")
    assert elements(open_array(path)) == ELEMENTS
    assert elements(open_array(write("empty.json", " [ \n ] "))) == []


def test_a_saved_position_continues_with_the_next_element(write: Write) -> None:
    path = write("a.json", json.dumps(ELEMENTS, indent=1))
    for taken in range(len(ELEMENTS) + 1):
        first, second = open_array(path), open_array(path)
        lines = [record.line for _ in range(taken) if (record := first.read()) is not None]
        assert lines == sorted(lines)
        second.seek(first.tell())
        assert elements(second) == ELEMENTS[taken:]
        second.rewind()
        assert elements(second) == ELEMENTS


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"a": 1}', r"a.json:1 must begin with '\['"),
        ('[{"a": 1}\n{"b": 2}]', r"a.json:2 must have ',' or '\]'"),
        ('[{"a": 1},\n\n]', "a.json:3 must have an element after every comma"),
        ('[{"a": 1},\n{"b": "x', "a.json:2 must be a whole array"),
        ("[{}", "must have"),
        ("[1", "must be a whole array"),
        ("[{}] more", "must be the only content of the file, but has 'more' after it"),
        ("", "must begin"),
    ],
)
def test_damage_is_refused_with_its_line(write: Write, content: str, problem: str) -> None:
    reader = open_array(write("a.json", content))
    with pytest.raises(DataError, match=problem):
        elements(reader)


def test_an_element_that_is_too_long_is_refused(write: Write) -> None:
    path = write("a.json", json.dumps([{"a": "x" * 500_000}]))
    with pytest.raises(DataError, match="at most 1000 bytes") as error:
        elements(open_array(path, max_bytes=1000))
    assert "max_record_bytes" in str(error.value.hint)
    assert len(elements(open_array(path))) == 1
