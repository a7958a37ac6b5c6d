"""The training objective: likelihood with label smoothing, other terms or guided alignment, or a preference loss.

Shapes: B examples, T target positions, S source positions, M aligned pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from onmt_llm.config.data import CorpusConfig
from onmt_llm.config.learning import LossConfig
from onmt_llm.config.model import ModelConfig
from onmt_llm.data.batching.batch import Batch
from onmt_llm.errors import ConfigError
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.losses.terms import Term
from onmt_llm.training.losses.token_loss import TokenLoss


@dataclass(frozen=True)
class GuidedAlignment:
    """Cross-attention trained on word alignments (Garg et al. 2019).

    Attributes:
        weight: Factor of the term in the loss.
        layer: Decoder layer, counted from 0.
        heads: Heads that are averaged; 0 = all.
        full_context: The attention sees the whole target.
    """

    weight: float
    layer: int
    heads: int = 0
    full_context: bool = False


class BatchLoss(Protocol):
    """A loss that replaces the likelihood."""

    def __call__(self, model: Transformer, batch: Batch, scale: float, corpora: int) -> TokenLoss:
        """Loss of `model` on `batch`.

        Args:
            model: The model.
            batch: The batch.
            scale: Factor of the gradient, for float16.
            corpora: Number of corpora whose likelihoods are summed separately; 0 = none.
        """


@dataclass(frozen=True)
class Objective:
    """What is minimised.

    Attributes:
        label_smoothing: Share of the target spread over the vocabulary (Szegedy et al. 2016).
        terms: Additional terms, such as a language model as prior.
        alignment: Guided alignment, as an additional term for batches with alignments.
        balance: Weight of the load-balancing loss of a mixture of experts.
        divergence: Weight of the divergence loss of expanded blocks.
        chunk_tokens: Positions that go through the output layer together; 0 = the device's default.
        preference: A preference loss instead of the likelihood.
    """

    label_smoothing: float = 0.0
    terms: tuple[Term, ...] = ()
    alignment: GuidedAlignment | None = None
    balance: float = 0.0
    divergence: float = 0.0
    chunk_tokens: int = 0
    preference: BatchLoss | None = None

    @property
    def for_validation(self) -> Objective:
        """The objective of validation: the likelihood, or the preference loss."""
        return Objective(preference=self.preference, chunk_tokens=self.chunk_tokens)


LIKELIHOOD = Objective()
"""The likelihood alone, as in validation."""


def alignment_loss(attention_BTS: Tensor, align_M3: Tensor) -> Tensor:
    """Summed cross-entropy of attention against alignments; an aligned token's weight is shared by its partners.

    Args:
        attention_BTS: Attention of each label's position to the source.
        align_M3: (row, label, source) of each aligned pair.
    """
    row_M, label_M, source_M = align_M3.unbind(1)
    ones_M = torch.ones_like(row_M, dtype=torch.float32)
    partners_BT = ones_M.new_zeros(attention_BTS.shape[:2]).index_put((row_M, label_M), ones_M, accumulate=True)
    logp_M = attention_BTS[row_M, label_M, source_M].float().clamp(min=1e-18).log()
    return -(logp_M / partners_BT[row_M, label_M]).sum()


def open_alignment(
    objective: LossConfig, model: ModelConfig, corpora: Mapping[str, CorpusConfig]
) -> GuidedAlignment | None:
    """The guided alignment of the options; None if its weight is 0.

    Args:
        objective: The options.
        model: Architecture of the model.
        corpora: The training corpora.

    Raises:
        ConfigError: The model has no such layer or heads, or a corpus has no alignments.
    """
    if not objective.lambda_align:
        return None
    layer, heads, layers = objective.alignment_layer, objective.alignment_heads, model.decoder_layers
    if model.is_decoder_only:
        raise ConfigError("lambda_align must be 0 for a language model, which has no source to align with.")
    if not -layers <= layer < layers:
        raise ConfigError(
            f"alignment_layer must be one of the decoder's {layers} layers, from {-layers} to {layers - 1}, "
            f"but is {layer}."
        )
    if heads > model.heads:
        raise ConfigError(f"alignment_heads must be at most heads, {model.heads}, but is {heads}.")
    missing = [name for name, corpus in corpora.items() if not corpus.path_align]
    if missing:
        raise ConfigError(f"lambda_align needs a path_align in every corpus, but {', '.join(missing)} has none.")
    return GuidedAlignment(objective.lambda_align, layer % layers, heads, objective.full_context_alignment)
