"""Tensors in parts, in one file for each process: as torch reads and writes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

from onmt_llm.checkpoint.files.shards import ShardSet, TensorPart, write_parts
from onmt_llm.errors import CheckpointError

TENSORS = {
    "rows": torch.randn(7, 3),  # 7 rows on 2 processes are 4 and 3
    "columns": torch.randn(4, 6).bfloat16(),
    "grid": torch.randn(4, 4),
    "vector": torch.arange(5),
    "step": torch.tensor(3.0),
}


def halves(tensor: torch.Tensor, dim: int) -> list[TensorPart]:
    first, second = tensor.chunk(2, dim)
    return [
        TensorPart(first, (0,) * tensor.ndim),
        TensorPart(second, tuple(first.shape[dim] * (d == dim) for d in range(tensor.ndim))),
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files with the parts of all tensors; the grid's are its four quarters."""
    ranks: list[dict[str, TensorPart]] = [{"step": TensorPart(TENSORS["step"], ())}, {}]
    for name, dim in (("rows", 0), ("columns", 1), ("vector", 0)):
        for rank, part in zip(ranks, halves(TENSORS[name], dim), strict=True):
            rank[name] = part
    for rank, half in zip(ranks, halves(TENSORS["grid"], 1), strict=True):
        rank["grid"] = half
    for number, rank in enumerate(ranks):
        write_parts(tmp_path / f"shards/{number:05d}.safetensors", rank)
    return tmp_path / "shards"


def test_parts_are_put_together(folder: Path) -> None:
    shards = ShardSet(folder)
    assert shards.names() == sorted(TENSORS)
    for name, tensor in TENSORS.items():
        assert (shards.shape(name), shards.dtype(name)) == (tuple(tensor.shape), tensor.dtype)
        assert torch.equal(shards.tensor(name), tensor)
        blocks = list(shards.blocks(name))
        assert torch.equal(torch.cat(blocks) if tensor.ndim else blocks[0], tensor)
    for name, start, shape in (("rows", (2, 1), (4, 2)), ("columns", (1, 2), (2, 3)), ("grid", (3, 0), (1, 4))):
        wanted = TENSORS[name][tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))]
        assert torch.equal(shards.part(name, start, shape), wanted)


def test_torch_reads_our_files(folder: Path) -> None:
    found = {name: torch.zeros_like(tensor) for name, tensor in TENSORS.items()}
    dcp.load(found, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def test_we_read_torchs_files(tmp_path: Path) -> None:
    writer = HuggingFaceStorageWriter(str(tmp_path), save_distributed=True)
    dcp.save({name: tensor.clone() for name, tensor in TENSORS.items()}, storage_writer=writer, no_dist=True)
    shards = ShardSet(tmp_path)
    assert all(torch.equal(shards.tensor(name), tensor) for name, tensor in TENSORS.items())


def test_a_missing_file_and_a_missing_place_are_told(folder: Path) -> None:
    (folder / "00000.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"must hold all of 'columns', 24 values, but hold 12"):
        ShardSet(folder)
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, folder / "00000.safetensors")
    with pytest.raises(CheckpointError, match="must say where the parts of its tensors begin"):
        ShardSet(folder)
