"""The result of translating a user's options."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Translation:
    """A user's options in our names and values.

    Attributes:
        values: Values by our option names. A value may be part of a mapping, to be merged (`rope`).
        sources: For each of our options, the user's key that it came from, for messages.
        notes: (user's key, sentence) of options without effect, to be logged.
        errors: (user's key, sentence) of options that are refused.
    """

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    notes: list[tuple[str, str]] = field(default_factory=list)
    errors: list[tuple[str, str]] = field(default_factory=list)

    def put(self, option: str, value: Any, source: str) -> None:
        """Set an option, from the user's key `source`; mappings are merged."""
        if isinstance(value, dict) and isinstance(self.values.get(option), dict):
            value = {**self.values[option], **value}
        self.values[option] = value
        self.sources.setdefault(option, source)

    def put_default(self, option: str, value: Any, source: str) -> None:
        """Set an option unless it is set already."""
        if option not in self.values:
            self.put(option, value, source)
