"""What a chat template can do: every operation charges a budget before it computes anything large.

A rendering has a number of units. An operation costs about one for each character that it reads or writes, more for
each object that it makes, so that the units bound time and memory alike. `jinja_syntax.py` rewrites a template so that
it reaches values through `Operations` alone: there are no other attributes, methods, functions, filters or tests.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NoReturn

import jinja2
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import SecurityError
from jinja2.utils import Namespace

NODE = 8
"""Units of evaluating a piece of syntax once."""
ELEMENT = 16
"""Units of an element of a new list: a string of one character takes 80 bytes."""
CALL = 200
"""Units of calling a macro, besides its body; and of looking something up by a name that was computed."""
_VALUE = 32
"""Units of reading a value inside a list or dictionary, with the digits of a number."""
_ESCAPED = 12
"""Characters that one may become in a quoted string."""
_LARGEST = 2**63

_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_SCALARS = frozenset({str, int, float, bool, type(None)})
_SIZED = frozenset({str, list, tuple, dict, range, *_VIEWS})
_LOOP = frozenset(
    ("index", "index0", "revindex", "revindex0", "first", "last", "length", "depth", "depth0", "previtem", "nextitem")
)

Cost = Callable[..., int]


def _length(text: Any, *_: Any) -> int:
    return 3 * len(text) + 1  # three: the most characters that one becomes in another case


def _search(text: str, part: Any = None, *_: Any, **__: Any) -> int:
    """Of looking for `part`, at worst."""
    return len(text) * (1 + len(part or "") // 8) + 1


def _parts(text: str, sep: str | None = None, *_: Any, **__: Any) -> int:
    return _search(text, sep) + ELEMENT * (len(text) // len(sep or "  ") + 2)


def _replaced(text: str, old: str, new: str, *_: Any, **__: Any) -> int:
    return _search(text, old) + len(text) + (len(text) // max(len(old), 1) + 1) * len(new)


def _joined(sep: str, parts: Any) -> int:
    if type(parts) not in _SIZED:
        raise TypeError("can only join the elements of a list")
    return sum(map(len, parts)) + (len(sep) + 1) * len(parts)


def _padded(text: str, width: int, *_: Any) -> int:
    return len(text) + max(width, 0)


def _affix(_: str, affix: Any, *__: Any) -> int:
    return len(affix) if type(affix) is str else sum(map(len, affix)) + len(affix)


def _free(*_: Any, **__: Any) -> int:
    return NODE


_METHODS: Mapping[type, Mapping[str, Cost]] = MappingProxyType(
    {
        str: {
            **dict.fromkeys(("lower", "upper", "capitalize", "title", "swapcase", "casefold"), _length),
            **dict.fromkeys(("isalpha", "isdigit", "isalnum", "isnumeric", "isdecimal", "isascii"), _length),
            **dict.fromkeys(("isspace", "isupper", "islower", "istitle", "isidentifier"), _length),
            **dict.fromkeys(("startswith", "endswith", "removeprefix", "removesuffix"), _affix),
            **dict.fromkeys(("strip", "lstrip", "rstrip", "find", "rfind", "index", "rindex", "count"), _search),
            **dict.fromkeys(("split", "rsplit", "partition", "rpartition"), _parts),
            **dict.fromkeys(("ljust", "rjust", "center", "zfill"), _padded),
            "splitlines": lambda text, *_, **__: ELEMENT * (len(text) + 1),
            "replace": _replaced,
            "join": _joined,
        },
        dict: dict.fromkeys(("get", "items", "keys", "values"), _free),
        LoopContext: {"cycle": _free},
    }
)
"""Methods that a template can call, and what they cost."""


@dataclass(frozen=True, slots=True, eq=False)
class Method:
    """A method that a template named without calling it."""

    owner: Any
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Function:
    """A function that a template can call by name."""

    run: Callable[..., Any]


class Operations:
    """The operations of one sandbox, on the budget of the rendering that runs.

    Args:
        undefined: Makes the value of what is not there, as `jinja2.Environment.undefined`.

    Attributes:
        left: Units that the rendering has left.
        undefined: As given.
    """

    def __init__(self, undefined: Callable[..., jinja2.Undefined]) -> None:
        self.left = 0
        self.undefined = undefined

    def charge(self, units: int) -> None:
        """Take `units` off the budget.

        Raises:
            SecurityError: There are not so many left.
        """
        self.left -= units
        if self.left < 0:
            self._spent()

    def _spent(self) -> NoReturn:
        raise SecurityError("its loops and texts grow beyond what a chat template may use")

    def weigh(self, value: Any, *, data: bool = False) -> int:
        """Units of reading a value with all that is in it, as often as it is in it; see `measure`."""
        return self.measure(value, data=data)[0]

    def measure(self, value: Any, *, data: bool = False) -> tuple[int, int]:
        """Units of reading a value, and how deep lists and dictionaries are nested in it.

        Args:
            value: With all that is in it, as often as it is in it.
            data: Nothing else than data may be in it.

        Raises:
            SecurityError: The units are more than are left; or there is something that is no data.
        """
        total, depth, level = 0, 0, [value]
        while level:
            depth += 1
            inner: list[Any] = []
            for item in level:
                kind = type(item)
                total += _VALUE
                if kind is str:
                    total += len(item)
                elif kind in _SCALARS:
                    pass
                elif kind in _SIZED and kind is not range:
                    total += ELEMENT * len(item)
                    if total > self.left:
                        self._spent()
                    inner.extend(item)
                    if kind is dict:
                        inner.extend(item.values())
                elif data and kind is not range and not isinstance(item, jinja2.Undefined):
                    raise SecurityError(f"a {kind.__name__} cannot be written")
            level = inner
        return total, depth

    # What syntax stands for; the names are those of OPERATIONS.

    def iterate(self, value: Any, units: int) -> Any:
        """What a loop goes over; all its steps, of `units` each, are charged at once."""
        self.charge(self.size(value) * units)
        return value

    def size(self, value: Any) -> int:
        """How many elements there are to go over."""
        if type(value) in _SIZED:
            return len(value)
        if isinstance(value, jinja2.Undefined):
            return len(value)
        raise TypeError(f"'{type(value).__name__}' object is not iterable")

    def grown(self, value: Any) -> Any:
        """A sum that was just computed, of a few summands."""
        kind = type(value)
        if kind is str:
            self.left -= len(value)
            if self.left < 0:
                self._spent()
        elif kind is int:
            return self._number(value)
        elif kind is list or kind is tuple:
            self.charge(2 * len(value))
        return value

    def shown(self, value: Any) -> str:
        """A value as text that is written, or the text."""
        if type(value) is not str:
            value = self.text(value)
        self.left -= len(value)
        if self.left < 0:
            self._spent()
        return value

    def text(self, value: Any) -> str:
        """A value as text."""
        if type(value) not in _SCALARS and not isinstance(value, jinja2.Undefined):
            self.charge(_ESCAPED * self.weigh(value, data=True))
        return str(value)

    def concatenated(self, *values: Any) -> str:
        text = "".join([value if type(value) is str else self.text(value) for value in values])
        self.charge(len(text))
        return text

    def repeated(self, left: Any, right: Any) -> Any:
        if is_number(left) and is_number(right):
            return self._number(left * right)
        if isinstance(left, int):
            left, right = right, left
        if type(left) not in (str, list, tuple):
            return self.calculated(left, "*", right)
        if isinstance(right, int):
            self.charge(len(left) * max(right, 0) * (1 if type(left) is str else 2))
        return left * right

    def calculated(self, left: Any, sign: str, right: Any) -> Any:
        """left `sign` right, of numbers."""
        for value in (left, right):
            if not is_number(value) and not isinstance(value, jinja2.Undefined):
                raise SecurityError(f"the operator {sign} takes numbers here, not a {type(value).__name__}")
        if sign == "**" and is_number(right) and abs(right) > 64:
            raise SecurityError("the exponent of ** must be 64 at most")
        return self._number(_ARITHMETIC[sign](left, right))

    def _number(self, value: Any) -> Any:
        if type(value) is int and not -_LARGEST <= value < _LARGEST:
            raise SecurityError("whole numbers must be smaller than 2**63")
        return value

    def compared(self, left: Any, *rest: Any) -> bool:
        """left op right (op right ...), with the names that jinja2 gives to the signs."""
        for sign, right in zip(rest[::2], rest[1::2], strict=True):
            if sign in ("in", "notin"):
                result = self.contained(left, right) == (sign == "in")
            elif type(left) is str and type(right) is str:
                self.charge(min(len(left), len(right)))
                result = _COMPARISONS[sign](left, right)
            else:
                self._read(left)
                result = _COMPARISONS[sign](left, right)
            if not result:
                return False
            left = right
        return True

    def _read(self, value: Any) -> None:
        if type(value) not in _SCALARS:
            self.charge(self.weigh(value))

    def contained(self, value: Any, container: Any) -> bool:
        kind = type(container)
        if kind is dict or kind in _VIEWS:
            self.key(value)
        self._read(value)
        if kind is dict:
            pass
        elif kind is str:
            self.charge(_search(container, value if type(value) is str else None))
        elif kind is range:
            self.charge(len(container))
        elif kind in _SIZED:
            self.charge(self.weigh(container))
        elif not isinstance(container, jinja2.Undefined):
            raise TypeError(f"argument of type '{kind.__name__}' is not iterable")
        return value in container

    def key(self, value: Any) -> Any:
        """A value that is looked up in a dictionary: text or a number, since tuples of one hash are easily made."""
        if type(value) not in _SCALARS and not isinstance(value, jinja2.Undefined):
            raise SecurityError(f"a {type(value).__name__} cannot be a key")
        return value

    def attribute(self, owner: Any, name: str) -> Any:
        """owner.name; Python's own attributes are not among them."""
        kind = type(owner)
        if kind is dict:
            if name not in _DICT_NAMES:
                try:
                    return owner[name]
                except KeyError:
                    return self.undefined(obj=owner, name=name)
        elif kind is LoopContext:
            if name in _LOOP:
                return getattr(owner, name)
        elif kind is Namespace:
            values = object.__getattribute__(owner, "_Namespace__attrs")
            return values[name] if name in values else self.undefined(obj=owner, name=name)
        elif isinstance(owner, jinja2.Undefined):
            owner._fail_with_undefined_error()
        if name in _METHODS.get(kind, ()):
            return Method(owner, name)
        if hasattr(kind, name):
            problem = f"access to attribute '{name}' of '{kind.__name__}' object is unsafe."
            return self.undefined(problem, name=name, obj=owner, exc=SecurityError)
        return self.undefined(obj=owner, name=name)

    def item(self, owner: Any, key: Any) -> Any:
        """owner[key]"""
        kind = type(owner)
        if kind is dict:
            self.key(key)
            try:
                return owner[key]
            except (TypeError, KeyError):
                pass
        elif kind is list or kind is str or kind is tuple or kind is range:
            try:
                return owner[key]
            except (TypeError, IndexError):
                pass
        elif isinstance(owner, jinja2.Undefined):
            owner._fail_with_undefined_error()
        if type(key) is str:
            return self.attribute(owner, key)
        return self.undefined(obj=owner, name=key if type(key) in _SCALARS else type(key).__name__)

    def cut(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """value[start:stop:step]"""
        if type(value) in (str, list, tuple):
            self.charge(2 * len(range(len(value))[start:stop:step]))
        elif type(value) is not range:
            raise TypeError(f"a {type(value).__name__} cannot be cut")
        return value[start:stop:step]

    def call(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """function(...): a macro, which charges its own body, a function of this package, or a method."""
        kind = type(function)
        if kind is Macro:
            self.charge(CALL)
            return function(*args, **kwargs)
        if kind is Function:
            return function.run(*args, **kwargs)
        if kind is Method:
            return self.method(function.owner, function.name, *args, **kwargs)
        if isinstance(function, jinja2.Undefined):
            function._fail_with_undefined_error()
        raise SecurityError(f"a {kind.__name__} cannot be called")

    def method(self, owner: Any, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """owner.name(...)"""
        kind = type(owner)
        cost = _METHODS[kind].get(name) if kind in _METHODS else None
        if cost is None:
            if kind is LoopContext and name == "changed":
                self._read(args)
                return owner.changed(*args)
            return self.call(self.attribute(owner, name), *args, **kwargs)
        if kind is dict and args:
            self.key(args[0])
        self.left -= cost(owner, *args, **kwargs)
        if self.left < 0:
            self._spent()
        return getattr(owner, name)(*args, **kwargs)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


_DICT_NAMES = frozenset(dir(dict))
_ARITHMETIC: Mapping[str, Callable[[Any, Any], Any]] = MappingProxyType(
    {
        "-": operator.sub,
        "*": operator.mul,
        "/": operator.truediv,
        "//": operator.floordiv,
        "%": operator.mod,
        "**": operator.pow,
    }
)
_COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = MappingProxyType(
    {
        "eq": operator.eq,
        "ne": operator.ne,
        "lt": operator.lt,
        "lteq": operator.le,
        "gt": operator.gt,
        "gteq": operator.ge,
    }
)
