"""Options of `onmt_llm_build_vocab`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from onmt_llm.config.data import DataConfig, VocabularyConfig
from onmt_llm.config.section import Section


class CountingConfig(Section):
    """How tokens are counted, and subwords learnt before that."""

    num_threads: int = Field(1, ge=1)
    """Processes that transform and count; the files are the same whatever their number."""
    learn_subwords: bool = False
    """First learn a subword model (of the kind that `transforms` names) on the text before its tokeniser."""
    learn_subwords_size: int = Field(32000, ge=1)
    """Pieces of a new SentencePiece model, or merges of a new BPE model."""
    model_task: Literal["lm", "seq2seq"] | None = None
    """A language model has one vocabulary for both sides; null = as `encoder_layers` says, else the corpora."""
    encoder_layers: int | None = None
    """Of the model to come: 0 = a language model."""
    seed: int = -1
    """Seed of random transforms; -1 = 0."""
    log_file: str | None = None
    """Copy of the log."""


class VocabJobConfig(Section):
    """Count the tokens of the transformed corpora, and write vocabulary files."""

    corpora: DataConfig = DataConfig()
    vocabulary: VocabularyConfig = VocabularyConfig()
    counting: CountingConfig = CountingConfig()
