"""Sums over batches, and the metrics computed from them: loss, perplexity, accuracy, rewards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import zip_longest

import torch
from torch import Tensor

from onmt_llm.data.batching.batch import Batch
from onmt_llm.training.losses.token_loss import TokenLoss


@dataclass(frozen=True)
class RewardTotals:
    """Sums of a preference loss, named as in `RewardSums`; all zero under any other objective."""

    preferences: float = 0.0
    chosen: float = 0.0
    rejected: float = 0.0
    chosen_rewards: float = 0.0
    rejected_rewards: float = 0.0
    correct: float = 0.0
    divergence: float = 0.0

    def metrics(self, batches: float) -> dict[str, float]:
        """Means by name; none without preferences.

        Args:
            batches: Micro-batches that the sums are over.
        """
        if not self.preferences:
            return {}
        chosen = self.chosen_rewards / max(self.chosen, 1)
        rejected = self.rejected_rewards / max(self.rejected, 1)
        return {
            "reward_chosen": chosen,
            "reward_rejected": rejected,
            "reward_margin": chosen - rejected,
            "reward_accuracy": 100.0 * self.correct / self.preferences,
            "divergence": self.divergence / max(batches, 1),
        }


_REWARDS = tuple(each.name for each in fields(RewardTotals))
_OWN = ("loss", "nll", "correct", "src_tokens", "tokens", "examples", "positions", "batches")
"""The first columns of `Totals.row`; the rewards follow, the balance, and two columns for each corpus."""


@dataclass(frozen=True)
class Totals:
    """Sums over batches.

    Attributes:
        loss: Training loss, label smoothing included.
        nll: Negative log-likelihood of the trained tokens, in nats.
        correct: Trained tokens that the model ranks first.
        tokens: Trained tokens.
        examples: Examples.
        positions: All positions that the model computed, padding included.
        src_tokens: Tokens that the encoder read.
        batches: Micro-batches.
        rewards: Sums of a preference loss.
        balance: Load-balancing loss of a mixture of experts, unweighted, times the trained tokens.
        by_corpus: `nll` and `tokens` of each corpus, in the order of the options; empty if corpora are not separated.
    """

    loss: float = 0.0
    nll: float = 0.0
    correct: float = 0.0
    tokens: float = 0.0
    examples: float = 0.0
    positions: float = 0.0
    src_tokens: float = 0.0
    batches: float = 0.0
    rewards: RewardTotals = field(default=RewardTotals(), kw_only=True)
    balance: float = field(default=0.0, kw_only=True)
    by_corpus: tuple[tuple[float, float], ...] = field(default=(), kw_only=True)

    @staticmethod
    def row(loss: TokenLoss, batch: Batch) -> Tensor:
        """The sums of one batch as a float64 vector on its device, so that adding them needs no synchronisation."""
        positions = batch.tgt_BT.numel() + (0 if batch.src_BS is None else batch.src_BS.numel())
        src_tokens = loss.nll.new_zeros(()) if batch.src_mask_BS is None else batch.src_mask_BS.sum()
        summed = torch.stack([part.double() for part in (loss.total, loss.nll, loss.correct, src_tokens)])
        counted = torch.tensor([loss.tokens, batch.num_examples, positions, 1], dtype=torch.float64)
        rewards = summed.new_zeros(len(_REWARDS))
        if loss.rewards is not None:
            rewards = torch.stack([getattr(loss.rewards, name) for name in _REWARDS])
        balance = summed.new_zeros(1) if loss.balance is None else loss.balance.double().reshape(1)
        by_corpus = summed.new_zeros(0) if loss.by_corpus_K2 is None else loss.by_corpus_K2.flatten()
        return torch.cat([summed, counted.to(summed.device), rewards, balance, by_corpus])

    @staticmethod
    def empty_row(device: torch.device, corpora: int = 0) -> Tensor:
        """The row to start a sum with, for batches with this number of separated corpora."""
        return torch.zeros(len(_OWN) + len(_REWARDS) + 1 + 2 * corpora, dtype=torch.float64, device=device)

    @classmethod
    def from_row(cls, row: Tensor) -> Totals:
        """The totals of a sum of rows."""
        columns = [len(_OWN), len(_REWARDS), 1]
        own, rewards, balance, by_corpus = row.split([*columns, len(row) - sum(columns)])
        return cls(
            **dict(zip(_OWN, own.tolist(), strict=True)),
            rewards=RewardTotals(*rewards.tolist()),
            balance=float(balance),
            by_corpus=tuple((nll, tokens) for nll, tokens in by_corpus.unflatten(0, (-1, 2)).tolist()),
        )

    @classmethod
    def from_values(cls, values: Sequence[float], by_corpus: tuple[tuple[float, float], ...] = ()) -> Totals:
        """The totals of `values()`, or of an older run's, which lack the last ones."""
        own, rewards, balance = values[:8], values[8:15], values[15:]
        return cls(*own, rewards=RewardTotals(*rewards), balance=sum(balance), by_corpus=by_corpus)

    def values(self) -> list[float]:
        """The sums without those of single corpora, in the order in which `state.json` holds them."""
        return [
            *(self.loss, self.nll, self.correct, self.tokens),
            *(self.examples, self.positions, self.src_tokens, self.batches),
            *(getattr(self.rewards, name) for name in _REWARDS),
            self.balance,
        ]

    def __add__(self, other: Totals) -> Totals:
        pairs = zip_longest(self.by_corpus, other.by_corpus, fillvalue=(0.0, 0.0))
        return Totals.from_values(
            [mine + theirs for mine, theirs in zip(self.values(), other.values(), strict=True)],
            tuple((mine[0] + theirs[0], mine[1] + theirs[1]) for mine, theirs in pairs),
        )

    def corpora(self, names: Sequence[str]) -> dict[str, Totals]:
        """Likelihood and tokens of each corpus by name, without those that have no trained token."""
        sums = zip(names, self.by_corpus, strict=True) if self.by_corpus else ()
        return {name: Totals(nll=nll, tokens=tokens) for name, (nll, tokens) in sums if tokens}

    @property
    def mean_loss(self) -> float:
        """Loss per trained token; under a preference loss per pair (KTO: per answer)."""
        return self.loss / max(self.rewards.preferences or self.tokens, 1)

    @property
    def reward_metrics(self) -> dict[str, float]:
        """Metrics of a preference loss by name; none under any other objective."""
        return self.rewards.metrics(self.batches)

    @property
    def balance_metrics(self) -> dict[str, float]:
        """The load-balancing loss of a mixture of experts by name, unweighted; none if it is not computed. It equals
        the number of experts of a token where all experts compute equally many tokens."""
        return {"balance": self.balance / max(self.tokens, 1)} if self.balance else {}

    @property
    def xent(self) -> float:
        """Negative log-likelihood per trained token, in nats."""
        return self.nll / max(self.tokens, 1)

    @property
    def ppl(self) -> float:
        """Perplexity; inf beyond exp(100)."""
        return math.exp(self.xent) if self.xent < 100 else math.inf

    @property
    def accuracy(self) -> float:
        """Share of trained tokens that the model ranks first, in percent."""
        return 100.0 * self.correct / max(self.tokens, 1)

    @property
    def metrics(self) -> dict[str, float]:
        """All metrics by name."""
        likelihood = {"xent": self.xent, "ppl": self.ppl, "accuracy": self.accuracy}
        return {"loss": self.mean_loss, **likelihood, **self.reward_metrics, **self.balance_metrics}


@dataclass(frozen=True)
class ValidationResult:
    """The result of a validation.

    Attributes:
        totals: Sums over the gold targets.
        scores: Scores of generated answers, by metric, or by `<corpus>/<metric>` if there are several corpora.
        corpora: Totals of each corpus, if there are several.
    """

    totals: Totals
    scores: Mapping[str, float] = field(default_factory=dict)
    corpora: Mapping[str, Totals] = field(default_factory=dict)

    def scores_of(self, corpus: str = "") -> dict[str, float]:
        """Scores by metric, of all corpora together or of one."""
        parts = [(name.rpartition("/"), score) for name, score in self.scores.items()]
        return {metric: score for (owner, _, metric), score in parts if owner == corpus}

    @property
    def metrics(self) -> dict[str, float]:
        """All metrics by name: loss, xent, ppl, accuracy, the scores; `<corpus>/ppl` ... of single corpora."""
        single = {
            f"{name}/{metric}": value
            for name, totals in self.corpora.items()
            for metric, value in totals.metrics.items()
        }
        return {**self.totals.metrics, **self.scores, **single}
