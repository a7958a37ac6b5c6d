"""The loss of a batch as sums: what a loss function returns, and what the metrics add up."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class RewardSums:
    """Sums of a preference loss over a batch (float64 scalars on its device).

    Attributes:
        preferences: Number of pairs; of answers under KTO.
        chosen: Number of chosen answers.
        rejected: Number of rejected answers.
        chosen_rewards: Rewards of the chosen answers.
        rejected_rewards: Rewards of the rejected answers.
        correct: Pairs whose chosen answer has the higher reward; KTO: answers whose reward has the right sign.
        divergence: Divergence from the reference, as KTO estimates it.
    """

    preferences: Tensor
    chosen: Tensor
    rejected: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor
    correct: Tensor
    divergence: Tensor


@dataclass(frozen=True)
class TokenLoss:
    """Loss of one batch.

    Attributes:
        scaled: Sum over the trained positions times the loss scale, with its gradient (float32 scalar).
        total: The same sum unscaled, label smoothing and other terms included, detached.
        nll: Sum of negative log-likelihoods (without label smoothing), detached.
        correct: Positions where no token is likelier than the label.
        tokens: Trained positions.
        rewards: Sums of a preference loss; None under any other objective.
        by_corpus_K2: `nll` and `tokens` of each corpus (float64); None = corpora are not separated.
        balance: Load-balancing loss of a mixture of experts, unweighted, times `tokens`, detached; None = not computed.
    """

    scaled: Tensor
    total: Tensor
    nll: Tensor
    correct: Tensor
    tokens: int
    rewards: RewardSums | None = None
    by_corpus_K2: Tensor | None = None
    balance: Tensor | None = None

    def plus(self, term: Tensor, scale: float) -> TokenLoss:
        """The loss with a further term, a sum with its gradient; `scale` is the loss scale."""
        return replace(self, scaled=self.scaled + term * scale, total=self.total + term.detach())
