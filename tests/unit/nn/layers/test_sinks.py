"""Attention sinks are one more column of the scores, which the softmax sees and the values do not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import tiny
from onmt_llm.nn.init import init_weights
from onmt_llm.nn.layers.attention import Attention, attend_with_sinks
from onmt_llm.nn.masks import Mask

LENGTH, KEYS, LONG = 9, 13, 300
SCALE = 0.3
FIRST_BT = torch.tensor([[0, 0, 0, 3, 3, 3, 3, 7, 7], [0] * LENGTH])
VISIBLE = torch.ones(LENGTH, KEYS, dtype=torch.bool).tril(KEYS - LENGTH)
CASES = {
    "causal": (LENGTH, LENGTH, Mask(causal=True)),
    "documents": (LENGTH, LENGTH, Mask(causal=True, first_BT=FIRST_BT)),
    "window": (LONG, LONG, Mask(causal=True, first_BT=(torch.arange(LONG) - 40).clamp(min=0)[None])),
    "after a cache": (LENGTH, KEYS, Mask(VISIBLE[None, None])),
    "biases of heads": (
        LENGTH,
        KEYS,
        Mask(torch.randn(1, 4, LENGTH, KEYS, generator=torch.Generator().manual_seed(1))),
    ),
    "one query": (1, KEYS, Mask()),
    "one query, masked": (
        1,
        KEYS,
        Mask(torch.arange(KEYS)[None, None, None] > torch.tensor([2, 7])[:, None, None, None]),
    ),
    "one query, biases of heads": (1, KEYS, Mask(torch.arange(4.0)[None, :, None, None] * torch.arange(KEYS) / 9)),
}


def inputs(queries: int, keys: int, kv_heads: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 4, queries, 8), (2, kv_heads, keys, 8), (2, kv_heads, keys, 8), (4,)]
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


def by_definition(q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, sinks_N: Tensor, mask: Mask) -> Tensor:
    k_BNSH, v_BNSH = (x.repeat_interleave(4 // x.shape[1], dim=1) for x in (k_BKSH, v_BKSH))
    scores_BNTS = SCALE * q_BNTH @ k_BNSH.mT
    bias = mask.as_float(*scores_BNTS.shape[2:])
    scores_BNTS = scores_BNTS if bias is None else scores_BNTS + bias
    sinks_BNT1 = sinks_N[:, None, None].expand(*scores_BNTS.shape[:3], 1)
    return torch.cat([scores_BNTS, sinks_BNT1], dim=-1).softmax(dim=-1)[..., :-1] @ v_BNSH


@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients(case: str, kv_heads: int) -> None:
    queries, keys, mask = CASES[case]
    q, k, v, sinks = tensors = inputs(queries, keys, kv_heads)
    found, expected = attend_with_sinks(q, k, v, mask, sinks, SCALE), by_definition(q, k, v, sinks, mask)
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, tensors, direction), torch.autograd.grad(expected, tensors, direction), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_bfloat16() -> None:
    q, k, v, sinks = inputs(LENGTH, LENGTH, 2)
    expected = by_definition(q, k, v, sinks, Mask(causal=True))
    found = attend_with_sinks(*(x.bfloat16() for x in (q, k, v)), Mask(causal=True), sinks.bfloat16(), SCALE)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0)


def test_dropout_spares_the_sink() -> None:
    """With a sink far above all scores nothing is attended to, whatever is dropped."""
    q, k, v, _ = inputs(LENGTH, LENGTH, 2)
    found = attend_with_sinks(q, k, v, Mask(causal=True), torch.full((4,), 60.0), SCALE, 0.5)
    assert found.abs().max() < 1e-6


def test_new_sinks_are_zero_and_only_in_self_attention() -> None:
    config = tiny.llama(attention_sinks=True)
    layer = Attention(config, layer=0)
    torch.nn.init.ones_(layer.sinks)
    init_weights(layer)
    assert layer.sinks.tolist() == [0.0] * config.heads
    assert Attention(config, layer=0, cross=True).sinks is None
