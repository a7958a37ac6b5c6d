"""`open_reader`: the reader of a corpus, by its path option and file names; several files are read as one.

`check_readers` checks the files of all corpora before a run.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from onmt_llm.config.data import CorpusConfig
from onmt_llm.data.readers.documents import DocumentReader
from onmt_llm.data.readers.files import bare_suffix, files_of
from onmt_llm.data.readers.index import IndexCache
from onmt_llm.data.readers.json_array import JsonArrayReader
from onmt_llm.data.readers.lines import MAX_BYTES, LineReader
from onmt_llm.data.readers.plugins import PluginReader
from onmt_llm.data.readers.record import Reader, Record
from onmt_llm.data.readers.rows import ROW_FILES, RowFormat, RowReader
from onmt_llm.data.readers.tables import TABLE_FILES, TableReader
from onmt_llm.data.spec import Keys
from onmt_llm.errors import ConfigError, DataError

SOURCES = ("path_src", "path_txt", "path_jsonl", "path_json", "path_table")
"""Path options; a corpus has exactly one of them."""
BESIDE = ("path_tgt", "path_align", "path_sco")
"""Options that name files parallel to `path_src`."""
_MOST_OPEN = 100
"""Files kept open for random access; the system allows a process a few hundred."""


def open_reader(
    name: str,
    corpus: CorpusConfig,
    *,
    cache: IndexCache | None = None,
    max_bytes: int = MAX_BYTES,
    variables: Collection[str] = (),
) -> Reader:
    """The reader for a corpus; opens no files yet.

    Args:
        name: Name of the corpus.
        corpus: Its paths and format options.
        cache: Stores counts and indexes.
        max_bytes: Maximum record size.
        variables: More columns to read of a table: variables of the chat template.

    Raises:
        ConfigError: The corpus names no path, or incompatible paths.
        DataError: A pattern matches no file.
    """
    source = _source(name, corpus)
    cache = cache or IndexCache()
    paths = files_of(corpus, source)
    readers: list[Reader]
    if source == "path_src":
        readers = _parallel(name, corpus, cache, max_bytes)
    elif source == "path_txt" and corpus.documents_by != "line":
        at_blank = corpus.documents_by == "blank_line"
        readers = [DocumentReader(name, path, at_blank=at_blank, cache=cache, max_bytes=max_bytes) for path in paths]
    elif source == "path_json":
        readers = [JsonArrayReader(name, path, cache=cache, max_bytes=max_bytes) for path in paths]
    elif source == "path_table":
        readers = _tables(name, corpus, paths, cache, max_bytes, variables)
    else:
        readers = [LineReader(name, [path], names=[source], cache=cache, max_bytes=max_bytes) for path in paths]
    if not readers:
        raise ConfigError(f"{source} of corpus '{name}' must name at least one file, but names none.")
    return readers[0] if len(readers) == 1 else ChainReader(readers)


def one_file_each(name: str, corpus: CorpusConfig) -> list[CorpusConfig]:
    """The corpus as one corpus for each of its files, in order; parallel files stay together.

    Raises:
        ConfigError: The corpus names no path, or incompatible paths.
        DataError: A pattern matches no file.
    """
    keys = [_source(name, corpus), *(key for key in BESIDE if getattr(corpus, key))]
    sides = zip(*(files_of(corpus, key) for key in keys), strict=True)
    whole = corpus.model_copy(update={"split": None})
    return [
        whole.model_copy(update={key: [str(path)] for key, path in zip(keys, paths, strict=True)}) for paths in sides
    ]


def check_readers(readers: Sequence[Reader]) -> None:
    """Check all corpora and report all problems at once.

    Raises:
        ConfigError: A corpus cannot be shuffled.
        DataError: Files are missing, empty, damaged, of the wrong kind, or not parallel.
    """
    check_all([_Filled(reader) for reader in readers])


class ChainReader:
    """Readers in sequence. Sequential reading keeps one file open, random access a limited number.

    Args:
        readers: One per file, in order; at least one.
    """

    def __init__(self, readers: Sequence[Reader]) -> None:
        assert readers
        self.corpus = readers[0].corpus
        self._readers = list(readers)
        self._now = 0
        self._ends: list[int] | None = None
        self._open: dict[int, None] = {}

    @property
    def paths(self) -> tuple[Path, ...]:
        return self._readers[self._now].paths

    def check(self) -> None:
        check_all(self._readers)
        self.close()

    def read(self) -> Record | None:
        while (record := self._readers[self._now].read()) is None:
            if not self._next_file():
                return None
        return record

    def skip(self, number: int) -> int:
        passed = self._readers[self._now].skip(number)
        while passed < number and self._next_file():
            passed += self._readers[self._now].skip(number - passed)
        return passed

    def tell(self) -> list[int]:
        return [self._now, *self._readers[self._now].tell()]

    def seek(self, position: Sequence[int]) -> None:
        now, *inner = position
        if now >= len(self._readers):
            raise DataError(
                f"The saved position must lie inside the {len(self._readers)} files that start with "
                f"{self._readers[0].paths[0]}, but is in file {now + 1}.",
                hint="files have been removed since the run was saved",
            )
        if now != self._now:
            self._readers[self._now].close()
        self._now = now
        self._readers[now].seek(inner)

    def rewind(self) -> None:
        self._readers[self._now].close()
        self._now = 0
        self._readers[0].rewind()

    def close(self) -> None:
        for reader in self._readers:
            reader.close()

    def count(self) -> int | None:
        if self._ends is None:
            counts: list[int] = []
            for reader in self._readers:
                number = reader.count()
                if number is None:
                    return None
                counts.append(number)
                reader.close()
            self._ends = list(accumulate(counts))
        return self._ends[-1]

    def at(self, number: int) -> Record:
        which, place = self._find(number)
        self._open[which] = self._open.pop(which, None)
        if len(self._open) > _MOST_OPEN:
            oldest = next(iter(self._open))
            del self._open[oldest]
            self._readers[oldest].close()
        return self._readers[which].at(place)

    def expect(self, numbers: Sequence[int]) -> None:
        places: dict[int, list[int]] = {}
        for number in numbers:
            which, place = self._find(number)
            places.setdefault(which, []).append(place)
        if len(places) <= _MOST_OPEN:
            for which, own in places.items():
                self._readers[which].expect(own)

    def _find(self, number: int) -> tuple[int, int]:
        """Index of the file that holds a record, and the number of the record in it."""
        assert self.count() is not None and self._ends is not None
        which = bisect_right(self._ends, number)
        return which, number - (self._ends[which - 1] if which else 0)

    def _next_file(self) -> bool:
        if self._now + 1 == len(self._readers):
            return False
        self._readers[self._now].close()
        self._now += 1
        self._readers[self._now].rewind()
        return True


class _Filled:
    """Adds a check that the corpus is not empty."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def check(self) -> None:
        self._reader.check()
        position = self._reader.tell()
        if self._reader.read() is None:
            where = self._reader.paths[0]
            raise DataError(f"Corpus '{self._reader.corpus}' must not be empty, but {where} holds no example.")
        self._reader.seek(position)


class Checked(Protocol):
    """Anything that can be checked before a run."""

    def check(self) -> None: ...


def check_all(readers: Sequence[Checked]) -> None:
    """Check all files and report all problems at once.

    Raises:
        DataError: Files are missing, damaged, of the wrong kind, or not parallel.
    """
    problems: list[DataError] = []
    for reader in readers:
        try:
            reader.check()
        except DataError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise DataError("\n".join(problem.message for problem in problems))


def _source(name: str, corpus: CorpusConfig) -> str:
    given = [key for key in SOURCES if getattr(corpus, key)]
    if corpus.reader and given != ["path_table"]:
        raise ConfigError(f"Corpus '{name}' must have path_table if it has a reader, but has {' and '.join(given)}.")
    beside = [key for key in BESIDE if getattr(corpus, key)]
    alone = corpus.path_align and not corpus.path_tgt
    if len(given) != 1 or (beside and given != ["path_src"]) or alone:
        raise ConfigError(
            f"Corpus '{name}' must have path_src (alone, or with path_tgt, path_align and path_sco), "
            f"{', '.join(SOURCES[1:-1])} or {SOURCES[-1]}, but has {' and '.join([*given, *beside]) or 'none of them'}."
        )
    return given[0]


def _parallel(name: str, corpus: CorpusConfig, cache: IndexCache, max_bytes: int) -> list[Reader]:
    if bool(corpus.path_sco) != (corpus.score_threshold is not None):
        has, lacks = ("path_sco", "score_threshold") if corpus.path_sco else ("score_threshold", "path_sco")
        raise ConfigError(f"Corpus '{name}' must have {lacks} if it has {has}, but has none.")
    names = [key for key in ("path_src", *BESIDE) if getattr(corpus, key)]
    sides = [files_of(corpus, key) for key in names]
    if len({len(side) for side in sides}) > 1:
        counts = ", ".join(f"{key} {len(side)}" for key, side in zip(names, sides, strict=True))
        raise ConfigError(f"The paths of corpus '{name}' must name the same number of files each, but name: {counts}.")
    return [
        LineReader(name, paths, names=names, cache=cache, max_bytes=max_bytes) for paths in zip(*sides, strict=True)
    ]


def _tables(
    name: str, corpus: CorpusConfig, paths: list[Path], cache: IndexCache, max_bytes: int, variables: Collection[str]
) -> list[Reader]:
    if corpus.reader:
        return [PluginReader(name, path, corpus.reader) for path in paths]
    kinds = {path.suffix if path.suffix in TABLE_FILES else bare_suffix(path) for path in paths}
    known = (*ROW_FILES, *TABLE_FILES)
    if len(kinds) > 1 or not kinds <= set(known):
        raise ConfigError(
            f"path_table of corpus '{name}' must name files of one kind, {', '.join(known)}, "
            f"but has {', '.join(sorted(kind or 'none' for kind in kinds))}."
        )
    if kinds <= set(TABLE_FILES):
        selecting = {field for key in (*corpus.where, *corpus.unique_by) for field in (key, key.partition(".")[0])}
        wanted = Keys.of(name, corpus).columns.union(selecting, variables)
        return [TableReader(name, path, wanted=wanted) for path in paths]
    rows = RowFormat.of(paths, corpus.delimiter, corpus.columns)
    return [RowReader(name, path, rows=rows, cache=cache, max_bytes=max_bytes) for path in paths]
