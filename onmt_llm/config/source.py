"""YAML with positions: every key remembers its file and line, so that a message can point at it.

Numbers follow YAML 1.2 (`2e-05` is a float), `yes`/`no`/`on`/`off` stay text until a boolean option reads them, and
OpenNMT-py's `None` is null. A key that is written twice is reported; its last value wins.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from onmt_llm.errors import ConfigError

Path_ = tuple[str, ...]

MAX_BYTES = 4 << 20
_MAX_DIGITS = 1000  # Python reads a few thousand; no option that is a number takes so many
_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$")
_INT = re.compile(r"^[-+]?[0-9]+$")
_BOOL = re.compile(r"^(true|True|TRUE|false|False|FALSE)$")
_NULL = re.compile(r"^(~|null|Null|NULL|None|)$")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the resolvers above."""

    yaml_implicit_resolvers: dict[str, Any] = {}


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", _NULL, ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile("^<<$"), ["<"])
# the resolver tries patterns in the order in which they were added: an integer must not be taken for a float
for _first, _rules in _Loader.yaml_implicit_resolvers.items():
    _rules.sort(key=lambda rule: rule[0].endswith(":float"))


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | str:
    text = str(loader.construct_scalar(node))
    return int(text) if len(text) < _MAX_DIGITS else text  # decimal: `017` is 17


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


@dataclass
class YamlFile:
    """One parsed file.

    Attributes:
        path: As the user wrote it.
        values: The top-level mapping.
        lines: Line (from 1) of every key, by its path from the top.
        notes: Sentences about what was written twice.
    """

    path: str
    values: dict[str, Any]
    lines: dict[Path_, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def where(self, path: Path_) -> str:
        """`file:line` of the key, or of the nearest key above it."""
        for depth in range(len(path), 0, -1):
            if path[:depth] in self.lines:
                return f"{self.path}:{self.lines[path[:depth]]}"
        return self.path


def parse_scalar(text: str) -> Any:
    """One value as a YAML file would read it: `5`, `1e-4`, `true`, `[a, b]`, `{a: 1}`, text."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError):
        return text


def read_yaml(path: str) -> YamlFile:
    """Read a configuration file.

    Raises:
        ConfigError: The file is missing, too large, not UTF-8, not YAML, or not a mapping.
    """
    file = Path(path)
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ConfigError(f"A configuration file must be at most {MAX_BYTES >> 20} MiB, but {path} is larger.")
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(
            f"The configuration file must exist, but {path} does not.", hint=_similar_file(file)
        ) from None
    except OSError as error:
        raise ConfigError(f"The configuration file must be readable, but {path} is not: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} must be UTF-8, but byte {error.start} is not.") from None
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        result = YamlFile(path, {})
        if root is None:
            return result
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(
                f"{path} must hold `option: value` lines, but its top level is a {root.tag.rpartition(':')[2]}."
            )
        _walk(root, (), result, set())
        result.values = {str(key): value for key, value in loader.construct_document(root).items()}
        return result
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{path}:{line} must be YAML, but: {problem}.", hint=_yaml_hint(text, line)) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} must be YAML, but: {error}.") from None
    finally:
        loader.dispose()


def _walk(node: yaml.Node, path: Path_, result: YamlFile, seen: set[int]) -> None:
    """Note the line of every key below `node`; an aliased node is walked once."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _walk(item, path, result, seen)
    if not isinstance(node, yaml.MappingNode):
        return
    for key_node, value_node in node.value:
        here = (*path, str(key_node.value))
        line = key_node.start_mark.line + 1
        if here in result.lines and key_node.value != "<<":
            lines = f"{result.lines[here]} and {line}"
            result.notes.append(
                f"{result.path}: '{'.'.join(here)}' is written twice, in lines {lines}; the last value is used."
            )
        result.lines[here] = line
        _walk(value_node, here, result, seen)


def _similar_file(file: Path) -> str | None:
    import difflib

    if not file.parent.is_dir():
        return None
    names = [p.name for p in file.parent.iterdir() if p.suffix in (".yaml", ".yml")]
    close = difflib.get_close_matches(file.name, names, n=1)
    return f"did you mean {file.parent / close[0]}?" if close else None


def _yaml_hint(text: str, line: int) -> str | None:
    lines = text.split("\n")
    if any(
        "\t" in candidate[: len(candidate) - len(candidate.lstrip())] for candidate in lines[max(0, line - 2) : line]
    ):
        return "YAML indents with spaces; this line begins with a tab."
    return "check the indentation, and that every `key: value` has a space after its colon."
