"""Vocabulary files of every known format, and what is refused, with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onmt_llm.errors import DataError
from onmt_llm.text.vocab_formats import MOST_UNUSED, read_counted, read_tokens, tokens_by_id, unused_token


@pytest.mark.parametrize(
    ("content", "tokens", "counts"),
    [
        ("the\ncat", ["the", "cat"], None),
        ("the\r\ncat\r\n", ["the", "cat"], None),
        ("the\t12\ncat\t3\n", ["the", "cat"], [12, 3]),
        ("the 12\ncat 3\n", ["the", "cat"], [12, 3]),
        ("<unk>\t0\n▁the\t-3.5\n", ["<unk>", "▁the"], None),
        ("<unk>\t0\n<s>\t0\n", ["<unk>", "<s>"], None),
        ("｟U+000A｠\n", ["\n"], None),
        ("\ufeffthe\n", ["the"], None),
    ],
    ids=["plain", "windows", "tabs", "spaces", "sentencepiece", "scores of 0", "escaped", "byte-order mark"],
)
def test_the_format_is_found_from_the_content(
    tmp_path: Path, content: str, tokens: list[str], counts: list[int] | None
) -> None:
    file = tmp_path / "vocab"
    file.write_bytes(content.encode())
    assert read_counted(file) == (tokens, counts) and read_tokens(file) == tokens


def test_json_is_a_list_or_a_table_of_ids(tmp_path: Path) -> None:
    file = tmp_path / "vocab.json"
    file.write_text(json.dumps(["a", "b"]))
    assert read_tokens(file) == ["a", "b"]
    file.write_text(json.dumps({"b": 1, "a": 0}))
    assert read_tokens(file) == ["a", "b"]
    file.write_text(json.dumps({"b": 2, "a": 0}))
    with pytest.raises(DataError, match="must be 0 to 1, each once, but 1 is missing") as error:
        read_tokens(file)
    assert "tokenizer.json" in str(error.value.hint)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab", b"", "is empty"),
        ("vocab", b"a\n\nb\n", "line 2 of .* is empty"),
        ("vocab", b"a\0b\n", "must be UTF-8 text, but .* is not"),
        ("vocab", b"\xff\xfe\xfd", "must be UTF-8 text, but .* is not"),
        ("vocab.json", b"{", "vocab.json"),
        ("vocab.json", b'"a"', "vocab.json"),
        ("vocab.json", b'{"a": "0"}', "vocab.json"),
        ("vocab.json", b"[1]", "vocab.json"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_tokens(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none cannot be read: No such file"):
        read_tokens(tmp_path / "none")


def test_ids_far_beyond_the_tokens_are_refused() -> None:
    assert tokens_by_id({"b": 2, "a": 0}) == ["a", unused_token(1), "b"] and tokens_by_id({}) == []
    assert len(tokens_by_id({"a": MOST_UNUSED})) == MOST_UNUSED + 1
    with pytest.raises(DataError, match="1 tokens go up to"):
        tokens_by_id({"a": MOST_UNUSED + 1})
