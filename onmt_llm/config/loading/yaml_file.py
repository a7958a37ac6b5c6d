"""Read YAML files with the line of every key, so that messages can point at it.

Numbers follow YAML 1.2 (`2e-05` is a float). `yes`, `no`, `on` and `off` stay text until a boolean option reads them.
OpenNMT-py's `None` is null. Duplicate keys are reported; the last value wins.
"""

from __future__ import annotations

import difflib
import os
import re
import select
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from onmt_llm.errors import ConfigError

Path_ = tuple[str, ...]

MAX_BYTES = 4 << 20
_MAX_DEPTH = 64
_MAX_NODES = 1_000_000
_MAX_DIGITS = 1000  # Python parses a few thousand; no numeric option needs that many
_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$")
_INT = re.compile(r"^[-+]?[0-9]+$")
_BOOL = re.compile(r"^(true|True|TRUE|false|False|FALSE)$")
_NULL = re.compile(r"^(~|null|Null|NULL|None|)$")


class _Bounded(yaml.SafeLoader):
    """PyYAML's safe loader with a limit on nesting, which is otherwise limited by Python's stack only."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            problem = f"a value is nested more than {_MAX_DEPTH} levels deep"
            raise yaml.composer.ComposerError(None, None, problem, self.get_mark())
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


class _Loader(_Bounded):
    """The same, with YAML 1.2 resolvers."""

    yaml_implicit_resolvers: dict[str, Any] = {}


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", _NULL, ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile("^<<$"), ["<"])
# resolvers are tried in order: an integer must not be taken for a float
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
        repeated: Sentences about duplicate keys.
    """

    path: str
    values: dict[str, Any]
    lines: dict[Path_, int] = field(default_factory=dict)
    repeated: list[str] = field(default_factory=list)

    def where(self, path: Path_) -> str:
        """`file:line` of the key, or of its nearest parent."""
        for depth in range(len(path), 0, -1):
            if path[:depth] in self.lines:
                return f"{self.path}:{self.lines[path[:depth]]}"
        return self.path


def parse_scalar(text: str) -> Any:
    """Parse one value as in a YAML file: `5`, `1e-4`, `true`, `[a, b]`, `{a: 1}`, text."""
    try:
        return _construct(_Loader(text))[1]
    except (yaml.YAMLError, ValueError):
        return text


def load_plain(text: str) -> Any:
    """Parse YAML written by this package (YAML 1.1, as PyYAML writes it) in bounded time and memory.

    Raises:
        yaml.YAMLError: The text is not YAML, is nested too deeply, or its aliases expand to too many values.
    """
    return _construct(_Bounded(text))[1]


def _construct(loader: _Bounded) -> tuple[yaml.Node | None, Any]:
    """The node tree and its value, after a check that its aliases do not expand too far."""
    try:
        root = loader.get_single_node()
        if root is None:
            return None, None
        _expanded(root, {})
        return root, loader.construct_document(root)
    finally:
        loader.dispose()


_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq", "merge")}


def _expanded(node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Number of nodes and levels of a tree with all aliases expanded; `known` caches the results by node, with (0, 0)
    while a node is being visited.

    Raises:
        yaml.YAMLError: There are too many, a node contains itself, or it has a type that no option has.
    """
    if id(node) in known and known[id(node)] != (0, 0):
        return known[id(node)]
    problem = "a value contains itself" if id(node) in known else None
    if node.tag not in _TAGS:
        problem = f"a value has the type {node.tag.replace('tag:yaml.org,2002:', '!!')}, which no option has"
    known[id(node)] = (0, 0)
    nodes, levels = 1, 1
    for item in node.value if problem is None and not isinstance(node, yaml.ScalarNode) else ():
        for each in item if isinstance(item, tuple) else (item,):
            below = _expanded(each, known)
            nodes, levels = nodes + below[0], max(levels, below[1] + 1)
    if nodes > _MAX_NODES or levels > _MAX_DEPTH:
        problem = f"aliases expand to more than {_MAX_NODES:,} values or {_MAX_DEPTH} levels"
    if problem is not None:
        raise yaml.composer.ComposerError(None, None, problem, node.start_mark)
    known[id(node)] = (nodes, levels)
    return nodes, levels


def read_yaml(path: str) -> YamlFile:
    """Read a configuration file.

    Raises:
        ConfigError: The file is missing, too large, not UTF-8, not YAML, or not a mapping.
    """
    text = _read_text(path)
    try:
        root, values = _construct(_Loader(text))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{path}:{line} must be YAML, but: {problem}.", hint=_yaml_hint(text, line, error)) from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path} must be YAML, but: {str(error).rstrip('.')}.") from None
    result = YamlFile(path, {})
    if root is None:
        return result
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(
            f"{path} must consist of `option: value` lines, but its top level is a {root.tag.rpartition(':')[2]}."
        )
    _walk(root, (), result, set())
    result.values = {str(key): value for key, value in values.items()}
    return result


_piped: dict[tuple[int, int], bytes] = {}
"""Contents of pipes by device and inode: a pipe can be read only once, but a command reads its files twice."""


def _read_text(path: str) -> str:
    file = Path(path)
    try:
        status = file.stat()
        if stat.S_ISREG(status.st_mode):
            content = file.read_bytes() if status.st_size <= MAX_BYTES else bytes(MAX_BYTES + 1)
        else:
            place = (status.st_dev, status.st_ino)
            content = _piped[place] = _piped[place] if place in _piped else _read_stream(path)
            if not content and stat.S_ISFIFO(status.st_mode):
                raise ConfigError(f"The configuration file must not be empty, but nobody writes to {path}.")
        if len(content) > MAX_BYTES:
            raise ConfigError(f"A configuration file must be at most {MAX_BYTES >> 20} MiB, but {path} is larger.")
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(
            f"The configuration file must exist, but {path} does not.", hint=_similar_file(file)
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} must be UTF-8, but byte {error.start} is not.") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"The configuration file must be readable, but {path} is not: {reason}.") from None


def _read_stream(path: str) -> bytes:
    """Read a pipe, a terminal or a device, up to the maximum size of a configuration file."""
    # without O_NONBLOCK, opening a named pipe without a writer would block forever; with it, the pipe is empty
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    content = b""
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        while len(content) <= MAX_BYTES:
            piece = stream.read(MAX_BYTES + 1 - len(content))
            if piece is None:
                select.select([descriptor], [], [])
            elif not piece:
                break
            else:
                content += piece
    return content


def _walk(node: yaml.Node, path: Path_, result: YamlFile, seen: set[int]) -> None:
    """Record the line of every key below `node`; an aliased node is visited once."""
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
            result.repeated.append(
                f"{result.path}: '{'.'.join(here)}' is written twice, in lines {lines}; the last value is used."
            )
        result.lines[here] = line
        _walk(value_node, here, result, seen)


def _similar_file(file: Path) -> str | None:
    if not file.parent.is_dir():
        return None
    names = [p.name for p in file.parent.iterdir() if p.suffix in (".yaml", ".yml")]
    close = difflib.get_close_matches(file.name, names, n=1)
    return f"did you mean {file.parent / close[0]}?" if close else None


def _yaml_hint(text: str, line: int, error: yaml.MarkedYAMLError) -> str | None:
    if isinstance(error, yaml.composer.ComposerError):
        return None  # the syntax is valid
    lines = text.split("\n")
    if any(
        "\t" in candidate[: len(candidate) - len(candidate.lstrip())] for candidate in lines[max(0, line - 2) : line]
    ):
        return "YAML indents with spaces; this line begins with a tab."
    return "check the indentation, and that every `key: value` has a space after its colon."
