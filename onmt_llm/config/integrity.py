"""The option of every command that opens models."""

from __future__ import annotations

from onmt_llm.config.section import Section


class IntegrityConfig(Section):
    """What is done about damaged models."""

    ignore_damage: bool = False
    """Only warn of a checkpoint, adapter or release that is not as it was written, or whose weights are not finite; for
    what is to be rescued. A damaged model.bin of CTranslate2 is refused all the same."""
