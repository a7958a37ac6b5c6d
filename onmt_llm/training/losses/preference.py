"""Preference losses: DPO (Rafailov et al. 2023), ORPO (Hong et al. 2024) and KTO (Ethayarajh et al. 2024).

They equal those of TRL, as a test shows. They are summed over pairs (KTO: over answers), and an update divides by the
number of these. `PREFERENCE_LOSSES` holds the function of each.

Shapes: B rows of a batch, P pairs or answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onmt_llm.checkpoint.load import load_model
from onmt_llm.config.learning import REFERENCE_FREE, UNPAIRED, ObjectiveName, PreferenceConfig
from onmt_llm.config.model import Dtype, ModelConfig
from onmt_llm.data.batching.batch import Batch
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.nn.lora.model import without_adapters
from onmt_llm.nn.quantized import Int8Linear
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.checks import check_reference
from onmt_llm.training.losses.batch_loss import hidden_states
from onmt_llm.training.losses.log_probs import LogProbs, label_log_probs
from onmt_llm.training.losses.output_layer import OutputLayer
from onmt_llm.training.losses.token_loss import RewardSums, TokenLoss

LoadModel = Callable[[str, Dtype, torch.device], Transformer]


@dataclass(frozen=True)
class RatedAnswers:
    """The answers that a loss compares. A paired loss has the chosen and the rejected ones in the order of the pairs.

    Attributes:
        policy: Their log-probabilities under the trained model.
        reference: Those under the reference; None for a loss in `REFERENCE_FREE`.
        chosen_B: Whether each is a chosen answer.
        divergence: For a loss in `UNPAIRED`: divergence of the policy from the reference, estimated from answers to
            other prompts; no gradient. Else 0.
    """

    policy: LogProbs
    reference: LogProbs | None
    chosen_B: Tensor
    divergence: Tensor

    @property
    def chosen(self) -> LogProbs:
        """The chosen answers under the policy."""
        return self.policy.rows(self.chosen_B)

    @property
    def rejected(self) -> LogProbs:
        """The rejected answers under the policy."""
        return self.policy.rows(~self.chosen_B)

    @property
    def ratio_B(self) -> Tensor:
        """Log-probability of each answer minus that under the reference."""
        assert self.reference is not None
        return self.policy.total_B - self.reference.total_B


@dataclass(frozen=True)
class PreferenceLosses:
    """Losses and rewards of the answers of a batch.

    Attributes:
        losses_P: Loss of each pair (KTO: of each answer), with its gradient.
        chosen_P: Rewards of the chosen answers: beta times the log of how much likelier they are than under the
            reference (ORPO: beta times their mean log-probability).
        rejected_P: Rewards of the rejected answers.
        correct: Pairs whose chosen answer has the higher reward; KTO: answers whose reward has the right sign.
    """

    losses_P: Tensor
    chosen_P: Tensor
    rejected_P: Tensor
    correct: Tensor


@dataclass(frozen=True)
class PreferenceLoss:
    """A preference loss and its reference model.

    Attributes:
        method: Which loss: a key of `PREFERENCE_LOSSES`.
        settings: Its options.
        reference: The reference model; None = the trained model without its adapters.
        chunk_tokens: Positions that go through the output layer together; 0 = the device's default.
    """

    method: str
    settings: PreferenceConfig
    reference: Transformer | None = None
    chunk_tokens: int = 0

    def __call__(self, model: Transformer, batch: Batch, scale: float, corpora: int = 0) -> TokenLoss:
        """Loss of `model` on a batch of preference data; see `BatchLoss`. Likelihoods are those of the chosen answers.

        Raises:
            DataError: The batch holds other examples.
        """
        kind_B = batch.preference_B
        if kind_B is None:
            raise DataError(f"objective {self.method} must have preferences as examples, but the corpora have none.")
        old = None if self.method in REFERENCE_FREE else self._reference_log_probs(model, batch)
        divergence = torch.zeros((), device=kind_B.device)
        rated = batch
        if self.method in UNPAIRED:
            is_rated_B = kind_B >= 0
            if old is not None:
                with torch.no_grad():
                    mismatched = sequence_log_probs(model, rows_of(batch, ~is_rated_B), self.chunk_tokens)
                divergence = (mismatched.total_B - old.rows(~is_rated_B).total_B).mean().clamp(min=0)
                old = old.rows(is_rated_B)
            rated, kind_B = rows_of(batch, is_rated_B), kind_B[is_rated_B]
        policy = sequence_log_probs(model, rated, self.chunk_tokens)
        answers = RatedAnswers(policy, old, kind_B == 1, divergence)
        loss = _token_loss(PREFERENCE_LOSSES[self.method](answers, self.settings), answers, scale)
        if not corpora or rated.corpus_P2 is None:
            return loss
        corpus_P = rated.corpus_P2[answers.chosen_B, 0]
        return replace(loss, by_corpus_K2=_by_corpus(answers.chosen, corpus_P, corpora))

    @torch.no_grad()
    def _reference_log_probs(self, model: Transformer, batch: Batch) -> LogProbs:
        if self.reference is not None:
            return sequence_log_probs(self.reference, batch, self.chunk_tokens)
        with as_reference(model):
            return sequence_log_probs(model, batch, self.chunk_tokens)


def open_preference_loss(
    objective: ObjectiveName,
    settings: PreferenceConfig,
    *,
    adapters: bool,
    model: ModelConfig,
    dtype: Dtype,
    device: torch.device,
    chunk_tokens: int = 0,
    load: LoadModel = load_model,
) -> PreferenceLoss | None:
    """The preference loss of the options, with its reference model; None for `sft`.

    Args:
        objective: Which loss.
        settings: Its options.
        adapters: Adapters are trained, so the base model can be the reference.
        model: Architecture of the trained model.
        dtype: Type of the reference's weights.
        device: Device of the reference.
        chunk_tokens: Positions that go through the output layer together; 0 = the device's default.
        load: Loads the reference.

    Raises:
        ConfigError: There is no reference, or its vocabulary differs.
        CheckpointError: The reference is missing or damaged.
    """
    if objective == "sft":
        return None
    check_reference(objective, settings, adapters=adapters)
    if objective in REFERENCE_FREE or settings.reference_model is None:
        return PreferenceLoss(objective, settings, chunk_tokens=chunk_tokens)
    reference = load(settings.reference_model, dtype, device).requires_grad_(False)
    if reference.config.vocab_size != model.vocab_size:
        raise ConfigError(
            f"reference_model must have the vocabulary of the model, {model.vocab_size} tokens, but has "
            f"{reference.config.vocab_size}."
        )
    return PreferenceLoss(objective, settings, reference, chunk_tokens)


def _token_loss(losses: PreferenceLosses, answers: RatedAnswers, scale: float) -> TokenLoss:
    """The sums that the loop needs; likelihood and accuracy are those of the chosen answers."""
    chosen = answers.chosen
    total = losses.losses_P.sum()
    counts = total.new_tensor([len(losses.losses_P), len(losses.chosen_P), len(losses.rejected_P)])
    preferences, chosen_count, rejected_count = counts.double()
    return TokenLoss(
        scaled=total * scale,
        total=total.detach(),
        nll=-chosen.total_B.detach().sum(),
        correct=chosen.correct_B.sum(),
        tokens=int(chosen.count_B.sum()),
        rewards=RewardSums(
            preferences=preferences,
            chosen=chosen_count,
            rejected=rejected_count,
            chosen_rewards=losses.chosen_P.sum().detach().double(),
            rejected_rewards=losses.rejected_P.sum().detach().double(),
            correct=losses.correct.double(),
            divergence=answers.divergence.detach().double(),
        ),
    )


def _by_corpus(chosen: LogProbs, corpus_P: Tensor, corpora: int) -> Tensor:
    """Negative log-likelihood and trained positions of the chosen answers, by corpus."""
    sums_P2 = torch.stack([-chosen.total_B.detach(), chosen.count_B], dim=1).double()
    return sums_P2.new_zeros(corpora, 2).index_add(0, corpus_P, sums_P2)


def dpo(answers: RatedAnswers, settings: PreferenceConfig) -> PreferenceLosses:
    """Direct preference optimisation, in the variant `dpo_loss`."""
    chosen, rejected, ratio_B = answers.chosen, answers.rejected, answers.ratio_B
    chosen_P, rejected_P = ratio_B[answers.chosen_B], ratio_B[~answers.chosen_B]
    margin_P = settings.dpo_beta * (chosen_P - rejected_P)
    flipped = settings.dpo_label_smoothing
    if settings.dpo_loss == "sigmoid":
        losses_P = -F.logsigmoid(margin_P)
    elif settings.dpo_loss == "hinge":
        losses_P = torch.relu(1 - margin_P)
    elif settings.dpo_loss == "robust":
        losses_P = ((flipped - 1) * F.logsigmoid(margin_P) + flipped * F.logsigmoid(-margin_P)) / (1 - 2 * flipped)
    else:
        # per token, as the authors of IPO recommend (Azar et al. 2023, equation 17)
        difference_P = chosen_P / chosen.count_B - rejected_P / rejected.count_B
        losses_P = (difference_P - 1 / (2 * settings.dpo_beta)).square()
    if settings.dpo_sft_weight:
        losses_P = losses_P - settings.dpo_sft_weight * chosen.mean_B
    return _paired(losses_P, settings.dpo_beta * chosen_P, settings.dpo_beta * rejected_P)


def orpo(answers: RatedAnswers, settings: PreferenceConfig) -> PreferenceLosses:
    """Likelihood per token of the chosen answer, and the odds ratio of the two answers; no reference."""
    chosen, rejected = answers.chosen, answers.rejected
    odds_P = _log_odds(chosen.mean_B) - _log_odds(rejected.mean_B)
    losses_P = -chosen.mean_B - settings.orpo_beta * F.logsigmoid(odds_P)
    return _paired(losses_P, settings.orpo_beta * chosen.mean_B, settings.orpo_beta * rejected.mean_B)


def kto(answers: RatedAnswers, settings: PreferenceConfig) -> PreferenceLosses:
    """Kahneman-Tversky optimisation."""
    is_chosen_P, ratio_P, divergence = answers.chosen_B, answers.ratio_B, answers.divergence
    beta = settings.kto_beta
    sign_P = is_chosen_P.float() * 2 - 1
    weight_P = torch.where(is_chosen_P, settings.kto_desirable_weight, settings.kto_undesirable_weight)
    losses_P = weight_P * (1 - torch.sigmoid(beta * sign_P * (ratio_P - divergence)))
    rewards_P = beta * ratio_P.detach()
    return PreferenceLosses(losses_P, rewards_P[is_chosen_P], rewards_P[~is_chosen_P], (rewards_P * sign_P > 0).sum())


def _paired(losses_P: Tensor, chosen_P: Tensor, rejected_P: Tensor) -> PreferenceLosses:
    return PreferenceLosses(losses_P, chosen_P.detach(), rejected_P.detach(), (chosen_P > rejected_P).sum())


PREFERENCE_LOSSES: dict[str, Callable[[RatedAnswers, PreferenceConfig], PreferenceLosses]] = {
    "dpo": dpo,
    "orpo": orpo,
    "kto": kto,
}
"""The preference losses, by their name in `objective`."""


def _log_odds(x: Tensor) -> Tensor:
    """x - log(1 - exp(x)) of log-probabilities x <= 0, accurate on both sides of -log 2. Probabilities above 1 - 1e-6
    count as that: those of 1 have infinite odds, and a gradient that is no number."""
    x = x.clamp(max=-1e-6)
    return x - torch.where(x < -math.log(2), torch.log1p(-x.exp()), torch.log(-torch.expm1(x)))


def sequence_log_probs(model: Transformer, batch: Batch, chunk_tokens: int = 0) -> LogProbs:
    """Log-probabilities of the labels of each row; see `token_loss` for `chunk_tokens`."""
    hidden_BTD = hidden_states(model, batch)
    return label_log_probs(hidden_BTD, batch.labels_BT, OutputLayer.of(model), chunk_tokens=chunk_tokens)


def rows_of(batch: Batch, keep_B: Tensor) -> Batch:
    """The rows of a batch where `keep_B` is True."""
    tensors = {each.name: getattr(batch, each.name) for each in fields(batch)}
    kept: dict[str, Any] = {name: tensor[keep_B] for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    return replace(batch, **kept)


@contextmanager
def as_reference(model: Transformer) -> Iterator[None]:
    """A context in which the model is its base without adapters and without dropout."""
    training = model.training
    model.eval()
    for module in model.modules():
        if isinstance(module, Int8Linear):
            module.train(training)  # it multiplies in the same number format as the policy
    try:
        with without_adapters(model):
            yield
    finally:
        model.train(training)
