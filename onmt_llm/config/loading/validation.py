"""From values to validated sections: coerce each to its schema, validate, and explain mistakes in sentences.

Transforms' options of single corpora, under `options` or directly among the keys of the corpus, are validated with
the global ones. In an invalid configuration the valid part is kept, so that one mistake does not hide others.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import TypeAdapter, ValidationError

from onmt_llm.config.compat.names import RETIRED_IN_CORPUS
from onmt_llm.config.compat.values import Translation
from onmt_llm.config.data import DataConfig
from onmt_llm.config.loading.user_input import UserInput
from onmt_llm.config.section import Option, Section
from onmt_llm.registry import nearest

JobT = TypeVar("JobT", bound=Section)


def build_job(
    job: type[JobT],
    extra: Mapping[str, type[Section]],
    table: Mapping[str, Option],
    translation: Translation,
    user: UserInput,
) -> tuple[JobT, dict[str, Section]]:
    """Validate section by section, so that mistakes in one section do not hide those in another.

    Args:
        job: The job's class, a section of sections.
        extra: Sections of transforms, by name.
        table: All options, by name.
        translation: The user's values in our names.
        user: Receives the mistakes.

    Returns:
        The job and the sections of transforms; if there are mistakes, with the valid part.
    """
    grouped: dict[str, dict[str, Any]] = {}
    for name, value in translation.values.items():
        option = table[name]
        if contains_nul(value):
            key = translation.sources.get(name, name)
            user.report(f"'{key}' must not contain the character NUL.", user.place(key))
            user.invalid.add(name)
            continue
        value = gather_options(value, table) if name == "data" else value
        grouped.setdefault(option.section, {})[name] = coerce(value, option)
    kinds: dict[str, Any] = {name: info.annotation for name, info in job.model_fields.items()} | dict(extra)
    built: dict[str, Section] = {}
    for name, kind in kinds.items():
        if name not in grouped and name not in extra:
            continue
        try:
            built[name] = kind.model_validate(grouped.get(name, {}))
        except ValidationError as error:
            _report(error, table, translation, user)
            built[name] = validate_partially(kind, grouped.get(name, {}))
    for place, sentence in _corpus_problems(grouped, extra, table):
        user.report(sentence, user.place_in_corpus(*place))
    options = {name: built.pop(name) for name in extra}
    if kinds.get("corpora") is DataConfig:
        corpora = built.get("corpora", DataConfig())
        built["corpora"] = corpora.model_copy(update={"transform_options": options})
    try:
        return job.model_validate(built), options
    except ValidationError as error:
        _report(error, table, translation, user)
        sections: Any = built
        partial: Any = job.model_construct(**sections)
        return partial, options


def _report(error: ValidationError, table: Mapping[str, Option], translation: Translation, user: UserInput) -> None:
    """Report pydantic's errors in sentences with their places."""
    for finding in error.errors():
        path = tuple(str(part) for part in finding["loc"] if not isinstance(part, int))
        if not path or path[0] not in table:
            for sentence in str(finding.get("ctx", {}).get("error", finding["msg"])).split("\n"):
                mentioned = _mentioned(sentence, translation.values)
                if not user.invalid.intersection(mentioned):
                    name = next(iter(mentioned), "")
                    user.report(f"{sentence}.", user.place(translation.sources.get(name, name)))
            continue
        user.invalid.add(path[0])
        key = translation.sources.get(path[0], path[0])
        of_transforms = [option.name for option in table.values() if option.extra] if path[0] == "data" else []
        sentence = explain(finding, ".".join((key, *path[1:])), table[path[0]], path, of_transforms)
        user.report(sentence, user.place(key, *path[1:]))


def _mentioned(sentence: str, names: Iterable[str]) -> list[str]:
    """The options that a sentence mentions, out of those that were set."""
    known = set(names)
    return [word for word in sentence.replace(",", " ").split() if word in known]


def gather_options(corpora: Any, table: Mapping[str, Option]) -> Any:
    """The value of `data`, with the transform options of each corpus moved into its `options`."""
    if not isinstance(corpora, dict):
        return corpora
    return {name: _gather(corpus, table) if isinstance(corpus, dict) else corpus for name, corpus in corpora.items()}


def _gather(corpus: dict[str, Any], table: Mapping[str, Option]) -> dict[str, Any]:
    listed = corpus.get("options") or {}
    if not isinstance(listed, dict):
        return corpus
    others = {key: value for key, value in corpus.items() if key != "options" and not _of_transform(key, table)}
    direct = {key: value for key, value in corpus.items() if _of_transform(key, table)}
    options = {
        key: coerce(value, table[key]) if _of_transform(key, table) else value
        for key, value in {**listed, **direct}.items()
    }
    return {**others, "options": options} if options else others


def _corpus_problems(
    grouped: Mapping[str, Mapping[str, Any]], extra: Mapping[str, type[Section]], table: Mapping[str, Option]
) -> Iterator[tuple[tuple[str, str], str]]:
    """Problems of the transform options that are set for single corpora: (corpus, option) and a sentence.

    Args:
        grouped: The user's values by section; `data` as returned by `gather_options`.
        extra: Sections of the transforms, by name.
        table: All options, by name.
    """
    corpora = grouped[table["data"].section].get("data") if "data" in table and "data" in _names(grouped) else None
    for name, corpus in corpora.items() if isinstance(corpora, dict) else ():
        options = corpus.get("options") if isinstance(corpus, dict) else None
        if not isinstance(options, dict):
            continue
        for option in options:
            if not _of_transform(option, table):
                guess = nearest(option, [each.name for each in table.values() if each.extra])
                sentence = f"'data.{name}.{option}' is not an option of a transform"
                yield (name, option), sentence + (f": did you mean '{guess}'?" if guess else ".")
        for section, kind in extra.items():
            own = {option: value for option, value in options.items() if option in kind.model_fields}
            if own:
                yield from _invalid_values(kind, {**grouped.get(section, {}), **own}, name, own, table)


def _invalid_values(
    kind: type[Section], values: Mapping[str, Any], corpus: str, own: Mapping[str, Any], table: Mapping[str, Option]
) -> Iterator[tuple[tuple[str, str], str]]:
    try:
        kind.model_validate(values)
    except ValidationError as error:
        for finding in error.errors():
            option = str(finding["loc"][0]) if finding["loc"] else ""
            if option in own:
                sentence = explain(finding, f"data.{corpus}.{option}", table[option], (option,))
                yield (corpus, option), sentence
            elif not option:  # about several options; if all of them are global, the section's own check reports it
                yield (corpus, next(iter(own))), f"{finding.get('ctx', {}).get('error', finding['msg'])}."


def _of_transform(option: str, table: Mapping[str, Option]) -> bool:
    return option in table and table[option].extra


def _names(grouped: Mapping[str, Mapping[str, Any]]) -> set[str]:
    return {name for values in grouped.values() for name in values}


def validate_partially(kind: type[Section], values: Mapping[str, Any]) -> Section:
    """Validate a section, dropping values that are invalid by themselves; values that only conflict are kept."""
    kept = copy.deepcopy(dict(values))
    with contextlib.suppress(ValidationError):
        return kind.model_validate(kept)
    _remove_invalid(kind, kept)
    with contextlib.suppress(ValidationError):
        return kind.model_validate(kept)
    valid: dict[str, Any] = {}
    for name, value in kept.items():
        with contextlib.suppress(ValidationError):
            annotation: Any = kind.model_fields[name].annotation
            valid[name] = TypeAdapter(annotation).validate_python(value)
    return kind.model_construct(**valid)


def _remove_invalid(kind: type[Section], values: dict[str, Any]) -> None:
    try:
        kind.model_validate(values)
    except ValidationError as error:
        for finding in error.errors():
            holder: Any = values
            path: list[Any] = list(finding["loc"])
            while len(path) > 1 and isinstance(holder.get(path[0]), dict) and path[1] in holder[path[0]]:
                holder = holder[path.pop(0)]
            if path:
                holder.pop(path[0], None)


def coerce(value: Any, option: Option) -> Any:
    """Turn a single value into a list of one, a number into text, and null into the default, as the option requires."""
    if option.is_list and value is not None and not isinstance(value, list | dict):
        value = [value]
    if option.type_name == "list of str" and isinstance(value, list):
        return [str(each) if isinstance(each, int | float) and not isinstance(each, bool) else each for each in value]
    if option.type_name == "str" and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if value is None and option.default is not None:
        return option.default
    return value


def contains_nul(value: Any) -> bool:
    """Whether a string in it contains the character NUL, which no file name may contain and no option needs."""
    if isinstance(value, dict):
        return any(contains_nul(each) for pair in value.items() for each in pair)
    return any(map(contains_nul, value)) if isinstance(value, list) else isinstance(value, str) and "\0" in value


def explain(finding: Any, name: str, option: Option, path: tuple[str, ...], names: Sequence[str] = ()) -> str:
    """Explain to the user what is wrong with a value.

    Args:
        finding: An error of pydantic's `ValidationError.errors()`.
        name: Dotted name of the option, for the message.
        option: The option of the job.
        path: Path of the error in the value of the option.
        names: Suggestions for an unknown name, besides the fields of the nested section.
    """
    value, kind, context = finding["input"], finding["type"], finding.get("ctx", {})
    if kind == "extra_forbidden":
        if path[0] == "data" and path[-1] in RETIRED_IN_CORPUS:
            reason = RETIRED_IN_CORPUS[path[-1]]
            return f"'{name}' is an option of OpenNMT-py that is no longer supported: {reason}."
        guess = nearest(path[-1], [*field_names(option), *names])
        return f"'{name}' is not a known option" + (f": did you mean '{guess}'?" if guess else ".")
    if kind == "literal_error":
        choices = [str(choice) for choice in option.choices] or [str(context.get("expected", ""))]
        guess = nearest(value, choices) if isinstance(value, str) else None
        text = f"'{name}' must be one of {', '.join(choice or repr('') for choice in choices)}, but is {shown(value)}"
        return text + (f": did you mean '{guess}'?" if guess else ".")
    if kind == "value_error":  # a sentence of our own validators, complete with the value
        return f"'{name}' {context['error']}."
    if kind == "string_too_short" and not value:
        return f"'{name}' must not be empty."
    guess = None
    if kind in _COMPARISONS:
        symbol, bound = _COMPARISONS[kind]
        limit = context[bound]
        wanted = f"must be {symbol} {limit if isinstance(limit, int) else format(limit, 'g')}"
    elif kind in ("finite_number", "number_size", "int_parsing_size"):
        wanted = "must be a finite number" if kind == "finite_number" else "must be a number of at most 64 bits"
    elif kind.split("_")[0] in _TYPES:
        wanted = f"must be {_TYPES[kind.split('_')[0]]}"
        guess = number_hint(value) if "number" in wanted and isinstance(value, str) else None
        guess = None if guess and "whole" in wanted and not guess.lstrip("+-").isdigit() else guess
    else:
        wanted = finding["msg"]
    return f"'{name}' {wanted}, but is {shown(value)}" + (f": did you mean {guess}?" if guess else ".")


_COMPARISONS = {
    "greater_than_equal": (">=", "ge"),
    "greater_than": (">", "gt"),
    "less_than_equal": ("<=", "le"),
    "less_than": ("<", "lt"),
}
_TYPES = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "string": "text", "list": "a list",
    "dict": "a mapping", "model": "a mapping",
}  # fmt: skip
_SHOWN = 60


def shown(value: Any) -> str:
    """A value in YAML syntax, truncated if it is long."""
    text = _written(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _written(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_written(each)}" for key, each in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return repr(value)


def number_hint(text: str) -> str | None:
    """The number that was probably meant by `1e-4x` or `1,000`; None if it is ambiguous (`1,2`, `1:30`, `10k`)."""
    text = text.strip()
    grouped = re.fullmatch(r"[-+]?[0-9]{1,3}([,_ ])[0-9]{3}(\1[0-9]{3})*(\.[0-9]+)?", text)
    if grouped:
        return re.sub("[,_ ]", "", text)
    stray = re.fullmatch(r"([-+]?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?)[^\w:.,/-]*[a-zA-Z]?", text)
    return stray[1] if stray and stray[1] != text and text[-1] not in "kKmMgGtTbB" else None


def field_names(option: Option) -> list[str]:
    """Field names of the nested section (a corpus, `rope`) in the value of an option."""
    kinds = [option.info.annotation, *get_args(option.info.annotation)]
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, Section):
            return list(kind.model_fields)
    return []
