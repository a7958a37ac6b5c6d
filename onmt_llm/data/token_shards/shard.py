"""Token shards: corpora tokenised in advance, read through memory maps.

A folder holds `index.json`, written last, with checksums of itself and of every block of the other files (verified as
they are read), and for every shard:

- `00000.bin`: tokens of all examples, concatenated, 16 or 32 bits, little-endian. In a shard with a mask the highest
  bit marks tokens that are not trained; a shard without one holds plain tokens, which any program can read.
- `00000.idx.npy`: token offset of each array, and the end of the last one (an example has one array for each of the
  `parts` in `index.json`).
- `00000.rec.npy`: for each record its line, its first example, and the position of its further counts in the index's
  `happened`; one more row marks the end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, NonNegativeInt, ValidationError, model_validator

from onmt_llm.checksums import fast_digest, sha256_of_file
from onmt_llm.data.example import Encoded
from onmt_llm.data.readers import Record
from onmt_llm.data.statistics import CorpusCounts
from onmt_llm.data.token_shards.checked_array import BlockDigests, CheckedArray, FileChecks, block_digests
from onmt_llm.data.token_shards.reader import ShardedReader
from onmt_llm.data.token_shards.records import UNTRAINED, ArrayName, Words, parts_of, to_words
from onmt_llm.errors import DataError

INDEX = "index.json"
FORMAT = "onmt_llm-tokens"
VERSION = 2
READABLE = (1, 2)
"""Version 1 has only SHA-256 of whole files, so a file is read completely before any of it is used."""
CHECKSUM = "checksum"

ENDINGS = (".bin", ".idx.npy", ".rec.npy")
_MOST_OPEN = 100
"""Shards kept open; the system allows a process a few hundred files."""


Ending = Literal[".bin", ".idx.npy", ".rec.npy"]


class ShardEntry(BaseModel):
    """The fields of a shard's index entry that are needed to read it."""

    name: str = Field(pattern=r"^\d+$")
    dtype: Literal["uint16", "uint32"]
    masked: bool
    tokens: NonNegativeInt
    examples: NonNegativeInt
    records: NonNegativeInt
    happened: list[dict[str, Any]]
    sha256: dict[Ending, str] = Field(min_length=3)
    checks: dict[Ending, BlockDigests] | None = Field(None, min_length=3)


class PackIndex(BaseModel):
    """The required content of an index."""

    parts: list[ArrayName] = Field(min_length=1)
    shards: list[ShardEntry]
    recipe: dict[str, Any] = {}
    inputs: list[dict[str, Any]] = []
    vocabularies: dict[str, Any] = {}
    counts: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _adds_up(self) -> PackIndex:
        if self.counts is None:
            return self
        try:
            counts = CorpusCounts.from_dict(self.counts)
            found = counts.read + counts.made
            left = counts.kept + counts.dropped.total()
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"counts: {error}") from error
        if found != left:
            raise ValueError(f"of {found:,} examples, {left:,} are kept or dropped")
        # records that were not selected are counted, but not held
        allowed = {"records": counts.dropped.total(), "examples": 0}
        for what, number in (("records", counts.read), ("examples", counts.kept)):
            held = sum(getattr(shard, what) for shard in self.shards)
            if not 0 <= number - held <= allowed[what]:
                raise ValueError(f"its shards hold {held:,} {what} of {number:,}")
        return self


class ShardWriter:
    """Collects records and writes them as a shard.

    Args:
        vocab_size: Size of the larger vocabulary; determines whether 16 bits are enough.
    """

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._arrays: list[Words] = []
        self._rows: list[tuple[int, int, int]] = []
        self._happened: dict[bytes, int] = {b"": 0}
        self._examples = 0
        self.parts: tuple[ArrayName, ...] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, line: int, examples: Sequence[Encoded], happened: bytes) -> None:
        """Add a record: its examples, and its further counts as JSON.

        Raises:
            DataError: An example has other arrays than the previous ones, or labels that are not its own tokens.
        """
        self._rows.append((line, self._examples, self._happened.setdefault(happened, len(self._happened))))
        for encoded in examples:
            parts = parts_of(encoded)
            if self.parts not in (None, parts):
                raise DataError(f"All packed examples must have {self.parts}, but line {line} has {parts}.")
            self.parts = parts
            self._arrays += to_words(encoded)
        self._examples += len(examples)

    def extend(self, other: ShardWriter, start: int, stop: int) -> None:
        """Add the records `start` to `stop` of another writer.

        Raises:
            DataError: Its examples have other arrays.
        """
        if other.parts is not None and self.parts not in (None, other.parts):
            raise DataError(f"All packed examples must have {self.parts}, but others have {other.parts}.")
        self.parts = self.parts or other.parts
        firsts = [*(first for _, first, _ in other._rows), other._examples]
        begin, end, width = firsts[start], firsts[stop], len(other.parts or ())
        texts = list(other._happened)
        for line, first, happened in other._rows[start:stop]:
            number = self._happened.setdefault(texts[happened], len(self._happened))
            self._rows.append((line, self._examples + first - begin, number))
        self._arrays += other._arrays[begin * width : end * width]
        self._examples += end - begin

    def write(self, folder: Path, number: int) -> dict[str, Any]:
        """Write the files of shard `number`; returns its entry in the index."""
        name = f"{number:05d}"
        words: Words = np.concatenate(self._arrays) if self._arrays else np.zeros(0, np.uint32)
        masked = bool((words >= UNTRAINED).any())
        # alignments and features may be larger than any id
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
            "sha256": {end: sha256_of_file(folder / f"{name}{end}") for end in ENDINGS},
            "checks": {end: block_digests(folder / f"{name}{end}").model_dump() for end in ENDINGS},
        }


def _narrowed(words: Words, masked: bool) -> npt.NDArray[np.uint16]:
    if not masked:
        return words.astype("<u2")
    return (words & 0x7FFF | words >> 16 & 0x8000).astype("<u2")


def _widened(tokens: npt.NDArray[Any], masked: bool) -> Words:
    words: Words = tokens.astype("<u4")
    if masked and tokens.dtype.itemsize == 2:
        words = (words & 0x7FFF | (words & 0x8000) << 16).astype("<u4")
    return words


def write_index(folder: Path, index: Mapping[str, Any]) -> None:
    """Write the index of a folder of shards, with its checksum."""
    plain = json.loads(json.dumps({**index, "format": FORMAT, "version": VERSION}))
    with (folder / INDEX).open("w", encoding="utf-8") as file:
        json.dump({**plain, CHECKSUM: _checksum(plain)}, file, indent=1, ensure_ascii=False)


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a folder of shards.

    Raises:
        DataError: It is missing, damaged, or of an unsupported version.
    """
    file = folder / INDEX
    index = load_json(file)
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise DataError(f"{file} must be an index of onmt_llm token shards, but is not.")
    if index.get("version") not in READABLE:
        raise DataError(
            f"{file} must have version {' or '.join(map(str, READABLE))}, but has {index.get('version')}.",
            hint="pack it again",
        )
    if CHECKSUM in index or index["version"] == VERSION:
        checksum = index.pop(CHECKSUM, None)
        if checksum != _checksum(index):
            raise _damaged(file, "its content does not match its checksum")
    try:
        PackIndex.model_validate(index)
    except ValidationError as error:
        raise _damaged(file, first_fault(error)) from error
    return {"recipe": {}, "inputs": [], "vocabularies": {}, **index}


def load_json(file: Path) -> Any:
    """Load a JSON file.

    Raises:
        DataError: It is not readable, or not JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file} must be readable, but is not: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} must be JSON, but is not: {error}.") from error


def first_fault(error: ValidationError) -> str:
    """The first validation error and its location."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}"


def _checksum(index: Mapping[str, Any]) -> str:
    return fast_digest(json.dumps(index, sort_keys=True).encode())


def _damaged(file: Path, problem: str) -> DataError:
    return DataError(
        f"The index of token shards must be as it was written, but {file} is not: {problem}.",
        hint="copy it again, or pack the corpus again",
    )


def _checks(entry: Mapping[str, Any], ending: str) -> FileChecks:
    if entry.get("checks"):
        return FileChecks.of_blocks(BlockDigests.model_validate(entry["checks"][ending]))
    size = entry["tokens"] * np.dtype(entry["dtype"]).itemsize if ending == ".bin" else None
    return FileChecks.of_whole(entry["sha256"][ending], size)


def damaged(folder: Path) -> list[str]:
    """Names of damaged files; reads all files."""
    return [
        f"{shard['name']}{ending}"
        for shard in read_index(folder)["shards"]
        for ending in ENDINGS
        if not (folder / f"{shard['name']}{ending}").is_file()
        or sha256_of_file(folder / f"{shard['name']}{ending}") != shard["sha256"][ending]
    ]


class _Shard:
    """One shard; its files are opened on first use.

    Args:
        folder: Its folder.
        entry: Its entry in the index.
        parts: Number of arrays per example.
    """

    def __init__(self, folder: Path, entry: Mapping[str, Any], parts: int) -> None:
        self.records: int = entry["records"]
        self._folder = folder
        self._masked: bool = entry["masked"]
        self._parts = parts
        self._happened = [json.dumps(item, sort_keys=True).encode() if item else b"" for item in entry["happened"]]
        shapes = {
            ".bin": (entry["dtype"], (entry["tokens"],)),
            ".idx.npy": ("u8", (entry["examples"] * parts + 1,)),
            ".rec.npy": ("u4", (entry["records"] + 1, 3)),
        }
        self._arrays = {
            ending: CheckedArray(folder / f"{entry['name']}{ending}", *shapes[ending], _checks(entry, ending))
            for ending in ENDINGS
        }
        self._tokens, self._bounds, self._rows = self._arrays.values()

    def check(self) -> None:
        for array in self._arrays.values():
            array.check_size()

    def close(self) -> None:
        for array in self._arrays.values():
            array.close()

    def read(self, first: int, number: int) -> list[Record]:
        """Up to `number` records from `first` on."""
        rows = self._rows.rows(first, first + number + 1).tolist()
        if not rows:
            return []
        offset, last = rows[0][1] * self._parts, rows[-1][1] * self._parts
        bounds = self._bounds.rows(offset, last + 1).tolist()
        start = bounds[0]
        words = _widened(self._tokens.rows(start, bounds[-1]), self._masked).tobytes()
        arrays = [words[4 * (a - start) : 4 * (b - start)] for a, b in pairwise(bounds)]
        found, paths = [], (self._folder,)
        for (line, example, happened), (_, after, _) in pairwise(rows):
            mine = arrays[example * self._parts - offset : after * self._parts - offset]
            parts = (self._happened[happened], *mine)
            found.append(Record(line, parts, (0,) * len(parts), paths))
        return found


class PackReader(ShardedReader):
    """Reads the records of a folder of shards, in order or by number.

    Args:
        corpus: Its name, for messages.
        folder: Folder of `index.json`.

    Raises:
        DataError: The index is missing or not readable.
    """

    def __init__(self, corpus: str, folder: Path) -> None:
        self.index = read_index(folder)
        self.parts: tuple[ArrayName, ...] = tuple(self.index["parts"])
        self._shards = [_Shard(folder, entry, len(self.parts)) for entry in self.index["shards"]]
        self._open: dict[int, None] = {}
        super().__init__(corpus, folder, [shard.records for shard in self._shards])

    def check(self) -> None:
        for shard in self._shards:
            shard.check()

    @property
    def mean_tokens(self) -> float:
        """Tokens of an example, on average."""
        entries = self.index["shards"]
        return sum(entry["tokens"] for entry in entries) / max(1, sum(entry["examples"] for entry in entries))

    def load(self, shard: int, first: int, number: int) -> list[Record]:
        self._open[shard] = self._open.pop(shard, None)
        if len(self._open) > _MOST_OPEN:
            oldest = next(iter(self._open))
            del self._open[oldest]
            self._shards[oldest].close()
        return self._shards[shard].read(first, number)

    def close(self) -> None:
        super().close()
        for shard in self._open:
            self._shards[shard].close()
        self._open.clear()
