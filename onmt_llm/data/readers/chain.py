"""`ChainReader`: several files read in order as one corpus."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from onmt_llm.data.readers.record import Reader, Record
from onmt_llm.errors import DataError

_MOST_OPEN = 100
"""Files kept open for random access; the system allows a process a few hundred."""


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
