"""Extra terms of the training loss, and preference optimisation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from onmt_llm.config.numbers import HeadsOrAll, LayerIndex, Positive, PositiveOrZero
from onmt_llm.config.section import Section


class LossConfig(Section):
    """Extra terms of the training loss: a language-model prior and guided alignment."""

    lm_prior_model: str | None = None
    """Language model to use as a prior (Baziotis et al. 2020): a checkpoint or a CTranslate2 folder with the same
    target vocabulary."""
    lm_prior_lambda: PositiveOrZero = 0.0
    """Weight of the prior in the loss."""
    lm_prior_tau: Positive = 1.0
    """Temperature of both distributions in the prior term."""
    lambda_align: PositiveOrZero = 0.0
    """Weight of guided alignment (Garg et al. 2019) in the loss; needs alignments (`path_align`)."""
    alignment_layer: LayerIndex = -3
    """Decoder layer whose cross-attention is guided; negative = counted from the last, which is -1."""
    alignment_heads: HeadsOrAll = 0
    """Number of heads of that layer, from the first on, whose mean is guided; 0 = all."""
    full_context_alignment: bool = False
    """Let the guided attention see the whole target, in a second pass through its layer."""


class PreferenceConfig(Section):
    """Preference optimisation: `objective: dpo`, `orpo` and `kto`."""

    reference_model: str | None = None
    """`dpo`, `kto`: checkpoint of the reference model; null = the base of the adapters that are trained. Required when
    the whole model is trained; usually the same as `train_from`."""
    dpo_beta: Positive = 0.1
    """DPO's beta: smaller values let the model move further from the reference."""
    dpo_loss: Literal["sigmoid", "hinge", "ipo", "robust"] = "sigmoid"
    """Loss function: DPO (`sigmoid`), SLiC (`hinge`), IPO (`ipo`), or DPO that allows for wrong labels (`robust`)."""
    dpo_label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """`dpo_loss: robust`: expected fraction of pairs whose labels are swapped."""
    dpo_sft_weight: PositiveOrZero = 0.0
    """Weight of an additional loss term: the negative log-likelihood per token of the chosen answer."""
    orpo_beta: Positive = 0.1
    """`orpo`: weight of the odds-ratio term."""
    kto_beta: Positive = 0.1
    """`kto`: as `dpo_beta`."""
    kto_desirable_weight: PositiveOrZero = 1.0
    """`kto`: weight of desirable answers."""
    kto_undesirable_weight: PositiveOrZero = 1.0
    """`kto`: weight of undesirable answers. If one kind is much more frequent, the weights should compensate."""
