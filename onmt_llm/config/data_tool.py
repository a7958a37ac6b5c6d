"""Options of `onmt_llm_data`: those of a training run, and how to look at its data."""

from __future__ import annotations

from pydantic import Field

from onmt_llm.config.numbers import Workers
from onmt_llm.config.section import Section
from onmt_llm.config.train import TrainConfig


class LookConfig(Section):
    """What `onmt_llm_data` does with the data."""

    num_threads: Workers = 1
    """Processes that read and tokenise; the result is the same whatever their number."""
    shards: list[str] = Field(default_factory=list)
    """`merge` and `verify`: folders of token shards."""
    output: str | None = None
    """`merge`: folder for all of them together."""


class DataToolConfig(TrainConfig):
    """Look at the data of a training run, or tokenise it beforehand: the YAML is that of `onmt_llm_train`."""

    look: LookConfig = LookConfig()
