"""Load a job from files, flags and Python: `load(TrainConfig, argv, CommandLine("onmt_llm_train"))`.

Later sources win: defaults < `-config` files in their order < flags < values of Python. `Loaded.origins` has the origin
of every value.
All mistakes are reported together, in the order of the files, each in one sentence with its line. They include those
found by the command's own checks, which run on the valid part of the configuration.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic

from onmt_llm.config.compat.opennmt_defaults import differing_defaults, differing_inference_defaults
from onmt_llm.config.compat.translate import effective_names, is_for_opennmt, translate
from onmt_llm.config.compat.values import Translation
from onmt_llm.config.loading import flags
from onmt_llm.config.loading.flags import CommandLine
from onmt_llm.config.loading.user_input import UserInput
from onmt_llm.config.loading.validation import JobT, build_job
from onmt_llm.config.section import Option, Section, options_of, section_docs
from onmt_llm.errors import Problem, raise_problems
from onmt_llm.registry import nearest


@dataclass(frozen=True)
class Loaded(Generic[JobT]):
    """A validated job.

    Attributes:
        job: The job with all its sections.
        options: Sections of the transforms, by name; also in `corpora.transform_options`.
        origins: The origin of each option that was set (`replicate.yaml:17`, `-seed`), by its dotted path.
        notes: Sentences to log before anything runs.
        switches: Flags of the command itself: `dry_run`, `print_config` ...
        warnings: Sentences to warn with, before the notes.
        invalid: Options with an invalid value, and those that a misspelt name was probably meant to be. Only `finish`
            sees any; in their job, these options have their defaults.
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
        """The origin of an option as ` (file:line)`; empty if it was not set."""
        where = self.where(*path)
        return f" ({where})" if where else ""

    def where(self, *path: str) -> str:
        """The origin of an option: `file:line`, or its flag; empty if it was not set."""
        for depth in range(len(path), 0, -1):
            where = self.origins.get(".".join(path[:depth]))
            if where:
                return where
        return ""

    def place_of(self, sentence: str) -> str:
        """The origin of the option or corpus that the sentence of an error is about; empty if there is none."""
        subject = _SUBJECT.match(sentence)
        options = re.findall(r"[\w.]+", subject[0]) if subject else []
        corpus = _CORPUS.search(sentence)
        places = [self.where(*option.split(".")) for option in options]
        places += [self.where("data", corpus[1])] if corpus else []
        return next((place for place in places if place), "")


_SUBJECT = re.compile(r"(?:['`]?[a-z][\w.]*['`]?(?:, (?:and |or )?| and | or ))*['`]?[a-z][\w.]*")
_CORPUS = re.compile(r"[Cc]orpus '([^']+)'")

Checks = Callable[[Loaded[Any]], Iterable[Problem]]
"""Finds mistakes that the schema cannot find: missing files, unknown names."""
Finish = Callable[[Loaded[Any]], tuple[Loaded[Any], Iterable[Problem]]]
"""Replaces options by what they stand for, as files say, and finds mistakes that the schema cannot find."""


def load(
    job: type[JobT],
    argv: Sequence[str],
    command: CommandLine,
    *,
    values: Mapping[str, Any] | None = None,
    extra: Mapping[str, type[Section]] | None = None,
    siblings: Callable[[], Mapping[str, type[Section]]] = dict,
    finish: Finish | None = None,
    plugin_missing: bool = False,
) -> Loaded[JobT]:
    """Read `-config` files and flags, and validate them.

    Args:
        job: The job's class, a section of sections.
        argv: Command line without the program name.
        command: Name and flags of the command.
        values: Options given as Python objects, by name; sections are allowed as in a file.
        extra: Sections of transforms, by name (`data.transforms.build.sections()`).
        siblings: Gives the jobs of other commands, by command; their options are accepted with a note, so that one YAML
            file can serve all commands. Called only if there are options that are not this job's.
        finish: Completes and checks the job; its problems are reported together with those of the schema. Skipped with
            `-print_config`.
        plugin_missing: A plug-in could not be loaded: ignore unknown options that resemble no other, since they may be
            those of the plug-in.

    Raises:
        OnmtLlmError: With all mistakes found, one sentence per line (`errors.raise_problems`).
        SystemExit: After `-help`.
    """
    table = options_of(job, extra)
    parsed = flags.parse(
        argv, table, command, about=" ".join((job.__doc__ or "").split()), sections=section_docs(job, extra)
    )
    user = UserInput()
    sections = {*job.model_fields, *(extra or {})}
    for path in parsed.configs:
        user.read_file(path, sections)
    for key, words in parsed.values.items():
        user.read_flag(key, words, table.get(key))
    for dotted, text in parsed.sets:
        user.set_nested(dotted, text)
    user.read_values(values or {}, sections)
    translation = _translate(user, table)
    user.problems += parsed.problems
    _check_names(translation, table, siblings, user, plugin_missing=plugin_missing)
    job_object, options = build_job(job, extra or {}, table, translation, user)
    origins = _origins(translation, user)
    loaded = Loaded(
        job_object,
        options,
        origins,
        user.notes,
        switches=parsed.switches,
        warnings=user.warnings,
        invalid=frozenset(user.invalid),
        configs=parsed.configs,
    )
    if finish is not None and not parsed.switches["print_config"]:
        loaded, problems = finish(loaded)
        user.problems += problems
    raise_problems(user.in_order(parsed.configs))
    loaded.notes.extend(_differing_defaults(job_object, options, table, translation, user))
    return loaded


def _translate(user: UserInput, table: Mapping[str, Option]) -> Translation:
    translation = translate(user.values, table)
    for key, sentence in translation.notes:
        user.notes.append(f"{user.place(key)}  {sentence}".strip())
    for key, sentence in translation.errors:
        user.report(sentence, user.place(key))
        user.invalid.add(key)
    return translation


def _differing_defaults(
    job: Section,
    options: Mapping[str, Section],
    table: Mapping[str, Option],
    translation: Translation,
    user: UserInput,
) -> Iterator[str]:
    """A note about defaults that differ from OpenNMT-py's, if the options were written for OpenNMT-py."""
    find = differing_defaults if "optim" in table else differing_inference_defaults if "with_score" in table else None
    if find is None or not is_for_opennmt(user.values, table):
        return
    resolved = job.resolved() if "optim" in table else job
    sections = {**{name: getattr(resolved, name) for name in type(resolved).model_fields}, **options}
    values = {name: getattr(sections[option.section], name) for name, option in table.items()}
    sentence = find({*translation.values, *user.values}, values)
    if sentence:
        yield sentence


def _check_names(
    translation: Translation,
    table: Mapping[str, Option],
    siblings: Callable[[], Mapping[str, type[Section]]],
    user: UserInput,
    *,
    plugin_missing: bool,
) -> None:
    """Report unknown options with the nearest name; note options of other commands."""
    foreign = [name for name in translation.values if name not in table]
    if not foreign:
        return
    unused: dict[str, list[str]] = {}
    other = {name: command for command, kind in reversed(list(siblings().items())) for name in options_of(kind)}
    for name in foreign:
        key = translation.sources[name]
        if name in other and key not in table and not any(translation.sources.get(used) == key for used in table):
            unused.setdefault(other[name], []).append(key)
        elif key == name:
            guess = nearest(key, [*table, *effective_names(), *other])
            user.invalid.update({guess} if guess else ())
            if guess or not plugin_missing:
                ending = f": did you mean '{guess}'?" if guess else "."
                user.report(f"'{key}' is not a known option{ending}", user.place(key))
        # else it is part of a translated option (`model_task`), without meaning for this job
        del translation.values[name]
    for command, keys in unused.items():
        names = ", ".join(f"'{key}'" for key in dict.fromkeys(keys))
        user.notes.append(f"Not used here, but by {command}: {names}.")


def _origins(translation: Translation, user: UserInput) -> dict[str, str]:
    origins: dict[str, str] = {}
    for name in translation.values:
        key = translation.sources.get(name, name)
        origins[name] = user.place(key)
        file = user.files.get(key)
        if file is None:
            continue
        top = user.path_in_file(key)
        for path in file.lines:
            if len(path) > len(top) and path[: len(top)] == top:
                origins[".".join((name, *path[len(top) :]))] = file.where(path)
    return origins
