"""Devices and number formats: the torch device and the torch dtype that an option's value means."""

from __future__ import annotations

import torch

from onmt_llm.config.model import Dtype
from onmt_llm.errors import UnsupportedError

DTYPES: dict[Dtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
