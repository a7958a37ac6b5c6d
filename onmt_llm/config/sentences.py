"""Values as their schema wants them, and pydantic's findings about those that are wrong as sentences for the user."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onmt_llm.config.schema import Leaf
from onmt_llm.config.section import Section
from onmt_llm.registry import nearest


def fit(value: Any, leaf: Leaf) -> Any:
    """A single value for a list is a list of one; a number for text is text; null is the default."""
    if leaf.is_list and value is not None and not isinstance(value, list | dict):
        return [value]
    if leaf.type_name == "str" and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if value is None and leaf.default is not None:
        return leaf.default
    return value


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
        guess = nearest(str(value), choices)
        text = f"'{name}' must be one of {', '.join(choice or repr('') for choice in choices)}, but is '{value}'"
        return text + (f": did you mean '{guess}'?" if guess else ".")
    bounds = {
        "greater_than_equal": (">=", "ge"),
        "greater_than": (">", "gt"),
        "less_than_equal": ("<=", "le"),
        "less_than": ("<", "lt"),
    }
    if kind in bounds:
        symbol, bound = bounds[kind]
        return f"'{name}' must be {symbol} {context[bound]}, but is {value}."
    wanted = {
        "int": "a whole number", "float": "a number", "bool": "true or false", "string": "text", "list": "a list",
        "dict": "a mapping", "model": "a mapping",
    }.get(kind.split("_")[0])  # fmt: skip
    if wanted:
        guess = number_hint(value) if wanted in ("a number", "a whole number") else None
        return f"'{name}' must be {wanted}, but is {value!r}" + (f": did you mean {guess}?" if guess else ".")
    return f"'{name}': {finding['msg']}, but is {value!r}."


def number_hint(value: Any) -> str | None:
    """`1e-4x`, `1,000` -> the number that was likely meant."""
    import re

    match = re.match(r"^[-+]?[0-9][0-9,_ ]*(\.[0-9]+)?([eE][-+]?[0-9]+)?", str(value).strip())
    return re.sub("[,_ ]", "", match.group(0)) if match else None


def names_beside(leaf: Leaf) -> list[str]:
    """Option names of the nested section (a corpus, `rope`) that a leaf holds."""
    from typing import get_args

    kinds = [leaf.info.annotation, *get_args(leaf.info.annotation)]
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, Section):
            return list(kind.model_fields)
    return []
