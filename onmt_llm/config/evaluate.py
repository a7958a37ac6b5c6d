"""Options of `onmt_llm_eval`."""

from __future__ import annotations

from onmt_llm.config.integrity import IntegrityConfig
from onmt_llm.config.section import Section
from onmt_llm.config.translate import EngineConfig


class MeasureConfig(Section):
    """Model, texts and output of the evaluation."""

    model: str | None = None
    """Checkpoint directory or CTranslate2 release."""
    src: str | None = None
    """Texts for a language model, or source sentences, one per line; `-` = standard input."""
    tgt: str | None = None
    """Target sentences, one per line: measure their perplexity given `src`."""
    src_lang: str = ""
    """Language of `src`, by its code in a multilingual model; empty = the model's default."""
    tgt_lang: str = ""
    """Language of `tgt`, likewise."""
    output: str | None = None
    """File for the figures of each line: perplexity, log probability and number of tokens, tab-separated."""


class EvalConfig(Section):
    """Measure the perplexity of a model."""

    measure: MeasureConfig = MeasureConfig()
    engine: EngineConfig = EngineConfig()
    integrity: IntegrityConfig = IntegrityConfig()
