"""`Where`: conditions on the fields of a record."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from typing import Any

from onmt_llm.data.selection.fields import MISSING, value_at
from onmt_llm.errors import ConfigError
from onmt_llm.log import logger

Matcher = Callable[[Any], bool]

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True)
class _Field:
    """The conditions on one field: at least one of `accepted` must hold, if there are any, and none of `refused`."""

    name: str
    accepted: tuple[Matcher, ...]
    refused: tuple[Matcher, ...]

    def holds(self, value: Any) -> bool:
        values = value if isinstance(value, list) else [value]
        if any(test(each) for test in self.refused for each in values):
            return False
        return not self.accepted or any(test(each) for test in self.accepted for each in values)


class Where:
    """The conditions of a corpus (`where`), all of which a record must meet.

    Args:
        corpus: Its name, for messages.
        conditions: The patterns for each field.

    Raises:
        ConfigError: A field has no pattern, or a comparison has no number.
    """

    def __init__(self, corpus: str, conditions: Mapping[str, Sequence[str]]) -> None:
        self._corpus = corpus
        self._noted: set[str] = set()
        self._fields = [_field(corpus, name, condition) for name, condition in conditions.items()]

    def __bool__(self) -> bool:
        return bool(self._fields)

    def __call__(self, item: Mapping[str, Any], where: str) -> bool:
        """Whether a record meets the conditions; a field that it lacks matches no pattern.

        Args:
            item: The record.
            where: Its place, for the warning about the first record without a field.
        """
        for field in self._fields:
            value = value_at(item, field.name)
            if value is MISSING:
                self._note_missing(field, where)
                value = []
            if not field.holds(value):
                return False
        return True

    def _note_missing(self, field: _Field, where: str) -> None:
        if field.name not in self._noted:
            self._noted.add(field.name)
            logger.warning(
                "Corpus '%s' has records without the field '%s' of `where`, which are %s: %s ...",
                *(self._corpus, field.name, "dropped" if field.accepted else "kept", where),
            )


def _field(corpus: str, name: str, patterns: Sequence[str]) -> _Field:
    if not patterns:
        raise ConfigError(f"`where` of corpus '{corpus}' must give '{name}' at least one pattern, but gives none.")
    accepted = tuple(_test(corpus, name, text) for text in patterns if not text.startswith("!"))
    refused = tuple(_test(corpus, name, text[1:]) for text in patterns if text.startswith("!"))
    return _Field(name, accepted, refused)


def _test(corpus: str, name: str, pattern: str) -> Matcher:
    sign = next((sign for sign in _COMPARISONS if pattern.startswith(sign)), None)
    if sign is None:
        matches = re.compile(translate(pattern)).match
        return lambda value: matches(_plain(value)) is not None
    compare = _COMPARISONS[sign]
    try:
        limit = float(pattern.removeprefix(sign))
    except ValueError as error:
        raise ConfigError(
            f"`where` of corpus '{corpus}' must have a number after '{sign}', but '{name}' has {pattern!r}."
        ) from error
    return lambda value: (number := _number(value)) is not None and compare(number, limit)


def _plain(value: Any) -> str:
    """Text as it is; other values as JSON writes them: `true`, `3`, `null`."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
