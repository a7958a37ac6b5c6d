"""Options of the model card, which exports and releases have."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from onmt_llm.config.section import Names, Section


class CardOptions(Section):
    """Facts for the model card (`README.md`) that no file of the model has."""

    license: str | None = None
    """Licence of the model, by the Hugging Face Hub's identifier (`apache-2.0`); null = the card names none."""
    language: Names[Annotated[str, Field(pattern="^[a-z]{2,3}$")]] = Field(default_factory=list)
    """Languages of the model, by their ISO 639 codes (`en`, `de`); empty = those of a multilingual model."""
    hub_base: Annotated[str, Field(pattern=r"^[\w.-]+(/[\w.-]+)?$")] | None = None
    """Name of the base model on the Hugging Face Hub (`HuggingFaceTB/SmolLM2-135M-Instruct`); null = the card describes
    the base only in words."""


NOTHING_TO_ADD = CardOptions()
