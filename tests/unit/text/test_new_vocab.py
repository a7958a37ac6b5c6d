"""The vocabulary of a new model: frequency, special tokens, size, padding."""

from __future__ import annotations

from pathlib import Path

import pytest

from onmt_llm.errors import DataError
from onmt_llm.text.new_vocab import PADDING, no_vocabulary, padded, padded_to, read_frequent, with_specials


def test_rare_tokens_are_left_out_where_there_are_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    counted, plain = tmp_path / "counted", tmp_path / "plain"
    counted.write_text("the\t9\ncat\t3\nsat\t1\n")
    plain.write_text("the\ncat\nsat\n")
    assert read_frequent(counted) == read_frequent(counted, min_frequency=1) == ["the", "cat", "sat"]
    assert read_frequent(counted, min_frequency=3) == ["the", "cat"]
    with caplog.at_level("WARNING", logger="onmt_llm"):
        assert read_frequent(plain, min_frequency=3) == ["the", "cat", "sat"]
    assert f"{plain} has no counts" in caplog.text


def test_a_token_twice_is_refused_with_its_lines(tmp_path: Path) -> None:
    (tmp_path / "v").write_text("a\t3\nb\t2\na\t1\n")
    with pytest.raises(DataError, match="'a' is both line 1 and line 3"):
        read_frequent(tmp_path / "v")


@pytest.mark.parametrize(
    ("tokens", "size", "expected"),
    [
        ("abc", 0, ["<s>", "</s>", "a", "b", "c"]),
        ("abc", 4, ["<s>", "</s>", "a", "b"]),
        ("abc", 1, ["<s>", "</s>"]),
        (["a", "<s>", "</s>", "b"], 0, ["a", "<s>", "</s>", "b"]),
        (["a", "b", "c", "<s>"], 4, ["<s>", "</s>", "a", "b"]),
        (["a", "<s>", "b", "c"], 4, ["</s>", "a", "<s>", "b"]),
    ],
)
def test_no_special_token_is_lost_to_the_size(tokens: list[str], size: int, expected: list[str]) -> None:
    assert with_specials(list(tokens), ["<s>", "</s>", "<s>"], size=size) == expected


def test_padding_has_names_that_no_token_has() -> None:
    assert padded(["a", "b"], 2) == ["a", "b"]
    assert padded(["a", f"{PADDING}0", "b"], 4) == ["a", f"{PADDING}0", "b", f"{PADDING}1"]
    assert padded_to(["a"], 3) == ["a", f"{PADDING}0", f"{PADDING}1"] and padded_to(["a", "b"], 1) == ["a", "b"]


def test_the_error_names_the_option() -> None:
    assert no_vocabulary("tgt_vocab").message.startswith("tgt_vocab must name a vocabulary file")
