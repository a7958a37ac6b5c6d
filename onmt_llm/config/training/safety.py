"""How checkpoints are saved, the time limit of a run, and loss spikes."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from onmt_llm.config.numbers import INT32, Positive
from onmt_llm.config.section import Section

_UNITS = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?")
_CLOCK = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+):(\d\d)")
_SECONDS = (86400.0, 3600.0, 60.0, 1.0)


def seconds(text: str) -> float:
    """Seconds in `90`, `45m`, `11h30m`, `2d`, `23:30:00`.

    Raises:
        ValueError: The text is none of these, or the time is not positive.
    """
    match = _CLOCK.fullmatch(text.strip()) or _UNITS.fullmatch(text.strip().replace(" ", ""))
    total = sum(float(part or 0) * unit for part, unit in zip(match.groups(), _SECONDS, strict=True)) if match else 0.0
    if total <= 0:
        raise ValueError(f"must be a time such as 11h30m, 23:30:00 or 3600 (seconds), but is '{text}'")
    return total


class SafetyConfig(Section):
    """How checkpoints are saved, time limit and loss spikes."""

    save_async: bool = True
    """Copy the state to main memory and write it in the background; without memory for the copy, training waits."""
    save_best: bool = False
    """Save a checkpoint after each validation that is the best so far (by `early_stopping_criteria`), and never delete
    the best one."""
    max_time: str | None = None
    """Save and stop after this time since the start of the command: `11h30m`, `23:30:00`, or seconds."""
    spike_action: Literal["none", "warn", "rollback"] = "none"
    """On a loss spike: do nothing, warn, or roll back to the last checkpoint and skip the data since."""
    spike_threshold: Positive = 6.0
    """A loss spike is this many standard deviations above the mean loss of the last `spike_window` steps."""
    spike_window: Annotated[int, Field(ge=10, le=INT32)] = 100
    """Number of preceding steps that a loss is compared with; detection starts after half as many."""

    @field_validator("max_time", mode="before")
    @classmethod
    def _time(cls, value: Any) -> Any:
        if value is None:
            return None
        text = str(value)
        seconds(text)
        return text

    @property
    def max_seconds(self) -> float | None:
        return None if self.max_time is None else seconds(self.max_time)
