"""Options of `onmt_llm_eval`."""

from __future__ import annotations

from onmt_llm.config.integrity import IntegrityConfig
from onmt_llm.config.section import Section
from onmt_llm.config.translate import EngineConfig


class MeasureConfig(Section):
    """What is measured."""

    model: str | None = None
    """Checkpoint directory, or CTranslate2 release."""
    src: str | None = None
    """Texts of a language model, or sources, one a line; `-` = standard input."""
    tgt: str | None = None
    """Answers to the sources, one a line: their perplexity is then measured, given the sources."""
    output: str | None = None
    """File of the figures of each line: perplexity, log probability and number of tokens, tab-separated."""


class EvalConfig(Section):
    """Measure a model."""

    measure: MeasureConfig = MeasureConfig()
    engine: EngineConfig = EngineConfig()
    integrity: IntegrityConfig = IntegrityConfig()
