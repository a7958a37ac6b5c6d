"""Whole tensors from a checkpoint that several processes have written, without a model and without processes."""

from __future__ import annotations

import shutil
from pathlib import Path

from onmt_llm.checkpoint.directory import OPTIMIZER_FILE, STATE_PREFIX, read_manifest
from onmt_llm.checkpoint.files.safetensors import SafetensorsWriter
from onmt_llm.checkpoint.files.shards import SHARDS_DIRECTORY, open_shards
from onmt_llm.checkpoint.merge import copy_files
from onmt_llm.checkpoint.store import Checkpoint, CheckpointWriter


def consolidate(model: str | Path, output: str | Path, *, state: bool = True, overwrite: bool = False) -> int:
    """Write a checkpoint with whole tensors, block by block; a checkpoint that has them already is copied.

    Args:
        model: A checkpoint, whose `shards` may be of several processes.
        output: The checkpoint to write.
        state: Take the training state along, so that the run can be resumed from the output.
        overwrite: Replace a checkpoint at `output`.

    Returns:
        Number of the model's tensors.

    Raises:
        CheckpointError: The checkpoint is damaged, or files of a process are missing.
    """
    checkpoint = Checkpoint.open(model)
    folder = checkpoint.path / STATE_PREFIX
    with (
        CheckpointWriter(output, checkpoint.config, overwrite=overwrite) as writer,
        checkpoint.progress("consolidate") as progress,
    ):
        for name in checkpoint.names():
            writer.add_blocks(name, checkpoint.blocks(name), dtype=checkpoint.dtype(name), shape=checkpoint.shape(name))
            progress.add(checkpoint.nbytes(name))
        copy_files(writer, checkpoint)
        if state and folder.is_dir():
            _write_state(checkpoint, folder, writer.directory / STATE_PREFIX)
    return len(checkpoint.names())


def _write_state(checkpoint: Checkpoint, source: Path, target: Path) -> None:
    """Copy a training state; parts of the optimiser's tensors are put together."""
    target.mkdir()
    for file in source.iterdir():
        if file.is_file():
            shutil.copyfile(file, target / file.name)
    if (source / SHARDS_DIRECTORY).is_dir():
        tensors = open_shards(checkpoint.path, read_manifest(checkpoint.path), below=STATE_PREFIX)
        with SafetensorsWriter(target / OPTIMIZER_FILE) as writer:
            for name in tensors.names():
                writer.begin(name, tensors.dtype(name), tensors.shape(name))
                for block in tensors.blocks(name):
                    writer.write(block)
