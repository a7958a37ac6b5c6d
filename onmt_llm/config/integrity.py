"""The option of all commands that open models: what to do about damage."""

from __future__ import annotations

from onmt_llm.config.section import Section


class IntegrityConfig(Section):
    """Handling of damaged models."""

    ignore_damage: bool = False
    """Only warn if a checkpoint, adapter or release fails its checksums or contains non-finite weights; meant for
    rescuing models. A damaged model.bin of CTranslate2 is always rejected."""
