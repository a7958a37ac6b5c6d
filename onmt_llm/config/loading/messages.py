"""Coerce values to their schema, and explain pydantic's errors in sentences for the user."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, get_args

from onmt_llm.config.section import Option, Section
from onmt_llm.registry import nearest


def coerce(value: Any, option: Option) -> Any:
    """Turn a single value into a list of one, a number into text, and null into the default, as the option requires."""
    if option.is_list and value is not None and not isinstance(value, list | dict):
        value = [value]
    if option.type_name == "list of str" and isinstance(value, list):
        return [str(each) if isinstance(each, int | float) and not isinstance(each, bool) else each for each in value]
    if option.type_name == "str" and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if value is None and option.default is not None:
        return option.default
    return value


def contains_nul(value: Any) -> bool:
    """Whether a string in it contains the character NUL, which no file name may contain and no option needs."""
    if isinstance(value, dict):
        return any(contains_nul(each) for pair in value.items() for each in pair)
    return any(map(contains_nul, value)) if isinstance(value, list) else isinstance(value, str) and "\0" in value


def explain(finding: Any, name: str, option: Option, path: tuple[str, ...], names: Sequence[str] = ()) -> str:
    """Explain to the user what is wrong with a value.

    Args:
        finding: An error of pydantic's `ValidationError.errors()`.
        name: Dotted name of the option, for the message.
        option: The option of the job.
        path: Path of the error in the value of the option.
        names: Suggestions for an unknown name, besides the fields of the nested section.
    """
    value, kind, context = finding["input"], finding["type"], finding.get("ctx", {})
    if kind == "extra_forbidden":
        guess = nearest(path[-1], [*field_names(option), *names])
        return f"'{name}' is not a known option" + (f": did you mean '{guess}'?" if guess else ".")
    if kind == "literal_error":
        choices = [str(choice) for choice in option.choices] or [str(context.get("expected", ""))]
        guess = nearest(value, choices) if isinstance(value, str) else None
        text = f"'{name}' must be one of {', '.join(choice or repr('') for choice in choices)}, but is {shown(value)}"
        return text + (f": did you mean '{guess}'?" if guess else ".")
    if kind == "value_error":  # a sentence of our own validators, complete with the value
        return f"'{name}' {context['error']}."
    if kind == "string_too_short" and not value:
        return f"'{name}' must not be empty."
    guess = None
    if kind in _COMPARISONS:
        symbol, bound = _COMPARISONS[kind]
        limit = context[bound]
        wanted = f"must be {symbol} {limit if isinstance(limit, int) else format(limit, 'g')}"
    elif kind in ("finite_number", "number_size", "int_parsing_size"):
        wanted = "must be a finite number" if kind == "finite_number" else "must be a number of at most 64 bits"
    elif kind.split("_")[0] in _TYPES:
        wanted = f"must be {_TYPES[kind.split('_')[0]]}"
        guess = number_hint(value) if "number" in wanted and isinstance(value, str) else None
        guess = None if guess and "whole" in wanted and not guess.lstrip("+-").isdigit() else guess
    else:
        wanted = finding["msg"]
    return f"'{name}' {wanted}, but is {shown(value)}" + (f": did you mean {guess}?" if guess else ".")


_COMPARISONS = {
    "greater_than_equal": (">=", "ge"),
    "greater_than": (">", "gt"),
    "less_than_equal": ("<=", "le"),
    "less_than": ("<", "lt"),
}
_TYPES = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "string": "text", "list": "a list",
    "dict": "a mapping", "model": "a mapping",
}  # fmt: skip
_SHOWN = 60


def shown(value: Any) -> str:
    """A value in YAML syntax, truncated if it is long."""
    text = _written(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _written(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_written(each)}" for key, each in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return repr(value)


def number_hint(text: str) -> str | None:
    """The number that was probably meant by `1e-4x` or `1,000`; None if it is ambiguous (`1,2`, `1:30`, `10k`)."""
    text = text.strip()
    grouped = re.fullmatch(r"[-+]?[0-9]{1,3}([,_ ])[0-9]{3}(\1[0-9]{3})*(\.[0-9]+)?", text)
    if grouped:
        return re.sub("[,_ ]", "", text)
    stray = re.fullmatch(r"([-+]?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?)[^\w:.,/-]*[a-zA-Z]?", text)
    return stray[1] if stray and stray[1] != text and text[-1] not in "kKmMgGtTbB" else None


def field_names(option: Option) -> list[str]:
    """Field names of the nested section (a corpus, `rope`) in the value of an option."""
    kinds = [option.info.annotation, *get_args(option.info.annotation)]
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, Section):
            return list(kind.model_fields)
    return []
