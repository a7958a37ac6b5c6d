"""How much memory was taken, and what need not take any."""

from __future__ import annotations

import os
from pathlib import Path

_STATUS = Path("/proc/self/status")

# Each matrix product of oneDNN is code made for one shape, half a MiB on processors with AMX; of the 1,024 that it
# keeps by default those of the last few updates are enough, since batches of one shape are rare.
_KEPT_PRODUCTS = 256


def limit_onednn_cache() -> None:
    """Have oneDNN forget products for shapes that were not used lately; before the first one, and unless the user says
    otherwise in the environment."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_KEPT_PRODUCTS))


def peak_memory(device_type: str) -> dict[str, int]:
    """The most bytes that this process has taken so far: `peak_rss` of main memory, where the system says, and
    `peak_cuda` of tensors on a GPU."""
    figures = {}
    rss = _status("VmHWM")
    if rss is not None:
        figures["peak_rss"] = rss
    if device_type == "cuda":
        import torch

        figures["peak_cuda"] = torch.cuda.max_memory_allocated()
    return figures


def resident_memory() -> int:
    """Bytes of main memory that this process holds now; 0 where the system does not say."""
    return _status("VmRSS") or 0


def _status(name: str) -> int | None:
    """A line of the kernel's own, since getrusage knows the peak of the process that started this one, too."""
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(found[0]) * 1024 if found else None
