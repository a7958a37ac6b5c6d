"""`Registry`: a table of named transforms, scorers etc.; and plug-ins, which add to them."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

from onmt_llm.errors import ConfigError

T = TypeVar("T")


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that is most similar to `name`, or None if none is close."""
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return matches[0] if matches else None


def module_name(plugin: str) -> str:
    """The name under which a plugin (a module or a .py file) is imported."""
    return Path(plugin).stem if plugin.endswith(".py") else plugin


def load_plugins(plugins: Iterable[str]) -> None:
    """Import the user's modules, which register what they add; one that is loaded already is skipped.

    A file is imported under its stem, with its folder at the end of the search path, so worker processes find it too.

    Args:
        plugins: Names of modules, or paths of .py files.

    Raises:
        ConfigError: A plugin cannot be imported, or the name of a file is that of another module.
    """
    for plugin in plugins:
        file = Path(plugin).resolve() if plugin.endswith(".py") else None
        if file is not None and str(file.parent) not in sys.path:
            sys.path.append(str(file.parent))
        try:
            module = importlib.import_module(module_name(plugin))
        except Exception as error:  # the user's code: it may raise anything
            raise ConfigError(f"Plugin '{plugin}' cannot be loaded: {type(error).__name__}: {error}.") from error
        loaded = getattr(module, "__file__", None)
        if file is not None and (loaded is None or Path(loaded).resolve() != file):
            raise ConfigError(
                f"Plugin '{plugin}' must have a name of its own, but there is another module '{file.stem}' ({loaded}).",
                hint="rename the file",
            )


class Registry(Generic[T]):
    """A table of named items of one kind.

    Args:
        kind: What one entry is called in messages, e.g. "transform".
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that registers a class or function under `name`; every name is registered once."""

        def add(item: T) -> T:
            assert name not in self._items, f"{self.kind} {name!r} is registered twice"
            self._items[name] = item
            return item

        return add

    def get(self, name: str) -> T:
        """The entry called `name`.

        Raises:
            ConfigError: There is no such entry; the message lists all names, the hint the nearest.
        """
        if name not in self._items:
            guess = nearest(name, self._items)
            hint = f"did you mean '{guess}'?" if guess else None
            raise ConfigError(f"'{name}' is not a known {self.kind}; known are: {', '.join(self.names())}.", hint=hint)
        return self._items[name]

    def names(self) -> list[str]:
        return sorted(self._items)

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())
