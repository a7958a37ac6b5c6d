"""Parse JSON objects strictly: ambiguous input (such as repeated keys) is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_KINDS = {
    "NoneType": "null",
    "bool": "true or false",
    "int": "a number",
    "float": "a number",
    "str": "text",
    "list": "a list",
    "dict": "an object",
}


def kind(value: Any) -> str:
    """The type of a JSON value, for messages."""
    return _KINDS[type(value).__name__]


def load_object(text: str) -> dict[str, Any]:
    """Parse a text as one JSON object.

    Raises:
        ValueError: It is anything else; the message continues "... must be one JSON object, but".
    """
    try:
        item = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    if not isinstance(item, dict):
        raise ValueError(f"is {kind(item)}")
    return item


def without_nulls(value: Any) -> Any:
    """A value of a table without the nulls in its objects, at any depth: in a column of objects each has the keys of
    all, and null for those that it lacks."""
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


def read_flag(turn: Mapping[str, Any]) -> bool | None:
    """The flag of a turn: `train` (Axolotl: true or false) or `weight` (OpenAI, TRL: 0 or 1); None = no flag.

    Raises:
        ValueError: It has another value; the message begins with a verb.
    """
    for key in ("train", "weight"):
        value = turn.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or (key == "weight" and value in (0, 1)):
            return bool(value)
        known = "true or false" if key == "train" else "0 or 1"
        raise ValueError(f"must have {known} as a turn's '{key}', but has {value!r}")
    return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    item = dict(pairs)
    if len(item) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"has the key '{next(key for key in keys if keys.count(key) > 1)}' twice")
    return item


def _constant(name: str) -> Any:
    raise ValueError(f"is not JSON: {name} is not a JSON number")
