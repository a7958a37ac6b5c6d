"""Options of transforms that are set for one corpus, under `options` or directly among the keys of the corpus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from onmt_llm.config.loading.messages import coerce, explain
from onmt_llm.config.section import Option, Section
from onmt_llm.registry import nearest


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


def corpus_problems(
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
