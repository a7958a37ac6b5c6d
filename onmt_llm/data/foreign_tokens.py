"""Token shards that other programs wrote: litdata's (`TokensLoader`) and Lit-GPT's (`PackedDataset`).

litdata: a folder with `index.json` and chunks. A chunk is u32 n, u32 offsets[n + 1] in bytes from its start, then the
tokens of n documents. `data_format: ["no_header_tensor:16"]` names the type by litdata's own number.

Lit-GPT: `.bin` files of a 24-byte header (`LITPKDS`, u64 version 1, u8 type code, u64 tokens, little-endian) and tokens
without any boundary; rows are cut out of them. Lit-Claire fills rows up with -1, which is no token.
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

from onmt_llm.data.packed import INDEX, PackReader
from onmt_llm.data.readers import Record
from onmt_llm.data.sharded import ShardedReader
from onmt_llm.data.token_records import UNTRAINED, Part, Words
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
        dtype: Of its tokens.
        start: Byte at which they begin.
        tokens: How many.
        bounds: Where documents begin, in tokens, and where the last one ends; None = there are none.
    """

    path: Path
    dtype: str
    start: int
    tokens: int
    bounds: npt.NDArray[np.int64] | None

    def rows(self, row_length: int | None) -> npt.NDArray[np.int64]:
        """Where its records begin, and where the last one ends."""
        if row_length is None:
            assert self.bounds is not None
            return self.bounds
        return np.append(np.arange(0, self.tokens, row_length), self.tokens)


class TokenFileReader(ShardedReader):
    """The documents, or rows of equal length, of another program's token files.

    Nothing is lost: the last row of a file is as long as it comes out. (litdata leaves out the rest of every chunk.)

    Args:
        corpus: Its name, for messages.
        folder: What the user named.
        files: Token files, in order.
        row_length: Tokens of a record; None = documents.
    """

    parts: tuple[Part, ...] = ("tgt",)

    def __init__(self, corpus: str, folder: Path, files: Sequence[_File], row_length: int | None) -> None:
        self._files = list(files)
        self._rows = [file.rows(row_length) for file in self._files]
        self._tokens: dict[int, npt.NDArray[Any]] = {}
        super().__init__(corpus, folder, [len(rows) - 1 for rows in self._rows])

    def check(self) -> None:
        if not self.count():
            raise DataError(f"Corpus '{self.corpus}' must not be empty, but {self.paths[0]} is.")

    def load(self, shard: int, first: int, number: int) -> list[Record]:
        bounds = self._rows[shard][first : first + number + 1].tolist()
        words = _to_words(self._open(shard)[bounds[0] : bounds[-1]])
        line = sum(len(rows) - 1 for rows in self._rows[:shard]) + first + 1
        return [
            _record(self._files[shard].path, line + index, words[a - bounds[0] : b - bounds[0]])
            for index, (a, b) in enumerate(pairwise(bounds))
        ]

    def _open(self, place: int) -> npt.NDArray[Any]:
        if place not in self._tokens:
            file = self._files[place]
            self._tokens = {
                place: np.memmap(file.path, dtype=file.dtype, mode="r", offset=file.start, shape=(file.tokens,))
            }
        return self._tokens[place]

    def close(self) -> None:
        super().close()
        self._tokens = {}


def open_token_reader(corpus: str, path: Path, row_length: int | None) -> PackReader | TokenFileReader:
    """The reader of token shards of any known layout.

    Args:
        corpus: Its name, for messages.
        path: A folder, or one `.bin` file of Lit-GPT.
        row_length: Cut the tokens into records of this length; None = documents as they are stored.

    Raises:
        ConfigError: The layout has no documents, and no length is given; or a length is given for our own shards.
        DataError: There is nothing there that is known, or it is damaged.
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
            hint="the context length of the model, and one",
        )
    return TokenFileReader(corpus, path, files, length)


def _index(path: Path) -> dict[str, Any] | None:
    file = path / INDEX
    if not file.is_file():
        return None
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} must be JSON, but is not: {error}.") from error
    return index if isinstance(index, dict) else None


def _litdata_files(folder: Path, index: dict[str, Any]) -> Iterator[_File]:
    config = index.get("config") or {}
    kind, _, number = str((config.get("data_format") or [""])[0]).partition(":")
    dtype = _LITDATA_TYPES.get(kind, {}).get(int(number)) if number.isdigit() else None
    formats = config.get("data_format")
    if len(formats or ()) != 1 or dtype is None or config.get("compression") or config.get("encryption"):
        raise DataError(
            f"{folder} must hold uncompressed tokens (no_header_tensor, no_header_numpy), but holds {formats} "
            f"with compression {config.get('compression')}.",
            hint="write it with litdata.optimize(..., item_loader=TokensLoader())",
        )
    width = np.dtype(dtype).itemsize
    for chunk in index["chunks"]:
        file = folder / chunk["filename"]
        try:
            with file.open("rb") as stream:
                (items,) = struct.unpack("<I", stream.read(4))
                offsets = np.frombuffer(stream.read(4 * (items + 1)), "<u4").astype(np.int64)
        except (OSError, struct.error) as error:
            raise DataError(f"Every chunk of {folder} must be readable, but {file} is not: {error}.") from error
        if len(offsets) != items + 1 or not items or file.stat().st_size < offsets[-1]:
            raise DataError(f"Every chunk of {folder} must be complete, but {file} is cut short.")
        bounds = (offsets - offsets[0]) // width
        yield _File(file, dtype, int(offsets[0]), int(bounds[-1]), bounds)


def _lit_gpt_paths(path: Path) -> list[Path]:
    files = sorted(path.glob("*.bin")) if path.is_dir() else [path] if path.is_file() else []
    found = []
    for file in files:
        with file.open("rb") as stream:
            if stream.read(len(_MAGIC)) == _MAGIC:
                found.append(file)
    return found


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
    if held < tokens:
        raise DataError(f"{file} must hold {tokens:,} tokens, as its header says, but holds {held:,}.")
    return _File(file, dtype, _HEADER.size, tokens, None)


def _stored_row_length(path: Path) -> int | None:
    """Tokens of a row as Lit-Claire's metadata give them: the model's context, and one."""
    for file in sorted((path if path.is_dir() else path.parent).glob("*_metadata.json")):
        found = json.loads(file.read_text(encoding="utf-8")).get("block_size")
        if isinstance(found, int):
            return found
    return None


def _to_words(tokens: npt.NDArray[Any]) -> Words:
    """Tokens as our records hold them; what is below zero is padding, which nobody is trained on."""
    words: Words = tokens.astype("<u4")
    if tokens.dtype.kind == "i":
        words[tokens < 0] = UNTRAINED
    return words


def _record(path: Path, line: int, words: Words) -> Record:
    real = np.flatnonzero(words != UNTRAINED)
    length = int(real[-1]) + 1 if len(real) else 0
    if length < 2:
        return Record(line, (json.dumps({"dropped": {PADDING: 1}}).encode(),), (0,), (path,))
    return Record(line, (b"", words[:length].tobytes()), (0, 0), (path,))
