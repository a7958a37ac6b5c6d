"""Tensors that are divided among the ranks (DTensor), and what is done with them one by one.

Every function is also given ordinary tensors, which it leaves as they are. Those that say so communicate: all ranks
must call them with the same tensors in the same order.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether each rank holds a part of the tensor."""
    # Importing DTensor takes a second, and nobody has made one who has not imported it.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Any) -> Any:
    """The whole tensor, on every rank; communicates."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def gathered(tensors: Iterable[tuple[str, Any]], *, keep: bool) -> Iterator[tuple[str, Any]]:
    """The tensors whole, one at a time, in the memory of the CPU if they were divided; communicates.

    Args:
        tensors: Names and tensors, or other values.
        keep: False on ranks that have no use for them: they take part, and get nothing.
    """
    for name, tensor in tensors:
        full = whole(tensor)
        if keep:
            yield name, full.cpu() if full is not tensor else tensor


def divided_like(parameter: Any, tensor: Tensor) -> Tensor:
    """This rank's part of a whole tensor of the parameter's shape; other shapes stay whole."""
    if not is_sharded(parameter) or tensor.shape != parameter.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
