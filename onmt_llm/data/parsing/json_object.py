"""Parse one JSON object strictly: ambiguous input (such as repeated keys) is refused."""

from __future__ import annotations

import json
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


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    item = dict(pairs)
    if len(item) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"has the key '{next(key for key in keys if keys.count(key) > 1)}' twice")
    return item


def _constant(name: str) -> Any:
    raise ValueError(f"is not JSON: {name} is not a JSON number")
