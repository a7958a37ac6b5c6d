"""Vocabularies: files of every known format, special tokens, and what is refused, with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onmt_llm.config.checkpoint import SpecialTokens
from onmt_llm.errors import DataError
from onmt_llm.text.vocab import MOST_UNUSED, Vocab, read_counted, tokens_by_id, unused_token

SPECIALS = SpecialTokens()
TOKENS = ["<unk>", "<s>", "</s>", "▁the", "a"]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


def test_ids_are_positions_and_unknown_tokens_get_unk() -> None:
    vocab = Vocab(TOKENS, SPECIALS)
    assert (vocab.unk_id, vocab.bos_id, vocab.eos_id, vocab.pad_id) == (0, 1, 2, None)
    assert vocab.ids(["a", "nonsense", "▁the"]) == [4, 0, 3]
    assert vocab.tokens([4, 0]) == ["a", "<unk>"] and vocab[3] == "▁the"
    assert len(vocab) == 5 and "a" in vocab and "nonsense" not in vocab and list(vocab) == TOKENS


def test_without_unk_an_unknown_token_is_an_error() -> None:
    vocab = Vocab(["a", "b"], SPECIALS)
    assert vocab.ids(["b", "a"]) == [1, 0]
    with pytest.raises(DataError, match="'c' is not"):
        vocab.ids(["a", "c"])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain.txt", "\n".join(TOKENS) + "\n"),
        ("no_final_newline.txt", "\n".join(TOKENS)),
        ("windows.txt", "\r\n".join(TOKENS) + "\r\n"),
        ("tab_counts.txt", "".join(f"{token}\t7\n" for token in TOKENS)),
        ("space_counts.txt", "".join(f"{token} 7\n" for token in TOKENS)),
        ("sentencepiece.vocab", "<unk>\t0\n<s>\t0\n</s>\t0\n▁the\t-3.25\na\t-1.5e-05\n"),
        ("list.json", json.dumps(TOKENS)),
        ("vocab.json", json.dumps({token: TOKENS.index(token) for token in sorted(TOKENS)})),
    ],
)
def test_known_formats(tmp_path: Path, name: str, text: str) -> None:
    assert list(Vocab.read(write(tmp_path / name, text), SPECIALS)) == TOKENS


def test_written_vocabulary_reads_back_whatever_the_tokens_hold(tmp_path: Path) -> None:
    tokens = ["<unk>", "\n", "a b", "c\t5", "", "\r", "   ", "\ufeff", "｟newline｠", "｟U+000A｠", "\\n", "\x85", "7"]
    Vocab(tokens, SPECIALS).write(tmp_path / "vocab.txt")
    assert (tmp_path / "vocab.txt").read_bytes().count(b"\n") == len(tokens)
    assert list(Vocab.read(tmp_path / "vocab.txt", SPECIALS)) == tokens


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("twice.txt", "a\nb\na\n", r"'a' is both line 1 and line 3 of .*twice\.txt"),
        ("blank.txt", "a\n\nb\n", "line 2 of .* is empty"),
        ("empty.txt", "", "is empty"),
        ("mixed.txt", "a\t5\nb\n", "line 2 of .* has no number"),
        ("mixed2.txt", "a\nb\t5\n", "line 2 of .* has a number"),
        ("gap.json", '{"a": 0, "b": 2}', "1 is missing"),
        ("tokenizer.json", '{"model": {}}', "must be a list of tokens"),
        ("broken.json", "[", "valid JSON"),
        ("binary.model", "\n\x05\x00\x01", "not .it holds zero bytes"),
    ],
)
def test_errors_say_where(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Vocab.read(write(tmp_path / name, text), SPECIALS)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.txt cannot be read"):
        Vocab.read(tmp_path / "nowhere.txt", SPECIALS)


def test_duplicates_in_memory_name_both_entries() -> None:
    with pytest.raises(DataError, match="both entry 0 and entry 2"):
        Vocab(["a", "b", "a"], SPECIALS)


def test_ids_without_a_token_get_a_name() -> None:
    assert tokens_by_id({"c": 3, "a": 0}) == ["a", "<|unused_1|>", "<|unused_2|>", "c"]


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
    assert read_counted(file) == (tokens, counts)


def test_json_is_a_list_or_a_table_of_ids(tmp_path: Path) -> None:
    file = tmp_path / "vocab.json"
    file.write_text(json.dumps(["a", "b"]))
    assert read_counted(file)[0] == ["a", "b"]
    file.write_text(json.dumps({"b": 1, "a": 0}))
    assert read_counted(file)[0] == ["a", "b"]
    file.write_text(json.dumps({"b": 2, "a": 0}))
    with pytest.raises(DataError, match="must be 0 to 1, each once, but 1 is missing") as error:
        read_counted(file)
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
        read_counted(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none cannot be read: No such file"):
        read_counted(tmp_path / "none")


def test_ids_far_beyond_the_tokens_are_refused() -> None:
    assert tokens_by_id({"b": 2, "a": 0}) == ["a", unused_token(1), "b"] and tokens_by_id({}) == []
    assert len(tokens_by_id({"a": MOST_UNUSED})) == MOST_UNUSED + 1
    with pytest.raises(DataError, match="1 tokens go up to"):
        tokens_by_id({"a": MOST_UNUSED + 1})
