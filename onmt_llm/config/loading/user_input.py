"""The options as the user wrote them, in files, flags and Python, with the place of each."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from onmt_llm.config.loading import flags
from onmt_llm.config.loading.yaml_file import YamlFile, parse_scalar, read_yaml
from onmt_llm.config.section import Option, Section
from onmt_llm.errors import Problem


@dataclass
class UserInput:
    """Options under the names that the user wrote, and what is to be said about them.

    Attributes:
        values: Values by name; later sources replace earlier ones.
        where: The place of each option: `file:line`, or its flag.
        files: The file of each option that was set in a file.
        notes: Sentences to log before anything runs.
        warnings: Sentences to warn with, before the notes.
        problems: All mistakes found so far.
        invalid: Options with an invalid value, and those that a misspelt name was probably meant to be.
    """

    values: dict[str, Any] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)
    files: dict[str, YamlFile] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    invalid: set[str] = field(default_factory=set)

    def read_file(self, path: str, sections: Collection[str]) -> None:
        """Add the options of a YAML file, taking them out of their sections.

        Args:
            path: The file.
            sections: Names of sections.
        """
        file = read_yaml(path)
        self.warnings.extend(file.repeated)
        for path_in_file, value in _options_in(file.values, sections):
            self._put(path_in_file[-1], value, file.where(path_in_file), file)

    def read_values(self, values: Mapping[str, Any], sections: Collection[str]) -> None:
        """Add options that were given as Python objects, taking them out of their sections. They have no place.

        Args:
            values: Options by name, as in a YAML file; also paths, tuples and sections.
            sections: Names of sections.
        """
        for path, value in _options_in(_plain(values), sections):
            self._put(path[-1], value, "", None)

    def read_flag(self, name: str, words: list[str] | bool, option: Option | None) -> None:
        """Add an option from the command line.

        Args:
            name: Its name.
            words: Its arguments; True if it has none.
            option: The option, if it is one of the job.
        """
        self._put(name, _from_flag(words, option), f"-{name}", None)

    def set_nested(self, dotted: str, text: str) -> None:
        """Set a value inside an option: `--set data.alpaca.weight=5`."""
        value = parse_scalar(text)
        parts = dotted.split(".")
        if len(parts) == 1:
            self._put(parts[0], value, f"--set {dotted}", None)
            return
        root = self.values.get(parts[0])
        tree: dict[str, Any] = _copy_tree(root) if isinstance(root, dict) else {}
        node = tree
        for part in parts[1:-1]:
            child = node.get(part)
            node[part] = child if isinstance(child, dict) else {}
            node = node[part]
        node[parts[-1]] = value
        self.values[parts[0]] = tree
        self.where.setdefault(parts[0], f"--set {dotted}")

    def place(self, name: str, *path: str) -> str:
        """The place of an option, or of a value inside it; empty if it was not set."""
        file = self.files.get(name) if path else None
        return self.where.get(name, "") if file is None else file.where((*self.path_in_file(name), *path))

    def place_in_corpus(self, corpus: str, option: str) -> str:
        """The place of a transform's option in a corpus, whether it is below `options` or beside the paths."""
        file = self.files.get("data")
        listed = file is not None and (*self.path_in_file("data"), corpus, "options", option) in file.lines
        return self.place("data", corpus, *(("options",) if listed else ()), option)

    def path_in_file(self, name: str) -> tuple[str, ...]:
        """The path of an option in its file, where it may be in a section."""
        lines = self.files[name].lines
        if (name,) in lines:
            return (name,)
        return next((known for known in lines if len(known) == 2 and known[1] == name), (name,))

    def report(self, sentence: str, where: str) -> None:
        """Add a mistake."""
        self.problems.append(Problem(sentence, where))

    def in_order(self, configs: Sequence[str]) -> list[Problem]:
        """All problems in the order of the files, and then of the command line."""
        flags_ = [where for where in self.where.values() if where.startswith("-")]

        def place(problem: Problem) -> tuple[int, int]:
            path, _, line = problem.where.rpartition(":")
            if path in configs:
                return configs.index(path), int(line)
            return len(configs), flags_.index(problem.where) if problem.where in flags_ else len(flags_)

        return sorted(self.problems, key=place)

    def _put(self, name: str, value: Any, where: str, file: YamlFile | None) -> None:
        self.values[name] = value
        self.where[name] = where
        if file is None:
            self.files.pop(name, None)
        else:
            self.files[name] = file


def _options_in(values: Mapping[str, Any], sections: Collection[str]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Path and value of each option, whether it is in a section or not."""
    for key, value in values.items():
        if key in sections and isinstance(value, dict):
            yield from (((key, str(name)), inner) for name, inner in value.items())
        else:
            yield (key,), value


def _plain(value: Any) -> Any:
    """A Python object as the value that a YAML file would hold."""
    if isinstance(value, Section):
        value = value.model_dump(exclude_unset=True)
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, PurePath) else value


def _from_flag(words: list[str] | bool, option: Option | None) -> Any:
    if isinstance(words, bool):
        return words
    if option is not None and option.is_list:
        if len(words) == 1 and words[0].startswith("["):
            return parse_scalar(words[0])
        return words if option.type_name == "list of str" else [parse_scalar(word) for word in words]
    if option is not None and option.type_name == "str":
        return None if words[0] in ("None", "null") else words[0]
    return parse_scalar(" ".join(words))


def _copy_tree(tree: dict[str, Any]) -> dict[str, Any]:
    return {key: _copy_tree(value) if isinstance(value, dict) else value for key, value in tree.items()}


def find_plugins(argv: Sequence[str], given: Mapping[str, Any]) -> list[str]:
    """The value of `plugins` in files, flags and Python; plug-ins must be imported before anything else is read.

    Raises:
        ConfigError: A `-config` file cannot be read.
    """
    plugins: Any = flags.words_of("plugins", argv) or None
    files = (read_yaml(path).values for path in reversed(flags.words_of("config", argv)))
    for values in (_plain(given), *files):
        for held in (values, *(section for section in values.values() if isinstance(section, dict))):
            plugins = held.get("plugins") if plugins is None else plugins
    return [str(each) for each in (plugins if isinstance(plugins, list) else [plugins]) if each is not None]
