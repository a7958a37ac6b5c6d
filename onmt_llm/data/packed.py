"""Token shards: corpora tokenised beforehand, read through memory maps.

A folder holds `index.json`, written last, and of every shard:

- `00000.bin`: tokens, 16 or 32 bits each, little-endian, all examples back to back. In a shard with a mask the highest
  bit says that the loss does not count the token; a shard without is plain tokens, for any program.
- `00000.idx.npy`: where each array begins, in tokens, and where the last one ends (an example has as many arrays as
  `index.json` names `parts`).
- `00000.rec.npy`: of each record its line, its first example, and the number of what else had happened to it in the
  index; and one row more, for where the last one ends.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onmt_llm.data.encoding import Encoded
from onmt_llm.data.readers import Record
from onmt_llm.data.sharded import ShardedReader
from onmt_llm.data.token_records import UNTRAINED, Part, Words, parts_of, to_words
from onmt_llm.errors import DataError

INDEX = "index.json"
FORMAT = "onmt_llm-tokens"
VERSION = 1


class ShardWriter:
    """Collects records, and writes them as a shard.

    Args:
        vocab_size: The larger of the vocabularies: decides whether 16 bits are enough.
    """

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._arrays: list[Words] = []
        self._rows: list[tuple[int, int, int]] = []
        self._happened: dict[bytes, int] = {b"": 0}
        self._examples = 0
        self.parts: tuple[Part, ...] | None = None

    def add(self, line: int, examples: Sequence[Encoded], happened: bytes) -> None:
        """A record: the examples that it became, and what else happened to it.

        Raises:
            DataError: An example has other arrays than those before, or labels that are not its own tokens.
        """
        self._rows.append((line, self._examples, self._happened.setdefault(happened, len(self._happened))))
        for encoded in examples:
            parts = parts_of(encoded)
            if self.parts not in (None, parts):
                raise DataError(f"Examples that are packed must all have {self.parts}, but line {line} has {parts}.")
            self.parts = parts
            self._arrays += to_words(encoded)
        self._examples += len(examples)

    def write(self, folder: Path, number: int) -> dict[str, Any]:
        """Write the files of shard `number`; returns its entry in the index."""
        name = f"{number:05d}"
        words: Words = np.concatenate(self._arrays) if self._arrays else np.zeros(0, np.uint32)
        masked = bool((words >= UNTRAINED).any())
        # alignments and features are numbers too, which may be larger than any id
        highest = max(self._vocab_size - 1, int((words & (UNTRAINED - 1)).max(initial=0)))
        narrow = highest < (1 << 15 if masked else 1 << 16)
        _narrowed(words, masked).tofile(folder / f"{name}.bin") if narrow else words.tofile(folder / f"{name}.bin")
        lengths = [0, *(len(array) for array in self._arrays)]
        np.save(folder / f"{name}.idx.npy", np.cumsum(lengths).astype("<u8"))
        end = (self._rows[-1][0] + 1 if self._rows else 1, self._examples, 0)
        np.save(folder / f"{name}.rec.npy", np.array([*self._rows, end], dtype="<u4"))
        return {
            "name": name,
            "dtype": "uint16" if narrow else "uint32",
            "masked": masked,
            "tokens": len(words),
            "examples": self._examples,
            "records": len(self._rows),
            "happened": [json.loads(text or b"{}") for text in self._happened],
            "sha256": {end: file_hash(folder / f"{name}{end}") for end in ENDINGS},
        }


ENDINGS = (".bin", ".idx.npy", ".rec.npy")


def _narrowed(words: Words, masked: bool) -> npt.NDArray[np.uint16]:
    if not masked:
        return words.astype("<u2")
    return (words & 0x7FFF | words >> 16 & 0x8000).astype("<u2")


def _widened(tokens: npt.NDArray[Any], masked: bool) -> Words:
    words: Words = tokens.astype("<u4")
    if masked and tokens.dtype.itemsize == 2:
        words = (words & 0x7FFF | (words & 0x8000) << 16).astype("<u4")
    return words


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    # Python 3.10 has no file_digest
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a folder of shards.

    Raises:
        DataError: There is none, or it is not one that this version reads.
    """
    file = folder / INDEX
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"Token shards must have an {INDEX}, but {file}: {error.strerror}.") from error
    except ValueError as error:
        raise DataError(f"{file} must be JSON, but is not: {error}.") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise DataError(f"{file} must be the index of token shards of onmt_llm, but is something else.")
    if index.get("version") != VERSION:
        raise DataError(f"{file} must have version {VERSION}, but has {index.get('version')}.", hint="pack it again")
    return index


def damaged(folder: Path) -> list[str]:
    """Files that are not as they were written; reads all of them."""
    return [
        f"{shard['name']}{ending}"
        for shard in read_index(folder)["shards"]
        for ending in ENDINGS
        if not (folder / f"{shard['name']}{ending}").is_file()
        or file_hash(folder / f"{shard['name']}{ending}") != shard["sha256"][ending]
    ]


@dataclass
class _Shard:
    """One shard, its files opened when they are first needed."""

    folder: Path
    entry: dict[str, Any]
    each: int
    happened: list[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.happened = [json.dumps(item, sort_keys=True).encode() if item else b"" for item in self.entry["happened"]]

    def path(self, ending: str) -> Path:
        return self.folder / f"{self.entry['name']}{ending}"

    @cached_property
    def _tokens(self) -> npt.NDArray[Any]:
        dtype = np.dtype(self.entry["dtype"]).newbyteorder("<")
        with self.path(".bin").open("rb") as file:
            if not self.entry["tokens"]:
                return np.zeros(0, dtype)
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype)

    @cached_property
    def _bounds(self) -> npt.NDArray[np.uint64]:
        return np.load(self.path(".idx.npy"), mmap_mode="r")

    @cached_property
    def _records(self) -> npt.NDArray[np.uint32]:
        return np.load(self.path(".rec.npy"), mmap_mode="r")

    def check(self, corpus: str) -> None:
        width = np.dtype(self.entry["dtype"]).itemsize
        for ending, size in ((".bin", self.entry["tokens"] * width), (".idx.npy", 0), (".rec.npy", 0)):
            path = self.path(ending)
            found = path.stat().st_size if path.is_file() else -1
            if found < 0 or (size and found != size):
                what = "is missing" if found < 0 else f"has {found:,} bytes instead of {size:,}"
                raise DataError(f"The token shards of corpus '{corpus}' must be complete, but {path} {what}.")

    def read(self, first: int, number: int) -> list[Record]:
        """Records from `first` on, at most so many."""
        rows = self._records[first : first + number + 1].tolist()
        if not rows:
            return []
        offset, last = rows[0][1] * self.each, rows[-1][1] * self.each
        bounds = self._bounds[offset : last + 1].tolist()
        start = bounds[0]
        words = _widened(self._tokens[start : bounds[-1]], self.entry["masked"]).tobytes()
        arrays = [words[4 * (a - start) : 4 * (b - start)] for a, b in pairwise(bounds)]
        found, paths = [], (self.folder,)
        for (line, example, happened), (_, after, _) in pairwise(rows):
            mine = arrays[example * self.each - offset : after * self.each - offset]
            parts = (self.happened[happened], *mine)
            found.append(Record(line, parts, (0,) * len(parts), paths))
        return found


class PackReader(ShardedReader):
    """The records of a folder of shards, in order or by number.

    Args:
        corpus: Its name, for messages.
        folder: Where `index.json` is.

    Raises:
        DataError: There is no index, or it cannot be read.
    """

    def __init__(self, corpus: str, folder: Path) -> None:
        self.index = read_index(folder)
        self.parts: tuple[Part, ...] = tuple(self.index["parts"])
        self._shards = [_Shard(folder, entry, len(self.parts)) for entry in self.index["shards"]]
        super().__init__(corpus, folder, [shard.entry["records"] for shard in self._shards])

    def check(self) -> None:
        for shard in self._shards:
            shard.check(self.corpus)

    def load(self, shard: int, first: int, number: int) -> list[Record]:
        return self._shards[shard].read(first, number)

    def close(self) -> None:
        super().close()
        self._shards = [_Shard(shard.folder, shard.entry, shard.each) for shard in self._shards]
