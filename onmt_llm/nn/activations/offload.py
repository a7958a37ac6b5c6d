"""Activation offloading: activations wait for the backward pass in the CPU's memory instead of the GPU's."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

SMALLEST = 1 << 18
"""Fewest elements of a tensor that is offloaded: smaller ones are not worth a copy."""


@dataclass(frozen=True)
class OffloadedTensor:
    """A tensor whose content is in the CPU's memory.

    Attributes:
        copy: Its content.
        device: The device that it came from.
    """

    copy: Tensor
    device: torch.device


class Offload:
    """Copies the tensors that autograd saves to the CPU's memory, and back when the backward pass needs them.

    Args:
        weights: Tensors that stay on the device, views of them included.
        smallest: Fewest elements of a tensor that is offloaded.
        home: Types of device whose tensors are offloaded.
    """

    def __init__(
        self, weights: Iterable[Tensor] = (), *, smallest: int = SMALLEST, home: tuple[str, ...] = ("cuda",)
    ) -> None:
        self._kept_storages = {weight.untyped_storage().data_ptr() for weight in weights}
        self._smallest = smallest
        self._home = home
        self._offloaded: dict[tuple[Any, ...], tuple[StorageWeakRef, weakref.ref[OffloadedTensor]]] = {}

    def hooks(self) -> AbstractContextManager[Any]:
        """Context of a forward pass whose activations are offloaded."""
        if not torch.is_grad_enabled():
            return nullcontext()
        self._offloaded.clear()
        return torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def _pack(self, tensor: Tensor) -> Tensor | OffloadedTensor:
        small = tensor.numel() < self._smallest or tensor.device.type not in self._home
        if small or tensor.untyped_storage().data_ptr() in self._kept_storages:
            return tensor
        storage = tensor.untyped_storage()
        view = tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype
        key = storage.data_ptr(), tensor._version, *view
        # A tensor that several layers save is copied once. A key can recur with other content, but then its old storage
        # has expired.
        alive, known = self._offloaded.get(key, (None, None))
        away = None if alive is None or known is None or alive.expired() else known()
        if away is None:
            away = _send(tensor)
            self._offloaded[key] = StorageWeakRef(storage), weakref.ref(away)
        return away

    def _unpack(self, kept: Tensor | OffloadedTensor) -> Tensor:
        return kept if isinstance(kept, Tensor) else kept.copy.to(kept.device, non_blocking=True)


def _send(tensor: Tensor) -> OffloadedTensor:
    pinned = tensor.device.type == "cuda"
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=pinned)
    # Asynchronous: the copy is queued behind the GPU's work, and nothing here waits for it.
    return OffloadedTensor(copy.copy_(tensor, non_blocking=pinned), tensor.device)
