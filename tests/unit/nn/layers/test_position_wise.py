"""The feed-forward layer against its formula, for every activation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import tiny
from onmt_llm.nn.layers.position_wise import ACTIVATIONS, FeedForward

FORMULAS = {
    "relu": lambda x: x.clamp(min=0),
    "gelu": lambda x: x * torch.distributions.Normal(0, 1).cdf(x),
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": lambda x: x / (1 + (-x).exp()),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_computes_its_formula(activation: str, gated: bool, bias: bool) -> None:
    torch.manual_seed(0)
    layer = FeedForward(tiny.config(activation=activation, ffn_gated=gated, ffn_bias=bias), dropout=0.5).eval()
    x = torch.randn(2, 3, 32, requires_grad=True)
    act, up = FORMULAS[activation], layer.up_proj(x)
    inner = act(up) if layer.gate_proj is None else act(layer.gate_proj(x)) * up
    expected = layer.down_proj(inner)
    torch.testing.assert_close(layer(x), expected)
    inputs = [x, *layer.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(layer(x).sum(), inputs), torch.autograd.grad(expected.sum(), inputs), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dropout_is_for_training_only(activation: str) -> None:
    layer = FeedForward(tiny.config(activation=activation), dropout=0.5)
    x = torch.randn(4, 9, 32)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
