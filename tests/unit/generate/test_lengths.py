"""Length penalties and limits, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from onmt_llm.generate.lengths import length_penalty, max_answer_length


@pytest.mark.parametrize(
    ("kind", "alpha", "length", "expected"),
    [("none", 1.0, 7, 1.0), ("avg", 1.0, 7, 8.0), ("avg", 0.5, 8, 3.0), ("wu", 1.0, 6, 2.0), ("wu", 2.0, 6, 4.0)],
)
def test_scores_are_divided_by(kind: str, alpha: float, length: int, expected: float) -> None:
    assert length_penalty(kind, alpha)(length) == pytest.approx(expected)


@pytest.mark.parametrize(("ratio", "source", "expected"), [(0, 9, 50), (2.0, 9, 23), (1.25, 3, 8), (100.0, 9, 50)])
def test_an_answer_is_limited_by_its_source(ratio: float, source: int, expected: int) -> None:
    assert max_answer_length(50, ratio, source) == expected
