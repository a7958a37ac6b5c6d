"""The units that each step of a chat template costs.

A unit is about one character read or written. Objects cost more, so the units bound time and memory alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from jinja2.runtime import LoopContext

NODE = 8
"""Units of evaluating a syntax node once."""
ELEMENT = 16
"""Units of each element of a new list: a string of one character takes 80 bytes."""
CALL = 200
"""Units of calling a macro without its body, and of a look-up by a computed name."""
VALUE = 32
"""Units of reading a value in a list or dictionary, including the digits of a number."""
ESCAPED = 12
"""Maximum number of characters of an escaped character in a quoted string."""

VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
SIZED = frozenset({str, list, tuple, dict, range, *VIEWS})
"""Types whose length tells how many elements a loop over them has."""

Cost = Callable[..., int]
"""Units of calling a method, from its object and arguments."""


def _case_cost(text: Any, *_: Any) -> int:
    return 3 * len(text) + 1  # one character becomes at most three in another case


def search_cost(text: str, part: Any = None, *_: Any, **__: Any) -> int:
    """Searching for `part`, at worst."""
    return len(text) * (1 + len(part or "") // 8) + 1


def _split_cost(text: str, sep: str | None = None, *_: Any, **__: Any) -> int:
    return search_cost(text, sep) + ELEMENT * (len(text) // len(sep or "  ") + 2)


def _replace_cost(text: str, old: str, new: str, *_: Any, **__: Any) -> int:
    return search_cost(text, old) + len(text) + (len(text) // max(len(old), 1) + 1) * len(new)


def _join_cost(sep: str, parts: Any) -> int:
    if type(parts) not in SIZED:
        raise TypeError("can only join the elements of a list")
    return sum(map(len, parts)) + (len(sep) + 1) * len(parts)


def _pad_cost(text: str, width: int, *_: Any) -> int:
    return len(text) + max(width, 0)


def _affix_cost(_: str, affix: Any, *__: Any) -> int:
    return len(affix) if type(affix) is str else sum(map(len, affix)) + len(affix)


def _no_cost(*_: Any, **__: Any) -> int:
    return NODE


METHODS: Mapping[type, Mapping[str, Cost]] = MappingProxyType(
    {
        str: {
            **dict.fromkeys(("lower", "upper", "capitalize", "title", "swapcase", "casefold"), _case_cost),
            **dict.fromkeys(("isalpha", "isdigit", "isalnum", "isnumeric", "isdecimal", "isascii"), _case_cost),
            **dict.fromkeys(("isspace", "isupper", "islower", "istitle", "isidentifier"), _case_cost),
            **dict.fromkeys(("startswith", "endswith", "removeprefix", "removesuffix"), _affix_cost),
            **dict.fromkeys(("strip", "lstrip", "rstrip", "find", "rfind", "index", "rindex", "count"), search_cost),
            **dict.fromkeys(("split", "rsplit", "partition", "rpartition"), _split_cost),
            **dict.fromkeys(("ljust", "rjust", "center", "zfill"), _pad_cost),
            "splitlines": lambda text, *_, **__: ELEMENT * (len(text) + 1),
            "replace": _replace_cost,
            "join": _join_cost,
        },
        dict: dict.fromkeys(("get", "items", "keys", "values"), _no_cost),
        LoopContext: {"cycle": _no_cost},
    }
)
"""The methods that a template can call, and their cost."""
