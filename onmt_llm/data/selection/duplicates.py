"""Duplicates among all records of a corpus.

Exact duplicates have the same 128-bit hash (XXH3). The hashes are sorted in partitions, so memory depends on the size
of a partition, not on the corpus; the hashes of a large corpus lie in a temporary file.

Near duplicates share a band of their MinHash signatures (datasketch; Broder 1997; Leskovec et al., Mining of Massive
Datasets, ch. 3): sets of word n-grams whose Jaccard similarity is above the threshold do with high probability.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from hashlib import blake2b
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt
import xxhash

from onmt_llm.optional import require

HashKeys = tuple[int, ...]
"""64-bit hashes; texts that share one are duplicates."""
Flags = npt.NDArray[np.bool_]

_WIDTH = 16
"""Bytes of a hash."""
_IN_MEMORY = 1 << 26
"""Bytes of hashes that are kept in memory."""
PARTITION = 1 << 21
"""Hashes that are sorted together."""


class ExactDuplicates:
    """Finds texts that occurred before.

    Args:
        partition: Hashes that are sorted together.
    """

    def __init__(self, partition: int = PARTITION) -> None:
        self._partition = partition
        file = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115
        self._file = cast(BinaryIO, file)
        self._count = 0

    def add(self, text: str) -> None:
        self._file.write(xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass")))
        self._count += 1

    def repeated(self) -> Flags:
        """For each text, in the order of `add`, whether it occurred before; the texts are forgotten."""
        flags = np.zeros(self._count, np.bool_)
        parts = max(1, -(-self._count // self._partition))
        for part in range(parts):
            numbers, hashes = self._part(part, parts)
            order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: equal hashes stay in the order of the texts
            hashes = hashes[order]
            same = (hashes[1:] == hashes[:-1]).all(axis=1)
            flags[numbers[order[1:][same]]] = True
        self._file.close()
        return flags

    def _part(self, part: int, parts: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
        """Numbers and hashes of the texts whose hash belongs to one of the partitions."""
        numbers, hashes, start = [], [], 0
        self._file.seek(0)
        while block := self._file.read(_WIDTH * self._partition):
            words = np.frombuffer(block, "<u8").reshape(-1, 2)
            mine = np.flatnonzero(words[:, 0] % np.uint64(parts) == part)
            numbers.append(mine + start)
            hashes.append(words[mine])
            start += len(words)
        if not numbers:
            return np.zeros(0, np.int64), np.zeros((0, 2), np.uint64)
        return np.concatenate(numbers), np.concatenate(hashes)


class NearDuplicates:
    """Finds texts that are similar to a text before them that was not a duplicate itself.

    Args:
        threshold: Minimum share of common n-grams (Jaccard similarity).
    """

    def __init__(self, threshold: float) -> None:
        self._keys = min_hashes(threshold=threshold)
        self._seen: set[int] = set()
        self._repeated = bytearray()

    def add(self, text: str) -> None:
        keys = self._keys(text)
        is_new = self._seen.isdisjoint(keys)
        self._repeated.append(not is_new)
        if is_new:
            self._seen.update(keys)

    def repeated(self) -> Flags:
        """As of `ExactDuplicates`."""
        return np.frombuffer(self._repeated, np.bool_)


def min_hashes(*, threshold: float, ngram: int = 3, permutations: int = 128) -> Callable[[str], HashKeys]:
    """A function that hashes each band of a text's MinHash; bands are chosen optimally for the threshold.

    Args:
        threshold: Jaccard similarity of duplicates.
        ngram: Words per n-gram.
        permutations: Length of a signature.
    """
    datasketch = require("datasketch", "near duplicates")
    index = datasketch.MinHashLSH(threshold=threshold, num_perm=permutations)
    bands, rows = index.b, index.r
    blank = datasketch.MinHash(num_perm=permutations, seed=1)

    def keys(text: str) -> HashKeys:
        words = text.split()
        size = min(ngram, len(words))
        grams = {" ".join(words[start : start + size]) for start in range(len(words) - size + 1)}
        sketch = blank.copy()
        sketch.update_batch([gram.encode("utf-8", "surrogatepass") for gram in grams])
        values = sketch.hashvalues
        return tuple(
            hash64(band.to_bytes(2, "little") + values[band * rows : (band + 1) * rows].tobytes())
            for band in range(bands)
        )

    return keys


def hash64(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")
