"""Fused element-wise functions against those of torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from onmt_llm.nn.cpu import fused
from onmt_llm.nn.layers.position_wise import RMSNorm

EXACT, ROUNDED = {"rtol": 1e-9, "atol": 1e-9}, {"rtol": 1.6e-2, "atol": 2e-2}


@pytest.fixture(params=[1, 1 << 17], ids=["row by row", "at once"])
def elements(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_ELEMENTS", request.param)


def compare(found: Tensor, expected: Tensor, inputs: list[Tensor], tolerance: dict[str, float]) -> None:
    torch.testing.assert_close(found, expected, **tolerance)
    gradient = torch.randn_like(expected)
    pairs = zip(
        torch.autograd.grad(found, inputs, gradient), torch.autograd.grad(expected, inputs, gradient), strict=True
    )
    for one, other in pairs:
        torch.testing.assert_close(one, other, **tolerance)


@pytest.mark.usefixtures("elements")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, EXACT), (torch.bfloat16, ROUNDED)])
def test_rms_norm(dtype: torch.dtype, tolerance: dict[str, float]) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 8).to(dtype).transpose(0, 1).requires_grad_()
    weight = torch.rand(8).to(dtype).requires_grad_()
    compare(fused.rms_norm(x, weight, 1e-5), F.rms_norm(x, (8,), weight, 1e-5), [x, weight], tolerance)


@pytest.mark.usefixtures("elements")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, EXACT), (torch.bfloat16, ROUNDED)])
def test_silu_mul(dtype: torch.dtype, tolerance: dict[str, float]) -> None:
    torch.manual_seed(0)
    gate, up = (torch.randn(3, 5, 8).to(dtype).requires_grad_() for _ in range(2))
    compare(fused.silu_mul(gate, up), F.silu(gate) * up, [gate, up], tolerance)


def test_a_norm_keeps_its_input_in_16_bits() -> None:
    norm = RMSNorm(8, eps=1e-5).bfloat16().requires_grad_(False)
    kept: list[Tensor] = []
    x = torch.randn(4, 8, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        norm(x)
    assert sum(t.nbytes for t in kept) == x.nbytes + norm.weight.nbytes + 4 * len(x)


@pytest.mark.parametrize(("rows", "width", "elements"), [(10, 4, 12), (10, 4, 1), (3, 5, 1000), (0, 5, 10)])
def test_blocks_cover_all_rows_in_order(rows: int, width: int, elements: int) -> None:
    blocks = fused.row_blocks(rows, width, elements)
    assert [row for block in blocks for row in range(rows)[block]] == list(range(rows))
    assert all((block.stop - block.start) * width <= max(elements, width) for block in blocks)
