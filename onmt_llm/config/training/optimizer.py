"""Optimiser and learning-rate schedule."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from onmt_llm.config.numbers import Count, CountOrZero, Fraction, FractionBelowOne, Positive, PositiveOrZero, Width
from onmt_llm.config.section import Section


class OptimConfig(Section):
    """Optimiser, learning rate and what happens to the gradient."""

    optim: Literal[
        "sgd",
        "adagrad",
        "adadelta",
        "adam",
        "adamw",
        "adafactor",
        "lion",
        "muon",
        "galore",
        "fusedadam",
        "adamw8bit",
        "pagedadamw8bit",
        "pagedadamw32bit",
        "lion8bit",
        "pagedlion8bit",
    ] = "adamw"
    """Optimiser; `fusedadam` is NVIDIA apex's where it is installed, else torch's fused AdamW. `muon` and `galore`
    treat the matrices of the blocks in their way and all other weights in AdamW's."""
    learning_rate: Annotated[float, Field(gt=0, le=1000)] = 1e-4
    """Learning rate, or the factor of the `noam`, `noamwd` and `rsqrt` formulas."""
    decay_method: Literal["none", "noam", "noamwd", "rsqrt", "cosine", "linear"] = "none"
    """Course of the learning rate over the steps."""
    warmup_steps: CountOrZero = 0
    """Steps over which the learning rate rises."""
    start_decay_steps: CountOrZero | None = None
    """`decay_method: none`: from this step on, multiply by `learning_rate_decay` every `decay_steps`; null = never."""
    decay_steps: Count = 10000
    """`decay_method: none`: steps between two decays."""
    learning_rate_decay: Annotated[float, Field(gt=0, le=1)] = 0.5
    """`decay_method: none`: factor of one decay."""
    min_learning_rate: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """`cosine` and `linear` end here."""
    adam_beta1: FractionBelowOne = 0.9
    """Decay of the running mean of gradients."""
    adam_beta2: FractionBelowOne = 0.999
    """Decay of the running mean of squared gradients."""
    adam_eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """Added to the denominator of Adam's step."""
    adagrad_accumulator_init: PositiveOrZero = 0.0
    """`adagrad`: what the sums of squared gradients begin with."""
    muon_momentum: FractionBelowOne = 0.95
    """`muon`: decay of the running mean of gradients."""
    galore_rank: Width = 128
    """`galore`: rank that the gradients of matrices are projected to."""
    galore_gap: Count = 200
    """`galore`: updates between two bases of that projection; each takes a singular value decomposition."""
    galore_scale: Positive = 0.25
    """`galore`: factor of the projected updates."""
    loraplus_lr_ratio: Positive = 1.0
    """The B matrices of adapters learn at this times `learning_rate` (LoRA+, Hayou et al. 2024); 16 is usual."""
    weight_decay: PositiveOrZero = 0.0
    """Decoupled weight decay; biases, norms and embeddings are spared."""
    max_grad_norm: PositiveOrZero = 5.0
    """Clip the gradient to this norm; 0 = off."""
    label_smoothing: FractionBelowOne = 0.0
    """Share of the target that is spread evenly over the whole vocabulary; only the training loss is smoothed."""
    loss_scale: PositiveOrZero = 0.0
    """`model_dtype: fp16`: fixed loss scale; 0 = dynamic."""
    average_decay: Fraction = 0.0
    """Weight of the present weights in a running average, saved as `<save_model>_step_<N>_ema`; 0 = off, try 1e-4."""
    average_every: Count = 1
    """Updates between two contributions to that average."""
