"""`complete_corpora`: the corpora that options of a job stand for.

Datasets of the Hub are fetched into its cache and pinned to a commit; a corpus with `group_by` becomes those of its
groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from onmt_llm.checkpoint.directory import resolve_path
from onmt_llm.checkpoint.hub import cache_dataset
from onmt_llm.checkpoint.provenance import read_provenance
from onmt_llm.cli.inputs import is_missing_file
from onmt_llm.config.data import CorpusConfig, DataConfig, is_for_validation
from onmt_llm.config.loading.load import Loaded
from onmt_llm.config.train import AUTO, TrainConfig
from onmt_llm.data.grouping import grouped
from onmt_llm.data.readers.hub_path import HubPath
from onmt_llm.data.readers.opening import BESIDE, SOURCES
from onmt_llm.errors import CheckpointError, ConfigError, DataError, OnmtLlmError, Problem
from onmt_llm.output_checks import name_problem
from onmt_llm.training.run_folder import checkpoints


def complete_corpora(loaded: Loaded[Any]) -> tuple[Loaded[Any], list[Problem]]:
    """Replace corpora by those that their options stand for, and say so in the notes.

    Returns:
        The job with these corpora, of which those of groups have the places of their corpus; and the mistakes in the
        options.
    """
    data = getattr(loaded.job, "corpora", None)
    if not isinstance(data, DataConfig) or "data" in loaded.invalid:
        return loaded, []
    corpora: dict[str, CorpusConfig] = {}
    origins, notes, problems, invalid = dict(loaded.origins), list(loaded.notes), [], loaded.invalid
    for name, corpus in data.data.items():
        place, groups = loaded.where("data", name), {name: corpus}
        try:
            corpus = (
                pinned(corpus, _revisions_of_run(loaded.job, name)) if any(map(_on_hub, _paths(corpus))) else corpus
            )
            groups = grouped(name, corpus)
            _check_names(name, groups, {*data.data, *corpora} - {name})
        except OnmtLlmError as error:
            if isinstance(error, _NotFetched) or not is_missing_file(loaded, name, corpus, error):
                problems.append(Problem.of(error, place))
                groups, invalid = {}, invalid | {"data"}
        corpora |= groups
        sentences = [f"Corpus '{name}' is read from {path}." for path in _paths(corpus) if _on_hub(path)]
        if groups and name not in groups:
            origins |= _origins(loaded.origins, name, groups)
            sentences.append(_shares(name, groups))
        notes += [f"{place}  {sentence}".strip() for sentence in sentences]
    job = loaded.job.model_copy(update={"corpora": data.model_copy(update={"data": corpora})})
    return replace(loaded, job=job, origins=origins, notes=notes, invalid=invalid), problems


class _NotFetched(DataError):
    """A dataset is neither in the cache of the Hub nor to be had from the Hub."""


def pinned(corpus: CorpusConfig, revisions: Mapping[str, str]) -> CorpusConfig:
    """The corpus with its datasets of the Hub in the cache, and the commits in their addresses.

    Args:
        corpus: Its options.
        revisions: Commits by dataset, for addresses without a revision.

    Raises:
        DataError: There is no such dataset, or the Hub cannot be reached.
        ConfigError: An address is wrong.
    """
    update: dict[str, Any] = {}
    for key in (*SOURCES, *BESIDE):
        value = getattr(corpus, key)
        paths = [value] if isinstance(value, str) else value or []
        if any(map(_on_hub, paths)):
            update[key] = [_fetched(path, corpus.dataset_split, revisions) for path in paths]
    return corpus.model_copy(update=update)


def _fetched(text: str, split: str, revisions: Mapping[str, str]) -> str:
    address = HubPath.parse(text)
    if address is None:
        return text
    if "@" not in text:
        address = address.at(revisions.get(address.repo, address.revision))
    try:
        return str(address.at(cache_dataset(address.repo, address.revision, address.files(split))))
    except CheckpointError as error:
        command = f"onmt_llm_hub download -dataset true -repo {address.repo} -output FOLDER"
        raise _NotFetched(
            error.message, hint=f"or, where the Hub can be reached, {command}; then name FOLDER"
        ) from error


def _revisions_of_run(job: Any, corpus: str) -> Mapping[str, str]:
    """The commits of the datasets that a corpus was read from, if the job resumes a run."""
    if not isinstance(job, TrainConfig):
        return {}
    own = list(checkpoints(job.run.save_model).values())
    named = job.start.train_from
    if not own or named is None or (named != AUTO and resolve_path(named).resolve() not in [p.resolve() for p in own]):
        return {}
    runs = read_provenance(own[-1]).runs
    used = runs[-1].corpora if runs else []
    found = [each.sources for each in used if each.name == corpus or each.name.startswith(f"{corpus}_")]
    addresses = [HubPath.parse(source) for sources in found for source in sources]
    return {address.repo: address.revision for address in addresses if address}


def _paths(corpus: CorpusConfig) -> list[str]:
    values = [getattr(corpus, key) or [] for key in (*SOURCES, *BESIDE)]
    return [path for value in values for path in ([value] if isinstance(value, str) else value)]


def _on_hub(path: str) -> bool:
    return path.startswith("hf://")


def _origins(origins: Mapping[str, str], name: str, groups: Mapping[str, CorpusConfig]) -> dict[str, str]:
    """The places of a corpus for those of its groups."""
    whole = f"data.{name}"
    own = {key: where for key, where in origins.items() if key == whole or key.startswith(f"{whole}.")}
    return {f"data.{group}{key[len(whole) :]}": where for group in groups for key, where in own.items()}


def _shares(name: str, groups: Mapping[str, CorpusConfig]) -> str:
    weights = {group: "" if is_for_validation(name) else f" (weight {c.weight:.3g})" for group, c in groups.items()}
    return f"Corpus '{name}' is read in {len(groups)} groups: {', '.join(g + w for g, w in weights.items())}."


def _check_names(name: str, groups: Mapping[str, CorpusConfig], others: set[str]) -> None:
    for group in groups:
        if problem := name_problem(group):
            raise ConfigError(f"Groups of corpus '{name}' must be parts of file names, but '{group}' {problem}.")
        if group in others:
            raise ConfigError(f"Groups of corpus '{name}' must have names of their own, but '{group}' is a corpus too.")
