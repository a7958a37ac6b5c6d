"""Read token shards of other programs: litdata (`TokensLoader`) and Lit-GPT (`PackedDataset`).

litdata: a folder with `index.json` and chunks. A chunk is u32 n, u32 offsets[n + 1] in bytes from its start, then the
tokens of n documents. `data_format: ["no_header_tensor:16"]` names the type by litdata's own number.

Lit-GPT: `.bin` files of a 24-byte header (`LITPKDS`, u64 version 1, u8 type code, u64 tokens, little-endian) and tokens
without document boundaries; they are cut into rows. Lit-Claire pads rows with -1, which is not a token.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, ValidationError

from onmt_llm.data.readers import Record
from onmt_llm.data.token_shards.reader import ShardedReader
from onmt_llm.data.token_shards.records import UNTRAINED, ArrayName, Words
from onmt_llm.data.token_shards.shard import INDEX, PackReader, first_fault, load_json
from onmt_llm.errors import ConfigError, DataError

_MAGIC = b"LITPKDS"
_HEADER = struct.Struct("<7sQBQ")
_LIT_GPT_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_LITDATA_TYPES = {
    "no_header_tensor": {
        **{11: "u1", 12: "i1", 13: "<i2", 14: "<i2", 15: "<i4"},
        **{16: "<i4", 17: "<i8", 18: "<i8", 20: "<u2"},
    },
    "no_header_numpy": {0: "i1", 1: "<i2", 2: "<i4", 3: "<i8", 4: "u1", 5: "<u2", 6: "<u4"},
}
PADDING = "padding"


@dataclass(frozen=True)
class _File:
    """Tokens of one file.

    Attributes:
        path: The file.
        dtype: Type of the tokens.
        start: Byte offset of the first token.
        tokens: Number of tokens.
        bounds: Token offsets of the documents and the end of the last one; None = no boundaries.
    """

    path: Path
    dtype: str
    start: int
    tokens: int
    bounds: npt.NDArray[np.int64] | None

    def rows(self, row_length: int | None) -> npt.NDArray[np.int64]:
        """Token offsets of the records and the end of the last one."""
        if row_length is None:
            assert self.bounds is not None
            return self.bounds
        return np.append(np.arange(0, self.tokens, row_length), self.tokens)


class TokenFileReader(ShardedReader):
    """Reads documents, or rows of equal length, from another program's token files.

    No tokens are lost: the last row of a file may be shorter. (litdata drops the rest of every chunk.)

    Args:
        corpus: Its name, for messages.
        folder: The path given by the user.
        files: Token files, in order.
        row_length: Tokens per record; None = documents.
    """

    parts: tuple[ArrayName, ...] = ("tgt",)

    def __init__(self, corpus: str, folder: Path, files: Sequence[_File], row_length: int | None) -> None:
        self._files = list(files)
        self._rows = [file.rows(row_length) for file in self._files]
        self._tokens: dict[int, npt.NDArray[Any]] = {}
        super().__init__(corpus, folder, [len(rows) - 1 for rows in self._rows])

    def check(self) -> None:
        if not self.count():
            raise DataError(f"Corpus '{self.corpus}' must not be empty, but {self.paths[0]} is.")

    @property
    def mean_tokens(self) -> float:
        """Tokens of a record, on average."""
        return sum(int(rows[-1]) for rows in self._rows) / max(1, self.count())

    def load(self, shard: int, first: int, number: int) -> list[Record]:
        bounds = self._rows[shard][first : first + number + 1].tolist()
        words = _to_words(self._files[shard].path, self._open(shard)[bounds[0] : bounds[-1]])
        line = sum(len(rows) - 1 for rows in self._rows[:shard]) + first + 1
        return [
            _record(self._files[shard].path, line + index, words[a - bounds[0] : b - bounds[0]])
            for index, (a, b) in enumerate(pairwise(bounds))
        ]

    def _open(self, place: int) -> npt.NDArray[Any]:
        if place not in self._tokens:
            file = self._files[place]
            try:
                tokens = np.memmap(file.path, dtype=file.dtype, mode="r", offset=file.start, shape=(file.tokens,))
            except (OSError, ValueError) as error:
                raise DataError(f"Token files must not change while they are read, but {file.path} has.") from error
            self._tokens = {place: tokens}
        return self._tokens[place]

    def close(self) -> None:
        super().close()
        self._tokens = {}


def open_token_reader(corpus: str, path: Path, row_length: int | None) -> PackReader | TokenFileReader:
    """Open token shards of any known format.

    Args:
        corpus: Its name, for messages.
        path: A folder, or one `.bin` file of Lit-GPT.
        row_length: Cut the tokens into records of this length; None = documents as they are stored.

    Raises:
        ConfigError: The format has no document boundaries and no length is given, or a length is given for our shards.
        DataError: The format is unknown, or the data are damaged.
    """
    index = _index(path)
    if index is not None and "chunks" in index:
        return TokenFileReader(corpus, path, list(_litdata_files(path, index)), row_length)
    if index is not None:
        if row_length is not None:
            raise ConfigError(f"row_length of corpus '{corpus}' must not be given for shards that onmt_llm packed.")
        return PackReader(corpus, path)
    files = [_lit_gpt_file(file) for file in _lit_gpt_paths(path)]
    if not files:
        raise DataError(
            f"path_tokens of corpus '{corpus}' must hold shards of onmt_llm, litdata or Lit-GPT, but {path} holds none."
        )
    length = row_length or _stored_row_length(path)
    if length is None:
        raise ConfigError(
            f"row_length of corpus '{corpus}' must be given, since {path} has no boundaries between documents.",
            hint="usually the context length of the model plus one",
        )
    return TokenFileReader(corpus, path, files, length)


def _index(path: Path) -> dict[str, Any] | None:
    file = path / INDEX
    if not file.is_file():
        return None
    index = load_json(file)
    return index if isinstance(index, dict) else None


class _Chunk(BaseModel):
    """A chunk in litdata's index, with its numbers of documents and tokens."""

    filename: str = Field(pattern=r"^[^/\\]+$")
    chunk_size: int | None = None
    dim: int | None = None


class _LitdataConfig(BaseModel):
    data_format: list[str] | None = None
    compression: str | None = None
    encryption: Any = None

    @property
    def dtype(self) -> str | None:
        """Type of the tokens; None if they are not plain integers."""
        if self.compression or self.encryption or len(self.data_format or ()) != 1:
            return None
        assert self.data_format is not None
        kind, _, number = self.data_format[0].partition(":")
        return _LITDATA_TYPES.get(kind, {}).get(int(number)) if number.isdecimal() else None


class _LitdataIndex(BaseModel):
    chunks: list[_Chunk]
    config: _LitdataConfig


def _litdata_files(folder: Path, saved: dict[str, Any]) -> Iterator[_File]:
    try:
        index = _LitdataIndex.model_validate(saved)
    except ValidationError as error:
        raise DataError(f"{folder / INDEX} must be an index of litdata, but {first_fault(error)}.") from error
    dtype = index.config.dtype
    if dtype is None:
        raise DataError(
            f"{folder} must hold uncompressed tokens (no_header_tensor, no_header_numpy), but holds "
            f"{index.config.data_format} with compression {index.config.compression}.",
            hint="write it with litdata.optimize(..., item_loader=TokensLoader())",
        )
    for chunk in index.chunks:
        yield _litdata_file(folder, chunk, dtype)


def _litdata_file(folder: Path, chunk: _Chunk, dtype: str) -> _File:
    """The documents of a chunk. There are no checksums, but all stated sizes must agree."""
    file = folder / chunk.filename
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            items = int.from_bytes(stream.read(4), "little")
            start = 4 * (items + 2)
            head = stream.read(start - 4) if start <= size else b""
    except OSError as error:
        raise DataError(f"Every chunk of {folder} must be readable, but {file} is not: {error.strerror}.") from error
    offsets = np.frombuffer(head, "<u4").astype(np.int64)
    if not items or len(offsets) != items + 1 or size < offsets[-1]:
        raise DataError(f"Every chunk of {folder} must be complete, but {file} is truncated.")
    width = np.dtype(dtype).itemsize
    lengths = np.diff(offsets)
    tokens = int(lengths.sum()) // width
    ends_fit = offsets[0] == start and offsets[-1] == size and (lengths >= 0).all() and not (lengths % width).any()
    if not ends_fit or chunk.chunk_size not in (None, items) or chunk.dim not in (None, tokens):
        raise DataError(f"Every chunk of {folder} must hold what its header and {INDEX} say, but {file} does not.")
    return _File(file, dtype, start, tokens, (offsets - start) // width)


def _lit_gpt_paths(path: Path) -> list[Path]:
    """The Lit-GPT files in a folder; empty if there are none.

    Raises:
        DataError: Only some .bin files are Lit-GPT files.
    """
    files = sorted(path.glob("*.bin")) if path.is_dir() else [path] if path.is_file() else []
    others = []
    for file in files:
        with file.open("rb") as stream:
            if stream.read(len(_MAGIC)) != _MAGIC:
                others.append(file)
    if 0 < len(others) < len(files):
        raise DataError(f"Every .bin file of {path} must be a token file of Lit-GPT, but {others[0]} is not.")
    return [] if others else files


def _lit_gpt_file(file: Path) -> _File:
    with file.open("rb") as stream:
        head = stream.read(_HEADER.size)
    if len(head) < _HEADER.size:
        raise DataError(f"{file} must be a token file of Lit-GPT, but ends in its header.")
    _, version, code, tokens = _HEADER.unpack(head)
    if version != 1 or code not in _LIT_GPT_TYPES:
        raise DataError(f"{file} must have version 1 and a whole-number type, but has version {version}, type {code}.")
    dtype = _LIT_GPT_TYPES[code]
    held = (file.stat().st_size - _HEADER.size) // np.dtype(dtype).itemsize
    if held != tokens:
        raise DataError(f"{file} must hold {tokens:,} tokens, as its header says, but holds {held:,}.")
    return _File(file, dtype, _HEADER.size, tokens, None)


def _stored_row_length(path: Path) -> int | None:
    """Row length from Lit-Claire's metadata: the model's context length plus one."""
    for file in sorted((path if path.is_dir() else path.parent).glob("*_metadata.json")):
        metadata = load_json(file)
        found = metadata.get("block_size") if isinstance(metadata, dict) else None
        if isinstance(found, int) and found > 1:
            return found
    return None


def _to_words(path: Path, tokens: npt.NDArray[Any]) -> Words:
    """Convert tokens to the format of our records; -1 is padding, which is not trained."""
    lowest, highest = int(tokens.min(initial=0)), int(tokens.max(initial=0))
    if lowest < -1 or highest >= UNTRAINED:
        wrong = lowest if lowest < -1 else highest
        raise DataError(f"Tokens must be whole numbers from 0 to {UNTRAINED - 1:,}, but {path} holds {wrong:,}.")
    words: Words = tokens.astype("<u4")
    if lowest < 0:
        words[tokens < 0] = UNTRAINED
    return words


def _record(path: Path, line: int, words: Words) -> Record:
    real = np.flatnonzero(words != UNTRAINED)
    length = int(real[-1]) + 1 if len(real) else 0
    if length < 2:
        return Record(line, (json.dumps({"dropped": {PADDING: 1}}).encode(),), (0,), (path,))
    return Record(line, (b"", words[:length].tobytes()), (0, 0), (path,))
