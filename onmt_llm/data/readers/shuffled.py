"""`ShuffledReader`: global shuffle in a new order every epoch, without storing the order in memory."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onmt_llm.data.readers.record import Reader, Record
from onmt_llm.errors import ConfigError
from onmt_llm.log import logger

_AHEAD = 1024
_ROUNDS = 8
_LEAST_BITS = 8

IndexArray = npt.NDArray[np.uint64]


class Permutation:
    """A pseudo-random permutation of the numbers below `count`, determined by a key and computed element by element.

    A Feistel cipher over the next power of two, applied until the result is below `count` ("cycle walking", Black and
    Rogaway 2002): a bijection whatever its round function, in a few operations and no memory.

    Args:
        count: Number of elements.
        key: Seed of the order.
    """

    def __init__(self, count: int, key: str) -> None:
        assert count > 0
        self.count = count
        bits = max(_LEAST_BITS, (count - 1).bit_length())
        self._widths = (bits - bits // 2, bits // 2)
        digest = blake2b(key.encode(), digest_size=8 * _ROUNDS).digest()
        self._keys = np.frombuffer(digest, "<u8")

    def __call__(self, numbers: IndexArray) -> IndexArray:
        """The image of each number."""
        out = self._cipher(numbers)
        outside = np.flatnonzero(out >= self.count)
        while len(outside):
            out[outside] = self._cipher(out[outside])
            outside = outside[out[outside] >= self.count]
        return out

    def _cipher(self, numbers: IndexArray) -> IndexArray:
        width, other = self._widths
        left, right = numbers >> np.uint64(width), numbers & _mask(width)
        for key in self._keys:
            # every round swaps the two halves, and their widths
            left, right = right, left ^ (_mix(right + key) & _mask(other))
            width, other = other, width
        return (left << np.uint64(width)) | right


class ShuffledReader:
    """Reads every record of another reader once per pass, in an order determined by seed and pass.

    The position consists of a record number, a pass and the number of all records, on which the order depends. So all
    ranks and workers agree on the order.

    Args:
        corpus: Name of the corpus; every corpus has its own order.
        inner: A reader with random access.
        seed: Seed of the order.
    """

    def __init__(self, corpus: str, inner: Reader, seed: int) -> None:
        self.corpus = corpus
        self._inner = inner
        self._seed = seed
        self._number = self._pass = 0
        self._count: int | None = None
        self._order: Permutation | None = None
        self._ahead: list[int] = []
        self._first = 0

    @property
    def paths(self) -> tuple[Path, ...]:
        return self._inner.paths

    def check(self) -> None:
        """Check the inner reader and build its index.

        Raises:
            ConfigError: The inner reader has no random access.
        """
        self._inner.check()
        self.count()

    def read(self) -> Record | None:
        if self._number >= self.count():
            return None
        place = self._number - self._first
        if not 0 <= place < len(self._ahead):
            self._ahead, self._first, place = self._places(self._number, _AHEAD), self._number, 0
            self._inner.expect(self._ahead)
        self._number += 1
        return self._inner.at(self._ahead[place])

    def skip(self, number: int) -> int:
        passed = min(number, self.count() - self._number)
        self._number += passed
        return passed

    def tell(self) -> list[int]:
        return [self._number, self._pass, self.count()]

    def seek(self, position: Sequence[int]) -> None:
        """Go to a position; those of earlier versions do not say how many records there were."""
        self._number, self._pass, *before = position
        self._order, self._ahead = None, []
        if self._number and before and before[0] != self.count():
            logger.warning(
                "Corpus '%s' had %d records when the run was saved and has %d now. So the order of this pass has "
                "changed: it repeats some records that have been read, and leaves out some that have not.",
                *(self.corpus, before[0], self.count()),
            )

    def rewind(self) -> None:
        self.seek([0, self._pass + 1])

    def close(self) -> None:
        self._inner.close()

    def count(self) -> int:
        if self._count is None:
            self._count = self._inner.count()
        if self._count is None:
            raise ConfigError(
                f"Corpus '{self.corpus}' must consist of plain text, JSON, CSV or TSV files, or of Arrow tables, since "
                f"'shuffle' is global, but has {self.paths[0]}.",
                hint="decompress it, or convert Parquet to Arrow or JSONL; without shuffle, batches are still shuffled "
                "within a bucket",
            )
        return self._count

    def at(self, number: int) -> Record:
        """The record at this position of the current pass."""
        return self._inner.at(self._places(number, 1)[0])

    def expect(self, numbers: Sequence[int]) -> None:
        self._inner.expect([place for number in numbers for place in self._places(number, 1)])

    def _places(self, start: int, number: int) -> list[int]:
        if self._order is None:
            self._order = Permutation(self.count(), f"{self._seed}:{self.corpus}:{self._pass}")
        places: list[int] = self._order(np.arange(start, min(start + number, self.count()), dtype=np.uint64)).tolist()
        return places


def _mix(numbers: IndexArray) -> IndexArray:
    """Hash each number (the finaliser of SplitMix64)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def _mask(bits: int) -> np.uint64:
    return np.uint64((1 << bits) - 1)
