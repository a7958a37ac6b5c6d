"""Configurations of imported models that cannot fit their tensors."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tiny
from onmt_llm.checkpoint.formats.imported import check_sizes
from onmt_llm.errors import CheckpointError


def source(**shapes: tuple[int, ...]) -> Any:
    return SimpleNamespace(names=lambda: list(shapes), shape=shapes.__getitem__)


TENSORS = source(a=(32, 24), b=(32,), c=())


def test_what_can_fit_passes() -> None:
    check_sizes(tiny.config(vocab_size=32), TENSORS, Path("m"))
    check_sizes(tiny.config(vocab_size=10**6), TENSORS, Path("m"), rows=False)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"decoder_layers": 1000}, "decoder_layers 1000, while there are only 3 tensors"),
        ({"encoder_layers": 2}, "encoder_layers 2 and decoder_layers 2"),
        ({"vocab_size": 33}, "vocab_size 33, while no tensor is longer than 32"),
    ],
)
def test_what_cannot_fit_is_refused_before_anything_is_allocated(changes: dict[str, int], problem: str) -> None:
    with pytest.raises(CheckpointError, match=f"The configuration of m must fit its weights.*{problem}"):
        check_sizes(tiny.config(**changes), TENSORS, Path("m"))


def test_no_tensors_at_all_are_refused() -> None:
    with pytest.raises(CheckpointError):
        check_sizes(tiny.config(), source(), Path("m"))
