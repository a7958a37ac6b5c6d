"""PyTorch files that are refused, and the reasons given."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from onmt_llm.checkpoint.files.torch_pickle import load_torch
from onmt_llm.errors import CheckpointError


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, ("1",)


def tar() -> bytes:
    """As torch wrote them before 2016."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            info = tarfile.TarInfo(name)
            info.size = len(pickle.dumps(1))
            archive.addfile(info, io.BytesIO(pickle.dumps(1)))
    return out.getvalue()


def saved(content: Any, *, legacy: bool = False) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, _use_new_zipfile_serialization=not legacy)
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (saved({"a": Evil()}), "its pickle names eval, which"),
        (saved({"a": Evil()}, legacy=True), "its pickle names eval, which"),
        (pickle.dumps({"a": Evil()}, protocol=4), "its pickle was not written by torch.save"),
        (pickle.dumps({"a": Path()}, protocol=0), "is refused: its pickle "),
        (tar(), "is a tar archive"),
        (b"", r"is not a readable PyTorch file\."),
        (b"hello", r"is not a readable PyTorch file\."),
        (saved({"a": torch.ones(100)})[:-200], "is not a readable PyTorch file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
    ids=("zip", "legacy", "pickle", "old pickle", "tar", "empty", "text", "cut", "pointer"),
)
def test_one_sentence_without_advice(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "m.pt"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_torch(file)
    said = caught.value.message
    assert len(said.splitlines()) == 1 and said.endswith(".") and not said.endswith("..")
    assert "weights_only" not in said and "http" not in said
