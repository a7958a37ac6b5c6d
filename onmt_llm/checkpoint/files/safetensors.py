"""Read and write safetensors files one tensor at a time: `SafetensorsSet` reads shards, `ShardedWriter` writes them.

The format (https://github.com/huggingface/safetensors) is a header length (u64, little endian), a JSON header and one
gap-free buffer. The official library writes a file only from a dictionary with all its tensors, so a 5 GB shard would
have to fit in memory; `SafetensorsWriter` streams instead.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from onmt_llm.checkpoint.directory import FileEntry, file_problems, refuse_damage
from onmt_llm.checkpoint.files.blocks import nbytes, row_blocks, tensor_bytes
from onmt_llm.checkpoint.files.lfs import refuse_pointer
from onmt_llm.checksums import fast_digest, fast_hash, safetensors_header, tensor_prefix
from onmt_llm.config.numbers import size_in_bytes
from onmt_llm.errors import CheckpointError, ConfigError, UnsupportedError

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
_DTYPES |= {  # read, never written
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "C64": torch.complex64,
}


def tensor_digest(name: str, tensor: torch.Tensor) -> str:
    """SHA-256 over name, type, shape and content."""
    digest = hashlib.sha256(tensor_prefix(name, DTYPE_NAMES[tensor.dtype], tensor.shape))
    digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


class _Place(NamedTuple):
    """Where a tensor is: its file, the offset of its content there, its type and shape."""

    file: str
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class SafetensorsSet:
    """The tensors of several safetensors files, read lazily and verified when read.

    Tensors are read into memory of their own; nothing stays mapped, so resident memory does not grow with the files.

    Args:
        directory: Where the files are.
        files: Names of the files in `directory`.
        listed: The manifest's entries; None = no manifest, as for files of other programs.

    Attributes:
        metadata: The metadata of the files, by key.

    Raises:
        CheckpointError: A file is missing or damaged, or two files have a tensor of the same name.
    """

    def __init__(self, directory: Path, files: Iterable[str], *, listed: Mapping[str, FileEntry] | None = None) -> None:
        self.directory = directory
        self.files = sorted(set(files))
        self.metadata: dict[str, str] = {}
        self._headers: dict[str, _Place] = {}
        self._digests: dict[str, str] = {}
        for file in self.files:
            if Path(file).name != file:
                raise CheckpointError(f"A shard must be a file beside its index, but is '{file}' (in {directory}).")
            if (directory / file).exists() and not (directory / file).is_file():
                raise CheckpointError(f"{directory / file} must be a regular file, but is not.")
            if listed is not None:
                self._check(file, listed)
            self._read_header(file)

    def _check(self, file: str, listed: Mapping[str, FileEntry]) -> None:
        """Verify the header and remember the tensors' digests; verify the whole file if the manifest lists none."""
        entry, path = listed.get(file), self.directory / file
        if entry is None:
            refuse_damage(self.directory, [f"{file} is not listed in its manifest"])
        elif entry.tensors is None:
            refuse_damage(self.directory, [f"{file} {what}" for what in file_problems(path, entry)])
        elif not path.is_file():
            raise CheckpointError(f"The file {path} is missing.")
        elif path.stat().st_size != entry.size or fast_digest(safetensors_header(path)) != entry.header:
            refuse_damage(self.directory, [f"{file} has another size or header than when it was written"])
        else:
            self._digests.update(entry.tensors)

    def _read_header(self, file: str) -> None:
        path = self.directory / file
        try:
            with safe_open(path, framework="pt"):  # checks the header
                header = safetensors_header(path)
        except FileNotFoundError as error:
            raise CheckpointError(f"The file {path} is missing.") from error
        except (SafetensorError, OSError) as error:
            refuse_pointer(path)
            raise CheckpointError(
                f"{path} is not a readable safetensors file ({error}).",
                hint="it is damaged or incomplete: copy it again",
            ) from error
        content = json.loads(header[8:])
        self.metadata.update(content.get("__metadata__") or {})
        for name, info in content.items():
            if name in self._headers:
                raise CheckpointError(
                    f"Tensor '{name}' is both in {self._headers[name].file} and in {file} ({path.parent})."
                )
            if name != "__metadata__":
                if info["dtype"] not in _DTYPES:
                    raise UnsupportedError(
                        f"The tensors of {path} must have one of the types {', '.join(_DTYPES)}, but '{name}' has "
                        f"the type {info['dtype']}."
                    )
                start = len(header) + info["data_offsets"][0]
                self._headers[name] = _Place(file, start, _DTYPES[info["dtype"]], tuple(info["shape"]))

    def names(self) -> list[str]:
        return sorted(self._headers)

    def __contains__(self, name: object) -> bool:
        return name in self._headers

    def shape(self, name: str) -> tuple[int, ...]:
        return self._headers[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self._headers[name].dtype

    def tensor(self, name: str) -> torch.Tensor:
        """A copy of the tensor `name`, in its own memory."""
        place = self._place(name)
        tensor = torch.empty(place.shape, dtype=place.dtype)
        for _ in self._fill(name, row_blocks(tensor)):
            pass
        return tensor

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """The tensor `name` in blocks of rows (see `row_blocks`), verified when all of them have been read."""
        place = self._place(name)
        shapes = (block.shape for block in row_blocks(torch.empty(place.shape, dtype=place.dtype, device="meta")))
        return self._fill(name, (torch.empty(shape, dtype=place.dtype) for shape in shapes))

    def _place(self, name: str) -> _Place:
        if name not in self._headers:
            raise CheckpointError(f"There is no tensor '{name}' in {self.directory}.")
        return self._headers[name]

    def _fill(self, name: str, blocks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Read a tensor's content into `blocks`, one after the other, and verify it at the end."""
        place = self._headers[name]
        digest = fast_hash(tensor_prefix(name, DTYPE_NAMES.get(place.dtype, ""), place.shape))
        with open(self.directory / place.file, "rb") as file:
            file.seek(place.start)
            for block in blocks:
                content = tensor_bytes(block)
                if file.readinto(content) != content.nbytes:
                    raise CheckpointError(f"{self.directory / place.file} ends within the tensor '{name}'.")
                digest.update(content)
                yield block
        if name in self._digests and digest.hexdigest() != self._digests[name]:
            refuse_damage(self.directory, [f"{name} in {place.file} has other values than when it was written"])


def fast_tensor_digest(name: str, tensor: torch.Tensor) -> str:
    """The digest of a tensor in a manifest."""
    content = tensor_bytes(tensor)
    return fast_digest(tensor_prefix(name, DTYPE_NAMES[tensor.dtype], tensor.shape), content)


class SafetensorsWriter:
    """One safetensors file, written tensor by tensor.

    The header comes before the data but is known only at the end. Space is reserved for it and padded with blanks, as
    the format allows. If the header outgrows that space, the data is copied once.

    Args:
        path: The file; must not exist.
        header_room: Bytes reserved for length and header; a multiple of 8.
        metadata: Texts for the header, by key.
    """

    def __init__(self, path: Path, *, header_room: int = 1 << 16, metadata: Mapping[str, str] | None = None) -> None:
        self.path = path
        self.nbytes = 0
        self._end = 0
        self.header: dict[str, dict[str, object]] = {}
        self._metadata = {"format": "pt", **(metadata or {})}
        self._room = header_room
        self._file = open(path, "xb")  # noqa: SIM115 (closed by close())
        self._file.seek(header_room)

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Write one tensor."""
        self.begin(name, tensor.dtype, tensor.shape)
        for block in row_blocks(tensor):
            self.write(block)

    def begin(self, name: str, dtype: torch.dtype, shape: Sequence[int]) -> None:
        """Begin a tensor, whose content the next calls of `write` add."""
        assert name not in self.header, name
        assert self.nbytes == self._end, "the tensor before must be complete"
        self._end += nbytes(dtype, shape)
        self.header[name] = {
            "dtype": DTYPE_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [self.nbytes, self._end],
        }

    def write(self, block: torch.Tensor) -> None:
        """Write the next rows of the tensor that was begun."""
        data = tensor_bytes(block)
        self._file.write(data)
        self.nbytes += data.nbytes

    def close(self) -> None:
        """Write the header and flush the file to disk."""
        assert self.nbytes == self._end, "the last tensor must be complete"
        header = json.dumps({"__metadata__": self._metadata, **self.header}, separators=(",", ":")).encode()
        if len(header) + 8 <= self._room:
            self._file.truncate(self._room + self.nbytes)
            self._file.seek(0)
            self._write_header(header, self._room - 8)
        else:
            self._file.close()
            data_path = self.path.with_name(self.path.name + ".data")
            self.path.rename(data_path)
            self._file = open(self.path, "xb")  # noqa: SIM115
            self._write_header(header, -(-len(header) // 8) * 8)
            with open(data_path, "rb") as data:
                data.seek(self._room)
                shutil.copyfileobj(data, self._file, 1 << 24)
            data_path.unlink()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def _write_header(self, header: bytes, size: int) -> None:
        self._file.write(struct.pack("<Q", size))
        self._file.write(header.ljust(size, b" "))

    def abandon(self) -> None:
        """Close the unfinished file."""
        self._file.close()


class ShardedWriter:
    """Writes shards of limited size, with the index that the Hugging Face libraries read.

    Args:
        directory: Where the files go; must exist before the first `add`.
        shard_size: Bytes of tensors per file, e.g. "5GB".

    Raises:
        ConfigError: `shard_size` is not a size.
    """

    def __init__(self, directory: Path, shard_size: str | int) -> None:
        self._directory = directory
        self._limit = parse_size(shard_size)
        self._shards: list[SafetensorsWriter] = []

    def add(self, name: str, tensor: torch.Tensor, dtype: torch.dtype | None = None) -> None:
        """Write one tensor, in another type if one is given."""
        self.begin(name, dtype or tensor.dtype, tensor.shape)
        for block in row_blocks(tensor):
            self.write(block.to(dtype or tensor.dtype))

    def begin(self, name: str, dtype: torch.dtype, shape: Sequence[int]) -> None:
        """Begin a tensor, in a new shard if it would exceed the limit of the current one."""
        current = self._shards[-1] if self._shards else None
        if current is None or (current.nbytes and current.nbytes + nbytes(dtype, shape) > self._limit):
            if current is not None:
                current.close()
            current = SafetensorsWriter(self._directory / f"model-{len(self._shards) + 1:05d}.safetensors")
            self._shards.append(current)
        current.begin(name, dtype, shape)

    def write(self, block: torch.Tensor) -> None:
        """Write the next rows of the tensor that was begun."""
        self._shards[-1].write(block)

    def close(self) -> list[str]:
        """Finish the last shard, rename all shards to their final names, write the index.

        Returns:
            Names of the tensors written.
        """
        if self._shards:
            self._shards[-1].close()
        count = len(self._shards)
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(self._shards, start=1):
            file = WEIGHTS_FILE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
            shard.path.rename(self._directory / file)
            weight_map.update(dict.fromkeys(shard.header, file))
        if count > 1:
            total = sum(shard.nbytes for shard in self._shards)
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            (self._directory / INDEX_FILE).write_text(json.dumps(index, indent=2), encoding="utf-8")
        return sorted(weight_map)

    def abandon(self) -> None:
        """Close the open file without finishing it."""
        if self._shards:
            self._shards[-1].abandon()


def open_index(index: Path, *, listed: Mapping[str, FileEntry] | None = None) -> SafetensorsSet:
    """The shards of a safetensors index, checked to hold exactly its tensors; `listed` as in `SafetensorsSet`."""
    try:
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {str(file) for file in weight_map.values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{index} must be JSON with a `weight_map`, but is not ({type(error).__name__}: {error})."
        ) from error
    shards = SafetensorsSet(index.parent, files, listed=listed)
    wrong = sorted(weight_map.keys() ^ set(shards.names()))
    if wrong:
        raise CheckpointError(
            f"{index} and its shards must list the same tensors, but differ in: {', '.join(wrong[:20])}."
        )
    return shards


def parse_size(size: str | int) -> int:
    """Bytes in "5GB", "200MB", "1.5GiB" or a plain number.

    Raises:
        ConfigError: It is none of these, or zero.
    """
    try:
        return size_in_bytes(size)
    except ValueError as error:
        raise ConfigError(f"shard_size {error}.") from error
