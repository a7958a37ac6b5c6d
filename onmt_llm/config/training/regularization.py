"""Dropout and embedding noise during training."""

from __future__ import annotations

from pydantic import Field

from onmt_llm.config.numbers import CountOrZero, FractionBelowOne, PositiveOrZero
from onmt_llm.config.section import Section


class RegularizationConfig(Section):
    """Dropout and embedding noise during training."""

    dropout: list[FractionBelowOne] = Field(default_factory=lambda: [0.0])
    """Dropout on residual branches; several values follow each other at `dropout_steps`."""
    attention_dropout: list[FractionBelowOne] = Field(default_factory=lambda: [0.0])
    """Dropout on attention weights; several values follow each other at `dropout_steps`."""
    dropout_steps: list[CountOrZero] = Field(default_factory=lambda: [0])
    """Steps at which the next value of `dropout` and `attention_dropout` takes effect."""
    neftune_noise_alpha: PositiveOrZero = 0.0
    """Add uniform noise of up to this / sqrt(tokens of the example x hidden_size) to the token embeddings (NEFTune,
    Jain et al. 2024). 5 to 15 help chat models; 0 = off."""
