"""Optimiser, learning-rate schedule and gradient clipping."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from onmt_llm.config.numbers import Count, CountOrZero, Fraction, FractionBelowOne, Positive, PositiveOrZero, Width
from onmt_llm.config.section import Section


class OptimConfig(Section):
    """Optimiser, learning-rate schedule, gradient clipping and EMA."""

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
    """Optimiser. `fusedadam` = NVIDIA apex's if installed, else torch's fused AdamW. `muon` and `galore` apply to the
    matrices of the blocks; all other weights use AdamW."""
    learning_rate: Annotated[float, Field(gt=0, le=1000)] = 1e-4
    """Learning rate; for `noam`, `noamwd` and `rsqrt`, the factor of the formula."""
    decay_method: Literal["none", "noam", "noamwd", "rsqrt", "cosine", "linear"] = "none"
    """Learning-rate schedule."""
    warmup_steps: CountOrZero = 0
    """Warm-up: steps over which the learning rate rises."""
    start_decay_steps: CountOrZero | None = None
    """`decay_method: none`: from this step on, multiply by `learning_rate_decay` every `decay_steps`; null = never."""
    decay_steps: Count = 10000
    """`decay_method: none`: steps between two decays."""
    learning_rate_decay: Annotated[float, Field(gt=0, le=1)] = 0.5
    """`decay_method: none`: factor of each decay."""
    min_learning_rate: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """`cosine` and `linear`: final learning rate."""
    adam_beta1: FractionBelowOne = 0.9
    """Decay of the running mean of gradients (first moment)."""
    adam_beta2: FractionBelowOne = 0.999
    """Decay of the running mean of squared gradients (second moment)."""
    adam_eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """Term added to the denominator of Adam for numerical stability."""
    adagrad_accumulator_init: PositiveOrZero = 0.0
    """`adagrad`: initial value of the sums of squared gradients."""
    muon_momentum: FractionBelowOne = 0.95
    """`muon`: momentum."""
    galore_rank: Width = 128
    """`galore`: rank of the gradient projection."""
    galore_gap: Count = 200
    """`galore`: steps between two updates of the projection, each of which takes a singular value decomposition."""
    galore_scale: Positive = 0.25
    """`galore`: scale of the projected updates."""
    loraplus_lr_ratio: Positive = 1.0
    """LoRA+ (Hayou et al. 2024): the B matrices of adapters use `learning_rate` times this; 16 is usual."""
    weight_decay: PositiveOrZero = 0.0
    """Decoupled weight decay; not applied to biases, norms and embeddings."""
    max_grad_norm: PositiveOrZero = 5.0
    """Clip the gradient norm to this value; 0 = off."""
    label_smoothing: FractionBelowOne = 0.0
    """Label smoothing: probability spread evenly over the vocabulary. Applies to the training loss only."""
    loss_scale: PositiveOrZero = 0.0
    """`model_dtype: fp16`: static loss scale; 0 = dynamic."""
    average_decay: Fraction = 0.0
    """EMA of the weights, saved as `<save_model>_step_<N>_ema`: share of the current weights in each update of the
    average. 0 = off; 1e-4 is a good start."""
    average_every: Count = 1
    """Steps between two updates of that average."""
