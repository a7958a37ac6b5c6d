"""Additional terms of the likelihood, computed from the logits of each chunk; `TERMS` says how each is opened.

Three terms are of another kind, guided alignment, the load-balancing loss of experts and the divergence loss of
expanded blocks: they need more of the model than its logits, so `batch_loss` knows them by name.

Shapes: C positions of a chunk, V vocabulary.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from onmt_llm.config.learning import LossConfig
from onmt_llm.data.batching.batch import Batch
from onmt_llm.text.vocab import Vocab
from onmt_llm.training.losses.lm_prior import open_prior


class BatchTerm(Protocol):
    """A term for one batch."""

    def loss_and_gradient(self, logits_CV: Tensor, positions_C: Tensor) -> tuple[Tensor, Tensor]:
        """The term summed over a chunk (float32 scalar), and its gradient by the logits (C, V).

        Args:
            logits_CV: The model's logits, in its own dtype; they must stay as they are.
            positions_C: Flat indices of these positions in the batch's labels, all of them trained.
        """


class Term(Protocol):
    """A term, with its weight and whatever it computes with."""

    def __call__(self, batch: Batch) -> BatchTerm:
        """The term for a batch."""


class OpenTerm(Protocol):
    """How a term is opened; see `open_terms`."""

    def __call__(self, settings: LossConfig, vocab: Vocab, device: torch.device, *, packed: bool) -> Term | None:
        """The term of the options; None if they ask for none."""


TERMS: tuple[OpenTerm, ...] = (open_prior,)


def open_terms(settings: LossConfig, vocab: Vocab, device: torch.device, *, packed: bool) -> tuple[Term, ...]:
    """The terms of the options.

    Args:
        settings: The options.
        vocab: Vocabulary of the trained model.
        device: Device of the logits.
        packed: Rows hold several documents that do not attend to each other.

    Raises:
        CheckpointError: A model that a term needs is missing.
        ConfigError: The options do not fit the model.
    """
    found = [open_term(settings, vocab, device, packed=packed) for open_term in TERMS]
    return tuple(term for term in found if term is not None)
