"""The files that a job reads, looked for before any work begins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from onmt_llm.config.load import Loaded
from onmt_llm.data.readers.files import expand
from onmt_llm.data.readers.opening import BESIDE, SOURCES
from onmt_llm.errors import ConfigError, DataError

Input = tuple[str, str, tuple[str, ...]]
"""Name of an option, the path it has, its place in the YAML."""


def check_files(loaded: Loaded[Any], files: Iterable[Input]) -> None:
    """Refuse a job whose input files are not there, all of them at once.

    Raises:
        DataError: Files are missing.
    """
    missing = [
        f"{name} must be a file that exists, but '{path}' is not{loaded.origin(*where)}."
        for name, path, where in files
        if not Path(path).is_file()
    ]
    if missing:
        raise DataError("\n  ".join(missing))


def corpus_files(loaded: Loaded[Any]) -> Iterator[Input]:
    """The files of all corpora.

    Raises:
        ConfigError: No corpus is named.
    """
    data = loaded.job.corpora.data
    if not data:
        raise ConfigError(
            "'data' must name at least one corpus, but names none.", hint="data: {my_corpus: {path_src: train.txt}}"
        )
    for corpus, entry in data.items():
        for key in (*SOURCES, *BESIDE):
            for path in expand(getattr(entry, key) or ()):
                yield f"'data.{corpus}.{key}'", str(path), ("data", corpus, key)


def subword_files(loaded: Loaded[Any]) -> Iterator[Input]:
    """The tokenisers that the options name."""
    for section in loaded.options.values():
        for key in ("src_subword_model", "tgt_subword_model"):
            if getattr(section, key, None):
                yield f"'{key}'", getattr(section, key), (key,)


def option_files(loaded: Loaded[Any], section: str, names: Iterable[str]) -> Iterator[Input]:
    """Files that options of a section of the job name."""
    for name in names:
        path = getattr(getattr(loaded.job, section), name)
        if path:
            yield f"'{name}'", path, (name,)
