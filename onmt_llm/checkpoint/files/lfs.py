"""Git LFS pointers: small text files that stand for weights which were not downloaded."""

from __future__ import annotations

from pathlib import Path

from onmt_llm.errors import CheckpointError

POINTER = b"version https://git-lfs"
"""How such a file begins."""


def refuse_pointer(path: Path) -> None:
    """Refuse a file that is a pointer.

    Raises:
        CheckpointError: It is a pointer.
    """
    with open(path, "rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise CheckpointError(f"{path} is a Git LFS pointer, not the weights.", hint="git lfs pull")
