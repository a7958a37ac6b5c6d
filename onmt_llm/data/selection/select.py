"""`selected_reader`: read only the records that `where`, `unique_by` and `sample` select."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from onmt_llm.config.data import CorpusConfig
from onmt_llm.data.readers.files import files_of
from onmt_llm.data.readers.index import IndexCache, state_of
from onmt_llm.data.readers.index_file import Index
from onmt_llm.data.readers.opening import BESIDE, SOURCES
from onmt_llm.data.readers.record import Reader, Record
from onmt_llm.data.selection.conditions import Where
from onmt_llm.data.selection.duplicates import ExactDuplicates, Flags, NearDuplicates
from onmt_llm.data.selection.fields import MISSING, FieldReader
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.log import logger

WHERE = "where"
DUPLICATE = "duplicate"
NEAR_DUPLICATE = "near_duplicate"
NOT_SAMPLED = "not_sampled"

_COLUMNS = 4
"""Of a row of the index: number of a record, and how many records before it each of three steps drops."""
_AHEAD = 1024
_NOT_SELECTING = {"weight", "shuffle", "path_packed", "options", "transforms", "template"}

Numbers = npt.NDArray[np.int64]
SelectedRows = npt.NDArray[np.uint64]
"""Rows of the index, (N, 4)."""


def selected_reader(name: str, reader: Reader, corpus: CorpusConfig, cache: IndexCache) -> Reader:
    """A reader of the selected records; `reader` itself if all are, or if `where` alone selects, as the parser does.

    Args:
        name: Name of the corpus.
        reader: Reads all records.
        corpus: Options of the corpus.
        cache: Keeps the numbers of the selected records.

    Raises:
        ConfigError: As `check_selection`.
    """
    check_selection(name, corpus)
    if not (corpus.unique_by or corpus.sample):
        return reader
    return SelectedReader(name, reader, corpus, cache)


def check_selection(name: str, corpus: CorpusConfig) -> None:
    """Check the options that select records.

    Raises:
        ConfigError: A condition is invalid, or an option has no effect.
    """
    Where(name, corpus.where)
    for option, needed in (("unique_threshold", "unique_by"), ("sample_seed", "sample")):
        if getattr(corpus, option) and not getattr(corpus, needed):
            raise ConfigError(f"Corpus '{name}' must have {needed} if it has {option}, but has none.")


class SelectedReader:
    """Reads the selected records of another reader.

    A record says how many were passed over since the one before it (`Record.passed`), the last one also how many follow
    it. So the counts of a pass add up, whoever reads which part.

    Args:
        corpus: Name of the corpus.
        inner: Reader of all records.
        config: Options of the corpus.
        cache: Keeps the numbers of the selected records.
    """

    def __init__(self, corpus: str, inner: Reader, config: CorpusConfig, cache: IndexCache) -> None:
        self.corpus = corpus
        self._inner = inner
        self._config = config
        self._cache = cache
        self._rows: Index | _GivenRows | None = None
        self._number = 0
        self._inner_number = 0
        self._block: list[list[int]] = []
        self._block_start = 0

    def rows_between(self, first: int, last: int) -> SelectedRows:
        """The rows of what is selected of the records `first` to `last` - 1."""
        selection = self._selection()
        assert isinstance(selection, Index)
        places = range(selection.count)
        begin, end = (bisect_left(places, number, key=lambda place: selection.at(place)[0]) for number in (first, last))
        return np.frombuffer(selection.bytes_at(begin, end - begin), "<u8").reshape(-1, _COLUMNS).astype(np.uint64)

    def give_rows(self, rows: SelectedRows) -> None:
        """Read the records that another reader has selected, in place of selecting."""
        self._rows = _GivenRows(rows)

    @property
    def paths(self) -> tuple[Path, ...]:
        return self._inner.paths

    def check(self) -> None:
        """Check the inner reader, and select."""
        self._inner.check()
        self._selection()

    def read(self) -> Record | None:
        if self._number >= self._selection().count:
            return None
        row = self._row(self._number)
        wanted = row[0] - self._inner_number
        record = self._inner.read() if self._inner.skip(wanted) == wanted else None
        if record is None:
            raise DataError(
                f"A file must not change while it is read, but {self.paths[0]} no longer has record {row[0] + 1}."
            )
        self._number += 1
        self._inner_number = row[0] + 1
        return self._with_passed(record, row)

    def skip(self, number: int) -> int:
        passed = min(number, self._selection().count - self._number)
        self._number += passed
        return passed

    def tell(self) -> list[int]:
        return [self._number, self._inner_number, *self._inner.tell()]

    def seek(self, position: Sequence[int]) -> None:
        self._number, self._inner_number, *inner = position
        self._inner.seek(inner)
        if self._number > self._selection().count:
            raise DataError(
                f"The saved position must lie inside the {self._selection().count} selected records of corpus "
                f"'{self.corpus}', but is record {self._number}.",
                hint="its files or where, unique_by or sample have changed since the run was saved",
            )

    def rewind(self) -> None:
        self._inner.rewind()
        self._number = self._inner_number = 0

    def close(self) -> None:
        self._inner.close()
        if self._rows is not None:
            self._rows.close()

    def count(self) -> int | None:
        return None if self._inner.count() is None else self._selection().count

    def at(self, number: int) -> Record:
        row = self._selection().at(number)
        return self._with_passed(self._inner.at(row[0]), row)

    def expect(self, numbers: Sequence[int]) -> None:
        rows = self._selection()
        self._inner.expect([rows.at(number)[0] for number in numbers])

    def _row(self, number: int) -> list[int]:
        place = number - self._block_start
        if not 0 <= place < len(self._block):
            rows = self._selection()
            found = rows.at(number, min(_AHEAD, rows.count - number))
            self._block = [found[start : start + _COLUMNS] for start in range(0, len(found), _COLUMNS)]
            self._block_start, place = number, 0
        return self._block[place]

    def _with_passed(self, record: Record, row: Sequence[int]) -> Record:
        duplicate = DUPLICATE if self._config.unique_threshold is None else NEAR_DUPLICATE
        reasons = zip((WHERE, duplicate, NOT_SAMPLED), row[1:], strict=True)
        return record._replace(passed=tuple((reason, count) for reason, count in reasons if count))

    def _selection(self) -> Index | _GivenRows:
        if self._rows is None:
            paths = _files(self._config)
            options = self._config.model_dump(mode="json", exclude=_NOT_SELECTING)
            states = [state_of(path) for path in paths]
            key = blake2b(json.dumps([options, states], sort_keys=True).encode(), digest_size=8).hexdigest()
            self._rows = self._cache.index(paths[0], f"selection-{key}", _COLUMNS, self._select)
        return self._rows

    def _select(self) -> Iterator[bytes]:
        """Find the selected records, in one pass over all."""
        config, position = self._config, self._inner.tell()
        self._inner.rewind()
        steps = _Steps(self.corpus, config)
        for record in iter(self._inner.read, None):
            steps.add(record)
        self._inner.seek(position)
        yield from steps.rows()


class _GivenRows:
    """Rows in memory, as an `Index`."""

    def __init__(self, rows: SelectedRows) -> None:
        self.count = len(rows)
        self._rows = rows

    def at(self, number: int, rows: int = 1) -> list[int]:
        return self._rows[number : number + rows].ravel().tolist()

    def close(self) -> None:
        """There is no file."""


class _Keys(Protocol):
    """What finds duplicates."""

    def add(self, text: str) -> None: ...

    def repeated(self) -> Flags: ...


class _Steps:
    """The steps of a selection: `where`, then `unique_by`, then `sample`."""

    def __init__(self, corpus: str, config: CorpusConfig) -> None:
        self._corpus = corpus
        self._config = config
        self._fields = FieldReader(corpus, config)
        self._where = Where(corpus, config.where)
        threshold = config.unique_threshold
        self._duplicates: _Keys = ExactDuplicates() if threshold is None else NearDuplicates(threshold)
        self._reads = bool(self._where or config.unique_by)
        self._dropped = bytearray()  # by record, the step that drops it, counted from 1
        self._comparable = bytearray()

    def add(self, record: Record) -> None:
        fields = self._fields(record) if self._reads else None
        passes = fields is None or not self._where or self._where(fields, record.where)
        self._dropped.append(0 if passes else 1)
        if not self._config.unique_by:
            return
        text = self._text(fields) if fields is not None and passes else None
        self._comparable.append(text is not None)
        if text is not None:
            self._duplicates.add(text)

    def rows(self) -> Iterator[bytes]:
        """The rows of the index."""
        dropped = np.frombuffer(self._dropped, np.uint8).copy()
        comparable = np.flatnonzero(np.frombuffer(self._comparable, np.uint8))
        if self._config.unique_by:
            dropped[comparable[self._duplicates.repeated()]] = 2
        self._note_incomparable(dropped, len(comparable))
        left = np.flatnonzero(dropped == 0)
        kept = self._sampled(left)
        dropped[np.setdiff1d(left, kept, assume_unique=True)] = 3
        counts = [int(np.count_nonzero(dropped == step)) for step in (1, 2, 3)]
        if not len(kept):
            raise DataError(
                f"Corpus '{self._corpus}' must have at least one selected record, but of {len(dropped):,} `where` "
                f"drops {counts[0]:,} and `unique_by` {counts[1]:,}.",
            )
        logger.info(
            "Corpus '%s': %d of %d records are selected (where drops %d, unique_by %d, sample %d).",
            *(self._corpus, len(kept), len(dropped), *counts),
        )
        yield from _rows(kept, dropped)

    def _text(self, fields: Any) -> str | None:
        """What is compared; None if the record has none of the fields."""
        values = [self._fields.value(fields, name) for name in self._config.unique_by]
        if all(value is MISSING for value in values):
            return None
        if len(values) == 1 and isinstance(values[0], str):
            return values[0]
        return json.dumps([None if value is MISSING else value for value in values], sort_keys=True)

    def _note_incomparable(self, dropped: npt.NDArray[np.uint8], comparable: int) -> None:
        without = int(np.count_nonzero(dropped != 1)) - comparable
        if self._config.unique_by and without:
            logger.warning(
                "Corpus '%s' has %d records without the fields of unique_by (%s), which are not compared.",
                *(self._corpus, without, ", ".join(self._config.unique_by)),
            )

    def _sampled(self, numbers: Numbers) -> Numbers:
        wanted = self._config.sample
        if not wanted:
            return numbers
        if wanted > len(numbers):
            raise DataError(
                f"Corpus '{self._corpus}' must have at least {wanted:,} records (sample), but has {len(numbers):,}.",
                hint="sample: 0 reads all of them",
            )
        random = np.random.Generator(np.random.PCG64(self._config.sample_seed))
        return np.sort(random.choice(numbers, wanted, replace=False, shuffle=False))


def _rows(kept: Numbers, dropped: npt.NDArray[np.uint8]) -> Iterator[bytes]:
    """Number of each kept record, and how many records before it each step drops; those at the end count last."""
    block = 1 << 16
    before = np.zeros(3, np.int64)
    start = 0
    for first in range(0, len(kept), block):
        numbers = kept[first : first + block]
        end = int(numbers[-1]) + 1 if first + block < len(kept) else len(dropped)
        rows = np.zeros((len(numbers), _COLUMNS), "<u8")
        rows[:, 0] = numbers
        for step in (1, 2, 3):
            total = before[step - 1] + np.cumsum(dropped[start:end] == step)
            ends = total[numbers - start]
            ends[-1] = total[-1]
            rows[:, step] = np.diff(ends, prepend=before[step - 1])
            before[step - 1] = total[-1]
        start = end
        yield rows.tobytes()


def _files(corpus: CorpusConfig) -> list[Path]:
    return [path for key in (*SOURCES, *BESIDE) for path in files_of(corpus, key)]
