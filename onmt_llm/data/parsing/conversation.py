"""Conversations: the messages of a JSON object, and what else its chat template sees."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from onmt_llm.data.parsing.json_object import kind, read_flag
from onmt_llm.data.spec import VARIABLES_KEY, Keys
from onmt_llm.errors import DataError
from onmt_llm.text.templates.message import Message

_CALLS = ("tool_calls", "function_call")
_FLAGS = ("train", "weight")
_LISTS = ("tools", "documents")


def read_messages(turns: Any, keys: Keys) -> list[Message]:
    """The messages of a conversation, with all of their fields.

    Raises:
        DataError: They have another form, or an unknown role; the message begins with a verb.
    """
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise DataError("must have a list of turns as its conversation")
    return [_message(turn, keys) for turn in turns]


def read_variables(item: Mapping[str, Any], inputs: Collection[str], keys: Keys) -> dict[str, Any]:
    """The values that an object has for the variables of a chat template.

    Args:
        item: The object. A variable is a key of its own or, with precedence, one of `VARIABLES_KEY`.
        inputs: Names of the variables that the template takes.
        keys: The keys that hold the parts of an example, which are no variables.

    Returns:
        The values by name; of `VARIABLES_KEY` all, `tools` and `documents` even if the template does not take them.

    Raises:
        DataError: A value has another form; the message begins with a verb.
    """
    wanted = {*inputs, *_LISTS} - keys.names
    more = item.get(VARIABLES_KEY) or {}
    if not isinstance(more, Mapping):
        raise DataError(f"must have an object as its '{VARIABLES_KEY}', but has {kind(more)}")
    values = {**{key: value for key, value in item.items() if key in wanted and value is not None}, **more}
    for key in _LISTS:
        if values.get(key):
            values[key] = _objects(key, values[key])
        else:
            values.pop(key, None)
    _check_unicode(values)
    return values


def read_text(value: Any, key: str) -> str:
    """A text of an object.

    Raises:
        DataError: It is not text; the message begins with a verb.
    """
    if not isinstance(value, str):
        raise DataError(f"must have text under '{key}', but has {kind(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"must have Unicode text under '{key}', but holds half a surrogate pair") from error
    return value


def _message(turn: Mapping[str, Any], keys: Keys) -> Message:
    is_call = any(turn.get(key) for key in _CALLS)
    spelling = next(
        ((role, content) for role, content in keys.turns if role in turn and (content in turn or is_call)), None
    )
    if spelling is None:
        known = " or ".join(f"'{role}' and '{content}'" for role, content in reversed(keys.turns))
        raise DataError(f"must have {known} in every turn, but one has {', '.join(sorted(turn)) or 'no keys'}")
    role = read_text(turn[spelling[0]], spelling[0])
    if role not in keys.roles:
        raise DataError(
            f"must have roles among {', '.join(keys.roles)}, but has '{role}'",
            hint=f"roles: {{assistant: [{role}]}} maps it to a known role",
        )
    try:
        flag = read_flag(turn)
    except ValueError as error:
        raise DataError(str(error)) from error
    extra = {key: value for key, value in turn.items() if key not in (*spelling, *_FLAGS)}
    content = turn.get(spelling[1])
    if not isinstance(content, str) and (is_call if content is None else isinstance(content, list)):
        extra["content"], content = content, _text_of_parts(content or [])
    _check_unicode(extra)
    return Message(keys.roles[role], read_text(content, spelling[1]), train=flag, extra=extra)


def _text_of_parts(parts: list[Any]) -> str:
    """The texts of a content that is a list of parts: text, or objects such as {"type": "text", "text": "..."}."""
    return "".join(map(_text_of_part, parts))


def _text_of_part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise DataError(f"must have text or objects as the parts of a content, but has {kind(part)}")
    is_text = "text" in part or part.get("type", "text") == "text"
    return read_text(part.get("text"), "text") if is_text else ""


def _objects(key: str, value: Any) -> list[Any]:
    """A list of objects; in tables, and in many data sets, it is JSON text."""
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise DataError(f"must have a list of objects as its '{key}', but has text that is not JSON") from error
    if not (isinstance(value, list) and all(isinstance(each, dict) for each in value)):
        raise DataError(f"must have a list of objects as its '{key}', but has {kind(value)}")
    return value


def _check_unicode(values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        read_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), key)
