"""The valid part of an invalid configuration, so that one mistake does not hide others."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from onmt_llm.config.section import Section


def validate_partially(kind: type[Section], values: Mapping[str, Any]) -> Section:
    """Validate a section, dropping values that are invalid by themselves; values that only conflict are kept."""
    kept = copy.deepcopy(dict(values))
    with contextlib.suppress(ValidationError):
        return kind.model_validate(kept)
    _remove_invalid(kind, kept)
    with contextlib.suppress(ValidationError):
        return kind.model_validate(kept)
    valid: dict[str, Any] = {}
    for name, value in kept.items():
        with contextlib.suppress(ValidationError):
            annotation: Any = kind.model_fields[name].annotation
            valid[name] = TypeAdapter(annotation).validate_python(value)
    return kind.model_construct(**valid)


def _remove_invalid(kind: type[Section], values: dict[str, Any]) -> None:
    try:
        kind.model_validate(values)
    except ValidationError as error:
        for finding in error.errors():
            holder: Any = values
            path: list[Any] = list(finding["loc"])
            while len(path) > 1 and isinstance(holder.get(path[0]), dict) and path[1] in holder[path[0]]:
                holder = holder[path.pop(0)]
            if path:
                holder.pop(path[0], None)
