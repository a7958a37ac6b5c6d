"""Dropout and noise during training."""

from __future__ import annotations

from pydantic import Field

from onmt_llm.config.numbers import CountOrZero, FractionBelowOne, PositiveOrZero
from onmt_llm.config.section import Section


class RegularizationConfig(Section):
    """Dropout and noise during training."""

    dropout: list[FractionBelowOne] = Field(default_factory=lambda: [0.0])
    """Dropout on residual branches; a list changes with `dropout_steps`."""
    attention_dropout: list[FractionBelowOne] = Field(default_factory=lambda: [0.0])
    """Dropout on attention weights; a list changes with `dropout_steps`."""
    dropout_steps: list[CountOrZero] = Field(default_factory=lambda: [0])
    """Updates at which the next value of the dropouts begins."""
    neftune_noise_alpha: PositiveOrZero = 0.0
    """Noise on the token embeddings while training: uniform, up to this / sqrt(tokens of the example x hidden_size)
    (NEFTune, Jain et al. 2024); 5 to 15 help in chat models, 0 = off."""
