"""From files and flags to a validated job: `load(TrainConfig, argv)`.

Later sources win: defaults < `-config` files in their order < flags. Where every value came from is kept
(`Loaded.origins`), and all mistakes are reported together, in the file's order, each as one sentence with its line:
also those that the command itself finds (`checks`) in what is right of the configuration.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from onmt_llm.config.compat.opennmt_defaults import differing_defaults, is_for_opennmt
from onmt_llm.config.compat.translate import effective_names, translate
from onmt_llm.config.compat.translation import Translation
from onmt_llm.config.loading import flags
from onmt_llm.config.loading.corpus_options import corpus_problems, gather_options
from onmt_llm.config.loading.messages import coerce, contains_nul, explain
from onmt_llm.config.loading.partial import validate_partially
from onmt_llm.config.loading.yaml_file import YamlFile, parse_scalar, read_yaml
from onmt_llm.config.schema import Leaf, leaves, section_docs
from onmt_llm.config.section import Section
from onmt_llm.errors import Problem, raise_problems
from onmt_llm.registry import nearest

JobT = TypeVar("JobT", bound=Section)


@dataclass(frozen=True)
class Loaded(Generic[JobT]):
    """A validated job.

    Attributes:
        job: Its sections.
        options: Sections of the plug-ins (transforms), by name.
        origins: For each leaf that is not at its default, where its value came from (`replicate.yaml:17`, `-seed`).
        notes: Sentences to log before anything runs.
        switches: What the command itself was asked: `dry_run`, `print_config` ...
        warnings: Sentences to warn with, before the notes.
        invalid: Options whose value is wrong, or which an unknown one was meant to be: for `checks` alone, whose job
            has them at their defaults.
        configs: The `-config` files.
    """

    job: JobT
    options: dict[str, Section]
    origins: dict[str, str]
    notes: list[str]
    switches: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    invalid: frozenset[str] = frozenset()
    configs: Sequence[str] = ()

    def origin(self, *path: str) -> str:
        """Where an option was written, as ` (file:line)`, or nothing when it was left to its default."""
        where = self.where(*path)
        return f" ({where})" if where else ""

    def where(self, *path: str) -> str:
        """Where an option was written: `file:line`, or its flag; empty when it was left to its default."""
        for depth in range(len(path), 0, -1):
            where = self.origins.get(".".join(path[:depth]))
            if where:
                return where
        return ""

    def place_of(self, sentence: str) -> str:
        """The place of what a sentence about a mistake begins with: an option, or a corpus; empty where it has none."""
        subject = _SUBJECT.match(sentence)
        options = re.findall(r"[\w.]+", subject[0]) if subject else []
        corpus = _CORPUS.search(sentence)
        places = [self.where(*option.split(".")) for option in options]
        places += [self.where("data", corpus[1])] if corpus else []
        return next((place for place in places if place), "")


_SUBJECT = re.compile(r"(?:['`]?[a-z][\w.]*['`]?(?:, (?:and |or )?| and | or ))*['`]?[a-z][\w.]*")
_CORPUS = re.compile(r"[Cc]orpus '([^']+)'")

Checks = Callable[[Loaded[Any]], Iterable[Problem]]
"""Finds mistakes in a job that the schema knows nothing of: files that are missing, names that nobody has."""


@dataclass
class _Given:
    """What the user wrote, flat, and where."""

    values: dict[str, Any] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)
    files: dict[str, YamlFile] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    invalid: set[str] = field(default_factory=set)

    def put(self, key: str, value: Any, where: str, file: YamlFile | None) -> None:
        self.values[key] = value
        self.where[key] = where
        if file is None:
            self.files.pop(key, None)
        else:
            self.files[key] = file

    def complain(self, key: str, sentence: str, where: str | None = None) -> None:
        where = self.where.get(key, "") if where is None else where
        self.problems.append(Problem(sentence, where))

    def in_order(self, configs: Sequence[str]) -> list[Problem]:
        """All problems as they stand in the files and, behind these, on the command line."""
        flags_ = [where for where in self.where.values() if where.startswith("-")]

        def place(problem: Problem) -> tuple[int, int]:
            path, _, line = problem.where.rpartition(":")
            if path in configs:
                return configs.index(path), int(line)
            return len(configs), flags_.index(problem.where) if problem.where in flags_ else len(flags_)

        return sorted(self.problems, key=place)


def load(
    job: type[JobT],
    argv: Sequence[str],
    *,
    prog: str,
    extra: Mapping[str, type[Section]] | None = None,
    siblings: Mapping[str, type[Section]] | None = None,
    switches: Mapping[str, str] | None = None,
    short: Mapping[str, str] | None = None,
    checks: Checks | None = None,
    plugin_missing: bool = False,
) -> Loaded[JobT]:
    """Read `-config` files and flags into `job`.

    Args:
        job: The job's section of sections.
        argv: Command line without the program's name.
        prog: Name of the command, for help and messages.
        extra: Sections of plug-ins (`data.transforms.sections()`).
        siblings: Jobs of other commands, by command: their keys are accepted with a note, so that one YAML serves all.
        switches: Flags of the command itself, with their help: `{"dry_run": "..."}`.
        short: One-letter flags: `{"q": "quantization"}`.
        checks: What else is to be reported together with the schema's findings, unless the configuration is only to be
            printed.
        plugin_missing: A plug-in could not be loaded: ignore unknown options that resemble no other, since they may be
            those of the plug-in.

    Raises:
        OnmtLlmError: With every mistake found, one sentence a line (`errors.raise_problems`).
        SystemExit: After `-help`.
    """
    table = leaves(job, extra)
    parsed = flags.parse(
        argv,
        table,
        prog=prog,
        about=" ".join((job.__doc__ or "").split()),
        sections=section_docs(job, extra),
        switches=switches or {},
        short=short or {},
    )
    given = _Given()
    for path in parsed.configs:
        _read_file(path, job, extra or {}, given)
    for key, text in parsed.values.items():
        given.put(key, _from_flag(text, table.get(key)), f"-{key}", None)
    for dotted, text in parsed.sets:
        _set_nested(dotted, parse_scalar(text), given)
    translation = _translate(given, table)
    given.problems += parsed.problems
    _check_names(translation, table, siblings or {}, given, plugin_missing=plugin_missing)
    job_object, options = _build(job, extra or {}, table, translation, given)
    origins = _origins(translation, given)
    invalid = frozenset(given.invalid)
    told = (given.notes, parsed.switches, given.warnings, invalid, parsed.configs)
    loaded = Loaded(job_object, options, origins, *told)
    if checks is not None and not parsed.switches["print_config"]:
        given.problems += checks(loaded)
    raise_problems(given.in_order(parsed.configs))
    given.notes.extend(_differing_defaults(job_object, options, table, translation, given))
    return loaded


def find_plugins(argv: Sequence[str]) -> list[str]:
    """What `plugins` will be, from files and flags: those modules must be loaded before anything else is looked at.

    Raises:
        ConfigError: A `-config` file cannot be read.
    """
    plugins: Any = flags.words_of("plugins", argv) or None
    for path in reversed(flags.words_of("config", argv)):
        values = read_yaml(path).values
        for held in (values, *(section for section in values.values() if isinstance(section, dict))):
            plugins = held.get("plugins") if plugins is None else plugins
    return [str(each) for each in (plugins if isinstance(plugins, list) else [plugins]) if each is not None]


def _read_file(path: str, job: type[Section], extra: Mapping[str, type[Section]], given: _Given) -> None:
    """Add a file's keys, with sectioned YAML flattened."""
    file = read_yaml(path)
    given.warnings.extend(file.repeated)
    section_names = {*job.model_fields, *extra}
    for key, value in file.values.items():
        if key in section_names and isinstance(value, dict):
            for leaf, inner in value.items():
                given.put(str(leaf), inner, file.where((key, str(leaf))), file)
        else:
            given.put(key, value, file.where((key,)), file)


def _from_flag(texts: list[str] | bool, leaf: Leaf | None) -> Any:
    if isinstance(texts, bool):
        return texts
    if leaf is not None and leaf.is_list:
        if len(texts) == 1 and texts[0].startswith("["):
            return parse_scalar(texts[0])
        return texts if leaf.type_name == "list of str" else [parse_scalar(text) for text in texts]
    if leaf is not None and leaf.type_name == "str":
        return None if texts[0] in ("None", "null") else texts[0]
    return parse_scalar(" ".join(texts))


def _set_nested(dotted: str, value: Any, given: _Given) -> None:
    """`--set data.alpaca.weight=5`."""
    parts = dotted.split(".")
    if len(parts) == 1:
        given.put(parts[0], value, f"--set {dotted}", None)
        return
    root = given.values.get(parts[0])
    tree: dict[str, Any] = _copy_tree(root) if isinstance(root, dict) else {}
    node = tree
    for part in parts[1:-1]:
        child = node.get(part)
        node[part] = child if isinstance(child, dict) else {}
        node = node[part]
    node[parts[-1]] = value
    given.values[parts[0]] = tree
    given.where.setdefault(parts[0], f"--set {dotted}")


def _copy_tree(tree: dict[str, Any]) -> dict[str, Any]:
    return {key: _copy_tree(value) if isinstance(value, dict) else value for key, value in tree.items()}


def _translate(given: _Given, table: Mapping[str, Leaf]) -> Translation:
    translation = translate(given.values, table)
    for key, sentence in translation.notes:
        given.notes.append(f"{given.where.get(key, '')}  {sentence}".strip())
    for key, sentence in translation.errors:
        given.complain(key, sentence)
        given.invalid.add(key)
    return translation


def _differing_defaults(
    job: Section,
    options: Mapping[str, Section],
    table: Mapping[str, Leaf],
    translation: Translation,
    given: _Given,
) -> Iterator[str]:
    """What a file in OpenNMT-py's names leaves to defaults that are not OpenNMT-py's, for jobs that train."""
    if "optim" not in table or not is_for_opennmt(given.values, table):
        return
    resolved = job.resolved()
    sections = {**{name: getattr(resolved, name) for name in type(resolved).model_fields}, **options}
    values = {name: getattr(sections[leaf.section], name) for name, leaf in table.items()}
    sentence = differing_defaults({*translation.values, *given.values}, values)
    if sentence:
        yield sentence


def _check_names(
    translation: Translation,
    table: Mapping[str, Leaf],
    siblings: Mapping[str, type[Section]],
    given: _Given,
    *,
    plugin_missing: bool,
) -> None:
    """Unknown keys are errors with the nearest name; the keys of a sibling command are a note."""
    unused: dict[str, list[str]] = {}
    other = {leaf: command for command, kind in reversed(list(siblings.items())) for leaf in leaves(kind)}
    for leaf in list(translation.values):
        if leaf in table:
            continue
        key = translation.sources[leaf]
        if leaf in other and key not in table and not any(translation.sources.get(used) == key for used in table):
            unused.setdefault(other[leaf], []).append(key)
        elif key == leaf:
            guess = nearest(key, [*table, *effective_names(), *other])
            given.invalid.update({guess} if guess else ())
            if guess or not plugin_missing:
                given.complain(key, f"'{key}' is not a known option" + (f": did you mean '{guess}'?" if guess else "."))
        # what is left: the part of an alias (`model_task`) that means nothing to this job
        del translation.values[leaf]
    for command, keys in unused.items():
        names = ", ".join(f"'{key}'" for key in dict.fromkeys(keys))
        given.notes.append(f"Not used here, but by {command}: {names}.")


def _build(
    job: type[JobT],
    extra: Mapping[str, type[Section]],
    table: Mapping[str, Leaf],
    translation: Translation,
    given: _Given,
) -> tuple[JobT, dict[str, Section]]:
    """Validate section by section, so that one section's mistake does not hide another's.

    Where something is wrong, the job is a draft of what is right.
    """
    grouped: dict[str, dict[str, Any]] = {}
    for leaf_name, value in translation.values.items():
        leaf = table[leaf_name]
        if contains_nul(value):
            key = translation.sources.get(leaf_name, leaf_name)
            given.complain(key, f"'{key}' must not hold the character NUL.")
            given.invalid.add(leaf_name)
            continue
        value = gather_options(value, table) if leaf_name == "data" else value
        grouped.setdefault(leaf.section, {})[leaf_name] = coerce(value, leaf)
    kinds: dict[str, Any] = {name: info.annotation for name, info in job.model_fields.items()} | dict(extra)
    built: dict[str, Section] = {}
    for name, kind in kinds.items():
        if name not in grouped and name not in extra:
            continue
        try:
            built[name] = kind.model_validate(grouped.get(name, {}))
        except ValidationError as error:
            _explain(error, table, translation, given)
            built[name] = validate_partially(kind, grouped.get(name, {}))
    for path, sentence in corpus_problems(grouped, extra, table):
        key = translation.sources["data"]
        file = given.files.get(key)
        where = file.where(_in_file(file, (key, *path))) if file else None
        given.complain(key, sentence, where)
    options = {name: built.pop(name) for name in extra}
    try:
        return job.model_validate(built), options
    except ValidationError as error:
        _explain(error, table, translation, given)
        sections: Any = built
        drafted: Any = job.model_construct(**sections)
        return drafted, options


def _explain(error: ValidationError, table: Mapping[str, Leaf], translation: Translation, given: _Given) -> None:
    """Turn pydantic's findings into sentences with a place."""
    for finding in error.errors():
        path = tuple(str(part) for part in finding["loc"] if not isinstance(part, int))
        if not path or path[0] not in table:
            for sentence in str(finding.get("ctx", {}).get("error", finding["msg"])).split("\n"):
                mentioned = _mentioned(sentence, translation.values)
                if not given.invalid.intersection(mentioned):
                    key = next(iter(mentioned), "")
                    given.complain(translation.sources.get(key, key), sentence + ".")
            continue
        given.invalid.add(path[0])
        key = translation.sources.get(path[0], path[0])
        file = given.files.get(key)
        where = file.where(_in_file(file, (key, *path[1:]))) if file and len(path) > 1 else given.where.get(key, "")
        of_transforms = [leaf.name for leaf in table.values() if leaf.extra] if path[0] == "data" else []
        given.complain(key, explain(finding, ".".join((key, *path[1:])), table[path[0]], path, of_transforms), where)


def _in_file(file: YamlFile, path: tuple[str, ...]) -> tuple[str, ...]:
    """The path as it stands in the file, where the key may sit in a section."""
    if path[:1] in file.lines:
        return path
    for known in file.lines:
        if len(known) == 2 and known[1] == path[0]:
            return (known[0], *path)
    return path


def _mentioned(sentence: str, names: Iterable[str]) -> list[str]:
    """The options, of those that were written, that a sentence is about, as it names them."""
    known = set(names)
    return [word for word in sentence.replace(",", " ").split() if word in known]


def _origins(translation: Translation, given: _Given) -> dict[str, str]:
    origins: dict[str, str] = {}
    for leaf in translation.values:
        key = translation.sources.get(leaf, leaf)
        origins[leaf] = given.where.get(key, "")
        file = given.files.get(key)
        if file is None:
            continue
        top = _in_file(file, (key,))
        for path in file.lines:
            if len(path) > len(top) and path[: len(top)] == top:
                origins[".".join((leaf, *path[len(top) :]))] = file.where(path)
    return origins
