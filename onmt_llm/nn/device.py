"""Devices, number formats and free memory: the torch device and dtype that an option's value means."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from onmt_llm.config.model import Dtype
from onmt_llm.errors import UnsupportedError

DTYPES: dict[Dtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_MEMINFO = Path("/proc/meminfo")
_MMAP_THRESHOLD = -3
"""glibc's name of the size from which a block of memory is a mapping of its own."""


def resolve_device(device: str, index: int | None = None) -> torch.device:
    """The torch device that a name means on this machine.

    Args:
        device: "cpu", "cuda", "cuda:1" ..., or "auto" (CUDA if it is available, otherwise the CPU).
        index: Number of the GPU where `device` does not name one; None = torch's current GPU.

    Raises:
        UnsupportedError: CUDA is requested, but not available.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device.startswith("cuda") and not torch.cuda.is_available():
        raise UnsupportedError(
            "device cuda needs a CUDA GPU and a torch build with CUDA support, but torch sees none.", hint="-device cpu"
        )
    return torch.device("cuda", index) if device == "cuda" and index is not None else torch.device(device)


def available_memory() -> int | None:
    """Bytes of main memory that a process can still use without swapping; None where the system does not report it."""
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def memory_of(device: torch.device, *, processes: int) -> int | None:
    """Bytes of a device's memory for one of several processes of this machine; None where the system does not report
    it. A GPU serves one process, the main memory all."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    free = available_memory()
    return None if free is None else free // processes


@contextmanager
def freed_at_once() -> Iterator[None]:
    """A context in which the memory of a tensor goes back to the system as soon as the tensor is freed, where the C
    library is glibc. While a model is loaded, otherwise a third of the process is memory that is free but not in one
    piece."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option is None:
        yield
        return
    set_option(_MMAP_THRESHOLD, 1 << 18)
    try:
        yield
    finally:
        set_option(_MMAP_THRESHOLD, 1 << 25)  # mappings are slow for the short lives of activations
