"""What happened to the examples of a corpus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass
class CorpusCounts:
    """Examples and tokens of one corpus so far; `read + made == kept + sum(dropped.values())`.

    Attributes:
        read: Examples read.
        made: Examples that transforms made beyond one for each that they were given.
        kept: Examples that became part of a batch.
        dropped: Examples left out, by reason; those that became a part of another are `merged`.
        truncated: Examples that a transform cut short.
        tokens: Tokens of the kept examples, padding apart.
        trained: Tokens that the loss counts.
        unknown: Tokens that are not in the vocabulary.
    """

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    trained: int = 0
    unknown: int = 0
    made: int = 0
    truncated: int = 0

    def add(self, other: CorpusCounts) -> None:
        """Count what another process, or another part of the corpus, has counted."""
        for each in fields(self):
            value = getattr(other, each.name)
            if isinstance(value, Counter):
                getattr(self, each.name).update(value)
            else:
                setattr(self, each.name, getattr(self, each.name) + value)

    def to_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "dropped": dict(self.dropped)}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> CorpusCounts:
        return cls(**{**saved, "dropped": Counter(saved["dropped"])})

    def summary(self) -> str:
        """One line for people."""
        reasons = ", ".join(f"{reason} {number}" for reason, number in sorted(self.dropped.items())) or "none"
        unknown = f", {self.unknown} unknown ({_percent(self.unknown, self.tokens)})" if self.unknown else ""
        trained = f"{self.trained} trained ({_percent(self.trained, self.tokens)})"
        made = f", made {self.made} more" if self.made else ""
        truncated = f", truncated {self.truncated}" if self.truncated else ""
        what = f"read {self.read}{made}, kept {self.kept}{truncated}, dropped: {reasons}"
        return f"{what}; {self.tokens} tokens, {trained}{unknown}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.2f}%"
