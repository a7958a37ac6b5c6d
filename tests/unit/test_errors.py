"""Errors for users: sentences, hints, and several problems at once."""

from __future__ import annotations

import pytest

from onmt_llm.errors import CheckpointError, ConfigError, DataError, OnmtLlmError, Problem, raise_problems


def test_exit_codes_differ_by_what_must_be_corrected() -> None:
    assert [kind.exit_code for kind in (OnmtLlmError, ConfigError, DataError, CheckpointError)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("x failed: no file..", "x failed: no file."),
        ("x failed (no file.).", "x failed (no file)."),
        ("a ...", "a ..."),
    ],
)
def test_a_full_stop_is_written_once(given: str, shown: str) -> None:
    assert str(OnmtLlmError(given)) == shown


def test_the_hint_has_a_line_of_its_own() -> None:
    assert str(ConfigError("a must be 1.", hint="set a")) == "a must be 1.\n  hint: set a"


def test_no_problem_raises_nothing_and_one_is_raised_as_it_is() -> None:
    raise_problems([])
    with pytest.raises(DataError) as error:
        raise_problems([Problem.of(DataError("b is missing.", hint="make b"), "run.yaml:3")] * 2)
    assert str(error.value) == "run.yaml:3  b is missing.\n  hint: make b" and not error.value.problems


def test_problems_are_listed_in_order_with_the_highest_exit_code() -> None:
    problems = [
        Problem("a must be 1.", "run.yaml:1", "see -help"),
        Problem("b must be 2.", "run.yaml:2", "see -help"),
        Problem("c is missing.", kind=CheckpointError),
        Problem("d is empty.", kind=DataError),
    ]
    with pytest.raises(CheckpointError) as error:
        raise_problems(problems)
    assert list(error.value.problems) == problems
    assert error.value.message.splitlines() == [
        "4 things are wrong:",
        "  run.yaml:1  a must be 1.",
        "  run.yaml:2  b must be 2.",
        "    hint: see -help",
        "  c is missing.",
        "  d is empty.",
    ]
