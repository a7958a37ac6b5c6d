"""Options of `onmt_llm_data`: those of a training run, and those of its actions."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from onmt_llm.config.numbers import Workers
from onmt_llm.config.section import Section
from onmt_llm.config.train import TrainConfig


class InspectionConfig(Section):
    """Options of the `onmt_llm_data` actions."""

    num_threads: Workers = 1
    """Processes that read and tokenise; the result does not depend on their number."""
    engine: Literal["process", "ray"] = "process"
    """`pack`: where the files are tokenised: in `num_threads` processes, or on the CPUs of a Ray cluster. The shards
    are the same."""
    ray_address: str | None = None
    """`engine: ray`: address of the cluster; null = the environment variable `RAY_ADDRESS`, else a new one on this
    machine."""
    shards: list[str] = Field(default_factory=list)
    """`merge`, `verify`: folders of token shards."""
    output: str | None = None
    """`merge`: output folder."""
    export_as: Literal["record", "text"] = "text"
    """`export`: `text`: what the transforms before the tokeniser leave, as `text`, or as `prompt` and `answer`.
    `record`: the JSON objects or rows that training would use after all transforms, unchanged."""
    format: Literal["jsonl", "parquet"] = "jsonl"
    """`export`: format of the files; Parquet needs pyarrow."""


class DataToolConfig(TrainConfig):
    """Inspect the data of a training run or tokenise it in advance; takes the YAML file of `onmt_llm_train`."""

    look: InspectionConfig = InspectionConfig()
