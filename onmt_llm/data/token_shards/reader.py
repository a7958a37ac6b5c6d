"""`ShardedReader`: random access to records in shards."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from onmt_llm.data.readers import Record
from onmt_llm.errors import DataError

_BLOCK = 256
"""Records that are read and converted together."""


class ShardedReader:
    """A reader whose position is the number of its next record.

    A subclass implements `load` and `check`.

    Args:
        corpus: Its name, for messages.
        folder: Folder of the shards.
        sizes: Number of records per shard.
    """

    def __init__(self, corpus: str, folder: Path, sizes: Sequence[int]) -> None:
        self.corpus = corpus
        self.paths: tuple[Path, ...] = (folder,)
        self._ends = list(accumulate(sizes))
        self._number = 0
        self._ahead: list[Record] = []

    def load(self, shard: int, first: int, number: int) -> list[Record]:
        """Up to `number` records of a shard."""
        raise NotImplementedError

    def check(self) -> None:
        """Check the files before a run starts; raises DataError."""
        raise NotImplementedError

    def count(self) -> int:
        return self._ends[-1] if self._ends else 0

    def at(self, number: int) -> Record:
        return self._load(number, 1)[0]

    def expect(self, numbers: Sequence[int]) -> None:
        """Do nothing: shards are memory-mapped."""

    def read(self) -> Record | None:
        if not self._ahead:
            self._ahead = self._load(self._number, _BLOCK)[::-1]
            if not self._ahead:
                return None
        self._number += 1
        return self._ahead.pop()

    def skip(self, number: int) -> int:
        """Skip up to `number` records; returns the number skipped."""
        passed = min(number, self.count() - self._number)
        self.seek([self._number + passed])
        return passed

    def tell(self) -> list[int]:
        return [self._number]

    def seek(self, position: Sequence[int]) -> None:
        (number,) = position
        if number > self.count():
            raise DataError(
                f"The saved position must lie inside {self.paths[0]}, but is record {number} of {self.count()}.",
                hint="the shards have changed since the run was saved",
            )
        self._number, self._ahead = number, []

    def rewind(self) -> None:
        self.seek([0])

    def close(self) -> None:
        self._ahead = []

    def _load(self, number: int, most: int) -> list[Record]:
        if number >= self.count():
            return []
        shard = bisect_right(self._ends, number)
        first = self._ends[shard - 1] if shard else 0
        return self.load(shard, number - first, min(most, self._ends[shard] - number))
