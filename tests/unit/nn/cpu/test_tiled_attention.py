"""Tiled attention against torch's kernel with a materialised mask."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from onmt_llm.nn.cpu import tiled_attention as tiled
from onmt_llm.nn.cpu.tiled_attention import mask_tiles
from onmt_llm.nn.layers.attention import attend
from onmt_llm.nn.masks import Mask

H = 8
# (rows, heads, key heads, positions): grouped and not, shorter and longer than a tile, an odd end
SIZES = [(2, 6, 2, 150), (3, 4, 4, 70), (1, 3, 1, 5)]


def documents(rows: int, length: int) -> Tensor:
    """(B, T): the first position of the document of each position; every row is cut elsewhere."""
    cuts = [(length * part + row) // 7 for row in range(rows) for part in (1, 3, 4)]
    first_BT = torch.zeros(rows, length, dtype=torch.long)
    for row in range(rows):
        for cut in sorted(cuts[3 * row : 3 * row + 3]):
            first_BT[row, cut:] = cut
    return first_BT


def limits(kind: str, rows: int, length: int) -> Tensor | None:
    window_BT = (torch.arange(length) - 9).clamp(min=0).expand(rows, -1)
    if kind == "causal":
        return None
    return {"window": window_BT, "documents": documents(rows, length)}.get(
        kind, torch.maximum(window_BT, documents(rows, length))
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["causal", "window", "documents", "both"])
@pytest.mark.parametrize("scores_at_once", [1, 1 << 20])
def test_values_and_gradients_are_those_of_torchs_kernel(
    kind: str, size: tuple[int, int, int, int], scores_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiled, "_SCORES", scores_at_once)
    rows, heads, key_heads, length = size
    torch.manual_seed(0)
    inputs = [torch.randn(rows, n, length, H, dtype=torch.float64) for n in (heads, key_heads, key_heads)]
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in inputs)
    mask = Mask(causal=True, first_BT=limits(kind, rows, length))
    seen = torch.ones(length, length, dtype=torch.bool).tril() if mask.materialized is None else mask.materialized
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True, scale=0.3)

    found = tiled.attend_tiled(q, k, v, mask_tiles(mask, q, k), 0.3)

    torch.testing.assert_close(found, expected)
    gradient = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad(found, (q, k, v), gradient), torch.autograd.grad(expected, (q, k, v), gradient), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_a_row_of_documents_costs_what_the_documents_cost() -> None:
    first_BT = (torch.arange(1024) // 128 * 128)[None]
    scores = sum((t.rows.stop - t.rows.start) * (t.keys.stop - t.keys.start) for t in tiles(first_BT))
    alone = sum((t.rows.stop - t.rows.start) * (t.keys.stop - t.keys.start) for t in tiles(first_BT[:, :128]))
    assert scores == 8 * alone


def tiles(first_BT: Tensor) -> list[tiled.Tile]:
    return tiled.limited_tiles(first_BT, heads=3, key_heads=1, dtype=torch.float32)


def test_in_16_bits_it_is_as_near_to_the_exact_result_as_torchs_kernel() -> None:
    torch.manual_seed(0)
    exact = [torch.randn(2, n, 200, 64, dtype=torch.float64) for n in (9, 3, 3)]
    q, k, v = (x.bfloat16().requires_grad_() for x in exact)
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    gradient = torch.randn(2, 9, 200, 64, dtype=torch.float64)

    def errors(out: Tensor) -> list[float]:
        grads = torch.autograd.grad(out, (q, k, v), gradient.bfloat16())
        pairs = zip([out.detach(), *grads], expected, strict=True)
        return [float((x.double() - y).norm() / y.norm()) for x, y in pairs]

    reference = F.scaled_dot_product_attention(*exact, is_causal=True, enable_gqa=True)
    expected = [reference.detach(), *torch.autograd.grad(reference, exact, gradient)]
    kernel = errors(F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True))
    mask = Mask(causal=True)
    for by_torch in (False, True):
        ours = errors(tiled.attend_tiled(q, k, v, mask_tiles(mask, q, k), 64**-0.5, forward_by_torch=by_torch))
        assert all(mine <= 2 * theirs for mine, theirs in zip(ours, kernel, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_decides_on_the_type(dtype: torch.dtype) -> None:
    q = torch.randn(1, 2, 9, H, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attend(q, q, q, Mask(causal=True))
    assert out.dtype == torch.bfloat16
    (gradient,) = torch.autograd.grad(out.sum(), q)
    assert gradient.dtype == dtype
