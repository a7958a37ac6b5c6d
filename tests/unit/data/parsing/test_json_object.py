"""One JSON object per text, strictly."""

from __future__ import annotations

import pytest

from onmt_llm.data.parsing.json_object import kind, load_object


def test_an_object_is_loaded() -> None:
    assert load_object('{"a": [1, {"b": null}], "c": "x"}') == {"a": [1, {"b": None}], "c": "x"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": 1', "is not JSON: .* at column"),
        ("", "is not JSON"),
        ("[1]", "is a list"),
        ("null", "is null"),
        ("true", "is true or false"),
        ("1.5", "is a number"),
        ('"x"', "is text"),
        ('{"a": 1, "b": 2, "a": 3}', "has the key 'a' twice"),
        ('{"a": {"b": 1, "b": 1}}', "has the key 'b' twice"),
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "-Infinity"),
        ('{"a":' * 100_000, "is nested too deeply"),
    ],
)
def test_anything_that_parsers_could_read_differently_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        load_object(text)


def test_kinds_are_words() -> None:
    assert [kind(value) for value in (None, True, 1, 1.0, "", [], {})] == [
        "null", "true or false", "a number", "a number", "text", "a list", "an object",
    ]  # fmt: skip
