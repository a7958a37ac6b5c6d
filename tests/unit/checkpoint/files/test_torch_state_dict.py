"""PyTorch files on a disk that is full: an error of the file system, instead of a RuntimeError or a killed process."""

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from onmt_llm.checkpoint.files.torch_state_dict import save_torch, write_state_dict


def test_a_full_disk_is_an_error_of_the_file_system() -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        save_torch({"weight": torch.zeros(100_000)}, Path("/dev/full"))
    assert caught.value.errno == errno.ENOSPC


def test_the_blocks_of_a_file_are_reserved_before_it_is_mapped(tmp_path: Path) -> None:
    file = tmp_path / "model.pth"

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        there = file.stat()
        assert there.st_blocks * 512 >= there.st_size > 4_000_000
        yield "weight", torch.ones(1_000_000)

    write_state_dict(file, {"weight": ((1_000_000,), torch.float32)}, tensors())
    assert torch.load(file, weights_only=True)["weight"].sum() == 1_000_000
