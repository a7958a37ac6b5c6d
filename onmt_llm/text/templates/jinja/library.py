"""The functions, filters and tests that a chat template can use; all work through `Operations`.

They are those of jinja2 and transformers that published chat templates use, with the same results (but lists instead of
generators). Other filters and tests of jinja2 raise an error that they are not available.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn, cast

import jinja2
from jinja2 import filters as jinja_filters
from jinja2 import tests as jinja_tests
from jinja2.sandbox import SecurityError
from jinja2.utils import Namespace

from onmt_llm.text.templates.jinja.costs import CALL, ELEMENT
from onmt_llm.text.templates.jinja.operations import Function, Operations, is_number

MAX_WIDTH = 64
"""Maximum width of an indentation, and of the space between two values of JSON."""
MAX_NAME = 200
"""Maximum length of a date format, and of an attribute's name."""

Filter = Callable[..., Any]
Test = Callable[..., bool]

_SAFE_TESTS = (
    *("boolean", "callable", "defined", "false", "float", "integer", "iterable", "mapping", "none", "number"),
    *("sameas", "sequence", "string", "true", "undefined"),
)
_COMPARING_TESTS = {
    **dict.fromkeys(("==", "eq", "equalto"), "eq"),
    **dict.fromkeys(("!=", "ne"), "ne"),
    **dict.fromkeys((">", "gt", "greaterthan"), "gt"),
    **dict.fromkeys((">=", "ge"), "gteq"),
    **dict.fromkeys(("<", "lt", "lessthan"), "lt"),
    **dict.fromkeys(("<=", "le"), "lteq"),
    "in": "in",
}


def functions(do: Operations) -> dict[str, Function]:
    """The global functions."""

    def dictionary(pairs: Any = (), /, **kwargs: Any) -> dict[Any, Any]:
        do.charge(4 * ELEMENT * (1 + do.size(pairs) + len(kwargs)))
        known = pairs.items() if type(pairs) is dict else pairs
        return {**{do.key(key): value for key, value in known}, **kwargs}

    def namespace(pairs: Any = (), /, **kwargs: Any) -> Namespace:
        return Namespace(dictionary(pairs, **kwargs))

    def raise_exception(message: Any) -> NoReturn:
        raise jinja2.TemplateError(do.text(message))

    def strftime_now(layout: str) -> str:
        if len(layout) > MAX_NAME:
            raise SecurityError(f"a date format may have at most {MAX_NAME} characters")
        return datetime.now().strftime(layout)

    known = (raise_exception, strftime_now, namespace)
    return {"dict": Function(dictionary), "range": Function(range), **{f.__name__: Function(f) for f in known}}


def tests(do: Operations) -> dict[str, Test]:
    """The tests (after `is`) by name."""

    def comparing(sign: str) -> Test:
        return lambda value, other: do.compared(value, sign, other)

    return {
        **{name: _refused("test", name) for name in jinja_tests.TESTS},
        **{name: cast(Test, jinja_tests.TESTS[name]) for name in _SAFE_TESTS},
        **{name: comparing(sign) for name, sign in _COMPARING_TESTS.items()},
        "odd": lambda value: bool(do.calculated(value, "%", 2) == 1),
        "even": lambda value: bool(do.calculated(value, "%", 2) == 0),
        "divisibleby": lambda value, by: bool(do.calculated(value, "%", by) == 0),
        "lower": lambda value: bool(do.method(do.text(value), "islower")),
        "upper": lambda value: bool(do.method(do.text(value), "isupper")),
    }


def filters(do: Operations, known_tests: dict[str, Test]) -> dict[str, Filter]:
    """The filters (after `|`) by name."""
    known = {name: _refused("filter", name) for name in jinja_filters.FILTERS}
    known |= _text_filters(do) | _number_filters(do)
    values = _Values(do, known, known_tests)
    known |= {
        **dict.fromkeys(("count", "length"), do.size),
        **dict.fromkeys(("d", "default"), jinja_filters.do_default),
        "first": lambda value: values.end(value, iter, "first"),
        "last": lambda value: values.end(value, reversed, "last"),
        "list": values.all,
        "items": values.items,
        "reverse": values.reversed,
        "join": values.join,
        "sum": values.sum,
        "map": values.map,
        "select": lambda value, *test: values.select(value, test, None, True),
        "reject": lambda value, *test: values.select(value, test, None, False),
        "selectattr": lambda value, attribute, *test: values.select(value, test, attribute, True),
        "rejectattr": lambda value, attribute, *test: values.select(value, test, attribute, False),
        "sort": values.sort,
        "dictsort": values.dictsort,
        "unique": values.unique,
        "min": lambda value, case_sensitive=False, attribute=None: values.extreme(
            min, value, case_sensitive, attribute
        ),
        "max": lambda value, case_sensitive=False, attribute=None: values.extreme(
            max, value, case_sensitive, attribute
        ),
    }
    return known


def _refused(kind: str, name: str) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise SecurityError(f"the {kind} '{name}' is not available in a chat template")

    return refuse


def _known(names: dict[str, Callable[..., Any]], kind: str, name: Any) -> Callable[..., Any]:
    if type(name) is not str or name not in names:
        raise SecurityError(f"there is no {kind} of that name")
    return names[name]


def _text_filters(do: Operations) -> dict[str, Filter]:
    def calling(name: str) -> Filter:
        return lambda value: do.method(do.text(value), name)

    def trim(value: Any, chars: str | None = None) -> str:
        return do.method(value if type(value) is str else do.text(value), "strip", chars)

    def title(value: Any) -> str:
        text = do.text(value)
        do.charge(ELEMENT * len(text))
        return jinja_filters.do_title(text)

    def indent(value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        text = do.text(value)
        do.charge((ELEMENT + _width(width)) * (len(text) + 2))
        return jinja_filters.do_indent(text, width, first, blank)

    def to_json(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        # jinja2's own filter escapes HTML, which no chat template wants
        units, depth = do.measure(value, data=True)
        breadth = sum(map(len, separators or ())) + (0 if indent is None else _width(indent) * depth)
        if breadth > MAX_WIDTH**2:
            raise SecurityError("its JSON has too much space between values")
        do.charge((12 + breadth // 8) * units)
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    return {
        **{name: calling(name) for name in ("lower", "upper", "capitalize")},
        "trim": trim,
        "replace": lambda value, old, new, count=None: do.method(
            do.text(value), "replace", do.text(old), do.text(new), -1 if count is None else count
        ),
        "title": title,
        "indent": indent,
        "string": do.text,
        "safe": do.text,
        "tojson": to_json,
    }


def _width(indent: int | str | None) -> int:
    """Width of an indentation in characters."""
    width = len(indent) if isinstance(indent, str) else int(indent or 0)
    if width > MAX_WIDTH:
        raise SecurityError(f"a line may be indented by at most {MAX_WIDTH} characters")
    return max(width, 0)


def _number_filters(do: Operations) -> dict[str, Filter]:
    def parsed(parse: Callable[..., Any]) -> Filter:
        def convert(value: Any, *args: Any, **kwargs: Any) -> Any:
            do.charge(len(value) if type(value) is str else 1)
            return do.grown(parse(value, *args, **kwargs))

        return convert

    def absolute(value: Any) -> Any:
        return do.calculated(0, "-", value) if value < 0 else do.calculated(value, "-", 0)

    def rounded(value: Any, precision: int = 0, method: str = "common") -> Any:
        if not is_number(value) or not is_number(precision) or abs(precision) > 15 or type(method) is not str:
            raise SecurityError("the filter 'round' takes a number, a precision of at most 15 digits, and a method")
        return jinja_filters.do_round(value, precision, method)  # type: ignore[arg-type]

    return {
        "int": parsed(jinja_filters.do_int),
        "float": parsed(jinja_filters.do_float),
        "abs": absolute,
        "round": rounded,
    }


class _Values:
    """The filters of lists and dictionaries."""

    def __init__(self, do: Operations, known_filters: dict[str, Filter], known_tests: dict[str, Test]) -> None:
        self._do, self._filters, self._tests = do, known_filters, known_tests

    def all(self, value: Any) -> list[Any]:
        self._do.charge(ELEMENT * self._do.size(value))
        return list(value)

    def items(self, value: Any) -> list[tuple[Any, Any]]:
        if isinstance(value, jinja2.Undefined):
            return []
        if type(value) is not dict:
            raise TypeError("Can only get item pairs from a mapping.")
        self._do.charge(ELEMENT * len(value))
        return list(value.items())

    def reversed(self, value: Any) -> Any:
        return self._do.cut(value, None, None, -1) if type(value) is str else self.all(value)[::-1]

    def end(self, value: Any, order: Callable[[Any], Any], which: str) -> Any:
        if not self._do.size(value):
            return self._do.undefined(f"No {which} item, sequence was empty.")
        return next(iter(order(value)))

    def join(self, value: Any, d: Any = "", attribute: Any = None) -> str:
        get = self._getter(attribute)
        texts = [self._do.text(get(one)) for one in self.all(value)]
        return self._do.method(self._do.text(d), "join", texts)

    def sum(self, value: Any, attribute: Any = None, start: Any = 0) -> Any:
        get, total = self._getter(attribute), start
        for one in self.all(value):
            # a - (0 - b) refuses lists, whose sum would take quadratic time
            total = self._do.calculated(total, "-", self._do.calculated(0, "-", get(one)))
        return total

    def map(self, value: Any, *args: Any, attribute: Any = None, default: Any = None, **kwargs: Any) -> list[Any]:
        named = attribute is not None
        if not value:  # as in jinja2, where nothing has no elements
            return []
        apply = self._getter(attribute, default) if named else _known(self._filters, "filter", args[0])
        return [apply(one, *args[1:], **kwargs) for one in self.all(value)]

    def select(self, value: Any, test: tuple[Any, ...], attribute: Any, wanted: bool) -> list[Any]:
        if not value:
            return []
        get = self._getter(attribute)
        holds: Test = _known(self._tests, "test", test[0]) if test else bool
        return [one for one in self.all(value) if bool(holds(get(one), *test[1:])) is wanted]

    def sort(self, value: Any, reverse: bool = False, case_sensitive: bool = False, attribute: Any = None) -> list[Any]:
        gets = [self._getter(part) for part in self._name(attribute).split(",")]
        values = self.all(value)
        keys = [[self._key(get(one), case_sensitive) for get in gets] for one in values]
        return self._sorted(values, keys, reverse)

    def dictsort(
        self, value: Any, case_sensitive: bool = False, by: str = "key", reverse: bool = False
    ) -> list[tuple[Any, Any]]:
        items, part = self.items(value), ("key", "value").index(by)
        return self._sorted(items, [self._key(item[part], case_sensitive) for item in items], reverse)

    def _sorted(self, values: list[Any], keys: list[Any], reverse: bool) -> list[Any]:
        self._do.charge(self._do.weigh(keys) * (2 + len(keys).bit_length()))
        return [values[place] for place in sorted(range(len(keys)), key=keys.__getitem__, reverse=reverse)]

    def _key(self, value: Any, case_sensitive: bool) -> Any:
        """The sort key of a value."""
        if type(value) is not str or case_sensitive:
            return value
        return self._do.method(value, "lower")

    def unique(self, value: Any, case_sensitive: bool = False, attribute: Any = None) -> list[Any]:
        get, values = self._getter(attribute), self.all(value)
        keys = [self._do.key(self._key(get(one), case_sensitive)) for one in values]
        first: dict[Any, Any] = {}
        for key, one in zip(keys, values, strict=True):
            first.setdefault(key, one)
        return list(first.values())

    def extreme(self, which: Callable[..., Any], value: Any, case_sensitive: bool, attribute: Any) -> Any:
        get, values = self._getter(attribute), self.all(value)
        keys = [self._key(get(one), case_sensitive) for one in values]
        self._do.charge(2 * self._do.weigh(keys))
        if not values:
            return self._do.undefined("No aggregated item, sequence was empty.")
        return values[which(range(len(keys)), key=keys.__getitem__)]

    def _name(self, attribute: Any) -> str:
        """The name of an attribute; empty = none."""
        name = "" if attribute is None else self._do.text(attribute)
        if len(name) > MAX_NAME:
            raise SecurityError(f"the name of an attribute may have at most {MAX_NAME} characters")
        return name

    def _getter(self, attribute: Any, default: Any = None) -> Callable[[Any], Any]:
        """A function that reads `attribute` as jinja2's filters do: names and numbers separated by dots."""
        name = self._name(attribute)
        if not name:
            return lambda value: value
        parts = [int(part) if part.isdecimal() else part for part in name.split(".")]

        def get(value: Any) -> Any:
            self._do.charge(CALL * len(parts))
            for part in parts:
                value = self._do.item(value, part)
                if default is not None and isinstance(value, jinja2.Undefined):
                    value = default
            return value

        return get
