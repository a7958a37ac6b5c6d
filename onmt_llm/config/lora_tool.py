"""Options of `onmt_llm_lora`."""

from __future__ import annotations

from typing import Literal

from onmt_llm.config.card import CardOptions
from onmt_llm.config.integrity import IntegrityConfig
from onmt_llm.config.model import Dtype
from onmt_llm.config.section import Section


class LoraToolOptions(Section):
    """The adapter, its base model and what to do with them."""

    action: Literal["merge", "concat", "import", "export"] = "merge"
    """`merge`: merge the adapter into the weights of the base, or expanded blocks (`expand_type: concat`) into the
    original ones (an approximation). `concat`: write base and adapter side by side into one checkpoint. `import`:
    convert a peft adapter (a folder with `adapter_config.json`) to a checkpoint. `export`: convert a checkpoint to a
    peft adapter."""
    base_model: str | None = None
    """Checkpoint that the adapter was trained on. `export`: base model for peft to load, a name or a folder."""
    lora_weights: str | None = None
    """Checkpoint of the adapter or the expanded blocks; `import`: folder of the peft adapter."""
    output: str | None = None
    """Checkpoint directory to write; `export`: folder of the peft adapter."""
    dtype: Dtype | None = None
    """`merge`: type of the written weights; null = that of the base. bf16 partly rounds away the small changes of a
    short run, and a warning says so; fp32 keeps them."""
    force: bool = False
    """Replace an existing output."""


class LoraToolConfig(Section):
    """Merge a LoRA adapter or expanded blocks into the base model; import and export peft adapters."""

    adapters: LoraToolOptions = LoraToolOptions()
    card: CardOptions = CardOptions()
    integrity: IntegrityConfig = IntegrityConfig()
