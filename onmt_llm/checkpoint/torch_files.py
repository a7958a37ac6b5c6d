"""PyTorch files (`.bin`, `.pth`, `.pt`), read through torch's restricted unpickler and nothing else."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from onmt_llm.errors import CheckpointError

_LFS_POINTER = b"version https://git-lfs"


def load_torch(path: Path, *, allowed: Sequence[type] = ()) -> Any:
    """The content of a PyTorch file, its tensors mapped from the disk rather than read.

    Args:
        path: The file.
        allowed: Classes, beyond torch's own list of harmless ones, that the pickle may name.

    Raises:
        CheckpointError: It is damaged, or its pickle names anything else. There is no unsafe way round.
    """
    _check_pointer(path)
    with torch.serialization.safe_globals(list(allowed)):
        try:
            return _load(path)
        except pickle.UnpicklingError as error:
            raise CheckpointError(f"{path} is refused: {_reason(str(error))}.", hint=_HINT) from error
        except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path} is not a readable PyTorch file ({first_line(error)}).") from error


_HINT = "a pickle can run code, so only tensors and plain data are read; have its author save safetensors"


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
    # The format before torch 1.6 is not a zip file and cannot be mapped.
    return torch.load(path, map_location="cpu", weights_only=True)


def _check_pointer(path: Path) -> None:
    try:
        with open(path, "rb") as file:
            start = file.read(len(_LFS_POINTER))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}).") from error
    if start == _LFS_POINTER:
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights.", hint="git lfs pull")


def _reason(message: str) -> str:
    named = re.search(r"Unsupported (?:global|class|operand)[^:]*:? (?:GLOBAL )?([\w.]+)", message) or re.search(
        r"GLOBAL ([\w.]+)", message
    )
    return f"its pickle names {named[1]}, which is not plain data" if named else first_line(message)


def first_line(error: object) -> str:
    return str(error).strip().split("\n")[0]


class TorchTensors:
    """The tensors of a mapping (a state dict whose tensors are mapped from the disk)."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors

    @classmethod
    def open(cls, paths: Sequence[Path]) -> TorchTensors:
        """The union of several files, each a flat state dict.

        Raises:
            CheckpointError: A file is no state dict, or two files hold one name.
        """
        merged: dict[str, torch.Tensor] = {}
        for path in paths:
            content = load_torch(path)
            if not isinstance(content, Mapping) or not all(isinstance(v, torch.Tensor) for v in content.values()):
                raise CheckpointError(f"{path} must be a mapping from names to tensors, but is not.")
            twice = sorted(merged.keys() & content.keys())
            if twice:
                raise CheckpointError(f"{path} repeats tensors of another file: {', '.join(twice[:5])}.")
            merged.update(content)
        return cls(merged)

    def names(self) -> list[str]:
        return sorted(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def tensor(self, name: str) -> torch.Tensor:
        return self._tensors[name].detach().clone()
