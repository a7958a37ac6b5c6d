"""Writing one checkpoint by all ranks: each writes its own parts of the tensors, and all of it appears at once."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from onmt_llm.checkpoint.directory import file_record
from onmt_llm.checkpoint.files.shards import SHARDS_DIRECTORY, TensorPart, write_parts
from onmt_llm.checkpoint.store import CheckpointWriter
from onmt_llm.errors import CheckpointError
from onmt_llm.training.process.dist import World


def write_together(
    world: World,
    open_writer: Callable[[], AbstractContextManager[CheckpointWriter]],
    folders: Mapping[str, Mapping[str, TensorPart]],
) -> None:
    """Write a checkpoint, on all ranks. It gets its name when every rank has written its files.

    Args:
        world: This process among the others, in a process group that nothing else uses at the same time.
        open_writer: Opens a writer that has everything but the tensors; called on the main process.
        folders: This rank's parts of the tensors, by the folder of the checkpoint that gets them ("." = itself).

    Raises:
        CheckpointError: A rank cannot write; the same on all ranks.
    """
    with ExitStack() as stack:
        writer: CheckpointWriter | None = None

        def begin() -> dict[str, Any]:
            nonlocal writer
            if not world.is_main:
                return {}
            writer = stack.enter_context(open_writer())
            return {"directory": str(writer.directory.absolute())}

        directory = Path(_on_all_ranks(world, begin)[0]["directory"])
        records = _on_all_ranks(world, lambda: _write_own(directory, world.rank, folders))
        if writer is not None:
            writer.add_shards({name: record for each in records for name, record in each.items()})


def _on_all_ranks(world: World, work: Callable[[], dict[str, Any]]) -> list[dict[str, Any]]:
    """What `work` returns on each rank, in rank order.

    Raises:
        CheckpointError: It fails on one.
    """
    try:
        record: dict[str, Any] = {"done": work()}
    except CheckpointError as error:
        record = {"failed": [error.message, error.hint]}
    except OSError as error:
        sentence = f"Process {world.rank} on {socket.gethostname()} must be able to write its part of a checkpoint, but"
        hint = "the folder of save_model must be the same one on all hosts"
        record = {"failed": [f"{sentence}: {error.strerror or error} ({error.filename}).", hint]}
    records = world.gather(record)
    for message, hint in (each["failed"] for each in records if "failed" in each):
        raise CheckpointError(message, hint=hint)
    return [each["done"] for each in records]


def _write_own(directory: Path, rank: int, folders: Mapping[str, Mapping[str, TensorPart]]) -> dict[str, Any]:
    """Write this rank's files; their records by relative path."""
    records = {}
    for folder, parts in folders.items():
        if parts:
            name = (Path(folder) / SHARDS_DIRECTORY / f"{rank:05d}.safetensors").as_posix()
            write_parts(directory / name, parts)
            records[name] = file_record(directory / name)
    return records
