"""Tensors in blocks of rows: what is read, computed and written block by block is never in memory as a whole."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch

from onmt_llm.nn.cpu.fused import row_blocks as row_slices

BLOCK_BYTES = 1 << 22
"""Bytes of a tensor that are read or computed at a time."""


def row_blocks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Views of consecutive rows, of about 4 MiB each (or of one row), which cover a tensor."""
    rows = tensor if tensor.ndim else tensor[None]
    for block in row_slices(len(rows), max(1, rows[:1].nbytes), BLOCK_BYTES):
        yield rows[block] if tensor.ndim else tensor


def with_rows(blocks: Iterable[torch.Tensor]) -> Iterator[tuple[slice, torch.Tensor]]:
    """Consecutive blocks of rows, each with its place."""
    start = 0
    for block in blocks:
        yield slice(start, start + len(block)), block
        start += len(block)


def nbytes(dtype: torch.dtype, shape: Sequence[int]) -> int:
    """Bytes of a tensor."""
    return dtype.itemsize * math.prod(shape)


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The tensor's content, row-major and in the byte order of the machine (little endian wherever torch runs)."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]
