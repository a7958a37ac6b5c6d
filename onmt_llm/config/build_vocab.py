"""Options of `onmt_llm_build_vocab`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from onmt_llm.config.data import DataConfig, VocabularyConfig
from onmt_llm.config.model import Task
from onmt_llm.config.numbers import LayerCount, Seed, Workers
from onmt_llm.config.section import Section
from onmt_llm.config.task import TaskDecision, decide_task
from onmt_llm.config.train import AUTO


class CountingConfig(Section):
    """Counting of tokens, and learning of subword models."""

    num_threads: Workers = 1
    """Processes that transform and count; the output does not depend on their number."""
    learn_subwords: bool = False
    """First train a subword model (of the type named in `transforms`) on the text before tokenisation."""
    learn_subwords_size: Annotated[int, Field(ge=1, le=10**7)] = 32000
    """Vocabulary size of a new SentencePiece model, or number of merges of a new BPE model."""
    model_task: Task | None = None
    """Language models have one vocabulary for both sides. null = translation if `encoder_layers` is above 0, a corpus
    has a `path_tgt`, or `tgt_vocab` is set; else a language model."""
    encoder_layers: LayerCount | None = None
    """Number of encoder blocks of the future model; 0 = a language model."""
    train_from: str | None = None
    """Checkpoint that will get the vocabulary (`update_vocab`): it determines the task. `auto` has no effect."""
    seed: Seed = -1
    """Seed of random transforms; -1 = 0."""
    log_file: str | None = None
    """File that receives a copy of the log."""


class VocabConfig(Section):
    """Count the tokens of the transformed corpora and write vocabulary files."""

    corpora: DataConfig = DataConfig()
    vocabulary: VocabularyConfig = VocabularyConfig()
    counting: CountingConfig = CountingConfig()

    def decide_task(self) -> TaskDecision:
        """Decide the task of the model, as in training.

        Raises:
            ValueError: The options contradict each other, or leave the task open.
        """
        counting = self.counting
        return decide_task(counting.model_task, counting.encoder_layers, self.corpora.data, self.vocabulary.tgt_vocab)

    @model_validator(mode="after")
    def _check(self) -> VocabConfig:
        if self.counting.train_from in (None, AUTO):
            self.decide_task()
        return self
