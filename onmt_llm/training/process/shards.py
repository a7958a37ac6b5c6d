"""Tensors that are sharded among the ranks (DTensor), and what is done with them one by one.

Every function is also given ordinary tensors, which it leaves as they are. Those that say so communicate: all ranks
must call them with the same tensors in the same order.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from onmt_llm.checkpoint.files.shards import ShardSet, TensorPart
from onmt_llm.nn.init import Draw

_DRAWN = 1 << 18
"""Values that are drawn together."""


def is_sharded(tensor: Tensor) -> bool:
    """Whether each rank holds a part of the tensor."""
    # Importing DTensor takes a second, and nobody has made one who has not imported it.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The L2 norm of all tensors together, some of which may be sharded, in one way or another; communicates."""
    ways: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        ways.setdefault(tensor.device_mesh if is_sharded(tensor) else None, []).append(tensor)  # type: ignore[attr-defined]
    norms = [whole(torch.nn.utils.get_total_norm(group)) for group in ways.values()]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


def whole(tensor: Any) -> Any:
    """The whole tensor, on every rank; communicates."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def gathered(tensors: Iterable[tuple[str, Any]], *, keep: bool = True) -> Iterator[tuple[str, Any]]:
    """The tensors whole, one at a time, in the memory of the CPU if they were sharded; communicates.

    Args:
        tensors: Names and tensors, or other values, which stay as they are.
        keep: False on ranks that have no use for them: they take part, and get nothing.
    """
    for name, tensor in tensors:
        full = whole(tensor)
        if not keep:
            continue
        if isinstance(full, Tensor):
            yield name, TensorPart(full.cpu() if full is not tensor else full, (0,) * full.ndim)
        else:
            yield name, full


@torch.no_grad()
def fill(parameter: Tensor, blocks: Iterable[Tensor]) -> None:
    """Copy this rank's part of a whole tensor into `parameter`.

    Args:
        parameter: Divided or not.
        blocks: Consecutive rows of the whole tensor, or all of it; all are read, so that a reader can verify them.
    """
    own, corner = parameter, (0,) * parameter.ndim
    if is_sharded(parameter):
        own = parameter.to_local()  # type: ignore[attr-defined]
        corner = _corner(parameter)
    first, rest = corner[0], tuple(slice(at, at + size) for at, size in zip(corner[1:], own.shape[1:], strict=True))
    start = 0
    for block in blocks:
        low, high = max(start, first), min(start + len(block), first + len(own))
        if low < high:
            part = (slice(low - start, high - start), *rest)
            own[low - first : high - first] = block[part]
        start += len(block)


def _corner(parameter: Any) -> tuple[int, ...]:
    """Where this rank's part begins in the whole tensor. Every part is a box, also if two meshes shard the rows."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, corner = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return tuple(corner)


def fill_drawn(parameter: Tensor, draw: Draw) -> None:
    """Draw a whole tensor, of which this rank's part goes into `parameter`; all ranks draw the same values."""
    fill(parameter, _drawn(parameter.shape, draw))


def _drawn(shape: Sequence[int], draw: Draw) -> Iterator[Tensor]:
    """Consecutive rows of a tensor, with the values that a draw of the whole would give it.

    torch draws normal values 16 at a time, and fewer than 16 in another way: only the last block may be of another
    size, and none is smaller.
    """
    rows = max(16, _DRAWN // math.prod(shape[1:]) // 16 * 16)
    start = 0
    while start < shape[0]:
        stop = start + rows if start + rows + 16 <= shape[0] else shape[0]
        block = torch.empty(stop - start, *shape[1:])
        draw(block)
        yield block
        start = stop


def shard_like(parameter: Any, tensor: Tensor) -> Tensor:
    """This rank's part of a whole tensor of the parameter's shape; other shapes stay whole."""
    if not is_sharded(parameter) or tensor.shape != parameter.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


def local(tensor: Any) -> Tensor:
    """What this rank holds of the tensor."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def own_parts(tensors: Iterable[tuple[str, Any]], *, keep: bool, tensor_rank: int = 0) -> Iterator[tuple[str, Any]]:
    """The parts that this rank writes, of tensors that each rank holds a part of. Does not communicate.

    Args:
        tensors: Names and tensors, or other values, which stay as they are.
        keep: This rank writes what all ranks hold.
        tensor_rank: This rank's place among those that compute each block together (tensor parallel).
    """
    for name, tensor in tensors:
        if not isinstance(tensor, Tensor):
            if keep:
                yield name, tensor
        elif not is_sharded(tensor):
            if keep:
                yield name, TensorPart(tensor, (0,) * tensor.ndim)
        elif _writes(tensor, tensor_rank) and (held := local(tensor)).numel():
            yield name, TensorPart(held, _corner(tensor))


def _writes(tensor: Any, tensor_rank: int) -> bool:
    """Whether this rank is the first of those that hold its part."""
    mesh = tensor.device_mesh
    if tensor_rank and "tensor" not in mesh.mesh_dim_names:
        return False
    places = zip(tensor.placements, mesh.get_coordinate(), strict=True)
    return not any(place.is_replicate() and index for place, index in places)


def read_like(parameter: Any, reader: Any, name: str) -> Tensor:
    """A tensor of a checkpoint, sharded as the parameter is if it has the same shape.

    Args:
        parameter: The parameter.
        reader: Has the tensor (`TensorReader`).
        name: Its name.
    """
    if not (is_sharded(parameter) and isinstance(reader, ShardSet) and reader.shape(name) == tuple(parameter.shape)):
        return shard_like(parameter, reader.tensor(name))
    sharded = torch.empty_like(parameter, dtype=reader.dtype(name), requires_grad=False)
    local(sharded).copy_(reader.part(name, _corner(parameter), local(parameter).shape))
    return sharded
