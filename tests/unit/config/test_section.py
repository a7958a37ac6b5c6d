"""What the schema says about options."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import Field

from onmt_llm.config.numbers import Count
from onmt_llm.config.section import DERIVED, Section, derived, options_of, section_docs


class Inner(Section):
    """Nested."""

    theta: float = 1.0


class First(Section):
    """The first section:
    over two lines."""

    count: Count | None = None
    """A number of things,
    over two lines."""
    names: list[str] = Field(default_factory=lambda: ["a"])
    kind: Literal["", "x", "y"] = "x"
    kinds: list[Literal["x", "y"]] = []
    switch: bool | None = None
    inner: Inner = Inner()
    ranks: dict[str, Count] = {}
    hidden: int = Field(0, json_schema_extra=DERIVED)


class Plugin(Section):
    """A transform."""

    rate: float = 0.5


class Job(Section):
    """A job."""

    first: First = First()


OPTIONS = options_of(Job, {"plugin": Plugin})


def test_options_are_listed_by_name_without_derived_ones() -> None:
    assert list(OPTIONS) == ["count", "names", "kind", "kinds", "switch", "inner", "ranks", "rate"]
    assert (OPTIONS["rate"].section, OPTIONS["rate"].extra) == ("plugin", True)
    assert (OPTIONS["count"].section, OPTIONS["count"].extra) == ("first", False)
    assert derived(First) == {"hidden"}


@pytest.mark.parametrize(
    ("name", "type_name"),
    [
        ("count", "int"),
        ("names", "list of str"),
        ("kind", "x|y"),
        ("kinds", "x|y"),
        ("switch", "bool"),
        ("inner", "mapping"),
        ("ranks", "mapping"),
    ],
)
def test_types_in_words(name: str, type_name: str) -> None:
    assert OPTIONS[name].type_name == type_name


def test_shapes_of_options() -> None:
    assert {name for name, option in OPTIONS.items() if option.is_list} == {"names", "kinds"}
    assert {name for name, option in OPTIONS.items() if option.is_bool} == {"switch"}
    assert {name for name, option in OPTIONS.items() if option.is_mapping} == {"inner", "ranks"}
    assert OPTIONS["kind"].choices == ("", "x", "y") and OPTIONS["kinds"].choices == ("x", "y")
    assert OPTIONS["names"].default == ["a"]


def test_documentation_is_on_one_line() -> None:
    assert OPTIONS["count"].doc == "A number of things, over two lines."
    assert section_docs(Job, {"plugin": Plugin}) == {
        "first": "The first section: over two lines.",
        "plugin": "A transform.",
    }


def test_names_are_unique_within_a_job() -> None:
    class Again(Section):
        count: int = 0

    with pytest.raises(AssertionError, match="option name 'count' is defined twice in Job"):
        options_of(Job, {"again": Again})
