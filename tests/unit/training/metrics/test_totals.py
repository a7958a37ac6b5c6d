"""`metrics.totals`: sums by name, on the device and in `state.json`."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from onmt_llm.data.batching.batch import Batch
from onmt_llm.training.losses.token_loss import RewardSums, TokenLoss
from onmt_llm.training.metrics.totals import RewardTotals, Totals

CPU = torch.device("cpu")
REWARDS = RewardTotals(4.0, 4.0, 2.0, 6.0, 1.0, 3.0, 0.5)


def loss(*, rewards: bool, corpora: bool) -> TokenLoss:
    one = torch.tensor(1.0)
    names = [each.name for each in fields(RewardTotals)]
    sums = RewardSums(**{name: torch.tensor(getattr(REWARDS, name)).double() for name in names}) if rewards else None
    by_corpus = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64) if corpora else None
    return TokenLoss(one, 2 * one, 3 * one, torch.tensor(4), 5, sums, by_corpus, 6 * one)


@pytest.mark.parametrize("rewards", [False, True])
@pytest.mark.parametrize("corpora", [False, True])
def test_rows_are_added_by_name(rewards: bool, corpora: bool) -> None:
    ids_BT = torch.zeros(2, 6, dtype=torch.long)
    batch = Batch(ids_BT, torch.ones(2, 6, dtype=torch.bool), ids_BT, ids_BT, None, 2, 2)
    row = Totals.empty_row(CPU, 2 if corpora else 0)
    for _ in range(3):
        row += Totals.row(loss(rewards=rewards, corpora=corpora), batch)
    one = Totals(
        *(2.0, 3.0, 4.0, 5.0, 2.0, 24.0, 12.0, 1.0),
        rewards=REWARDS if rewards else RewardTotals(),
        balance=6.0,
        by_corpus=((1.0, 2.0), (3.0, 4.0)) if corpora else (),
    )
    assert Totals.from_row(row) == one + one + one


def test_values_of_a_saved_run_are_read_in_their_order() -> None:
    totals = Totals(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, rewards=REWARDS, balance=9.0)
    assert totals.values() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 4.0, 4.0, 2.0, 6.0, 1.0, 3.0, 0.5, 9.0]
    assert Totals.from_values(totals.values()) == totals
    assert Totals.from_values(totals.values()[:8]) == replace(totals, rewards=RewardTotals(), balance=0.0)
    assert Totals.from_values(totals.values()[:15]) == replace(totals, balance=0.0)
    assert Totals.from_values([]) == Totals()


def test_rewards_are_means_over_their_answers() -> None:
    metrics = Totals(loss=8.0, batches=2.0, rewards=REWARDS).metrics
    assert metrics["loss"] == 2.0 and metrics["reward_accuracy"] == 75.0 and metrics["divergence"] == 0.25
    assert (metrics["reward_chosen"], metrics["reward_rejected"], metrics["reward_margin"]) == (1.5, 0.5, 1.0)
    assert "reward_chosen" not in Totals(loss=8.0, tokens=4.0).metrics


def test_the_sums_of_a_batch_and_their_totals_have_the_same_names() -> None:
    assert [each.name for each in fields(RewardSums)] == [each.name for each in fields(RewardTotals)]
