"""Write PyTorch files (`.pth`) tensor by tensor: `torch.save` needs all of them in memory."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode


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
    """
    with FakeTensorMode():
        room = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in layout.items()}
    room |= {name: room[other] for name, other in (same or {}).items()}
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(room, path)
    with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
        mapped = torch.load(path, mmap=True, weights_only=True)
    for name, tensor in tensors:
        mapped.pop(name).copy_(tensor)
    missing = layout.keys() & mapped.keys()
    assert not missing, missing
