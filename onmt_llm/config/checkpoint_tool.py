"""Options of `onmt_llm_checkpoint`."""

from __future__ import annotations

from typing import Literal

from onmt_llm.config.integrity import IntegrityConfig
from onmt_llm.config.section import Section


class CheckpointOptions(Section):
    """Checkpoint and output of the action."""

    model: str | None = None
    """Checkpoint directory; `verify`, `seal`: also an adapter or a CTranslate2 release."""
    out_file: str | None = None
    """`extract_vocabulary`, `extract_embeddings`: text file to write, one token per line."""
    side: Literal["src", "tgt"] = "tgt"
    """`extract_vocabulary`, `extract_embeddings`: source or target side."""
    models: list[str] = []
    """`average`: checkpoints of one model to average."""
    output: str | None = None
    """`average`, `consolidate`, `export`: checkpoint directory to write."""
    fp32: bool = False
    """`average`: store the mean in float32, whatever the type of the models."""
    force: bool = False
    """`average`, `consolidate`, `export`: replace an existing output."""


class CheckpointToolConfig(Section):
    """Inspect a checkpoint (`info`, `verify`, `extract_vocabulary`, `extract_embeddings`), `seal` or `average` it;
    `consolidate` the parts that several processes have written, or `export` them without the training state."""

    checkpoint: CheckpointOptions = CheckpointOptions()
    integrity: IntegrityConfig = IntegrityConfig()
