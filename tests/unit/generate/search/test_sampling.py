"""The sampling functions against transformers' logits processors."""

from __future__ import annotations

import pytest
import torch
from transformers.generation import logits_process as hf

from onmt_llm.generate.search import sampling

HISTORY = [[3, 5, 3, 5], [7, 7, 7, 7]]


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(2, 50, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize("k", [1, 5, 49, 50, 200])
def test_top_k_is_transformers(logits: torch.Tensor, k: int) -> None:
    expected = hf.TopKLogitsWarper(k)(torch.empty(0), logits.clone())
    assert torch.equal(sampling.keep_top_k(logits, k), expected)


@pytest.mark.parametrize("p", [0.01, 0.3, 0.75, 0.999])
def test_top_p_is_transformers(logits: torch.Tensor, p: float) -> None:
    expected = hf.TopPLogitsWarper(p)(torch.empty(0), logits.clone())
    assert torch.equal(sampling.keep_top_p(logits, p), expected)


def test_zero_and_one_keep_everything(logits: torch.Tensor) -> None:
    for same in (sampling.keep_top_p(logits, 0.0), sampling.keep_top_p(logits, 1.0), sampling.keep_top_k(logits, 0)):
        assert torch.equal(same, logits)


@pytest.mark.parametrize("penalty", [0.7, 1.0, 1.3])
def test_repetition_penalty_is_transformers(logits: torch.Tensor, penalty: float) -> None:
    expected = hf.RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor(HISTORY), logits.clone())
    assert torch.allclose(sampling.penalize_repetition(logits, HISTORY, penalty), expected)


@pytest.mark.parametrize(("presence", "frequency"), [(0.0, 0.5), (1.5, 0.0), (-0.25, 2.0)])
def test_presence_and_frequency_penalties_are_those_of_openai(
    logits: torch.Tensor, presence: float, frequency: float
) -> None:
    histories = [HISTORY[0], []], [[], [7, 1, 7, 7]]
    for rows in (HISTORY, *histories):
        expected = logits.clone()
        for row, history in enumerate(rows):
            for token in range(logits.shape[1]):
                count = history.count(token)
                expected[row, token] -= count * frequency + (count > 0) * presence
        found = sampling.penalize_presence(logits, rows, presence=presence, frequency=frequency)
        torch.testing.assert_close(found, expected)
    assert sampling.penalize_presence(logits, [[], []], presence=presence, frequency=frequency) is logits


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_ngram_blocking_is_transformers(logits: torch.Tensor, n: int) -> None:
    expected = hf.NoRepeatNGramLogitsProcessor(n)(torch.tensor(HISTORY), logits.clone())
    banned = [sampling.repeated_ngram_ends(history, n) for history in HISTORY]
    assert torch.equal(sampling.ban_in_rows(logits, banned), expected)


def test_functions_leave_their_input_alone(logits: torch.Tensor) -> None:
    before = logits.clone()
    sampling.keep_top_p(sampling.keep_top_k(sampling.sharpen(logits, 0.5), 5), 0.5)
    sampling.penalize_repetition(sampling.ban(logits, [1, 2]), HISTORY, 2.0)
    sampling.penalize_presence(logits, HISTORY, presence=1.0, frequency=1.0)
    assert torch.equal(logits, before)


def test_draws_follow_the_distribution() -> None:
    probs = torch.tensor([0.0, 0.1, 0.2, 0.0, 0.7, 0.0])
    count = 2000
    uniforms = [(i + 0.5) / count for i in range(count)]
    drawn = torch.tensor(sampling.draw(probs.log().expand(count, -1), uniforms))
    shares = torch.bincount(drawn, minlength=6) / count
    assert torch.allclose(shares, probs, atol=1e-3)


def test_the_ends_of_the_unit_interval_draw_possible_tokens() -> None:
    logits = torch.tensor([[sampling.BANNED, 0.0, 0.0, sampling.BANNED]]).expand(2, -1)
    assert sampling.draw(logits, [0.0, 1.0 - 2**-53]) == [1, 2]
