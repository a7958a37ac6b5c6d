"""The load-balancing loss: by its formula, over real tokens, and with the weight of the options or of the model."""

from __future__ import annotations

import pytest
import torch

import tiny
from onmt_llm.config.learning import LossConfig
from onmt_llm.data.batching.batch import Batch
from onmt_llm.errors import ConfigError
from onmt_llm.training.losses.balance import balance_loss, open_balance, real_tokens

REAL = torch.tensor([True, True, False, True])
EXPERTS = {"experts": 4, "balance_loss": 0.25}


def test_the_formula() -> None:
    logits = [torch.randn(4, 3), torch.randn(4, 3)]
    times, probabilities = torch.zeros(3), torch.zeros(3)
    for layer in logits:
        for token in (0, 1, 3):
            probs = layer[token].softmax(0)
            probabilities += probs / 6
            for expert in probs.argsort(descending=True)[:2]:
                times[expert] += 1 / 6
    expected = 3 * sum(times[e] * probabilities[e] for e in range(3))
    torch.testing.assert_close(balance_loss(logits, 2, REAL), expected)


def test_balanced_experts_have_the_smallest_loss() -> None:
    even = 5 * torch.eye(4)[None].expand(4, 4, 4)[0]
    assert balance_loss([even], 1, torch.ones(4, dtype=torch.bool)).item() == pytest.approx(1.0)
    odd = torch.tensor([[5.0, 0, 0, 0]]).expand(4, 4)
    assert balance_loss([odd], 1, torch.ones(4, dtype=torch.bool)).item() > 3.8


def test_padding_is_not_real() -> None:
    labels = torch.tensor([[-100, 5, -100, 6, -100], [7, -100, -100, -100, -100]])
    batch = Batch(None, None, labels, labels, None, 3, 2)
    assert real_tokens(batch).tolist() == [True, True, True, True, False, True, False, False, False, False]
    packed = Batch(None, None, labels, labels, torch.tensor([[1, 1, 2, 2, 2], [1, 2, 3, 0, 0]]), 3, 5)
    assert real_tokens(packed).tolist() == [True] * 8 + [False] * 2
    assert balance_loss([torch.randn(2, 3)], 1, torch.zeros(2, dtype=torch.bool)).item() == 0.0


def test_the_weight() -> None:
    model, dense = tiny.llama(moe=EXPERTS), tiny.llama()
    assert open_balance(LossConfig(), model) == 0.25
    assert open_balance(LossConfig(lambda_balance=2.0), model) == 2.0
    assert open_balance(LossConfig(lambda_balance=0.0), model) == 0.0
    assert open_balance(LossConfig(), dense) == open_balance(LossConfig(lambda_balance=0.0), dense) == 0.0
    with pytest.raises(ConfigError, match="lambda_balance must be left out"):
        open_balance(LossConfig(lambda_balance=0.1), dense)
