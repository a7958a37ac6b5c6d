"""Values as their schema wants them, and pydantic's findings about those that are wrong as sentences for the user."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from onmt_llm.config.schema import Leaf
from onmt_llm.config.section import Section
from onmt_llm.registry import nearest


def fit(value: Any, leaf: Leaf) -> Any:
    """A single value for a list is a list of one; a number for text is text; null is the default."""
    if leaf.is_list and value is not None and not isinstance(value, list | dict):
        value = [value]
    if leaf.type_name == "list of str" and isinstance(value, list):
        return [str(each) if isinstance(each, int | float) and not isinstance(each, bool) else each for each in value]
    if leaf.type_name == "str" and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if value is None and leaf.default is not None:
        return leaf.default
    return value


def holds_nul(value: Any) -> bool:
    """Whether a text in it holds a character that no name of a file may have, and no option needs."""
    if isinstance(value, dict):
        return any(holds_nul(each) for pair in value.items() for each in pair)
    return any(map(holds_nul, value)) if isinstance(value, list) else isinstance(value, str) and "\0" in value


def sentence_of(finding: Any, name: str, leaf: Leaf, path: tuple[str, ...], names: Sequence[str] = ()) -> str:
    """What is wrong with a value, for the user.

    Args:
        finding: One of pydantic's.
        name: Dotted name of the option.
        leaf: The option of the job.
        path: Where in the leaf's value.
        names: What an unknown name may have been meant to be, besides the fields of a nested section.
    """
    value, kind, context = finding["input"], finding["type"], finding.get("ctx", {})
    if kind == "extra_forbidden":
        guess = nearest(path[-1], [*names_beside(leaf), *names])
        return f"'{name}' is not a known option" + (f": did you mean '{guess}'?" if guess else ".")
    if kind == "literal_error":
        choices = [str(choice) for choice in leaf.choices] or [str(context.get("expected", ""))]
        guess = nearest(value, choices) if isinstance(value, str) else None
        text = f"'{name}' must be one of {', '.join(choice or repr('') for choice in choices)}, but is {shown(value)}"
        return text + (f": did you mean '{guess}'?" if guess else ".")
    if kind == "value_error":  # a sentence of our own validators, which says what the value is
        return f"'{name}' {context['error']}."
    if kind == "string_too_short" and not value:
        return f"'{name}' must not be empty."
    guess = None
    if kind in _BOUNDS:
        symbol, bound = _BOUNDS[kind]
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


_BOUNDS = {
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
    """A value as YAML writes it, cut where it is long."""
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
    """`1e-4x`, `1,000` -> the number that was likely meant; None where it could be several (`1,2`, `1:30`, `10k`)."""
    text = text.strip()
    grouped = re.fullmatch(r"[-+]?[0-9]{1,3}([,_ ])[0-9]{3}(\1[0-9]{3})*(\.[0-9]+)?", text)
    if grouped:
        return re.sub("[,_ ]", "", text)
    stray = re.fullmatch(r"([-+]?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?)[^\w:.,/-]*[a-zA-Z]?", text)
    return stray[1] if stray and stray[1] != text and text[-1] not in "kKmMgGtTbB" else None


def names_beside(leaf: Leaf) -> list[str]:
    """Option names of the nested section (a corpus, `rope`) that a leaf holds."""
    from typing import get_args

    kinds = [leaf.info.annotation, *get_args(leaf.info.annotation)]
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, Section):
            return list(kind.model_fields)
    return []
