"""The operations of a chat template: each charges the budget before it computes anything large.

`syntax.py` rewrites a template so that it reaches values only through `Operations`: there are no other attributes,
methods, functions, filters or tests. `costs.py` has the units that each step costs.
"""

from __future__ import annotations

import operator
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NoReturn

import jinja2
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import SecurityError
from jinja2.utils import Namespace

from onmt_llm.text.templates.jinja.costs import CALL, ELEMENT, ESCAPED, METHODS, SIZED, VALUE, VIEWS, search_cost

_LARGEST = 2**63
_SCALARS = frozenset({str, int, float, bool, type(None)})
_LOOP = frozenset(
    ("index", "index0", "revindex", "revindex0", "first", "last", "length", "depth", "depth0", "previtem", "nextitem")
)


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
        undefined: Makes the value of something undefined, see `jinja2.Environment.undefined`.

    Attributes:
        left: Units that the rendering has left.
        undefined: As given.
    """

    def __init__(self, undefined: Callable[..., jinja2.Undefined]) -> None:
        self.left = 0
        self.undefined = undefined

    def charge(self, units: int) -> None:
        """Subtract `units` from the budget.

        Raises:
            SecurityError: The budget is exceeded.
        """
        self.left -= units
        if self.left < 0:
            self._spent()

    def _spent(self) -> NoReturn:
        raise SecurityError("its loops and texts exceed what a chat template may use")

    def weigh(self, value: Any, *, data: bool = False) -> int:
        """Units of reading a value with everything in it; see `measure`."""
        return self.measure(value, data=data)[0]

    def measure(self, value: Any, *, data: bool = False) -> tuple[int, int]:
        """Units of reading a value, and the depth of the lists and dictionaries nested in it.

        Args:
            value: Counted with everything in it, as often as it occurs.
            data: It may contain only data.

        Raises:
            SecurityError: The budget is exceeded, or the value contains something that is not data.
        """
        total, depth, level = 0, 0, [value]
        while level:
            depth += 1
            inner: list[Any] = []
            for item in level:
                kind = type(item)
                total += VALUE
                if kind is str:
                    total += len(item)
                elif kind in _SCALARS:
                    pass
                elif kind in SIZED and kind is not range:
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

    # The operations of the rewritten syntax, see `syntax.operations`.

    def iterate(self, value: Any, units: int) -> Any:
        """The iterable of a loop; all its steps, of `units` each, are charged at once."""
        self.charge(self.size(value) * units)
        return value

    def size(self, value: Any) -> int:
        """Number of elements of an iterable."""
        if type(value) in SIZED:
            return len(value)
        if isinstance(value, jinja2.Undefined):
            return len(value)
        raise TypeError(f"'{type(value).__name__}' object is not iterable")

    def grown(self, value: Any) -> Any:
        """Charge a sum of a few summands that has just been computed."""
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
        """A value as it is written to the output."""
        if type(value) is not str:
            value = self.text(value)
        self.left -= len(value)
        if self.left < 0:
            self._spent()
        return value

    def text(self, value: Any) -> str:
        """A value as text."""
        if type(value) not in _SCALARS and not isinstance(value, jinja2.Undefined):
            self.charge(ESCAPED * self.weigh(value, data=True))
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
        """left `sign` right, for numbers."""
        for value in (left, right):
            if not is_number(value) and not isinstance(value, jinja2.Undefined):
                raise SecurityError(f"the operator {sign} takes numbers here, not a {type(value).__name__}")
        if sign == "**" and is_number(right) and abs(right) > 64:
            raise SecurityError("the exponent of ** must be at most 64")
        return self._number(_ARITHMETIC[sign](left, right))

    def _number(self, value: Any) -> Any:
        if type(value) is int and not -_LARGEST <= value < _LARGEST:
            raise SecurityError("whole numbers must be smaller than 2**63")
        return value

    def compared(self, left: Any, *rest: Any) -> bool:
        """left op right (op right ...), with jinja2's names of the operators."""
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
        if kind is dict or kind in VIEWS:
            self.key(value)
        self._read(value)
        if kind is dict:
            pass
        elif kind is str:
            self.charge(search_cost(container, value if type(value) is str else None))
        elif kind is range:
            self.charge(len(container))
        elif kind in SIZED:
            self.charge(self.weigh(container))
        elif not isinstance(container, jinja2.Undefined):
            raise TypeError(f"argument of type '{kind.__name__}' is not iterable")
        return value in container

    def key(self, value: Any) -> Any:
        """A key of a dictionary: text or a number, because tuples with equal hashes are easily made."""
        if type(value) not in _SCALARS and not isinstance(value, jinja2.Undefined):
            raise SecurityError(f"a {type(value).__name__} cannot be a key")
        return value

    def attribute(self, owner: Any, name: str) -> Any:
        """owner.name, without Python's own attributes."""
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
        if name in METHODS.get(kind, ()):
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
        cost = METHODS[kind].get(name) if kind in METHODS else None
        if name == "format" and kind is str:
            return self._formatted(owner, args, kwargs)
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

    def _formatted(self, layout: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """str.format with plain fields: {}, {0}, {name}. Others reach attributes, or pad without a bound."""
        parts: list[Any] = []
        numbers = map(str, range(len(args)))
        for literal, field, layout_of_field, conversion in string.Formatter().parse(layout):
            parts.append(literal)
            if field is None:
                continue
            if layout_of_field or conversion or not (field == "" or field.isidentifier() or field.isdecimal()):
                raise SecurityError("a field of 'format' must be {}, {0} or {name}")
            name = field or next(numbers)
            parts.append(args[int(name)] if name.isdecimal() else kwargs[name])
        return self.concatenated(*parts)


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
