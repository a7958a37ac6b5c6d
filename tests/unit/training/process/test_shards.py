"""Weights that are drawn in slices are those of one draw."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from onmt_llm.nn.init import Draw
from onmt_llm.training.process import shards


@pytest.mark.parametrize("draw", [Tensor.normal_, Tensor.uniform_])
@pytest.mark.parametrize("shape", [(1,), (15,), (300,), (33, 3), (50, 7), (48, 16), (65, 40), (100, 1)])
def test_slices_have_the_values_of_one_draw(
    shape: tuple[int, ...], draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_DRAWN", 128)
    whole, sliced = torch.empty(shape), torch.empty(shape)
    draws = []
    for fill in (lambda: draw(whole), lambda: shards.fill_drawn(sliced, draw)):
        torch.manual_seed(5)
        fill()
        draws.append(torch.rand(3))
    assert torch.equal(sliced, whole) and torch.equal(*draws)
