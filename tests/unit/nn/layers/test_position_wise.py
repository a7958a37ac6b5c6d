"""Feed-forward layer and norms against their formulas, the embedding as an output layer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import tiny
from onmt_llm.nn.layers.position_wise import (
    FeedForward,
    RMSNorm,
    TiedHead,
    TokenEmbedding,
    build_head_norm,
    build_norm,
)

FORMULAS = {
    "relu": lambda x: x.clamp(min=0),
    "relu2": lambda x: x.clamp(min=0) ** 2,
    "gelu": lambda x: x * torch.distributions.Normal(0, 1).cdf(x),
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": lambda x: x / (1 + (-x).exp()),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", FORMULAS)
def test_feed_forward_computes_its_formula(activation: str, gated: bool, bias: bool) -> None:
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


@pytest.mark.parametrize("activation", FORMULAS)
def test_dropout_is_for_training_only(activation: str) -> None:
    layer = FeedForward(tiny.config(activation=activation), dropout=0.5)
    x = torch.randn(4, 9, 32)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_and_its_gradient(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    norm = RMSNorm(32, eps=1e-3).to(dtype)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 5, 32, dtype=dtype, requires_grad=True)
    exact = x.double()
    expected = exact / (exact.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight.double()
    found = norm(x)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)
    direction = torch.randn(2, 5, 32, dtype=dtype)
    ours = torch.autograd.grad(found, [x, norm.weight], direction)
    theirs = torch.autograd.grad(expected, [x, norm.weight], direction.double())
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.double(), other.double(), atol=10 * tolerance, rtol=10 * tolerance)


def test_another_kernel_takes_its_place() -> None:
    norm = RMSNorm(4, eps=1e-5)
    norm.kernel = lambda x, weight, eps: x + weight + eps
    torch.testing.assert_close(norm(torch.zeros(4)), torch.full((4,), 1.00001))


@pytest.mark.parametrize(
    ("options", "kind", "bias"),
    [
        ({"norm": "rmsnorm"}, RMSNorm, False),
        ({"norm": "layernorm"}, torch.nn.LayerNorm, True),
        ({"norm": "layernorm", "norm_bias": False}, torch.nn.LayerNorm, False),
    ],
)
def test_the_configured_norm_is_built(options: dict, kind: type, bias: bool) -> None:
    norm = build_norm(tiny.config(norm_eps=1e-4, **options), 12)
    assert isinstance(norm, kind) and norm.eps == 1e-4 and norm.weight.shape == (12,)
    assert (getattr(norm, "bias", None) is not None) is bias
    assert build_norm(tiny.config(**options)).weight.shape == (32,)


def test_heads_are_normalised_by_rms_norm_whatever_the_model_has() -> None:
    for over, size in (("head", 6), ("all_heads", 12)):
        norm = build_head_norm(tiny.config(norm="layernorm", head_dim=6, qk_norm_over=over), heads=2)
        assert isinstance(norm, RMSNorm) and norm.weight.shape == (size,)


@pytest.mark.parametrize("bias", [False, True])
def test_a_tied_head_scores_by_the_embedding(bias: bool) -> None:
    embedding, head = TokenEmbedding(7, 4), TiedHead(7, bias=bias)
    if head.bias is not None:
        torch.nn.init.normal_(head.bias)
    x = torch.randn(2, 3, 4)
    expected = x @ embedding.weight.t() + (0 if head.bias is None else head.bias)
    torch.testing.assert_close(head(x, embedding), expected)
    assert [name for name, _ in head.named_parameters()] == (["bias"] if bias else [])
