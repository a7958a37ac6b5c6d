"""The files and models that a job reads, and checks that they exist."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from glob import has_magic
from pathlib import Path
from typing import Any

from onmt_llm.checkpoint.directory import resolve_path
from onmt_llm.config.checkpoint import CheckpointConfig, read_config
from onmt_llm.config.data import CorpusConfig
from onmt_llm.config.loading.load import Loaded
from onmt_llm.data.readers.files import files_of
from onmt_llm.data.readers.opening import BESIDE, SOURCES
from onmt_llm.errors import DataError, OnmtLlmError, Problem
from onmt_llm.generate.open import find_release

Input = tuple[str, str, tuple[str, ...]]
"""Name of an option, its path, and its place in the YAML."""


def missing_files(loaded: Loaded[Any], files: Iterable[Input], *, streams: bool = False) -> Iterator[Problem]:
    """Input files of a job that do not exist.

    Args:
        loaded: The job.
        files: Its input files.
        streams: Standard input (`-`), pipes and devices are allowed too.
    """
    for name, path, where in files:
        file = Path(path)
        if file.is_file() or (streams and (path == "-" or file.is_fifo() or file.is_char_device())):
            continue
        what = "is a folder" if file.is_dir() else "matches none" if has_magic(path) else "is not"
        sentence = f"{name} must be a file that exists, but '{path}' {what}."
        yield Problem(sentence, loaded.where(*where), kind=DataError)


def corpus_files(loaded: Loaded[Any]) -> Iterator[Input]:
    """The files of all corpora; a pattern without a match is given as it is."""
    for name, corpus in loaded.job.corpora.data.items():
        yield from files_of_corpus(name, corpus)


def files_of_corpus(name: str, corpus: CorpusConfig) -> Iterator[Input]:
    """The files of one corpus, and of the datasets that it names by their folders."""
    for key in (*SOURCES, *BESIDE):
        value = getattr(corpus, key) or ()
        for text in [value] if isinstance(value, str) else value:
            for path in _matching(corpus, key, text):
                yield f"'data.{name}.{key}'", path, ("data", name, key)


def is_missing_file(loaded: Loaded[Any], name: str, corpus: CorpusConfig, error: OnmtLlmError) -> bool:
    """Whether an error of a corpus is a pattern that matches no file, which `missing_files` reports."""
    return isinstance(error, DataError) and any(missing_files(loaded, files_of_corpus(name, corpus)))


def _matching(corpus: CorpusConfig, key: str, text: str) -> list[str]:
    try:
        return [str(path) for path in files_of(corpus.model_copy(update={key: text, "split": None}), key)]
    except OnmtLlmError:
        return [text] if has_magic(text) else []


def subword_files(loaded: Loaded[Any]) -> Iterator[Input]:
    """The tokeniser models that the options name."""
    for section in loaded.options.values():
        for key in ("src_subword_model", "tgt_subword_model"):
            if getattr(section, key, None):
                yield f"'{key}'", getattr(section, key), (key,)


def option_files(loaded: Loaded[Any], section: str, names: Iterable[str]) -> Iterator[Input]:
    """The files that options of one section name."""
    for name in names:
        path = getattr(getattr(loaded.job, section), name)
        if path:
            yield f"'{name}'", path, (name,)


def missing_models(
    loaded: Loaded[Any], section: str, names: Iterable[str], *, releases: bool = False, readable: bool = True
) -> Iterator[Problem]:
    """Problems of the checkpoints that options of one section name; weights are not read.

    Args:
        loaded: The job.
        section: Section of the options.
        names: The options; each holds one or several paths.
        releases: CTranslate2 releases are allowed too.
        readable: Also read their configurations.
    """
    for name in names:
        value = getattr(getattr(loaded.job, section), name) or ()
        for path in [value] if isinstance(value, str) else value:
            yield from model_problems(path, name, loaded.where(name), releases=releases, readable=readable)


def model_problems(
    path: str, name: str, where: str, *, releases: bool = False, readable: bool = True
) -> Iterator[Problem]:
    """Problems of one checkpoint; its weights are not read.

    Args:
        path: The checkpoint.
        name: The option that names it.
        where: The place of the option.
        releases: A CTranslate2 release is allowed too.
        readable: Also read its configuration.
    """
    try:
        if not (releases and find_release(path)):
            directory = resolve_path(path)
            if readable:
                read_config(directory)
    except OnmtLlmError as error:
        yield Problem(f"{name}: {error.message}", where, error.hint, type(error))


def model_config(path: str) -> CheckpointConfig:
    """The configuration of a checkpoint or a CTranslate2 release.

    Raises:
        CheckpointError: There is none.
    """
    return read_config(find_release(path) or resolve_path(path))


def missing_options(loaded: Loaded[Any], section: str, names: Iterable[str], usage: str) -> Iterator[Problem]:
    """Required options that are not given."""
    for name in names:
        if not getattr(getattr(loaded.job, section), name) and name not in loaded.invalid:
            yield Problem(f"'{name}' must be given, but is not.", hint=usage)
