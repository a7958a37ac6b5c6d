"""Memory of this process: its peak, its present size, and a limit on oneDNN's cache."""

from __future__ import annotations

import os
from pathlib import Path

_STATUS = Path("/proc/self/status")

# oneDNN compiles each matrix product for one shape, which takes half a MiB on processors with AMX. It caches 1,024 by
# default; those of the last few updates are enough, since batches rarely have the same shape.
_CACHED_PRODUCTS = 256


def limit_onednn_cache() -> None:
    """Limit oneDNN's cache of compiled matrix products, unless the user has set its size in the environment.

    Call it before the first matrix product.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_CACHED_PRODUCTS))


def peak_memory(device_type: str) -> dict[str, int]:
    """Peak bytes of this process so far: `peak_rss` of main memory, if the system reports it, and `peak_cuda` of
    tensors on a GPU."""
    figures = {}
    rss = _status("VmHWM")
    if rss is not None:
        figures["peak_rss"] = rss
    if device_type == "cuda":
        import torch

        figures["peak_cuda"] = torch.cuda.max_memory_allocated()
    return figures


def resident_memory() -> int:
    """Bytes of main memory that this process uses now; 0 if the system does not report it."""
    return _status("VmRSS") or 0


def _status(name: str) -> int | None:
    """A value of /proc, since getrusage includes the peak of the parent process."""
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(found[0]) * 1024 if found else None
