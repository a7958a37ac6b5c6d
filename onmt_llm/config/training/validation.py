"""Validation during training, and early stopping."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from onmt_llm.config.numbers import BeamSize, CountOrZero, Length
from onmt_llm.config.section import Section

_OWN_CRITERIA = ("ppl", "accuracy", "loss", "reward_accuracy")


class ValidationConfig(Section):
    """Validation during training, and early stopping."""

    valid_metrics: list[str] = Field(default_factory=list)
    """Metrics of generated translations: BLEU, CHRF, TER, the others of `scorers.py`, and those of plug-ins."""
    valid_beam_size: BeamSize = 1
    """Beam size of these translations; 1 = greedy."""
    valid_max_length: Length = 250
    """Maximum length of these translations, in tokens."""
    dump_preds: str | None = None
    """Folder for the translations of each validation (`preds.valid_step_<N>.txt`) and the references."""
    scoring_debug: bool = False
    """Also write source, reference and prediction side by side: `debug.valid_step_<N>.txt`."""
    early_stopping: CountOrZero = 0
    """Stop after this many validations without improvement; 0 = off."""
    early_stopping_criteria: list[str] = Field(default_factory=lambda: ["ppl"])
    """Criteria that must improve: `ppl`, `accuracy`, `loss`, `reward_accuracy`, or any of `valid_metrics`. With
    several, all must improve. (OpenNMT-py's default is `[ppl, accuracy]`.)"""

    @field_validator("valid_metrics")
    @classmethod
    def _upper(cls, names: list[str]) -> list[str]:
        return list(dict.fromkeys(name.upper() for name in names))

    @field_validator("early_stopping_criteria")
    @classmethod
    def _criteria(cls, names: list[str]) -> list[str]:
        if not names:
            raise ValueError("must name at least one criterion, but is empty")
        return list(dict.fromkeys(name if name in _OWN_CRITERIA else name.upper() for name in names))

    @model_validator(mode="after")
    def _check(self) -> ValidationConfig:
        unknown = [n for n in self.early_stopping_criteria if n not in (*_OWN_CRITERIA, *self.valid_metrics)]
        if unknown:
            raise ValueError(
                f"early_stopping_criteria must be {', '.join(_OWN_CRITERIA)} or among valid_metrics, but is "
                f"{', '.join(unknown)}"
            )
        return self
