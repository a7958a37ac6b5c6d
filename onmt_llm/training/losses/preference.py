"""Learning from preferences: DPO (Rafailov et al. 2023), ORPO (Hong et al. 2024) and KTO (Ethayarajh et al. 2024).

The losses are those of TRL, to which they are held by a test. They are summed over pairs (KTO: over answers), and an
update divides by the number of these.

Shapes: B rows of a batch, P pairs or answers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from onmt_llm.checkpoint.load import load_model
from onmt_llm.config.model import Dtype, ModelConfig
from onmt_llm.config.training.loss import PreferenceConfig
from onmt_llm.data.batching.batch import Batch
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.nn.lora.model import without_adapters
from onmt_llm.nn.quantized import Int8Linear
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.checks import check_reference
from onmt_llm.training.losses.cross_entropy import TokenLoss, output_parameters
from onmt_llm.training.losses.log_probs import LogProbs, label_log_probs

Kind = Literal["dpo", "orpo", "kto"]


@dataclass(frozen=True)
class Outcome:
    """What a loss makes of the answers of a batch.

    Attributes:
        losses_P: Of each pair, or of each answer of KTO; with their gradient.
        good_P: Rewards of the good answers: beta times how much likelier they are than under the reference (ORPO: beta
            times their mean log-probability).
        bad_P: Rewards of the bad ones.
        right: Pairs whose better answer has the higher reward; answers of KTO with a reward on their side of zero.
    """

    losses_P: Tensor
    good_P: Tensor
    bad_P: Tensor
    right: Tensor


@dataclass(frozen=True)
class Preference:
    """A loss over preferences, and the reference that it keeps near to.

    Attributes:
        kind: Which loss.
        settings: Its options.
        reference: The reference model; None = the trained model without its adapters.
        chunk_tokens: Positions that go through the output layer together; 0 = as the device likes it.
    """

    kind: Kind
    settings: PreferenceConfig
    reference: Transformer | None = None
    chunk_tokens: int = 0

    def __call__(self, model: Transformer, batch: Batch, scale: float, corpora: int = 0) -> TokenLoss:
        """Loss of `model` on a batch of preferences, its gradient times `scale`; the likelihood of the good answers of
        each of so many `corpora`.

        Raises:
            DataError: The batch is of other examples.
        """
        kind_B = batch.preference_B
        if kind_B is None:
            raise DataError(f"objective {self.kind} must have preferences as examples, but the corpora have none.")
        old = None if self.kind == "orpo" else self._reference_log_probs(model, batch)
        divergence = torch.zeros((), device=kind_B.device)
        answers = batch
        if self.kind == "kto" and old is not None:
            with torch.no_grad():
                foreign = sequence_log_probs(model, rows_of(batch, kind_B < 0), self.chunk_tokens)
            divergence = (foreign.total_B - old.rows(kind_B < 0).total_B).mean().clamp(min=0)
            answers, old, kind_B = rows_of(batch, kind_B >= 0), old.rows(kind_B >= 0), kind_B[kind_B >= 0]
        new = sequence_log_probs(model, answers, self.chunk_tokens)
        good_B, bad_B = kind_B == 1, kind_B == 0
        if self.kind == "kto" and old is not None:
            outcome = kto(new.total_B - old.total_B, good_B, divergence, self.settings)
        elif old is not None:
            outcome = dpo(new.rows(good_B), new.rows(bad_B), old.rows(good_B), old.rows(bad_B), self.settings)
        else:
            outcome = orpo(new.rows(good_B), new.rows(bad_B), self.settings)
        loss = _token_loss(outcome, new.rows(good_B), divergence, scale)
        if not corpora or answers.corpus_P2 is None:
            return loss
        return replace(loss, by_corpus_K2=_by_corpus(new.rows(good_B), answers.corpus_P2[good_B, 0], corpora))

    @torch.no_grad()
    def _reference_log_probs(self, model: Transformer, batch: Batch) -> LogProbs:
        if self.reference is not None:
            return sequence_log_probs(self.reference, batch, self.chunk_tokens)
        with as_reference(model):
            return sequence_log_probs(model, batch, self.chunk_tokens)


def open_preference(
    objective: Literal["sft", "dpo", "orpo", "kto"],
    settings: PreferenceConfig,
    *,
    adapters: bool,
    model: ModelConfig,
    dtype: Dtype,
    device: torch.device,
    chunk_tokens: int = 0,
) -> Preference | None:
    """The loss over preferences that the options ask for, with its reference; None for `sft`.

    Args:
        objective: Which loss.
        settings: Its options.
        adapters: Adapters are trained, on a base that may be the reference.
        model: Architecture of the model that is trained.
        dtype: Type of the reference's weights.
        device: Where they go.
        chunk_tokens: Positions that go through the output layer together; 0 = as the device likes it.

    Raises:
        ConfigError: There is no reference, or one with another vocabulary.
        CheckpointError: It is missing or damaged.
    """
    if objective == "sft":
        return None
    check_reference(objective, settings, adapters=adapters)
    if objective == "orpo" or settings.reference_model is None:
        return Preference(objective, settings, chunk_tokens=chunk_tokens)
    reference = load_model(settings.reference_model, dtype=dtype, device=device).requires_grad_(False)
    if reference.config.vocab_size != model.vocab_size:
        raise ConfigError(
            f"reference_model must have the vocabulary of the model, {model.vocab_size} tokens, but has "
            f"{reference.config.vocab_size}."
        )
    return Preference(objective, settings, reference, chunk_tokens)


def _token_loss(outcome: Outcome, good: LogProbs, divergence: Tensor, scale: float) -> TokenLoss:
    """The outcome as the loop takes it; likelihood and accuracy are those of the good answers."""
    total = outcome.losses_P.sum()
    counts = [len(outcome.losses_P), len(outcome.good_P), len(outcome.bad_P)]
    sums = [outcome.good_P.sum(), outcome.bad_P.sum(), outcome.right, divergence]
    return TokenLoss(
        scaled=total * scale,
        total=total.detach(),
        nll=-good.total_B.detach().sum(),
        correct=good.correct_B.sum(),
        tokens=int(good.count_B.sum()),
        rewards=torch.stack([*total.new_tensor(counts), *(each.detach().float() for each in sums)]).double(),
    )


def _by_corpus(good: LogProbs, corpus_P: Tensor, corpora: int) -> Tensor:
    """Negative log-likelihood and trained positions of good answers, by corpus."""
    sums_P2 = torch.stack([-good.total_B.detach(), good.count_B], dim=1).double()
    return sums_P2.new_zeros(corpora, 2).index_add(0, corpus_P, sums_P2)


def dpo(good: LogProbs, bad: LogProbs, old_good: LogProbs, old_bad: LogProbs, settings: PreferenceConfig) -> Outcome:
    """Direct preference optimisation, in the form that `dpo_loss` names.

    Args:
        good: Better answers under the policy.
        bad: Worse ones.
        old_good, old_bad: The same under the reference.
        settings: Options.
    """
    good_P, bad_P = good.total_B - old_good.total_B, bad.total_B - old_bad.total_B
    margin_P = settings.dpo_beta * (good_P - bad_P)
    flipped = settings.dpo_label_smoothing
    if settings.dpo_loss == "sigmoid":
        losses_P = -F.logsigmoid(margin_P)
    elif settings.dpo_loss == "hinge":
        losses_P = torch.relu(1 - margin_P)
    elif settings.dpo_loss == "robust":
        losses_P = ((flipped - 1) * F.logsigmoid(margin_P) + flipped * F.logsigmoid(-margin_P)) / (1 - 2 * flipped)
    else:
        # by the token, as the authors of IPO say (Azar et al. 2023, equation 17)
        difference_P = good_P / good.count_B - bad_P / bad.count_B
        losses_P = (difference_P - 1 / (2 * settings.dpo_beta)).square()
    if settings.dpo_sft_weight:
        losses_P = losses_P - settings.dpo_sft_weight * good.mean_B
    return _paired(losses_P, settings.dpo_beta * good_P, settings.dpo_beta * bad_P)


def orpo(good: LogProbs, bad: LogProbs, settings: PreferenceConfig) -> Outcome:
    """Likelihood of the better answer, by the token, and the odds ratio of the two; no reference."""
    odds_P = good.mean_B - bad.mean_B - (_log1mexp(good.mean_B) - _log1mexp(bad.mean_B))
    losses_P = -good.mean_B - settings.orpo_beta * F.logsigmoid(odds_P)
    return _paired(losses_P, settings.orpo_beta * good.mean_B, settings.orpo_beta * bad.mean_B)


def kto(ratio_P: Tensor, good_P: Tensor, divergence: Tensor, settings: PreferenceConfig) -> Outcome:
    """Kahneman-Tversky optimisation.

    Args:
        ratio_P: Log-probability of each answer less that under the reference.
        good_P: Whether it is a good one.
        divergence: Of the policy from the reference, as answers to other questions show it; no gradient.
        settings: Options.
    """
    beta = settings.kto_beta
    sign_P = good_P.float() * 2 - 1
    weight_P = torch.where(good_P, settings.kto_desirable_weight, settings.kto_undesirable_weight)
    losses_P = weight_P * (1 - torch.sigmoid(beta * sign_P * (ratio_P - divergence)))
    rewards_P = beta * ratio_P.detach()
    return Outcome(losses_P, rewards_P[good_P], rewards_P[~good_P], (rewards_P * sign_P > 0).sum())


def _paired(losses_P: Tensor, good_P: Tensor, bad_P: Tensor) -> Outcome:
    return Outcome(losses_P, good_P.detach(), bad_P.detach(), (good_P > bad_P).sum())


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) of x < 0, exact on both sides of -log 2."""
    return torch.where(x < -math.log(2), torch.log1p(-x.exp()), torch.log(-torch.expm1(x)))


def sequence_log_probs(model: Transformer, batch: Batch, chunk_tokens: int = 0) -> LogProbs:
    """Log-probabilities of the labels of each row; see `token_loss` for `chunk_tokens`."""
    memory_BSD = None
    if batch.src_BS is not None:
        memory_BSD = model.encode(batch.src_BS, batch.src_mask_BS, features_BSF=batch.features_BSF)
    hidden_BTD = model.decode(batch.tgt_BT, memory_BSD, batch.src_mask_BS)
    return label_log_probs(
        hidden_BTD,
        batch.labels_BT,
        model.logits,
        output_parameters(model),
        vocab_size=model.config.vocab_size,
        chunk_tokens=chunk_tokens,
    )


def rows_of(batch: Batch, keep_B: Tensor) -> Batch:
    """The rows of a batch where `keep_B` is True."""
    tensors = {each.name: getattr(batch, each.name) for each in fields(batch)}
    kept: dict[str, Any] = {name: tensor[keep_B] for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    return replace(batch, **kept)


@contextmanager
def as_reference(model: Transformer) -> Iterator[None]:
    """Inside, the model is the one that its adapters were put on, without dropout."""
    training = model.training
    model.eval()
    for module in model.modules():
        if isinstance(module, Int8Linear):
            module.train(training)  # what it multiplies in is no difference to the policy
    try:
        with without_adapters(model):
            yield
    finally:
        model.train(training)
