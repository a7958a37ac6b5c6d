"""Activations that wait in main memory, instead of on the GPU, for the backward pass."""

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
"""Elements of a tensor from which on it goes: what is small is not worth a copy."""


@dataclass(frozen=True)
class OffloadedTensor:
    """A tensor that is in main memory.

    Attributes:
        copy: Its content.
        device: Where it belongs.
    """

    copy: Tensor
    device: torch.device


class Offload:
    """What autograd keeps is copied to main memory, and back when it is wanted.

    Args:
        weights: Tensors that stay where they are, whatever is kept of them.
        smallest: Elements of a tensor that goes.
        home: Kinds of device whose tensors go.
    """

    def __init__(
        self, weights: Iterable[Tensor] = (), *, smallest: int = SMALLEST, home: tuple[str, ...] = ("cuda",)
    ) -> None:
        self._stay = {weight.untyped_storage().data_ptr() for weight in weights}
        self._smallest = smallest
        self._home = home
        self._gone: dict[tuple[Any, ...], tuple[StorageWeakRef, weakref.ref[OffloadedTensor]]] = {}

    def hooks(self) -> AbstractContextManager[Any]:
        """Context of a forward pass whose activations go."""
        if not torch.is_grad_enabled():
            return nullcontext()
        self._gone.clear()
        return torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def _pack(self, tensor: Tensor) -> Tensor | OffloadedTensor:
        small = tensor.numel() < self._smallest or tensor.device.type not in self._home
        if small or tensor.untyped_storage().data_ptr() in self._stay:
            return tensor
        storage = tensor.untyped_storage()
        view = tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype
        key = storage.data_ptr(), tensor._version, *view
        # What several layers keep goes once. A key may come again with other content, but then its storage has expired.
        alive, known = self._gone.get(key, (None, None))
        away = None if alive is None or known is None or alive.expired() else known()
        if away is None:
            away = _send(tensor)
            self._gone[key] = StorageWeakRef(storage), weakref.ref(away)
        return away

    def _unpack(self, kept: Tensor | OffloadedTensor) -> Tensor:
        return kept if isinstance(kept, Tensor) else kept.copy.to(kept.device, non_blocking=True)


def _send(tensor: Tensor) -> OffloadedTensor:
    pinned = tensor.device.type == "cuda"
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=pinned)
    # In the order of the GPU's work: neither the copy nor what comes after it is waited for here.
    return OffloadedTensor(copy.copy_(tensor, non_blocking=pinned), tensor.device)
