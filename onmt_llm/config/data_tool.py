"""Options of `onmt_llm_data`: those of a training run, and those of its actions."""

from __future__ import annotations

from pydantic import Field

from onmt_llm.config.numbers import Workers
from onmt_llm.config.section import Section
from onmt_llm.config.train import TrainConfig


class InspectionConfig(Section):
    """Options of the `onmt_llm_data` actions."""

    num_threads: Workers = 1
    """Processes that read and tokenise; the result does not depend on their number."""
    shards: list[str] = Field(default_factory=list)
    """`merge`, `verify`: folders of token shards."""
    output: str | None = None
    """`merge`: output folder."""


class DataToolConfig(TrainConfig):
    """Inspect the data of a training run or tokenise it in advance; takes the YAML file of `onmt_llm_train`."""

    look: InspectionConfig = InspectionConfig()
