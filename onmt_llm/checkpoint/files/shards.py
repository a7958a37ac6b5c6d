"""Tensors sharded among processes: each process writes the parts that it holds into a file of its own.

The files are those that torch writes for distributed checkpoints in safetensors (`HuggingFaceStorageWriter`): the
metadata of a file says where in its tensor each part begins.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from onmt_llm.checkpoint.directory import FileEntry, Manifest
from onmt_llm.checkpoint.files.blocks import row_blocks, with_rows
from onmt_llm.checkpoint.files.safetensors import SafetensorsSet, SafetensorsWriter
from onmt_llm.errors import CheckpointError

SHARDS_DIRECTORY = "shards"
"""Folder for the parts of a model's weights, or of an optimiser's state."""
_PLACES, _START = "DCP_SHARDING_INFO", "saved_offsets"
_HEADER_BYTES = 512  # of one tensor, at most: its name stands there twice


@dataclass(frozen=True)
class TensorPart:
    """A part of a tensor: a box in it.

    Attributes:
        tensor: Its values.
        start: Index of its first value in the whole tensor, by dimension.
    """

    tensor: torch.Tensor
    start: tuple[int, ...]


def write_parts(file: Path, parts: Mapping[str, TensorPart]) -> None:
    """Write the parts that this process holds, by name of their tensors; the folder may exist already."""
    file.parent.mkdir(exist_ok=True)
    places = {name: {_START: list(part.start)} for name, part in parts.items()}
    metadata = {_PLACES: json.dumps(places), "DCP_VERSION": "1.0"}
    room = (1 << 12) + _HEADER_BYTES * len(parts)
    with SafetensorsWriter(file, header_room=room, metadata=metadata) as writer:
        for name, part in parts.items():
            writer.add(name, part.tensor)


@dataclass(frozen=True)
class _StoredPart:
    """Where a part is: its file, and its box in the whole tensor."""

    file: SafetensorsSet
    start: tuple[int, ...]
    shape: tuple[int, ...]


class ShardSet:
    """The tensors whose parts are in the files of a folder, read lazily and verified when read.

    Args:
        directory: The folder.
        listed: The manifest's entries of its files; None = no manifest.

    Raises:
        CheckpointError: A file is damaged, or parts of a tensor are missing.
    """

    def __init__(self, directory: Path, *, listed: Mapping[str, FileEntry] | None = None) -> None:
        self.directory = directory
        self._places: dict[str, list[_StoredPart]] = {}
        for path in sorted(directory.glob("*.safetensors")):
            file = SafetensorsSet(directory, [path.name], listed=listed)
            for name, start in _starts(path, file).items():
                self._places.setdefault(name, []).append(_StoredPart(file, start, file.shape(name)))
        for name, places in self._places.items():
            places.sort(key=lambda place: place.start)
            held = sum(math.prod(place.shape) for place in places)
            if held != math.prod(self.shape(name)):
                raise CheckpointError(
                    f"The files of {directory} must hold all of '{name}', {math.prod(self.shape(name)):,} values, but "
                    f"hold {held:,} of them.",
                    hint="copy the checkpoint again, with the files of all processes",
                )

    def names(self) -> list[str]:
        return sorted(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def shape(self, name: str) -> tuple[int, ...]:
        ends = [map(sum, zip(place.start, place.shape, strict=True)) for place in self._places_of(name)]
        return tuple(map(max, zip(*ends, strict=True)))

    def dtype(self, name: str) -> torch.dtype:
        return self._places_of(name)[0].file.dtype(name)

    def tensor(self, name: str) -> torch.Tensor:
        """The whole tensor `name`."""
        shape = self.shape(name)
        return self.part(name, [0] * len(shape), shape)

    def part(self, name: str, start: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
        """A part of the tensor `name`; reads only the files that hold some of it.

        Args:
            name: Name of the tensor.
            start: Index of the part's first value, by dimension.
            shape: Shape of the part.
        """
        tensor = torch.empty(tuple(shape), dtype=self.dtype(name))
        for place in self._places_of(name):
            source, target = _overlap(place, start, shape)
            if not all(s.start < s.stop for s in source):
                continue
            if not source:  # a single number
                tensor.copy_(place.file.tensor(name))
            elif source[1:] == tuple(slice(0, size) for size in place.shape[1:]):
                _copy_rows(tensor[target], place.file.blocks(name), source[0])
            else:
                tensor[target] = place.file.tensor(name)[source]
        return tensor

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """The tensor `name` in blocks of rows, as those of a `SafetensorsSet`."""
        places, shape = self._places_of(name), self.shape(name)
        if shape and all(place.shape[1:] == shape[1:] for place in places):
            for place in places:
                yield from place.file.blocks(name)
        else:
            yield from row_blocks(self.tensor(name))

    def _places_of(self, name: str) -> list[_StoredPart]:
        if name not in self._places:
            raise CheckpointError(f"There is no tensor '{name}' in {self.directory}.")
        return self._places[name]


def open_shards(directory: Path, manifest: Manifest | None, *, below: str = "") -> ShardSet:
    """The parts of several processes.

    Args:
        directory: The checkpoint.
        manifest: Its manifest.
        below: The folder in it that has them, with a slash at the end; empty = the weights.
    """
    folder = f"{below}{SHARDS_DIRECTORY}"
    return ShardSet(directory / folder, listed=None if manifest is None else manifest.files_below(folder))


def _starts(path: Path, file: SafetensorsSet) -> dict[str, tuple[int, ...]]:
    """Where in their tensors the parts of a file begin."""
    try:
        places = json.loads(file.metadata[_PLACES])
        return {name: _indices(places[name][_START], file.shape(name)) for name in file.names()}
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} must say where the parts of its tensors begin, but does not ({type(error).__name__}: {error}).",
            hint="it is damaged, or no file of a checkpoint of several processes",
        ) from error


def _indices(start: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    if len(start) != len(shape) or not all(type(index) is int and index >= 0 for index in start):
        raise ValueError(f"a part of shape {list(shape)} begins at {start}")
    return tuple(start)


def _overlap(
    place: _StoredPart, start: Sequence[int], shape: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The values that a part in a file and a wanted part share: where they are in the one, and in the other."""
    source, target = [], []
    for begins, size, wanted, wanted_size in zip(place.start, place.shape, start, shape, strict=True):
        first, last = max(begins, wanted), min(begins + size, wanted + wanted_size)
        source.append(slice(first - begins, last - begins))
        target.append(slice(first - wanted, last - wanted))
    return tuple(source), tuple(target)


def _copy_rows(target: torch.Tensor, blocks: Iterable[torch.Tensor], rows: slice) -> None:
    """Copy `rows` of a tensor that comes in blocks of rows; all blocks are read, since the last one is verified."""
    for place, block in with_rows(blocks):
        first, last = max(place.start, rows.start), min(place.stop, rows.stop)
        if first < last:
            target[first - rows.start : last - rows.start] = block[first - place.start : last - place.start]
