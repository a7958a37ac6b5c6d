"""`complete_corpora`: the corpora that options of a job stand for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from onmt_llm.cli.inputs import is_missing_file
from onmt_llm.config.data import CorpusConfig, DataConfig, is_for_validation
from onmt_llm.config.loading.load import Loaded
from onmt_llm.data.grouping import grouped
from onmt_llm.errors import ConfigError, OnmtLlmError, Problem
from onmt_llm.output_checks import name_problem


def complete_corpora(loaded: Loaded[Any]) -> tuple[Loaded[Any], list[Problem]]:
    """Replace a corpus with `group_by` by those of its groups, and say so in the notes.

    Returns:
        The job with the corpora of groups, which have the places of their corpus; and the mistakes in those options.
    """
    data = getattr(loaded.job, "corpora", None)
    if not isinstance(data, DataConfig) or "data" in loaded.invalid:
        return loaded, []
    corpora: dict[str, CorpusConfig] = {}
    origins, notes, problems = dict(loaded.origins), list(loaded.notes), []
    for name, corpus in data.data.items():
        place = loaded.where("data", name)
        try:
            groups = grouped(name, corpus)
            _check_names(name, groups, {*data.data, *corpora} - {name})
        except OnmtLlmError as error:
            groups = {name: corpus}
            if not is_missing_file(loaded, name, corpus, error):
                problems.append(Problem.of(error, place))
        corpora |= groups
        if name in groups:
            continue
        for group in groups:
            whole, own = f"data.{name}", f"data.{group}"
            origins |= {own + key[len(whole) :]: where for key, where in loaded.origins.items() if _is_in(key, whole)}
        shares = ", ".join(
            group if is_for_validation(name) else f"{group} (weight {each.weight:.3g})"
            for group, each in groups.items()
        )
        notes.append(f"{place}  Corpus '{name}' is read in {len(groups)} groups: {shares}.".strip())
    job = loaded.job.model_copy(update={"corpora": data.model_copy(update={"data": corpora})})
    return replace(loaded, job=job, origins=origins, notes=notes), problems


def _is_in(key: str, whole: str) -> bool:
    return key == whole or key.startswith(f"{whole}.")


def _check_names(name: str, groups: dict[str, CorpusConfig], others: set[str]) -> None:
    for group in groups:
        if problem := name_problem(group):
            raise ConfigError(f"Groups of corpus '{name}' must be parts of file names, but '{group}' {problem}.")
        if group in others:
            raise ConfigError(f"Groups of corpus '{name}' must have names of their own, but '{group}' is a corpus too.")
