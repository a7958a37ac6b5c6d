"""Differences between two texts: what stayed, what was added, what is gone."""

from __future__ import annotations

import random

import pytest

from onmt_llm.data.inspection.diff import compare, compare_texts


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("", "", []),
        ("same", "same", [("same", "same")]),
        ("", "new", [("added", "new")]),
        ("old", "", [("gone", "old")]),
        ("a big cat", "a small cat", [("same", "a "), ("gone", "big"), ("added", "small"), ("same", " cat")]),
        ("Hello , you", "Hello, you", [("same", "Hello"), ("gone", " "), ("same", ", you")]),
    ],
)
def test_words_that_changed(old: str, new: str, expected: list[tuple[str, str]]) -> None:
    assert compare_texts(old, new) == expected


def test_both_texts_can_be_read_from_the_stretches() -> None:
    draw = random.Random(3)
    for _ in range(200):
        old, new = (["".join(draw.choices("abc", k=1)) for _ in range(draw.randrange(12))] for _ in range(2))
        stretches = compare(old, new)
        assert [word for kind, words in stretches if kind != "added" for word in words] == old
        assert [word for kind, words in stretches if kind != "gone" for word in words] == new
        assert all(words for _, words in stretches)


def test_a_long_text_that_changed_throughout_is_shown_as_a_whole() -> None:
    old, new = [f"o{i}" for i in range(3000)], [f"n{i}" for i in range(3000)]
    assert [(kind, len(words)) for kind, words in compare(["x", *old], ["x", *new])] == [
        ("same", 1), ("gone", 3000), ("added", 3000),
    ]  # fmt: skip
