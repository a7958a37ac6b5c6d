"""Terms of the training loss, and preference optimisation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from onmt_llm.config.numbers import HeadsOrAll, LayerIndex, Positive, PositiveOrZero
from onmt_llm.config.section import Section


class ObjectiveConfig(Section):
    """Further terms of the training loss: a language model as prior, word alignments as guide."""

    lm_prior_model: str | None = None
    """Language model with the same target vocabulary, whose opinion is a prior (Baziotis et al. 2020): a checkpoint, or
    a CTranslate2 folder."""
    lm_prior_lambda: PositiveOrZero = 0.0
    """Weight of the prior in the loss."""
    lm_prior_tau: Positive = 1.0
    """Temperature that both distributions are compared at."""
    lambda_align: PositiveOrZero = 0.0
    """Weight of guided alignment (Garg et al. 2019) in the loss; the corpora bring their alignments as `path_align`."""
    alignment_layer: LayerIndex = -3
    """Decoder layer whose attention to the source is guided; negative = counted from the last, which is -1."""
    alignment_heads: HeadsOrAll = 0
    """Heads of that layer that are guided, from the first on, by their mean; 0 = all."""
    full_context_alignment: bool = False
    """The guided attention sees the whole target, in a second pass through its layer."""


class PreferenceConfig(Section):
    """Learning from better and worse answers: `objective: dpo`, `orpo` and `kto`."""

    reference_model: str | None = None
    """Checkpoint that the model is kept near to (`dpo`, `kto`); null = the base of the adapters that are trained.
    Needed where the whole model is trained: usually the one that `train_from` begins with."""
    dpo_beta: Positive = 0.1
    """How near: the smaller, the further the model may go."""
    dpo_loss: Literal["sigmoid", "hinge", "ipo", "robust"] = "sigmoid"
    """Form of the loss: that of DPO, of SLiC, of IPO, or one that reckons with wrong labels."""
    dpo_label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """`dpo_loss: robust`: share of the pairs that are the wrong way round."""
    dpo_sft_weight: PositiveOrZero = 0.0
    """Weight of the likelihood of the better answer, by the token, as a further term."""
    orpo_beta: Positive = 0.1
    """Weight of the odds ratio beside the likelihood."""
    kto_beta: Positive = 0.1
    """As `dpo_beta`."""
    kto_desirable_weight: PositiveOrZero = 1.0
    """Weight of good answers."""
    kto_undesirable_weight: PositiveOrZero = 1.0
    """Weight of bad ones; with many more of one kind than of the other, the weights should make up for it."""
