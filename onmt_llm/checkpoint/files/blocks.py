"""Tensors in blocks of rows: what is read, computed and written block by block is never in memory as a whole."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from onmt_llm.checkpoint.directory import refuse
from onmt_llm.nn.cpu.fused import row_blocks as row_slices

BLOCK_BYTES = 1 << 20
"""Bytes of a tensor that are read or computed at a time."""


def row_blocks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Views of consecutive rows, of about 1 MiB each (or of one row), which cover a tensor."""
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


def finite(where: Path, name: str, blocks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The blocks of a tensor, whose values must be finite.

    Args:
        where: Where the tensor is or goes, for the message.
        name: Its name.
        blocks: Its rows.

    Raises:
        CheckpointError: They are not, and damage is not ignored.
    """
    refused = False
    for block in blocks:
        if not refused and not _is_finite(block):
            refused = True  # once, if damage is ignored
            refuse(
                f"The weights of {where} must be finite numbers, but {name} has others.",
                hint="use an earlier checkpoint, or convert again to a type with a larger range (fp32, bf16)",
            )
        yield block


def _is_finite(tensor: torch.Tensor) -> bool:
    # NaN and infinity show in the minimum or maximum; this is thirty times as fast as isfinite on all values.
    return not (tensor.is_floating_point() and tensor.numel()) or all(map(torch.isfinite, torch.aminmax(tensor)))


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The tensor's content, row-major and in the byte order of the machine (little endian wherever torch runs)."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]


def return_freed_memory() -> None:
    """Have glibc return freed memory to the system. It keeps what many small objects took, such as those of a
    vocabulary, although a large tensor cannot use it."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
