"""Coverage penalties against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from onmt_llm.config.generate import GenerationConfig
from onmt_llm.generate.search.beam import coverage_penalty, real_tokens

COVERAGE = torch.tensor([[0.5, 1.0, 2.5, 9.0], [0.25, 0.0, 9.0, 9.0]])
REAL = real_tokens([3, 1], torch.device("cpu"))


def test_real_tokens_are_those_within_the_length() -> None:
    assert REAL.tolist() == [[True, True, True], [True, False, False]]


@pytest.mark.parametrize(
    ("kind", "beta", "expected"),
    [
        ("wu", 1.0, [math.log(2), math.log(4)]),
        ("wu", 2.0, [2 * math.log(2), 2 * math.log(4)]),
        ("summary", 1.0, [1.5, 0.0]),
        ("summary", 0.5, [0.75, 0.0]),
    ],
)
def test_only_real_tokens_cost(kind: str, beta: float, expected: list[float]) -> None:
    penalty = coverage_penalty(GenerationConfig(coverage_penalty=kind, beta=beta))
    assert penalty is not None
    assert penalty(COVERAGE[:, :3], REAL).tolist() == pytest.approx(expected)


def test_a_token_without_any_attention_costs_much_but_not_everything() -> None:
    penalty = coverage_penalty(GenerationConfig(coverage_penalty="wu", beta=1.0))
    assert penalty is not None
    cost = penalty(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool))
    assert 50 < float(cost) < math.inf


@pytest.mark.parametrize(("kind", "beta"), [("none", 1.0), ("wu", 0.0), ("summary", 0.0)])
def test_no_penalty_is_none(kind: str, beta: float) -> None:
    assert coverage_penalty(GenerationConfig(coverage_penalty=kind, beta=beta)) is None
