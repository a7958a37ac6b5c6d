"""Read PyTorch files (`.bin`, `.pth`, `.pt`), only through torch's restricted unpickler."""

from __future__ import annotations

import pickle
import re
import stat
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from onmt_llm.checkpoint.files.lfs import refuse_pointer
from onmt_llm.errors import CheckpointError

_ZIP, _TAR, _TAR_PLACE = b"PK\x03\x04", b"ustar", 257
_LONGEST_START = _TAR_PLACE + len(_TAR)
_AGAIN = "load it with the torch that wrote it, and save it again with torch.save"


def load_torch(path: Path, *, allowed: Sequence[type] = ()) -> Any:
    """The content of a PyTorch file, with memory-mapped tensors.

    Args:
        path: The file.
        allowed: Classes that the pickle may name, besides those that torch allows.

    Raises:
        CheckpointError: The file is damaged, or its pickle names another class. There is no unsafe fallback.
    """
    _check_file(path)
    with torch.serialization.safe_globals(list(allowed)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about files that are refused below
        try:
            return _load(path)
        except pickle.UnpicklingError as error:
            raise CheckpointError(f"{path} is refused: {_reason(str(error))}.", hint=_HINT) from error
        except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
            raise _unreadable(path, error) from error


_HINT = "a pickle can run code, so only tensors and plain data are read; ask its author for safetensors"


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
    # The format before torch 1.6 is not a zip file and cannot be mapped into memory.
    return torch.load(path, map_location="cpu", weights_only=True)


def _check_file(path: Path) -> None:
    """Refuse files on which torch would block, exhaust memory, or fail with a misleading message."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{path} must be a regular file, but is not.")
        with open(path, "rb") as file:
            start = file.read(_LONGEST_START)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}).") from error
    refuse_pointer(path)
    if start[_TAR_PLACE:].startswith(_TAR):
        raise CheckpointError(
            f"{path} is a tar archive, the PyTorch format before 2016, which is not supported.", hint=_AGAIN
        )
    if start.startswith(_ZIP):
        _check_sizes(path)


def _check_sizes(path: Path) -> None:
    """Refuse compressed entries: torch writes none, and one could inflate to any size."""
    try:
        with zipfile.ZipFile(path) as archive:
            grown = [entry.filename for entry in archive.infolist() if entry.file_size > entry.compress_size]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _unreadable(path, error) from error
    if grown:
        raise CheckpointError(
            f"{path} must be as torch.save writes it, but {grown[0]} in it is compressed.", hint=_AGAIN
        )


def _reason(message: str) -> str:
    """Why torch refused a pickle, without torch's advice to trust it."""
    named = re.search(r"GLOBAL ([\w.]+)", message)
    return (
        f"its pickle names {named[1]}, which is not plain data" if named else "its pickle was not written by torch.save"
    )


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    said = "" if isinstance(error, KeyError) else first_line(error).removesuffix(".")
    return CheckpointError(f"{path} is not a readable PyTorch file{f' ({said})' if said else ''}.")


def first_line(error: object) -> str:
    return str(error).strip().split("\n")[0]


def _check_extent(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse views that claim to be larger than their storage: a copy would take that much memory."""
    larger = [
        name for name, one in tensors.items() if one.numel() * one.element_size() > one.untyped_storage().nbytes()
    ]
    if larger:
        raise CheckpointError(f"{path} must hold its tensors completely, but {larger[0]} is larger than its storage.")


class TorchTensors:
    """The tensors of a state dict, usually memory-mapped."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors

    @classmethod
    def open(cls, paths: Sequence[Path], *, section: str = "") -> TorchTensors:
        """Merge several files, each a flat state dict, or a mapping that has one as `section`.

        Raises:
            CheckpointError: A file is not a state dict, or two files have a tensor of the same name.
        """
        merged: dict[str, torch.Tensor] = {}
        for path in paths:
            content = load_torch(path)
            if isinstance(content, Mapping) and section in content:
                content = content[section]
            if not isinstance(content, Mapping) or not all(isinstance(v, torch.Tensor) for v in content.values()):
                raise CheckpointError(f"{path} must be a mapping from names to tensors, but is not.")
            _check_extent(path, content)
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
