"""Options of `onmt_llm_build_vocab`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from onmt_llm.config.data import DataConfig, VocabularyConfig
from onmt_llm.config.numbers import LayerCount, Seed, Workers
from onmt_llm.config.section import Section
from onmt_llm.config.task import Decision, Task, decide_task
from onmt_llm.config.training.start import AUTO


class CountingConfig(Section):
    """How tokens are counted, and subwords learnt before that."""

    num_threads: Workers = 1
    """Processes that transform and count; the files are the same whatever their number."""
    learn_subwords: bool = False
    """First learn a subword model (of the kind that `transforms` names) on the text before its tokeniser."""
    learn_subwords_size: Annotated[int, Field(ge=1, le=10**7)] = 32000
    """Pieces of a new SentencePiece model, or merges of a new BPE model."""
    model_task: Task | None = None
    """A language model has one vocabulary for both sides; null = translation where `encoder_layers` is above 0, a
    corpus has a `path_tgt`, or there is a `tgt_vocab`; else a language model."""
    encoder_layers: LayerCount | None = None
    """Of the model to come: 0 = a language model."""
    train_from: str | None = None
    """Checkpoint that is to get the vocabulary (`update_vocab`): it says what the model is. `auto` says nothing."""
    seed: Seed = -1
    """Seed of random transforms; -1 = 0."""
    log_file: str | None = None
    """Copy of the log."""


class VocabJobConfig(Section):
    """Count the tokens of the transformed corpora, and write vocabulary files."""

    corpora: DataConfig = DataConfig()
    vocabulary: VocabularyConfig = VocabularyConfig()
    counting: CountingConfig = CountingConfig()

    def decide_task(self) -> Decision:
        """What the model is for, as training decides it.

        Raises:
            ValueError: What is written contradicts itself, or leaves that open.
        """
        counting = self.counting
        return decide_task(counting.model_task, counting.encoder_layers, self.corpora.data, self.vocabulary.tgt_vocab)

    @model_validator(mode="after")
    def _check(self) -> VocabJobConfig:
        if self.counting.train_from in (None, AUTO):
            self.decide_task()
        return self
