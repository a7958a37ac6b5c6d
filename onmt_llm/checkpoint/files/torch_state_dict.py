"""Write PyTorch files (`.pt`, `.pth`), also tensor by tensor: `torch.save` needs all of them in memory."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode


def save_torch(content: Any, path: Path) -> None:
    """`torch.save`, whose errors are those of the file system.

    Raises:
        OSError: The file cannot be written, e.g. because the disk is full. (torch reports a RuntimeError.)
    """
    try:
        with path.open("wb") as file:
            torch.save(content, file)
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        if cause is None:
            raise
        raise cause from error


def write_state_dict(
    path: Path,
    layout: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    same: Mapping[str, str] | None = None,
) -> None:
    """Write a state dict for `torch.load`, with one tensor in memory at a time.

    torch writes the file with room for the tensors; they are then copied into it through a memory map. The checksums
    that a zip file has of its entries are those of empty ones; torch does not read them.

    Args:
        path: The file.
        layout: Shape and type of each tensor, by name.
        tensors: All of them, in any order; they are converted to these types.
        same: Further names of tensors: those that share the memory of another.

    Raises:
        OSError: The file cannot be written, e.g. because the disk is full.
    """
    with FakeTensorMode():
        room = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in layout.items()}
    room |= {name: room[other] for name, other in (same or {}).items()}
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        save_torch(room, path)
    _reserve(path)
    with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
        mapped = torch.load(path, mmap=True, weights_only=True)
    for name, tensor in tensors:
        mapped.pop(name).copy_(tensor)
    missing = layout.keys() & mapped.keys()
    assert not missing, missing


def _reserve(path: Path) -> None:
    """Give a sparse file its blocks on the disk: a full disk kills the process that writes through a memory map.

    Raises:
        OSError: The disk is full.
    """
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        if hasattr(os, "posix_fallocate"):  # macOS has none
            os.posix_fallocate(file.fileno(), 0, size)
